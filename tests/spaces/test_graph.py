import json
import pickle

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from normact.spaces import OPS, GraphLayer, InputError, LayerGraph, LayerOptions, Node, parse
from normact.spaces.graph import MAX_NODES


def swapped(graph, which):
    """The graph with the arguments of its commutative nodes swapped where `which` says so."""
    nodes = (
        Node(n.op, n.args[::-1] if OPS[n.op].commutative and swap else n.args)
        for n, swap in zip(graph.nodes, which, strict=True)
    )
    return LayerGraph(tuple(nodes), graph.affine)


def shifted(args, at, by=1):
    return tuple(a + by if isinstance(a, int) and a >= at else a for a in args)


def with_dead_node(graph, at, dead):
    """A node that nothing uses, put before position `at`."""
    later = tuple(Node(n.op, shifted(n.args, at)) for n in graph.nodes[at:])
    return LayerGraph((*graph.nodes[:at], dead, *later), graph.affine)


def with_twin(graph, at, user):
    """Node `at` written twice, `user` (a later node) taking the second copy."""
    copy = graph.nodes[at]
    later = []
    for position, node in enumerate(graph.nodes[at + 1 :], at + 1):
        args = shifted(node.args, at + 1)
        if position == user:
            args = tuple(at + 1 if a == at else a for a in args)
        later.append(Node(node.op, args))
    return LayerGraph((*graph.nodes[: at + 1], copy, *later), graph.affine)


@given(data=st.data())
def test_canonical_is_idempotent_and_keeps_the_key(graphs, data):
    graph = data.draw(graphs)
    assert graph.canonical.canonical == graph.canonical
    assert graph.canonical.key() == graph.key()
    assert len(graph.canonical.nodes) <= len(graph.nodes)
    assert graph.canonical.inputs == graph.inputs


@given(data=st.data())
def test_canonical_has_neither_dead_nodes_nor_twins(graphs, data):
    canonical = data.draw(graphs).canonical
    assert canonical.live == tuple(range(len(canonical.nodes)))
    assert len(set(canonical.nodes)) == len(canonical.nodes)


@given(data=st.data())
def test_swapping_commutative_arguments_changes_nothing(graphs, data):
    graph = data.draw(graphs)
    size = len(graph.nodes)
    other = swapped(graph, data.draw(st.lists(st.booleans(), min_size=size, max_size=size)))
    assert other.canonical == graph.canonical
    assert other.key() == graph.key()


@given(data=st.data())
def test_a_dead_node_changes_nothing(graphs, data):
    graph = data.draw(graphs)
    at = data.draw(st.integers(0, len(graph.nodes) - 1))
    dead = Node("mul", ("x", at - 1 if at else "v1"))
    assert with_dead_node(graph, at, dead).canonical == graph.canonical


@given(data=st.data())
def test_writing_a_subexpression_twice_changes_nothing(graphs, data):
    graph = data.draw(graphs)
    assume(len(graph.nodes) > 1)
    at = data.draw(st.integers(0, len(graph.nodes) - 2))
    user = data.draw(st.integers(at + 1, len(graph.nodes) - 1))
    assert with_twin(graph, at, user).canonical == graph.canonical


@given(data=st.data())
def test_keys_are_equal_exactly_where_canonical_forms_are(graphs, data):
    a, b = data.draw(graphs), data.draw(graphs)
    assert (a.key() == b.key()) == (a.canonical == b.canonical)
    renamed = LayerGraph(a.nodes, not a.affine)
    assert renamed.key() != a.key()
    assert a.key("groups=8") != a.key("groups=4")


def test_the_order_of_arguments_that_do_not_commute_matters():
    assert parse("div(x, v1)").key() != parse("div(v1, x)").key()
    assert parse("sub(x, v1)").key() != parse("sub(v1, x)").key()


@given(data=st.data())
def test_canonical_computes_the_same(tame_graphs, data):
    graph = data.draw(tame_graphs)
    x = torch.linspace(-2, 2, 3 * 4 * 2 * 3, dtype=torch.float64).sin().view(3, 4, 2, 3)
    # GraphLayer runs the canonical form; the nodes as they stand are run here.
    layer = GraphLayer(graph, 4, "NCHW", LayerOptions(groups=2)).double()
    torch.testing.assert_close(layer(x), direct(graph, x), rtol=1e-9, atol=1e-10)


def direct(graph, x):
    """An own interpreter of the ops in `tame_graphs`, at the initial values of the trainables."""
    zero = torch.zeros_like(x)
    values = {"x": x, "zero": zero, "v0": zero, "v1": zero + 1}
    functions = {
        "add": torch.add,
        "sub": torch.sub,
        "mul": torch.mul,
        "max": torch.maximum,
        "min": torch.minimum,
        "neg": torch.neg,
        "abs": torch.abs,
        "tanh": torch.tanh,
        "sigmoid": torch.sigmoid,
        "batch_mean": lambda a: a.mean((0, 2, 3), keepdim=True).expand_as(a),
        "group_rms": group_rms,
    }
    for position, node in enumerate(graph.nodes):
        values[position] = functions[node.op](*(values[a] for a in node.args))
    return values[len(graph.nodes) - 1]


def group_rms(a):
    n, c, *rest = a.shape
    pairs = a.reshape(n, 2, -1)
    return (pairs.square().mean(2, keepdim=True) + 1e-5).sqrt().expand_as(pairs).reshape(n, c, *rest)


@given(data=st.data())
def test_json_comes_back_equal(graphs, data):
    graph = data.draw(graphs)
    assert LayerGraph.from_json(json.loads(json.dumps(graph.to_json()))) == graph


@given(data=st.data())
def test_a_graph_is_a_value(graphs, data):
    graph = data.draw(graphs)
    twin = LayerGraph.from_json(graph.to_json())
    assert twin == graph
    assert hash(twin) == hash(graph)
    assert pickle.loads(pickle.dumps(graph)) == graph
    with pytest.raises(AttributeError):
        graph.affine = True


def test_what_a_graph_depends_on():
    graph = LayerGraph.from_json({"nodes": [["mul", "x", "v0"], ["add", "zero", "v1"], ["exp", 1]]})
    assert graph.live == (1, 2)
    assert graph.inputs == ("v1", "zero")
    assert graph.trainables == ("v1",)
    assert not graph.reaches_x
    assert parse("mul(s0.01, x)").reaches_x


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "a graph is"),
        ([], "a graph is"),
        ("relu(x)", "a graph is"),
        ({}, "a graph is"),
        ({"nodes": "relu"}, "a graph is"),
        ({"nodes": {"0": ["relu", "x"]}}, "a graph is"),
        ({"nodes": []}, "1 to 256 nodes, got 0"),
        ({"nodes": [["relu", "x"]] * (MAX_NODES + 1)}, "1 to 256 nodes, got 257"),
        ({"nodes": [["relu", "x"]], "affine": "yes"}, "'affine' must be true or false, got 'yes'"),
        ({"nodes": [["relu", "x"]], "affine": 1}, "'affine' must be true or false, got 1"),
        ({"nodes": [["relu", "x"], "relu"]}, r"node 1 is not \[op, argument"),
        ({"nodes": [[]]}, r"node 0 is not \[op"),
        ({"nodes": [None]}, r"node 0 is not \[op"),
        ({"nodes": [[3, "x"]]}, r"node 0 is not \[op"),
        ({"nodes": [["relu", "x"], ["rellu", 0]]}, "unknown op 'rellu' at node 1; the nearest is 'relu'"),
        ({"nodes": [["add", "x"]]}, r"op 'add' at node 0 takes 2 argument\(s\), got 1"),
        ({"nodes": [["relu", "x", "x"]]}, r"op 'relu' at node 0 takes 1 argument\(s\), got 2"),
        ({"nodes": [["relu", "x"], ["relu", 1]]}, "node 1 refers to 1; only nodes 0 to 0"),
        ({"nodes": [["relu", 0]]}, "node 0 refers to 0; no node comes before it"),
        ({"nodes": [["relu", "x"], ["relu", -1]]}, "node 1 refers to -1"),
        ({"nodes": [["relu", "x"], ["relu", True]]}, "node 1 refers to True"),
        ({"nodes": [["relu", "x"], ["relu", 0.0]]}, "node 1 refers to 0.0"),
        ({"nodes": [["relu", "x"], ["relu", None]]}, "node 1 refers to None"),
        ({"nodes": [["relu", "x"], ["relu", [0]]]}, r"node 1 refers to \[0\]"),
        ({"nodes": [["relu", "y"]]}, "'y' at node 0 is not an input"),
    ],
)
def test_data_that_are_no_graph_are_refused(data, message):
    with pytest.raises(InputError, match=message) as error:
        LayerGraph.from_json(data)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 1000


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["relu", "add", "x"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["nodes", "affine", "a"]), inner),
    max_leaves=12,
)


@given(data=JSON | st.fixed_dictionaries({"nodes": JSON}) | st.fixed_dictionaries({"nodes": st.lists(JSON)}))
def test_any_json_is_a_graph_or_an_input_error(data):
    try:
        graph = LayerGraph.from_json(data)
    except InputError:
        return
    assert LayerGraph.from_json(graph.to_json()) == graph


def test_composition_is_one_layer_behind_the_other():
    norm, act = parse("div(x, batch_std(x))"), parse("affine(mul(x, sigmoid(x)))")
    whole = act.compose(norm)
    assert whole.affine
    x = torch.randn(5, 4, 3, 3, dtype=torch.float64)
    expected = GraphLayer(norm, 4).double()(x)
    expected = expected * torch.sigmoid(expected)
    torch.testing.assert_close(GraphLayer(whole, 4).double()(x), expected)


def test_composition_keeps_the_trainables_of_both_apart():
    norm = parse("add(mul(v1, div(x, batch_std(x))), v0)")
    whole = parse("mul(x, sigmoid(add(mul(v1, x), s0.01)))").compose(norm)
    assert whole.trainables == ("s0.01", "v0", "v1", "v1_2")
    assert parse("add(mul(v1, x), v1_2)").compose(norm).trainables == ("v0", "v1", "v1_2", "v1_3")
    x = torch.randn(5, 4, 3, 3, dtype=torch.float64)
    layer = GraphLayer(whole, 4).double()
    with torch.no_grad():
        layer.v1.fill_(3.0)
        layer.v1_2.fill_(2.0)
    y = 3 * x / (x.var((0, 2, 3), correction=0, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(layer(x), y * torch.sigmoid(2 * y + 0.01))


def test_an_inner_layer_with_an_affine_is_refused():
    with pytest.raises(InputError, match="drop its affine"):
        parse("relu(x)").compose(parse("affine(neg(x))"))
