import json

import numpy as np
import optuna
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from normact.spaces import (
    ACTIVATIONS,
    CATALOGUE,
    EVONORM_MOMENTS,
    EVONORM_POINTWISE,
    OPS,
    ActBenchSpace,
    ChannelAffine,
    Constraints,
    GraphLayer,
    GraphSpace,
    InputError,
    LayerGraph,
    LayerOptions,
    Node,
    Op,
    Site,
    named,
    parse,
)
from normact.spaces.constraints import relative_cost
from normact.spaces.graph_space import has_moment

EVONORM = (*EVONORM_POINTWISE, *EVONORM_MOMENTS)
BATCH_NORM = "add(mul(v1, div(add(x, neg(batch_mean(x))), batch_std(x))), v0)"
SEEDS = st.integers(0, 2**32 - 1)
LIMITS = Constraints(barred=("exp", "batch_std"), nodes=7, parameters=3, relative_cost=1.2)


def rng(seed):
    return np.random.default_rng(seed)


@pytest.fixture(scope="module")
def spaces():
    return {
        "evonorm_b": GraphSpace(EVONORM),
        "evonorm_s": GraphSpace([op for op in EVONORM if not op.startswith("batch")]),
        "pointwise": GraphSpace((*EVONORM_POINTWISE, *ACTIVATIONS), nodes=6, post_affine=False, norm=BATCH_NORM),
        "limited": GraphSpace(EVONORM, constraints=LIMITS),
        "causal": GraphSpace((*EVONORM, "channel_std", "channel_mean"), layouts=("NLC",), causal=True),
        "one node": GraphSpace(("relu", "silu"), nodes=1, inputs=("x", "zero")),
        "act_bench": ActBenchSpace(norm=BATCH_NORM),
    }


WIRED_AT_WILL = ("evonorm_b", "evonorm_s", "pointwise", "limited", "causal", "one node")
NAMES = (*WIRED_AT_WILL, "act_bench")


def check_of_the_space(space, graph):
    """What `invalid` promises, by an own reading of the graph."""
    live = set()
    stack = [len(graph.nodes) - 1]
    while stack:
        position = stack.pop()
        if position not in live:
            live.add(position)
            stack += [a for a in graph.nodes[position].args if isinstance(a, int)]
    nodes = [graph.nodes[position] for position in sorted(live)]
    assert any("x" in node.args for node in nodes)
    for position, node in enumerate(graph.nodes):
        assert all(a < position for a in node.args if isinstance(a, int))
        assert node.op in space.ops
        assert len(node.args) == OPS[node.op].arity
        assert all(a in space.inputs for a in node.args if isinstance(a, str))
    assert graph.affine == space.post_affine
    if space.constraints is LIMITS:
        assert not {node.op for node in nodes} & {"exp", "batch_std"}
        trainables = {a for node in nodes for a in node.args if a in ("v0", "v1")}
        assert len(trainables) + 2 * graph.affine <= 3
        assert len(graph.canonical.nodes) <= 7
        assert relative_cost(graph) <= 1.2


@pytest.mark.parametrize("name", NAMES)
@given(seed=SEEDS)
def test_samples_are_of_the_space(spaces, name, seed):
    graph = spaces[name].sample(rng(seed))
    assert len(graph.nodes) == spaces[name].nodes
    assert not spaces[name].invalid(graph)
    check_of_the_space(spaces[name], graph)


@pytest.mark.parametrize("name", NAMES)
@given(seed=SEEDS)
def test_a_mutation_changes_one_node_and_stays_in_the_space(spaces, name, seed):
    space = spaces[name]
    parent = space.sample(rng(seed))
    child = space.mutate(parent, rng(seed + 1))
    check_of_the_space(space, child)
    assert len(child.nodes) == len(parent.nodes)
    assert sum(a != b for a, b in zip(parent.nodes, child.nodes, strict=True)) <= 1


def parts(graph):
    """The text of each live node with all below it."""
    return {str(LayerGraph(graph.nodes[: i + 1]).canonical) for i in graph.live}


@pytest.mark.parametrize("name", NAMES)
@given(seed=SEEDS)
def test_a_child_of_two_is_one_with_a_part_of_the_other(spaces, name, seed):
    space = spaces[name]
    a, b = space.sample(rng(seed)), space.sample(rng(seed + 1))
    child = space.crossover(a, b, rng(seed + 2))
    check_of_the_space(space, child)
    if name == "act_bench":
        assert child.nodes in [b.nodes, *(a.nodes[:cut] + b.nodes[cut:] for cut in (1, 2))]
        return
    assert len(child.nodes) == space.nodes
    assert child == b or (child.canonical not in (a.canonical, b.canonical) and parts(child) & parts(a))
    ops = [{graph.nodes[i].op for i in graph.live} for graph in (child, a, b)]
    assert ops[0] <= ops[1] | ops[2]


def test_mutation_reaches_every_node_and_every_op(spaces):
    space = spaces["evonorm_b"]
    parent = space.sample(rng(0))
    changed, ops = set(), set()
    generator = rng(1)
    for _ in range(2000):
        child = space.mutate(parent, generator)
        for position, (old, new) in enumerate(zip(parent.nodes, child.nodes, strict=True)):
            if old != new:
                changed.add(position)
                ops.add(new.op)
    assert changed == set(range(10))
    assert ops == set(space.ops)


def test_crossover_mixes(spaces):
    space = spaces["evonorm_b"]
    for pair in range(5):
        a, b = space.sample(rng(pair)), space.sample(rng(pair + 100))
        children = {space.crossover(a, b, rng(seed)) for seed in range(100)}
        assert not {child.canonical for child in children} & {a.canonical, b.canonical}
        assert len(children) > 1


def test_a_crossover_rarely_gives_a_parent_back(spaces):
    space = spaces["evonorm_b"]
    pairs = [(space.sample(rng(k)), space.sample(rng(k + 500))) for k in range(500)]
    assert sum(space.crossover(a, b, rng(k)) == b for k, (a, b) in enumerate(pairs)) < 5


def test_a_short_layer_grows_under_mutation(spaces):
    space = spaces["evonorm_b"]
    short = parse("affine(div(x, batch_std(x)))")
    sizes = set()
    for seed in range(60):
        child = space.mutate(short, rng(seed))
        assert not space.invalid(child)
        assert len(child.nodes) == space.nodes
        sizes.add(len(child.canonical.nodes))
    assert max(sizes) > 2


def test_layers_of_different_length_can_be_crossed(spaces):
    space = spaces["evonorm_b"]
    for seed in range(60):
        child = space.crossover(named("evonorm_b0").graph, space.sample(rng(seed)), rng(seed))
        assert not space.invalid(child)
        assert len(child.canonical.nodes) <= space.nodes
        assert LayerGraph.from_json(child.to_json()) == child


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_gives_the_same_graph(spaces, name):
    space = spaces[name]
    drawn = [space.sample(rng(seed)) for seed in range(20)]
    assert drawn == [space.sample(rng(seed)) for seed in range(20)]
    assert len(set(drawn)) > 1
    assert space.mutate(drawn[0], rng(5)) == space.mutate(drawn[0], rng(5))
    assert space.crossover(drawn[0], drawn[1], rng(5)) == space.crossover(drawn[0], drawn[1], rng(5))


class RandomTrial:
    """Optuna's call, answered uniformly; keeps what it answered."""

    def __init__(self, generator):
        self.generator = generator
        self.said = {}

    def suggest_categorical(self, name, choices):
        return self.said.setdefault(name, choices[int(self.generator.integers(len(choices)))])


def graph_of(said, space):
    """The graph that a trial's parameters spell."""
    nodes = []
    for position in range(space.nodes):
        op = said[f"op{position}"]
        nodes.append(Node(op, tuple(said[f"arg{position}_{k}"] for k in range(OPS[op].arity))))
    return LayerGraph(tuple(nodes), space.post_affine)


def lacks_x(graph):
    reaches = []
    for node in graph.nodes:
        reaches.append(any(a == "x" or (isinstance(a, int) and reaches[a]) for a in node.args))
    return not reaches[-1]


def test_most_unconditional_graphs_of_the_paper_do_not_contain_x_and_are_made_to(spaces):
    """About 70% of them: 24 ops, 10 nodes, 4 inputs. 4,000 draws: a standard error of 0.7 points."""
    generator = rng(0)
    space = spaces["evonorm_b"]
    mended = 0
    for _ in range(4000):
        trial = RandomTrial(generator)
        graph, said = space.suggest(trial), graph_of(trial.said, space)
        assert space.invalid(graph) == ""
        if lacks_x(said):
            mended += 1
            changed = [(old, new) for old, new in zip(said.nodes, graph.nodes, strict=True) if old != new]
            assert len(changed) == 1
            assert changed[0][1] == Node(changed[0][0].op, ("x", *changed[0][0].args[1:]))
        else:
            assert graph == said
    assert 0.66 < mended / 4000 < 0.74


@pytest.mark.parametrize("name", WIRED_AT_WILL)
@given(seed=SEEDS)
def test_an_optuna_trial_can_give_every_graph(spaces, name, seed):
    space = spaces[name]
    graph = space.sample(rng(seed))
    trial = optuna.trial.FixedTrial(space.trial_parameters(graph))
    assert space.suggest(trial) == graph == graph_of(trial.params, space)
    arguments = max(OPS[op].arity for op in space.ops)
    assert len(trial.distributions) == space.nodes * (1 + arguments)


@pytest.mark.parametrize("name", ["evonorm_b0", "evonorm_s0", "bn_relu", "gn_relu"])
def test_a_trial_gives_known_layers_where_the_space_has_their_ops(spaces, name):
    space, graph = spaces["evonorm_b"], named(name).graph
    parameters = space.trial_parameters(graph)
    if any(node.op not in space.ops for node in graph.canonical.nodes) or graph.affine != space.post_affine:
        assert parameters is None
    else:
        assert space.key(space.suggest(optuna.trial.FixedTrial(parameters))) == space.key(graph)


def test_a_graph_has_no_trial_parameters_where_it_is_not_of_the_space(spaces):
    space = spaces["evonorm_b"]
    of_it = "affine(div(x, batch_std(x)))"
    assert space.trial_parameters(parse(of_it)) is not None
    deep = f"affine({'exp(' * 11}x{')' * 11})"
    for text in ("div(x, batch_std(x))", "affine(relu(div(x, batch_std(x))))", "affine(mul(x, s0.5))", deep):
        assert space.trial_parameters(parse(text)) is None
    dead = Node("relu", ("x",)), *parse(of_it).nodes[:-1], Node("div", ("x", 1))  # relu is no op of the space, and dead
    assert space.trial_parameters(LayerGraph(dead, True)) == space.trial_parameters(parse(of_it))


def test_json_and_text_bring_a_candidate_back(spaces):
    space = spaces["evonorm_b"]
    for seed in range(50):
        graph = space.sample(rng(seed))
        assert space.from_json(json.loads(json.dumps(space.to_json(graph)))) == graph
        assert space.key(space.parse(space.describe(graph))) == space.key(graph)


def test_keys_know_the_options():
    a, b = GraphSpace(EVONORM), GraphSpace(EVONORM, options=LayerOptions(groups=4))
    graph = a.sample(rng(0))
    assert a.key(graph) != b.key(graph)
    assert a.key(graph) == GraphSpace(EVONORM, nodes=5).key(graph)


@pytest.mark.parametrize(
    ("layouts", "causal", "gone"),
    [
        (("NCHW",), False, set()),
        (("NCHW", "NLC"), False, set()),
        (("NCHW", "NC"), False, {"instance"}),
        (("NLC",), True, {"batch", "instance", "layer", "group"}),
        (("NC",), True, {"batch", "instance"}),
    ],
)
def test_moments_that_a_layout_cannot_have_are_left_out_with_a_note(layouts, causal, gone):
    sets = ("batch", "instance", "layer", "group", "channel")
    ops = ["add", *(f"{s}_{m}" for s in sets for m in ("mean", "rms", "std"))]
    space = GraphSpace(ops, layouts=layouts, causal=causal)
    assert {op.split("_")[0] for op in ops} - {op.split("_")[0] for op in space.ops} == gone
    assert {note.split()[0] for note in space.notes} == gone
    assert len(space.notes) == len(gone)
    assert space.layouts == layouts


def test_a_foreign_layer_with_a_moment_that_is_left_out_is_invalid():
    space = GraphSpace((*EVONORM, "channel_std"), layouts=("NLC",), causal=True)
    assert "look ahead" in space.invalid(named("bn_relu").graph)
    assert not space.invalid(named("ln_gelu").graph)
    assert set(space.baselines()) == {"ln_gelu"}
    assert set(GraphSpace(EVONORM).baselines()) == set(CATALOGUE)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ops": ()}, "op set .*empty; add ops"),
        ({"ops": ("rellu",)}, "unknown op 'rellu'; the nearest is 'relu'"),
        ({"ops": EVONORM, "nodes": 0}, "1 to 256 nodes, got nodes=0"),
        ({"ops": EVONORM, "nodes": 257}, "1 to 256 nodes, got nodes=257"),
        ({"ops": EVONORM, "layouts": ()}, "at least one layout"),
        ({"ops": EVONORM, "layouts": ("NHWC",)}, "unknown layout 'NHWC'; the nearest is 'NCHW'"),
        ({"ops": EVONORM, "inputs": ("zero", "v1")}, r"the inputs \['zero', 'v1'\] lack x"),
        ({"ops": EVONORM, "inputs": ()}, "lack x"),
        ({"ops": EVONORM, "inputs": ("x", "w")}, "'w' is not an input"),
        ({"ops": ("instance_std",), "layouts": ("NC",)}, "instance moments are left out: the set is empty"),
        ({"ops": ("batch_std",), "causal": True}, "look ahead at a causal NCHW site"),
        ({"ops": ("relu",), "constraints": Constraints(barred=("relu",))}, "all are barred"),
        ({"ops": ("relu",), "constraints": Constraints(barred=("rely",))}, "'rely' in constraints.barred"),
        ({"ops": EVONORM, "constraints": Constraints(nodes=0)}, "no valid layer in 1000 draws.*at most 0"),
        ({"ops": EVONORM, "constraints": Constraints(parameters=1)}, "trainable vectors, at most 1 allowed"),
        ({"ops": EVONORM, "constraints": Constraints(relative_cost=0.1)}, "relative cost .*at most 0.1"),
        ({"ops": EVONORM, "norm": "bn"}, "unknown layer 'bn'"),
        ({"ops": EVONORM, "norm": "div(x, "}, "at position 7: expected an op or an input"),
        ({"ops": EVONORM, "norm": "evonorm_s0"}, r"norm='evonorm_s0' ends in affine"),
        ({"ops": EVONORM, "norm": "silu(x)"}, "normalizes nothing"),
        ({"ops": EVONORM, "norm": "div(v1, batch_std(v0))"}, "normalizes nothing"),
        (
            {"ops": ("relu",), "norm": BATCH_NORM, "causal": True},
            "cannot be used: batch moments are left out",
        ),
    ],
)
def test_a_space_from_which_nothing_can_be_made_is_refused(arguments, message):
    with pytest.raises(InputError, match=message) as error:
        GraphSpace(**arguments)
    assert "\n" not in str(error.value)


def test_constraints_say_both_values():
    graph = named("evonorm_b0").graph
    assert Constraints().violated(graph) == ""
    assert Constraints(nodes=6).violated(graph) == ""
    assert Constraints(nodes=5).violated(graph) == "6 nodes, at most 5 allowed"
    assert Constraints(parameters=3).violated(graph) == ""
    assert Constraints(parameters=2).violated(graph) == "3 trainable vectors, at most 2 allowed"
    assert Constraints(barred=("max",)).violated(graph) == "op max is barred"
    assert Constraints(barred=("relu",)).violated(graph) == ""


def test_cost_counts_passes_over_the_tensor():
    """bn_relu: 2 moments of 2, neg 1, and add, div, mul, add, max of 1.5: 12.5. An affine: 3."""
    assert relative_cost(named("bn_relu").graph) == 1.0
    assert relative_cost(parse("silu(x)")) == pytest.approx(1 / 12.5)
    assert relative_cost(parse("affine(silu(silu(x)))")) == pytest.approx(5 / 12.5)
    assert relative_cost(parse("add(silu(x), silu(x))")) == pytest.approx(2.5 / 12.5)


def site(kind, **more):
    return Site(kind, 0, 16, **more)


def test_a_norm_act_layer_is_built_for_its_site(spaces):
    space = spaces["evonorm_b"]
    layer = space.build(named("evonorm_s0").graph, site("norm_act", layout="NLC"))
    assert isinstance(layer, GraphLayer)
    assert (layer.features, layer.layout, layer.groups) == (16, "NLC", 8)
    assert space.site_kinds == {"norm_act"}


def test_without_an_activation_stands_an_affine(spaces):
    layer = spaces["evonorm_b"].build(named("bn_relu").graph, site("norm_act", activation=False))
    assert isinstance(layer, ChannelAffine)
    assert layer.features == 16


@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_other_sites_are_refused(spaces, kind):
    with pytest.raises(InputError, match=f"kind '{kind}'"):
        spaces["evonorm_b"].build(parse("relu(x)"), site(kind))


def test_a_causal_site_refuses_a_layer_that_looks_ahead(spaces):
    space = spaces["evonorm_b"]
    with pytest.raises(InputError, match="look ahead"):
        space.build(named("bn_relu").graph, site("norm_act", layout="NLC", causal=True))
    causal = GraphSpace(("channel_std", "div"), layouts=("NLC",), causal=True)
    with pytest.raises(InputError, match="look ahead"):
        causal.build(named("bn_relu").graph, site("norm_act", layout="NLC"))


def test_a_pointwise_candidate_stands_behind_the_fixed_norm(spaces):
    space = spaces["pointwise"]
    assert space.site_kinds == {"norm_act", "act"}
    swish = parse("mul(x, sigmoid(mul(v1, x)))")
    x = torch.randn(6, 16, 3, 3, dtype=torch.float64) * 3 + 1
    y = torch.nn.BatchNorm2d(16).double()(x)

    layer = space.build(swish, site("norm_act")).double()
    with torch.no_grad():
        layer.v1_2.fill_(2.0)
    torch.testing.assert_close(layer(x), y * torch.sigmoid(2 * y))
    assert sorted(name for name, _ in layer.named_parameters()) == ["v0", "v1", "v1_2"]

    alone = space.build(swish, site("act")).double()
    torch.testing.assert_close(alone(x), x * torch.sigmoid(x))
    norm = space.build(swish, site("norm_act", activation=False)).double()
    torch.testing.assert_close(norm(x), y)


def test_in_a_pointwise_space_a_layer_with_its_own_moments_replaces_the_norm(spaces):
    space = spaces["pointwise"]
    for name in CATALOGUE:
        assert has_moment(named(name).graph)
        assert space.whole(named(name).graph) == named(name).graph
    assert space.whole(parse("max(x, zero)")).key() == named("bn_relu").graph.key()
    assert space.key(parse("max(x, zero)")) == space.key(named("bn_relu").graph)


def test_ops_of_ones_own_join_the_space(op_table):
    def halve(a):
        return a / 2

    space = GraphSpace((Op("halve", 1, halve),), nodes=2, inputs=("x",))
    graph = space.sample(rng(0))
    assert {node.op for node in graph.nodes} == {"halve"}
    assert LayerGraph((Node("halve", ("x",)), Node("halve", (0,))), True) in {
        space.sample(rng(seed)) for seed in range(20)
    }
    layer = space.build(parse("halve(halve(x))"), site("norm_act"))
    torch.testing.assert_close(layer(torch.ones(2, 16, 1, 1)), torch.full((2, 16, 1, 1), 0.25))


def test_repeated_ops_do_not_weigh_more():
    assert GraphSpace(("relu", "relu", "silu")).ops == ("relu", "silu")


def test_the_base_class_says_what_a_space_lacks():
    from normact.spaces import Space

    class Bare(Space):
        site_kinds = frozenset({"linear"})
        layouts = ("NC",)
        sample = mutate = build = key = to_json = from_json = probe_sites = None

    space = Bare()
    for call, message in (
        (lambda: space.crossover(1, 2, rng(0)), "no crossover"),
        (lambda: space.suggest(None), "no suggest"),
        (lambda: space.parse("relu(x)"), r"reads no expressions, got 'relu\(x\)'"),
        (lambda: space.source(1, "name"), "prints no source"),
    ):
        with pytest.raises(InputError, match=f"Bare.*{message}"):
            call()
    assert space.invalid(1) == ""
    assert space.baselines() == {}
    assert space.trial_parameters(1) is None
    assert space.notes == ()
    with pytest.raises(TypeError, match="abstract"):
        Space()
