"""Mutations that grow, shrink and relabel a graph, in the manner of PANGAEA (arXiv 2006.03179).

Each takes nodes that are all live, and gives such again, or None where what it drew cannot be done. Equal nodes stay
apart, so that one of them can change without the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from normact.spaces.edges import edges, source, spliced
from normact.spaces.graph import Arg, LayerGraph, Node
from normact.spaces.ops import OPS

Nodes = tuple[Node, ...]
Item = TypeVar("Item")

NEUTRAL_ZERO = ("add", "sub")
"""Ops that give their first argument where the second is 0."""

NEUTRAL_ONE = ("mul", "div", "plain_div", "plain_pow")
"""Ops that give it where the second is 1."""

IDEMPOTENT = ("max", "min")
"""Ops that give it where the second is the same."""


@dataclass(frozen=True)
class Vocabulary:
    """What nodes can be made of.

    Args:
        ops: names of ops.
        inputs: names of inputs.
    """

    ops: tuple[str, ...]
    inputs: tuple[str, ...]

    def of_arity(self, arity: int) -> list[str]:
        """The ops that take so many arguments."""
        return [name for name in self.ops if OPS[name].arity == arity]


def pick(items: Sequence[Item], rng: np.random.Generator) -> Item:
    """One of them, each as likely."""
    return items[int(rng.integers(len(items)))]


def live_nodes(nodes: Nodes) -> Nodes:
    """The nodes that the output depends on; unlike in the canonical form, equal ones stay apart."""
    live = LayerGraph(nodes).live
    place = {old: new for new, old in enumerate(live)}
    return tuple(nodes[position].renumbered(place.__getitem__) for position in live)


def insert(nodes: Nodes, vocabulary: Vocabulary, rng: np.random.Generator) -> Nodes | None:
    """A random op on a random edge.

    What the edge had becomes the op's first argument. The second one of `add` and `sub` is 0, of `mul`, `div`,
    `plain_div` and `plain_pow` 1, of `max` and `min` the first again: the result stays what it was until another
    mutation, or a parameter, comes to the new branch. Zero is `zeros(x)` or the input, 1 is `ones(x)` or `exp(zero)`;
    where the vocabulary has neither, and for other ops, further arguments are drawn among inputs and earlier nodes.
    """
    op, edge = pick(vocabulary.ops, rng), pick(edges(nodes), rng)
    value, at = source(nodes, edge), edge.position
    if OPS[op].arity == 1:
        return spliced(nodes, edge, [Node(op, (value,))])
    if op in IDEMPOTENT:
        return spliced(nodes, edge, [Node(op, (value, value))])
    constant = _constant(op, vocabulary)
    if isinstance(constant, Node):
        return spliced(nodes, edge, [constant, Node(op, (value, at))])
    choices: list[Arg] = [constant] if constant else [*vocabulary.inputs, *range(at)]
    others = [pick(choices, rng) for _ in range(OPS[op].arity - 1)]
    return spliced(nodes, edge, [Node(op, (value, *others))])


def _constant(op: str, vocabulary: Vocabulary) -> Node | str | None:
    """The second argument, as an input or a node, with which an op gives its first one; None where there is none."""
    zero = "zero" in vocabulary.inputs
    if op in NEUTRAL_ZERO:
        return Node("zeros", ("x",)) if "zeros" in vocabulary.ops else "zero" if zero else None
    if op in NEUTRAL_ONE and "ones" in vocabulary.ops:
        return Node("ones", ("x",))
    return Node("exp", ("zero",)) if op in NEUTRAL_ONE and zero and "exp" in vocabulary.ops else None


def remove(nodes: Nodes, vocabulary: Vocabulary, rng: np.random.Generator) -> Nodes | None:
    """A random node gives way to one of its arguments, and what is dead then goes; an input alone is no graph."""
    position = int(rng.integers(len(nodes)))
    kept = pick(nodes[position].args, rng)
    if position == len(nodes) - 1:
        return live_nodes(nodes[: kept + 1]) if isinstance(kept, int) else None
    behind = [node.renumbered(lambda arg: kept if arg == position else arg - (arg > position)) for node in nodes]
    return live_nodes((*nodes[:position], *behind[position + 1 :]))


def change(nodes: Nodes, vocabulary: Vocabulary, rng: np.random.Generator) -> Nodes | None:
    """A random node gets another op of as many arguments."""
    position = int(rng.integers(len(nodes)))
    op, args = nodes[position]
    others = [name for name in vocabulary.of_arity(len(args)) if name != op]
    return (*nodes[:position], Node(pick(others, rng), args), *nodes[position + 1 :]) if others else None


def regenerate(nodes: Nodes, vocabulary: Vocabulary, rng: np.random.Generator) -> Nodes | None:
    """Every node gets an op of as many arguments: the form stays, what it computes does not."""
    new = tuple(Node(pick(vocabulary.of_arity(len(args)) or [op], rng), args) for op, args in nodes)
    return new if new != nodes else None


MUTATIONS: dict[str, Callable[[Nodes, Vocabulary, np.random.Generator], Nodes | None]] = {
    "insert": insert,
    "remove": remove,
    "change": change,
    "regenerate": regenerate,
}
"""By name."""
