"""How the outputs of several basis families become one (FC-KAN, arXiv 2409.01763; BSRBF-KAN, arXiv 2406.11173)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Form = Callable[[Sequence[Tensor]], Tensor]
"""The families' outputs, each (..., O), to one (..., O)."""


def _product(ys: Sequence[Tensor]) -> Tensor:
    y = ys[0]
    for other in ys[1:]:
        y = y * other
    return y


def _sum(ys: Sequence[Tensor]) -> Tensor:
    y = ys[0]
    for other in ys[1:]:
        y = y + other
    return y


def _sum_product(ys: Sequence[Tensor]) -> Tensor:
    return (_sum(ys) + _product(ys)) / math.sqrt(len(ys) + 1)


def _quadratic(ys: Sequence[Tensor]) -> Tensor:
    squares = _sum([y.square() for y in ys])
    return (_sum(ys) + _product(ys) + squares) / math.sqrt(3 * len(ys) + 1)


def _largest(ys: Sequence[Tensor]) -> Tensor:
    y = ys[0]
    for other in ys[1:]:
        y = torch.maximum(y, other)
    return y


def _smallest(ys: Sequence[Tensor]) -> Tensor:
    return -_largest([-y for y in ys])


def _mean(ys: Sequence[Tensor]) -> Tensor:
    return _sum(ys) / len(ys)


def _concat(ys: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(ys), -1)


FORMS: dict[str, Form] = {
    "product": _product,
    "sum_product": _sum_product,
    "quadratic": _quadratic,
    "max": _largest,
    "min": _smallest,
    "mean": _mean,
    "concat": _concat,
}
"""Forms of outputs that each come from coefficients of their own. `quadratic` is sum + product + sum of squares; in
`concat` each family serves its share of the outputs. Sums are scaled so that outputs of variance 1 give about that."""

COMBINATIONS = ("sum", "shared", *FORMS)
"""`sum` is the sum of the outputs; `shared` adds the bases up, which then have one set of coefficients."""
