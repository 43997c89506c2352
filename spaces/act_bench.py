"""Act-Bench's space of activations: binary(unary(x), unary(x)), whose number of distinct functions is known.

27 unary and 7 binary operators (Bingham and Miikkulainen, AQuaSurF, arXiv 2301.05785) give 5,103 expressions. Here
the operators are the plain ones: a division by zero is infinite, a power of a negative number is mostly NaN.
`hard_sigmoid` is clip(x / 6 + 1/2, 0, 1), as in PyTorch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import numpy as np

from normact.spaces.catalogue import CATALOGUE, named
from normact.spaces.constraints import Constraints
from normact.spaces.errors import InputError
from normact.spaces.graph import LayerGraph, Node
from normact.spaces.graph_space import GraphSpace
from normact.spaces.layer import LayerOptions
from normact.spaces.text import parse, to_text

_RENAMED = {
    "zero": "zeros",
    "one": "ones",
    "negative": "neg",
    "swish": "silu",
    "div": "plain_div",
    "pow": "plain_pow",
}

UNARY: dict[str, str] = {
    name: _RENAMED.get(name, name)
    for name in (
        "zero", "one", "identity", "negative", "abs", "reciprocal", "square", "exp", "erf", "erfc", "sinh", "cosh",
        "tanh", "expm1", "sigmoid", "log_sigmoid", "asinh", "atan", "bessel_i0e", "bessel_i1e", "relu", "elu", "selu",
        "swish", "softplus", "softsign", "hard_sigmoid",
    )
}  # fmt: skip
"""The benchmark's name of each unary operator, and ours."""

BINARY: dict[str, str] = {name: _RENAMED.get(name, name) for name in ("add", "sub", "mul", "div", "pow", "max", "min")}
"""The benchmark's name of each binary operator, and ours."""

_NAMES = {**UNARY, **BINARY}
_THEIRS = {ours: theirs for theirs, ours in _NAMES.items()}


def read(text: str) -> LayerGraph:
    """The graph of an expression in the benchmark's notation, such as `max(relu(x),cosh(elu(x)))`, nested at will.

    Raises:
        InputError: naming the position (from 0) of the first thing that is wrong.
    """
    return parse(text, _NAMES)


def write(graph: LayerGraph) -> str:
    """The expression in the benchmark's notation that `read` reads.

    Raises:
        InputError: the graph has an op that the benchmark lacks, another input than x, or an affine.
    """
    if not writable(graph):
        raise InputError(f"Act-Bench has no notation for {graph}: it knows x, {', '.join(_NAMES)}")
    return to_text(graph, _THEIRS).replace(", ", ",")


def writable(graph: LayerGraph) -> bool:
    """Whether the benchmark's notation has all that the graph uses."""
    return not graph.affine and set(graph.inputs) <= {"x"} and all(graph.nodes[i].op in _THEIRS for i in graph.live)


def expressions() -> Iterator[str]:
    """All 5,103 expressions binary(unary(x), unary(x)), in the benchmark's notation."""
    for binary, left, right in product(BINARY, UNARY, UNARY):
        yield f"{binary}({left}(x),{right}(x))"


class ActBenchSpace(GraphSpace):
    """The 5,103 expressions binary(unary(x), unary(x)), as activations.

    A sample draws each of the three operators uniformly; a mutation redraws one of them; a crossover takes the
    first one or two of one parent and the rest of the other. Catalogue layers can be judged and started from, but
    their child is a fresh sample: all that the space proposes are the 5,103. Texts are in the benchmark's
    notation, so `div` is not guarded.

    Args:
        options: of the fixed norm.
        layouts: as in `GraphSpace`.
        causal: as in `GraphSpace`.
        norm: as in `GraphSpace`: what stands in front of the activation at `norm_act` sites; empty for nothing.
        constraints: limits on graphs.

    Raises:
        InputError: as `GraphSpace` does.
    """

    def __init__(
        self,
        options: LayerOptions | None = None,
        layouts: Sequence[str] = ("NCHW", "NLC"),
        causal: bool = False,
        norm: str = "",
        constraints: Constraints | None = None,
    ) -> None:
        super().__init__(
            list(_NAMES.values()),
            nodes=3,
            inputs=("x",),
            options=options,
            post_affine=False,
            layouts=layouts,
            causal=causal,
            norm=norm,
            constraints=constraints,
        )

    def mutate(self, candidate: LayerGraph, rng: np.random.Generator) -> LayerGraph:
        return super().mutate(self._of_three(candidate, rng), rng)

    def crossover(self, a: LayerGraph, b: LayerGraph, rng: np.random.Generator) -> LayerGraph:
        cut = int(rng.integers(1, 3))
        child = LayerGraph(self._of_three(a, rng).nodes[:cut] + self._of_three(b, rng).nodes[cut:])
        return b if self.invalid(child) else child

    def suggest(self, trial: Any) -> LayerGraph:
        ops = (trial.suggest_categorical(f"op{k}", self._choices(k)) for k in range(3))
        return LayerGraph(tuple(_node(k, op) for k, op in enumerate(ops)))

    def trial_parameters(self, candidate: LayerGraph) -> dict[str, Any] | None:
        nodes = self._operators(candidate)
        return {f"op{k}": node.op for k, node in enumerate(nodes)} if nodes else None

    def _draw(self, position: int, rng: np.random.Generator) -> Node:
        choices = self._choices(position)
        return _node(position, choices[int(rng.integers(len(choices)))])

    def _draw_all(self, rng: np.random.Generator) -> tuple[Node, ...]:
        return tuple(self._draw(position, rng) for position in range(3))

    def _choices(self, position: int) -> list[str]:
        arity = 1 if position < 2 else 2
        choices = [name for name in self.ops if self._arity[name] == arity]
        if not choices:
            raise InputError(f"constraints.barred leaves no op with {arity} argument(s); bar fewer")
        return choices

    def _of_three(self, graph: LayerGraph, rng: np.random.Generator) -> LayerGraph:
        """The expression with a node for each operator, also where both sides are equal; a sample for others."""
        nodes = self._operators(graph)
        return LayerGraph(nodes) if nodes else self.sample(rng)

    def _operators(self, graph: LayerGraph) -> tuple[Node, ...]:
        """The three nodes of binary(unary(x), unary(x)); none where the graph is no such expression."""
        root = graph.nodes[-1]
        arguments = [graph.nodes[a] for a in root.args if isinstance(a, int)]
        nodes = (*arguments, Node(root.op, (0, 1)))
        if graph.affine or len(arguments) != 2 or any(node.args != ("x",) for node in arguments):
            return ()
        return nodes if all(node.op in self.ops for node in nodes) else ()

    def parse(self, text: str) -> LayerGraph:
        """A catalogue name or an expression in the benchmark's notation."""
        return named(text).graph if text in CATALOGUE else read(text)

    def describe(self, candidate: LayerGraph) -> str:
        return write(candidate) if writable(candidate) else str(candidate)


def _node(position: int, op: str) -> Node:
    return Node(op, ("x",) if position < 2 else (0, 1))
