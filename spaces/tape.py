"""Run a graph layer forward and back without autograd's help, and with far fewer passes over memory.

`GraphLayer` takes this way for large float32 tensors on a CPU, when every op of its graph has an `Adjoint`. To
autograd the layer is then a single function. When that is differentiated twice, the second time goes through the
definitions that `GraphLayer` interprets otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from normact.spaces.adjoints import ADJOINTS, AFFINE, Adjoint
from normact.spaces.graph import LayerGraph
from normact.spaces.inputs import trainable
from normact.spaces.moments import Moment, mean, reduced_axes
from normact.spaces.ops import OPS

SMALLEST = 16384
"""Entries of x from which this pays: below, most of the time goes into calls, and those are as many."""


class Step(NamedTuple):
    """One node: a pointwise op or a moment of earlier values, given by place."""

    args: tuple[int, ...]
    adjoint: Adjoint | None
    moment: Moment | None
    node: int


@dataclass(frozen=True, eq=False)
class Plan:
    """A graph as steps. Values are numbered: x, then `vectors`, then a zero where there is one, then the steps'."""

    vectors: tuple[str, ...]
    zero: bool
    steps: tuple[Step, ...]
    ways_back: dict[Any, list[_Back]] = field(default_factory=dict, repr=False)

    @property
    def first(self) -> int:
        """The number of the first step's value."""
        return 1 + len(self.vectors) + self.zero

    def flows(self, needs: Sequence[bool], running: bool) -> list[bool]:
        """Which values pass a gradient on, when these of x and the vectors need one."""
        flows = [*needs, *[False] * self.zero]
        for step in self.steps:
            fixed = running and step.moment is not None and step.moment.index_set == "batch"
            flows.append(not fixed and any(flows[i] for i in step.args))
        return flows


class _Back(NamedTuple):
    """A step on the way back; `targets` are its arguments that need a gradient: (which, value, shape to sum to)."""

    step: Step
    value: int
    needs: tuple[bool, ...]
    targets: tuple[tuple[int, int, torch.Size | None], ...]


@lru_cache(maxsize=256)
def plan_of(graph: LayerGraph) -> Plan | None:
    """The plan of a canonical graph; None where an op has no adjoint."""
    names = {name: item.attribute for name in graph.trainables if (item := trainable(name))}
    affine = ("weight", "bias") if graph.affine else ()
    vectors = (*names.values(), *affine)
    place: dict[int | str, int] = {"x": 0, **{name: i + 1 for i, name in enumerate(names)}}
    start = 1 + len(vectors)
    if "zero" in graph.inputs:
        place["zero"] = start
        start += 1
    steps: list[Step] = []
    for i, node in enumerate(graph.nodes):
        op = OPS[node.op]
        adjoint = ADJOINTS.get(op.function) if op.function else None
        if op.moment is None and adjoint is None:
            return None
        steps.append(Step(tuple(place[a] for a in node.args), adjoint, op.moment, i))
        place[i] = start + i
    if affine:
        last, weight = start + len(steps) - 1, len(vectors) - 1
        steps.append(Step((last, weight, weight + 1), AFFINE, None, len(steps)))
    return Plan(vectors, "zero" in graph.inputs, tuple(steps))


class Frame(NamedTuple):
    """What a layer lends to its plan.

    Args:
        axis: of the channels.
        groups: of channels.
        eps: in the roots.
        running: the value that stands for a batch moment before its root, by node; None to take the batch's.
        keep: told a batch moment's value before its root, by node, and of how many entries a channel.
    """

    axis: int
    groups: int
    eps: float
    running: Callable[[int], Tensor] | None
    keep: Callable[[int, Tensor, int], None]


class Tape:
    """One run of a plan; keeps what the way back needs.

    Args:
        plan: the steps.
        frame: of the layer.
        x: the input.
        vectors: the plan's vectors, each of (channels,) or (1,).
    """

    def __init__(self, plan: Plan, frame: Frame, x: Tensor, vectors: Sequence[Tensor]) -> None:
        self.plan = plan
        self.frame = frame
        shape = [1] * x.dim()
        shape[frame.axis] = -1
        self.values = [x, *(vector.view(shape) for vector in vectors)]
        if plan.zero:
            self.values.append(x.new_zeros((1,) * x.dim()))
        self.kept: list[Any] = []
        values, shape_of_x = self.values, x.shape
        for step in plan.steps:
            if step.adjoint:
                value, kept = step.adjoint.forward(*[values[i] for i in step.args])
            else:
                value, kept = self._moment(step, values[step.args[0]].expand(shape_of_x))
            values.append(value)
            self.kept.append(kept)

    def output(self) -> Tensor:
        """In the shape of x; what is kept is another view of it, so that the two do not keep each other alive."""
        value, shape = self.values[-1], self.values[0].shape
        if value.shape != shape:
            return value.expand(shape).clone()
        self.values[-1] = value.detach()
        return value

    def _moment(self, step: Step, x: Tensor) -> tuple[Tensor, Any]:
        """The moment; kept: what half the derivative before its root is a multiple of, entry by entry."""
        frame, moment = self.frame, step.moment
        assert moment is not None
        linear = None
        if moment.index_set == "batch" and frame.running:
            raw = frame.running(step.node)
        else:
            if moment.statistic != "mean":  # the derivative of the mean inside a variance sums to zero
                linear = x if moment.statistic == "rms" else x - self._mean(moment.index_set, x)
            raw = self._mean(moment.index_set, x if linear is None else linear.square())
            if moment.index_set == "batch":
                frame.keep(step.node, raw, x.numel() // raw.numel())
        return raw if moment.statistic == "mean" else torch.sqrt(raw + frame.eps), linear

    def _mean(self, index_set: str, x: Tensor) -> Tensor:
        """The mean over an index set, one entry for each that shares it; for groups one for each channel."""
        if index_set != "group":
            return x.mean(reduced_axes(index_set, self.frame.axis, x.dim()), keepdim=True)
        # First each channel's: adding up short stretches of memory, a group at a time, is slow.
        positions = reduced_axes("instance", self.frame.axis, x.dim())
        return self._over_groups(x.mean(positions, keepdim=True) if positions else x, mean)

    def _over_groups(self, value: Tensor, statistic: Callable[[Tensor, tuple[int, ...]], Tensor]) -> Tensor:
        axis = self.frame.axis
        grouped = value.unflatten(axis, (self.frame.groups, -1))
        return statistic(grouped, (axis + 1,)).expand(grouped.shape).flatten(axis, axis + 1)

    def gradients(self, grad: Tensor, needs: tuple[bool, ...]) -> list[Tensor | None]:
        """Gradients of x and the vectors, where needed, from that of the output."""
        values = self.values
        x, last = values[0], values[-1]
        sums = _Sums(len(values))
        sums.add(len(values) - 1, grad if last.shape == x.shape else grad.sum_to_size(last.shape))
        key = (x.shape, self.frame.axis, needs, self.frame.running is None)
        way = self.plan.ways_back.get(key)
        if way is None:
            way = self.plan.ways_back[key] = self._way_back(needs)
        for back in way:
            self._back(back, sums)
        return [self._shaped(i, sums.all[i]) if need else None for i, need in enumerate(needs)]

    def _shaped(self, i: int, grad: Tensor | None) -> Tensor | None:
        if grad is None:
            return None
        return grad.expand(self.values[0].shape) if i == 0 else grad.reshape(-1)

    def _way_back(self, needs: tuple[bool, ...]) -> list[_Back]:
        plan, values = self.plan, self.values
        flows = plan.flows(needs, self.frame.running is not None)
        way = []
        for number, step in reversed(list(enumerate(plan.steps, plan.first))):
            if flows[number]:
                from_shape = values[number].shape if step.adjoint else values[0].shape
                targets = tuple(
                    (which, i, None if values[i].shape == from_shape else values[i].shape)
                    for which, i in enumerate(step.args)
                    if flows[i]
                )
                way.append(_Back(step, number, tuple(flows[i] for i in step.args), targets))
        return way

    def _back(self, back: _Back, sums: _Sums) -> None:
        grad = sums.take(back.value)
        if grad is None:
            return
        step, values = back.step, self.values
        value, kept = values[back.value], self.kept[back.value - self.plan.first]
        if grad.shape != value.shape:
            grad = grad.expand(value.shape)
        if step.moment:
            _, i, shape = back.targets[0]
            one = self._moment_back(step.moment, grad, value, kept)
            sums.add(i, one.expand(values[0].shape).sum_to_size(shape) if shape else one)
            return
        assert step.adjoint is not None
        parts = step.adjoint.backward(grad, value, kept, [values[i] for i in step.args], back.needs)
        for which, i, shape in back.targets:
            part = parts[which]
            assert part is not None
            sums.add(i, part.sum_to_size(shape) if shape else part)

    def _moment_back(self, moment: Moment, grad: Tensor, value: Tensor, linear: Tensor | None) -> Tensor:
        """The gradient of a moment's argument; that of a mean is one entry for all that it is the mean of."""
        count = self.values[0].numel() // grad.numel()
        if moment.statistic != "mean":
            grad = grad / value  # the 2 under the root and that of the square cancel
        if moment.index_set == "group":
            grad = self._over_groups(grad, mean)
        grad = grad / count
        return grad if linear is None else linear * grad


class _Sums:
    """Gradients of values, added up; one may be smaller than its value, and then counts for all it broadcasts to."""

    def __init__(self, size: int) -> None:
        self.all: list[Tensor | None] = [None] * size
        self._own = [False] * size

    def add(self, i: int, part: Tensor) -> None:
        """Count a gradient in."""
        so_far = self.all[i]
        if so_far is None:
            self.all[i] = part
        elif self._own[i] and so_far.numel() >= part.numel():
            so_far.add_(part)
        else:  # it may be another value's gradient too: from here on it is this one's alone
            self.all[i], self._own[i] = so_far + part, True

    def take(self, i: int) -> Tensor | None:
        """The sum, which is then forgotten."""
        found, self.all[i] = self.all[i], None
        return found


class _Taped(torch.autograd.Function):
    """A layer as one function of x and its vectors."""

    @staticmethod
    def forward(ctx: Any, plan: Plan, frame: Frame, replay: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
        ctx.tape = Tape(plan, frame, tensors[0], tensors[1:])
        ctx.replay = replay
        ctx.save_for_backward(*tensors)
        ctx.version = ctx.tape.values[-1]._version
        return ctx.tape.output()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        tensors, needs = ctx.saved_tensors, ctx.needs_input_grad[3:]
        changed = ctx.tape.values[-1]._version != ctx.version  # somebody wrote into the output
        if torch.is_grad_enabled() or changed:
            return None, None, None, *_replayed(ctx.replay, tensors, needs, grad)
        return None, None, None, *ctx.tape.gradients(grad, tuple(needs))


def _replayed(
    replay: Callable[..., Tensor], tensors: Sequence[Tensor], needs: Sequence[bool], grad: Tensor
) -> list[Tensor | None]:
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        wanted = [tensor for tensor, need in zip(tensors, needs, strict=True) if need]
        found = iter(torch.autograd.grad(replay(*tensors), wanted, grad, create_graph=again, allow_unused=True))
    return [next(found) if need else None for need in needs]


def serves(tensor: Tensor) -> bool:
    """Whether a tensor is of the kind that this is made for."""
    return tensor.dtype == torch.float32 and tensor.device.type == "cpu"


def pays(x: Tensor) -> bool:
    """Whether to run layers on such an input this way."""
    if torch.compiler.is_compiling():  # first: an export would bind the batch's size to the next condition
        return False
    return serves(x) and x.numel() >= SMALLEST and not torch.is_autocast_enabled("cpu")


def run(plan: Plan, frame: Frame, replay: Callable[..., Tensor], x: Tensor, vectors: Sequence[Tensor]) -> Tensor:
    """The layer's output.

    Args:
        plan: the graph.
        frame: the layer.
        replay: of x and the vectors: computes the same by autograd and keeps no statistics. Derivatives of
            derivatives come from it.
        x: the input.
        vectors: the plan's vectors.
    """
    if torch.is_grad_enabled():
        return _Taped.apply(plan, frame, replay, x, *vectors)
    return Tape(plan, frame, x, vectors).output()
