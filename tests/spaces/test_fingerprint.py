import itertools
import subprocess
import sys

import pytest
import torch
from torch import nn

from normact.spaces import (
    CATALOGUE,
    EVONORM_POINTWISE,
    GraphLayer,
    GraphSpace,
    LayerOptions,
    Site,
    fingerprint,
    named,
    parse,
)

SITES = [Site("norm_act", 0, 16), Site("norm_act", 1, 16, layout="NLC")]
OPTIONS = LayerOptions(groups=8)


def of(text, sites=SITES, options=OPTIONS):
    graph = CATALOGUE[text].graph if text in CATALOGUE else parse(text)
    return fingerprint(lambda site: GraphLayer(graph, site.in_features, site.layout, options), sites)


TWINS = [
    ("neg(neg(x))", "add(x, zero)"),
    ("add(x, x)", "mul(add(exp(zero), exp(zero)), x)"),
    ("max(x, zero)", "relu(x)"),
    ("div(add(x, abs(x)), add(exp(zero), exp(zero)))", "relu(x)"),
    ("mul(x, sigmoid(x))", "silu(x)"),
    ("square(x)", "mul(x, x)"),
    ("neg(max(neg(x), zero))", "min(x, zero)"),
    ("tanh(x)", "sub(mul(add(exp(zero), exp(zero)), sigmoid(add(x, x))), exp(zero))"),
    ("batch_mean(batch_mean(x))", "batch_mean(x)"),
    ("group_std(neg(x))", "group_std(x)"),
    ("layer_mean(instance_mean(x))", "layer_mean(x)"),
    ("mul(v1, mul(x, v0))", "mul(mul(v0, v1), x)"),
    ("affine(mul(v1, neg(neg(x))))", "affine(mul(x, v1))"),
    ("add(mul(zero, v0), x)", "add(x, zero)"),
]


@pytest.mark.parametrize(("a", "b"), TWINS)
def test_layers_that_compute_the_same_have_one_fingerprint(a, b):
    assert parse(a).key() != parse(b).key()
    assert of(a) == of(b)


STRANGERS = [
    ("x twice", "add(x, zero)", "add(x, x)"),
    ("a sign", "neg(x)", "add(x, zero)"),
    ("a shift", "add(x, zero)", "add(x, exp(zero))"),
    ("trainables", "add(x, v0)", "add(x, v1)"),
    ("a factor that starts at 1", "mul(x, v1)", "add(x, zero)"),
    ("a summand that starts at 0", "add(x, v0)", "add(x, zero)"),
    ("alike at v0 = 0, gradients too", "add(mul(v1, x), mul(v0, v0))", "mul(v1, x)"),
    ("a scalar or a vector", "mul(x, s1)", "mul(x, v1)"),
    ("its start", "mul(x, s0.01)", "mul(x, s0.02)"),
    ("the affine", "affine(neg(x))", "neg(x)"),
    ("alike on positive values", "abs(x)", "add(x, zero)"),
    ("alike at one scale", "div(x, batch_std(x))", "div(x, batch_std(add(x, x)))"),
    ("scale-equivariant both", "add(x, zero)", "mul(x, tanh(div(x, group_std(x))))"),
    ("centred or not", "group_rms(x)", "group_std(x)"),
    ("batch statistics of another quantity", "batch_std(x)", "batch_std(square(x))"),
    ("no gradient to x", "batch_mean(x)", "div(batch_mean(x), batch_std(zero))"),
]


@pytest.mark.parametrize(("a", "b"), [pair[1:] for pair in STRANGERS], ids=[pair[0] for pair in STRANGERS])
def test_layers_that_differ_have_two_fingerprints(a, b):
    assert of(a) != of(b)


def test_the_layers_of_the_catalogue_are_all_different():
    found = {name: of(name) for name in CATALOGUE}
    assert len(set(found.values())) == len(CATALOGUE)


@pytest.mark.parametrize("sites", [SITES, SITES[:1], SITES[1:]], ids=["both", "NCHW", "NLC"])
def test_index_sets_are_told_apart(sites):
    sets = ("batch", "instance", "layer", "group", "channel")
    layers = [f"div(x, {s}_{m}(x))" for s, m in itertools.product(sets, ("std", "rms", "mean"))]
    assert len({of(layer, sites) for layer in layers}) == len(layers)


def test_running_statistics_count_even_where_training_is_alike():
    """Both divide by the batch's deviation in training; they keep different quantities for evaluation."""

    class Forgetful(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = GraphLayer(parse("batch_std(x)"), 16, options=OPTIONS)

        def forward(self, x):
            y = self.layer(x)
            self.layer.reset_running_stats()
            return y

    assert fingerprint(lambda site: Forgetful(), SITES[:1]) != of("batch_std(x)", SITES[:1])
    assert of("batch_std(x)") != of("batch_std(x)", options=LayerOptions(groups=8, momentum=0.2))


class Stopped(nn.Module):
    """x times v1, without the gradients that `blocked` names."""

    def __init__(self, blocked):
        super().__init__()
        self.v1 = nn.Parameter(torch.ones(16, 1, 1))
        self.blocked = blocked

    def forward(self, x):
        factor = self.v1.detach() if "v1" in self.blocked else self.v1
        return (x.detach() if "x" in self.blocked else x) * factor


def test_gradients_count_even_where_outputs_are_alike():
    found = {fingerprint(lambda site, b=b: Stopped(b), SITES[:1]) for b in ((), ("x",), ("v1",), ("x", "v1"))}
    assert len(found) == 4


def test_groups_and_eps_count():
    assert of("group_std(x)") != of("group_std(x)", options=LayerOptions(groups=4))
    assert of("group_std(x)") != of("group_std(x)", options=LayerOptions(groups=8, eps=1e-3))
    assert of("silu(x)") == of("silu(x)", options=LayerOptions(groups=4, eps=1e-3))


@pytest.mark.parametrize("threads", [2, 4])
def test_the_number_of_threads_does_not_matter_and_is_given_back(threads):
    alone = of("evonorm_b0")
    torch.set_num_threads(threads)
    assert of("evonorm_b0") == alone
    assert torch.get_num_threads() == threads

    class Watching(nn.Module):
        def forward(self, x):
            seen.append(torch.get_num_threads())
            return x * 1

    seen = []
    fingerprint(lambda site: Watching(), SITES)
    assert set(seen) == {1}


def test_global_random_state_neither_matters_nor_changes():
    torch.manual_seed(1)
    first = of("evonorm_s0")
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert of("evonorm_s0") == first
    assert torch.equal(torch.get_rng_state(), state)


def test_an_input_changed_in_place_spoils_no_later_fingerprint():
    class InPlace(nn.Module):
        def forward(self, x):
            with torch.no_grad():
                x.zero_()
            return x * 1

    before = of("silu(x)")
    fingerprint(lambda site: InPlace(), SITES)
    assert of("silu(x)") == before


def test_the_layer_on_the_way_in_is_the_one_judged():
    """A site's module in any dtype and mode: the fingerprint is of what it computes in float64."""
    graph = named("bn_relu").graph
    half = fingerprint(lambda s: GraphLayer(graph, 16, s.layout, OPTIONS, dtype=torch.bfloat16).eval(), SITES)
    assert half == of("bn_relu")


def test_another_process_finds_the_same():
    code = (
        "import torch\n"
        "torch.manual_seed(99); torch.set_num_threads(2); torch.rand(5)\n"
        "from normact.spaces import *\n"
        "sites = [Site('norm_act', 0, 16), Site('norm_act', 1, 16, layout='NLC')]\n"
        "for name in sorted(CATALOGUE):\n"
        "    graph = CATALOGUE[name].graph\n"
        "    print(fingerprint(lambda s: GraphLayer(graph, 16, s.layout, LayerOptions(groups=8)), sites))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [of(name) for name in sorted(CATALOGUE)]


def test_what_is_not_finite_is_one_symbol():
    class Constant(nn.Module):
        def __init__(self, value):
            super().__init__()
            self.value = value

        def forward(self, x):
            return torch.where(x > 0, x, torch.full_like(x, self.value))

    found = [fingerprint(lambda s, v=v: Constant(v), SITES) for v in (float("nan"), float("inf"), -float("inf"))]
    assert len(set(found)) == 1
    assert fingerprint(lambda s: Constant(0.0), SITES) not in found


def test_a_layer_that_overflows_has_a_fingerprint():
    tower = "exp(exp(exp(exp(x))))"
    assert of(tower) == of(tower)
    assert of(tower) != of(f"neg({tower})")


def test_a_layer_without_x_or_gradient_has_a_fingerprint():
    assert of("mul(v1, v1)") != of("mul(v1, v0)")
    assert of("add(zero, zero)") == of("mul(zero, zero)")
    assert of("add(zero, zero)") != of("exp(zero)")


def test_what_is_zero_but_for_rounding_is_zero():
    """x - mean(x) has mean 0, of which rounding leaves 1e-17."""
    shifted = of("instance_mean(sub(x, instance_mean(x)))")
    assert shifted == of("layer_mean(sub(x, layer_mean(x)))")


def test_a_spaces_probe_sites_tell_index_sets_apart():
    for groups in (2, 4, 8):
        space = GraphSpace(EVONORM_POINTWISE, options=LayerOptions(groups=groups))
        sets = ("batch", "instance", "layer", "group", "channel")
        found = {
            fingerprint(lambda site, s=s: space.build(parse(f"{s}_std(x)"), site), space.probe_sites())  # noqa: B023
            for s in sets
        }
        assert len(found) == len(sets)
