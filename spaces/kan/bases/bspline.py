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

    def __init__(self, features: int, reach: float = WIDE, grid: int = 5, order: int = 3) -> None:
        check_whole(self.name, "grid", grid, 1, MOST_FUNCTIONS - MOST_ORDERS)
        check_whole(self.name, "order", order, 1, MOST_ORDERS)
        super().__init__(features, grid + order, reach)
        self.order = order
        self.per_width = grid / (2 * reach)
        self.centers = [k + (1 - order - grid) / 2 for k in range(self.size)]
        self.terms = [(-1) ** j * math.comb(order + 1, j) / math.factorial(order) for j in range((order + 2) // 2)]

    def planes(self, x: Tensor) -> Tensor:
        t = x * self.per_width
        return torch.stack([self._bump((t - center).abs()) for center in self.centers], -2)

    def _bump(self, s: Tensor) -> Tensor:
        """M at s >= 0."""
        half = (self.order + 1) / 2
        y = self.terms[0] * (half - s).relu() ** self.order
        for j, term in enumerate(self.terms[1:], 1):
            y = y + term * (half - j - s).relu() ** self.order
        return y
