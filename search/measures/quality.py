"""Measures of quality: how well a net does what it is trained for."""

from __future__ import annotations

import math

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor, nn

from normact.search.data.base import Data, Split
from normact.search.measures.base import Measure, Measured
from normact.search.objective import Objective
from normact.search.training import loss_of, outputs_of
from normact.spaces.errors import InputError

WIDEST_TEMPERATURE = 1e4
"""Temperatures are looked for from its inverse to this."""


class Accuracy(Measure):
    """Share of validation examples whose class is given the largest output. Trivial: the most frequent class."""

    def objective(self, data: Data) -> Objective:
        if data.loss != "cross_entropy":
            raise InputError(f"accuracy needs classes, but the data's loss is {data.loss}; drop this objective")
        return Objective("accuracy", "", "maximize", float(_class_shares(data).max()), 1.0)

    def value(self, measured: Measured) -> float:
        if not torch.isfinite(measured.outputs).all():
            return math.nan  # the argmax of a NaN is some class, which would score as chance
        return float((measured.outputs.argmax(1) == measured.targets).float().mean())


class ValidationLoss(Measure):
    """Mean loss on the validation examples, statistics re-estimated before."""

    def objective(self, data: Data) -> Objective:
        return Objective("validation_loss", "", "minimize", trivial_loss(data, held_out=True), 0.0)

    def value(self, measured: Measured) -> float:
        return float(loss_of(measured.training.loss, measured.outputs, measured.targets))


class RMSE(Measure):
    """Root of the mean square error on the validation examples, in the data's own unit. Trivial: the mean's."""

    def objective(self, data: Data) -> Objective:
        if data.loss != "mse":
            raise InputError(f"rmse needs values to predict, but the data's loss is {data.loss}; use accuracy")
        return Objective("rmse", "", "minimize", data.target_unit * math.sqrt(trivial_loss(data, held_out=True)), 0.0)

    def value(self, measured: Measured) -> float:
        error = measured.outputs - measured.targets.view_as(measured.outputs)
        return measured.target_unit * float(error.square().mean().sqrt())


class TrainingLoss(Measure):
    """Mean training loss of the second half of the steps: less noisy than any validation on few examples."""

    reads_examples = False

    def objective(self, data: Data) -> Objective:
        return Objective("training_loss", "", "minimize", trivial_loss(data), 0.0)

    def value(self, measured: Measured) -> float:
        return measured.training.second_half_loss


class Brier(Measure):
    """Brier score after one fitted temperature: mean over examples of sum_k (p_k - [k is the class])^2, from 0 to 2.

    p is the softmax of the outputs divided by a temperature, so that a layer that merely changes their scale wins
    nothing. It is the one of the least cross-entropy on examples that are not measured: each half of the validation
    examples is measured at the temperature of the other half, the test split at that of all validation examples.
    Unlike calibration errors over bins, the score is least at the true probabilities ("Deep Probability Estimation",
    arXiv 2111.10734).

    Trivial: the shares of the classes as probabilities, 1 - sum_k share_k^2.

    Raises:
        InputError: from `objective`, the data have no classes.
    """

    def objective(self, data: Data) -> Objective:
        if data.loss != "cross_entropy":
            raise InputError(f"brier needs classes, but the data's loss is {data.loss}; drop this objective")
        return Objective("brier", "", "minimize", float(1 - _class_shares(data).square().sum()), 0.0)

    def value(self, measured: Measured) -> float:
        logits, y = measured.outputs.double().cpu(), measured.targets.cpu()
        if not torch.isfinite(logits).all():
            return math.nan  # no temperature makes probabilities of them
        if measured.examples is not measured.validation:
            held_out = _logits(measured)
            if not torch.isfinite(held_out).all():
                return math.nan
            return float(_brier(logits, y, temperature_of(held_out, measured.validation.y.cpu())).mean())
        halves = (slice(0, None, 2), slice(1, None, 2))
        scores = [
            _brier(logits[own], y[own], temperature_of(logits[other], y[other]))
            for own, other in (halves, halves[::-1])
        ]
        return float(torch.cat(scores).mean())


def temperature_of(logits: Tensor, y: Tensor) -> float:
    """The temperature T of the least mean cross-entropy of softmax(logits / T).

    Args:
        logits: (n, classes), finite.
        y: (n,) classes.
    """

    def loss(log_temperature: float) -> float:  # convex in 1 / T, so it has one minimum along log T too
        return float(nn.functional.cross_entropy(logits * math.exp(-log_temperature), y))

    reach = math.log(WIDEST_TEMPERATURE)
    return math.exp(minimize_scalar(loss, bounds=(-reach, reach), method="bounded").x)


def _brier(logits: Tensor, y: Tensor, temperature: float) -> Tensor:
    """Each example's score, (n,)."""
    wrong = torch.softmax(logits / temperature, 1) - nn.functional.one_hot(y, logits.shape[1])
    return wrong.square().sum(1)


def _logits(measured: Measured) -> Tensor:
    """The model's outputs on the validation examples."""
    return outputs_of(measured.training.model, measured.validation.x).double().cpu()


def trivial_loss(data: Data, held_out: bool = False) -> float:
    """The loss of a model that ignores its input.

    For classes the entropy of the training labels; for values the mean square of targets less the training targets'
    mean, over the training examples or over those held out, whose targets may have no noise.
    """
    if data.loss == "cross_entropy":
        shares = _class_shares(data)
        return float(-(shares * shares.clamp_min(1e-12).log()).sum())
    mean = _training(data).y.mean(0)
    targets = data.load().validation.check_finite("validation").y if held_out else _training(data).y
    return float((targets - mean).square().mean())


def _class_shares(data: Data) -> Tensor:
    y = data.load().train.y
    return torch.bincount(y, minlength=data.outputs).double() / len(y)


def _training(data: Data) -> Split:
    return data.load().train.check_finite("training")
