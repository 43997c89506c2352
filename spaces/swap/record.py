"""Read a model from a run with example inputs: works whatever its control flow, for the path that was taken."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from normact.spaces.swap.calls import Call, Frame, Reading, Value, flat, is_leaf, module_kind
from normact.spaces.swap.kinds import acts_in_place, function_kind


def record(copy: nn.Module, model: nn.Module, inputs: Sequence[Any], reading: Reading) -> None:
    """Append what a copy of a model does with the inputs, in its present mode, told of the model itself.

    Raises:
        Exception: whatever the model raises.
    """
    recorder = _Recorder(copy, model, reading)
    try:
        with torch.no_grad(), recorder:
            result = copy(*inputs)
    finally:
        recorder.remove()
    frame = Frame(model, "", model.training)
    reading.add("output", "output", frame, recorder.values_of(result))


class _Recorder(TorchFunctionMode):
    """Sees calls of modules through hooks, and calls of functions as a mode; not those inside a leaf."""

    def __init__(self, copy: nn.Module, model: nn.Module, reading: Reading) -> None:
        super().__init__()
        self.reading = reading
        self.stack: list[Frame] = []
        self.inside = 0  # how deep in a leaf
        self.leaf: tuple[list[Value], tuple[int, ...] | None, str] = ([], None, "")
        self.values: dict[int, Value] = {}
        self.alive: list[Tensor] = []  # an id is a tensor's as long as it lives
        originals = dict(model.named_modules())
        self.originals = {module: (name, originals[name]) for name, module in copy.named_modules()}
        self.leaves = {module: is_leaf(module) for module in self.originals}
        self.handles = [m.register_forward_pre_hook(self._before, with_kwargs=True) for m in self.originals]
        self.handles += [m.register_forward_hook(self._after) for m in self.originals]

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.inside or not self.stack:
            return func(*args, **kwargs)
        given = list(flat((args, kwargs)))
        tensors = [item for item in given if isinstance(item, Tensor)]
        name = getattr(func, "__name__", "")
        kind = function_kind(name, len(tensors), [a for a in given if not isinstance(a, Tensor) and a is not None])
        inputs = self.values_of(tensors)
        result = func(*args, **kwargs)
        made = [item for item in flat(result) if isinstance(item, Tensor)]
        if made:
            kind = "other" if kind == "query" else kind
            self._keep(self.reading.add(kind, name, self.stack[-1], inputs), made)
            if acts_in_place(name, kwargs) and tensors:
                self.values[id(tensors[0])] = self.values[id(made[0])]
        return result

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.inside:
            self.inside += 1
            return
        slot = self.stack[-1].next_slot() if self.stack else ""
        if not self.leaves[module] or not self.stack:
            name, original = self.originals[module]
            frame = self.reading.enter(original, name, args, kwargs)
            frame.training = module.training
            self.stack.append(frame)
            return
        self.inside = 1
        tensors = [item for item in flat((args, kwargs)) if isinstance(item, Tensor)]
        self.leaf = (self.values_of(tensors), tuple(tensors[0].shape) if tensors else None, slot)

    def _after(self, module: nn.Module, args: tuple[Any, ...], result: Any) -> None:
        if self.inside > 1:
            self.inside -= 1
        elif self.inside:
            self.inside = 0
            inputs, shape, slot = self.leaf
            name, original = self.originals[module]
            if isinstance(module, nn.Identity) and inputs:
                return
            call = self.reading.add(module_kind(module), name, self.stack[-1], inputs, original, slot, shape)
            self._keep(call, [item for item in flat(result) if isinstance(item, Tensor)])
        else:
            self.stack.pop()

    def values_of(self, tensors: Any) -> list[Value]:
        """The values that tensors have now."""
        found = []
        for tensor in flat(tensors):
            if isinstance(tensor, Tensor):
                if id(tensor) not in self.values:
                    self.alive.append(tensor)
                    self.values[id(tensor)] = Value()
                found.append(self.values[id(tensor)])
        return found

    def _keep(self, call: Call, made: list[Tensor]) -> None:
        self.alive += made
        self.values |= {id(tensor): call.output for tensor in made}
