"""Rational functions: safe Pade approximants, shared in groups of channels."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

from normact.spaces.errors import unknown_name
from normact.spaces.kan.basis import WIDE, Basis, register_basis
from normact.spaces.kan.checks import check_whole

ABOVE, BELOW = 5, 4
"""The default degrees of the numerator and of the denominator."""

STARTS = ("silu", "identity")
"""What a rational function may be at its start."""


@register_basis
class Rational(Basis):
    """P(x) / (1 + |Q(x)|), P of degree m, Q of degree n without a constant: one function an input, K = 1.

    (Safe Pade units, arXiv 1907.06732; coefficients shared in groups of channels as in KAT, arXiv 2409.10594.) The
    denominator is at least 1, so there is no pole. Both are computed by Horner's rule, in float32 or float64.
    Trainable: `numerator` ((m + 1) groups) and `denominator` (n groups), group after group, lowest power first.

    Args:
        features: I.
        reach: where the start is fitted.
        groups: of neighbouring channels that share coefficients; at most I are made.
        start: `silu`, fitted on [-2 reach, 2 reach], or `identity`.
        above: m, 3 to 6.
        below: n, 2 to 4 and less than m.

    Raises:
        InputError: groups or degrees that cannot be, or an unknown start.
    """

    name = "rational"
    kept = 9
    choices = {"groups": (1, 8), "start": STARTS, "above": (5,), "below": (2, 4)}
    group: Tensor

    def __init__(
        self,
        features: int,
        reach: float = WIDE,
        groups: int = 8,
        start: str = "silu",
        above: int = ABOVE,
        below: int = BELOW,
    ) -> None:
        check_whole(self.name, "groups", groups, 1, 2**16)
        check_whole(self.name, "above", above, 3, 6)
        check_whole(self.name, "below", below, 2, min(4, above - 1))
        if start not in STARTS:
            raise unknown_name("start of rational", start, STARTS)
        super().__init__(features, 1, reach)
        self.groups = min(groups, features)
        p, q = _start(start, 2 * self.reach, above, below)
        self.numerator = nn.Parameter(torch.tensor(p).repeat(self.groups))
        self.denominator = nn.Parameter(torch.tensor(q).repeat(self.groups))
        self.register_buffer("group", torch.arange(features) * self.groups // features)

    def planes(self, x: Tensor) -> Tensor:
        x = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        p, q = (c.to(x.dtype).view(self.groups, -1)[self.group].unbind(-1) for c in (self.numerator, self.denominator))
        above, below = p[-1], q[-1] * x
        for c in p[-2::-1]:
            above = above * x + c
        for c in q[-2::-1]:
            below = (below + c) * x
        return (above / (1 + below.abs())).unsqueeze(-2)


@functools.cache
def _start(start: str, reach: float, above: int, below: int) -> tuple[list[float], list[float]]:
    """Coefficients of P and of Q, lowest power first. Q is not 0, or its sign would leave it without a gradient."""
    if start == "identity":  # (x + x^3 / r^2) / (1 + x^2 / r^2)
        square = 1 / reach**2
        return [0.0, 1.0, 0.0, square, *[0.0] * (above - 3)], [0.0, square, *[0.0] * (below - 2)]
    return fit_silu(reach, above, below)


def fit_silu(reach: float, above: int, below: int) -> tuple[list[float], list[float]]:
    """P / (1 + Q) nearest to x / (1 + exp(-x)) on [-reach, reach], with Q even, which leaves it positive.

    Least squares of P - f Q - f, divided by the last round's 1 + Q (Sanathanan and Koerner, 1963).
    """
    x = torch.linspace(-reach, reach, 201, dtype=torch.float64)  # not numpy: an exported file needs torch alone
    f, q = nn.functional.silu(x), torch.zeros_like(x)
    powers = torch.arange(2, below + 1, 2)
    columns = torch.cat([x[:, None] ** torch.arange(above + 1), -f[:, None] * x[:, None] ** powers], 1)
    for _ in range(20):
        weights = 1 / (1 + q.abs())
        found = torch.linalg.lstsq(columns * weights[:, None], (f * weights)[:, None]).solution[:, 0]
        q = x[:, None] ** powers @ found[above + 1 :]
    denominator = torch.zeros(below, dtype=torch.float64)
    denominator[powers - 1] = found[above + 1 :]
    return found[: above + 1].tolist(), denominator.tolist()
