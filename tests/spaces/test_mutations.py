"""Insert, remove, change, regenerate: what each can give, written out, and that insertion keeps the result."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from normact.spaces import OPS, GraphLayer, GraphSpace, LayerGraph, Node, parse
from normact.spaces.mutations import MUTATIONS, Vocabulary, change, insert, live_nodes, regenerate, remove

TAME = ("add", "mul", "max", "sub", "neg", "tanh", "sigmoid", "abs")
SPACE = GraphSpace(TAME, nodes=6, inputs=("x", "zero", "v0"), post_affine=False)
SEEDS = st.integers(0, 2**32 - 1)
KEEPING = ("add", "sub", "mul", "div", "plain_div", "plain_pow", "max", "min")


def rng(seed):
    return np.random.default_rng(seed)


def live_graph(seed):
    return live_nodes(SPACE.sample(rng(seed)).nodes)


def reached(mutation, text, vocabulary, draws=400):
    """The text of everything that comes out, None included."""
    nodes = parse(text).nodes
    new = [mutation(nodes, vocabulary, rng(seed)) for seed in range(draws)]
    return {str(LayerGraph(found)) if found else None for found in new}


def vocabulary(*ops, inputs=("x",)):
    return Vocabulary(ops, inputs)


def test_insert_puts_each_op_on_each_edge():
    assert reached(insert, "tanh(x)", vocabulary("exp", "max", "mul", "add", "zeros", "ones")) == {
        "exp(tanh(x))", "zeros(tanh(x))", "ones(tanh(x))", "tanh(exp(x))", "tanh(zeros(x))", "tanh(ones(x))",
        "max(tanh(x), tanh(x))", "mul(tanh(x), ones(x))", "add(tanh(x), zeros(x))",
        "tanh(max(x, x))", "tanh(mul(x, ones(x)))", "tanh(add(x, zeros(x)))",
    }  # fmt: skip


def test_insert_takes_the_input_where_there_is_no_op_for_zero():
    found = reached(insert, "tanh(x)", vocabulary("sub", "mul", "exp", inputs=("x", "zero")))
    assert found == {
        "exp(tanh(x))", "sub(tanh(x), zero)", "mul(tanh(x), exp(zero))",
        "tanh(exp(x))", "tanh(sub(x, zero))", "tanh(mul(x, exp(zero)))",
    }  # fmt: skip


def test_insert_draws_other_arguments_where_nothing_keeps_the_result():
    assert reached(insert, "tanh(x)", vocabulary("mul", inputs=("x", "v0"))) == {
        "mul(tanh(x), x)", "mul(tanh(x), v0)", "mul(tanh(x), tanh(x))", "tanh(mul(x, x))", "tanh(mul(x, v0))",
    }  # fmt: skip


def test_remove_leaves_an_argument():
    assert reached(remove, "max(tanh(x), exp(abs(x)))", vocabulary("relu")) == {
        "max(x, exp(abs(x)))", "max(tanh(x), abs(x))", "max(tanh(x), exp(x))", "tanh(x)", "exp(abs(x))",
    }  # fmt: skip
    assert reached(remove, "max(tanh(x), zero)", vocabulary("relu")) == {"max(x, zero)", "tanh(x)", None}
    assert reached(remove, "tanh(x)", vocabulary("relu")) == {None}


def test_change_takes_another_op_of_as_many_arguments():
    assert reached(change, "max(tanh(x), x)", vocabulary("tanh", "relu", "exp", "max", "mul")) == {
        "mul(tanh(x), x)", "max(relu(x), x)", "max(exp(x), x)",
    }  # fmt: skip
    assert reached(change, "max(tanh(x), x)", vocabulary("tanh")) == {None}


def test_regenerate_keeps_the_form_alone():
    forms = {f"{b}({u}(x), x)" for b in ("max", "mul") for u in ("tanh", "relu", "exp")} - {"max(tanh(x), x)"}
    assert reached(regenerate, "max(tanh(x), x)", vocabulary("tanh", "relu", "exp", "max", "mul")) == {*forms, None}
    assert reached(regenerate, "max(tanh(x), x)", vocabulary("relu")) == {"max(relu(x), x)"}


def test_equal_nodes_change_one_by_one():
    nodes = (Node("tanh", ("x",)), Node("tanh", ("x",)), Node("max", (0, 1)))
    new = {change(nodes, vocabulary("tanh", "relu"), rng(seed)) for seed in range(50)} - {None}
    assert {str(LayerGraph(found)) for found in new} == {"max(relu(x), tanh(x))", "max(tanh(x), relu(x))"}


@given(seed=SEEDS)
def test_live_nodes_are_the_graph(seed):
    sampled = SPACE.sample(rng(seed))
    live = live_nodes(sampled.nodes)
    assert LayerGraph(live).canonical == sampled.canonical
    assert LayerGraph(live).live == tuple(range(len(live)))
    assert live_nodes(live) == live


@pytest.mark.parametrize("name", MUTATIONS)
@given(seed=SEEDS)
def test_what_comes_out_is_a_graph_of_live_nodes(name, seed):
    nodes = live_graph(seed)
    new = MUTATIONS[name](nodes, Vocabulary(SPACE.ops, SPACE.inputs), rng(seed + 1))
    assume(new is not None)
    assert new != nodes
    assert live_nodes(new) == new
    assert LayerGraph.from_json(LayerGraph(new).to_json()) == LayerGraph(new)
    ops, before = Counter(node.op for node in new), Counter(node.op for node in nodes)
    if name == "insert":
        assert ops > before and len(new) - len(nodes) in (1, 2)
    elif name == "remove":
        assert ops < before
    else:
        arities = [[OPS[node.op].arity for node in graph] for graph in (new, nodes)]
        assert arities[0] == arities[1] and [n.args for n in new] == [n.args for n in nodes]
        assert name == "regenerate" or sum(a != b for a, b in zip(new, nodes, strict=True)) == 1


def respond(nodes, x):
    """Output and input gradient."""
    x = x.clone().requires_grad_()
    y = GraphLayer(LayerGraph(nodes), x.shape[1], dtype=torch.float64)(x)
    (gradient,) = torch.autograd.grad(y.square().sum() + 0 * x.sum(), x)
    return y.detach(), gradient


@pytest.mark.parametrize("constants", ["ops", "inputs"])
@pytest.mark.parametrize("op", KEEPING)
@given(seed=SEEDS)
def test_insertion_of_a_binary_op_keeps_the_result(op, constants, seed):
    nodes = live_graph(seed)
    words = vocabulary(op, "zeros", "ones") if constants == "ops" else vocabulary(op, "exp", inputs=("x", "zero"))
    inserted = (insert(nodes, words, rng(seed + k)) for k in range(100))
    new = next(n for n in inserted if sum(node.op == op for node in n) > sum(node.op == op for node in nodes))
    x = torch.randn(5, 4, dtype=torch.float64)
    for before, after in zip(respond(nodes, x.unsqueeze(-1)), respond(new, x.unsqueeze(-1)), strict=True):
        torch.testing.assert_close(after, before, rtol=1e-12, atol=1e-12)


@given(seed=SEEDS)
def test_insertion_of_a_unary_op_applies_it_to_what_was_there(seed):
    """With the identity, that changes nothing; and an edge alone gets it, not all uses of a value."""
    nodes = live_graph(seed)
    new = insert(nodes, vocabulary("identity"), rng(seed + 1))
    x = torch.randn(5, 4, 1, dtype=torch.float64)
    for before, after in zip(respond(nodes, x), respond(new, x), strict=True):
        torch.testing.assert_close(after, before, rtol=0, atol=0)
    (place,) = (position for position, node in enumerate(new) if node.op == "identity")
    assert sum(arg == place for node in new for arg in node.args) == (place < len(new) - 1)
