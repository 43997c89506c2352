"""Moments over index sets: which axes a set means for each layout, and the statistics themselves.

Everything here is a function of tensors and axes alone, so that `GraphLayer` and the exported files run the
same code: the emitter copies these functions' source.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from normact.spaces.errors import InputError, unknown_name

Layout = Literal["NCHW", "NLC", "NC"]
"""NCHW: (batch, channels, 1 or more spatial axes); NLC: (batch, length, channels); NC: (batch, channels)."""

LAYOUTS: tuple[Layout, ...] = get_args(Layout)

INDEX_SETS = ("batch", "instance", "layer", "group", "channel")
STATISTICS = ("mean", "rms", "std")

AXES: dict[str, dict[str, str]] = {
    "batch": {"NCHW": "N,H,W", "NLC": "N,L", "NC": "N"},
    "instance": {"NCHW": "H,W", "NLC": "L", "NC": ""},
    "layer": {"NCHW": "C,H,W", "NLC": "L,C", "NC": "C"},
    "group": {"NCHW": "C/g,H,W", "NLC": "L,C/g", "NC": "C/g"},
    "channel": {"NCHW": "C", "NLC": "C", "NC": "C"},
}
"""The axes that each index set reduces, per layout; empty where the set is empty."""


@dataclass(frozen=True)
class Moment:
    """A statistic over an index set, broadcast back over the axes that it reduced.

    `mean`: mean of x. `rms`: sqrt(mean of x^2 + eps). `std`: sqrt(mean of (x - mean)^2 + eps), biased.
    (EvoNorm, arXiv 2004.02967, its table of primitives; eps inside the root as in its released code.)
    """

    index_set: str
    statistic: str

    @property
    def running(self) -> str:
        """What a batch moment keeps for evaluation: the name of the quantity before the root."""
        return {"mean": "mean", "rms": "mean_square", "std": "var"}[self.statistic]


def unusable(index_set: str, layout: str, causal: bool = False) -> str:
    """Why an index set cannot be used at sites of a layout; empty where it can.

    A causal site excludes every moment over the sequence or the batch: both let a position see later ones.
    """
    if not AXES[index_set][layout]:
        return f"{index_set} moments are left out: the set is empty for layout {layout}"
    axes = AXES[index_set][layout]
    if causal and axes not in ("C", "C/g"):
        return f"{index_set} moments are left out: over ({axes}) they look ahead at a causal {layout} site"
    return ""


def check_layout(layout: str) -> Layout:
    """The layout, checked.

    Raises:
        InputError: it is none of `LAYOUTS`.
    """
    if layout not in LAYOUTS:
        raise unknown_name("layout", layout, LAYOUTS)
    return layout


def divisor_at_most(groups: int, channels: int) -> int:
    """The largest group count up to `groups` that divides `channels` (as EvoNorm's released code does).

    Raises:
        InputError: `groups` or `channels` is below 1.
    """
    if groups < 1 or channels < 1:
        raise InputError(f"groups and channels must be at least 1, got groups={groups}, channels={channels}")
    return max(g for g in range(1, min(groups, channels) + 1) if channels % g == 0)


def reduced_axes(index_set: str, channel_axis: int, ndim: int) -> tuple[int, ...]:
    """The axes that an index set (other than group) reduces in a tensor of `ndim` axes."""
    if index_set == "channel":
        return (channel_axis,)
    if index_set == "layer":
        return tuple(range(1, ndim))
    first = 0 if index_set == "batch" else 1
    return tuple(axis for axis in range(first, ndim) if axis != channel_axis)


def mean(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    """The mean over the axes, which stay with size 1."""
    return x.mean(axes, keepdim=True)


def mean_square(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    """The mean of the squares over the axes, which stay with size 1."""
    return x.square().mean(axes, keepdim=True)


def var(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    """The variance (biased) over the axes, which stay with size 1."""
    # Two passes, each vectorised: torch.var is several times slower on CPUs, and no more exact.
    return (x - x.mean(axes, keepdim=True)).square().mean(axes, keepdim=True)


def at_least_float32(x: Tensor) -> Tensor:
    """The tensor itself, or in float32 where it is float16 or bfloat16."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def per_group(
    x: Tensor, statistic: Callable[[Tensor, tuple[int, ...]], Tensor], groups: int, channel_axis: int
) -> Tensor:
    """A statistic of each sample's groups of channels, given to every channel of its group."""
    grouped = x.unflatten(channel_axis, (groups, -1))
    axes = tuple(axis for axis in range(1, grouped.dim()) if axis != channel_axis)
    value = statistic(grouped, axes)
    size = list(value.shape)
    size[channel_axis + 1] = grouped.shape[channel_axis + 1]
    return value.expand(size).flatten(channel_axis, channel_axis + 1)
