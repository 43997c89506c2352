"""What counts as a normalization and what as an activation, among modules and among functions."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from normact.spaces.layer import ChannelAffine, GraphLayer
from normact.spaces.moments import LAYOUTS, Layout
from normact.spaces.ops import OPS

NORMS: dict[type[nn.Module], Layout] = {
    nn.BatchNorm1d: "NC",
    nn.BatchNorm2d: "NCHW",
    nn.BatchNorm3d: "NCHW",
    nn.SyncBatchNorm: "NCHW",
    nn.GroupNorm: "NCHW",
    nn.InstanceNorm1d: "NCHW",
    nn.InstanceNorm2d: "NCHW",
    nn.InstanceNorm3d: "NCHW",
    nn.LayerNorm: "NLC",
    nn.RMSNorm: "NLC",
}
"""The norms that are found, and the layout in which each is met where nothing else is known."""

ACTIVATIONS: tuple[type[nn.Module], ...] = (
    nn.ReLU, nn.Hardtanh, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.SiLU, nn.GELU, nn.Mish, nn.ELU, nn.CELU, nn.SELU,
    nn.Hardswish, nn.Hardsigmoid, nn.Softplus, nn.Softsign, nn.Sigmoid, nn.LogSigmoid, nn.Tanh, nn.Threshold,
    nn.Hardshrink, nn.Softshrink, nn.Tanhshrink,
)  # fmt: skip

_OF_LIBRARIES = frozenset({"Swish", "HardSwish", "HardSigmoid", "HardMish", "GELUTanh", "QuickGELU", "Mish", "Sigmoid",
                           "Tanh", "GELU", "PReLU", "FastGELU"})  # fmt: skip
"""Names of activation modules in other libraries: a class of that name without child modules is one."""

_FUNCTIONS = {kind.__name__.lower() for kind in (*ACTIVATIONS, nn.ReLU6)} | {"clampmin"}
"""The same as functions and tensor methods, without underscores."""

_TRUSTED = frozenset({"torch", "torchvision", "timm"})
"""Libraries whose subclasses of a norm compute that norm, perhaps for another layout, perhaps with an activation."""


@dataclass(frozen=True)
class Norm:
    """A normalization that can be replaced.

    Args:
        features: its channels.
        layout: the layout in which it takes its input, unless shapes say otherwise.
        channels_last: normalizes over the last axis, however many there are.
        fused: carries an activation of its own that is on.
    """

    features: int
    layout: Layout
    channels_last: bool = False
    fused: bool = False


def read_norm(module: nn.Module) -> Norm | str | None:
    """What a module is as a normalization: a `Norm`, why it cannot be replaced, or None where it is none."""
    if isinstance(module, torch.jit.ScriptModule):
        return None  # nothing in it can be replaced
    if isinstance(module, nn.modules.lazy.LazyModuleMixin) and module.has_uninitialized_params():
        norm = "norm" in type(module).__name__.lower()
        return "its channels are not known before it is first run" if norm else None
    base = next((kind for kind in NORMS if isinstance(module, kind)), None)
    own = type(module).forward
    library = type(module).__module__.partition(".")[0] in _TRUSTED
    shape = getattr(module, "normalized_shape", None)
    if base is None and not (library and shape is not None):
        return _fused_layer(module)
    if base and own is not base.forward and not library:
        return f"{type(module).__name__} has a forward of its own"
    if shape is not None and len(shape) > 1:
        return f"it normalizes over several axes, {tuple(shape)}"
    size = getattr(module, "num_features", None) or getattr(module, "num_channels", None) or shape
    features = size[0] if isinstance(size, tuple | list) else size
    if not features:
        return f"it has {features} channels"
    last = shape is not None and "2d" not in type(module).__name__.lower()
    layout: Layout = NORMS[base] if base and (last or shape is None) else "NLC" if last else "NCHW"
    act = getattr(module, "act", None)
    return Norm(features, layout, last, isinstance(act, nn.Module) and not isinstance(act, nn.Identity))


def _fused_layer(module: nn.Module) -> Norm | str | None:
    """A layer in timm's conventions (EvoNorm, or an exported one), or one of ours."""
    apply_act, layout = getattr(module, "apply_act", None), getattr(module, "layout", "NCHW")
    features = getattr(module, "num_features", None) or getattr(module, "features", None)
    weight = getattr(module, "weight", None)
    if features is None and isinstance(weight, nn.Parameter) and weight.dim() == 1:
        features = weight.numel()
    if isinstance(module, GraphLayer) and not is_activation(module):
        return Norm(module.features, module.layout, fused=True)
    if isinstance(module, ChannelAffine):
        return Norm(module.features, module.layout)
    simple = not any(list(child.parameters()) for child in module.children())
    if simple and isinstance(apply_act, bool) and isinstance(features, int) and layout in LAYOUTS:
        return Norm(features, layout, fused=apply_act)
    if "norm" in type(module).__name__.lower() and not list(module.children()):
        return f"{type(module).__name__} is no normalization that is known"
    return None


def is_activation(module: nn.Module) -> bool:
    """Whether a module is a pointwise activation."""
    if isinstance(module, ACTIVATIONS):
        return True
    if isinstance(module, GraphLayer):
        return all(OPS[node.op].moment is None for node in module.graph.nodes)
    return type(module).__name__ in _OF_LIBRARIES and not list(module.children())


def function_kind(name: str, tensors: int, others: Collection[object]) -> str:
    """What a function or tensor method of that name does: "act", "add", "mul", "query" or "other".

    Args:
        name: as Python has it, such as `relu_`, `__iadd__` or `leaky_relu`.
        tensors: how many tensors it is given.
        others: its further arguments.
    """
    bare = name.replace("_", "")
    if bare in _FUNCTIONS and tensors == 1:
        return "act"
    if bare == "prelu" or (bare == "clamp" and tensors == 1 and others):
        return "act"
    if bare in ("add", "iadd", "radd") and tensors > 1:
        return "add"
    if bare in ("mul", "imul", "rmul", "multiply"):
        return "mul"
    if bare in ("getattr", "get", "size", "dim", "numel", "isfloatingpoint", "iscomplex", "stride", "ndimension"):
        return "query"
    return "other"


def acts_in_place(name: str, kwargs: Mapping[str, object]) -> bool:
    """Whether a function changes its first argument."""
    augmented = name in ("iadd", "imul", "__iadd__", "__imul__")
    return augmented or kwargs.get("inplace") is True or (name.endswith("_") and not name.endswith("__"))
