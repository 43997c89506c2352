"""What a model does, as a list of calls: read by symbolic tracing, or from a run."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from normact.spaces.swap.kinds import is_activation, read_norm

SIMPLE = (type(None), bool, int, float, str)
"""Types of arguments that a traced forward can be fixed to."""


@dataclass(eq=False)
class Value:
    """A tensor at one moment: an operation in place makes a new one. `maker` is None for inputs and parameters."""

    maker: Call | None = None
    users: list[Call] = field(default_factory=list)


@dataclass(eq=False)
class Frame:
    """One run of the `forward` of a module that is looked into: the owner of the calls made there.

    Args:
        passed: arguments given, by name; `passed[name]` is the value where it is of a simple type, else `...`.
        acts: activations called directly in it so far.
        children: modules called directly in it so far.
    """

    module: nn.Module
    name: str
    training: bool
    passed: dict[str, object] = field(default_factory=dict)
    acts: int = 0
    children: int = 0

    def next_slot(self) -> str:
        """The name under which the next child is called, where the order of calls says it: in an `nn.Sequential`."""
        self.children += 1
        if type(self.module).forward is not nn.Sequential.forward:
            return ""
        return list(self.module._modules)[self.children - 1]


@dataclass(eq=False)
class Call:
    """One call that is not looked into.

    Args:
        kind: "norm", "act", "add", "mul", "output" or "other".
        name: a module's qualified name, or a function's.
        module: None for a function.
        frame: where it happens.
        ordinal: counts the activations of the frame from 0; -1 for other calls.
        slot: the attribute of the owner, where known from the order of calls.
        shape: of the first tensor that comes in, where known.
    """

    kind: str
    name: str
    module: nn.Module | None
    frame: Frame
    ordinal: int
    slot: str
    inputs: list[Value]
    output: Value
    shape: tuple[int, ...] | None = None

    def __str__(self) -> str:
        where = f" in {self.frame.name}" if self.frame.name else ""
        return self.name if self.module is not None else f"{self.name}(){where}"


@dataclass
class Reading:
    """What was read, in the order of the flow of data: `how` is "trace" or "run"."""

    how: str
    calls: list[Call] = field(default_factory=list)
    frames: list[Frame] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def enter(self, module: nn.Module, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Frame:
        """The frame of a module that is looked into."""
        frame = Frame(module, name, module.training, _passed(module, args, kwargs))
        self.frames.append(frame)
        return frame

    def add(
        self,
        kind: str,
        name: str,
        frame: Frame,
        inputs: list[Value],
        module: nn.Module | None = None,
        slot: str = "",
        shape: tuple[int, ...] | None = None,
    ) -> Call:
        """Append a call; its inputs are kept once each."""
        inputs = list(dict.fromkeys(inputs))
        call = Call(kind, name, module, frame, frame.acts if kind == "act" else -1, slot, inputs, Value(), shape)
        frame.acts += kind == "act"
        call.output.maker = call
        for value in inputs:
            value.users.append(call)
        self.calls.append(call)
        return call


def module_kind(module: nn.Module) -> str:
    """The kind of a call of a module that is not looked into."""
    if isinstance(read_norm(module), str):
        return "other"
    return "norm" if read_norm(module) is not None else "act" if is_activation(module) else "other"


def is_leaf(module: nn.Module) -> bool:
    """Whether a module's calls are taken as they are: norms, activations, and what has none of them inside."""
    if module_kind(module) != "other":
        return True
    return not any(module_kind(inner) != "other" for inner in module.modules())


def passed_defaults(module: nn.Module) -> dict[str, object]:
    """The arguments of a forward that have simple defaults, with these."""
    parameters = inspect.signature(module.forward).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty and isinstance(p.default, SIMPLE)}


def _passed(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, object]:
    try:
        given = inspect.signature(module.forward).bind(*args, **kwargs).arguments
    except TypeError:
        return {}
    return {name: value if isinstance(value, SIMPLE) else ... for name, value in given.items()}


def flat(value: Any) -> Iterator[Any]:
    """What is in nested tuples, lists and dicts."""
    if isinstance(value, tuple | list):
        for item in value:
            yield from flat(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from flat(item)
    else:
        yield value
