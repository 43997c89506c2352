"""Squared products of two ReLUs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from normact.spaces.kan.basis import MOST_FUNCTIONS, WIDE, Basis, register_basis
from normact.spaces.kan.checks import check_whole


@register_basis
class ReLUKAN(Basis):
    """[relu(e_k - x) relu(x - s_k)]^2 16 / (e_k - s_k)^4, trainable ends s_k < e_k (ReLU-KAN, arXiv 2406.02075).

    Computed as max(1 - u^2, 0)^2 with u = (2x - s_k - e_k) / (e_k - s_k), which is the same. Its peak is 1 wherever
    the ends go (the published code keeps the factor of the first ends, so that the peak drifts), and it is 0 outside
    the ends. The ends are shared by the inputs; they start with G cells of width h over [-reach, reach], p more on
    the left: s_k = -reach + (k - p) h, e_k = s_k + (p + 1) h.

    Args:
        features: I.
        reach: of the grid.
        grid: G, at least 1.
        order: p, at least 0; K = G + p.

    Raises:
        InputError: a grid or order that cannot be.
    """

    name = "relu_kan"
    choices = {"grid": (3, 5, 8), "order": (2, 3)}

    def __init__(self, features: int, reach: float = WIDE, grid: int = 5, order: int = 3) -> None:
        check_whole(self.name, "grid", grid, 1, MOST_FUNCTIONS // 2)
        check_whole(self.name, "order", order, 0, MOST_FUNCTIONS // 2)
        super().__init__(features, grid + order, reach)
        cell = 2 * self.reach / grid
        starts = (torch.arange(self.size) - order) * cell - self.reach
        self.starts = nn.Parameter(starts)
        self.ends = nn.Parameter(starts + (order + 1) * cell)
        self.narrowest = cell / 1000

    def planes(self, x: Tensor) -> Tensor:
        return self._distances(x).square().neg_().add_(1).relu_().square()

    def vjp(self, x: Tensor, planes: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        u, half = self._distances(x), self._halves()
        of_x = u.square().neg_().add_(1).relu_().mul_(u).mul_(grad).mul_((-4 / half).unsqueeze(-1))
        of_half = -(of_x * u).sum((0, 2)) * (half > self.narrowest)
        of_middle = -of_x.sum((0, 2))
        return of_x.sum(-2), (of_middle - of_half) / 2, (of_middle + of_half) / 2

    def _distances(self, x: Tensor) -> Tensor:
        """u."""
        middle = (self.starts + self.ends) / 2
        return (x.unsqueeze(-2) - middle.unsqueeze(-1)) / self._halves().unsqueeze(-1)

    def _halves(self) -> Tensor:
        """Half the distance of the ends, which stay apart when they cross."""
        return ((self.ends - self.starts) / 2).clamp_min(self.narrowest)
