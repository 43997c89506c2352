"""Graph spaces whose samples are shallow, whose mutations grow and shrink, and whose edges have parameters."""

import json
from collections import Counter

import numpy as np
import optuna
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from normact.launch.config import compose_config, space_of
from normact.spaces import (
    CATALOGUE,
    EVONORM_MOMENTS,
    EVONORM_POINTWISE,
    OPS,
    Constraints,
    GraphLayer,
    GraphSpace,
    InputError,
    LayerGraph,
    Site,
    named,
)
from normact.spaces.mutations import MUTATIONS

EVONORM = (*EVONORM_POINTWISE, *EVONORM_MOMENTS)
FOUR = ("insert", "remove", "change", "regenerate")
SEEDS = st.integers(0, 2**32 - 1)


def rng(seed):
    return np.random.default_rng(seed)


@pytest.fixture(scope="module")
def spaces():
    return {
        "pangaea": space_of(compose_config(["space=pangaea"])),
        "redrawn": GraphSpace(EVONORM, inputs=("x", "zero", "v0"), edge_parameters=2),
        "all": GraphSpace(EVONORM, nodes=6, inputs=("x", "zero"), mutations=("redraw", *FOUR), edge_parameters=4),
        "plain": GraphSpace(EVONORM, nodes=5, samples="shallow", mutations=FOUR, post_affine=False),
        "limited": GraphSpace(
            EVONORM,
            nodes=5,
            inputs=("x", "zero"),
            samples="shallow",
            mutations=FOUR,
            edge_parameters=3,
            constraints=Constraints(barred=("exp",), nodes=6, parameters=3),
        ),
    }


NAMES = ("pangaea", "redrawn", "all", "plain", "limited")


def vectors(graph):
    """The names that stand for edge parameters, each time that one is used."""
    return [a for node in graph.nodes for a in node.args if isinstance(a, str) and a.split("_")[0] == "v1"]


def own_nodes(space, graph):
    """Live nodes that are no edge parameters, by an own reading."""
    scaled = [i for i in graph.live if space.edge_parameters and vectors(LayerGraph(graph.nodes[i : i + 1]))]
    assert all(graph.nodes[i].op == "mul" for i in scaled)
    return [graph.nodes[i] for i in graph.live if i not in scaled]


def check_of_the_space(space, graph):
    assert space.invalid(graph) == ""
    assert graph.affine == space.post_affine
    assert LayerGraph.from_json(json.loads(json.dumps(graph.to_json()))) == graph
    assert space.key(space.parse(space.describe(graph))) == space.key(graph)
    nodes = own_nodes(space, graph)
    assert all(node.op in space.ops for node in nodes)
    assert len(nodes) <= space.nodes
    if space.edge_parameters:
        names = vectors(graph)
        assert len(names) == len(set(names)) <= space.edge_parameters
        assert set(graph.trainables) >= set(names)
        assert {a for node in graph.nodes for a in node.args if isinstance(a, str)} <= {*space.inputs, *names}
    if space.constraints.parameters:
        assert len(graph.trainables) + 2 * graph.affine <= 3 and len(graph.canonical.nodes) <= 6


@pytest.mark.parametrize("name", NAMES)
@given(seed=SEEDS)
def test_samples_and_children_are_of_the_space(spaces, name, seed):
    space = spaces[name]
    a, b = space.sample(rng(seed)), space.sample(rng(seed + 1))
    child = space.mutate(a, rng(seed + 2))
    for graph in (a, child, space.mutate(child, rng(seed + 3)), space.crossover(child, b, rng(seed + 4))):
        check_of_the_space(space, graph)
    assert space.mutate(a, rng(seed + 2)) == child


@pytest.mark.parametrize("name", NAMES)
def test_a_long_line_of_mutations_takes_all_sizes(spaces, name):
    space, generator = spaces[name], rng(3)
    graph = space.sample(generator)
    sizes, parameters = set(), set()
    for _ in range(600):
        graph = space.mutate(graph, generator)
        check_of_the_space(space, graph)
        sizes.add(len(own_nodes(space, graph)))
        parameters.add(len(vectors(graph)) if space.edge_parameters else 0)
    most = 1 if space.constraints.parameters else space.edge_parameters  # the affine's two are counted there
    assert parameters == set(range(most + 1))
    assert sizes == set(range(1, space.nodes + 1)) or (name == "redrawn" and len(sizes) > 5)


@pytest.mark.parametrize("mutation", FOUR)
def test_each_mutation_alone_does_what_its_name_says(mutation):
    space = GraphSpace(EVONORM, nodes=8, inputs=("x",), mutations=(mutation,), edge_parameters=3)
    parent = space.parse("affine(div(tanh(x), exp(group_std(x))))")
    grown = Counter(len(own_nodes(space, space.mutate(parent, rng(seed)))) - 4 for seed in range(300))
    low, high = {"insert": (1, 2), "remove": (-3, -1), "change": (0, 0), "regenerate": (0, 0)}[mutation]
    assert set(grown) <= set(range(low, high + 1)) and grown[low] + grown[high] > 0


def test_mutations_have_equal_odds(spaces, monkeypatch):
    drawn = Counter()

    def counted(name, mutation):
        def count(*arguments):
            drawn[name] += 1
            return mutation(*arguments)

        return count

    for name, mutation in MUTATIONS.items():
        monkeypatch.setitem(MUTATIONS, name, counted(name, mutation))
    space = spaces["pangaea"]
    for seed in range(2000):
        space.mutate(space.sample(rng(seed)), rng(seed + 1))
    assert set(drawn) == set(FOUR)
    total = drawn.total()  # a standard error of 1 point
    assert all(0.21 < count / total < 0.29 for count in drawn.values())


def test_shallow_samples_have_two_forms_at_equal_odds_and_any_number_of_parameters():
    """4,000 draws: a standard error of 0.8 points for halves, 1 for the quarters of a half.

    Without the ops that do not use their argument, as a graph that has them has fewer edges to train.
    """
    space = space_of(compose_config(["space=pangaea", "space.constraints.barred=[zeros,ones]"]))
    forms, counts, ops = Counter(), Counter(), Counter()
    for seed in range(4000):
        graph = space.sample(rng(seed))
        nodes = own_nodes(space, graph)
        form = tuple(OPS[node.op].arity for node in nodes)
        forms[form] += 1
        counts[form, len(vectors(graph))] += 1
        ops.update(node.op for node in nodes)
    assert set(forms) == {(1, 1), (1, 1, 2)}
    assert 0.47 < forms[1, 1] / 4000 < 0.53
    assert set(counts) == {(form, count) for form in forms for count in range(4)}
    assert all(0.21 < found / forms[form] < 0.29 for (form, _), found in counts.items())
    assert set(ops) == set(space.ops)


def test_parameters_come_to_every_edge_of_a_shallow_sample():
    space = GraphSpace(("tanh", "max"), nodes=3, inputs=("x",), samples="shallow", edge_parameters=1, post_affine=False)
    drawn = {str(space.sample(rng(seed))) for seed in range(300)}
    assert drawn == {
        "tanh(tanh(x))", "tanh(tanh(mul(v1, x)))", "tanh(mul(v1, tanh(x)))", "mul(v1, tanh(tanh(x)))",
        "max(tanh(x), tanh(x))", "max(tanh(mul(v1, x)), tanh(x))", "max(tanh(x), tanh(mul(v1, x)))",
        "max(mul(v1, tanh(x)), tanh(x))", "max(tanh(x), mul(v1, tanh(x)))", "mul(v1, max(tanh(x), tanh(x)))",
    }  # fmt: skip


@pytest.mark.parametrize("name", ["pangaea", "redrawn", "all"])
@given(seed=SEEDS)
def test_an_optuna_trial_can_give_every_graph(spaces, name, seed):
    space = spaces[name]
    for graph in (space.sample(rng(seed)), space.mutate(space.sample(rng(seed)), rng(seed + 1))):
        trial = optuna.trial.FixedTrial(space.trial_parameters(graph))
        again = space.suggest(trial)
        assert space.key(again) == space.key(graph)
        assert again.canonical == graph.canonical
        assert len(trial.distributions) == 3 * space.nodes + space.edge_parameters


class RandomTrial:
    """Optuna's call, answered uniformly."""

    def __init__(self, generator):
        self.generator = generator

    def suggest_categorical(self, name, choices):
        return choices[int(self.generator.integers(len(choices)))]


@pytest.mark.parametrize("name", ["pangaea", "redrawn", "all"])
def test_whatever_a_trial_says_is_of_the_space(spaces, name):
    space = spaces[name]
    found = [space.suggest(RandomTrial(rng(seed))) for seed in range(300)]
    for graph in found:
        check_of_the_space(space, graph)
    assert len({len(vectors(graph)) for graph in found}) > 1


def test_a_graph_with_more_parameters_has_no_trial_parameters(spaces):
    space = spaces["redrawn"]
    for text, there in (
        ("affine(div(mul(v1_2, x), batch_std(mul(v1, x))))", True),
        ("affine(div(mul(v1, x), batch_std(mul(v1_2, x))))", False),  # they would get other names
        ("affine(mul(v1_3, div(mul(v1_2, x), batch_std(mul(v1, x)))))", False),  # three
        ("affine(div(mul(v1, x), batch_std(mul(v1, x))))", False),  # one vector for two edges
        ("affine(div(x, batch_std(add(x, v1))))", False),
    ):
        assert (space.trial_parameters(space.parse(text)) is not None) == there, text


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("known", CATALOGUE)
def test_children_of_known_layers_are_valid(spaces, name, known):
    """Also of those that are longer than the space's own, or have a v1 that is no edge parameter."""
    space, parent = spaces[name], named(known).graph
    if space.invalid(parent):
        return
    for seed in range(40):
        child = space.mutate(parent, rng(seed))
        assert space.invalid(child) == ""
        assert len(own_nodes(space, child)) <= max(space.nodes, len(parent.nodes))
        assert LayerGraph.from_json(child.to_json()) == child


@pytest.mark.parametrize("long", ["affine(mul(v1, x))", "affine(mul(mul(v1, v1_2), x))"])
def test_a_layer_that_is_hardly_more_than_parameters_can_be_mutated(spaces, long):
    space = spaces["all"]
    children = {str(space.mutate(space.parse(long), rng(seed))) for seed in range(60)}
    assert len(children) > 20


@given(seed=SEEDS)
def test_a_sample_computes_what_it_would_without_parameters(seed):
    """The same draws without edge parameters give the same graph without them."""
    settings = {"nodes": 5, "inputs": ("x", "zero"), "post_affine": False}
    ops = ("add", "max", "tanh", "abs", "neg", "sigmoid", "instance_mean")
    parametric = GraphSpace(ops, edge_parameters=3, **settings).sample(rng(seed))
    plain = GraphSpace(ops, **settings).sample(rng(seed))
    x = torch.randn(4, 6, 3, dtype=torch.float64)
    layers = [GraphLayer(graph, 6, dtype=torch.float64) for graph in (parametric, plain)]
    torch.testing.assert_close(layers[0](x), layers[1](x), rtol=1e-12, atol=1e-12)


def test_a_find_is_trained_behind_the_norm(spaces):
    """Every vector of the find gets a gradient at a site of a network, and none is the norm's."""
    space = spaces["pangaea"]
    graph = space.parse("mul(v1, softplus(sub(mul(v1_2, x), tanh(mul(v1_3, x)))))")
    layer = space.build(graph, Site("norm_act", 0, 6))
    layer(torch.randn(8, 6, 3, 3)).square().sum().backward()
    gradients = {name: parameter.grad for name, parameter in layer.named_parameters()}
    assert len(gradients) == 5 and all(gradient.abs().min() > 0 for gradient in gradients.values())


PARAMETRIC = {"ops": EVONORM, "inputs": ("x", "zero"), "edge_parameters": 3}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"samples": "deep"}, "unknown form of samples 'deep'; known: graph, shallow"),
        ({"samples": "shallow", "nodes": 2}, "needs nodes=3 or more, .*got nodes=2"),
        ({"samples": "shallow", "ops": ("add", "mul")}, r"ops of one and of two arguments, got .*\['add', 'mul'\]"),
        ({"samples": "shallow", "ops": ("tanh",)}, r"ops of one and of two arguments, got .*\['tanh'\]"),
        ({"mutations": ()}, "mutations is empty: name one or several of redraw, insert"),
        ({"mutations": ("insert", "grow")}, "unknown mutation 'grow'; .*known: change, insert, .*redraw"),
        ({"edge_parameters": -1}, "edge_parameters must be 0 to 246 with nodes=10, got -1"),
        ({"edge_parameters": 250}, "edge_parameters must be 0 to 246 with nodes=10, got 250"),
        ({"inputs": ("x", "v0", "v1", "v1_2")}, "edge_parameters=3 places v1 itself: take v1, v1_2 out of the inputs"),
        ({"constraints": Constraints(barred=("mul",))}, "edge_parameters=3 needs mul: take it out of .*barred"),
    ],
)
def test_bad_options_are_refused(arguments, message):
    with pytest.raises(InputError, match=message) as error:
        GraphSpace(**(PARAMETRIC | arguments))
    assert "\n" not in str(error.value)
