"""B-splines on uniform knots."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from normact.spaces.kan.basis import MOST_FUNCTIONS, WIDE, Basis, register_basis
from normact.spaces.kan.checks import check_whole

MOST_ORDERS = 7
"""Higher orders hardly differ from Gaussians, and the sum below loses digits."""


@register_basis
class BSpline(Basis):
    """The B-splines of order p on G equal cells over [-reach, reach] and p more on each side (arXiv 2404.19756).

    All are one function moved: b_k(x) = M((x - c_k) / h), c_k = -reach + (k + (1 - p) / 2) h, h = 2 reach / G. With
    a = (p + 1) / 2,

        M(s) = 1 / p! sum_{j < a} (-1)^j binom(p + 1, j) max(a - j - |s|, 0)^p

    (Schoenberg's sum of truncated powers, from the nearer end of the support). The powers are of numbers up to a, so
    little cancels, and M is exactly 0 where |s| >= a.

    Args:
        features: I.
        reach: of the grid.
        grid: G, at least 1.
        order: p, 1 (piecewise linear) to 7; K = G + p.

    Raises:
        InputError: a grid or order that cannot be.
    """

    name = "bspline"
    choices = {"grid": (3, 5, 8, 10), "order": (2, 3)}
    centers: Tensor

    def __init__(self, features: int, reach: float = WIDE, grid: int = 5, order: int = 3) -> None:
        check_whole(self.name, "grid", grid, 1, MOST_FUNCTIONS - MOST_ORDERS)
        check_whole(self.name, "order", order, 1, MOST_ORDERS)
        super().__init__(features, grid + order, reach)
        self.order = order
        self.per_width = grid / (2 * reach)
        self.register_buffer("centers", torch.arange(self.size).unsqueeze(1) + (1 - order - grid) / 2)
        self.terms = [(-1) ** j * math.comb(order + 1, j) / math.factorial(order) for j in range((order + 2) // 2)]

    def planes(self, x: Tensor) -> Tensor:
        return self._powers(self._distances(x).abs(), self.order)

    def vjp(self, x: Tensor, planes: Tensor, grad: Tensor) -> tuple[Tensor]:
        s = self._distances(x)
        slopes = self._powers(s.abs(), self.order - 1).mul_(s.sign_()).mul_(grad)
        return (slopes.sum(-2).mul_(-self.order * self.per_width),)

    def _distances(self, x: Tensor) -> Tensor:
        """(x - c_k) / h."""
        return (x * self.per_width).unsqueeze(-2) - self.centers

    def _powers(self, s: Tensor, power: int) -> Tensor:
        """The sum in M, at s >= 0, with that power in place of p."""
        rest = ((self.order + 1) / 2 - s).relu_()
        y = self._power(rest, power) * self.terms[0]
        for term in self.terms[1:]:
            rest = (rest - 1).relu_()
            y.add_(self._power(rest, power), alpha=term)
        return y

    @staticmethod
    def _power(rest: Tensor, power: int) -> Tensor:
        """With 0 to the power of 0 taken as 0, which is where the support ends."""
        return rest**power if power else (rest > 0).to(rest.dtype)
