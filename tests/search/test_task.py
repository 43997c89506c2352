import math

import numpy as np
import pytest
import torch
from torch import nn

from normact.search.anchors import KanNet, PreActResNet, Sites, TokenNet
from normact.search.data import Digits, FunctionData, Split, TensorData
from normact.search.task import RMSE, Accuracy, Measured, Task, TrainingLoss, ValidationLoss
from normact.search.training import Recipe, outputs_of
from normact.spaces import GraphSpace, InputError, KanSpace, Site
from tests.tasks import ModuleSpace, blobs, layer, small_task
from tests.toy import ToySpace


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


def test_values_on_other_examples_are_of_those():
    task = small_task()
    training = trained(task)
    test = task.data.load_test()
    right = outputs_of(training.model, test.x).argmax(1) == test.y
    assert task.measure(training, test)["accuracy"] == pytest.approx(float(right.double().mean()))
    assert len(test) != len(task.splits.validation)


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
    assert math.isnan(Accuracy().value(Measured(outputs, torch.tensor([0, 0]), None)))


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
    data = regression()
    y = data.load().train.y.double().numpy()
    expected = np.mean((y - y.mean(0)) ** 2)
    assert ValidationLoss().objective(data).trivial == pytest.approx(expected, rel=1e-5)
    assert TrainingLoss().objective(data).trivial == pytest.approx(expected, rel=1e-5)


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
    assert found == pytest.approx(task.objective().trivial, rel=0.1)
    assert task.objective().trivial == pytest.approx(data.target_unit, rel=1e-5)


class Zero(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        return self.scale * x[:, :1]


def test_classes_have_no_rmse():
    with pytest.raises(InputError, match="rmse needs values to predict, but the data's loss is cross_entropy"):
        RMSE().objective(blobs())


class Broken(TensorData):
    """Data of one's own: what is wrong in it shows when it is loaded."""

    def __init__(self, part):
        x, y = torch.randn(8, 3), torch.randn(8, 1)
        super().__init__((x, y), (x, y), (x, y), 1, "mse")
        bad = y.clone()
        bad[5] = math.nan
        split = Split(x, bad)
        if part == "validation":
            self._validation = split
        else:
            self._train = split


def test_data_that_are_not_finite_are_refused_before_anything_is_trained_on_them():
    for part in ("training", "validation"):
        task = small_task(data=Broken(part), anchors={"net": lambda make: nn.Linear(3, 1)}, measures=[RMSE()])
        with pytest.raises(InputError, match=f"1 of 8 values of the {part} targets are NaN"):
            _ = task.splits
    with pytest.raises(InputError, match="1 of 8 values of the training targets"):
        RMSE().objective(Broken("training"))


def test_the_first_measure_leads():
    task = small_task(measures=[Accuracy(), ValidationLoss()])
    assert task.objective().name == "accuracy"
    assert task.objective("validation_loss").name == "validation_loss"
    with pytest.raises(InputError, match=r"unknown objective 'acuracy'; the nearest is 'accuracy'"):
        task.objective("acuracy")


@pytest.mark.parametrize(("anchors", "measures", "match"), [({}, [Accuracy()], "anchor"), ({"a": 1}, [], "objective")])
def test_a_task_needs_an_anchor_and_an_objective(anchors, measures, match):
    with pytest.raises(InputError, match=match):
        Task(blobs(), anchors, Recipe(), measures)


def test_data_that_lie_about_their_shape_are_refused():
    class Lying(TensorData):
        @property
        def shape(self):
            return (3, 6, 6)

    train = (torch.zeros(4, 2, 6, 6), torch.tensor([0, 1, 0, 1]))
    task = small_task(data=Lying(train, train, train, 2))
    with pytest.raises(InputError, match=r"\(3, 6, 6\).*\(2, 6, 6\)"):
        _ = task.splits


# -- a space and an anchor that do not meet --------------------------------------------------------------------


def linear_net(make):
    return nn.Sequential(nn.Flatten(), make(Site("linear", 0, 72, 3, layout="NC")))


def no_site(make):
    return nn.Linear(72, 3)


def token_net(make):
    return Sites(make).norm_act(8, "NLC")


@pytest.mark.parametrize(
    ("anchor", "space", "match"),
    [
        (linear_net, ModuleSpace(), r"'net' asks for a layer of kind 'linear'.*ModuleSpace.*norm_act"),
        (PreActResNet(2, 3), ToySpace(), r"'net' asks for a layer of kind 'norm_act'.*ToySpace.*linear"),
        (token_net, ModuleSpace(), r"'net' has a site of layout NLC.*NCHW"),
        (no_site, ModuleSpace(), r"'net' has no site"),
    ],
)
def test_a_space_that_does_not_meet_an_anchor_is_refused(anchor, space, match):
    with pytest.raises(InputError, match=match):
        small_task(anchors={"net": anchor}).check_meets(space)


def test_a_space_that_meets_all_anchors_passes():
    anchors = {"net": PreActResNet(2, 3), "tokens": TokenNet(2, 6, 3)}
    small_task(anchors=anchors).check_meets(GraphSpace(["add", "max", "batch_mean"], nodes=4))
    small_task(anchors={"net": linear_net}).check_meets(ToySpace())


def test_a_look_in_between_leaves_running_values_that_a_training_uses():
    """`minmax` normalizes by running values in training too: what gates measure may not move them."""
    space = KanSpace()
    candidate = space.parse("kan(gaussian, normalizer=minmax)")
    task = Task(Digits(), {"kan": KanNet(64, [8], 10)}, Recipe(steps=6, optimizer="adamw", lr=0.01), [ValidationLoss()])
    losses = []
    for looks in ((), (2, 4)):
        training = task.start("kan", lambda site: space.build(candidate, site), 0)
        for step in (*looks, 6):
            training.run_to(step)
            task.measure(training)
        losses.append(training.losses)
    assert losses[0] == losses[1]
