"""Learnable activations on nodes: what they start as, what they learn, and their forms at each kind of site."""

import copy
import pickle

import numpy as np
import pytest
import torch
from scipy.interpolate import BSpline
from torch import nn

from normact.spaces import Conv, InputError, parse
from normact.spaces.kan import BASES
from normact.spaces.kan.node import NodeActivation, NodeConv2d, NodeLinear, NormActivation
from normact.spaces.layer import GraphLayer

LEARNABLE = sorted(name for name in BASES if name not in ("rational", "graph"))


def suiting(name):
    return "layer_tanh" if BASES[name].bounded else "layer"


@pytest.mark.parametrize("name", LEARNABLE)
@pytest.mark.parametrize("sharing", ["layer", "channel"])
def test_it_starts_as_the_fixed_activation(name, sharing):
    x = torch.randn(7, 5)
    node = NodeActivation(5, name, suiting(name), sharing, "gelu")
    torch.testing.assert_close(node(x), nn.functional.gelu(x))


@pytest.mark.parametrize("sharing", ["layer", "channel"])
def test_its_coefficients_weigh_the_functions(sharing):
    """Against scipy's B-splines: phi_c(x) = silu(x) + sum_k c_kc B_k(x)."""
    grid, order, features, reach = 5, 3, 4, 2.0
    node = NodeActivation(features, ("bspline", {"grid": grid, "order": order}), "layer", sharing).double()
    coefficients = torch.randn(node.coefficients.shape, dtype=torch.float64)
    node.coefficients.data.copy_(coefficients)
    step = 2 * reach / grid
    knots = -reach + step * np.arange(-order, grid + order + 1)
    x = torch.randn(50, features, dtype=torch.float64)
    table = coefficients.view(grid + order, -1).expand(-1, features).numpy()
    expected = np.stack(
        [
            BSpline(knots, table[:, c], order, extrapolate=False)(np.clip(x[:, c].numpy(), -reach, reach - 1e-9))
            for c in range(features)
        ],
        1,
    )
    inside = (x.abs() < reach).numpy()
    silu = (x / (1 + torch.exp(-x))).numpy()
    got = node(x).detach().numpy()
    assert inside.mean() > 0.8
    np.testing.assert_allclose(got[inside], (silu + expected)[inside], atol=1e-9)


def test_sharing_decides_how_many_functions_there_are():
    counts = {
        sharing: NodeActivation(6, ("gaussian", {"grid": 8}), "layer", sharing).coefficients.numel()
        for sharing in ("layer", "channel")
    }
    assert counts == {"layer": 8, "channel": 48}


def test_a_graph_is_taken_as_it_is():
    x = torch.randn(3, 4, 6)
    text = "mul(x, sigmoid(mul(v1, x)))"
    node = NodeActivation(6, ("graph", {"expression": text}), "none")
    assert node.coefficients is None
    torch.testing.assert_close(node(x), GraphLayer(parse(text), 6, "NLC")(x))
    assert [name for name, _ in node.named_parameters()] == ["basis.graph.v1"]


@pytest.mark.parametrize("name", sorted(BASES))
@pytest.mark.parametrize("width", [8, 64, 512])
def test_a_layer_starts_with_outputs_of_about_unit_size(name, width):
    torch.manual_seed(0)
    layer = NodeLinear(width, width, name, normalizer=suiting(name))
    assert 0.5 <= float(layer(torch.randn(512, width)).detach().std()) <= 2


@pytest.mark.parametrize("name", sorted(BASES))
@pytest.mark.parametrize("x", [-100.0, -20.0, -1.0, 0.0, 1.0, 20.0, 100.0])
def test_gradients_are_finite_wherever_inputs_lie(name, x):
    layer = NodeLinear(4, 3, name, normalizer=suiting(name))
    if layer.activation.coefficients is not None:
        layer.activation.coefficients.data.normal_()
    x = torch.full((5, 4), x).requires_grad_()
    layer(x).square().sum().backward()
    for tensor in (x, *layer.parameters()):
        assert tensor.grad is not None and torch.isfinite(tensor.grad).all()


def test_every_parameter_learns():
    for name in sorted(BASES):
        torch.manual_seed(1)
        layer = NodeLinear(8, 3, name, normalizer=suiting(name), post="batch")
        optimizer = torch.optim.SGD(layer.parameters(), 0.1)
        for _ in range(2):  # coefficients of 0 let the functions' own parameters move from the second step on
            optimizer.zero_grad()
            (layer(torch.randn(64, 8)) * torch.randn(64, 3)).sum().backward()
            optimizer.step()
        assert all(p.grad is not None and p.grad.abs().max() > 0 for p in layer.parameters()), name


def test_a_convolution_is_the_activation_and_an_ordinary_convolution():
    torch.manual_seed(0)
    layer = NodeConv2d(6, 4, Conv(3, 2, 1, groups=2), "gaussian", normalizer="tanh")
    layer.activation.coefficients.data.normal_()
    x = torch.randn(2, 6, 9, 7)
    phi = layer.activation(torch.tanh(x).movedim(1, -1)).movedim(-1, 1)
    expected = nn.functional.conv2d(phi, layer.weight, layer.bias, 2, 1, groups=2)
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("layout", ["NCHW", "NLC", "NC"])
def test_at_a_norm_act_site_it_is_the_norm_and_then_the_activation(layout):
    shape = {"NCHW": (5, 8, 4, 3), "NLC": (5, 7, 8), "NC": (16, 8)}[layout]
    x = 3 * torch.randn(shape) + 1
    layer = NormActivation(8, "gaussian", "batch", layout=layout)
    norm = nn.BatchNorm2d(8) if layout == "NCHW" else nn.BatchNorm1d(8)
    normalized = norm(x.transpose(1, 2)).transpose(1, 2) if layout == "NLC" else norm(x)
    torch.testing.assert_close(layer(x), nn.functional.silu(normalized), atol=1e-5, rtol=1e-5)


def test_without_activation_the_norm_is_left_and_without_a_norm_an_affine():
    x = torch.randn(5, 8, 4, 3)
    torch.testing.assert_close(
        NormActivation(8, "gaussian", "batch", activation=False)(x), nn.BatchNorm2d(8)(x), atol=1e-5, rtol=1e-5
    )
    affine = NormActivation(8, "gaussian", "none", activation=False)
    torch.testing.assert_close(affine(x), x)
    assert sum(p.numel() for p in affine.parameters()) == 16


@pytest.mark.parametrize("name", sorted(BASES))
def test_layers_are_copied_and_pickled(name):
    layer = NodeLinear(6, 3, name, normalizer=suiting(name))
    x = torch.randn(4, 6)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        torch.testing.assert_close(other(x), layer(x))
    fresh = NodeLinear(6, 3, name, normalizer=suiting(name))
    fresh.load_state_dict(layer.state_dict())
    torch.testing.assert_close(fresh(x), layer(x))


def test_any_leading_shape_one_feature_and_no_example():
    layer = NodeLinear(1, 3, "bspline", normalizer="layer")
    assert layer(torch.zeros(0, 1)).shape == (0, 3)
    assert layer(torch.zeros(2, 5, 7, 1)).shape == (2, 5, 7, 3)
    assert layer(torch.zeros(1)).shape == (3,)


def test_bases_stay_in_float32_under_autocast():
    layer = NodeLinear(8, 8, "bspline")
    layer.activation.coefficients.data.normal_()
    x = torch.randn(64, 8)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), layer(x), atol=0.1, rtol=0.05)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"sharing": "chanel"}, "unknown sharing 'chanel'; the nearest is 'channel'"),
        ({"start": "sliu"}, "unknown activation 'sliu'; the nearest is 'silu'"),
        ({"post": "lyer"}, "unknown post norm 'lyer'"),
        ({"family": "chebyshev", "normalizer": "none"}, "chebyshev needs inputs in [-1, 1]"),
        ({"family": ("graph", {"expression": "batch_std(x)"})}, "it has the moment batch_std"),
    ],
)
def test_what_cannot_be_is_refused(settings, said):
    with pytest.raises(InputError) as problem:
        NodeLinear(4, 3, **{"family": "gaussian", **settings})
    assert said in str(problem.value)


def test_a_wrong_width_is_refused_with_both():
    with pytest.raises(InputError, match=r"expected 4 features in the last axis, got shape \(2, 5\)"):
        NodeLinear(4, 3, "gaussian")(torch.zeros(2, 5))
