"""Read a model by symbolic tracing (`torch.fx`): no input is needed, but no control flow may depend on data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import fx, nn

from normact.spaces.swap.calls import Frame, Reading, Value, is_leaf, module_kind, passed_defaults
from normact.spaces.swap.kinds import acts_in_place, function_kind


def trace(model: nn.Module, reading: Reading) -> None:
    """Append what a model does in its present mode.

    Raises:
        Exception: whatever tracing raises where the model does not allow it.
    """
    tracer = _Tracer(model, reading)
    graph = tracer.trace(model, concrete_args=passed_defaults(model))
    _append(graph, tracer, model, reading)


class _Tracer(fx.Tracer):
    """Notes for each node the frame and the slot of its call."""

    def __init__(self, model: nn.Module, reading: Reading) -> None:
        super().__init__()
        self.reading = reading
        self.stack = [reading.enter(model, "", (), {})]
        self.slot = ""
        self.leaves = {module: is_leaf(module) for module in model.modules()}  # while tracing, attributes are proxies
        self.where: dict[fx.Node, tuple[Frame, str]] = {}

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return self.leaves[m]

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        self.slot = self.stack[-1].next_slot()
        if self.leaves.get(m, True):  # what is no submodule is refused below
            return super().call_module(m, forward, args, kwargs)
        self.stack.append(self.reading.enter(m, self.path_of_module(m), args, kwargs))
        try:
            return super().call_module(m, forward, args, kwargs)
        finally:
            self.stack.pop()

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(*args, **kwargs)
        self.where[node] = (self.stack[-1], self.slot)
        return node


def _append(graph: fx.Graph, tracer: _Tracer, model: nn.Module, reading: Reading) -> None:
    values: dict[fx.Node, Value] = {}
    for node in graph.nodes:
        frame, slot = tracer.where[node]
        inputs = [values[n] for n in node.all_input_nodes if n in values]
        if node.op == "call_module":
            module = model.get_submodule(str(node.target))
            if isinstance(module, nn.Identity) and inputs:
                values[node] = inputs[0]
                continue
            call = reading.add(module_kind(module), str(node.target), frame, inputs, module, slot)
            in_place = getattr(module, "inplace", False) is True
        elif node.op in ("call_function", "call_method"):
            name = str(node.target) if node.op == "call_method" else getattr(node.target, "__name__", str(node.target))
            kind = node_kind(node)
            if kind == "query":
                continue
            call = reading.add(kind, name, frame, inputs)
            in_place = acts_in_place(name, node.kwargs)
        elif node.op == "output":
            reading.add("output", "output", frame, inputs)
            continue
        else:
            values[node] = Value()
            continue
        if in_place and inputs:
            for other, value in values.items():
                if value is inputs[0]:
                    values[other] = call.output
        values[node] = call.output


def node_kind(node: fx.Node) -> str:
    """The kind of a call of a function or method."""
    name = str(node.target) if node.op == "call_method" else getattr(node.target, "__name__", "")
    arguments = [*node.args, *node.kwargs.values()]
    if name == "getattr" and arguments[1] not in ("shape", "dtype", "device", "ndim", "requires_grad"):
        return "other"
    tensors = sum(isinstance(a, fx.Node) for a in arguments)
    return function_kind(name, tensors, [a for a in arguments if not isinstance(a, fx.Node) and a is not None])
