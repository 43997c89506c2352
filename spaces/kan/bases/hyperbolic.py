"""Bumps made of the hyperbolic secant: sech and its square."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from normact.spaces.kan.basis import MOST_FUNCTIONS, WIDE, Basis, register_basis
from normact.spaces.kan.checks import check_whole


@register_basis
class Sech(Basis):
    """1 / cosh((x - c_k) / h), trainable centres c_k, which start evenly from -reach to reach; h is their distance.

    (SechKAN in the repository All-KAN.) Written as 2 e^-|u| / (1 + e^-2|u|), which cannot overflow.

    Args:
        features: I.
        reach: of the centres.
        grid: K, at least 2.

    Raises:
        InputError: a grid that cannot be.
    """

    name = "sech"
    choices = {"grid": (5, 8, 12)}

    def __init__(self, features: int, reach: float = WIDE, grid: int = 8) -> None:
        check_whole(self.name, "grid", grid, 2, MOST_FUNCTIONS)
        super().__init__(features, grid, reach)
        self.centers = nn.Parameter(torch.linspace(-reach, reach, grid))
        self.per_width = (grid - 1) / (2 * reach)

    def planes(self, x: Tensor) -> Tensor:
        e = self._distances(x).abs().neg_().exp_()
        return (e / e.square().add_(1)).mul_(2)

    def vjp(self, x: Tensor, planes: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
        slopes = tanh_times(self._distances(x), planes, grad)
        return slopes.sum(-2).mul_(-self.per_width), slopes.sum((0, 2)).mul_(self.per_width)

    def _distances(self, x: Tensor) -> Tensor:
        """(x - c_k) / h."""
        return (x.unsqueeze(-2) - self.centers.unsqueeze(-1)).mul_(self.per_width)


@register_basis
class Rswaf(Basis):
    """1 - tanh^2((x - c_k) / h), centres c_k evenly from -reach to reach, h their distance (FasterKAN's RSWAF).

    Written as 4 e^-2|u| / (1 + e^-2|u|)^2: one exponential, and no cancelling in the tails.

    Args:
        features: I.
        reach: of the centres.
        grid: K, at least 2.

    Raises:
        InputError: a grid that cannot be.
    """

    name = "rswaf"
    choices = {"grid": (5, 8, 12)}
    centers: Tensor

    def __init__(self, features: int, reach: float = WIDE, grid: int = 8) -> None:
        check_whole(self.name, "grid", grid, 2, MOST_FUNCTIONS)
        super().__init__(features, grid, reach)
        self.register_buffer("centers", torch.linspace(-reach, reach, grid).unsqueeze(1))
        self.per_width = (grid - 1) / (2 * reach)

    def planes(self, x: Tensor) -> Tensor:
        e = self._distances(x).abs().mul_(-2).exp_()
        return (e / (e + 1).square()).mul_(4)

    def vjp(self, x: Tensor, planes: Tensor, grad: Tensor) -> tuple[Tensor]:
        return (tanh_times(self._distances(x), planes, grad).sum(-2).mul_(-2 * self.per_width),)

    def _distances(self, x: Tensor) -> Tensor:
        """(x - c_k) / h."""
        return (x.unsqueeze(-2) - self.centers).mul_(self.per_width)


def tanh_times(u: Tensor, planes: Tensor, grad: Tensor) -> Tensor:
    """tanh(u) planes grad, written over u: up to a factor the slope of either bump, times grad."""
    e = u.abs().mul_(-2).exp_()
    return torch.copysign(1 - e, u, out=u).div_(e.add_(1)).mul_(planes).mul_(grad)
