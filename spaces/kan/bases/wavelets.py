"""Wavelets (Wav-KAN, arXiv 2405.12832) with scales and shifts that all edges share."""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
from torch import Tensor

from normact.spaces.kan.basis import WIDE, Basis, register_basis
from normact.spaces.kan.checks import check_whole

PEAK = 2 / (math.sqrt(3) * math.pi**0.25)
"""The Mexican hat's height, which gives it norm 1."""


def envelope(u: Tensor) -> Tensor:
    """exp(-u^2 / 2), where nothing is to be derived from it."""
    return u.square().mul_(-0.5).exp_()


class Wavelets(Basis):
    """psi((x - t_k) / s_k) for a dyadic dictionary of K = 2^L scales and shifts.

    Level l = 0 to L - 1 parts [-reach, reach] into 2^l equal cells, each with one wavelet at its middle whose scale
    is half the cell's width; one more at 0, of twice the largest scale, stands where a wavelet basis has its scaling
    function. (The published layer has a scale and a shift per edge, which one product of matrices cannot mix.)

    Args:
        features: I.
        reach: of the cells.
        levels: L, 1 to 10.

    Raises:
        InputError: a number of levels that cannot be.
    """

    choices = {"levels": (2, 3, 4)}
    shifts: Tensor
    per_scale: Tensor

    def __init__(self, features: int, reach: float = WIDE, levels: int = 3) -> None:
        check_whole(self.name, "levels", levels, 1, 10)
        super().__init__(features, 2**levels, reach)
        cells = [(level, cell) for level in range(levels) for cell in range(2**level)]
        shifts = [0.0] + [reach * ((2 * cell + 1) / 2**level - 1) for level, cell in cells]
        scales = [2 * reach] + [reach / 2**level for level, _ in cells]
        self.register_buffer("shifts", torch.tensor(shifts).unsqueeze(1))
        self.register_buffer("per_scale", 1 / torch.tensor(scales).unsqueeze(1))

    @staticmethod
    @abstractmethod
    def wavelet(u: Tensor) -> Tensor:
        """psi, elementwise."""

    @staticmethod
    @abstractmethod
    def slope(u: Tensor, psi: Tensor) -> Tensor:
        """psi', from u and psi(u)."""

    def planes(self, x: Tensor) -> Tensor:
        return self.wavelet(self._distances(x))

    def vjp(self, x: Tensor, planes: Tensor, grad: Tensor) -> tuple[Tensor]:
        return (self.slope(self._distances(x), planes).mul_(grad).mul_(self.per_scale).sum(-2),)

    def _distances(self, x: Tensor) -> Tensor:
        """(x - t_k) / s_k."""
        return (x.unsqueeze(-2) - self.shifts).mul_(self.per_scale)


@register_basis
class MexicanHat(Wavelets):
    """psi(u) = 2 / (sqrt 3 pi^(1/4)) (1 - u^2) exp(-u^2 / 2). See `Wavelets`."""

    name = "mexican_hat"

    @staticmethod
    def wavelet(u: Tensor) -> Tensor:
        square = u.square()
        return (square * -0.5).exp_() * (1 - square).mul_(PEAK)

    @staticmethod
    def slope(u: Tensor, psi: Tensor) -> Tensor:
        return envelope(u).mul_(2 * PEAK).add_(psi).mul_(u).neg_()


@register_basis
class Morlet(Wavelets):
    """psi(u) = cos(5u) exp(-u^2 / 2), the real part of Morlet's wavelet. See `Wavelets`."""

    name = "morlet"

    @staticmethod
    def wavelet(u: Tensor) -> Tensor:
        return (5 * u).cos() * u.square().mul_(-0.5).exp_()

    @staticmethod
    def slope(u: Tensor, psi: Tensor) -> Tensor:
        return torch.sin(5 * u).mul_(envelope(u)).mul_(-5).addcmul_(u, psi, value=-1)


@register_basis
class DoG(Wavelets):
    """psi(u) = -u exp(-u^2 / 2), the derivative of a Gaussian: the limit of a difference of two. See `Wavelets`."""

    name = "dog"

    @staticmethod
    def wavelet(u: Tensor) -> Tensor:
        return (u * u.square().mul_(-0.5).exp_()).neg_()

    @staticmethod
    def slope(u: Tensor, psi: Tensor) -> Tensor:
        return envelope(u).addcmul_(u, psi).neg_()


@register_basis
class DifferenceOfGaussians(Wavelets):
    """psi(u) = exp(-u^2 / 2) - exp(-u^2 / 8) / 2: two Gaussians of equal area, one twice as wide. See `Wavelets`."""

    name = "difference_of_gaussians"

    @staticmethod
    def wavelet(u: Tensor) -> Tensor:
        square = u.square()
        return torch.sub((square * -0.5).exp_(), (square * -0.125).exp_(), alpha=0.5)

    @staticmethod
    def slope(u: Tensor, psi: Tensor) -> Tensor:
        wide = u.square().mul_(-0.125).exp_()
        return wide.mul_(0.125).sub_(envelope(u)).mul_(u)
