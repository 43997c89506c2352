"""`KanSpace`: candidates in all four ways, their texts and JSON, building, cost, and what is refused."""

import functools

import numpy as np
import optuna
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from normact.launch.config import compose_config, space_of
from normact.spaces import Conv, InputError, KanSpace, Site, fingerprint
from normact.spaces.fingerprint import probe_batch
from normact.spaces.kan import BASES, Basis
from normact.spaces.kan.genes import FamilyGene, KanCandidate, LayerGene
from normact.spaces.kan.kinds import KINDS
from normact.spaces.kan.normalizers import BOUNDED

SEEDS = st.integers(0, 2**32 - 1)


@functools.cache
def space(site="linear"):
    kinds = [name for name, kind in KINDS.items() if site in kind.sites]
    return KanSpace(site, layers=2, kinds=kinds)


SITES = ("linear", "conv", "norm_act")


@pytest.mark.parametrize("site", SITES)
@settings(max_examples=25, deadline=None)
@given(seed=SEEDS)
def test_candidates_survive_text_and_json(site, seed):
    rng = np.random.default_rng(seed)
    first = space(site).sample(rng)
    child = space(site).mutate(first, rng)
    mixed = space(site).crossover(first, child, rng)
    for candidate in (first, child, mixed):
        assert space(site).from_json(space(site).to_json(candidate)) == candidate
        assert space(site).parse(space(site).describe(candidate)) == candidate
        assert space(site).invalid(candidate) == ""


@pytest.mark.parametrize("site", SITES)
@settings(max_examples=15, deadline=None)
@given(seed=SEEDS)
def test_what_is_sampled_can_be_built_and_has_the_parameters_that_cost_says(site, seed):
    candidate = space(site).sample(np.random.default_rng(seed))
    for place in space(site).probe_sites():
        module = space(site).build(candidate, place)
        x, y = probe_batch(place, 0)
        assert module(x.float()).shape == y.shape
        cost = space(site).cost(candidate, place, batch=4)
        assert cost.parameters == sum(p.numel() for p in module.parameters())
        assert cost.bytes >= 4 * cost.parameters


@pytest.mark.parametrize("widths", [(8, 8), (24, 40), (784, 64), (32, 8)])
def test_cost_counts_the_parameters_of_wide_layers(widths):
    rng = np.random.default_rng(0)
    for _ in range(10):
        candidate = space().sample(rng)
        place = Site("linear", 0, *widths, layout="NC")
        expected = sum(p.numel() for p in space().build(candidate, place).parameters())
        assert space().cost(candidate, place, batch=1).parameters == expected, space().describe(candidate)


def test_cost_counts_the_parameters_of_grouped_convolutions():
    place = Site("conv", 0, 16, 32, conv=Conv(3, 2, 1, groups=2))
    for text in ("kan(gaussian(grid=5))", "kan(gaussian, bspline, combine=product)", "node(gaussian)", "af()"):
        candidate = space("conv").parse(text)
        expected = sum(p.numel() for p in space("conv").build(candidate, place).parameters())
        assert space("conv").cost(candidate, place, batch=1).parameters == expected, text


def test_memory_grows_with_batch_positions_and_functions():
    small, large = (space().parse(f"kan(gaussian(grid={grid}))") for grid in (5, 50))
    at = Site("linear", 0, 784, 64, layout="NC", positions=3)
    known = 3 * 256 * 3 * 50 * 784 * 4  # bases, the packed features and their gradients, float32
    assert space().cost(large, at, 256).bytes > known > space().cost(small, at, 256).bytes


@given(seed=SEEDS)
@settings(max_examples=50, deadline=None)
def test_a_mutation_changes_one_layer_and_one_choice_or_what_hangs_on_it(seed):
    rng = np.random.default_rng(seed)
    parent = space().sample(rng)
    child = space().mutate(parent, rng)
    changed = [i for i, (a, b) in enumerate(zip(parent.layers, child.layers, strict=True)) if a != b]
    assert len(changed) == 1


@given(seed=SEEDS)
@settings(max_examples=30, deadline=None)
def test_a_crossover_of_equals_is_the_same(seed):
    rng = np.random.default_rng(seed)
    parent = space().sample(rng)
    assert space().crossover(parent, parent, rng) == parent


def test_a_crossover_takes_each_layer_s_kind_from_a_parent():
    rng = np.random.default_rng(3)
    a, b = space().parse("kan(gaussian)"), space().parse("node(rational)")
    kinds = {tuple(gene.kind for gene in space().crossover(a, b, rng).layers) for _ in range(60)}
    assert kinds == {("kan", "kan"), ("kan", "node"), ("node", "kan"), ("node", "node")}


@pytest.mark.parametrize("site", SITES)
@settings(max_examples=25, deadline=None)
@given(seed=SEEDS)
def test_an_optuna_trial_can_give_every_candidate(site, seed):
    candidate = space(site).sample(np.random.default_rng(seed))
    trial = optuna.trial.FixedTrial(space(site).trial_parameters(candidate))
    assert space(site).suggest(trial) == candidate
    assert trial.params == space(site).trial_parameters(candidate)


def test_a_candidate_has_no_trial_parameters_where_it_is_not_of_the_space():
    assert space().trial_parameters(space().parse("kan(bspline(grid=77))")) is None


def test_optuna_s_sampler_gets_along_with_the_space():
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0))
    for _ in range(30):  # a name always has the same options, or Optuna refuses
        trial = study.ask()
        assert space().invalid(space().suggest(trial)) == ""
        study.tell(trial, 0.0)


def test_every_kind_family_and_option_is_sampled():
    rng = np.random.default_rng(0)
    genes = [gene for _ in range(1500) for gene in space().sample(rng).layers]
    assert {gene.kind for gene in genes} == set(KINDS) & set(space().kinds)
    assert {family.name for gene in genes for family in gene.families} == set(BASES)
    for kind in space().kinds:
        for name, values in KINDS[kind].options.items():
            assert {gene.option(name) for gene in genes if gene.kind == kind} == set(values), (kind, name)


def test_bounded_families_are_never_behind_an_unbounded_normalizer():
    rng = np.random.default_rng(0)
    for _ in range(300):
        for gene in space().sample(rng).layers:
            if any(BASES[family.name].bounded for family in gene.families):
                assert gene.option("normalizer") in BOUNDED


def test_equal_functions_have_one_key():
    one = space().parse("kan(gaussian, bspline(grid=5), combine=sum); kan(chebyshev)")
    assert space().parse("kan(bspline(grid=5), gaussian, combine=sum); kan(chebyshev)") == one
    assert space().key(one) == space().key(space().from_json(space().to_json(one)))
    alone = space().parse("kan(gaussian, combine=product)")
    assert alone == space().parse("kan(gaussian)")
    assert space().key(alone) != space().key(one)


def test_order_matters_where_each_family_serves_its_own_outputs():
    a, b = (space().parse(f"kan({pair}, combine=concat)") for pair in ("gaussian, bspline", "bspline, gaussian"))
    assert space().key(a) != space().key(b)


def test_different_settings_are_different_functions():
    texts = ["kan(gaussian(grid=5))", "kan(gaussian(grid=8))", "kan(gaussian(grid=8), base=none)", "node(gaussian)"]
    texts += ["kan(gaussian(grid=8), normalizer=tanh)", "kan(gaussian(grid=8), post=batch)", "kan(rswaf(grid=8))"]
    prints = set()
    for text in texts:
        candidate = space().parse(text)
        prints.add(fingerprint(functools.partial(space().build, candidate), space().probe_sites()))
    assert len(prints) == len(texts)


def test_sites_beyond_the_last_gene_have_the_last_one():
    candidate = space().parse("kan(gaussian); node(rational)")
    kinds = [type(space().build(candidate, Site("linear", i, 4, 3, layout="NC"))).__name__ for i in range(4)]
    assert kinds == ["KANLinear", "NodeLinear", "NodeLinear", "NodeLinear"]


def test_text_has_defaults_for_what_is_left_out():
    gene = space().parse("kan(bspline)").layers[0]
    assert gene.families == (FamilyGene("bspline", (("grid", 5), ("order", 3))),)
    assert dict(gene.options) == {"normalizer": "layer", "base": "silu", "combine": "sum", "post": "none"}
    assert space().parse("kan(chebyshev)").layers[0].option("normalizer") == "layer_tanh"


def test_a_person_may_write_other_numbers_than_a_search_tries():
    assert space().parse("kan(gaussian(grid=33))").layers[0].families[0].settings == (("grid", 33),)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no layer"),
        ("kan(", "cannot read"),
        ("kan", "expected a call"),
        ("kann(gaussian)", "unknown kind of KAN layer 'kann'; the nearest is 'kan'"),
        ("kan(gausian)", "unknown basis family 'gausian'; the nearest is 'gaussian'"),
        ("kan(gaussian(gird=5))", "unknown setting of gaussian 'gird'; the nearest is 'grid'"),
        ("kan(gaussian(grid=1))", "got 1"),
        ("kan(bspline(grid=0))", "bspline needs grid to be a whole number from 1 to 4089, got 0"),
        ("kan(bspline(order=-1))", "got -1"),
        ("kan(gaussian(grid=10**9))", "expected a word, number"),
        ("kan(gaussian(grid=1000000000))", "1000000000"),
        ("kan(chebyshev, normalizer=none)", "chebyshev needs inputs in [-1, 1], which normalizer 'none'"),
        ("kan(gaussian, normalizer=lyaer)", "unknown kan normalizer 'lyaer'; the nearest is 'layer'"),
        ("kan(gaussian, norm=layer)", "unknown option of kan 'norm'"),
        ("kan()", "takes 1 to 4 basis families, got 0"),
        ("node(gaussian, bspline)", "takes 1 to 1 basis families, got 2"),
        ("af(gaussian)", "takes 0 to 0 basis families, got 1"),
        ("kan(gaussian(rswaf))", "takes settings alone"),
        ("kan(gaussian(**x))", "expected name=value"),
        ("node(graph(expression='batch_mean(x)'))", "batch_mean"),
        ("node(graph(expression='add(zero, zero)'))", "does not depend on x"),
        ("kan(gaussian, __import__('os'))", "__import__ takes settings alone"),
        ("kan(gaussian, os.system)", "expected a call"),
    ],
)
def test_bad_text_is_refused_with_what_was_found(text, said):
    with pytest.raises(InputError) as problem:
        space().parse(text)
    assert said in str(problem.value)
    assert "\n" not in str(problem.value)


@given(st.text(max_size=60))
def test_any_text_is_read_or_refused_in_one_line(text):
    try:
        candidate = space().parse(text)
    except InputError as problem:
        assert str(problem)
    else:
        assert space().parse(space().describe(candidate)) == candidate


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.just("kan"),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["kind", "families", "options", "x"]), inner, max_size=4)
        ),
        max_leaves=12,
    )
)
def test_any_json_is_read_or_refused(data):
    try:
        space().from_json(data)
    except InputError as problem:
        assert str(problem)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"site": "lnear"}, "unknown kind of site 'lnear'; the nearest is 'linear'"),
        ({"layers": 0}, "layers and most_families must be at least 1, got 0"),
        ({"kinds": []}, "at least one kind of layer"),
        ({"kinds": ["knan"]}, "unknown kind of KAN layer 'knan'"),
        ({"site": "norm_act", "kinds": ["kan"]}, "'kan' has no form for norm_act sites; those that have: node"),
        ({"families": ["gaussian", "bsplin"]}, "unknown basis family 'bsplin'; the nearest is 'bspline'"),
        ({"families": [3]}, "a family is a name or a subclass of Basis"),
        ({"settings": {"bspline": {"grid": [0]}}}, "got 0"),
        ({"settings": {"bspline": {"order": [-2]}}}, "got -2"),
        ({"settings": {"bspline": {"gird": [5]}}}, "unknown setting of bspline 'gird'"),
        ({"settings": {"bspline": {"grid": []}}}, "settings.bspline.grid must be a list of at least one value, got []"),
        ({"settings": {"bspine": {}}}, "unknown family 'bspine' in settings"),
        ({"options": {"kan": {"normalizer": ["none"]}}}, "none of the normalizers none of kan gives"),
        ({"options": {"kan": {"base": ["sliu"]}}}, "unknown kan base 'sliu'"),
        ({"options": {"kan": {"base": []}}}, "options.kan.base must be a list of at least one of silu"),
        ({"options": {"kan": {"base": "silu"}}}, "must be a list of at least one of silu, gelu, relu"),
        ({"settings": {"bspline": {"grid": 5}}}, "must be a list of at least one value, got 5"),
        ({"options": {"nood": {}}}, "unknown kind 'nood' in options"),
    ],
)
def test_a_config_that_cannot_be_is_refused_when_it_is_read(arguments, said):
    with pytest.raises(InputError) as problem:
        KanSpace(**arguments)
    assert said in str(problem.value)


class Cosines(Basis):
    """A person's own family."""

    name = "test_cosines"
    choices = {"count": (2, 3)}

    def __init__(self, features, reach=2.0, count=2):
        super().__init__(features, count, reach)

    def planes(self, x):
        return torch.cos(x.unsqueeze(-2) * torch.arange(1, self.size + 1).unsqueeze(1))


def test_a_family_of_one_s_own():
    try:
        own = KanSpace(families=["gaussian", functools.partial(Cosines)], kinds=["kan"])
        assert set(own.menu.families) == {"gaussian", "test_cosines"}
        layer = own.build(own.parse("kan(test_cosines(count=3))"), Site("linear", 0, 5, 4, layout="NC"))
        assert layer(torch.zeros(2, 5)).shape == (2, 4)
    finally:
        BASES.pop("test_cosines", None)


def test_a_site_of_another_kind_is_refused():
    candidate = space().parse("kan(gaussian)")
    with pytest.raises(InputError, match="kind 'kan' cannot fill a site of kind 'norm_act'"):
        space().build(candidate, Site("norm_act", 0, 4))


def test_baselines_are_candidates_and_build():
    for site in SITES:
        found = space(site).baselines()
        assert "mlp" in found and len(found) > 10
        for name, candidate in found.items():
            assert space(site).from_json(space(site).to_json(candidate)) == candidate, name
            space(site).build(candidate, space(site).probe_sites()[0])
            assert space(site).parse(name) == candidate


@pytest.mark.parametrize("name", ["kan", "kan_conv", "kan_act"])
def test_the_shipped_spaces_can_be_made(name):
    made = space_of(compose_config([f"space={name}"]))
    rng = np.random.default_rng(0)
    assert isinstance(made, KanSpace)
    for _ in range(5):
        candidate = made.sample(rng)
        for site in made.probe_sites():
            made.build(candidate, site)


def test_a_candidate_is_a_value():
    a, b = (KanCandidate((LayerGene("kan", (FamilyGene("gaussian", (("grid", 5),)),)),)) for _ in range(2))
    assert a == b and hash(a) == hash(b) and len({a, b}) == 1


def test_outputs_that_cannot_be_shared_out_are_served_by_all_families():
    candidate = space().parse("kan(gaussian, bspline, combine=concat)")
    one = space().build(candidate, Site("linear", 0, 4, 1, layout="NC"))
    assert one.combine == "sum" and one(torch.zeros(3, 4)).shape == (3, 1)
    assert space().build(candidate, Site("linear", 0, 4, 2, layout="NC")).combine == "concat"


def test_more_genes_than_layers_are_refused_and_fewer_are_filled_up():
    with pytest.raises(InputError, match=r"has 3 layers, the space 2; give space\.layers=3"):
        space().parse("kan(gaussian); kan(gaussian); kan(bspline)")
    assert space().parse("kan(gaussian)") == space().parse("kan(gaussian); kan(gaussian)")


def test_a_mutation_of_a_baseline_keeps_the_other_layer():
    parent, rng = space().baselines()["gaussian"], np.random.default_rng(0)
    children = [space().mutate(parent, rng) for _ in range(30)]
    assert all(sum(a != b for a, b in zip(parent.layers, child.layers, strict=True)) == 1 for child in children)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("kan(gaussian(grid=8.0))", "gaussian needs grid to be a whole number such as 8, got 8.0"),
        ("kan(gaussian(grid=True))", "got True"),
        ("kan(jacobi(alpha=nan))", "jacobi needs alpha to be a finite number such as 1.0, got 'nan'"),
        ("kan(graph(expression=5))", "graph needs expression to be a text"),
        ("kan(rational(start=7))", "rational needs start to be a text"),
        ("af(grid=0)", "af needs grid to be a whole number from 1 to 4096, got 0"),
        ("af(order=-1)", "af needs order to be a whole number from 0 to 4096, got -1"),
    ],
)
def test_values_of_another_type_are_refused(text, said):
    with pytest.raises(InputError) as problem:
        space().parse(text)
    assert said in str(problem.value)


def test_equal_numbers_of_two_types_are_one_candidate():
    a, b = (space().parse(f"kan(jacobi(alpha={alpha}))") for alpha in ("2", "2.0"))
    assert a == b and space().key(a) == space().key(b)


def test_what_parameters_start_from_tells_candidates_apart():
    def print_of(text):
        return fingerprint(functools.partial(space().build, space().parse(text)), space().probe_sites())

    pairs = [("kan(rational(start=silu))", "kan(rational(start=identity))"), ("af(grid=3)", "af(grid=4, order=2)")]
    for a, b in pairs:
        assert print_of(a) != print_of(b)
        assert print_of(a) == print_of(a)


def test_a_searched_concatenation_is_exported_with_one_output_too():
    candidate = space().parse("kan(gaussian, bspline, combine=concat)")
    scope = {}
    exec(space().source(candidate, "layer"), scope)
    site = Site("linear", 1, 8, 1, layout="NC")
    ours = space().build(candidate, site).double()
    theirs = scope["layer"](**space().source_arguments(site)).double()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(5, 8, dtype=torch.float64)
    torch.testing.assert_close(theirs(x), ours(x))
