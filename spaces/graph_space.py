"""`GraphSpace`: layers as random computation graphs, after EvoNorm (arXiv 2004.02967)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from normact.spaces.catalogue import CATALOGUE, read_layer
from normact.spaces.emit import emit
from normact.spaces.errors import InputError
from normact.spaces.graph import MAX_NODES, Arg, LayerGraph, Node
from normact.spaces.inputs import check_input
from normact.spaces.layer import ChannelAffine, GraphLayer, LayerOptions
from normact.spaces.moments import check_layout, unusable
from normact.spaces.ops import OPS, Op, find_op, register
from normact.spaces.site import Site, SiteKind
from normact.spaces.space import Space

MAX_TRIES = 1000
"""Draws before the space gives up finding a valid graph."""


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


class GraphSpace(Space[LayerGraph]):
    """Graphs of a fixed number of nodes over an op set.

    Sampling draws each node's op uniformly and its arguments uniformly among the inputs and all earlier
    nodes; the last node is the output (the paper's construction). A draw whose output does not depend on x,
    or that breaks a constraint, is thrown away and drawn again, up to 1,000 times. So a sample is uniform
    over draws *given* that they are valid, which favours ops of arity 2 near the output. Mutation is the
    paper's: one node chosen uniformly gets a new op and new arguments; it is redrawn in the same way.

    Args:
        ops: names of ops of the table, or `Op` objects of your own (they are registered).
        nodes: nodes a sampled graph has, dead ones included.
        inputs: among x, zero, and trainables such as v0, v1 (see `Trainable`); x must be there.
        options: groups, eps, momentum.
        post_affine: whether sampled graphs have a trainable per-channel affine behind them.
        layouts: the layouts served; ops that one of them cannot have are left out, see `notes`.
        causal: leave out every moment over the sequence or the batch.
        norm: catalogue name or expression of a fixed norm in front of the graph; empty for none. Then sampled
            graphs are activations: `act` sites get the graph alone, `norm_act` sites norm and graph.
        constraints: limits on graphs.

    Raises:
        InputError: an unknown op, input or layout; no x; counts out of range; or nothing valid was found in
            1,000 draws.
    """

    def __init__(
        self,
        ops: Sequence[str | Op],
        nodes: int = 10,
        inputs: Sequence[str] = ("x", "zero", "v0", "v1"),
        options: LayerOptions | None = None,
        post_affine: bool = True,
        layouts: Sequence[str] = ("NCHW", "NLC"),
        causal: bool = False,
        norm: str = "",
        constraints: Constraints | None = None,
    ) -> None:
        if not 1 <= nodes <= MAX_NODES:
            raise InputError(f"a graph space has 1 to {MAX_NODES} nodes, got nodes={nodes}")
        if not layouts:
            raise InputError("a graph space needs at least one layout: NCHW, NLC or NC")
        self.options = options or LayerOptions()
        self.nodes = nodes
        self.inputs = tuple(check_input(name) for name in inputs)
        if "x" not in self.inputs:
            raise InputError(f"the inputs {list(self.inputs)} lack x: no layer could see its input; add x")
        self.post_affine = post_affine
        self.causal = causal
        self.constraints = constraints or Constraints()
        self._layouts = tuple(check_layout(layout) for layout in layouts)
        self.norm = self._fixed_norm(norm) if norm else None
        for name in self.constraints.barred:
            find_op(name, " in constraints.barred")
        self.ops, self._notes = self._usable(ops)
        self._arity = {name: OPS[name].arity for name in self.ops}
        self._arities = [self._arity[name] for name in self.ops]
        arguments = [[len(self.inputs) + position] * max(self._arity.values()) for position in range(nodes)]
        self._below = np.array([[len(self.ops), *choices] for choices in arguments])
        self.sample(np.random.default_rng(0))  # an op set from which nothing can be made is said at once

    def _fixed_norm(self, text: str) -> LayerGraph:
        norm = read_layer(text)
        if norm.affine:
            raise InputError(f"norm={text!r} ends in affine(...): write it out as add(mul(v1, ...), v0)")
        if not has_moment(norm) or not norm.reaches_x:
            raise InputError(f"norm={text!r} normalizes nothing: it must have a moment and depend on x")
        if reason := self._unusable_moment(norm):
            raise InputError(f"norm={text!r} cannot be used: {reason}")
        return norm

    def _usable(self, ops: Sequence[str | Op]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        usable: list[str] = []
        notes: list[str] = []
        for item in ops:
            op = find_op(item) if isinstance(item, str) else register(item)
            reasons = [
                reason
                for layout in self._layouts
                if op.moment and (reason := unusable(op.moment.index_set, layout, self.causal))
            ]
            if op.name in self.constraints.barred:
                continue
            if reasons:
                notes.extend(reason for reason in reasons if reason not in notes)
            elif op.name not in usable:
                usable.append(op.name)
        if not usable:
            names = [getattr(op, "name", op) for op in ops]
            reason = "; ".join(notes) or ("all are barred" if names else "it is empty")
            raise InputError(f"no op is left of the op set {names}: {reason}; add ops")
        return tuple(usable), tuple(notes)

    @property
    def site_kinds(self) -> frozenset[str]:
        return frozenset({"norm_act", "act"}) if self.norm else frozenset({"norm_act"})

    @property
    def layouts(self) -> tuple[str, ...]:
        return self._layouts

    @property
    def notes(self) -> tuple[str, ...]:
        return self._notes

    def sample(self, rng: np.random.Generator) -> LayerGraph:
        problem = ""
        for _ in range(MAX_TRIES):
            graph = LayerGraph(self._draw_all(rng), self.post_affine)
            reason = self.invalid(graph)
            if not reason:
                return graph
            if graph.reaches_x or not problem:
                problem = reason  # most draws lack x whatever is asked for, so that is said last
        raise InputError(
            f"no valid layer in {MAX_TRIES} draws of {self.nodes} node(s) from {list(self.ops)}: "
            f"the last one failed with: {problem}; loosen the constraints or add ops"
        )

    def mutate(self, candidate: LayerGraph, rng: np.random.Generator) -> LayerGraph:
        nodes = self._padded(candidate, rng)
        for _ in range(MAX_TRIES):
            position = int(rng.integers(len(nodes)))
            new = (*nodes[:position], self._draw(position, rng), *nodes[position + 1 :])
            graph = LayerGraph(new, candidate.affine)
            if not self.invalid(graph):
                return graph
        return candidate

    def crossover(self, a: LayerGraph, b: LayerGraph, rng: np.random.Generator) -> LayerGraph:
        """`b` with a part of `a` in it: an argument of a random node becomes a random node of `a` with all below it.

        Live nodes alone take part, as one-point and uniform crossover of the node lists mostly mix dead ones. Drawn
        again while the child is a parent, too large or invalid, up to 1,000 times; then it is `b`.
        """
        donor, receiver = a.canonical, b.canonical
        most = max(self.nodes, len(a.nodes), len(b.nodes))
        for _ in range(MAX_TRIES):
            root = int(rng.integers(len(donor.nodes)))
            part = LayerGraph(donor.nodes[: root + 1]).canonical.nodes
            nodes = list(_behind(receiver.nodes, part))
            op, args = nodes[(position := int(rng.integers(len(part), len(nodes))))]
            slot = int(rng.integers(len(args)))
            nodes[position] = Node(op, (*args[:slot], len(part) - 1, *args[slot + 1 :]))
            child = LayerGraph(tuple(nodes), b.affine).canonical
            if len(child.nodes) <= most and child not in (donor, receiver) and not self.invalid(child):
                return LayerGraph(self._padded(child, rng), b.affine)
        return b

    def suggest(self, trial: Any) -> LayerGraph:
        """A graph from an Optuna trial: an op for each node and as many arguments as any op takes, of which it uses
        the first ones. So all trials have the same parameters, which samplers ask for that cross or model them jointly.

        Where the output would not depend on x, the last input on its line of first arguments becomes x: 70% of draws
        of the paper's space would otherwise be wasted. Constraints may still be broken, see `invalid`.
        """
        nodes: list[Node] = []
        for position in range(self.nodes):
            op = trial.suggest_categorical(f"op{position}", self.ops)
            choices = (*self.inputs, *range(position))
            picks = [trial.suggest_categorical(f"arg{position}_{k}", choices) for k in range(max(self._arities))]
            nodes.append(Node(op, tuple(picks[: self._arity[op]])))
        graph = LayerGraph(tuple(nodes), self.post_affine)
        return graph if graph.reaches_x else _made_to_reach_x(graph)

    def trial_parameters(self, candidate: LayerGraph) -> dict[str, Any] | None:
        for nodes in (candidate.nodes, candidate.canonical.nodes):
            if candidate.affine == self.post_affine and len(nodes) <= self.nodes and self._expresses(nodes):
                dead = Node(self.ops[0], self.inputs[:1] * self._arities[0])
                return self._parameters(_behind(nodes, [dead] * (self.nodes - len(nodes))))
        return None

    def _expresses(self, nodes: Sequence[Node]) -> bool:
        """Whether the space has all ops and inputs of the nodes."""
        named = {arg for node in nodes for arg in node.args if isinstance(arg, str)}
        return named <= {*self.inputs} and all(node.op in self._arity for node in nodes)

    def _parameters(self, nodes: Sequence[Node]) -> dict[str, Any]:
        """What a trial says for the nodes; arguments that an op does not take are the first input."""
        parameters: dict[str, Any] = {}
        for position, (op, args) in enumerate(nodes):
            parameters[f"op{position}"] = op
            for k in range(max(self._arities)):
                parameters[f"arg{position}_{k}"] = args[k] if k < len(args) else self.inputs[0]
        return parameters

    def _draw(self, position: int, rng: np.random.Generator) -> Node:
        return self._node(*rng.integers(0, self._below[position]).tolist())

    def _draw_all(self, rng: np.random.Generator) -> tuple[Node, ...]:
        """All nodes, by one call of the generator, until the output depends on x: what a search's driver does most."""
        for _ in range(MAX_TRIES):
            draws = rng.integers(0, self._below).tolist()
            if self._depends_on_x(draws):
                break
        return tuple([self._node(*draw) for draw in draws])

    def _depends_on_x(self, draws: list[list[int]]) -> bool:
        """Whether the last node does, before nodes are made of the numbers."""
        depends = [name == "x" for name in self.inputs]
        for op, *picks in draws:
            depends.append(any(depends[pick] for pick in picks[: self._arities[op]]))
        return depends[-1]

    def _node(self, op: int, *picks: int) -> Node:
        """A node from the number of its op and of as many arguments as any op takes; it uses the first ones."""
        name = self.ops[op]
        return Node(name, tuple([self._argument(pick) for pick in picks[: self._arity[name]]]))

    def _argument(self, pick: int) -> Arg:
        return self.inputs[pick] if pick < len(self.inputs) else pick - len(self.inputs)

    def _padded(self, graph: LayerGraph, rng: np.random.Generator) -> tuple[Node, ...]:
        """The graph's nodes behind random dead ones, so that a short one can grow to the space's size."""
        missing = max(0, self.nodes - len(graph.nodes))
        return _behind(graph.nodes, [self._draw(position, rng) for position in range(missing)])

    def invalid(self, candidate: LayerGraph) -> str:
        if not candidate.reaches_x:
            return "the output does not depend on x"
        if violated := self.constraints.violated(candidate):
            return violated
        return self._unusable_moment(candidate)

    def whole(self, candidate: LayerGraph) -> LayerGraph:
        """The graph as it stands at a `norm_act` site: behind the fixed norm where there is one."""
        is_activation = self.norm is not None and not has_moment(candidate)
        return candidate.compose(self.norm) if is_activation and self.norm else candidate

    def build(self, candidate: LayerGraph, site: Site) -> nn.Module:
        if site.kind not in ("norm_act", "act"):
            raise InputError(f"a graph cannot fill a site of kind {site.kind!r}, only norm_act and act")
        if site.kind == "norm_act" and not site.activation:
            if self.norm is None:
                return ChannelAffine(site.in_features, site.layout)
            graph = self.norm
        else:
            graph = candidate if site.kind == "act" else self.whole(candidate)
        return GraphLayer(graph, site.in_features, site.layout, self.options, site.causal or self.causal)

    def key(self, candidate: LayerGraph) -> str:
        return self.whole(candidate).key(str(self.options))

    def to_json(self, candidate: LayerGraph) -> Any:
        return candidate.to_json()

    def from_json(self, data: Any) -> LayerGraph:
        return LayerGraph.from_json(data)

    def parse(self, text: str) -> LayerGraph:
        """A catalogue name or an expression."""
        return read_layer(text)

    def describe(self, candidate: LayerGraph) -> str:
        return str(candidate)

    def source(self, candidate: LayerGraph, name: str, note: str = "") -> str:
        return emit(self.whole(candidate), name, self.options, self.norm, note)

    def baselines(self) -> dict[str, LayerGraph]:
        graphs = {name: layer.graph for name, layer in CATALOGUE.items()}
        return {name: graph for name, graph in graphs.items() if not self._unusable_moment(graph)}

    def _unusable_moment(self, graph: LayerGraph) -> str:
        reasons = (
            unusable(moment.index_set, layout, self.causal)
            for position in graph.live
            if (moment := OPS[graph.nodes[position].op].moment)
            for layout in self._layouts
        )
        return next((reason for reason in reasons if reason), "")

    def probe_sites(self) -> Sequence[Site]:
        """Per layout a site with more channels than groups, so that no two index sets agree by accident."""
        kind: SiteKind = "norm_act"
        features = 2 * self.options.groups if self.options.groups > 1 else 4
        return [
            Site(kind, index, features, layout=layout, causal=self.causal) for index, layout in enumerate(self._layouts)
        ]


def _behind(nodes: Sequence[Node], front: Sequence[Node]) -> tuple[Node, ...]:
    """The nodes after others, which they do not use."""
    shift = len(front)
    moved = (Node(op, tuple(arg + shift if isinstance(arg, int) else arg for arg in args)) for op, args in nodes)
    return (*front, *moved)


def _made_to_reach_x(graph: LayerGraph) -> LayerGraph:
    """The graph with x for the input where the line of first arguments from the output ends."""
    nodes = list(graph.nodes)
    position = len(nodes) - 1
    while isinstance(first := nodes[position].args[0], int):
        position = first
    op, args = nodes[position]
    nodes[position] = Node(op, ("x", *args[1:]))
    return LayerGraph(tuple(nodes), graph.affine)


def has_moment(graph: LayerGraph) -> bool:
    """Whether a live node of the graph is a moment: a normalization of its own."""
    return any(OPS[graph.nodes[i].op].moment for i in graph.live)
