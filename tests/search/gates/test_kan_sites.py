"""The screening gates at `linear` and `conv` sites, on layers built there."""

import pytest
import torch
from torch import nn

from normact.search.gates import (
    Causality,
    Duplicate,
    Linearity,
    Pass,
    Probe,
    ScreenContext,
    SignalPropagation,
    Structure,
)
from normact.search.outcome import Rejection
from normact.spaces import Conv, Site
from normact.spaces.kan import KANConv2d, KANLinear
from tests.tasks import ModuleSpace

LINEAR = Site("linear", 0, 8, 8, layout="NC")
WIDER = Site("linear", 1, 8, 5, layout="NC")
TOKENS = Site("linear", 0, 8, 8, layout="NLC", causal=True)
CONV = Site("conv", 0, 8, 8, conv=Conv(3, 1, 1))
HALVING = Site("conv", 1, 8, 6, conv=Conv(3, 2, 1))
LARGE = Site("conv", 0, 4, 4, conv=Conv(7))


class Places(ModuleSpace):
    """Modules by name, tried at the sites given."""

    def __init__(self, sites, **makers):
        super().__init__(**makers)
        self.sites = sites

    def probe_sites(self):
        return self.sites


def kan(family="gaussian", **settings):
    def make(site):
        kw = {"families": [family], "normalizer": "tanh", **settings}
        if site.kind == "linear":
            return KANLinear(site.in_features, site.features_out, **kw)
        c = site.conv
        return KANConv2d(site.in_features, site.features_out, c.kernel_size, c.stride, c.padding, c.groups, **kw)

    return make


def affine(site):
    if site.kind == "linear":
        return nn.Sequential(nn.BatchNorm1d(8), nn.Linear(site.in_features, site.features_out))
    c = site.conv
    return nn.Conv2d(site.in_features, site.features_out, c.kernel_size, c.stride, c.padding)


def check(gate, maker, *sites):
    return gate.check(ScreenContext(Places(sites, it=maker), "it", 0))


SITES = {"linear": LINEAR, "wider": WIDER, "tokens": TOKENS, "conv": CONV, "halving": HALVING, "large": LARGE}


@pytest.mark.parametrize("name", SITES)
@pytest.mark.parametrize("family", ["gaussian", "bspline", "chebyshev", "fourier"])
def test_a_kan_layer_passes_all_screening_at_any_site(name, family):
    for gate in (Structure(), Probe(), Linearity(), Causality(), Duplicate(), SignalPropagation(3)):
        found = check(gate, kan(family), SITES[name])
        assert isinstance(found, Pass), (gate.name, found)


@pytest.mark.parametrize("name", ["linear", "wider", "conv", "halving"])
def test_an_affine_map_is_rejected(name):
    found = check(Linearity(), affine, SITES[name])
    assert isinstance(found, Rejection) and found.figures["nonlinearity"] < 1e-12


@pytest.mark.parametrize("sites", [(LINEAR, WIDER), (CONV, HALVING)])
def test_a_nonlinearity_at_one_of_the_sites_is_enough(sites):
    def mixed(site):
        return kan()(site) if site.index == 1 else affine(site)

    assert isinstance(check(Linearity(), mixed, *sites), Pass)
    assert isinstance(check(Linearity(), affine, *sites), Rejection)


@pytest.mark.parametrize("name", ["wider", "halving", "large"])
def test_the_probe_asks_for_the_shape_of_the_convolution_or_product(name):
    site = SITES[name]
    wrong = Site(site.kind, 0, site.in_features, site.features_out + 1, layout=site.layout, conv=site.conv)
    found = check(Probe(), lambda _: kan()(wrong), site)
    assert isinstance(found, Rejection) and found.reason.startswith("output shape")


def test_a_layer_whose_functions_are_all_dead_is_probed_out():
    def dead(site):
        layer = kan("gaussian", base="none")(site)
        layer.bases[0].centers.fill_(100.0)
        return layer

    found = check(Probe(), dead, LINEAR)
    assert isinstance(found, Rejection) and found.gate == "probe"


def test_a_token_that_sees_later_ones_is_found_at_a_causal_linear_site():
    class Mixes(nn.Module):
        def forward(self, x):
            return torch.sin(x) + x.mean(1, keepdim=True)

    found = check(Causality(), lambda site: Mixes(), TOKENS)
    assert isinstance(found, Rejection) and "depend on later ones" in found.reason


def test_fingerprints_tell_families_apart_and_not_how_they_are_computed():
    def of(maker, site):
        ctx = ScreenContext(Places([site], it=maker), "it", 0)
        Duplicate().check(ctx)
        return ctx.fingerprint

    for site in (LINEAR, CONV):
        assert of(kan(), site) == of(kan(), site) == of(kan(recompute=True), site)
        prints = {of(kan(family), site) for family in ("gaussian", "bspline", "chebyshev")}
        assert len(prints | {of(kan(base="none"), site), of(kan(normalizer="clamp"), site)}) == 5


# -- propagation -----------------------------------------------------------------------------------------------


def scaled(factor):
    def make(site):
        layer = nn.Linear(8, 8, bias=False) if site.kind == "linear" else nn.Conv2d(8, 8, 3, padding=1, bias=False)
        with torch.no_grad():
            layer.weight.zero_()
            eye = factor * torch.eye(8)
            layer.weight.copy_(eye) if site.kind == "linear" else layer.weight[:, :, 1, 1].copy_(eye)
        return layer

    return make


@pytest.mark.parametrize("site", [LINEAR, CONV], ids=["linear", "conv"])
@pytest.mark.parametrize("factor", [0.5, 1.0, 1.7])
def test_layers_with_weights_are_stacked_alone(site, factor):
    found = check(SignalPropagation(5), scaled(factor), site)
    assert found.figures[f"{site.layout}.gradient"] == pytest.approx(factor**5, rel=1e-4)


@pytest.mark.parametrize("site", [LINEAR, CONV], ids=["linear", "conv"])
@pytest.mark.parametrize("post", ["none", "layer", "batch"])
def test_a_norm_behind_the_layer_does_not_hide_its_gradient(site, post):
    """The square of a norm's output is the same for all inputs: its gradient is zero, whatever the layer does."""
    torch.manual_seed(0)
    found = check(SignalPropagation(3), kan(post=post), site)
    assert isinstance(found, Pass)
    assert 0.01 < found.figures[f"{site.layout}.gradient"] < 100


def test_a_stack_that_explodes_is_rejected():
    found = check(SignalPropagation(5), scaled(50.0), LINEAR)
    assert isinstance(found, Rejection) and found.reason.endswith("after 5 layers at NC")


def test_sites_that_change_the_shape_are_passed_over_and_several_of_a_layout_have_figures_of_their_own():
    assert check(SignalPropagation(2), affine, WIDER, HALVING) == Pass()
    second = Site("linear", 1, 8, 8, layout="NC")
    found = check(SignalPropagation(2), lambda site: scaled(1.0 + site.index)(site), LINEAR, second, WIDER)
    assert found.figures["NC0.gradient"] == pytest.approx(1.0, rel=1e-4)
    assert found.figures["NC1.gradient"] == pytest.approx(4.0, rel=1e-4)
