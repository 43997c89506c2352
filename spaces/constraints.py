"""Limits on the graphs of a space."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from normact.spaces.catalogue import CATALOGUE
from normact.spaces.graph import LayerGraph
from normact.spaces.ops import OPS


@dataclass(frozen=True)
class Constraints:
    """What a graph may not have; None is no limit.

    Args:
        barred: names of ops that may not be used.
        nodes: most live nodes.
        parameters: most trainable inputs, the affine's two included.
        relative_cost: most passes over the tensor, relative to `bn_relu`'s (see `Op.passes`).
    """

    barred: Sequence[str] = ()
    nodes: int | None = None
    parameters: int | None = None
    relative_cost: float | None = None

    def violated(self, graph: LayerGraph) -> str:
        """Which constraint a graph breaks, with both values; empty for none."""
        live = graph.canonical
        if self.nodes is not None and len(live.nodes) > self.nodes:
            return f"{len(live.nodes)} nodes, at most {self.nodes} allowed"
        parameters = len(live.trainables) + 2 * live.affine
        if self.parameters is not None and parameters > self.parameters:
            return f"{parameters} trainable vectors, at most {self.parameters} allowed"
        if self.relative_cost is not None and (cost := relative_cost(live)) > self.relative_cost:
            return f"relative cost {cost:.2f}, at most {self.relative_cost} allowed"
        for node in live.nodes:
            if node.op in self.barred:
                return f"op {node.op} is barred"
        return ""


def relative_cost(graph: LayerGraph) -> float:
    """Passes over the tensor that a graph needs, relative to `bn_relu`'s: a count, not a measurement."""

    def passes(g: LayerGraph) -> float:
        return sum(OPS[node.op].passes for node in g.canonical.nodes) + 3.0 * g.affine

    return passes(graph) / passes(CATALOGUE["bn_relu"].graph)
