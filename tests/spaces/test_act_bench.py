"""Act-Bench's space: its notation, its operators, and how many distinct functions we find in it."""

import json
from collections import defaultdict
from itertools import combinations

import numpy as np
import optuna
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import special

from normact.launch.config import compose_config, space_of
from normact.spaces import ActBenchSpace, Constraints, GraphLayer, InputError, Site, fingerprint, named, parse
from normact.spaces.act_bench import BINARY, UNARY, expressions, read, writable, write
from normact.spaces.fingerprint import probe_batch

SITE = Site("act", 0, 4)
SEEDS = st.integers(0, 2**32 - 1)


def np_elu(x, alpha=1.0):
    return np.where(x > 0, x, alpha * np.expm1(x))


UNARY_NUMPY = {
    "zero": np.zeros_like,
    "one": np.ones_like,
    "identity": np.copy,
    "negative": np.negative,
    "abs": np.abs,
    "reciprocal": lambda x: 1 / x,
    "square": np.square,
    "exp": np.exp,
    "erf": special.erf,
    "erfc": special.erfc,
    "sinh": np.sinh,
    "cosh": np.cosh,
    "tanh": np.tanh,
    "expm1": np.expm1,
    "sigmoid": special.expit,
    "log_sigmoid": special.log_expit,
    "asinh": np.arcsinh,
    "atan": np.arctan,
    "bessel_i0e": special.i0e,
    "bessel_i1e": special.i1e,
    "relu": lambda x: np.maximum(x, 0),
    "elu": np_elu,
    "selu": lambda x: 1.0507009873554805 * np_elu(x, 1.6732632423543772),
    "swish": lambda x: x * special.expit(x),
    "softplus": lambda x: np.logaddexp(0, x),
    "softsign": lambda x: x / (1 + np.abs(x)),
    "hard_sigmoid": lambda x: np.clip(x / 6 + 0.5, 0, 1),
}
BINARY_NUMPY = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "pow": np.power,
    "max": np.maximum,
    "min": np.minimum,
}


def values_of(x):
    """Every expression's values at the points, by numpy and scipy."""
    with np.errstate(all="ignore"):
        unary = {name: function(x) for name, function in UNARY_NUMPY.items()}
        return {
            f"{b}({left}(x),{right}(x))": function(unary[left], unary[right])
            for b, function in BINARY_NUMPY.items()
            for left in unary
            for right in unary
        }


def rounded(values, digits):
    """Each value to so many significant decimal digits, as (whole number, exponent); non-finite is one symbol."""
    finite = np.isfinite(values)
    values = np.where(finite & (np.abs(values) >= 1e-12), values, 0.0)
    exponent = np.floor(np.log10(np.where(values == 0, 1.0, np.abs(values)))).astype(int)
    number = np.rint(values / 10.0 ** (exponent - digits + 1))
    carried = np.abs(number) >= 10**digits  # 0.99999999996 and 1 are one number
    number, exponent = np.where(carried, number / 10, number), exponent + carried
    exponent = np.where(finite, np.where(number == 0, 0, exponent), 9999)
    return (number + 0.0).tobytes() + exponent.tobytes()


def normal_points(seed):
    return np.random.default_rng(seed).standard_normal(200)


@pytest.fixture(scope="module")
def graphs():
    return {text: read(text) for text in expressions()}


@pytest.fixture(scope="module")
def fingerprints(graphs):
    torch.set_num_threads(1)
    return {
        text: fingerprint(lambda site, g=graph: GraphLayer(g, site.in_features, site.layout), [SITE])
        for text, graph in graphs.items()
    }


def grouped(labels):
    groups = defaultdict(list)
    for text, label in labels.items():
        groups[label].append(text)
    return groups


# -- the notation ----------------------------------------------------------------------------------------------


def test_an_expression_is_read_into_our_ops():
    assert read("max(relu(x),cosh(elu(x)))") == parse("max(relu(x), cosh(elu(x)))")
    assert read("div(zero(x), negative(x))") == parse("plain_div(zeros(x), neg(x))")
    assert read("pow(swish(x),one(x))") == parse("plain_pow(silu(x), ones(x))")
    assert write(parse("max(relu(x), cosh(elu(x)))")) == "max(relu(x),cosh(elu(x)))"
    assert len(read("add(relu(x),relu(x))").nodes) == 2


def test_there_are_5103_expressions_and_each_comes_back_as_it_was(graphs):
    assert len(UNARY) == 27
    assert len(BINARY) == 7
    assert len(graphs) == 7 * 27**2
    assert all(write(graph) == text for text, graph in graphs.items())


NESTED = st.recursive(
    st.sampled_from(sorted(UNARY)).map("{}(x)".format),
    lambda inner: (
        st.builds("{}({})".format, st.sampled_from(sorted(UNARY)), inner)
        | st.builds("{}({},{})".format, st.sampled_from(sorted(BINARY)), inner, inner)
    ),
    max_leaves=8,
)


@given(text=NESTED)
def test_nested_expressions_come_back_as_well(text):
    assert write(read(text)) == text
    assert write(read(text.replace("(", " (\n").replace(",", " , "))) == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "at position 0: expected an op, found the end"),
        ("x", "'x' alone is no layer"),
        ("relu(x", r"at position 6: expected '\)', found the end"),
        ("max(relu(x))", r"at position 0: op 'max' takes 2 argument\(s\), got 1"),
        ("negative(x, x)", r"op 'negative' takes 1 argument\(s\), got 2"),
        ("max(relu(x),zero)", r"at position 16: expected '\(', found '\)'"),
        ("add(x,v1)", "unknown op or input 'v1' at position 6; .*known: abs"),
        ("affine(relu(x))", "unknown op or input 'affine' at position 0"),
        ("plain_div(x,x)", "unknown op or input 'plain_div' at position 0"),
        ("silu(x)", "unknown op or input 'silu' at position 0; the nearest is 'selu'"),
        ("coch(x)", "unknown op or input 'coch' at position 0; the nearest is 'cosh'"),
    ],
)
def test_a_wrong_expression_is_answered_with_its_place(text, message):
    with pytest.raises(InputError, match=message) as error:
        read(text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["affine(relu(x))", "div(x, x)", "mul(x, v1)", "add(x, zero)", "batch_std(x)"])
def test_what_the_notation_lacks_cannot_be_written(text):
    assert not writable(parse(text))
    with pytest.raises(InputError, match="no notation"):
        write(parse(text))


# -- the known answer ------------------------------------------------------------------------------------------


def test_our_operators_compute_what_numpys_and_scipys_do(graphs):
    """To 1e-9, and not finite in the same places: float64, 200 points, one of them 0."""
    x = np.concatenate([normal_points(3)[:199], [0.0]])
    tensor = torch.from_numpy(x).reshape(50, 4)
    for text, expected in values_of(x).items():
        with torch.no_grad():
            got = GraphLayer(graphs[text], 4, "NC")(tensor).numpy().ravel()
        finite = np.isfinite(expected)
        assert (np.isfinite(got) == finite).all(), text
        np.testing.assert_allclose(got[finite], expected[finite], rtol=1e-9, atol=1e-12, err_msg=text)


@pytest.mark.parametrize("seed", range(3))
def test_the_oracle_counts_what_two_others_counted(seed):
    """2,763 and 2,769 are known; 5 to 9 digits give one number, so it is no matter of rounding."""
    values = values_of(normal_points(seed))
    counts = {len({rounded(v, digits) for v in values.values()}) for digits in range(5, 10)}
    assert len(counts) == 1
    assert 2763 <= counts.pop() <= 2769


def test_the_key_merges_what_commutes_and_no_more(graphs):
    """4 commutative operators with 27 * 28 / 2 unordered pairs, 3 others with 27^2."""
    assert len({graph.key() for graph in graphs.values()}) == 4 * 378 + 3 * 729


def test_the_fingerprint_finds_as_many_functions_as_the_oracle(graphs, fingerprints):
    """Within 1%; and it never tells equal keys apart."""
    oracle = len({rounded(v, 8) for v in values_of(normal_points(0)).values()})
    ours = len(set(fingerprints.values()))
    assert abs(ours - oracle) <= 0.01 * oracle
    by_key = defaultdict(set)
    for text, graph in graphs.items():
        by_key[graph.key()].add(fingerprints[text])
    assert all(len(found) == 1 for found in by_key.values())


def why(a, b):
    """Why two functions that agree on 200 normal points are two, from their values at larger inputs."""
    if rounded(a, 8) != rounded(b, 8):
        return "differ on larger inputs"
    if not np.isfinite(a).all():
        return "differ in the derivative where the value is not finite"
    return "unexplained"


def test_what_the_fingerprint_alone_tells_apart_is_explained(fingerprints):
    """The probe's second batch is wider than a standard normal sample, and the fingerprint sees gradients.

    Larger inputs: hard_sigmoid reaches 0 and 1, erf its limits (so that a negative number has a power), selu
    passes softplus. Derivative: where a value is not finite, what the chain rule makes of it depends on the
    expression: relu(x) / 0 passes no gradient where relu is flat, x / 0 does.
    """
    larger = values_of(np.random.default_rng(1).uniform(-12, 12, 500))
    classes = grouped({text: rounded(v, 8) for text, v in values_of(normal_points(0)).items()})
    firsts = [list({fingerprints[text]: text for text in reversed(texts)}.values()) for texts in classes.values()]
    reasons = {
        frozenset(pair): why(larger[pair[0]], larger[pair[1]]) for first in firsts for pair in combinations(first, 2)
    }
    assert set(reasons.values()) == {
        "differ on larger inputs",
        "differ in the derivative where the value is not finite",
    }
    assert sum(len(first) - 1 for first in firsts) <= 0.01 * len(classes)
    assert reasons[frozenset(("add(zero(x),selu(x))", "min(selu(x),softplus(x))"))] == "differ on larger inputs"
    assert "derivative" in reasons[frozenset(("div(zero(x),relu(x))", "pow(zero(x),identity(x))"))]


def test_what_the_fingerprint_merges_differs_by_less_than_it_sees(fingerprints):
    """Entries below 2^-21 of a tensor's largest are zero to it: |x|^exp(x) where x is negative, beside 1e9."""
    values = values_of(normal_points(0))
    seen = [values_of(probe_batch(SITE, number)[0].numpy().ravel()) for number in (0, 1)]
    merged = []
    for texts in grouped(fingerprints).values():
        for pair in combinations({rounded(values[text], 8): text for text in texts}.values(), 2):
            merged.append(set(pair))
            for a, b in ((batch[pair[0]], batch[pair[1]]) for batch in seen):
                finite = np.isfinite(a)
                assert (np.isfinite(b) == finite).all(), pair
                assert np.abs(a[finite] - b[finite]).max() < 2.0**-21 * np.abs(a[finite]).max(), pair
    assert merged == [{"pow(abs(x),exp(x))", "pow(relu(x),exp(x))"}]


# -- the space -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def space():
    return space_of(compose_config(["space=act_bench"]))


def rng(seed):
    return np.random.default_rng(seed)


@given(seed=SEEDS)
def test_all_that_the_space_proposes_is_of_the_5103(space, graphs, seed):
    parent = space.sample(rng(seed))
    child = space.mutate(parent, rng(seed + 1))
    both = space.crossover(parent, space.sample(rng(seed + 2)), rng(seed + 3))
    for candidate in (parent, child, both):
        assert space.describe(candidate) in graphs
        assert space.from_json(json.loads(json.dumps(space.to_json(candidate)))) == candidate
        assert space.key(space.parse(space.describe(candidate))) == space.key(candidate)
    assert sum(a != b for a, b in zip(parent.nodes, child.nodes, strict=True)) <= 1


def test_samples_reach_every_operator_on_both_sides(space):
    drawn = [space.sample(rng(seed)).nodes for seed in range(1500)]
    for position, names in enumerate((UNARY, UNARY, BINARY)):
        assert {nodes[position].op for nodes in drawn} == set(names.values())


@pytest.mark.parametrize("text", ["add(relu(x),relu(x))", "evonorm_b0", "relu(x)", "max(relu(x),cosh(elu(x)))"])
def test_a_child_of_any_layer_is_of_the_5103(space, graphs, text):
    """A written expression has one node for two equal sides; a layer of the catalogue has a fresh child."""
    candidate = space.parse(text)
    assert space.invalid(candidate) == ""
    for seed in range(40):
        assert space.describe(space.mutate(candidate, rng(seed))) in graphs
        assert space.describe(space.crossover(candidate, candidate, rng(seed))) in graphs


def test_a_mutation_keeps_two_of_three_operators_also_where_both_sides_are_equal(space):
    twice = space.parse("add(relu(x),relu(x))")
    children = {space.describe(space.mutate(twice, rng(seed))) for seed in range(300)}
    assert all(text.count("relu(x)") == 2 or text.startswith("add(") for text in children)
    assert all("relu(x)" in text for text in children)
    assert any(not text.startswith("add(") for text in children)


@given(seed=SEEDS)
def test_an_optuna_trial_can_give_every_expression(space, seed):
    graph = space.sample(rng(seed))
    trial = optuna.trial.FixedTrial(space.trial_parameters(graph))
    assert space.suggest(trial) == graph
    assert trial.params == {f"op{k}": node.op for k, node in enumerate(graph.nodes)}
    assert set(trial.distributions) == {"op0", "op1", "op2"}


@pytest.mark.parametrize("text", ["add(relu(x),relu(x))", "evonorm_b0", "relu(x)", "max(relu(x),cosh(elu(x)))"])
def test_only_the_5103_have_trial_parameters(space, text):
    parameters = space.trial_parameters(space.parse(text))
    assert parameters == ({"op0": "relu", "op1": "relu", "op2": "add"} if text.startswith("add") else None)


def test_the_activation_stands_behind_the_fixed_norm(space):
    x = torch.randn(6, 16, 3, 3, dtype=torch.float64) * 3 + 1
    layer = space.build(space.parse("max(relu(x),tanh(x))"), Site("norm_act", 0, 16)).double()
    y = torch.nn.BatchNorm2d(16).double()(x)
    torch.testing.assert_close(layer(x), torch.maximum(torch.relu(y), torch.tanh(y)))
    assert space.key(space.parse("bn_relu")) == space.key(named("bn_relu").graph)


def test_barred_operators_are_left_out_and_not_all_of_a_kind_can_be():
    space = ActBenchSpace(constraints=Constraints(barred=("plain_div", "plain_pow", "reciprocal")))
    assert not {node.op for seed in range(300) for node in space.sample(rng(seed)).nodes} & {"plain_div", "reciprocal"}
    children = [space.mutate(read("div(relu(x),exp(x))"), rng(seed)) for seed in range(50)]
    assert not any("plain_div" in str(child) for child in children)
    with pytest.raises(InputError, match=r"leaves no op with 2 argument\(s\)"):
        ActBenchSpace(constraints=Constraints(barred=tuple(BINARY.values())))


@pytest.mark.parametrize("text", ["pow(bessel_i1e(x),erfc(x))", "div(one(x),identity(x))", "sub(zero(x),expm1(x))"])
def test_what_is_exported_computes_the_same(space, text):
    candidate = space.parse(text)
    module = {}
    exec(compile(space.source(candidate, "my_layer"), "my_layer.py", "exec"), module)
    x = torch.randn(6, 16, 3, 3, dtype=torch.float64)
    ours = space.build(candidate, Site("norm_act", 0, 16)).double()
    torch.testing.assert_close(module["my_layer"](16).double()(x), ours(x), equal_nan=True)
