import math
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from normact.launch.config import compose_config, gates_of, space_of, task_of
from normact.search.anchors import TokenNet
from normact.search.data import Split
from normact.search.evaluate import Evaluator
from normact.search.gates import Pass, Quality, Stability, Stall, TrainContext
from normact.search.outcome import Rejection
from normact.search.pool import Job
from normact.search.task import Task
from normact.search.training import Recipe, Training
from normact.spaces import CATALOGUE, InputError
from tests.tasks import Pointwise, blobs, layer, small_task


def context(training, anchor="net", task=None, values=None):
    return TrainContext(None, None, task, anchor, training, values or {}, 0)


class Product(nn.Module):
    """y = a b x."""

    def __init__(self, a, b):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.tensor(a)), nn.Parameter(torch.tensor(b))

    def forward(self, x):
        return self.a * self.b * x


def training_of(model, x=1.0, count=8):
    split = Split(torch.full((count, 1), x, dtype=torch.float64), torch.zeros(count, 1, dtype=torch.float64))
    return Training(model.double(), split, Recipe(), "mse", 0)


# -- stability -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_ascent_on_one_weight_walks_straight_away(steps):
    """loss = w^2, n = |2 w|, so k steps of length lr give n = 2 (|w| + k lr)."""
    model = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(-0.5)
    found = Stability(ascent_steps=steps, lr=0.25).check(context(training_of(model)))
    assert found.figures["norm"] == pytest.approx(2 * (0.5 + steps * 0.25), rel=1e-9)


def test_one_step_of_two_weights_goes_along_the_norms_own_gradient():
    def norm(p):  # loss = (a b)^2, so its gradient is 2 a b (b, a)
        a, b = p
        return 2 * abs(a * b) * math.hypot(a, b)

    start, h = np.array([0.7, -1.3]), 1e-6
    slope = np.array([(norm(start + h * e) - norm(start - h * e)) / (2 * h) for e in np.eye(2)])
    found = Stability(ascent_steps=1, lr=0.1).check(context(training_of(Product(0.7, -1.3))))
    assert found.figures["norm"] == pytest.approx(norm(start + 0.1 * slope / np.linalg.norm(slope)), rel=1e-6)


def test_it_rejects_at_the_step_that_passes_the_limit():
    model = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(1.0)
    found = Stability(ascent_steps=9, lr=0.25, limit=3.9).check(context(training_of(model)))
    assert found == Rejection(
        "stability", "gradient norm 4 after 4 ascent steps on net", {"norm": pytest.approx(4.0), "ascent_steps": 4.0}
    )
    assert isinstance(Stability(ascent_steps=3, lr=0.25, limit=3.9).check(context(training_of(model))), Pass)


def test_a_flat_place_is_no_reason_to_reject():
    model = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.zero_()
    assert Stability().check(context(training_of(model))) == Pass({"norm": 0.0})


class NoSecond(torch.autograd.Function):
    """x^2, with a derivative whose own derivative is not finite."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return gradient * (2 * x + torch.sqrt(x.detach() * 0 + (x - x)))


def test_a_second_derivative_that_is_not_finite_counts_as_a_norm_of_infinity():
    whole = nn.Sequential(nn.Linear(1, 1, bias=False), Pointwise(NoSecond.apply))
    norms = list(Stability(ascent_steps=9).norms(training_of(whole)))
    assert len(norms) == 2 and 0 < norms[0] < math.inf and norms[1] == math.inf
    found = Stability(limit=math.inf).check(context(training_of(whole)))
    assert isinstance(found, Rejection) and found.reason == "gradient norm inf after 1 ascent steps on net"


def test_norms_are_given_before_and_after_each_step():
    model = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(1.0)
    assert list(Stability(ascent_steps=3, lr=0.25).norms(training_of(model))) == pytest.approx([2.0, 2.5, 3.0, 3.5])


def started(make, at=0):
    training = small_task().start("net", make, seed=0)
    assert training.run_to(at)
    return training


@pytest.mark.parametrize("name", ["bn_relu", "gn_relu", "evonorm_b0", "frn_tlu"])
@pytest.mark.parametrize("at", [0, 10])
def test_known_layers_stay_stable(name, at):
    found = Stability(ascent_steps=20, lr=0.5).check(context(started(layer(name), at)))
    assert isinstance(found, Pass) and found.figures["norm"] < 1e4


@pytest.mark.parametrize(
    "function", [lambda x: x / (x - 1), lambda x: 1 / x, lambda x: torch.exp(x.square())], ids=["x/(x-1)", "1/x", "exp"]
)
def test_an_unguarded_division_or_an_explosion_fails_within_few_steps(function):
    found = Stability(ascent_steps=20, lr=0.5).check(context(started(lambda site: Pointwise(function))))
    assert isinstance(found, Rejection) and found.gate == "stability"
    assert found.figures["ascent_steps"] <= 20 and not found.figures["norm"] <= 1e8


def test_the_gate_changes_nothing():
    training = started(layer("bn_relu"), at=3)
    training.model.eval()
    before = {name: value.clone() for name, value in training.model.state_dict().items()}
    generator = torch.get_rng_state()
    grads = [None if p.grad is None else p.grad.clone() for p in training.model.parameters()]
    Stability().check(context(training))
    after = training.model.state_dict()
    assert list(before) == list(after) and all(torch.equal(before[n], after[n]) for n in before)
    assert not training.model.training
    assert torch.equal(torch.get_rng_state(), generator)
    for p, grad in zip(training.model.parameters(), grads, strict=True):
        assert (p.grad is None) == (grad is None) and (grad is None or torch.equal(p.grad, grad))


def test_it_looks_at_a_fixed_sample_alone_whatever_order_the_examples_are_in():
    full, cut = started(layer("gn_relu")), started(layer("gn_relu"))
    picks = torch.randperm(len(full.examples), generator=torch.Generator().manual_seed(0))[:8]
    assert picks.tolist() != sorted(picks.tolist())
    cut.examples = Split(cut.examples.x[picks], cut.examples.y[picks])
    found = [Stability(batch_size=8).check(context(training)).figures["norm"] for training in (full, cut)]
    assert found[0] == pytest.approx(found[1], rel=1e-3)
    assert Stability(batch_size=16).check(context(full)) != Stability(batch_size=8).check(context(full))


def test_it_is_done_on_the_anchors_named():
    training = started(lambda site: Pointwise(lambda x: 1 / x))
    assert Stability(anchors=["other"]).check(context(training)) == Pass()
    assert isinstance(Stability(anchors=["net"], ascent_steps=20).check(context(training)), Rejection)


@pytest.mark.parametrize("mixing", ["linear", "attention"])
def test_token_nets_can_be_looked_at(mixing):
    net = TokenNet(2, 6, 3, patch=2, width=8, depth=1, mixing=mixing)
    training = small_task(anchors={"net": net}).start("net", layer("ln_gelu"), 0)
    assert isinstance(Stability().check(context(training)), Pass)


@pytest.mark.parametrize("wrong", [{"ascent_steps": -1}, {"batch_size": 1}, {"at": -1}], ids=str)
def test_stability_out_of_range_is_refused(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        Stability(**wrong)


# -- quality ---------------------------------------------------------------------------------------------------

CHANCE = {name: objective.trivial for name, objective in small_task().objectives.items()}


def judged(gate, **values):
    return gate.check(context(None, task=small_task(), values={**CHANCE, **values}))


def test_quality_compares_the_skill_of_the_leading_objective():
    half = CHANCE["validation_loss"] / 2  # the loss whose skill is 0.5
    assert isinstance(judged(Quality(30, 0.499), validation_loss=half), Pass)
    found = judged(Quality(30, 0.501), validation_loss=half)
    assert (found.gate, found.reason) == ("quality@30", f"validation_loss {half:.4g} on net: skill 0.500 below 0.501")
    assert found.figures == {"net.validation_loss": half, "net.skill": pytest.approx(0.5)}
    assert isinstance(judged(Quality(30, 0.501), validation_loss=half, accuracy=1.0), Rejection)


def test_quality_can_look_at_another_objective():
    quarter = CHANCE["accuracy"] + (1 - CHANCE["accuracy"]) / 4
    assert isinstance(judged(Quality(30, 0.249, "accuracy"), accuracy=quarter), Pass)
    assert isinstance(judged(Quality(30, 0.251, "accuracy"), accuracy=quarter), Rejection)
    with pytest.raises(InputError, match="unknown objective 'f1'"):
        judged(Quality(30, 0.1, "f1"))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_quality_rejects_what_is_not_finite_at_any_threshold(value):
    assert isinstance(judged(Quality(10, -1e9), validation_loss=value), Rejection)


def test_quality_is_named_by_its_step_and_looks_there():
    assert (Quality(30, 0.1).name, Quality(30, 0.1).steps) == ("quality@30", (30,))
    with pytest.raises(InputError, match="at=0"):
        Quality(0, 0.1)


# -- the default gates -----------------------------------------------------------------------------------------


NORM_ACT_ANCHORS = ("preact_resnet", "deep_resnet", "inverted_residual", "token_mixer", "token_transformer")


def test_the_anchors_below_are_all_those_that_the_default_space_can_fill():
    names = {path.stem for path in Path(str(files("normact.conf") / "anchor")).glob("*.yaml")}
    space = space_of(compose_config([]))
    task = task_of(compose_config(["data=digits", f"anchor=[{','.join(sorted(names))}]"]))
    served = {n for n, sites in task.sites.items() for s in sites if (s.kind, s.layout) in served_by(space)}
    assert served == set(NORM_ACT_ANCHORS)


def served_by(space):
    return {(kind, layout) for kind in space.site_kinds for layout in space.layouts}


@pytest.fixture(scope="module")
def every_anchor():
    config = compose_config(["data=digits", f"anchor=[{','.join(NORM_ACT_ANCHORS)}]"])
    return SimpleNamespace(space=space_of(config), task=task_of(config), gates=gates_of(config))


@pytest.mark.parametrize(
    ("skill", "rejected"), [(-0.06, False), (-0.049, True), (0.01, True), (0.019, True), (0.021, False), (0.9, False)]
)
def test_a_net_that_has_learnt_nothing_is_stalled(skill, rejected):
    task = small_task()
    objective = task.objective()
    value = objective.trivial + skill * (objective.perfect - objective.trivial)
    ctx = context(started(layer("bn_relu")), task=task, values={objective.name: value})
    found = Stall(30).check(ctx)
    assert isinstance(found, Rejection) == rejected
    assert found.figures["net.skill"] == pytest.approx(skill)
    if rejected:
        assert (found.gate, found.reason) == ("stall@30", f"nothing learnt on net: skill {skill:.3f}")


@pytest.mark.parametrize("wrong", [{"at": 0}, {"at": 5, "low": 0.1, "high": 0.1}])
def test_stall_out_of_range_is_refused(wrong):
    with pytest.raises(InputError, match="a stall gate needs"):
        Stall(**wrong)


@pytest.mark.slow
@pytest.mark.parametrize("name", CATALOGUE)
def test_known_layers_pass_the_default_gates_on_every_anchor(every_anchor, name):
    judge = Evaluator(every_anchor.space, every_anchor.task, every_anchor.gates)
    candidate = every_anchor.space.to_json(CATALOGUE[name].graph)
    for kind in ("screen", "train"):
        (outcome,) = judge(Job(0, kind, ((0, candidate),), seed=0))
        assert outcome.accepted, f"{outcome.gate}: {outcome.reason}"
    assert outcome.steps == every_anchor.task.recipe.steps
    assert set(outcome.final("validation_loss")) == set(NORM_ACT_ANCHORS)


def test_a_task_whose_labels_say_nothing_fails_quality():
    """Labels drawn apart from the images: whatever is learnt, validation stays at chance."""
    data = blobs(train=64, validation=400)
    generator = torch.Generator().manual_seed(5)
    for split in (data.load().train, data.load().validation):
        split.y.copy_(split.y[torch.randperm(len(split), generator=generator)])
    task = small_task(steps=30, data=data)
    assert isinstance(task, Task)
    training = task.start("net", layer("bn_relu"), 0)
    training.run_to(30)
    assert isinstance(Quality(30, 0.1).check(context(training, task=task, values=task.measure(training))), Rejection)
    real = small_task(steps=30)
    training = real.start("net", layer("bn_relu"), 0)
    training.run_to(30)
    assert isinstance(Quality(30, 0.1).check(context(training, task=real, values=real.measure(training))), Pass)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_the_default_gate_tells_known_layers_from_known_bad_ones_on_the_default_anchors(seed):
    """Known layers by a factor of at least 1,000 below the limit; divisions without a guard above it."""
    config = compose_config([])
    task, gate = task_of(config), next(g for g in gates_of(config) if g.name == "stability")
    bad = {"1/x": lambda x: 1 / x, "x/(x-1)": lambda x: x / (x - 1)}
    for anchor in task.anchors:
        for name in ("bn_relu", "gn_relu", "frn_tlu", "evonorm_b0", "evonorm_b1", "evonorm_s0"):
            training = task.start(anchor, layer(name), seed)
            assert training.run_to(gate.steps[0])
            found = gate.check(context(training, anchor, task))
            assert isinstance(found, Pass) and found.figures["norm"] < gate.limit / 1e3, name
        for name, function in bad.items():
            training = task.start(anchor, lambda site, f=function: Pointwise(f), seed)
            if training.run_to(gate.steps[0]):
                found = gate.check(context(training, anchor, task))
                assert isinstance(found, Rejection), name
