"""Gaussian radial basis functions."""

from __future__ import annotations

import torch
from torch import Tensor

from normact.spaces.kan.basis import MOST_FUNCTIONS, WIDE, Basis, register_basis
from normact.spaces.kan.checks import check_whole


@register_basis
class Gaussian(Basis):
    """exp(-((x - c_k) / h)^2), centres c_k evenly from -reach to reach, h their distance (FastKAN, arXiv 2405.06721).

    Args:
        features: I.
        reach: of the centres.
        grid: K, at least 2.

    Raises:
        InputError: a grid that cannot be.
    """

    name = "gaussian"
    choices = {"grid": (5, 8, 12)}
    centers: Tensor

    def __init__(self, features: int, reach: float = WIDE, grid: int = 8) -> None:
        check_whole(self.name, "grid", grid, 2, MOST_FUNCTIONS)
        super().__init__(features, grid, reach)
        self.register_buffer("centers", torch.linspace(-reach, reach, grid).unsqueeze(1))
        self.per_width = (grid - 1) / (2 * reach)

    def planes(self, x: Tensor) -> Tensor:
        return self._distances(x).square().neg_().exp_()

    def vjp(self, x: Tensor, planes: Tensor, grad: Tensor) -> tuple[Tensor]:
        return (self._distances(x).mul_(planes).mul_(grad).sum(-2).mul_(-2 * self.per_width),)

    def _distances(self, x: Tensor) -> Tensor:
        """(x - c_k) / h."""
        return (x.unsqueeze(-2) - self.centers).mul_(self.per_width)
