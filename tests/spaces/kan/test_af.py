import copy
import itertools
import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from normact.spaces import InputError
from normact.spaces.kan.af import AF_ACTIVATIONS, AF_FUNCTIONS, AF_REDUCTIONS, AFKANConv2d, AFKANLinear
from normact.spaces.kan.normalizers import NORMALIZERS, POST_NORMS
from tests.spaces.kan.families import EXTREMES

SETTINGS = st.fixed_dictionaries(
    {
        "activation": st.sampled_from(sorted(AF_ACTIVATIONS)),
        "function": st.sampled_from(sorted(AF_FUNCTIONS)),
        "reduction": st.sampled_from(sorted(AF_REDUCTIONS)),
        "functional_norm": st.booleans(),
        "post": st.sampled_from(["none", "layer"]),
        "normalizer": st.sampled_from(["none", "layer", "tanh"]),
        "grid": st.integers(1, 4),
        "order": st.integers(1, 3),
    }
)
CORNERS = list(itertools.product(sorted(AF_REDUCTIONS), [False, True], POST_NORMS))


# -- another implementation: loops over numbers -----------------------------------------------------------------


def selu(x):
    alpha, scale = 1.6732632423543772, 1.0507009873554805
    return scale * (x if x > 0 else alpha * math.expm1(x))


ACTIVATIONS = {
    "softplus": lambda x: math.log1p(math.exp(-abs(x))) + max(x, 0),
    "sigmoid": lambda x: 1 / (1 + math.exp(-x)),
    "silu": lambda x: x / (1 + math.exp(-x)),
    "relu": lambda x: max(x, 0.0),
    "leaky_relu": lambda x: x if x > 0 else 0.01 * x,
    "elu": lambda x: x if x > 0 else math.expm1(x),
    "gelu": lambda x: x * (1 + math.erf(x / math.sqrt(2))) / 2,
    "selu": selu,
    "tanh": math.tanh,
}
FUNCTIONS = {
    "quad1": lambda u, v: (u * v) ** 2,
    "quad2": lambda u, v: u * v + u**2 + v**2,
    "sum": lambda u, v: u + v,
    "prod": lambda u, v: u * v,
    "sum_prod": lambda u, v: u + v + u * v,
    "cubic1": lambda u, v: (u + v) * (u**2 + v**2),
    "cubic2": lambda u, v: (u * v) ** 3,
}


def softmax(z):
    e = np.exp(z - z.max())
    return e / e.sum()


def parameters(layer):
    return {name: value.detach().numpy() for name, value in layer.named_parameters()}


def functions_of(layer, x, activation, function, functional_norm):
    """(N, D) of one sample."""
    p, act = parameters(layer), ACTIVATIONS[activation]
    f = np.array(
        [
            [FUNCTIONS[function](act(value - s), act(e - value)) for value in x]
            for s, e in zip(p["starts"], p["ends"], strict=True)
        ]
    )
    if functional_norm:
        f = f / np.sqrt((f**2).sum())
        f = (f - f.min()) / (f.max() - f.min())
    return f


def reduced(layer, f, reduction):
    """(N, D) to (D,)."""
    p, (count, features) = parameters(layer), f.shape
    if reduction == "multistep":
        return p["reduction.scale"] @ f + p.get("reduction.bias", 0.0)
    temperature = max(p["reduction.temperature"], 1.0)
    if reduction == "global_attention":
        weights = softmax(np.array([p["reduction.scores"] @ f[:, d] for d in range(features)]) / temperature)
        return np.array([weights[d] * features * f[:, d].mean() for d in range(features)])
    kernel, padded = p["reduction.kernel"].reshape(count, 3), np.pad(f, ((0, 0), (1, 1)))
    h = []
    for d in range(features):
        scores = [kernel[j] @ padded[j, d : d + 3] + p["reduction.bias"][j] for j in range(count)]
        h.append(softmax(np.array(scores) / temperature) @ f[:, d])
    return np.array(h)


def mixed_values(layer, x, activation, function, reduction, functional_norm, post):
    """A(post(h)) of one sample (D,)."""
    h = reduced(layer, functions_of(layer, x, activation, function, functional_norm), reduction)
    if post == "layer":
        p = parameters(layer)
        h = (h - h.mean()) / np.sqrt(h.var() + 1e-5) * p["post.weight"] + p["post.bias"]
    return np.array([ACTIVATIONS[activation](value) for value in h])


def perturbed(layer):
    """All parameters off their first values, in float64."""
    layer = layer.double()
    with torch.no_grad():
        for p in layer.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return layer


@pytest.mark.parametrize("reduction", AF_REDUCTIONS)
@pytest.mark.parametrize("function", AF_FUNCTIONS)
@pytest.mark.parametrize("activation", AF_ACTIVATIONS)
def test_a_layer_is_what_loops_over_numbers_give(activation, function, reduction):
    for functional_norm, post in itertools.product([False, True], ["none", "layer"]):
        settings = {"activation": activation, "function": function, "reduction": reduction}
        settings |= {"functional_norm": functional_norm, "post": post}
        layer = perturbed(AFKANLinear(5, 3, grid=2, order=2, **settings))
        x = torch.randn(3, 5, dtype=torch.float64)
        expected = [mixed_values(layer, row.numpy(), **settings) for row in x]
        expected = np.array(expected) @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()
        np.testing.assert_allclose(layer(x).detach().numpy(), expected, rtol=1e-9, atol=1e-9)


def test_the_ends_start_as_published():
    layer = AFKANLinear(4, 2, grid=3, order=2)
    starts = [-2 / 3, -1 / 3, 0, 1 / 3, 2 / 3]
    np.testing.assert_allclose(layer.starts.tolist(), starts, atol=1e-6)
    np.testing.assert_allclose(layer.ends.tolist(), [s + 1 for s in starts], atol=1e-6)


@pytest.mark.parametrize(("normalizer", "low", "high"), [("tanh", -1, 1), ("layer", -2, 2)])
def test_behind_a_normalizer_the_ends_cover_what_it_gives(normalizer, low, high):
    """As [0, 1] is covered without: by grid cells, with order more to the left, each function over order + 1 cells."""
    layer = AFKANLinear(4, 2, grid=4, order=2, normalizer=normalizer)
    cell = (high - low) / 4
    np.testing.assert_allclose(layer.starts.tolist(), [low + (j - 2) * cell for j in range(6)], atol=1e-6)
    np.testing.assert_allclose((layer.ends - layer.starts).tolist(), [3 * cell] * 6, atol=1e-6)


# -- the published code, functional norm off --------------------------------------------------------------------


def as_published(layer, x, reduction):
    """The formulas of the authors' code: (B, D, N), sums over N with softmax weights over D or N."""
    features, count = x.shape[1], len(layer.starts)
    x1 = nn.functional.silu(x.unsqueeze(2) - layer.starts)
    x2 = nn.functional.silu(layer.ends - x.unsqueeze(2))
    f = (x1 * x2) ** 2
    part, eps = layer.reduction, layer.post.eps
    if reduction == "global_attention":
        attention = nn.functional.softmax(f @ part.scores.unsqueeze(1) / part.temperature.clamp(min=1.0), dim=-2)
        h = torch.sum(f * attention, dim=-1)
        eps = eps * (count / features) ** 2  # ours is features / count times as large in front of the norm
    elif reduction == "spatial_attention":
        conv = nn.Conv1d(count, count, 3, padding=1, groups=count, dtype=x.dtype)
        conv.weight.data, conv.bias.data = part.kernel.view(count, 1, 3), part.bias
        attention = nn.functional.softmax(conv(f.permute(0, 2, 1)) / part.temperature.clamp(min=1.0), dim=1)
        h = torch.sum(f * attention.permute(0, 2, 1), dim=-1)
    else:
        h = nn.functional.linear(f, part.scale.unsqueeze(0), torch.zeros(1, dtype=x.dtype)).reshape(len(x), -1)
    h = nn.functional.layer_norm(h, (features,), layer.post.weight, layer.post.bias, eps)
    return nn.functional.linear(nn.functional.silu(h), layer.weight)


@pytest.mark.parametrize("reduction", AF_REDUCTIONS)
def test_without_functional_norm_it_is_the_published_layer(reduction):
    layer = perturbed(AFKANLinear(11, 4, reduction=reduction, bias=False))
    x = torch.rand(6, 11, dtype=torch.float64)
    torch.testing.assert_close(layer(x), as_published(layer, x, reduction), rtol=1e-9, atol=1e-9)


def test_the_best_settings_have_the_published_number_of_parameters():
    """52,552 of the published ones have a gradient; two of these are biases of scores, which a softmax cancels."""
    widths = [(784, 64), (64, 10)]
    without, usual = ([AFKANLinear(*width, bias=bias) for width in widths] for bias in (False, True))
    assert sum(p.numel() for layer in without for p in layer.parameters()) == 52_552 - 2
    assert sum(p.numel() for layer in usual for p in layer.parameters()) == 52_552 - 2 + 64 + 10


# -- what every layer promises ----------------------------------------------------------------------------------


@given(chosen=SETTINGS, training=st.booleans())
def test_a_sample_does_not_depend_on_its_batch(chosen, training):
    layer = AFKANLinear(6, 4, **chosen).double().train(training)
    x = torch.randn(5, 6, dtype=torch.float64)
    torch.testing.assert_close(layer(x)[2], layer(x[2]))


@given(chosen=SETTINGS, post=st.sampled_from(POST_NORMS))
def test_gradients_are_finite_far_outside(chosen, post):
    layer = AFKANLinear(len(EXTREMES), 3, **{**chosen, "post": post})
    far = torch.tensor(EXTREMES)
    x = torch.cat([far.unsqueeze(1).expand(-1, len(EXTREMES)), far.unsqueeze(0)]).clone().requires_grad_()
    y = layer(x)
    assert y.isfinite().all()
    y.sum().backward()
    assert all(p.grad.isfinite().all() for p in [x, *layer.parameters()])


@pytest.mark.parametrize("features", [1, 7])
@pytest.mark.parametrize(("reduction", "functional_norm", "post"), CORNERS)
def test_every_parameter_has_a_gradient_and_none_but_the_weight_is_decayed(features, reduction, functional_norm, post):
    layer = AFKANLinear(features, 3, reduction=reduction, functional_norm=functional_norm, post=post)
    (layer(torch.randn(16, features)) * torch.randn(16, 3)).sum().backward()
    idle = [name for name, p in layer.named_parameters() if not (p.grad is not None and p.grad.abs().max() > 1e-9)]
    assert not idle
    assert [name for name, p in layer.named_parameters() if p.dim() > 1] == ["weight"]


@pytest.mark.parametrize("reduction", AF_REDUCTIONS)
def test_one_function_of_one_input_has_no_idle_parameters_either(reduction):
    layer = AFKANLinear(1, 2, reduction=reduction, grid=1, order=0, post="none")
    (layer(torch.randn(9, 1)) * torch.randn(9, 2)).sum().backward()
    assert all(p.grad.abs().max() > 0 for p in layer.parameters())


@pytest.mark.parametrize("width", [8, 64, 512])
@settings(max_examples=30)
@given(chosen=SETTINGS, post=st.sampled_from(POST_NORMS), normalizer=st.sampled_from(sorted(NORMALIZERS)))
def test_the_output_starts_with_variance_about_1(width, chosen, post, normalizer):
    """Not with grid 1, where the sum of two ReLUs, u + v, is the same everywhere."""
    layer = AFKANLinear(width, 128, **{**chosen, "grid": 3, "post": post, "normalizer": normalizer})
    assert 0.5 < layer(torch.randn(128, width)).std() < 2


def test_setting_the_scale_leaves_no_trace_in_running_statistics():
    layer = AFKANLinear(5, 3, normalizer="batch_tanh", post="batch")
    means = [value for name, value in layer.named_buffers() if name.endswith("running_mean")]
    assert len(means) == 2
    assert all((value == 0).all() for value in means)


@pytest.mark.parametrize("shape", [(6,), (0, 6), (2, 3, 6), (2, 0, 3, 6)])
@pytest.mark.parametrize(("reduction", "functional_norm", "post"), CORNERS)
def test_any_leading_axes(reduction, functional_norm, post, shape):
    layer = AFKANLinear(6, 4, reduction=reduction, functional_norm=functional_norm, post=post)
    x = torch.randn(shape, requires_grad=True)
    y = layer(x)
    y.sum().backward()
    assert y.shape == (*shape[:-1], 4)
    assert x.grad.shape == shape


@pytest.mark.parametrize("reduction", AF_REDUCTIONS)
def test_under_autocast_all_but_the_product_is_in_float32(reduction):
    layer = AFKANLinear(6, 4, reduction=reduction, functional_norm=True, bias=False)
    layer.weight.data = torch.eye(4, 6)  # its output is what the weight mixes
    x = torch.randn(32, 6)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert torch.equal(y, layer(x).bfloat16())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("reduction", "functional_norm", "post"), CORNERS)
def test_a_layer_in_half_precision(reduction, functional_norm, post, dtype):
    layer = AFKANLinear(6, 4, reduction=reduction, functional_norm=functional_norm, post=post)
    x = torch.randn(32, 6)
    y = copy.deepcopy(layer).to(dtype)(x.to(dtype))
    assert y.dtype == dtype
    torch.testing.assert_close(y.float(), layer(x), rtol=0.1, atol=0.1)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
@pytest.mark.parametrize("reduction", AF_REDUCTIONS)
def test_copies(reduction, copied):
    layer, x = AFKANLinear(6, 4, reduction=reduction, normalizer="batch", post="batch"), torch.randn(9, 6)
    layer(x)
    assert torch.equal(copied(layer).eval()(x), layer.eval()(x))


@pytest.mark.parametrize("reduction", AF_REDUCTIONS)
def test_a_state_dict_carries_all(reduction):
    first, second = (AFKANLinear(6, 4, reduction=reduction, post="batch") for _ in range(2))
    x = torch.randn(9, 6)
    first(x)
    second.load_state_dict(first.state_dict())
    assert torch.equal(first.eval()(x), second.eval()(x))


def test_the_functional_norm_of_values_that_are_all_alike_blows_up_no_rounding():
    """relu(x - s) + relu(e - x) is e - s for every x between the ends."""
    layer = AFKANLinear(4, 3, activation="relu", function="sum", grid=1, order=0, functional_norm=True, post="none")
    x = torch.rand(64, 4) * 0.8 + 0.1
    assert layer.functions(x).abs().max() < 0.05


# -- convolutions -----------------------------------------------------------------------------------------------


@given(chosen=SETTINGS)
def test_a_kernel_of_1_is_a_linear_layer_at_each_position(chosen):
    conv, linear = AFKANConv2d(5, 3, 1, **chosen).double(), AFKANLinear(5, 3, **chosen).double()
    state = conv.state_dict()
    linear.load_state_dict({**state, "weight": state["weight"].flatten(1)})
    x = torch.randn(2, 5, 3, 4, dtype=torch.float64)
    torch.testing.assert_close(conv(x), linear(x.movedim(1, -1)).movedim(-1, 1))


@pytest.mark.parametrize(("stride", "padding", "groups"), [(1, 0, 1), (2, 1, 1), (1, 2, 2)])
def test_a_convolution_is_that_of_values_reduced_at_each_position(stride, padding, groups):
    layer = perturbed(AFKANConv2d(4, 6, 3, stride, padding, groups, functional_norm=True))
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64)
    settings = ("silu", "quad1", "global_attention", True, "layer")
    values = np.array([[[mixed_values(layer, x[n, :, i, j].numpy(), *settings) for j in range(5)] for i in range(5)]
                       for n in range(2)])  # fmt: skip
    values = torch.from_numpy(values).movedim(-1, 1)
    expected = nn.functional.conv2d(values, layer.weight, layer.bias, stride, padding, groups=groups)
    torch.testing.assert_close(layer(x), expected, rtol=1e-9, atol=1e-9)


# -- errors -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"activation": "silo"}, "unknown activation 'silo'; the nearest is 'silu'"),
        ({"function": "quad3"}, "unknown function type 'quad3'; the nearest is 'quad"),
        ({"reduction": "local_attention"}, "unknown reduction 'local_attention'; the nearest is 'global_attention'"),
        ({"post": "bach"}, "unknown post norm 'bach'; the nearest is 'batch'"),
        ({"normalizer": "lair"}, "unknown normalizer 'lair'"),
        ({"grid": 0}, "grid >= 1, order >= 0 .* got grid=0, order=3"),
        ({"order": -1}, "got grid=3, order=-1"),
        ({"grid": 10_000}, "at most 4096 functions, got grid=10000, order=3"),
    ],
)
def test_what_cannot_be(settings, message):
    with pytest.raises(InputError, match=message):
        AFKANLinear(4, 2, **settings)


def test_a_functional_norm_of_a_single_value_is_refused():
    with pytest.raises(InputError, match=r"one function of one input is always 0: .* than 1 \+ 0"):
        AFKANLinear(1, 2, grid=1, order=0, functional_norm=True)


def test_a_wrong_width_is_refused():
    with pytest.raises(InputError, match=r"expected 4 features in the last axis, got shape \(2, 5\)"):
        AFKANLinear(4, 2)(torch.zeros(2, 5))
