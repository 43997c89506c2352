"""A discovered graph as an activation: the bridge from the space of graphs to KANs."""

from __future__ import annotations

from torch import Tensor

from normact.spaces.errors import InputError
from normact.spaces.kan.basis import WIDE, Basis, register_basis
from normact.spaces.layer import GraphLayer
from normact.spaces.ops import OPS
from normact.spaces.text import parse


@register_basis
class Graph(Basis):
    """One function: a pointwise layer graph, its trainable inputs included. An MLP's activation, where K is 1.

    Args:
        features: I.
        reach: no matter.
        expression: of the graph, see `normact.spaces.parse`.

    Raises:
        InputError: the expression cannot be read, or has a moment, which would look at other inputs.
    """

    name = "graph"
    kept = 4
    choices = {"expression": ("silu(x)", "gelu(x)", "max(x, zero)")}

    def __init__(self, features: int, reach: float = WIDE, expression: str = "silu(x)") -> None:
        super().__init__(features, 1, reach)
        graph = parse(expression)
        moments = [node.op for node in graph.canonical.nodes if OPS[node.op].moment]
        if moments or not graph.reaches_x:
            what = f"has the moment {moments[0]}" if moments else "does not depend on x"
            raise InputError(f"a basis of one input cannot be {expression!r}: it {what}; give a pointwise expression")
        self.graph = GraphLayer(graph, features, "NC")

    def planes(self, x: Tensor) -> Tensor:
        return self.graph(x.reshape(-1, self.features)).view(*x.shape[:-1], 1, self.features)
