"""Convolutional anchors: a pre-activation residual net and an inverted-residual net."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from normact.search.anchors.base import Make, Sites
from normact.spaces.errors import InputError


def _check_stages(name: str, width: int, blocks: Sequence[int]) -> None:
    if width < 1 or not blocks or min(blocks) < 1:
        raise InputError(f"{name} needs width >= 1 and at least 1 block per stage, got width={width}, blocks={blocks}")


def _stages(width: int, blocks: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Per block: channels in, channels out, stride. Each stage but the first doubles channels and halves resolution."""
    features = width
    for stage, count in enumerate(blocks):
        for block in range(count):
            out = width * 2**stage
            yield features, out, 2 if stage and not block else 1
            features = out


def _head(sites: Sites, features: int, outputs: int) -> list[nn.Module]:
    return [sites.norm_act(features), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(features, outputs)]


@dataclass(frozen=True)
class PreActResNet:
    """Pre-activation residual net (He et al., arXiv 1603.05027), basic blocks, for small images.

    Args:
        in_channels: of the images.
        outputs: classes.
        width: channels of the first stage; each further stage doubles them and halves the resolution.
        blocks: residual blocks per stage.

    Sites: `norm_act`, NCHW, two a block and one before the pooling.
    """

    in_channels: int
    outputs: int
    width: int = 16
    blocks: Sequence[int] = (1, 1)

    def __post_init__(self) -> None:
        _check_stages("PreActResNet", self.width, self.blocks)

    def __call__(self, make: Make) -> nn.Module:
        sites = Sites(make)
        layers: list[nn.Module] = [nn.Conv2d(self.in_channels, self.width, 3, padding=1, bias=False)]
        for features, out, stride in _stages(self.width, self.blocks):
            layers.append(_PreActBlock(sites, features, out, stride))
        return nn.Sequential(*layers, *_head(sites, out, self.outputs))


class _Shortcut(nn.Conv2d):
    """A convolution of one pixel as a product of matrices: on small images less than half the time."""

    def forward(self, x: Tensor) -> Tensor:
        picked = x[:, :, :: self.stride[0], :: self.stride[1]]
        n, _, height, width = picked.shape
        weight = self.weight.flatten(1).expand(n, -1, -1)
        return torch.bmm(weight, picked.flatten(2)).view(n, -1, height, width)


class _PreActBlock(nn.Module):
    def __init__(self, sites: Sites, features: int, out: int, stride: int) -> None:
        super().__init__()
        self.layer1 = sites.norm_act(features)
        self.conv1 = nn.Conv2d(features, out, 3, stride, 1, bias=False)
        self.layer2 = sites.norm_act(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        changes = stride != 1 or features != out
        self.shortcut = _Shortcut(features, out, 1, stride, bias=False) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        h = self.layer1(x)
        skip = x if self.shortcut is None else self.shortcut(h)
        return skip + self.conv2(self.layer2(self.conv1(h)))


@dataclass(frozen=True)
class InvertedResidualNet:
    """Inverted residuals with depthwise convolutions (MobileNetV2, arXiv 1801.04381), for small images.

    Args:
        in_channels: of the images.
        outputs: classes.
        width: channels between blocks in the first stage; each further stage doubles them.
        blocks: blocks per stage; the first block of every stage but the first halves the resolution.
        expansion: channels inside a block, relative to those between blocks.

    Sites: `norm_act`, NCHW: two a block, one without activation after each projection, one before the pooling.
    """

    in_channels: int
    outputs: int
    width: int = 16
    blocks: Sequence[int] = (1, 1)
    expansion: int = 3

    def __post_init__(self) -> None:
        _check_stages("InvertedResidualNet", self.width, self.blocks)
        if self.expansion < 1:
            raise InputError(f"InvertedResidualNet needs expansion >= 1, got {self.expansion}")

    def __call__(self, make: Make) -> nn.Module:
        sites = Sites(make)
        layers: list[nn.Module] = [nn.Conv2d(self.in_channels, self.width, 3, padding=1, bias=False)]
        layers.append(sites.norm_act(self.width))
        for features, out, stride in _stages(self.width, self.blocks):
            layers.append(_InvertedBlock(sites, features, out, stride, self.expansion))
        return nn.Sequential(*layers, *_head(sites, out, self.outputs))


class _InvertedBlock(nn.Module):
    def __init__(self, sites: Sites, features: int, out: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = features * expansion
        self.body = nn.Sequential(
            nn.Conv2d(features, inner, 1, bias=False),
            sites.norm_act(inner),
            nn.Conv2d(inner, inner, 3, stride, 1, groups=inner, bias=False),
            sites.norm_act(inner),
            nn.Conv2d(inner, out, 1, bias=False),
            sites.norm_act(out, activation=False),
        )
        self.residual = stride == 1 and features == out

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        return x + y if self.residual else y
