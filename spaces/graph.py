"""`LayerGraph`: the genotype of a layer, as a value.

A graph is a tuple of nodes; each names an op and its arguments, which are earlier nodes (by position) or
inputs (by name). The last node is the output. Nodes that the output does not use are allowed: they are the
neutral material that mutation works with, and the canonical form drops them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from normact.spaces.errors import InputError
from normact.spaces.inputs import another, check_input, trainable
from normact.spaces.ops import OP_TABLE_VERSION, OPS, find_op

Arg = int | str
"""An argument: the position of an earlier node, or the name of an input."""

MAX_NODES = 256
"""More nodes than this are refused: no layer that trains needs them, and hostile input might."""


class Node(NamedTuple):
    """One operation and what it is applied to."""

    op: str
    args: tuple[Arg, ...]

    def renumbered(self, place: Callable[[int], Arg]) -> Node:
        """The node with `place` of each argument that is a position; inputs stay."""
        return Node(self.op, tuple([place(arg) if isinstance(arg, int) else arg for arg in self.args]))


def behind(nodes: Sequence[Node], front: Sequence[Node]) -> tuple[Node, ...]:
    """The nodes after others, which they do not use."""
    return (*front, *[node.renumbered(lambda arg: arg + len(front)) for node in nodes])


@dataclass(frozen=True)
class LayerGraph:
    """An immutable computation graph; equal when its nodes are equal.

    Args:
        nodes: at least one node, arguments before the nodes that use them.
        affine: whether a trainable per-channel scale (1) and shift (0) follow the output, as EvoNorm appends.

    The constructor trusts its input: `from_json` and `parse` check theirs.
    """

    nodes: tuple[Node, ...]
    affine: bool = False

    @cached_property
    def live(self) -> tuple[int, ...]:
        """Positions of the nodes that the output depends on, in order."""
        used = {len(self.nodes) - 1}
        for position in range(len(self.nodes) - 1, -1, -1):
            if position in used:
                used.update(arg for arg in self.nodes[position].args if isinstance(arg, int))
        return tuple(sorted(used))

    @cached_property
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs that the output depends on, sorted."""
        return tuple(sorted({a for i in self.live for a in self.nodes[i].args if isinstance(a, str)}))

    @property
    def reaches_x(self) -> bool:
        """Whether the output depends on x."""
        return "x" in self.inputs

    @property
    def trainables(self) -> tuple[str, ...]:
        """Names of the trainable inputs that the output depends on, sorted; without the affine's two."""
        return tuple(name for name in self.inputs if trainable(name))

    @cached_property
    def canonical(self) -> LayerGraph:
        """The canonical form: dead nodes dropped, commutative arguments sorted, equal subexpressions merged.

        Two graphs with the same canonical form compute the same function. The converse does not hold:
        `neg(neg(x))` is not simplified; the fingerprint finds those.
        """
        digests: dict[int, str] = {}
        args_of: dict[int, tuple[Arg, ...]] = {}
        first: dict[str, int] = {}
        for i in self.live:
            op, args = self.nodes[i]
            args = tuple(first[digests[a]] if isinstance(a, int) else a for a in args)
            if OPS[op].commutative:
                args = tuple(sorted(args, key=lambda a: digests[a] if isinstance(a, int) else a))
            text = ",".join([op, *(digests[a] if isinstance(a, int) else a for a in args)])
            digests[i] = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
            args_of[i] = args
            first.setdefault(digests[i], i)
        order: list[int] = []
        _post_order(len(self.nodes) - 1, args_of, order, set())
        place = {old: new for new, old in enumerate(order)}
        nodes = tuple(
            Node(self.nodes[i].op, tuple(place[a] if isinstance(a, int) else a for a in args_of[i])) for i in order
        )
        return LayerGraph(nodes, self.affine)

    def key(self, options: str = "") -> str:
        """The structural identity: a hash of the canonical form, `options` and the op table's version.

        Args:
            options: text that stands for whatever else decides what the graph computes (groups, eps, ...).
        """
        graph = self.canonical
        text = repr((OP_TABLE_VERSION, options, graph.affine, [tuple(n) for n in graph.nodes]))
        return hashlib.blake2b(text.encode(), digest_size=10).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """Plain data: `{"nodes": [["mul", "x", 0], ...], "affine": bool}`."""
        return {"nodes": [[n.op, *n.args] for n in self.nodes], "affine": self.affine}

    @staticmethod
    def from_json(data: Any) -> LayerGraph:
        """The graph that `to_json` gave, checked.

        Raises:
            InputError: the data are of another form, name an unknown op or input, give an op too few or too
                many arguments, or refer to a node that is not earlier.
        """
        if not isinstance(data, dict) or not isinstance(data.get("nodes"), list):
            raise InputError(f"a graph is {{'nodes': [...], 'affine': bool}}, got {str(data)[:80]}")
        if not isinstance(data.get("affine", False), bool):
            raise InputError(f"a graph's 'affine' must be true or false, got {data['affine']!r}")
        rows = data["nodes"]
        if not 1 <= len(rows) <= MAX_NODES:
            raise InputError(f"a graph has 1 to {MAX_NODES} nodes, got {len(rows)}")
        nodes = tuple(_node(row, position) for position, row in enumerate(rows))
        return LayerGraph(nodes, data.get("affine", False))

    def __str__(self) -> str:
        from normact.spaces.text import to_text  # text builds graphs

        return to_text(self)

    def compose(self, inner: LayerGraph) -> LayerGraph:
        """This graph applied to the output of `inner`, with this graph's affine. `inner` may have none.

        Each keeps trainables of its own: where both have a `v1`, this graph's becomes `v1_2`.

        Raises:
            InputError: `inner` has an affine: it could not be kept.
        """
        if inner.affine:
            raise InputError(f"cannot put a layer behind {inner}: drop its affine, or write it out with v1 and v0")
        shift = len(inner.nodes)
        own: dict[str, str] = {}
        for name in self.trainables:
            taken = {*inner.trainables, *self.trainables, *own.values()}
            own[name] = another(name, taken) if name in inner.trainables else name

        def moved(arg: Arg) -> Arg:
            if isinstance(arg, int):
                return arg + shift
            return shift - 1 if arg == "x" else own.get(arg, arg)

        outer = tuple(Node(n.op, tuple(moved(a) for a in n.args)) for n in self.nodes)
        return LayerGraph(inner.nodes + outer, self.affine)


def _post_order(root: int, args_of: dict[int, tuple[Arg, ...]], order: list[int], seen: set[int]) -> None:
    """Append the nodes below `root`, arguments first and left to right, without recursion."""
    stack: list[tuple[int, bool]] = [(root, False)]
    while stack:
        node, done = stack.pop()
        if done:
            order.append(node)
            continue
        if node in seen:
            continue
        seen.add(node)
        stack.append((node, True))
        stack.extend((a, False) for a in reversed(args_of[node]) if isinstance(a, int) and a not in seen)


def _node(row: Any, position: int) -> Node:
    if not isinstance(row, Sequence) or isinstance(row, str) or not row or not isinstance(row[0], str):
        raise InputError(f"node {position} is not [op, argument, ...]: {str(row)[:80]}")
    op = find_op(row[0], f" at node {position}")
    args = tuple(row[1:])
    if len(args) != op.arity:
        raise InputError(f"op {op.name!r} at node {position} takes {op.arity} argument(s), got {len(args)}")
    for arg in args:
        if isinstance(arg, str):
            check_input(arg, f" at node {position}")
        elif isinstance(arg, bool) or not isinstance(arg, int) or not 0 <= arg < position:
            earlier = f"only nodes 0 to {position - 1} come" if position else "no node comes"
            raise InputError(f"node {position} refers to {str(arg)[:40]}; {earlier} before it")
    return Node(op.name, args)
