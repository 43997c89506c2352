"""Sines and cosines: of fixed frequencies, and of trainable ones."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from normact.spaces.kan.basis import MOST_FUNCTIONS, WIDE, Basis, register_basis
from normact.spaces.kan.checks import check_whole

MOST_FREQUENCIES = 64
"""Beyond it the recurrence of the multiples loses too much in float32."""


@register_basis
class Fourier(Basis):
    """cos(k t) and sin(k t), k = 1 to G, t = pi x / (2 reach): K = 2 G (FourierKAN).

    [-reach, reach] is half a period. Were it a whole one, its two ends would have to have the same value, and inputs
    a little beyond one end would be taken for inputs at the other: fitted to f(x) = x under a standard normal (cut at
    3.5; reach 2, G = 4), half a period leaves 0.032 of the standard deviation, a whole one 0.74.

    One sine and one cosine are computed; the rest follow from cos((k + 1) t) = 2 cos t cos kt - cos((k - 1) t), and
    alike for the sine. Coefficients start damped by 1 / k, so that the function starts smooth (FourierKAN's smooth
    initialisation has 1 / k^2).

    Args:
        features: I.
        reach: of the inputs.
        frequencies: G, at least 1.

    Raises:
        InputError: a number of frequencies that cannot be.
    """

    name = "fourier"
    choices = {"frequencies": (2, 4, 6)}

    def __init__(self, features: int, reach: float = WIDE, frequencies: int = 4) -> None:
        check_whole(self.name, "frequencies", frequencies, 1, MOST_FREQUENCIES)
        super().__init__(features, 2 * frequencies, reach)
        self.frequencies = frequencies
        self.rate = math.pi / (2 * reach)

    def planes(self, x: Tensor) -> Tensor:
        t = x * self.rate
        cosines, sines = [torch.ones_like(t), torch.cos(t)], [torch.zeros_like(t), torch.sin(t)]
        twice = 2 * cosines[1]
        for _ in range(1, self.frequencies):
            for found in (cosines, sines):
                found.append(twice * found[-1] - found[-2])
        return torch.stack(cosines[1:] + sines[1:], -2)

    def vjp(self, x: Tensor, planes: Tensor, grad: Tensor) -> tuple[Tensor]:
        waves, above, count = planes.unbind(-2), grad.unbind(-2), self.frequencies
        of_x = torch.zeros_like(x)
        for k in range(count):
            of_x.addcmul_(above[count + k], waves[k], value=(k + 1) * self.rate)
            of_x.addcmul_(above[k], waves[count + k], value=-(k + 1) * self.rate)
        return (of_x,)

    def relative_std(self) -> Tensor:
        return 1 / torch.arange(1, self.frequencies + 1).repeat(2)


@register_basis
class Sine(Basis):
    """sin(w_k x + phi_ki), trainable frequencies w_k shared by the inputs (SineKAN, arXiv 2407.04149).

    w_k starts at k / reach; phi_ki = k / (K + 1) + pi (i - 1) / (I - 1) is fixed and sets the inputs apart (the
    published code then stretches the phases with the grid; not here). Coefficients start damped by 1 / k.

    Args:
        features: I.
        reach: of the inputs.
        grid: K, at least 1.

    Raises:
        InputError: a grid that cannot be.
    """

    name = "sine"
    choices = {"grid": (4, 8, 12)}
    phases: Tensor

    def __init__(self, features: int, reach: float = WIDE, grid: int = 8) -> None:
        check_whole(self.name, "grid", grid, 1, MOST_FUNCTIONS)
        super().__init__(features, grid, reach)
        k = torch.arange(1, grid + 1)
        self.rates = nn.Parameter(k / reach)
        self.register_buffer("phases", (k / (grid + 1)).unsqueeze(1) + torch.linspace(0, math.pi, features))

    def planes(self, x: Tensor) -> Tensor:
        return self._angles(x).sin()

    def vjp(self, x: Tensor, planes: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
        of_angles = self._angles(x).cos_().mul_(grad)
        of_rates = (of_angles * x.unsqueeze(-2)).sum((0, 2))
        return of_angles.mul_(self.rates.unsqueeze(-1)).sum(-2), of_rates

    def _angles(self, x: Tensor) -> Tensor:
        return (x.unsqueeze(-2) * self.rates.unsqueeze(-1)).add_(self.phases)

    def relative_std(self) -> Tensor:
        return 1 / torch.arange(1, self.size + 1)
