"""The way back through a lowered layer, printed: gradients of x and of the coefficients, in few passes over memory."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence

from normact.spaces.lowering import SCALED, Lowered, Step, Value

IN_PLACE: dict[str, str] = {
    "add": "{0}.add_({1})",
    "sub": "{0}.sub_({1})",
    "mul": "{0}.mul_({1})",
    "div": "{0}.div_({1})",
    "max": "torch.maximum({0}, {1}, out={0})",
    "min": "torch.minimum({0}, {1}, out={0})",
    "neg": "{0}.neg_()",
    "abs": "{0}.abs_()",
    "square": "{0}.square_()",
    "exp": "{0}.exp_()",
    "sigmoid": "{0}.sigmoid_()",
    "tanh": "{0}.tanh_()",
    "relu": "{0}.relu_()",
    "silu": "torch.nn.functional.silu({0}, inplace=True)",
}
"""How an op is written over its first argument."""

_EITHER = ("add", "mul", "max", "min")
"""Ops that may be written over their second argument too."""

_OWN = ("exp", "sigmoid", "tanh", "relu", "div")
"""Ops whose gradient wants their value."""

_ARGUMENTS = ("mul", "max", "min", "abs", "square", "silu", "gelu")
"""Ops whose gradient wants their arguments."""

_ATEN = {
    "sigmoid": "torch.ops.aten.sigmoid_backward({d}, {t})",
    "tanh": "torch.ops.aten.tanh_backward({d}, {t})",
    "relu": "torch.ops.aten.threshold_backward({d}, {t}, 0)",
    "silu": "torch.ops.aten.silu_backward({d}, {a})",
    "gelu": "torch.ops.aten.gelu_backward({d}, {a})",
    "abs": "torch.sign({a}).mul_({d})",
    "square": "({d} * {a}).mul_(2)",
}
"""Gradients of ops with one argument `a`, value `t` and gradient `d`."""

KNOWN = frozenset({*IN_PLACE, "gelu", SCALED})
"""Ops whose gradient can be printed."""


def can_be_written(lowered: Lowered) -> bool:
    """Whether the way back can be printed: one pass for the moments, one for the rest, and only known ops in that."""
    full = lowered.full()
    ops = all(step.op in KNOWN and not step.guarded for step in full)
    planes = all(arg.kind != "position" for step in full for arg in step.args)
    return lowered.single and ops and planes and lowered.output.kind == "full" and bool(full)


Print = Callable[[Step], str]
"""The expression of a step, as new tensor."""


def over_memory(steps: Sequence[Step], keep: Collection[str], printed: Print) -> list[str]:
    """Full steps as lines, written over values that are not used again and not in `keep`."""
    lines = []
    for number, step in enumerate(steps):
        later = {arg.name for other in steps[number + 1 :] for arg in other.args} | set(keep) | {"x"}
        dead = [arg for arg in step.args if arg.kind == "full" and arg.name not in later]
        lines.append(f"{step.target.name} = {_over(step, dead) or printed(step)}")
    return lines


def let_go(lines: Sequence[str], names: Collection[str], keep: Collection[str]) -> list[str]:
    """Lines with a `del` after the last use of each of these names, unless it is kept."""
    used = [set(re.findall(r"\b[A-Za-z_]\w*", line)) & set(names) - set(keep) for line in lines]
    found = []
    for number, line in enumerate(lines):
        found.append(line)
        if done := sorted(used[number] - set().union(*used[number + 1 :])):
            found.append(f"del {', '.join(done)}")
    if found and found[-1].startswith("del "):
        found.pop()  # the function ends here
    return found


def _over(step: Step, dead: list[Value]) -> str:
    first, *others = step.args
    if step.op == SCALED and first in dead:
        core, scale, shift = (arg.name for arg in step.args)
        if scale and shift:
            return f"torch.addcmul({shift}, {core}, {scale}, out={core})"
        return f"{core}.mul_({scale})" if scale else f"{core}.add_({shift})"
    if step.op not in IN_PLACE:
        return ""
    if first in dead:
        return IN_PLACE[step.op].format(*(arg.name for arg in step.args))
    if step.op in _EITHER and others[0] in dead:
        return IN_PLACE[step.op].format(others[0].name, first.name)
    return ""


class Reverse:
    """The lines of the way back.

    Args:
        lowered: a layer for which `can_be_written`.
        printed: a step as an expression.
    """

    def __init__(self, lowered: Lowered, printed: Print) -> None:
        self.lowered = lowered
        self.steps = lowered.full()
        self.constants = _constants(lowered)
        self.lines = over_memory(self._again(), self._wanted(), printed)
        self.grads: dict[str, str] = {lowered.output.name: "grad"}
        self.own: set[str] = set()
        self.shares = False
        for step in reversed(self.steps):
            if step.target.name in self.grads:
                self._back(step, self.grads.pop(step.target.name))
        if (d_x := self.grads["x"]) not in self.own:
            self.grads["x"] = self._line("d_x", f"{d_x}.clone()")  # the moments' part is added to it
        found = [self.grads.get(name, "None") for name in ("x", *(c.name for c in lowered.coefficients()))]
        self.lines = let_go(self.lines, self._tensors(), found)
        self.lines.append(f"return {', '.join(found)}" if len(found) > 1 else f"return ({found[0]},)")

    def _tensors(self) -> set[str]:
        """Names of whole tensors that are made on the way back."""
        full = {step.target.name for step in self.steps}
        return {f"{before}{name}" for name in full for before in ("", "d_", "part_")}

    def _wanted(self) -> set[str]:
        """Full values that gradients are computed from."""
        wanted: set[str] = set()
        for step in self.steps:
            if step.op in _OWN:
                wanted.add(step.target.name)
            args = step.args if step.op in _ARGUMENTS else ()
            if step.op == SCALED and step.args[1].name:
                args = step.args[:1]
            if step.op == "div":
                args = step.args[1:]
            wanted |= {arg.name for arg in args if arg.kind == "full"}
        return wanted

    def _again(self) -> list[Step]:
        """The steps of the way forward that the way back needs once more."""
        needed, again = self._wanted(), []
        for step in reversed(self.steps):
            if step.target.name in needed:
                needed |= {arg.name for arg in step.args}
                again.append(step)
        return again[::-1]

    def _back(self, step: Step, d: str) -> None:
        if step.op in _ATEN:
            arg = step.args[0]
            self._fresh(arg, _ATEN[step.op].format(d=d, t=step.target.name, a=arg.name))
        else:
            getattr(self, f"_{step.op}")(step, d)

    def _scaled(self, step: Step, d: str) -> None:
        core, scale, shift = step.args
        if shift.name:
            self._small(shift, d)
        if scale.name:
            self._small(scale, f"{d} * {core.name}")
            self._product(core, d, scale.name, last=True)
        else:
            self._pass(core, d)

    def _mul(self, step: Step, d: str) -> None:
        a, b = step.args
        pairs = sorted([(a, b), (b, a)], key=lambda pair: (pair[0].kind == "full", pair[0].name not in self.grads))
        for number, (to, by) in enumerate(pairs):
            if to.kind != "full":
                self._small(to, f"{d} * {by.name}")
            else:
                self._product(to, d, by.name, last=number == 1 and a != b)

    def _add(self, step: Step, d: str) -> None:
        small = [arg for arg in step.args if arg.kind != "full"]
        for arg in small:
            self._small(arg, d)
        if not small:
            self.own.discard(d)  # it is the gradient of both now
        for arg in step.args:
            if arg.kind == "full":
                self._pass(arg, d)

    def _sub(self, step: Step, d: str) -> None:
        a, b = step.args
        if a.kind != "full":
            self._small(a, d)
        if b.kind != "full":
            self._small(b, f"-{d}")
        else:
            self._fresh(b, f"-{d}")
        if a.kind == "full":
            self._pass(a, d)

    def _neg(self, step: Step, d: str) -> None:
        self._fresh(step.args[0], f"{d}.neg_()" if d in self.own else f"-{d}")

    def _exp(self, step: Step, d: str) -> None:
        self._product(step.args[0], d, step.target.name, last=True)

    def _div(self, step: Step, d: str) -> None:
        a, b = step.args
        part = f"part_{step.target.name}"
        self._line(part, f"{d}.div_({b.name})" if d in self.own else f"{d} / {b.name}")
        self._fresh(b, f"({part} * {step.target.name}).neg_()")
        self.own.add(part)
        if a.kind == "full":
            self._pass(a, part)
        else:
            self._small(a, part)

    def _max(self, step: Step, d: str) -> None:
        self._share(step, d, *step.args)

    def _min(self, step: Step, d: str) -> None:
        self._share(step, d, *step.args[::-1])  # where b is larger, a is the minimum

    def _share(self, step: Step, d: str, a: Value, b: Value) -> None:
        first, second = step.args
        self.shares = True
        part = f"part_{step.target.name}"
        self._line(part, f"share({a.name}, {b.name}).mul_({d})")
        self.own.add(part)
        if second.kind == "full":
            self._fresh(second, f"{d} - {part}")
        else:
            self._small(second, f"{d} - {part}")
        if first.kind == "full":
            self._pass(first, part)
        else:
            self._small(first, part)

    # -- what is added to a gradient ------------------------------------------------------------------------

    def _line(self, name: str, text: str) -> str:
        self.lines.append(f"{name} = {text}")
        return name

    def _small(self, to: Value, text: str) -> None:
        """A sum over the positions, for a value of one entry for each sample and channel."""
        if to.name in self.constants:
            return
        found = f"over_positions({text}, axis)"
        so_far = self.grads.get(to.name)
        self.grads[to.name] = self._line(f"d_{to.name}", f"{so_far} + {found}" if so_far else found)

    def _product(self, to: Value, d: str, by: str, last: bool) -> None:
        """d * by, written over d where that is the last use."""
        so_far = self.grads.get(to.name)
        if so_far in self.own:
            self.lines.append(f"{so_far}.addcmul_({d}, {by})")
        elif so_far:
            self._fresh(to, f"{d} * {by}")
        else:
            self._fresh(to, f"{d}.mul_({by})" if last and d in self.own else f"{d} * {by}")

    def _fresh(self, to: Value, text: str) -> None:
        """A new tensor."""
        if to.kind != "full":
            raise AssertionError(f"{to.name} is small")  # pragma: no cover
        so_far = self.grads.get(to.name)
        if so_far in self.own:
            self.lines.append(f"{so_far} += {text}")
            return
        name = self._line(f"d_{to.name}", f"{so_far} + {text}" if so_far else text)
        self.grads[to.name] = name
        self.own.add(name)

    def _pass(self, to: Value, d: str) -> None:
        """The gradient as it is."""
        so_far = self.grads.get(to.name)
        if so_far in self.own:
            self.lines.append(f"{so_far} += {d}")
        elif so_far:
            self._fresh(to, d)
        else:
            self.grads[to.name] = d


def _constants(lowered: Lowered) -> set[str]:
    """Small values that follow from `zero` alone."""
    found = {"zero"}
    for step in lowered.small():
        if all(arg.name in found for arg in step.args if arg.name):
            found.add(step.target.name)
    return found
