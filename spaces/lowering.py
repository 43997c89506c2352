"""A layer graph as straight-line steps in which whole tensors are touched as seldom as possible.

Three things are done to a graph on the way. Moments are put together from each sample's channels ("planes"): one
pass gives the mean and the variance of every plane, and the moments over groups, layers and batches follow from those
few numbers, exactly. Factors and summands that are constant over a plane (statistics, parameters) are gathered, so
that a whole chain of them costs one multiply-add. Divisors that cannot be small lose their guard.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from normact.spaces.graph import Arg, LayerGraph
from normact.spaces.inputs import trainable
from normact.spaces.layer import running_name
from normact.spaces.moments import Moment
from normact.spaces.ops import OPS

Kind = Literal["plane", "position", "full"]
"""What a value has an entry for: every sample and channel, every sample and position, or all three."""

SCALED = "scaled"
"""The op of a step that is core * scale + shift; an absent part is an empty name."""


class Value(NamedTuple):
    """A value that has a name in the printed code."""

    name: str
    kind: Kind


X = Value("x", "full")


class Scaled(NamedTuple):
    """A full value times a small one plus a small one, not computed yet; None where there is no such part."""

    core: Value
    scale: Value | None
    shift: Value | None

    @property
    def kind(self) -> Kind | None:
        """Of the small parts."""
        part = self.scale or self.shift
        return part.kind if part else None


class Step(NamedTuple):
    """A pointwise step: `target = op(*args)`; `guarded` where a division keeps its guard."""

    target: Value
    op: str
    args: tuple[Value, ...]
    guarded: bool = False


class Statistic(NamedTuple):
    """A moment of a full value, by name; `buffer` is the running one's name for a batch moment, else empty."""

    target: Value
    moment: Moment
    of: Value
    buffer: str


@dataclass
class Lowered:
    """The steps in an order in which they run.

    Args:
        vectors: attributes of the trainable inputs, and `weight` and `bias` where there is an affine.
        zero: whether the input `zero` is used.
        steps: pointwise steps and statistics.
        output: the step's value that is the layer's output, of any kind.
    """

    vectors: tuple[str, ...]
    zero: bool
    steps: list[Step | Statistic] = field(default_factory=list)
    output: Value = X

    @property
    def moments(self) -> list[Statistic]:
        """The statistics among the steps."""
        return [step for step in self.steps if isinstance(step, Statistic)]

    @property
    def single(self) -> bool:
        """Whether all statistics are of x itself, over sets made of whole planes: then the layer is one pass for
        the moments, a few numbers, and one pass for the rest."""
        return all(s.of.name == "x" and s.moment.index_set != "channel" for s in self.moments)

    def small(self) -> list[Step]:
        """The pointwise steps on planes and positions."""
        return [step for step in self.steps if isinstance(step, Step) and step.target.kind != "full"]

    def full(self) -> list[Step]:
        """The pointwise steps on whole tensors."""
        return [step for step in self.steps if isinstance(step, Step) and step.target.kind == "full"]

    def coefficients(self) -> list[Value]:
        """The small values that full steps use."""
        used = [arg for step in self.full() for arg in step.args if arg.kind != "full" and arg.name]
        return list(dict.fromkeys(used))

    @property
    def guards(self) -> bool:
        """Whether some division keeps its guard."""
        return any(isinstance(step, Step) and step.guarded for step in self.steps)


def lower(graph: LayerGraph, guards: bool = False) -> Lowered:
    """The steps of a graph's canonical form.

    Args:
        graph: the layer.
        guards: whether all divisions keep their guards, as they have to where eps is not above 1e-10.
    """
    return _Lowering(graph.canonical, guards).run()


NONE = Value("", "plane")
"""Stands for an absent scale or shift in a `scaled` step."""


class _Lowering:
    def __init__(self, graph: LayerGraph, guards: bool) -> None:
        self.graph = graph
        self.guards = guards
        names = [item.attribute for name in graph.trainables if (item := trainable(name))]
        self.found = Lowered((*names, *(("weight", "bias") if graph.affine else ())), "zero" in graph.inputs)
        self.values: dict[Arg, Value | Scaled] = {"x": X, "zero": Value("zero", "plane")}
        for name, attribute in zip(graph.trainables, names, strict=True):
            self.values[name] = Value(attribute, "plane")
        self.signs: dict[Arg, Sign] = {}
        self.counts: dict[str, int] = {}
        self.names: dict[Arg, str] = {}

    def run(self) -> Lowered:
        for i, node in enumerate(self.graph.nodes):
            self.signs[i] = sign_of(node.op, [self._sign(a) for a in node.args], node.args)
            self.names[i] = self.fresh(node.op)
            moment = OPS[node.op].moment
            self.values[i] = self.moment(i, moment) if moment else self.pointwise(i)
        last = len(self.graph.nodes) - 1
        value: Value | Scaled = self.values[last]
        if self.graph.affine:
            weight, bias = Value("weight", "plane"), Value("bias", "plane")
            if isinstance(value, Value) and is_small(value):
                value = self.emit("y", "add", (self.emit(self.fresh("mul"), "mul", (value, weight)), bias))
            else:
                value = self.plus(self.times(value, weight), bias)
        self.found.output = self.whole(value, "y") if isinstance(value, Scaled) else value
        return self.found

    def fresh(self, base: str) -> str:
        self.counts[base] = self.counts.get(base, 0) + 1
        return f"{base}_{self.counts[base]}"

    def _sign(self, arg: Arg) -> Sign:
        return "any" if self.guards else self.signs.get(arg, "any")

    def emit(self, name: str, op: str, args: tuple[Value, ...], guarded: bool = False) -> Value:
        target = Value(name, joined(args))
        self.found.steps.append(Step(target, op, args, guarded))
        return target

    def whole(self, value: Value | Scaled, name: str) -> Value:
        """The value under a name; computed here where it was put off."""
        if isinstance(value, Value):
            return value
        if value.scale is None and value.shift is None:
            return value.core
        return self.emit(name, SCALED, (value.core, value.scale or NONE, value.shift or NONE))

    def named(self, arg: Arg) -> Value:
        """An argument under a name, from here on the same for all who use it."""
        value = self.whole(self.values[arg], self.names.get(arg, str(arg)))
        self.values[arg] = value
        return value

    def moment(self, i: int, moment: Moment) -> Value:
        of = self.named(self.graph.nodes[i].args[0])
        if of.kind != "full":
            small, of = of, Value(self.fresh("whole"), "full")
            self.found.steps.append(Step(of, "whole", (small,)))
        taken = [s.buffer for s in self.found.moments if s.buffer]
        buffer = running_name(moment, taken) if moment.index_set == "batch" else ""
        target = Value(self.names[i], "position" if moment.index_set == "channel" else "plane")
        self.found.steps.append(Statistic(target, moment, of, buffer))
        return target

    def pointwise(self, i: int) -> Value | Scaled:
        op, args = self.graph.nodes[i]
        values = [self.values[a] for a in args]
        if any(not is_small(value) for value in values):
            put_off = self.linear(op, args, values)
            if put_off is not None:
                return put_off
        guarded = op == "div" and self._sign(args[1]) != "away"
        return self.emit(self.names[i], op, tuple(self.named(a) for a in args), guarded)

    def linear(self, op: str, args: tuple[Arg, ...], values: list[Value | Scaled]) -> Scaled | None:
        """Ops with small values, put off; None for all others."""
        a, b = values[0], values[-1]
        if op == "neg":
            return self.negative(a)
        if isinstance(a, Value) and is_small(a):
            if op == "sub":
                minus = self.negative(b)
                return self.plus(minus, a) if minus else None
            return {"mul": self.times, "add": self.plus}[op](b, a) if op in ("mul", "add") else None
        if not (isinstance(b, Value) and is_small(b)):
            return None
        if op == "mul":
            return self.times(a, b)
        if op in ("add", "sub"):
            return self.plus(a, b if op == "add" else self.small("neg", b))
        if op == "div":
            return self.times(a, self.small("inverse", b, guarded=self._sign(args[1]) != "away"))
        return None

    def small(self, op: str, *args: Value, guarded: bool = False) -> Value:
        """A step on small values under a new name."""
        base = {"mul": "scale", "div": "scale", "inverse": "scale"}.get(op, "shift")
        return self.emit(self.fresh(base), op, args, guarded)

    def negative(self, value: Value | Scaled) -> Scaled | None:
        """Where there is a factor that can be negated."""
        scaled = as_scaled(value)
        if scaled.scale is None:
            return None
        shift = self.small("neg", scaled.shift) if scaled.shift else None
        return Scaled(scaled.core, self.small("neg", scaled.scale), shift)

    def times(self, value: Value | Scaled, by: Value) -> Scaled:
        scaled = self.ready(value, by.kind)
        scale = self.small("mul", scaled.scale, by) if scaled.scale else by
        return Scaled(scaled.core, scale, self.small("mul", scaled.shift, by) if scaled.shift else None)

    def plus(self, value: Value | Scaled, more: Value) -> Scaled:
        scaled = self.ready(value, more.kind)
        shift = self.small("add", scaled.shift, more) if scaled.shift else more
        return Scaled(scaled.core, scaled.scale, shift)

    def ready(self, value: Value | Scaled, kind: Kind) -> Scaled:
        """The value as one that parts of this kind can be gathered on."""
        scaled = as_scaled(value)
        if scaled.kind in (None, kind):
            return scaled
        return Scaled(self.whole(scaled, self.fresh("part")), None, None)


Sign = Literal["any", "not_negative", "away"]
"""What is known of a value: nothing, at least 0, or above 1e-5, which is where the guard of a division begins."""


def sign_of(op: str, signs: list[Sign], args: tuple[Arg, ...]) -> Sign:
    """What is known of an op's value from what is known of its arguments, for eps above 1e-10."""
    moment = OPS[op].moment
    if moment is not None:
        return "any" if moment.statistic == "mean" else "away"
    if op == "exp" and args == ("zero",):
        return "away"
    if (op == "max" and "away" in signs) or (op in ("add", "min") and "away" in signs and "any" not in signs):
        return "away" if op != "min" or signs == ["away", "away"] else "not_negative"
    if op in ("exp", "sigmoid", "square", "abs", "relu", "softplus"):
        return "not_negative"
    if (op == "max" and "not_negative" in signs) or (op in ("add", "mul", "min") and "any" not in signs):
        return "not_negative"
    return "any"


def is_small(value: Value | Scaled) -> bool:
    """Whether it has fewer entries than x."""
    return isinstance(value, Value) and value.kind != "full"


def as_scaled(value: Value | Scaled) -> Scaled:
    """A full value with no factor and no summand yet."""
    return value if isinstance(value, Scaled) else Scaled(value, None, None)


def joined(args: tuple[Value, ...]) -> Kind:
    """The kind of a pointwise function of values of these kinds."""
    kinds = {arg.kind for arg in args if arg.name}
    return kinds.pop() if len(kinds) == 1 else "full"
