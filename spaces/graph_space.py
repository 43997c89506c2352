"""`GraphSpace`: layers as random computation graphs, after EvoNorm (arXiv 2004.02967)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from torch import nn

from normact.spaces.catalogue import CATALOGUE, read_layer
from normact.spaces.constraints import Constraints
from normact.spaces.edges import is_vector, trainable_edges, with_parameters, without_parameters
from normact.spaces.emit import emit
from normact.spaces.errors import InputError, unknown_name
from normact.spaces.graph import MAX_NODES, Arg, LayerGraph, Node, behind
from normact.spaces.inputs import check_input
from normact.spaces.layer import ChannelAffine, GraphLayer, LayerOptions
from normact.spaces.moments import check_layout, unusable
from normact.spaces.mutations import MUTATIONS, Nodes, Vocabulary, live_nodes, pick
from normact.spaces.ops import OPS, Op, find_op, register
from normact.spaces.site import Site, SiteKind
from normact.spaces.space import Space
from normact.spaces.trials import TrialForm

MAX_TRIES = 1000
"""Draws before the space gives up finding a valid graph."""


class GraphSpace(Space[LayerGraph]):
    """Graphs of at most so many nodes over an op set.

    Sampling draws each node's op uniformly and its arguments uniformly among the inputs and all earlier
    nodes; the last node is the output (EvoNorm's construction). A draw whose output does not depend on x,
    or that breaks a constraint, is thrown away and drawn again, up to 1,000 times. So a sample is uniform
    over draws *given* that they are valid, which favours ops of arity 2 near the output. With `samples=shallow`,
    it is unary(unary(x)) or binary(unary(x), unary(x)), at equal odds, of uniformly drawn ops.

    Mutation is one of `mutations`, at equal odds: `redraw` is EvoNorm's, one node chosen uniformly gets a new op and
    new arguments, dead nodes being kept, and filled up to `nodes`, as what it works with; `insert`, `remove`, `change`
    and `regenerate` (see `mutations`) work on live nodes alone, so that graphs grow, up to `nodes` of them, and shrink.
    What is invalid, or cannot be done, is drawn again.

    With `edge_parameters`, 0 to so many random edges (see `trainable_edges`) have a trainable vector: a value `a` is
    used there as `mul(v1, a)`, with v1 per channel from 1, so that it changes nothing at the start. How many is drawn
    uniformly, then which; a mutation or a crossover works on the graph without them and places them anew. They do not
    count against `nodes`; for `constraints` each is a node and a trainable vector like any other.

    Args:
        ops: names of ops of the table, or `Op` objects of your own (they are registered).
        nodes: nodes a random graph has, dead ones included, and most that a mutation may let it grow to.
        inputs: among x, zero, and trainables such as v0, v1 (see `Trainable`); x must be there.
        options: groups, eps, momentum.
        post_affine: whether sampled graphs have a trainable per-channel affine behind them.
        layouts: the layouts served; ops that one of them cannot have are left out, see `notes`.
        causal: leave out every moment over the sequence or the batch.
        norm: catalogue name or expression of a fixed norm in front of the graph; empty for none. Then sampled
            graphs are activations: `act` sites get the graph alone, `norm_act` sites norm and graph.
        constraints: limits on graphs.
        samples: `graph` or `shallow`.
        mutations: one or several of `redraw`, `insert`, `remove`, `change`, `regenerate`.
        edge_parameters: most trainable vectors on edges.

    Raises:
        InputError: an unknown op, input, layout, mutation or form of samples; no x; counts out of range; edge
            parameters where v1 is an input too, or without mul; or nothing valid was found in 1,000 draws.
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
        samples: Literal["graph", "shallow"] = "graph",
        mutations: Sequence[str] = ("redraw",),
        edge_parameters: int = 0,
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
        arguments = [[len(self.inputs) + position] * max(self._arities) for position in range(MAX_NODES)]
        self._below = np.array([[len(self.ops), *choices] for choices in arguments])
        self._vocabulary = Vocabulary(self.ops, self.inputs)
        self.samples = self._checked_samples(samples)
        self.mutations = _checked_mutations(mutations)
        self.edge_parameters = self._checked_edge_parameters(edge_parameters)
        self._trials = TrialForm(self._vocabulary, nodes, edge_parameters, post_affine)
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

    def _checked_samples(self, samples: Literal["graph", "shallow"]) -> Literal["graph", "shallow"]:
        if samples not in ("graph", "shallow"):
            raise unknown_name("form of samples", samples, ("graph", "shallow"))
        if samples == "shallow" and (self.nodes < 3 or not {1, 2} <= {*self._arities}):
            raise InputError(
                "samples=shallow needs nodes=3 or more, and ops of one and of two arguments, "
                f"got nodes={self.nodes} and {list(self.ops)}; add what is missing, or use samples=graph"
            )
        return samples

    def _checked_edge_parameters(self, count: int) -> int:
        if not 0 <= count <= MAX_NODES - self.nodes:
            raise InputError(
                f"edge_parameters must be 0 to {MAX_NODES - self.nodes} with nodes={self.nodes}, got {count}"
            )
        if count and (named := [name for name in self.inputs if is_vector(name)]):
            raise InputError(f"edge_parameters={count} places v1 itself: take {', '.join(named)} out of the inputs")
        if count and "mul" in self.constraints.barred:
            raise InputError(f"edge_parameters={count} needs mul: take it out of constraints.barred")
        return count

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
            nodes = self._shallow(rng) if self.samples == "shallow" else self._draw_all(rng)
            graph = LayerGraph(self._placed(nodes, rng), self.post_affine)
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
        nodes = self._bare(candidate)
        padded = self._padded(nodes, rng)
        for _ in range(MAX_TRIES):
            kind = pick(self.mutations, rng)
            new = self._redrawn(padded, rng) if kind == "redraw" else self._mutated(kind, live_nodes(nodes), rng)
            if new:
                graph = LayerGraph(self._placed(new, rng), candidate.affine)
                if not self.invalid(graph):
                    return graph
        return candidate

    def _redrawn(self, nodes: Nodes, rng: np.random.Generator) -> Nodes:
        position = int(rng.integers(len(nodes)))
        return (*nodes[:position], self._draw(position, rng), *nodes[position + 1 :])

    def _mutated(self, kind: str, nodes: Nodes, rng: np.random.Generator) -> Nodes | None:
        new = MUTATIONS[kind](nodes, self._vocabulary, rng)
        return new if new and len(new) <= max(self.nodes, len(nodes)) else None

    def crossover(self, a: LayerGraph, b: LayerGraph, rng: np.random.Generator) -> LayerGraph:
        """`b` with a part of `a` in it: an argument of a random node becomes a random node of `a` with all below it.

        Live nodes alone take part, as one-point and uniform crossover of the node lists mostly mix dead ones. Drawn
        again while the child is a parent, too large or invalid, up to 1,000 times; then it is `b`.
        """
        parents = [LayerGraph(self._bare(graph), graph.affine) for graph in (a, b)]
        most = max(self.nodes, *(len(parent.nodes) for parent in parents))
        donor, receiver = (parent.canonical for parent in parents)
        for _ in range(MAX_TRIES):
            root = int(rng.integers(len(donor.nodes)))
            part = LayerGraph(donor.nodes[: root + 1]).canonical.nodes
            nodes = list(behind(receiver.nodes, part))
            op, args = nodes[(position := int(rng.integers(len(part), len(nodes))))]
            slot = int(rng.integers(len(args)))
            nodes[position] = Node(op, (*args[:slot], len(part) - 1, *args[slot + 1 :]))
            child = LayerGraph(tuple(nodes), b.affine).canonical
            if len(child.nodes) > most or child in (donor, receiver):
                continue
            placed = LayerGraph(self._placed(child.nodes, rng), b.affine)
            if not self.invalid(placed):
                return LayerGraph(self._padded(placed.nodes, rng), b.affine)
        return b

    def suggest(self, trial: Any) -> LayerGraph:
        """A graph from an Optuna trial (see `TrialForm`); constraints may be broken, see `invalid`."""
        return self._trials.graph(trial)

    def trial_parameters(self, candidate: LayerGraph) -> dict[str, Any] | None:
        return self._trials.parameters(candidate)

    def _shallow(self, rng: np.random.Generator) -> Nodes:
        unary, binary = (self._vocabulary.of_arity(arity) for arity in (1, 2))
        inner = Node(pick(unary, rng), ("x",))
        if rng.random() < 0.5:
            return inner, Node(pick(unary, rng), (0,))
        return inner, Node(pick(unary, rng), ("x",)), Node(pick(binary, rng), (0, 1))

    def _bare(self, graph: LayerGraph) -> Nodes:
        """The nodes without edge parameters."""
        return without_parameters(graph.nodes)[0] if self.edge_parameters else graph.nodes

    def _placed(self, nodes: Nodes, rng: np.random.Generator) -> Nodes:
        """The nodes with parameters on random edges."""
        if not self.edge_parameters:
            return nodes
        free = trainable_edges(nodes)
        most = min(self.edge_parameters, len(free), MAX_NODES - len(nodes))
        count = int(rng.integers(most + 1))
        return with_parameters(nodes, [free[k] for k in rng.choice(len(free), count, replace=False)])

    def _draw(self, position: int, rng: np.random.Generator) -> Node:
        return self._node(*rng.integers(0, self._below[position]).tolist())

    def _draw_all(self, rng: np.random.Generator) -> tuple[Node, ...]:
        """All nodes, by one call of the generator, until the output depends on x: what a search's driver does most."""
        for _ in range(MAX_TRIES):
            draws = rng.integers(0, self._below[: self.nodes]).tolist()
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

    def _padded(self, nodes: Nodes, rng: np.random.Generator) -> Nodes:
        """The nodes behind random dead ones, so that a short graph can grow to the space's size where it is redrawn."""
        missing = max(0, self.nodes - len(nodes)) if "redraw" in self.mutations else 0
        return behind(nodes, [self._draw(position, rng) for position in range(missing)])

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


def _checked_mutations(names: Sequence[str]) -> tuple[str, ...]:
    known = ("redraw", *MUTATIONS)
    if not names:
        raise InputError(f"mutations is empty: name one or several of {', '.join(known)}")
    for name in names:
        if name not in known:
            raise unknown_name("mutation", name, known)
    return tuple(names)


def has_moment(graph: LayerGraph) -> bool:
    """Whether a live node of the graph is a moment: a normalization of its own."""
    return any(OPS[graph.nodes[i].op].moment for i in graph.live)
