"""What is checked at an export: good layers pass, and each check notices a layer that fails it."""

import importlib.util

import pytest
import torch

from normact.launch.checks import (
    CHECKS,
    COMPILE,
    ONNXRUNTIME,
    PROGRAM,
    Subject,
    failures,
    run_checks,
    table,
)
from normact.launch.printing import check_layer, printed
from normact.spaces import EVONORM_MOMENTS, EVONORM_POINTWISE, GraphSpace, Site
from normact.spaces.kan.space import KanSpace

COSTLY = {COMPILE, PROGRAM, ONNXRUNTIME}
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
    for name in COSTLY:
        monkeypatch.delitem(CHECKS, name)
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
        return x * 60000 * x.abs().amax() * 2


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
    for name in COSTLY - expected:
        monkeypatch.delitem(CHECKS, name)
    found = run_checks(Subject(SITE, module, module))
    assert expected <= {check.name for check in found if check.passed is False}
    said = failures(found)
    assert all("\n" not in line and line.startswith("FAILED at export: ") for line in said)
