"""What is left of a layer graph without its normalization, and which of its nodes are a normalization."""

from __future__ import annotations

from dataclasses import dataclass

from normact.spaces.errors import InputError
from normact.spaces.graph import Arg, LayerGraph, Node
from normact.spaces.inputs import trainable
from normact.spaces.layer import running_name
from normact.spaces.ops import OPS


@dataclass(frozen=True)
class Standardized:
    """Where a graph does what a norm does: v1 * (x - mean(x)) / std(x) + v0.

    Args:
        index_set: what mean and std are taken over.
        node: the last one that belongs to the norm.
        weight: the parameter that is its scale; empty where there is none.
        bias: the parameter that is its shift; empty where there is none.
    """

    index_set: str
    node: int
    weight: str = ""
    bias: str = ""


def standardized(graph: LayerGraph) -> Standardized | None:
    """The first place where a canonical graph standardizes x, with the affine right behind it."""
    for position, node in enumerate(graph.nodes):
        index_set = _standardizes(graph, node)
        if not index_set:
            continue
        scale = _only_user(graph, position, "mul", 1.0)
        if scale is None:
            last = position == len(graph.nodes) - 1 and graph.affine
            return Standardized(index_set, position, *(("weight", "bias") if last else ()))
        shift = _only_user(graph, scale[0], "add", 0.0)
        if shift is None:
            return Standardized(index_set, scale[0], scale[1])
        return Standardized(index_set, shift[0], scale[1], shift[1])
    return None


def running_buffers(graph: LayerGraph) -> dict[str, str]:
    """The buffers of a canonical graph that keep a statistic of x itself: what is kept, to the buffer's name."""
    names: list[str] = []
    kept = {}
    for node in graph.nodes:
        moment = OPS[node.op].moment
        if moment is None or moment.index_set != "batch":
            continue
        names.append(running_name(moment, names))
        if node.args == ("x",):
            kept[moment.running] = names[-1]
    return kept


def pointwise_part(graph: LayerGraph) -> LayerGraph:
    """A layer as it acts on x that is normalized already: every mean 0, every rms and std 1, no affine of a norm.

    Raises:
        InputError: that is x itself: the layer is a norm and nothing else.
    """
    graph = graph.canonical
    norm = standardized(graph)
    values: list[Arg] = []
    nodes: list[Node] = []
    one: list[int] = []  # the node that holds 1, once it is needed

    def put(node: Node) -> int:
        nodes.append(node)
        return len(nodes) - 1

    for position, node in enumerate(graph.nodes):
        args = tuple(values[a] if isinstance(a, int) else a for a in node.args)
        moment = OPS[node.op].moment
        if norm is not None and position == norm.node:
            values.append("x")
        elif moment is not None and moment.statistic == "mean":
            values.append("zero")
        elif moment is not None:
            if not one:
                one.append(put(Node("exp", ("zero",))))
            values.append(one[0])
        else:
            same = _unchanged(node.op, args, one)
            values.append(put(Node(node.op, args)) if same is None else same)
    if not isinstance(values[-1], int):
        raise InputError(f"{graph} without its normalization is {values[-1]}: there is no pointwise part to use")
    return LayerGraph(tuple(nodes[: values[-1] + 1])).canonical


def _unchanged(op: str, args: tuple[Arg, ...], one: list[int]) -> Arg | None:
    """The argument that an operation gives back as it is; None where it does something."""
    if op == "neg" and args == ("zero",):
        return "zero"
    if op == "add" and "zero" in args:
        return args[0] if args[1] == "zero" else args[1]
    if op == "div" and one and args[1] == one[0]:
        return args[0]
    if op == "mul" and one and one[0] in args:
        return args[0] if args[1] == one[0] else args[1]
    return None


def _standardizes(graph: LayerGraph, node: Node) -> str:
    """The index set where a node is (x - mean(x)) / std(x)."""
    if node.op != "div":
        return ""
    std, centered = (_node(graph, arg) for arg in (node.args[1], node.args[0]))
    if std is None or centered is None or centered.op != "add" or std.args != ("x",):
        return ""
    index_set = std.op.removesuffix("_std")
    negatives = [_node(graph, arg) for arg in centered.args]
    means = [_node(graph, n.args[0]) for n in negatives if n is not None and n.op == "neg"]
    right = Node(f"{index_set}_mean", ("x",)) in means and "x" in centered.args
    return index_set if right and std.op == f"{index_set}_std" else ""


def _node(graph: LayerGraph, arg: Arg) -> Node | None:
    return graph.nodes[arg] if isinstance(arg, int) else None


def _only_user(graph: LayerGraph, position: int, op: str, init: float) -> tuple[int, str] | None:
    """The one node that uses another, where it is `op` with a per-channel parameter that starts from `init`."""
    users = [i for i, node in enumerate(graph.nodes) if position in node.args]
    if len(users) != 1 or graph.nodes[users[0]].op != op:
        return None
    for arg in graph.nodes[users[0]].args:
        item = trainable(arg) if isinstance(arg, str) else None
        if item is not None and item.per_channel and item.init == init:
            return users[0], item.attribute
    return None
