"""Edges of a graph, and trainable vectors on them: where a value `a` is used, `mul(v1, a)` is used instead."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from normact.spaces.graph import Arg, LayerGraph, Node
from normact.spaces.inputs import another

VECTOR = "v1"
"""An edge parameter's name, `v1_2`, `v1_3`... for further ones: it starts from 1, so that nothing changes at first."""


CONSTANT = ("zeros", "ones")
"""Ops that do not use what they are applied to."""


def is_vector(arg: Arg) -> bool:
    """Whether it is the name of an edge parameter's vector."""
    return isinstance(arg, str) and arg.partition("_")[0] == VECTOR


class Edge(NamedTuple):
    """A use of a value: by argument `slot` of the node at `position`; behind the last node, with slot 0, as output."""

    position: int
    slot: int


def edges(nodes: Sequence[Node]) -> list[Edge]:
    """The uses of values by live nodes, in order; last the output."""
    live = LayerGraph(tuple(nodes)).live
    return [*(Edge(i, slot) for i in live for slot in range(len(nodes[i].args))), Edge(len(nodes), 0)]


def source(nodes: Sequence[Node], edge: Edge) -> Arg:
    """The value that is used there."""
    return nodes[edge.position].args[edge.slot] if edge.position < len(nodes) else len(nodes) - 1


def trainable_edges(nodes: Sequence[Node]) -> list[Edge]:
    """The edges on which a parameter has an effect: their values depend on x, and what uses them depends on them.

    `ones(x)` is such a value, as its multiple is a constant that is trained; `zeros(x)` is none.
    """
    depends: dict[Arg, bool] = {"x": True}
    for position, node in enumerate(nodes):
        depends[position] = node.op != "zeros" and any(depends.get(arg, False) for arg in node.args)
    used = [edge for edge in edges(nodes) if edge.position == len(nodes) or nodes[edge.position].op not in CONSTANT]
    return [edge for edge in used if depends.get(source(nodes, edge), False)]


def spliced(nodes: Sequence[Node], edge: Edge, new: Sequence[Node]) -> tuple[Node, ...]:
    """The nodes with others in front of an edge's, which uses the last one of them instead of what it used."""
    at, count = edge.position, len(new)
    behind = [node.renumbered(lambda arg: arg + count if arg >= at else arg) for node in nodes[at:]]
    if behind:
        op, args = behind[0]
        behind[0] = Node(op, (*args[: edge.slot], at + count - 1, *args[edge.slot + 1 :]))
    return (*nodes[:at], *new, *behind)


def with_parameters(nodes: Sequence[Node], chosen: Iterable[Edge]) -> tuple[Node, ...]:
    """The nodes with a vector of its own on each of the edges, named in the edges' order."""
    taken = {arg for node in nodes for arg in node.args if isinstance(arg, str)}
    for count, (position, slot) in enumerate(sorted(set(chosen))):
        edge = Edge(position + count, slot)
        name = another(VECTOR, taken) if VECTOR in taken else VECTOR
        taken.add(name)
        nodes = spliced(nodes, edge, [Node("mul", (name, source(nodes, edge)))])
    return tuple(nodes)


def without_parameters(nodes: Sequence[Node]) -> tuple[tuple[Node, ...], list[Edge]]:
    """The nodes without edge parameters, and the edges that had one; where nothing would be left, all and none."""
    bare: list[Node] = []
    place: dict[int, Arg] = {}  # where the nodes' values are among the bare ones
    vectors: set[Arg] = set()
    found: list[Edge] = []
    for position, node in enumerate(nodes):
        value = _scaled(node)
        if value is not None:
            vectors.add(position)
            place[position] = place[value] if isinstance(value, int) else value
            continue
        found += [Edge(len(bare), slot) for slot, arg in enumerate(node.args) if arg in vectors]
        place[position] = len(bare)
        bare.append(node.renumbered(place.__getitem__))
    output = place[len(nodes) - 1]
    if isinstance(output, str):
        return tuple(nodes), []
    found = [edge for edge in found if edge.position <= output]
    return tuple(bare[: output + 1]), [*found, *[Edge(output + 1, 0)] * (len(nodes) - 1 in vectors)]


def _scaled(node: Node) -> Arg | None:
    """The value that a node does nothing to but multiply it with a vector from 1; None for other nodes."""
    if node.op == "mul":
        for vector, value in (node.args, node.args[::-1]):
            if is_vector(vector) and (isinstance(value, int) or value == "x"):
                return value
    return None
