"""What stands in front of a basis, and behind a layer: maps of (..., I) that bring inputs where a basis is alive."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from normact.spaces.errors import InputError, unknown_name
from normact.spaces.kan.basis import UNIT, WIDE, Basis


class Clamp(nn.Module):
    """min(max(x, -1), 1); no gradient outside."""

    def forward(self, x: Tensor) -> Tensor:
        return x.clamp(-1.0, 1.0)


class FeatureLayerNorm(nn.LayerNorm):
    """LayerNorm over the features. A single feature, which would always become 0, is left as it is."""

    def __init__(self, features: int) -> None:
        super().__init__(features, elementwise_affine=features > 1)

    def forward(self, x: Tensor) -> Tensor:
        return x if self.normalized_shape == (1,) else super().forward(x.to(self.weight.dtype)).to(x.dtype)


class FeatureBatchNorm(nn.BatchNorm1d):
    """BatchNorm of each feature over all leading axes.

    Fewer than two samples have no spread: then, as in evaluation, the running statistics serve.
    """

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1]).to(self.weight.dtype)
        if self.training and len(rows) < 2:
            return (
                nn.functional.batch_norm(
                    rows, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
                )
                .view(x.shape)
                .to(x.dtype)
            )
        return super().forward(rows).view(x.shape).to(x.dtype)


class MinMax(nn.Module):
    """To [-1, 1] by each feature's running smallest and largest value, clamped.

    Both modes use the running values, so that no sample depends on its batch beyond them; training batches move them
    by `momentum`, the first one sets them.

    Args:
        features: I.
        momentum: weight of a new batch's values.
    """

    trains_on_running = True  # so that whoever re-estimates them in between has to put them back
    running_min: Tensor
    running_max: Tensor
    batches: Tensor

    def __init__(self, features: int, momentum: float = 0.1) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("running_min", torch.full((features,), -1.0))
        self.register_buffer("running_max", torch.full((features,), 1.0))
        self.register_buffer("batches", torch.zeros(()))

    def reset_running_stats(self) -> None:
        """As new."""
        self.running_min.fill_(-1.0)
        self.running_max.fill_(1.0)
        self.batches.zero_()

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x.numel():
            self._follow(x.detach().reshape(-1, x.shape[-1]))
        span = (self.running_max - self.running_min).clamp_min(1e-6)
        return (2 * (x - self.running_min) / span - 1).clamp(-1.0, 1.0)

    @torch.no_grad()
    def _follow(self, rows: Tensor) -> None:
        weight = torch.where(self.batches == 0, 1.0, self.momentum).to(self.batches.dtype)
        self.running_min.lerp_(rows.amin(0).to(self.running_min.dtype), weight)
        self.running_max.lerp_(rows.amax(0).to(self.running_max.dtype), weight)
        self.batches.add_(1)


NORMALIZERS: dict[str, Callable[[int], nn.Module]] = {
    "none": lambda features: nn.Identity(),
    "tanh": lambda features: nn.Tanh(),
    "clamp": lambda features: Clamp(),
    "layer": FeatureLayerNorm,
    "batch": FeatureBatchNorm,
    "minmax": MinMax,
    "layer_tanh": lambda features: nn.Sequential(FeatureLayerNorm(features), nn.Tanh()),
    "batch_tanh": lambda features: nn.Sequential(FeatureBatchNorm(features), nn.Tanh()),
}
"""By name: what makes one for I features."""

BOUNDED = frozenset({"tanh", "clamp", "minmax", "layer_tanh", "batch_tanh"})
"""Those whose values lie in [-1, 1]."""

POST_NORMS = ("none", "layer", "batch")
"""Those that may stand behind a layer."""


def make_normalizer(name: str, features: int) -> nn.Module:
    """The normalizer of that name.

    Raises:
        InputError: there is none; the nearest name is given.
    """
    if name not in NORMALIZERS:
        raise unknown_name("normalizer", name, NORMALIZERS)
    return NORMALIZERS[name](features)


def reach_of(name: str) -> float:
    """How far from 0 the values of a normalizer reach, for inputs that are about standard normal."""
    return UNIT if name in BOUNDED else WIDE


def check_suits(name: str, family: type[Basis]) -> None:
    """Check that a family is defined where a normalizer takes its inputs.

    Raises:
        InputError: an unknown normalizer, or a polynomial behind one that leaves [-1, 1].
    """
    if name not in NORMALIZERS:
        raise unknown_name("normalizer", name, NORMALIZERS)
    if family.bounded and name not in BOUNDED:
        raise InputError(
            f"{family.name} needs inputs in [-1, 1], which normalizer {name!r} does not give; "
            f"use {', '.join(sorted(BOUNDED))}"
        )
