"""Hat functions: what a piecewise linear function is made of."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from normact.spaces.kan.basis import MOST_FUNCTIONS, WIDE, Basis, register_basis
from normact.spaces.kan.checks import check_whole


@register_basis
class PiecewiseLinear(Basis):
    """Hats max(0, 1 - |x - c_k| / h) on nodes c_k evenly from -reach to reach; beyond them the end cells go on.

    With ramps r_k = clamp((x - c_k) / h, 0, 1), unclamped at the two outer ends, hat k is r_{k-1} - r_k, so that a
    mix of hats is linear outside too, with the slope of its end cell (cf. P1-KAN, arXiv 2410.03801).

    Args:
        features: I.
        reach: of the nodes.
        grid: K, the number of nodes, at least 2.

    Raises:
        InputError: a grid that cannot be.
    """

    name = "piecewise_linear"
    choices = {"grid": (5, 8, 12, 16)}

    def __init__(self, features: int, reach: float = WIDE, grid: int = 8) -> None:
        check_whole(self.name, "grid", grid, 2, MOST_FUNCTIONS)
        super().__init__(features, grid, reach)
        self.per_width = (grid - 1) / (2 * reach)

    def planes(self, x: Tensor) -> Tensor:
        t, cells = (x + self.reach) * self.per_width, self.size - 1
        ramps = [t - k for k in range(cells)]
        ramps = [ramp if k == 0 else torch.where(ramp < 0, 0.0, ramp) for k, ramp in enumerate(ramps)]
        ramps = [ramp if k == cells - 1 else torch.where(ramp < 1, ramp, 1.0) for k, ramp in enumerate(ramps)]
        inner = [left - right for left, right in pairwise(ramps)]
        return torch.stack([1 - ramps[0], *inner, ramps[-1]], -2)

    def vjp(self, x: Tensor, planes: Tensor, grad: Tensor) -> tuple[Tensor]:
        """The slope is that of x's cell: h^-1 times the difference of the gradients of the cell's two hats."""
        cell = ((x + self.reach) * self.per_width).floor_().clamp_(0, self.size - 2).long().unsqueeze(-2)
        slope = grad.gather(-2, cell + 1) - grad.gather(-2, cell)
        return (slope.squeeze(-2) * self.per_width,)
