"""`ExtrapolatedLoss`: where the training loss is heading."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.optimize import nnls

from normact.search.data.base import Data
from normact.search.measures.base import Measure, Measured
from normact.search.measures.quality import trivial_loss
from normact.search.objective import Objective

EXPONENTS = np.geomspace(0.05, 2.0, 40)
BINS = 12


class ExtrapolatedLoss(Measure):
    """The training loss after `factor` times as many steps, read off the power law that fits the losses so far.

    The law is c + a t^-b with a, c >= 0 (one of the families of Domhan, Springenberg and Hutter, "Speeding up automatic
    hyperparameter optimization of deep neural networks by extrapolation of learning curves", IJCAI 2015), fitted by
    least squares to the mean losses of bins that are even on the scale of log t. Like any training loss, it says
    nothing about examples that were not seen.

    Args:
        factor: how many times as many steps.
    """

    reads_examples = False

    def __init__(self, factor: float = 10.0) -> None:
        self.factor = factor

    def objective(self, data: Data) -> Objective:
        return Objective("extrapolated_loss", "", "minimize", trivial_loss(data), 0.0)

    def value(self, measured: Measured) -> float:
        return extrapolated(measured.training.losses, self.factor)


def extrapolated(losses: Sequence[float], factor: float) -> float:
    """The fitted law at `factor` times the number of losses; NaN where there are none or one is not finite."""
    values = np.asarray(losses, dtype=float)
    if not len(values) or not np.isfinite(values).all():
        return math.nan
    ends = np.unique(np.round(np.geomspace(1, len(values), BINS + 1)).astype(int))
    starts = np.concatenate([[0], ends[:-1]])
    steps = np.array([(a + 1 + b) / 2 for a, b in zip(starts, ends, strict=True)])
    means = np.array([values[a:b].mean() for a, b in zip(starts, ends, strict=True)])
    weights = np.sqrt(ends - starts)
    fits = [(*_fitted(steps, means, weights, b), b) for b in EXPONENTS]
    _, (c, a), b = min(fits, key=lambda fit: fit[0])
    return float(c + a * (factor * len(values)) ** -b)


def _fitted(steps: np.ndarray, means: np.ndarray, weights: np.ndarray, exponent: float) -> tuple[float, np.ndarray]:
    """The error of the best c + a t^-exponent, and (c, a)."""
    columns = np.stack([np.ones_like(steps), steps**-exponent], 1)
    solution, error = nnls(columns * weights[:, None], means * weights)
    return error, solution
