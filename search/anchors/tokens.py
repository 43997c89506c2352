"""A token anchor: a small mixer or transformer on image patches, with NLC sites."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from normact.search.anchors.base import Make, Sites
from normact.spaces.errors import InputError


@dataclass(frozen=True)
class TokenNet:
    """Patches as tokens; residual blocks that mix tokens, then channels, each behind a layer (pre-activation).

    A block is x + mix(layer(x)), then x + W2 layer(W1 layer(x)). Mixing is a linear map over positions as in
    MLP-Mixer (arXiv 2105.01601) or self-attention (arXiv 1706.03762).

    Args:
        in_channels: of the images.
        size: height and width of the images, divisible by `patch`.
        outputs: classes.
        patch: height and width of a patch.
        width: channels of a token.
        depth: blocks.
        mixing: `linear` or `attention`.
        heads: of the attention.

    Sites: `norm_act`, NLC, three a block and one before the pooling.

    Raises:
        InputError: a number is below 1, `size` is not divisible by `patch`, or `width` by `heads`.
    """

    in_channels: int
    size: int
    outputs: int
    patch: int = 2
    width: int = 32
    depth: int = 2
    mixing: Literal["linear", "attention"] = "linear"
    heads: int = 4

    def __post_init__(self) -> None:
        if min(self.size, self.patch, self.width, self.depth, self.heads) < 1:
            raise InputError(
                f"TokenNet needs size, patch, width, depth and heads of at least 1, got {self.size}, {self.patch}, "
                f"{self.width}, {self.depth}, {self.heads}"
            )
        if self.size % self.patch:
            raise InputError(f"image size {self.size} is not divisible by patch={self.patch}; choose another patch")
        if self.mixing not in ("linear", "attention"):
            raise InputError(f"mixing must be linear or attention, got {self.mixing!r}")
        if self.mixing == "attention" and self.width % self.heads:
            raise InputError(f"width={self.width} is not divisible by heads={self.heads}")

    def __call__(self, make: Make) -> nn.Module:
        sites = Sites(make)
        tokens = (self.size // self.patch) ** 2
        blocks = (_TokenBlock(sites, self, tokens) for _ in range(self.depth))
        return nn.Sequential(
            _Patches(self.in_channels, self.patch, self.width, tokens),
            *blocks,
            sites.norm_act(self.width, "NLC"),
            _MeanOverTokens(),
            nn.Linear(self.width, self.outputs),
        )


class _Patches(nn.Module):
    """Each patch through one linear map. The tokens lie one after the other in memory, as the layers like them."""

    def __init__(self, in_channels: int, patch: int, width: int, tokens: int) -> None:
        super().__init__()
        self.project = nn.Conv2d(in_channels, width, patch, patch)
        self.position = nn.Parameter(0.02 * torch.randn(tokens, width))

    def forward(self, x: Tensor) -> Tensor:
        n, channels, height, width = x.shape
        p = self.project.kernel_size[0]
        rows = x.view(n, channels, height // p, p, width // p, p).permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
        return nn.functional.linear(rows, self.project.weight.flatten(1), self.project.bias) + self.position


class _MeanOverTokens(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


class _LinearMix(nn.Module):
    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.mix = nn.Linear(tokens, tokens)

    def forward(self, x: Tensor) -> Tensor:
        n, tokens, _ = x.shape  # the same as along transposed axes, without the copies
        return torch.baddbmm(self.mix.bias.view(1, tokens, 1), self.mix.weight.expand(n, tokens, tokens), x)


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, length, width = x.shape
        q, k, v = self.qkv(x).view(n, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        # Written out: the fused kernel has no second derivative, which the stability gate takes.
        y = (q @ k.transpose(-2, -1) / (width // self.heads) ** 0.5).softmax(-1) @ v
        return self.out(y.transpose(1, 2).reshape(n, length, width))


class _TokenBlock(nn.Module):
    def __init__(self, sites: Sites, net: TokenNet, tokens: int) -> None:
        super().__init__()
        self.layer1 = sites.norm_act(net.width, "NLC")
        self.mix = _LinearMix(tokens) if net.mixing == "linear" else _Attention(net.width, net.heads)
        self.layer2 = sites.norm_act(net.width, "NLC")
        self.expand = nn.Linear(net.width, 2 * net.width)
        self.layer3 = sites.norm_act(2 * net.width, "NLC")
        self.contract = nn.Linear(2 * net.width, net.width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mix(self.layer1(x))
        return x + self.contract(self.layer3(self.expand(self.layer2(x))))
