"""Kolmogorov-Arnold anchors: nothing but layers that carry weights and nonlinearity both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import nn

from normact.search.anchors.base import Make, Sites
from normact.spaces.errors import InputError
from normact.spaces.site import Conv


@dataclass(frozen=True)
class KanNet:
    """A Kolmogorov-Arnold network (arXiv 2404.19756): layers of the widths [inputs, *hidden, outputs], nothing between.

    Args:
        inputs: numbers of an example, which is flattened.
        hidden: widths between; may be empty.
        outputs: classes, or values to predict.

    Sites: `linear`, NC, one from each width to the next.

    Raises:
        InputError: a width below 1.
    """

    inputs: int
    hidden: Sequence[int]
    outputs: int

    def __post_init__(self) -> None:
        if min(self.widths) < 1:
            raise InputError(f"KanNet needs widths of at least 1, got {list(self.widths)}")

    @property
    def widths(self) -> tuple[int, ...]:
        """[inputs, *hidden, outputs]."""
        return (self.inputs, *self.hidden, self.outputs)

    def __call__(self, make: Make) -> nn.Module:
        sites = Sites(make)
        return nn.Sequential(nn.Flatten(), *(sites.linear(i, o) for i, o in pairwise(self.widths)))


@dataclass(frozen=True)
class KanConvNet:
    """Convolutional Kolmogorov-Arnold layers of 3x3, then the mean over positions and a linear classifier.

    Args:
        in_channels: of the images.
        outputs: classes, or values to predict.
        widths: channels behind each layer.
        strides: of each layer.

    Sites: `conv`, NCHW, one per width, padded by 1 so that stride 1 keeps the resolution.

    Raises:
        InputError: no layer, a number below 1, or another number of strides than of widths.
    """

    in_channels: int
    outputs: int
    widths: Sequence[int] = (8, 16)
    strides: Sequence[int] = (1, 2)

    def __post_init__(self) -> None:
        if not self.widths or min(self.in_channels, self.outputs, *self.widths, *self.strides) < 1:
            raise InputError(
                f"KanConvNet needs at least 1 layer, and numbers of at least 1, got in_channels={self.in_channels}, "
                f"outputs={self.outputs}, widths={list(self.widths)}, strides={list(self.strides)}"
            )
        if len(self.widths) != len(self.strides):
            raise InputError(
                f"KanConvNet needs one stride per width, got {len(self.widths)} widths and {len(self.strides)} strides"
            )

    def __call__(self, make: Make) -> nn.Module:
        sites = Sites(make)
        channels = pairwise((self.in_channels, *self.widths))
        layers = [sites.conv(i, o, Conv(3, s, 1)) for (i, o), s in zip(channels, self.strides, strict=True)]
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(self.widths[-1], self.outputs))
