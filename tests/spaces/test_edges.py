"""Trainable vectors on edges: placed, taken away again, and without any effect at the start."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from normact.spaces import GraphLayer, GraphSpace, LayerGraph, parse
from normact.spaces.edges import Edge, edges, source, trainable_edges, with_parameters, without_parameters

TAME = ("add", "mul", "max", "sub", "neg", "tanh", "sigmoid", "abs", "batch_mean", "group_rms")
SPACE = GraphSpace(TAME, nodes=7, inputs=("x", "zero", "v0"))


@st.composite
def placed(draw):
    """Nodes, dead ones among them, and some of the edges that may have a parameter."""
    nodes = SPACE.sample(np.random.default_rng(draw(st.integers(0, 2**32 - 1)))).nodes
    return nodes, draw(st.sets(st.sampled_from(trainable_edges(nodes)), max_size=4))


def graph(nodes):
    return LayerGraph(nodes, affine=True)


def respond(nodes, x):
    """Output and input gradient in training, then the output in evaluation."""
    layer = GraphLayer(graph(nodes), x.shape[1], dtype=torch.float64)
    x = x.clone().requires_grad_()
    y = layer(x)
    (gradient,) = torch.autograd.grad((y * torch.cos(torch.arange(y.numel()).view(y.shape))).sum(), x)
    return y.detach(), gradient, layer.eval()(x).detach()


@given(case=placed())
def test_parameters_change_nothing_at_the_start(case):
    nodes, chosen = case
    x = torch.randn(5, 4, 3, dtype=torch.float64)
    for plain, parametric in zip(respond(nodes, x), respond(with_parameters(nodes, chosen), x), strict=True):
        torch.testing.assert_close(parametric, plain, rtol=1e-12, atol=1e-12)


@given(case=placed())
def test_a_layer_has_a_vector_for_each_edge(case):
    nodes, chosen = case
    layer = GraphLayer(graph(with_parameters(nodes, chosen)), 4)
    vectors = {name: tuple(p.shape) for name, p in layer.named_parameters() if name.startswith("v1")}
    assert vectors == dict.fromkeys(["v1", "v1_2", "v1_3", "v1_4"][: len(chosen)], (4,))


@given(case=placed())
def test_what_was_placed_is_found_and_taken_away(case):
    nodes, chosen = case
    assert without_parameters(with_parameters(nodes, chosen)) == (nodes, sorted(chosen))


@given(case=placed())
def test_edges_with_parameters_are_live_and_see_x(case):
    """By another reading: the graph that ends at the value reaches x, and without its node the output is another."""
    nodes, _ = case
    found = trainable_edges(nodes)
    assert set(found) <= set(edges(nodes))
    live = LayerGraph(nodes).live
    for edge in edges(nodes):
        value = source(nodes, edge)
        reaches = LayerGraph(nodes[: value + 1]).reaches_x if isinstance(value, int) else value == "x"
        assert reaches == (edge in found)
        assert edge.position in live or edge == Edge(len(nodes), 0)


def test_edges_on_which_a_parameter_would_have_no_effect_have_none():
    for text, expected in (
        ("add(x, zeros(x))", [Edge(1, 0), Edge(2, 0)]),
        ("mul(x, ones(tanh(x)))", [Edge(0, 0), Edge(2, 0), Edge(2, 1), Edge(3, 0)]),
        ("add(x, exp(zero))", [Edge(1, 0), Edge(2, 0)]),
        ("add(x, mul(v0, s1))", [Edge(1, 0), Edge(2, 0)]),
    ):
        assert trainable_edges(parse(text).nodes) == expected, text


@pytest.mark.parametrize(
    ("text", "chosen", "expected"),
    [
        ("max(neg(x), x)", [], "max(neg(x), x)"),
        ("max(neg(x), x)", [Edge(0, 0)], "max(neg(mul(v1, x)), x)"),
        ("max(neg(x), x)", [Edge(1, 0)], "max(mul(v1, neg(x)), x)"),
        ("max(neg(x), x)", [Edge(1, 1)], "max(neg(x), mul(v1, x))"),
        ("max(neg(x), x)", [Edge(2, 0)], "mul(v1, max(neg(x), x))"),
        (
            "max(neg(x), x)",
            [Edge(2, 0), Edge(1, 1), Edge(1, 0), Edge(0, 0), Edge(0, 0)],
            "mul(v1_4, max(mul(v1_2, neg(mul(v1, x))), mul(v1_3, x)))",
        ),
        ("sub(tanh(x), tanh(x))", [Edge(1, 1)], "sub(tanh(x), mul(v1, tanh(x)))"),
        ("add(tanh(x), v1)", [Edge(0, 0), Edge(1, 0)], "add(mul(v1_3, tanh(mul(v1_2, x))), v1)"),
    ],
)
def test_parameters_stand_where_they_were_put(text, chosen, expected):
    assert str(LayerGraph(with_parameters(parse(text).nodes, chosen))) == expected


@pytest.mark.parametrize(
    ("text", "bare", "found"),
    [
        ("mul(v1, tanh(mul(x, v1_2)))", "tanh(x)", [Edge(0, 0), Edge(1, 0)]),
        ("tanh(mul(v1, mul(v1_2, x)))", "tanh(x)", [Edge(0, 0)]),
        ("mul(v1, x)", "mul(v1, x)", []),  # no graph would be left
        ("add(x, mul(v1, v1_2))", "add(x, mul(v1, v1_2))", []),
        ("add(x, mul(v1, zero))", "add(x, mul(v1, zero))", []),
        ("add(mul(v0, x), mul(s1, x))", "add(mul(v0, x), mul(s1, x))", []),
        ("add(x, tanh(v1))", "add(x, tanh(v1))", []),
        ("add(mul(v1, neg(x)), tanh(mul(v1, neg(x))))", "add(neg(x), tanh(neg(x)))", [Edge(1, 0), Edge(2, 0)]),
    ],
)
def test_parameters_of_written_graphs_are_found(text, bare, found):
    nodes, where = without_parameters(parse(text).nodes)
    assert (str(LayerGraph(nodes)), where) == (bare, found)


def test_of_a_parameter_at_the_output_what_lies_behind_its_value_goes():
    nodes = (*parse("tanh(x)").nodes, *parse("relu(x)").nodes, *parse("mul(v1, x)").nodes)
    nodes = (*nodes[:2], nodes[2]._replace(args=("v1", 0)))
    assert without_parameters(nodes) == (parse("tanh(x)").nodes, [Edge(1, 0)])
