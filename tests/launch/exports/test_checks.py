"""What is checked at an export: good layers pass, and each check notices a layer that fails it."""

import importlib.util

import numpy as np
import pytest
import torch

from normact.launch.config import compose_config, space_of
from normact.launch.exports.checks import (
    CHECKS,
    COMPILE,
    ONNXRUNTIME,
    PROGRAM,
    Check,
    Subject,
    failures,
    run_checks,
    table,
    worst,
)
from normact.launch.exports.printing import check_layer, printed, subject_at
from normact.search.gates import Pass, Probe, ScreenContext
from normact.spaces import EVONORM_MOMENTS, EVONORM_POINTWISE, GraphSpace, Site
from normact.spaces.kan.space import KanSpace
from tests.launch.conftest import COSTLY, without_checks

NOT_HERE = set()
if any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxscript", "onnxruntime")):
    NOT_HERE.add(ONNXRUNTIME)
SITE = Site("norm_act", 0, 3)


def checked(space, text):
    candidate = space.parse(text)
    with printed(space.source(candidate, "mine"), "mine") as factory:
        return check_layer(space, candidate, factory)


@pytest.mark.parametrize(("name", "layouts"), [("evonorm_b0", ["NCHW", "NLC"]), ("evonorm_s0", ["NCHW"])])
def test_good_layers_pass_every_check_that_can_run(name, layouts):
    checks = checked(GraphSpace([*EVONORM_POINTWISE, *EVONORM_MOMENTS], layouts=layouts), name)
    assert not failures(checks), "\n".join(table(checks))
    assert {check.name for check in checks if check.passed is None} == NOT_HERE


def test_kan_layers_are_checked_too(monkeypatch):
    without_checks(monkeypatch, COSTLY)
    checks = {check.name: check for check in checked(KanSpace("linear", kinds=["kan"]), "kan(gaussian(grid=5))")}
    assert checks["gradcheck"].passed
    assert checks["deepcopy"].passed
    assert checks["channels_last"].detail == "not checked: inputs have 2 axes"


class Wrong(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * x

    @staticmethod
    def backward(ctx, grad):
        return grad


class WrongGradient(torch.nn.Module):
    def forward(self, x):
        return Wrong.apply(x)


class Overflowing(torch.nn.Module):
    def forward(self, x):
        return x.square() * 60000 * 2 / 60000


class Branching(torch.nn.Module):
    def forward(self, x):
        return x if x.sum() > 1e9 else x * 2


class MemoryBound(torch.nn.Module):
    def forward(self, x):
        return x if x.is_contiguous() else -x


class Uncopyable(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.act = lambda x: x
        self.noise = torch.rand(3).tolist()

    def __deepcopy__(self, memo):
        return torch.nn.Tanh()

    def forward(self, x):
        return self.act(x)


class EmptyHater(torch.nn.Module):
    def forward(self, x):
        return x - x.amax()


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (WrongGradient, {"gradcheck"}),
        (Overflowing, {"half()"}),
        (Branching, {COMPILE, PROGRAM}),
        (MemoryBound, {"channels_last"}),
        (Uncopyable, {"deepcopy", "pickle"}),
        (EmptyHater, {"empty batch"}),
    ],
)
def test_a_layer_that_fails_is_noticed(module, expected, monkeypatch):
    without_checks(monkeypatch, COSTLY - expected)
    found = run_checks(Subject(SITE, module, module))
    assert expected <= {check.name for check in found if check.passed is False}
    said = failures(found)
    assert all("\n" not in line and line.startswith("FAILED at export: ") for line in said)


def test_of_several_places_the_worst_is_told():
    good, better, absent = Check("a", True, "within 1", 1.0), Check("a", True, "within 0", 0.0), Check("a", None, "-")
    bad = Check("a", False, "differs", 9.0)
    assert worst({"here": [better], "there": [good]}) == [good]
    assert worst({"here": [absent], "there": [better]}) == [better]
    assert worst({"here": [good], "there": [bad]}) == [Check("a", False, "at there: differs", 9.0)]
    assert worst({"here": [bad]}) == [bad]


class Steep(torch.nn.Module):
    """Bends within a finite difference's usual step, a hundred thousand times as steep as the unit line."""

    def forward(self, x):
        return torch.sin(3e5 * x)


class BeyondHalf(torch.nn.Module):
    """Finite in float32, beyond float16 for some inputs; not the fault of how it is computed."""

    def forward(self, x):
        return (x.float() * 5e4).to(x.dtype)


@pytest.mark.parametrize(("module", "name"), [(Steep, "gradcheck"), (BeyondHalf, "half()")])
def test_what_a_check_cannot_ask_is_not_asked(module, name, monkeypatch):
    without_checks(monkeypatch, set(CHECKS) - {name})
    [found] = run_checks(Subject(SITE, module, module))
    assert found.passed, found
    assert name != "half()" or "beyond float16" in found.detail


PRESETS = ["evonorm_b", "evonorm_s", "pointwise", "act_bench"]
SURVIVORS, COMPILED = 300, 15


def survivors(space, count):
    """Different random candidates that the probe lets pass."""
    rng, probe, found = np.random.default_rng(29), Probe(), {}
    while len(found) < count:
        candidate = space.sample(rng)
        if isinstance(probe.check(ScreenContext(space, candidate, 0)), Pass):
            found[space.key(candidate)] = candidate
    return list(found.values())


def failed(space, candidates, compiled):
    """What fails of the costly checks at one place each, for the first `compiled` candidates, and of others at all."""
    said = []
    for number, candidate in enumerate(candidates):
        sites = space.probe_sites()
        with printed(space.source(candidate, "mine"), "mine") as factory, pytest.MonkeyPatch.context() as patch:
            if number < compiled:
                site = sites[number % len(sites)]
                said += [
                    (str(candidate), line) for line in failures(run_checks(subject_at(space, candidate, factory, site)))
                ]
            without_checks(patch, COSTLY)
            said += [(str(candidate), line) for line in failures(check_layer(space, candidate, factory))]
    return said


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_catalogue_passes_every_check():
    space = space_of(compose_config(["space=evonorm_b"]))
    assert failed(space, list(space.baselines().values()), len(space.baselines())) == []


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("preset", PRESETS)
def test_random_survivors_of_the_probe_pass_every_check(preset):
    """300 of each preset, at all its places; what compiles or translates, for 15 of them at one place each."""
    space = space_of(compose_config([f"space={preset}"]))
    assert failed(space, survivors(space, SURVIVORS), COMPILED) == []
