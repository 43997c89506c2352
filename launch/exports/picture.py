"""Pictures of layers by matplotlib: a graph's nodes and arrows, a pointwise layer's curve."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from normact.launch.exports.layered import Arrow, Vertex, layered
from normact.spaces.graph import LayerGraph
from normact.spaces.inputs import is_input
from normact.spaces.layer import GraphLayer
from normact.spaces.ops import OPS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, HEIGHT = 1.35, 0.62
"""Inches from box to box."""

TALL = 0.42
"""Share of a row that a box takes."""

REACH, POINTS = 6.0, 481
"""A curve goes from -REACH to REACH."""

INK, INPUT, MOMENT, POINTWISE = "#333333", "#fdf3d8", "#dbe9f6", "#ffffff"


def draw_graph(graph: LayerGraph) -> Figure:
    """The graph from x at the top to the output at the bottom; the arrows into a box come in its arguments' order."""
    from matplotlib.figure import Figure

    vertices, arrows = layered(graph)
    left, right = (f(v.across for v in vertices) for f in (min, max))
    rows = max(v.row for v in vertices)
    figure = Figure((WIDTH * (right - left + 1.2), HEIGHT * (rows + 1.2)))
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set(xlim=(left - 0.6, right + 0.6), ylim=(rows + 0.6, -0.6))
    axes.set_axis_off()
    for arrow in arrows:
        _draw_arrow(axes, vertices, arrow)
    for vertex in vertices:
        if vertex.label:
            _draw_box(axes, vertex)
    return figure


def _draw_box(axes: Axes, vertex: Vertex) -> None:
    from matplotlib.patches import FancyBboxPatch

    op = OPS.get(vertex.label)
    colour = INPUT if is_input(vertex.label) else MOMENT if op and op.moment else POINTWISE
    wide, size = 0.8, 9 * min(1.0, 12 / len(vertex.label))
    box = FancyBboxPatch(
        (vertex.across - wide / 2, vertex.row - TALL / 2),
        wide,
        TALL,
        "round,pad=0,rounding_size=0.08",
        facecolor=colour,
        edgecolor=INK,
        linewidth=0.8,
    )
    axes.add_patch(box)
    axes.text(vertex.across, vertex.row, vertex.label, ha="center", va="center", fontsize=size, color=INK)


def _draw_arrow(axes: Axes, vertices: list[Vertex], arrow: Arrow) -> None:
    from matplotlib.patches import FancyArrowPatch
    from matplotlib.path import Path as Curve

    places = [(vertices[i].across, float(vertices[i].row)) for i in arrow.path]
    shift = 0.4 * (arrow.port - (arrow.ports - 1) / 2) / max(arrow.ports - 1, 1)
    places[0] = (places[0][0], places[0][1] + TALL / 2)
    places[-1] = (places[-1][0] + shift, places[-1][1] - TALL / 2)
    points, codes = [places[0]], [Curve.MOVETO]
    for (x0, y0), (x1, y1) in pairwise(places):
        middle = (y0 + y1) / 2
        points += [(x0, middle), (x1, middle), (x1, y1)]
        codes += [Curve.CURVE4] * 3
    head = "-|>,head_length=3.5,head_width=1.8"
    axes.add_patch(FancyArrowPatch(path=Curve(points, codes), arrowstyle=head, color=INK, linewidth=0.8))


def curve_of(graph: LayerGraph) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A pointwise layer at the start of its parameters: (POINTS,) of x, its value and its derivative, in float64."""
    x = torch.linspace(-REACH, REACH, POINTS, dtype=torch.float64, requires_grad=True)
    y = GraphLayer(graph, 1, "NC").double()(x.unsqueeze(1)).squeeze(1)
    (slope,) = torch.autograd.grad(y.sum(), x)
    return x.detach(), y.detach(), slope


def draw_curve(graph: LayerGraph) -> Figure:
    """A pointwise layer and its derivative."""
    from matplotlib.figure import Figure

    x, y, slope = curve_of(graph)
    figure = Figure((5.0, 3.4), layout="constrained")
    axes = figure.subplots()
    axes.plot(x.numpy(), y.numpy(), color="#1f5fa8", label="layer")
    axes.plot(x.numpy(), slope.numpy(), color="#c0504d", linestyle="--", label="derivative")
    axes.axhline(0, color=INK, linewidth=0.5)
    axes.axvline(0, color=INK, linewidth=0.5)
    axes.set_xlabel("x")
    axes.legend()
    return figure


def save(figure: Figure, path: Path, note: str) -> None:
    """Write a figure in the format of the path's suffix, with a note inside: the same bytes each time."""
    import matplotlib

    key, date = {"svg": ("Description", "Date"), "png": ("Description", ""), "pdf": ("Subject", "CreationDate")}[
        path.suffix[1:]
    ]
    metadata = {key: note} | ({date: None} if date else {})
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "normact"}):
        figure.savefig(path, metadata=metadata, dpi=200)
