"""`Site`: one place in a network that a layer can fill."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from normact.spaces.errors import InputError
from normact.spaces.moments import Layout, check_layout

SiteKind = Literal["norm_act", "act", "linear", "conv"]


@dataclass(frozen=True)
class Conv:
    """The arguments of a convolution at a `conv` site."""

    kernel_size: int
    stride: int = 1
    padding: int = 0
    groups: int = 1


@dataclass(frozen=True)
class Site:
    """One place in a network that a layer can fill.

    Args:
        kind: `norm_act` (normalization and activation), `act` (activation alone), `linear` or `conv`.
        index: counts the sites of a network from 0, in the order in which it asks for them.
        in_features: channels that come in.
        out_features: channels that go out; None means `in_features`, which `norm_act` and `act` require.
        layout: how tensors lie, see `Layout`.
        activation: False where the network needs no nonlinearity: a norm with no activation after it, or a `linear` or
            `conv` site with an activation of the network's own.
        causal: True where position i may depend on positions up to i alone.
        conv: the convolution's arguments, for kind `conv`.
        positions: how many places of one example the layer is applied to (pixels or tokens that come in), where that
            is known. For estimates of memory alone: what a layer computes does not depend on it.

    Raises:
        InputError: features or positions below 1, an unknown layout, or widths that differ where they must not.
    """

    kind: SiteKind
    index: int
    in_features: int
    out_features: int | None = None
    layout: Layout = "NCHW"
    activation: bool = True
    causal: bool = False
    conv: Conv | None = None
    positions: int = 1

    def __post_init__(self) -> None:
        check_layout(self.layout)
        if self.in_features < 1:
            raise InputError(f"site {self.index} has {self.in_features} input features; at least 1 is needed")
        if self.positions < 1:
            raise InputError(f"site {self.index} has positions={self.positions}; at least 1 is needed")
        same_width = self.kind in ("norm_act", "act")
        if same_width and self.out_features not in (None, self.in_features):
            raise InputError(
                f"site {self.index} of kind {self.kind!r} has {self.in_features} features in and "
                f"{self.out_features} out; they must be equal"
            )

    @property
    def features_out(self) -> int:
        """Channels that go out."""
        return self.in_features if self.out_features is None else self.out_features

    def output_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape of what goes out where an input of that shape comes in."""
        out = list(shape)
        out[1 if self.layout == "NCHW" else -1] = self.features_out
        if (conv := self.conv) is not None:
            out[2:] = [(size + 2 * conv.padding - conv.kernel_size) // conv.stride + 1 for size in out[2:]]
        return tuple(out)
