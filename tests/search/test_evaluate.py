import dataclasses
import math

import pytest
import torch
from torch import nn

from normact.search.anchors import PreActResNet
from normact.search.data import Split
from normact.search.evaluate import Evaluator
from normact.search.gates import (
    Duplicate,
    Pass,
    Probe,
    Quality,
    ScreenGate,
    SignalPropagation,
    Stability,
    Structure,
    TrainGate,
)
from normact.search.pool import Job, LocalPool
from normact.spaces import InputError
from tests.tasks import CLASSES, SHAPE, ModuleSpace, Pointwise, blobs, layer, small_task


class NoTest(type(blobs())):
    """Data whose test split must not be read."""

    def __init__(self, data):
        splits = data.load()
        pairs = [(split.x, split.y) for split in (splits.train, splits.validation, splits.validation)]
        super().__init__(*pairs, data.outputs)

    def load_test(self):
        raise AssertionError("the test split was read")


class NoData(NoTest):
    """Data whose files are gone."""

    def load(self):
        raise InputError("no files there")


class Says(ScreenGate):
    """A screening gate that notes that it was asked, and passes or not."""

    def __init__(self, name, log, passes=True):
        self.name, self.log, self.passes = name, log, passes

    def check(self, ctx):
        self.log.append(self.name)
        return Pass({"size": 2.0}) if self.passes else self.rejection("not today", size=1.0)


class SaysInTraining(TrainGate):
    def __init__(self, name, log, steps, fails_on=""):
        self.name, self.log, self.steps, self.fails_on = name, log, steps, fails_on

    def check(self, ctx):
        self.log.append((self.name, ctx.anchor, ctx.training.step, bool(ctx.values)))
        return self.rejection("no", step=ctx.training.step) if ctx.anchor == self.fails_on else Pass()


def two_nets():
    return {name: PreActResNet(SHAPE[0], CLASSES, width=4, blocks=(1,)) for name in ("first", "second")}


def evaluator(gates=(), task=None, measure_test=False, **makers):
    return Evaluator(ModuleSpace(**makers), task or small_task(data=NoTest(blobs())), gates, measure_test)


def judge(evaluate, kind, *names, seed=0):
    outcomes = evaluate(Job(0, kind, tuple(enumerate(names)), seed))
    assert [o.number for o in outcomes] == list(range(len(names)))
    return outcomes if len(names) > 1 else outcomes[0]


def pure(outcome):
    """What of an outcome may not depend on where and when it was found."""
    return dataclasses.replace(outcome, seconds={}, memory=0, worker="")


# -- errors of candidates --------------------------------------------------------------------------------------


class RaisesWhen(nn.Module):
    def __init__(self, when):
        super().__init__()
        self.when = when

    def forward(self, x):
        if self.when(self, x):
            raise RuntimeError("this layer broke")
        return torch.relu(x)


def broken_build(site):
    raise ZeroDivisionError("cannot be made")


RAISING = {
    "build": (broken_build, "ZeroDivisionError: cannot be made"),
    "forward": (lambda site: RaisesWhen(lambda m, x: True), "RuntimeError: this layer broke"),
    "evaluation": (lambda site: RaisesWhen(lambda m, x: not m.training), "RuntimeError: this layer broke"),
    "shape": (lambda site: nn.Flatten(), "RuntimeError"),
    "input": (lambda site: nn.Linear(3, 3), "RuntimeError"),
}


@pytest.mark.parametrize("where", RAISING)
def test_a_candidate_that_raises_in_training_is_a_rejection_and_the_others_go_on(where):
    maker, reason = RAISING[where]
    outcomes = judge(evaluator(bad=maker), "train", "bn_relu", "bad", "bn_relu")
    assert [o.gate for o in outcomes] == ["", "error", ""]
    assert outcomes[1].reason.startswith(reason)


@pytest.mark.parametrize("where", ["build", "forward"])
def test_a_candidate_that_raises_in_screening_is_a_rejection_and_the_others_go_on(where):
    maker, reason = RAISING[where]
    outcomes = judge(evaluator([Structure(), Probe(), Duplicate()], bad=maker), "screen", "bad", "bn_relu")
    assert [o.gate for o in outcomes] == ["error", ""]
    assert outcomes[0].reason.startswith(reason) and outcomes[0].seconds["probe"] > 0


def test_data_that_are_no_candidate_are_a_rejection():
    outcome = judge(evaluator(), "train", "unheard of")
    assert (outcome.gate, outcome.reason) == ("error", "InputError: no module 'unheard of'")


def test_data_that_cannot_be_loaded_are_no_candidates_fault():
    evaluate = evaluator(task=small_task(data=NoData(blobs())))
    with pytest.raises(InputError, match="no files there"):
        judge(evaluate, "train", "bn_relu")
    pool = LocalPool(lambda: evaluate)
    pool.submit(Job(0, "train", ((0, "bn_relu"),), 0))
    assert pool.next(0).reason == "InputError: no files there"


def test_test_examples_that_are_not_finite_are_no_candidates_fault():
    class BadTest(type(blobs())):
        def __init__(self, data):
            splits = data.load()
            super().__init__(*((s.x, s.y) for s in (splits.train, splits.validation, splits.validation)), data.outputs)
            self._test = Split(splits.validation.x * math.nan, splits.validation.y)

    task = small_task(data=BadTest(blobs()))
    with pytest.raises(InputError, match="of the test inputs are NaN"):
        judge(evaluator(task=task, measure_test=True), "train", "bn_relu")
    assert judge(evaluator(task=task), "train", "bn_relu").gate == ""


def test_long_reasons_are_cut():
    def long(site):
        raise ValueError("x" * 10_000)

    assert len(judge(evaluator(bad=long), "train", "bad").reason) < 600


# -- screening -------------------------------------------------------------------------------------------------


def test_gates_are_asked_in_order_until_one_rejects():
    log = []
    gates = [Says("a", log), Says("b", log, passes=False), Says("c", log)]
    outcome = judge(evaluator(gates), "screen", "bn_relu")
    assert log == ["a", "b"]
    assert (outcome.gate, outcome.reason) == ("b", "not today")
    assert outcome.figures == {"a.size": 2.0, "b.size": 1.0}
    assert set(outcome.seconds) == {"a", "b"} and all(s >= 0 for s in outcome.seconds.values())
    assert (outcome.steps, outcome.scores, outcome.fingerprint) == (0, (), "")


def test_screening_gives_the_fingerprint_and_trains_nothing():
    class Untouched:
        device = "cpu"
        recipe = small_task().recipe

    evaluate = evaluator([Structure(), Probe(), Duplicate(), SignalPropagation()], Untouched(), other=layer("gn_relu"))
    same, other, again = judge(evaluate, "screen", "bn_relu", "other", "bn_relu")
    assert len(same.fingerprint) == 32 and same.fingerprint == again.fingerprint != other.fingerprint
    assert set(same.seconds) == {"structure", "probe", "duplicate", "propagation"}
    assert {name.split(".")[0] for name in same.figures} == {"propagation"}


def test_training_gates_are_not_asked_in_screening_nor_the_other_way_round():
    log = []
    gates = [Says("screening", log), SaysInTraining("training", log, (0,))]
    judge(evaluator(gates), "screen", "bn_relu")
    assert log == ["screening"]
    judge(evaluator(gates), "train", "bn_relu")
    assert log == ["screening", ("training", "net", 0, False)]


# -- training --------------------------------------------------------------------------------------------------


def test_anchors_are_trained_side_by_side_from_checkpoint_to_checkpoint():
    log = []
    gates = [SaysInTraining("late", log, (8,)), SaysInTraining("early", log, (0, 4, 8))]
    task = small_task(steps=10, anchors=two_nets(), data=NoTest(blobs()))
    outcome = judge(evaluator(gates, task), "train", "bn_relu")
    expected = [("early", anchor, step, step > 0) for step in (0, 4) for anchor in ("first", "second")]
    expected += [(gate, anchor, 8, True) for anchor in ("first", "second") for gate in ("late", "early")]
    assert log == expected
    assert outcome.accepted and outcome.steps == 10
    measured = {(s.objective, s.anchor, s.step) for s in outcome.scores}
    names = ("validation_loss", "accuracy", "training_loss")
    assert measured == {(n, a, s) for n in names for a in ("first", "second") for s in (4, 8, 10)}
    assert set(outcome.seconds) == {"build", "train", "measure", "late", "early"}
    assert min(outcome.seconds["train"], outcome.seconds["measure"], outcome.seconds["build"]) > 0


def test_all_trainings_end_at_the_first_anchor_that_fails():
    log, trained = [], []
    nets = two_nets()

    def counting(name):
        def anchor(make):
            model = nets[name](make)
            model.register_forward_pre_hook(lambda module, args: trained.append(name) if module.training else None)
            return model

        return anchor

    task = small_task(steps=10, anchors={name: counting(name) for name in nets}, data=NoTest(blobs()))
    gates = [SaysInTraining("early", log, (4,), fails_on="first"), SaysInTraining("next", log, (4,))]
    outcome = judge(evaluator(gates, task), "train", "bn_relu")
    assert (outcome.gate, outcome.steps, outcome.figures) == ("early", 4, {"early.step": 4})
    assert log == [("early", "first", 4, True)]
    assert "second" not in trained and trained.count("first") == 4 + 4  # steps, and batches for the statistics


def test_a_loss_that_is_not_finite_is_divergence():
    outcome = judge(evaluator(bad=lambda site: Pointwise(lambda x: x / 0)), "train", "bad")
    assert (outcome.gate, outcome.reason) == ("divergence", "the loss on net was nan at step 0")


def test_a_layer_that_breaks_in_evaluation_alone_is_divergence_not_chance():
    class Breaks(nn.Module):
        def forward(self, x):
            return torch.relu(x) if self.training else x * math.nan

    outcome = judge(evaluator(bad=lambda site: Breaks()), "train", "bad")
    assert outcome.gate == "divergence"
    assert outcome.reason == "validation_loss nan, accuracy nan on net at step 12"


def test_the_real_gates_judge_a_good_and_a_bad_layer():
    gates = [Stability(ascent_steps=10), Quality(15, 0.0), Quality(30, 0.2)]
    task = small_task(steps=30, data=NoTest(blobs()))
    makers = {"bad": lambda site: Pointwise(lambda x: x / (x - 1)), "blind": lambda site: Pointwise(lambda x: 1e-9 * x)}
    good, bad, blind = judge(evaluator(gates, task, **makers), "train", "bn_relu", "bad", "blind")
    assert good.accepted, good.reason
    assert bad.gate == "stability" and bad.steps == 0
    assert blind.gate.startswith("quality@") and blind.steps in (15, 30)


# -- a pure function of the job --------------------------------------------------------------------------------


class Noisy(nn.Module):
    """Draws when made, in training and in evaluation."""

    def __init__(self, site):
        super().__init__()
        self.scale = nn.Parameter(1 + 0.1 * torch.randn(1))

    def forward(self, x):
        return torch.relu(self.scale * x + 0.1 * torch.randn_like(x))


@pytest.mark.parametrize("kind", ["screen", "train"])
def test_an_outcome_depends_on_candidate_and_seed_alone(kind):
    gates = [Probe(), Duplicate(), SignalPropagation(), Stability(ascent_steps=2, at=2), Quality(4, -9.0)]
    alone = judge(evaluator(gates, noisy=Noisy), kind, "noisy", seed=3)
    torch.rand(5)
    batch = judge(evaluator(gates, noisy=Noisy), kind, "bn_relu", "noisy", seed=3)
    assert pure(dataclasses.replace(batch[1], number=0)) == pure(alone)
    other = judge(evaluator(gates, noisy=Noisy), kind, "noisy", seed=4)
    assert pure(dataclasses.replace(other, seed=3)) != pure(alone)


def test_gates_change_no_training():
    plain = judge(evaluator(noisy=Noisy), "train", "noisy")
    gates = [Stability(ascent_steps=3, at=5), Quality(3, -9.0)]
    gated = judge(evaluator(gates, noisy=Noisy), "train", "noisy")
    assert gated.final("validation_loss") == plain.final("validation_loss")
    assert gated.final("training_loss") == plain.final("training_loss")


# -- the test split --------------------------------------------------------------------------------------------


def test_the_test_split_is_read_only_when_it_is_to_be_measured():
    task = small_task(data=NoTest(blobs()))
    assert judge(evaluator([Quality(4, -9.0)], task), "train", "bn_relu").accepted  # NoTest would have raised
    with pytest.raises(AssertionError, match="the test split was read"):
        judge(evaluator(task=task, measure_test=True), "train", "bn_relu")


def test_a_job_may_leave_the_test_split_alone():
    evaluate = evaluator(task=small_task(data=NoTest(blobs())), measure_test=True)
    for recipe in ({}, {"lr": 0.01}):
        job = Job(0, "train", ((0, "bn_relu"),), 0, recipe=recipe, test=False)
        (outcome,) = evaluate(job)  # NoTest would have raised
        assert outcome.accepted
        assert {score.objective for score in outcome.scores} == {"validation_loss", "accuracy", "training_loss"}
        with pytest.raises(AssertionError, match="the test split was read"):
            evaluate(dataclasses.replace(job, test=True))


def test_the_test_split_is_measured_at_the_end_on_every_anchor():
    task = small_task(anchors=two_nets())
    outcome = judge(evaluator([Quality(4, -9.0)], task, measure_test=True), "train", "bn_relu")
    tests = [s for s in outcome.scores if s.objective == "test_accuracy"]
    assert [(s.anchor, s.step) for s in tests] == [("first", 12), ("second", 12)]
    training = task.start("first", layer("bn_relu"), 0)
    training.run_to(12)
    assert tests[0].value == task.measure(training, task.data.load_test())["accuracy"]


def test_a_screening_never_reads_a_split():
    evaluate = evaluator([Probe()], small_task(data=NoData(blobs())), measure_test=True)
    assert judge(evaluate, "screen", "bn_relu").accepted


# -- what is recorded ------------------------------------------------------------------------------------------


def test_an_outcome_says_where_and_how_it_was_found():
    outcome = judge(evaluator(), "train", "bn_relu", seed=11)
    assert (outcome.seed, outcome.device) == (11, "cpu")
    assert outcome.worker.startswith("pid ") and outcome.memory > 2**20


def test_gates_need_different_names():
    with pytest.raises(InputError, match=r"different names, got quality@4, probe, quality@4"):
        evaluator([Quality(4, 0.1), Probe(), Quality(4, 0.2)])


def test_a_gate_past_the_last_step_is_refused():
    with pytest.raises(InputError, match=r"quality@13 looks at step 13, but training ends at 12"):
        evaluator([Quality(13, 0.1)])


# -- a job's own recipe ----------------------------------------------------------------------------------------


def test_a_job_may_change_the_recipe():
    evaluate = evaluator()
    changed = Job(0, "train", ((0, "bn_relu"),), 0, recipe={"lr": 0.001, "steps": 3})
    (outcome,) = evaluate(changed)
    task = small_task(data=NoTest(blobs()))
    task.recipe = dataclasses.replace(task.recipe, lr=0.001, steps=3)
    assert pure(outcome) == pure(judge(evaluator(task=task), "train", "bn_relu"))
    assert outcome.steps == 3
    assert pure(evaluate(changed)[0]) == pure(outcome)
    assert judge(evaluate, "train", "bn_relu").steps == small_task(data=blobs()).recipe.steps


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"batch_size": 8}, "may change in steps, warmup, lr, got 'batch_size'"),
        ({"steps": 0}, "a recipe needs steps"),
        ({"steps": 1}, "quality@2 looks at step 2, but training ends at 1"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused(changes, match):
    with pytest.raises(InputError, match=match):
        evaluator([Quality(2, 0.1)])(Job(0, "train", ((0, "bn_relu"),), 0, recipe=changes))
