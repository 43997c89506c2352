import pytest
import torch
from torch import nn

from normact.search.gates import Linearity, Pass, ScreenContext
from normact.search.outcome import Rejection
from normact.spaces import CATALOGUE, GraphSpace, InputError, Site, parse
from tests.tasks import ModuleSpace, Pointwise

SPACE = GraphSpace(["add", "batch_mean"], nodes=3)


def verdict(text, gate=None):
    return (gate or Linearity()).check(ScreenContext(SPACE, parse(text), 0))


def figure(function, **kwargs):
    space = ModuleSpace(("NCHW",), it=lambda site: Pointwise(function))
    return Linearity(**kwargs).check(ScreenContext(space, "it", 0)).figures["nonlinearity"]


AFFINE = [
    "affine(add(x, zero))",
    "add(mul(v1, x), v0)",
    "affine(div(add(x, neg(batch_mean(x))), batch_std(x)))",
    "affine(div(x, batch_std(x)))",
    "affine(mul(x, batch_mean(x)))",
    "affine(add(x, neg(instance_mean(x))))",
    "affine(layer_mean(mul(v1, x)))",
    "affine(add(mul(v1, exp(v0)), max(x, x)))",
]
NOT_AFFINE = [
    "affine(max(x, zero))",
    "affine(max(mul(v1, x), x))",
    "affine(add(mul(v0, tanh(x)), x))",
    "affine(div(x, instance_std(x)))",
    "affine(div(add(x, neg(layer_mean(x))), layer_std(x)))",
    "affine(add(x, instance_rms(x)))",
    "affine(max(batch_mean(x), x))",
    "affine(square(x))",
]


@pytest.mark.parametrize("text", AFFINE)
def test_an_affine_layer_is_rejected(text):
    found = verdict(text)
    assert isinstance(found, Rejection) and found.gate == "linearity"
    assert found.figures["nonlinearity"] < 1e-12


@pytest.mark.parametrize("text", NOT_AFFINE)
def test_a_layer_with_a_nonlinearity_passes_though_its_start_be_affine(text):
    """max(v1 * x, x) and v0 * tanh(x) + x are the identity until v1 and v0 move."""
    found = verdict(text)
    assert isinstance(found, Pass) and found.figures["nonlinearity"] > 1e-3


def test_torchs_batch_normalization_alone_is_rejected_and_with_relu_passes():
    space = ModuleSpace(
        norm=lambda site: nn.BatchNorm2d(site.in_features),
        both=lambda site: nn.Sequential(nn.BatchNorm2d(site.in_features), nn.ReLU()),
    )
    assert isinstance(Linearity().check(ScreenContext(space, "norm", 0)), Rejection)
    assert isinstance(Linearity().check(ScreenContext(space, "both", 0)), Pass)


@pytest.mark.parametrize("power", [1e-3, 1e-1])
def test_the_figure_is_the_share_of_the_second_difference(power):
    """For f(x) = x + p x^2 and d = a + b - c: f(a) + f(b) - f(c) - f(d) = p (a^2 + b^2 - c^2 - d^2)."""
    generator = torch.Generator().manual_seed(0)
    a, b, c = torch.randn((3, 4, 8, 3, 5), generator=generator, dtype=torch.float64)
    d = a + b - c
    values = torch.stack([v + power * v**2 for v in (a, b, c, d)])
    expected = power * float((a**2 + b**2 - c**2 - d**2).norm() / (values - values.mean(0)).norm())
    space = ModuleSpace(("NCHW",), it=lambda site: Quadratic(power))
    found = Linearity().check(ScreenContext(space, "it", 0))
    assert found.figures["nonlinearity"] == pytest.approx(expected, rel=1e-9)


class Quadratic(nn.Module):
    def __init__(self, power):
        super().__init__()
        self.power = power

    def forward(self, x):
        return x + self.power * x**2


def test_a_bend_that_small_inputs_do_not_reach_is_seen_at_the_larger_scale():
    def bend(x):
        return torch.clamp(x, -20, 20)

    assert figure(bend) > 1e-3
    assert figure(bend, scales=[1.0]) < 1e-12
    assert figure(lambda x: x + 1e-9 * x**2) < 1e-6 < figure(lambda x: x + 1e-4 * x**2)


def test_what_is_not_finite_is_no_affine_layer():
    """Another gate's matter: the probe looks for it."""
    assert figure(lambda x: x / 0) == 1.0


def test_sites_without_an_activation_need_none():
    class Bare(ModuleSpace):
        def probe_sites(self):
            return [Site("norm_act", 0, 8, activation=False), Site("linear", 1, 8, layout="NLC", activation=False)]

    assert Linearity().check(ScreenContext(Bare(it=lambda site: nn.Identity()), "it", 0)) == Pass()


@pytest.mark.parametrize("name", CATALOGUE)
def test_known_layers_are_far_from_affine(name):
    assert Linearity().check(ScreenContext(SPACE, CATALOGUE[name].graph, 0)).figures["nonlinearity"] > 0.01


@pytest.mark.parametrize("wrong", [{"scales": []}, {"scales": [0.0]}, {"tolerance": -1.0}], ids=str)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(InputError, match="linearity needs scales above 0"):
        Linearity(**wrong)
