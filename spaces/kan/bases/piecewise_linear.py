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

    With ramps r_k, the share of cell k that lies left of x, which at the two outer ends may leave [0, 1], hat k is
    r_{k-1} - r_k, so that a mix of hats is linear outside too, with the slope of its end cell (cf. P1-KAN, arXiv
    2410.03801). At a node the slope is that of the left cell.

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
        t = (x + self.reach) * self.per_width
        beyond = [t, *((t - k).relu_() for k in range(1, self.size - 1))]  # exact where above 0
        ramps = [*(left - right for left, right in pairwise(beyond)), beyond[-1]]
        inner = [left - right for left, right in pairwise(ramps)]
        return torch.stack([1 - ramps[0], *inner, ramps[-1]], -2)

    def vjp(self, x: Tensor, planes: Tensor, grad: Tensor) -> tuple[Tensor]:
        """The slope is that of x's cell: the difference of its two hats' gradients, over h."""
        cell = ((x + self.reach) * self.per_width).ceil_().sub_(1).clamp_(0, self.size - 2).long().unsqueeze(-2)
        slope = grad.gather(-2, cell + 1) - grad.gather(-2, cell)
        return (slope.squeeze(-2) * self.per_width,)
