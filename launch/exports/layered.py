"""Where the vertices and edges of a layer graph go in a picture: a layered layout, from the input down to the output.

The method of Sugiyama, Tagawa and Toda (1981): each vertex gets a row below all that it uses; an edge that passes rows
gets a bend in each; rows are ordered by the barycenters of their neighbours, to have few crossings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from normact.spaces.graph import LayerGraph

SWEEPS = 12
"""Down and up over the rows, for the order and again for the places."""


@dataclass
class Vertex:
    """A box of the picture, or a bend of an edge, whose label is empty. `uses` are vertices of the row above."""

    label: str
    row: int
    uses: list[int]
    across: float = 0.0


@dataclass(frozen=True)
class Arrow:
    """An edge, over vertices of successive rows; into the argument `port` of `ports`."""

    path: tuple[int, ...]
    port: int
    ports: int


def layered(graph: LayerGraph) -> tuple[list[Vertex], list[Arrow]]:
    """Vertices at least 1 apart in each row, and arrows. Trained vectors and zero are drawn wherever they are used.

    Args:
        graph: drawn in its canonical form; its affine is a box of its own.
    """
    vertices, arrows = [Vertex("x", 0, [])], list[Arrow]()
    place: dict[int | str, int] = {"x": 0}
    nodes = [(node.op, node.args) for node in graph.canonical.nodes]
    if graph.affine:
        nodes.append(("affine", (len(nodes) - 1,)))
    for i, (op, args) in enumerate(nodes):
        above = [vertices[place[arg]].row for arg in args if arg in place]
        row = 1 + max(above, default=0)
        target = len(vertices)
        vertices.append(Vertex(op, row, []))
        place[i] = target
        for port, arg in enumerate(args):
            source = place.get(arg)
            if source is None:
                source = len(vertices)
                vertices.append(Vertex(str(arg), row - 1, []))
            arrows.append(Arrow(_bent(vertices, source, target), port, len(args)))
    _arrange(vertices)
    return vertices, arrows


def _bent(vertices: list[Vertex], source: int, target: int) -> tuple[int, ...]:
    path = [source]
    for row in range(vertices[source].row + 1, vertices[target].row):
        vertices.append(Vertex("", row, [path[-1]]))
        path.append(len(vertices) - 1)
    vertices[target].uses.append(path[-1])
    return (*path, target)


def _arrange(vertices: Sequence[Vertex]) -> None:
    rows: list[list[int]] = [[] for _ in range(1 + max(vertex.row for vertex in vertices))]
    used_by: list[list[int]] = [[] for _ in vertices]
    for i, vertex in enumerate(vertices):
        vertex.across = len(rows[vertex.row])
        rows[vertex.row].append(i)
        for source in vertex.uses:
            used_by[source].append(i)
    above = [vertex.uses for vertex in vertices]
    both = [[*a, *b] for a, b in zip(above, used_by, strict=True)]
    for _ in range(SWEEPS):
        for order, neighbours in ((rows, above), (rows[::-1], used_by)):
            for row in order:
                row.sort(key=lambda i: _mean(vertices, neighbours[i], i))
                for position, i in enumerate(row):
                    vertices[i].across = position
    for _ in range(SWEEPS):
        for row in (*rows, *rows[::-1]):
            wanted = [_mean(vertices, both[i], i) for i in row]
            for i, across in zip(row, spread(wanted), strict=True):
                vertices[i].across = across


def _mean(vertices: Sequence[Vertex], neighbours: Sequence[int], otherwise: int) -> float:
    places = [vertices[i].across for i in neighbours or [otherwise]]
    return sum(places) / len(places)


def spread(wanted: Sequence[float]) -> list[float]:
    """Places in that order, near those wanted and at least 1 apart: the mean of what pushing right and left gives."""
    right, left = list(wanted), list(wanted)
    for i in range(1, len(right)):
        right[i] = max(right[i], right[i - 1] + 1)
        left[-1 - i] = min(left[-1 - i], left[-i] - 1)
    return [(a + b) / 2 for a, b in zip(right, left, strict=True)]
