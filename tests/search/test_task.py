import math

import pytest
import torch
from torch import nn

from normact.search.anchors import KanNet, PreActResNet, Sites, TokenNet
from normact.search.data import Digits, Split, TensorData
from normact.search.measures import RMSE, Accuracy, NonzeroShare, Parameters, RelativeMemory, ValidationLoss
from normact.search.task import Task
from normact.search.training import Recipe, outputs_of
from normact.spaces import GraphSpace, InputError, KanSpace, Site
from tests.tasks import SHAPE, ModuleSpace, blobs, layer, small_task
from tests.toy import ToySpace


def trained(task):
    training = task.start("net", layer("gn_relu"), seed=0)
    training.run_to(6)
    return training


def test_values_on_other_examples_are_of_those():
    task = small_task()
    training = trained(task)
    test = task.data.load_test()
    right = outputs_of(training.model, test.x).argmax(1) == test.y
    assert task.measure(training, test)["accuracy"] == pytest.approx(float(right.double().mean()))
    assert len(test) != len(task.splits.validation)


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


def test_what_is_none_of_quality_is_measured_when_a_training_ends_and_on_examples_if_it_reads_them():
    task = small_task(steps=4, measures=[ValidationLoss(), Parameters(), RelativeMemory(), NonzeroShare()])
    training = task.start("net", layer("bn_relu"), seed=0)
    training.run_to(2)
    assert list(task.measure(training)) == ["validation_loss"]
    training.run_to(4)
    assert list(task.measure(training)) == ["validation_loss", "parameters", "relative_memory", "nonzero_share"]
    assert list(task.measure(training, task.data.load_test())) == ["validation_loss", "nonzero_share"]
    with pytest.raises(InputError, match="parameters has no value on a test split"):
        task.test_objective("parameters")


@pytest.mark.parametrize(("measure", "name"), [(Parameters(), "parameters"), (NonzeroShare(), "nonzero_share")])
def test_what_is_none_of_quality_cannot_lead(measure, name):
    with pytest.raises(InputError, match=rf"{name} cannot lead a search.*objective=\[validation_loss,{name}\]"):
        small_task(measures=[measure, ValidationLoss()])


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


VALUES = (torch.zeros(4, *SHAPE), torch.rand(4, 2))


@pytest.mark.parametrize(
    ("data", "outputs", "words"),
    [
        (blobs(), 2, "has 2 outputs, but the data have 3 classes"),
        (blobs(), 3, ""),
        (blobs(), 5, ""),  # classes that never occur
        (TensorData(VALUES, VALUES, VALUES, 2, "mse"), 1, "has 1 outputs, but the data have 2 values"),
        (TensorData(VALUES, VALUES, VALUES, 2, "mse"), 2, ""),
        (TensorData(VALUES, VALUES, VALUES, 2, "mse"), 3, "has 3 outputs, but the data have 2 values"),
    ],
)
def test_an_anchor_needs_as_many_outputs_as_the_data_ask_for(data, outputs, words):
    measures = [Accuracy() if data.loss == "cross_entropy" else RMSE()]
    task = small_task(data=data, measures=measures, anchors={"net": PreActResNet(SHAPE[0], outputs, 4, (1,))})
    if words:
        with pytest.raises(InputError, match=f"anchor 'net' {words}"):
            task.check_outputs("net")
    else:
        task.check_outputs("net")
        task.start("net", layer("bn_relu"), 0).run_to(1)


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
