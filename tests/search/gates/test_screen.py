import math
import re

import pytest
import torch
from torch import nn

from normact.launch.config import compose_config, gates_of, space_of
from normact.search.gates import (
    Causality,
    Duplicate,
    Linearity,
    Pass,
    Probe,
    ScreenContext,
    ScreenGate,
    SignalPropagation,
    Structure,
)
from normact.search.outcome import Rejection
from normact.spaces import CATALOGUE, GraphSpace, InputError, LayerOptions, parse
from normact.spaces.fingerprint import probe_batch
from tests.tasks import ModuleSpace, Pointwise

LAYOUTS = ("NCHW", "NLC")


def verdict(gate, maker, layouts=LAYOUTS):
    space = ModuleSpace(layouts, it=maker)
    return gate.check(ScreenContext(space, "it", 0))


def pointwise(function):
    return lambda site: Pointwise(function)


def channels(x):
    return 2 if x.dim() == 3 else 1


class Cut(torch.autograd.Function):
    """The identity, whose derivative is said to be something else."""

    @staticmethod
    def forward(ctx, x, factor):
        ctx.factor = factor
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.factor, None


# -- structure -------------------------------------------------------------------------------------------------


def test_structure_asks_the_space():
    space = GraphSpace(["add", "max", "neg"], nodes=3, inputs=("x", "zero", "v1"))
    assert Structure().check(ScreenContext(space, parse("max(x, zero)"), 0)) == Pass()
    rejection = Structure().check(ScreenContext(space, parse("max(v1, zero)"), 0))
    assert rejection == Rejection("structure", "the output does not depend on x", {})


# -- probe -----------------------------------------------------------------------------------------------------

KILLED = {
    "unguarded division": (pointwise(lambda x: x / torch.relu(x)), "non-finite output at NCHW 1.0x"),
    "exponential of a square": (pointwise(lambda x: torch.exp(x.square())), "non-finite output at NCHW 10.0x"),
    "root of negatives": (pointwise(lambda x: torch.sqrt(x + 8)), r"non-finite output at NCHW 10.0x\+0"),
    "constant": (pointwise(lambda x: 0 * x + 3), "constant output"),
    "zero": (pointwise(lambda x: 0 * x), "constant output"),
    "the batch's mean": (pointwise(lambda x: x.mean(0).expand_as(x)), "the same output for every sample"),
    "a step": (pointwise(torch.sign), "zero gradient"),
    "cut off": (pointwise(lambda x: x.detach()), "no gradient at NCHW"),
    "flattened": (lambda site: nn.Flatten(0, -1), "output shape"),
    "wrong shape": (pointwise(lambda x: x.mean(-1)), r"output shape \(4, 8, 3\), expected \(4, 8, 3, 5\)"),
    "gradient of NaN": (pointwise(lambda x: Cut.apply(x, math.nan)), "non-finite gradient"),
    "gradient of infinity": (pointwise(lambda x: Cut.apply(x, math.inf)), "non-finite gradient"),
    "NaN on large inputs": (pointwise(lambda x: torch.where(x.std() > 5, math.nan, x)), r"NCHW 10\.0x\+0"),
    "NaN on small inputs": (pointwise(lambda x: torch.where(x.std() < 0.5, math.nan, x)), r"NCHW 0\.1x\+0"),
    "NaN on shifted inputs": (pointwise(lambda x: torch.where(x.mean() > 2, math.nan, x)), r"NCHW 1\.0x\+3"),
    "NaN for tokens alone": (pointwise(lambda x: x * (math.nan if x.dim() == 3 else 1)), "NLC"),
}


@pytest.mark.parametrize("name", KILLED)
def test_probe_kills(name):
    maker, reason = KILLED[name]
    found = verdict(Probe(), maker)
    assert isinstance(found, Rejection) and found.gate == "probe"
    assert re.search(reason, found.reason), found.reason


@pytest.mark.parametrize("function", [torch.relu, torch.tanh, lambda x: x, lambda x: 1e-3 * x, lambda x: x + 100])
def test_probe_passes_what_depends_on_its_input(function):
    """A layer without a nonlinearity passes too: that is looked for by another gate."""
    assert verdict(Probe(), pointwise(function)) == Pass()


def test_one_scale_looks_at_that_scale_alone():
    maker, _ = KILLED["NaN on large inputs"]
    assert verdict(Probe(scales=[1.0], shifts=[0.0]), maker) == Pass()
    assert isinstance(verdict(Probe(scales=[1.0, 30.0], shifts=[0, 0]), maker), Rejection)


@pytest.mark.parametrize(("scales", "shifts"), [([], []), ([1.0], [0.0, 1.0])])
def test_probe_needs_a_shift_per_scale(scales, shifts):
    with pytest.raises(InputError, match="one shift per scale"):
        Probe(scales, shifts)


# -- duplicate -------------------------------------------------------------------------------------------------


def prints(text, options=None):
    space = GraphSpace(["add", "max", "mul", "neg", "batch_mean"], nodes=4, options=options)
    ctx = ScreenContext(space, parse(text), 0)
    assert Duplicate().check(ctx) == Pass()
    return ctx.fingerprint


def test_the_duplicate_gate_leaves_the_fingerprint():
    one = prints("max(x, zero)")
    assert len(one) == 32 and one == prints("neg(min(neg(x), zero))")
    assert one != prints("max(x, mul(x, x))")


# -- propagation -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [0.5, 1.0, 1.7])
@pytest.mark.parametrize("depth", [1, 5])
def test_figures_of_a_scaling_are_its_powers(factor, depth):
    """Orthogonal maps keep norms: after n layers of y = c x, size and gradient are c^n of the input's."""
    space = ModuleSpace(it=pointwise(lambda x: factor * x))
    found = SignalPropagation(depth).check(ScreenContext(space, "it", 0))
    x, _ = probe_batch(space.probe_sites()[0], 0)
    assert isinstance(found, Pass)
    assert found.figures["NCHW.gradient"] == pytest.approx(factor**depth, rel=1e-4)
    assert found.figures["NCHW.size"] == pytest.approx(factor**depth * float(x.square().mean().sqrt()), rel=1e-4)
    assert found.figures["NCHW.distinct"] > 0.5


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda x: 5 * x, "size 4e+05 outside 0.0001 to 10000"),
        (lambda x: 1e-3 * x, "outside 0.0001 to 10000"),
        (lambda x: x.square(), "non-finite signal"),
        (lambda x: torch.sin(100 * x), "gradient"),
        (lambda x: torch.tanh(Cut.apply(x, 1e-3)), "gradient"),
        (lambda x: x.mean(0, keepdim=True) + 0.05 * x, "samples collapse: between-sample share"),
    ],
)
def test_propagation_kills(function, reason):
    found = verdict(SignalPropagation(), pointwise(function), ("NCHW",))
    assert isinstance(found, Rejection) and found.gate == "propagation"
    assert reason in found.reason and found.reason.endswith("after 8 layers at NCHW")
    assert set(found.figures) == {"NCHW.size", "NCHW.distinct", "NCHW.gradient"}


def test_figures_of_every_layout_are_kept_up_to_the_one_that_fails():
    def grows_for_tokens(x):
        return x * (9 if x.dim() == 3 else 1)

    found = verdict(SignalPropagation(), pointwise(grows_for_tokens), ("NCHW", "NLC", "NC"))
    assert {name.split(".")[0] for name in found.figures} == {"NCHW", "NLC"}
    assert found.figures["NLC.gradient"] == pytest.approx(9**8 * found.figures["NCHW.gradient"], rel=1e-3)


def test_samples_that_become_one_share_nothing_between_them():
    maker = pointwise(lambda x: x.mean(0, keepdim=True).expand_as(x) + 0 * x)
    found = verdict(SignalPropagation(depth=2), maker, ("NCHW",))
    assert found.figures["NCHW.distinct"] == pytest.approx(0, abs=1e-9)


def test_limits_are_the_ones_given():
    maker = pointwise(lambda x: 3 * x)
    assert isinstance(verdict(SignalPropagation(2), maker), Pass)
    assert isinstance(verdict(SignalPropagation(2, size=(0.1, 8.0)), maker), Rejection)
    assert isinstance(verdict(SignalPropagation(2, gradient=(0.1, 8.9)), maker), Rejection)
    assert isinstance(verdict(SignalPropagation(2, gradient=(0.1, 9.1)), maker), Pass)
    with pytest.raises(InputError, match="at least 1, got 0"):
        SignalPropagation(0)


# -- all of them -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["evonorm_b", "evonorm_s", "pointwise"])
def preset(request):
    config = compose_config([f"space={request.param}"])
    return space_of(config), [gate for gate in gates_of(config) if isinstance(gate, ScreenGate)]


@pytest.mark.parametrize("name", CATALOGUE)
def test_known_layers_pass_the_default_screening_in_every_preset(preset, name):
    space, gates = preset
    ctx = ScreenContext(space, CATALOGUE[name].graph, 0)
    for gate in gates:
        found = gate.check(ctx)
        assert isinstance(found, Pass), found
    assert [gate.name for gate in gates] == [
        "structure", "size", "probe", "linearity", "causality", "duplicate", "propagation",
    ]  # fmt: skip


@pytest.mark.parametrize("layouts", [("NLC",), ("NCHW", "NLC")])
def test_known_layers_pass_all_screening_in_any_layout_that_has_their_moments(layouts):
    space = GraphSpace(["add", "max"], nodes=3, options=LayerOptions(groups=4), layouts=layouts)
    assert {"ln_gelu", "bn_relu", "gn_relu"} <= set(space.baselines())
    for name, graph in space.baselines().items():
        ctx = ScreenContext(space, graph, 0)
        for gate in (Structure(), Probe(), Linearity(), Causality(), Duplicate(), SignalPropagation()):
            found = gate.check(ctx)
            assert isinstance(found, Pass), (name, found)
