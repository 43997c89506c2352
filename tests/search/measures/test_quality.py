"""Measures of quality against their formulas, written out in numpy."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import brentq
from torch import nn

from normact.search.anchors import PreActResNet
from normact.search.data import FunctionData, Split, TensorData
from normact.search.measures import RMSE, Accuracy, Brier, Measured, TrainingLoss, ValidationLoss
from normact.search.measures.quality import temperature_of
from normact.search.task import Task
from normact.search.training import Recipe, outputs_of
from normact.spaces import InputError
from tests.tasks import blobs, images, layer, small_task


def regression(outputs=2):
    def split(count, seed):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(count, 2, 6, 6, generator=generator)
        return x, 3 * x.mean((2, 3))[:, :outputs] + 1.5

    return TensorData(split(64, 1), split(40, 2), split(40, 3), outputs, "mse")


def trained(task):
    training = task.start("net", layer("gn_relu"), seed=0)
    training.run_to(6)
    return training


def test_values_of_classes_against_their_formulas():
    task = small_task()
    training = trained(task)
    values = task.measure(training)
    logits = outputs_of(training.model, task.splits.validation.x).double().numpy()
    y = task.splits.validation.y.numpy()
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    assert list(values) == ["validation_loss", "accuracy", "training_loss"]
    assert values["validation_loss"] == pytest.approx(-log_p[np.arange(len(y)), y].mean(), rel=1e-5)
    assert values["accuracy"] == pytest.approx(np.mean([row.argmax() == k for row, k in zip(logits, y, strict=True)]))
    assert values["training_loss"] == pytest.approx(np.mean(training.losses[3:]), rel=1e-12)


def test_a_regression_is_trained_and_measured_by_its_mean_square():
    net = {"net": PreActResNet(2, 2, width=4, blocks=(1,))}
    task = Task(regression(), net, Recipe(steps=40, batch_size=16, lr=0.01), [ValidationLoss()])
    training = task.start("net", layer("gn_relu"), seed=0)
    before = task.measure(training)["validation_loss"]
    training.run_to(40)
    after = task.measure(training)["validation_loss"]
    error = outputs_of(training.model, task.splits.validation.x) - task.splits.validation.y
    assert after == pytest.approx(float(error.double().square().mean()), rel=1e-5)
    assert after < 0.5 * before


def test_nan_outputs_are_no_accuracy_of_chance():
    outputs = torch.tensor([[math.nan, 0.0], [1.0, 0.0]])
    examples = Split(torch.zeros(2, 1), torch.tensor([0, 0]))
    for measure in (Accuracy(), Brier()):
        assert math.isnan(measure.value(Measured(None, examples, outputs, examples)))


def test_trivial_is_what_the_class_shares_give():
    """A model that ignores its input is best off with the most frequent class, or with the shares themselves."""
    task = small_task()
    labels = task.data.load().train.y.numpy()
    shares = np.array([(labels == c).mean() for c in range(3)])
    objectives = task.objectives
    assert objectives["accuracy"].trivial == pytest.approx(shares.max())
    for name in ("validation_loss", "training_loss"):
        assert objectives[name].trivial == pytest.approx(-(shares * np.log(shares)).sum())
        assert (objectives[name].direction, objectives[name].perfect) == ("minimize", 0.0)


def test_trivial_is_the_mean_predictor_for_values():
    """The mean of the training targets, judged on the examples that an objective is measured on."""
    data = regression()
    y, held_out = (split.y.double().numpy() for split in (data.load().train, data.load().validation))
    for measure, targets in ((TrainingLoss(), y), (ValidationLoss(), held_out)):
        expected = np.mean((targets - y.mean(0)) ** 2)
        assert measure.objective(data).trivial == pytest.approx(expected, rel=1e-5)


def test_values_have_no_accuracy():
    with pytest.raises(InputError, match="accuracy needs classes"):
        Accuracy().objective(regression())


def test_rmse_is_in_the_datas_own_unit():
    class Halved(TensorData):
        target_unit = 2.0

    x, y = torch.randn(40, 3), torch.randn(40, 1)
    data = Halved((x, y), (x, y), (x, y), 1, "mse")
    objective = RMSE().objective(data)
    assert objective.trivial == pytest.approx(2 * float(y.double().numpy().std()), rel=1e-5)
    assert (objective.name, objective.direction, objective.perfect) == ("rmse", "minimize", 0.0)
    task = small_task(data=data, anchors={"net": lambda make: nn.Linear(3, 1)}, measures=[RMSE()])
    training = task.start("net", lambda site: None, seed=0)
    found = task.measure(training)["rmse"]
    error = training.model(x).detach().double().numpy() - y.double().numpy()
    assert found == pytest.approx(2 * np.sqrt(np.mean(error**2)), rel=1e-5)


def test_a_net_that_says_the_mean_has_the_trivial_rmse():
    data = FunctionData("feynman_i_13_4", samples=200, validation=5000)
    task = small_task(data=data, anchors={"net": lambda make: Zero()}, measures=[RMSE()])
    found = task.measure(task.start("net", lambda site: None, seed=0))["rmse"]
    assert found == pytest.approx(task.objective().trivial, rel=1e-5)  # the targets' mean in training is 0
    assert found == pytest.approx(data.target_unit, rel=0.1)


class Zero(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        return self.scale * x[:, :1]


def test_classes_have_no_rmse():
    with pytest.raises(InputError, match="rmse needs values to predict, but the data's loss is cross_entropy"):
        RMSE().objective(blobs())


# -- Brier score ------------------------------------------------------------------------------------------------


def softmax(logits):
    e = np.exp(logits - logits.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def temperature(logits, y):
    """Where the derivative of the cross-entropy along 1 / T is zero: E_p[logit] is the right one's, on average."""

    def slope(b):
        return np.mean((softmax(b * logits) * logits).sum(1) - logits[np.arange(len(y)), y])

    return 1 / brentq(slope, 1e-4, 1e4)


def brier(logits, y, t):
    return np.mean(np.sum((softmax(logits / t) - np.eye(logits.shape[1])[y]) ** 2, 1))


def drawn(count, classes, seed, scale=1.0):
    """Logits, and labels that follow them: the right temperature is the scale."""
    rng = np.random.default_rng(seed)
    logits = 2 * rng.standard_normal((count, classes))
    y = np.array([rng.choice(classes, p=p) for p in softmax(logits)])
    return scale * logits, y


def measured(logits, y):
    examples = Split(torch.zeros(len(y), 1), torch.from_numpy(y))
    return Measured(None, examples, torch.from_numpy(logits), examples)


@given(seed=st.integers(0, 1000), scale=st.floats(0.01, 100), classes=st.integers(2, 6))
def test_the_temperature_is_where_the_derivative_of_the_loss_is_zero(seed, scale, classes):
    logits, y = drawn(60, classes, seed, scale)
    expected = temperature(logits, y)
    assert temperature_of(torch.from_numpy(logits), torch.from_numpy(y)) == pytest.approx(expected, rel=1e-3)


def test_the_temperature_finds_the_scale_of_true_probabilities():
    logits, y = drawn(20_000, 4, 0, scale=5.0)
    assert temperature_of(torch.from_numpy(logits), torch.from_numpy(y)) == pytest.approx(5.0, rel=0.03)


def test_each_half_is_measured_at_the_temperature_of_the_other():
    logits, y = drawn(101, 3, 1)
    logits[::2] *= 4  # so that the halves' temperatures differ
    even, odd = slice(0, None, 2), slice(1, None, 2)
    parts = [(51, even, odd), (50, odd, even)]
    expected = sum(n * brier(logits[a], y[a], temperature(logits[b], y[b])) for n, a, b in parts) / 101
    assert Brier().value(measured(logits, y)) == pytest.approx(expected, rel=1e-4)
    assert brier(logits, y, temperature(logits, y)) != pytest.approx(expected, rel=1e-2)


def test_the_scale_of_the_outputs_wins_nothing():
    logits, y = drawn(100, 3, 2)
    values = [Brier().value(measured(scale * logits, y)) for scale in (0.05, 1.0, 30.0)]
    assert values == pytest.approx([values[0]] * 3, rel=1e-4)


def test_the_test_split_is_measured_at_the_temperature_of_the_validation_examples():
    x, y = images(70, 2)
    y[::4] = (y[::4] + 1) % 3  # or the best temperature could be 0
    data = TensorData(images(96, 1), (x, y), images(60, 3), 3)
    task = small_task(steps=40, data=data, measures=[ValidationLoss(), Brier()])
    training = task.start("net", layer("bn_relu"), seed=0)
    training.run_to(40)
    test = task.data.load_test()
    found = task.measure(training, test)["brier"]
    validation, y = task.splits.validation.x, task.splits.validation.y.numpy()
    t = temperature(outputs_of(training.model, validation).double().numpy(), y)
    expected = brier(outputs_of(training.model, test.x).double().numpy(), test.y.numpy(), t)
    assert found == pytest.approx(expected, rel=1e-4)


def test_the_trivial_brier_score_is_that_of_the_class_shares():
    data = blobs()
    y = data.load().train.y.numpy()
    shares = np.bincount(y) / len(y)
    expected = np.mean(np.sum((shares - np.eye(3)[y]) ** 2, 1))
    objective = Brier().objective(data)
    assert objective.trivial == pytest.approx(expected, rel=1e-12)
    assert (objective.direction, objective.perfect) == ("minimize", 0.0)


def test_values_have_no_brier_score():
    with pytest.raises(InputError, match="brier needs classes, but the data's loss is mse"):
        Brier().objective(regression())
