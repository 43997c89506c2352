"""Orthogonal polynomials on [-1, 1] by three-term recurrences. The constant is left out: the layer has a bias."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn

from normact.spaces.errors import InputError
from normact.spaces.kan.basis import UNIT, Basis, register_basis
from normact.spaces.kan.checks import check_whole

MOST_DEGREES = 64
"""Beyond it float32 has nothing left of a recurrence's coefficients."""


class Polynomials(Basis):
    """p_1 to p_K of p_{k+1} = (a_k x + b_k) p_k - c_k p_{k-1}, with p_0 = 1; see the families for a, b, c.

    The recurrence has finite gradients everywhere, which cos(k acos x) has not at the ends.

    Args:
        features: I.
        reach: of the inputs; at most 1.
        degree: K, at least `least`.

    Raises:
        InputError: a degree that cannot be.
    """

    bounded = True
    least = 1

    def __init__(self, features: int, reach: float = UNIT, degree: int = 4) -> None:
        check_whole(self.name, "degree", degree, self.least, MOST_DEGREES)
        super().__init__(features, degree, reach)

    @abstractmethod
    def step(self, k: int) -> tuple[float, float, float | Tensor]:
        """a_k, b_k, c_k; c_0 does not count."""

    def planes(self, x: Tensor) -> Tensor:
        a, b, _ = self.step(0)
        before, now = torch.ones_like(x), a * x + b
        found = [now]
        for k in range(1, self.size):
            a, b, c = self.step(k)
            before, now = now, (a * x + b if b else a * x) * now - c * before
            found.append(now)
        return torch.stack(found, -2)

    def vjp(self, x: Tensor, planes: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
        """Backwards along the recurrence: that of p_k is u_k = grad_k + (a_k x + b_k) u_{k+1} - c_{k+1} u_{k+2}."""
        p = [torch.ones_like(x), *planes.unbind(-2)]
        g = grad.unbind(-2)
        after: Tensor | None = None
        now = g[-1]
        of_x = torch.zeros_like(x)
        of_c: list[Tensor] = []
        for k in range(self.size - 1, -1, -1):  # now is the gradient of p_{k+1}
            a, b, _ = self.step(k)
            of_x.add_(now * p[k], alpha=a)
            if k == 0:
                break
            of_c.append(now)
            before = g[k - 1] + (a * x + b) * now
            if after is not None:
                before -= self.step(k + 1)[2] * after
            after, now = now, before
        return (of_x, *self._of_parameters(p, of_c[::-1]))

    def _of_parameters(self, p: list[Tensor], grads: list[Tensor]) -> tuple[Tensor, ...]:
        """From p_0 to p_K and the gradients of p_2 to p_K."""
        return ()


@register_basis
class Chebyshev(Polynomials):
    """T_1 to T_K: T_{k+1} = 2x T_k - T_{k-1}, T_1 = x (ChebyKAN, arXiv 2405.07200). See `Polynomials`."""

    name = "chebyshev"
    choices = {"degree": (3, 4, 6, 8)}

    def step(self, k: int) -> tuple[float, float, float]:
        return (2.0, 0.0, 1.0) if k else (1.0, 0.0, 0.0)


@register_basis
class Legendre(Polynomials):
    """P_1 to P_K: (k + 1) P_{k+1} = (2k + 1) x P_k - k P_{k-1} (Bonnet's recursion). See `Polynomials`."""

    name = "legendre"
    choices = {"degree": (3, 4, 6, 8)}

    def step(self, k: int) -> tuple[float, float, float]:
        return (2 * k + 1) / (k + 1), 0.0, k / (k + 1)


@register_basis
class Jacobi(Polynomials):
    """P_1 to P_K of Jacobi, orthogonal under (1 - x)^alpha (1 + x)^beta (DLMF 18.9.1, 18.9.2). See `Polynomials`.

    Args:
        features: I.
        reach: of the inputs; at most 1.
        degree: K.
        alpha: above -1.
        beta: above -1.

    Raises:
        InputError: a degree that cannot be; alpha or beta not a finite number above -1.
    """

    name = "jacobi"
    choices = {"degree": (3, 4, 6, 8), "alpha": (0.5, 1.0, 2.0), "beta": (0.5, 1.0, 2.0)}

    def __init__(
        self, features: int, reach: float = UNIT, degree: int = 4, alpha: float = 1.0, beta: float = 1.0
    ) -> None:
        if not (-1 < alpha < float("inf") and -1 < beta < float("inf")):
            raise InputError(f"jacobi needs finite alpha and beta above -1, got alpha={alpha} and beta={beta}")
        super().__init__(features, reach, degree)
        self.alpha, self.beta = alpha, beta

    def step(self, k: int) -> tuple[float, float, float]:
        alpha, beta = self.alpha, self.beta
        s = alpha + beta
        if k == 0:
            return (s + 2) / 2, (alpha - beta) / 2, 0.0
        below = 2 * (k + 1) * (k + s + 1)
        a = (2 * k + s + 1) * (2 * k + s + 2) / below
        b = (alpha**2 - beta**2) * (2 * k + s + 1) / (below * (2 * k + s))
        return a, b, 2 * (k + alpha) * (k + beta) * (2 * k + s + 2) / (below * (2 * k + s))


@register_basis
class Gram(Polynomials):
    """q_1 to q_K: q_{k+1} = 2x q_k - beta_k q_{k-1}, q_1 = x, with trainable beta_k, shared by all inputs.

    At the start q_k is 2^(k-1) times the monic Gram polynomial, orthogonal on N = K + 1 points spread evenly over
    [-1, 1]: beta_k = 4 k^2 (N^2 - k^2) / (N^2 (4 k^2 - 1)), half that for k = 1. With all beta_k = 1 they are
    Chebyshev's. (Trainable beta_k: the KAGN layers of torch-conv-kan, where they start near 0, that is at powers of
    x.) See `Polynomials`.

    Args:
        features: I.
        reach: of the inputs; at most 1.
        degree: K, at least 2.
    """

    name = "gram"
    choices = {"degree": (3, 4, 6, 8)}
    least = 2

    def __init__(self, features: int, reach: float = UNIT, degree: int = 4) -> None:
        super().__init__(features, reach, degree)
        k, points = torch.arange(1, degree, dtype=torch.float64), degree + 1
        betas = 4 * k**2 * (points**2 - k**2) / (points**2 * (4 * k**2 - 1))
        betas[0] /= 2
        self.betas = nn.Parameter(betas.to(torch.get_default_dtype()))

    def step(self, k: int) -> tuple[float, float, float | Tensor]:
        return (2.0, 0.0, self.betas[k - 1]) if k else (1.0, 0.0, 0.0)

    def _of_parameters(self, p: list[Tensor], grads: list[Tensor]) -> tuple[Tensor]:
        return (-torch.stack([(g * before).sum() for g, before in zip(grads, p, strict=False)]),)
