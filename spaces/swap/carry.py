"""Carry a norm's parameters, statistics and constants over to the layer that takes its place."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from normact.spaces.graph import LayerGraph
from normact.spaces.layer import ChannelAffine, GraphLayer
from normact.spaces.swap.pointwise import running_buffers, standardized


def carry_over(norm: nn.Module, new: nn.Module, graph: LayerGraph | None, activation: bool) -> bool:
    """Give `new` what means the same in it as in `norm`; whether anything does.

    A layer whose graph standardizes over what the norm does takes its scale and shift, its running statistics, eps
    and momentum. A graph that keeps the statistics of x alone (EvoNorm-B) takes these. Where no activation follows,
    a per-channel affine takes what a batch norm does in evaluation, and of other norms scale and shift.
    """
    graph = new.graph if isinstance(new, GraphLayer) else graph
    with torch.no_grad():
        if not activation and _is_affine(new):
            return _to_affine(norm, new)
        if graph is None or (not activation and not isinstance(new, GraphLayer)):
            return False
        return _to_graph(norm, new, graph.canonical)


def _index_set(norm: nn.Module) -> str:
    """What the statistics of a norm are taken over, by our names."""
    if isinstance(norm, nn.modules.batchnorm._BatchNorm):
        return "batch"
    if isinstance(norm, nn.GroupNorm):
        return "group"
    if isinstance(norm, nn.modules.instancenorm._InstanceNorm):
        return "instance"
    return "channel" if isinstance(norm, nn.LayerNorm) else ""


def _is_affine(new: nn.Module) -> bool:
    """Whether a fresh layer is a per-channel affine and nothing else: timm's S0a still divides without activation."""
    if set(dict(new.named_parameters())) != {"weight", "bias"} or list(new.buffers()):
        return False
    if isinstance(new, ChannelAffine):
        return True
    like = next(new.parameters())
    layout, channels = getattr(new, "layout", "NCHW"), like.numel()
    shape = {"NCHW": (2, channels, 2, 2), "NLC": (2, 2, channels), "NC": (2, channels)}[layout]
    x = torch.arange(float(math.prod(shape)), device=like.device).view(shape).to(like.dtype)
    return not like.is_meta and torch.equal(new(x), x)


def _to_graph(norm: nn.Module, new: nn.Module, graph: LayerGraph) -> bool:
    index_set, place = _index_set(norm), standardized(graph)
    carried = False
    if place is not None and place.index_set == index_set:
        carried = True
        for target, source in ((place.weight, "weight"), (place.bias, "bias")):
            if target:
                _copy(new, target, getattr(norm, source, None))
    if index_set == "batch":
        for kept, buffer in running_buffers(graph).items():
            carried |= _copy(new, buffer, getattr(norm, f"running_{kept}", None))
    if carried:
        for name in ("eps", "momentum"):
            if getattr(norm, name, None) is not None and hasattr(new, name):
                setattr(new, name, getattr(norm, name))
    return carried


def _to_affine(norm: nn.Module, new: nn.Module) -> bool:
    weight, bias = getattr(norm, "weight", None), getattr(norm, "bias", None)
    mean, var = getattr(norm, "running_mean", None), getattr(norm, "running_var", None)
    if isinstance(mean, Tensor) and isinstance(var, Tensor):
        scale = torch.rsqrt(var + norm.eps)  # type: ignore[operator]
        weight = scale if weight is None else weight * scale
        bias = -mean * weight if bias is None else bias - mean * weight
    return _copy(new, "weight", weight) | _copy(new, "bias", bias)


def _copy(new: nn.Module, name: str, value: Tensor | None) -> bool:
    target = getattr(new, name, None)
    if not isinstance(value, Tensor) or not isinstance(target, Tensor) or target.shape != value.shape:
        return False
    target.copy_(value)
    if isinstance(value, nn.Parameter):
        target.requires_grad_(value.requires_grad)
    return True
