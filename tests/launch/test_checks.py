"""What is checked at an export: good layers pass, and each check notices a layer that fails it."""

import importlib.util

import pytest
import torch

from normact.launch.checks import CHECKS, failures, run_checks, table
from normact.launch.export import check_file, export
from normact.spaces import EVONORM_MOMENTS, EVONORM_POINTWISE, GraphSpace
from normact.spaces.kan.space import KanSpace

X = torch.randn(4, 3, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
COMPILERS = {"torch.compile, fullgraph", "torch.export, batches 1 and 64", "ONNX against onnxruntime"}
NOT_HERE = {"autocast float16, GPU"} if not torch.cuda.is_available() else set()
if any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxscript", "onnxruntime")):
    NOT_HERE.add("ONNX against onnxruntime")


@pytest.mark.parametrize("name", ["evonorm_b0", "evonorm_s0"])
def test_good_layers_pass_every_check_that_can_run(name, tmp_path):
    space = GraphSpace([*EVONORM_POINTWISE, *EVONORM_MOMENTS])
    candidate = space.parse(name)
    export(space, candidate, "mine", tmp_path / "mine.py", "")
    checks = check_file(space, candidate, "mine", tmp_path / "mine.py")
    assert not failures(checks), "\n".join(table(checks))
    assert {check.name for check in checks if check.passed is None} == NOT_HERE


def test_kan_layers_are_checked_too(tmp_path):
    space = KanSpace("linear", kinds=["kan"])
    candidate = space.parse("kan(gaussian(grid=5))")
    export(space, candidate, "mine", tmp_path / "mine.py", "")
    checks = {check.name: check for check in check_file(space, candidate, "mine", tmp_path / "mine.py")}
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
        (Branching, {"torch.compile, fullgraph", "torch.export, batches 1 and 64"}),
        (MemoryBound, {"channels_last"}),
        (Uncopyable, {"deepcopy", "pickle"}),
        (EmptyHater, {"empty batch"}),
    ],
)
def test_a_layer_that_fails_is_noticed(module, expected, monkeypatch):
    for name in COMPILERS - expected:
        monkeypatch.delitem(CHECKS, name)
    failed = {check.name for check in run_checks(module, X) if check.passed is False}
    assert expected <= failed
    said = failures(run_checks(module, X))
    assert all("\n" not in line and line.startswith("FAILED at export: ") for line in said)
