"""How a KAN layer mixes the features of its inputs: a matrix product, or a convolution. Channels lie last."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from normact.spaces.errors import InputError
from normact.spaces.site import Conv


@dataclass(frozen=True)
class Mixing:
    """From `planes` values for each of I inputs to O outputs: at each position alone, or by a convolution.

    Args:
        inputs: I.
        outputs: O.
        conv: a convolution's arguments; None for a matrix product.

    Raises:
        InputError: widths below 1, or ones that the groups do not divide.
    """

    inputs: int
    outputs: int
    conv: Conv | None = None

    def __post_init__(self) -> None:
        if self.inputs < 1 or self.outputs < 1:
            raise InputError(f"a layer needs at least 1 feature in and out, got {self.inputs} and {self.outputs}")
        if self.inputs % self.groups or self.outputs % self.groups:
            raise InputError(
                f"groups={self.groups} must divide the channels in and out, {self.inputs} and {self.outputs}"
            )

    @property
    def groups(self) -> int:
        """Groups of channels that are mixed apart."""
        return self.conv.groups if self.conv else 1

    def weight_shape(self, planes: int) -> tuple[int, ...]:
        """The shape of the weight for so many values an input: O first."""
        columns = planes * self.inputs // self.groups
        return (self.outputs, columns, *[self.conv.kernel_size] * 2) if self.conv else (self.outputs, columns)

    @property
    def fan(self) -> int:
        """How many inputs an output sees."""
        return self.inputs // self.groups * (self.conv.kernel_size**2 if self.conv else 1)

    def __call__(self, features: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """(..., planes * I) to (..., O); for a convolution (N, H, W, planes * I) to (N, H', W', O).

        Features lie plane after plane: all inputs' first values, then all inputs' second ones.
        """
        if self.conv is None:
            return nn.functional.linear(features, weight, bias)
        if self.groups > 1:
            split = features.unflatten(-1, (-1, self.groups, self.inputs // self.groups))
            features = split.transpose(-3, -2).flatten(-3)
        y = nn.functional.conv2d(
            features.movedim(-1, 1), weight, bias, self.conv.stride, self.conv.padding, groups=self.groups
        )
        return y.movedim(1, -1)
