"""Graphs as trials of Optuna, define-by-run, and trials of graphs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from normact.spaces.edges import Edge, trainable_edges, with_parameters, without_parameters
from normact.spaces.graph import LayerGraph, Node, behind
from normact.spaces.mutations import Nodes, Vocabulary
from normact.spaces.ops import OPS


@dataclass(frozen=True)
class TrialForm:
    """What the trials of a space say: an op for each node and as many arguments as any op takes, of which it uses the
    first ones; then for each edge parameter an edge or none. So all trials have the same parameters, which samplers ask
    for that cross or model them jointly.

    Args:
        vocabulary: what nodes are made of.
        nodes: of each graph, dead ones included.
        edge_parameters: most of them.
        affine: of each graph.
    """

    vocabulary: Vocabulary
    nodes: int
    edge_parameters: int
    affine: bool

    def graph(self, trial: Any) -> LayerGraph:
        """The graph that a trial says.

        Where the output would not depend on x, the last input on its line of first arguments becomes x: 70% of draws
        of EvoNorm's space would otherwise be wasted. Edges that cannot have a parameter have none, and one that is
        chosen twice has one.
        """
        nodes: list[Node] = []
        for position in range(self.nodes):
            op = trial.suggest_categorical(f"op{position}", self.vocabulary.ops)
            choices = (*self.vocabulary.inputs, *range(position))
            picks = [trial.suggest_categorical(f"arg{position}_{k}", choices) for k in range(self._width)]
            nodes.append(Node(op, tuple(picks[: OPS[op].arity])))
        graph = LayerGraph(tuple(nodes), self.affine)
        graph = graph if graph.reaches_x else _made_to_reach_x(graph)
        chosen = {*self._edges(trial)} & {*trainable_edges(graph.nodes)}
        return LayerGraph(with_parameters(graph.nodes, chosen), self.affine)

    def parameters(self, candidate: LayerGraph) -> dict[str, Any] | None:
        """Those of a trial that says a graph of the same canonical form; None where none does."""
        for graph in (candidate, candidate.canonical):
            nodes, edges = without_parameters(graph.nodes) if self.edge_parameters else (graph.nodes, [])
            if graph.affine == self.affine and self._expresses(nodes) and len(edges) <= self.edge_parameters:
                again = LayerGraph(with_parameters(nodes, edges), self.affine) if edges else graph
                if again.canonical == graph.canonical:  # parameters may have had other names
                    return self._said(nodes, edges)
        return None

    @property
    def _width(self) -> int:
        """Most arguments of an op."""
        return max(OPS[name].arity for name in self.vocabulary.ops)

    def _edges(self, trial: Any) -> list[Edge]:
        """Edges by number: those of the first node's arguments come first, the output is last."""
        choices = ("none", *range(self.nodes * self._width + 1))
        picks = [trial.suggest_categorical(f"edge{k}", choices) for k in range(self.edge_parameters)]
        return [Edge(*divmod(number, self._width)) for number in picks if number != "none"]

    def _expresses(self, nodes: Nodes) -> bool:
        """Whether there are all ops and inputs of the nodes, and room for them."""
        named = {arg for node in nodes for arg in node.args if isinstance(arg, str)}
        ops = {node.op for node in nodes}
        return len(nodes) <= self.nodes and named <= {*self.vocabulary.inputs} and ops <= {*self.vocabulary.ops}

    def _said(self, nodes: Nodes, edges: list[Edge]) -> dict[str, Any]:
        """What a trial says for the nodes, behind dead ones; arguments that an op does not take are the first input."""
        missing, first = self.nodes - len(nodes), self.vocabulary.inputs[0]
        dead = Node(self.vocabulary.ops[0], (first,) * OPS[self.vocabulary.ops[0]].arity)
        parameters: dict[str, Any] = {}
        for position, (op, args) in enumerate(behind(nodes, [dead] * missing)):
            parameters[f"op{position}"] = op
            for k in range(self._width):
                parameters[f"arg{position}_{k}"] = args[k] if k < len(args) else first
        numbers = [(missing + position) * self._width + slot for position, slot in edges]
        numbers_or_none = [*numbers, *["none"] * (self.edge_parameters - len(edges))]
        return parameters | {f"edge{k}": number for k, number in enumerate(numbers_or_none)}


def _made_to_reach_x(graph: LayerGraph) -> LayerGraph:
    """The graph with x for the input where the line of first arguments from the output ends."""
    nodes = list(graph.nodes)
    position = len(nodes) - 1
    while isinstance(first := nodes[position].args[0], int):
        position = first
    op, args = nodes[position]
    nodes[position] = Node(op, ("x", *args[1:]))
    return LayerGraph(tuple(nodes), graph.affine)
