"""KAN layers against formulas written out here."""

import math
import os

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from normact.spaces import InputError
from normact.spaces.kan import COMBINATIONS, KANConv2d, KANLinear
from normact.spaces.kan import layer as layers
from normact.spaces.kan.layer import BASE_ACTIVATIONS

TWO = (("gaussian", {"grid": 4}), ("piecewise_linear", {"grid": 4}))


def gaussian(x, grid=4, reach=2.0):
    """(..., I) to (..., K, I)."""
    centers = np.linspace(-reach, reach, grid)
    return np.stack([np.exp(-(((x - c) * (grid - 1) / (2 * reach)) ** 2)) for c in centers], -2)


def hats(x, grid=4, reach=2.0):
    nodes = np.linspace(-reach, reach, grid)
    inside = np.clip(x, -reach, reach)
    planes = np.stack([np.interp(inside, nodes, np.eye(grid)[k]) for k in range(grid)], -2)
    beyond = (x - inside) * (grid - 1) / (2 * reach)  # in cells
    for end, next_, outside in ((0, 1, beyond < 0), (-1, -2, beyond > 0)):
        planes[..., end, :] += np.where(outside, np.abs(beyond), 0)
        planes[..., next_, :] -= np.where(outside, np.abs(beyond), 0)
    return planes


def silu(x):
    return x / (1 + np.exp(-x))


def mix(planes, weight, outputs):
    """sum over k and i of C[o, k, i] b_k(x_i)."""
    return np.einsum("...ki,oki->...o", planes, weight.reshape(outputs, *planes.shape[-2:]))


def weights(layer):
    return [weight.detach().double().numpy() for weight in layer.weights]


def filled_bias(layer):
    with torch.no_grad():
        layer.bias.copy_(torch.linspace(-1, 1, len(layer.bias)))
    return layer.bias.detach().double().numpy()


FORMS = {
    "product": lambda a, b: a * b,
    "sum_product": lambda a, b: (a + b + a * b) / math.sqrt(3),
    "quadratic": lambda a, b: (a + b + a * b + a**2 + b**2) / math.sqrt(7),
    "max": np.maximum,
    "min": np.minimum,
    "mean": lambda a, b: (a + b) / 2,
    "concat": lambda a, b: np.concatenate([a, b], -1),
}


def test_every_combination_has_a_formula_here():
    assert set(COMBINATIONS) == {"sum", "shared", *FORMS}


@pytest.mark.parametrize("base", [*BASE_ACTIVATIONS, "none"])
def test_one_family_is_its_functions_mixed_and_the_base_branch(base):
    layer = KANLinear(3, 5, TWO[:1], normalizer="none", base=base)
    bias, (weight,) = filled_bias(layer), weights(layer)
    x = torch.randn(7, 3)
    planes = gaussian(x.double().numpy())
    if base != "none":
        planes = np.concatenate([planes, BASE_ACTIVATIONS[base](x.double()).numpy()[:, None]], 1)
    np.testing.assert_allclose(layer(x).detach(), mix(planes, weight, 5) + bias, atol=1e-5)


@pytest.mark.parametrize("combine", ["sum", "shared"])
def test_summed_families_are_one_product(combine):
    layer = KANLinear(3, 5, TWO, normalizer="none", combine=combine)
    bias, (weight,) = filled_bias(layer), weights(layer)
    x = torch.randn(7, 3)
    exact = x.double().numpy()
    bases = [gaussian(exact), hats(exact)]
    planes = bases if combine == "sum" else [bases[0] + bases[1]]
    planes = np.concatenate([*planes, silu(exact)[:, None]], 1)
    assert weight.shape == (5, planes.shape[1] * 3)
    np.testing.assert_allclose(layer(x).detach(), mix(planes, weight, 5) + bias, atol=1e-5)


@pytest.mark.parametrize("base", ["silu", "none"])
@pytest.mark.parametrize("combine", FORMS)
def test_other_combinations_are_of_the_families_outputs(combine, base):
    layer = KANLinear(3, 6, TWO, normalizer="none", combine=combine, base=base)
    bias, given = filled_bias(layer), weights(layer)
    x = torch.randn(7, 3)
    exact = x.double().numpy()
    shares = (3, 3) if combine == "concat" else (6, 6)
    outputs = [mix(b(exact), w, o) for b, w, o in zip((gaussian, hats), given, shares, strict=False)]
    expected = FORMS[combine](*outputs) + bias
    if base == "silu":
        expected = expected + silu(exact) @ given[2].T
    np.testing.assert_allclose(layer(x).detach(), expected, atol=1e-5)


@pytest.mark.parametrize("families", [1, 2, 3])
@pytest.mark.parametrize("combine", COMBINATIONS)
@pytest.mark.parametrize("base", ["silu", "none"])
def test_combinations_keep_the_variance_and_train_all(combine, families, base):
    names = [("gaussian", {"grid": 8}), ("bspline", {"grid": 5, "order": 3}), ("sech", {"grid": 8})][:families]
    for width in (8, 64, 512):
        layer = KANLinear(width, 64, names, combine=combine, base=base)
        y = layer(torch.randn(256, width))
        assert 0.5 <= y.std() <= 2
    y.square().sum().backward()
    assert all(parameter.grad.any() for parameter in layer.parameters())


def test_the_normalizer_is_the_bases_and_not_the_base_branchs():
    layer = KANLinear(3, 2, TWO[:1], normalizer="clamp")
    (weight,) = weights(layer)
    x = torch.tensor([[-3.0, 0.5, 2.0]])
    exact = x.double().numpy()
    planes = np.concatenate([gaussian(exact.clip(-1, 1), reach=1.0), silu(exact)[:, None]], 1)
    np.testing.assert_allclose(layer(x).detach(), mix(planes, weight, 2), atol=1e-5)


@pytest.mark.parametrize(("post", "axis"), [("layer", -1), ("batch", 0)])
def test_a_norm_may_follow(post, axis):
    layer = KANLinear(3, 6, TWO[:1], post=post)
    y = layer(torch.randn(32, 3)).detach().numpy()
    np.testing.assert_allclose(y.mean(axis), 0, atol=1e-5)
    np.testing.assert_allclose(y.std(axis), 1, atol=1e-2)


@pytest.mark.parametrize("combine", ["sum", "product"])
def test_recomputed_bases_give_the_same(combine):
    kept, again = (KANLinear(3, 5, TWO, combine=combine, recompute=recompute) for recompute in (False, True))
    again.load_state_dict(kept.state_dict())
    x = torch.randn(7, 3, requires_grad=True)
    found = [torch.autograd.grad(layer(x).square().sum(), [x, *layer.parameters()]) for layer in (kept, again)]
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("recompute", [False, True])
def test_what_is_kept_for_the_backward_pass(recompute):
    """Planes once (8 functions, the base branch) and normalized inputs; these alone where planes are recomputed."""
    layer = KANLinear(32, 4, (("gaussian", {"grid": 8}),), recompute=recompute)
    x = torch.randn(64, 32, requires_grad=True)
    known = {tensor.untyped_storage().data_ptr() for tensor in (x, *layer.parameters(), *layer.buffers())}
    kept = {}

    def note(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        y = layer(x)
    size = sum(nbytes for pointer, nbytes in kept.items() if pointer not in known)
    tensors = 1 if recompute else 8 + 1 + 1
    assert x.nbytes * tensors <= size <= x.nbytes * tensors + 64 * 2 * 4
    y.sum().backward()


def unfolded(layer, planes, kernel, stride, padding, groups):
    """A convolution as products of patches, group by group: (N, P, I, H, W) to (N, O, H', W')."""
    weight = layer.weights[0].detach()
    size = planes.shape[2] // groups
    rows = [part.flatten(1) for part in weight.chunk(groups)]
    outputs = []
    for group, row in enumerate(rows):
        own = planes[:, :, group * size : (group + 1) * size].flatten(1, 2)
        patches = torch.nn.functional.unfold(own, kernel, padding=padding, stride=stride)
        outputs.append(row @ patches)
    height, width = ((n + 2 * padding - kernel) // stride + 1 for n in planes.shape[-2:])
    return torch.cat(outputs, 1).unflatten(-1, (height, width)) + layer.bias.detach()[:, None, None]


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(("kernel", "stride", "padding"), [(1, 1, 0), (3, 1, 1), (3, 2, 1), (2, 2, 0), (3, 1, 2)])
def test_a_convolution_is_a_product_of_patches_of_bases(kernel, stride, padding, groups):
    layer = KANConv2d(4, 6, kernel, stride, padding, groups, families=TWO[:1], normalizer="none")
    filled_bias(layer)
    x = torch.randn(2, 4, 7, 5)
    last = x.movedim(1, -1).double().numpy()
    planes = np.concatenate([gaussian(last), silu(last)[..., None, :]], -2)
    planes = torch.tensor(planes).permute(0, 3, 4, 1, 2).float()
    found = layer(x)
    assert found.shape[1] == 6
    torch.testing.assert_close(found, unfolded(layer, planes, kernel, stride, padding, groups), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("combine", ["product", "max", "shared"])
def test_a_convolution_combines_as_a_linear_layer_does(combine):
    layer = KANConv2d(4, 6, 1, families=TWO, combine=combine)
    linear = KANLinear(4, 6, TWO, combine=combine)
    linear.load_state_dict({name: v.flatten(1) if v.dim() == 4 else v for name, v in layer.state_dict().items()})
    x = torch.randn(2, 4, 3, 5)
    torch.testing.assert_close(layer(x), linear(x.movedim(1, -1)).movedim(-1, 1), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("normalizer", ["layer", "batch", "minmax"])
@pytest.mark.parametrize("groups", [1, 4])
def test_a_convolution_keeps_the_variance(normalizer, groups):
    layer = KANConv2d(16, 32, 3, padding=1, groups=groups, families=("bspline",), normalizer=normalizer)
    assert 0.5 <= layer(torch.randn(8, 16, 8, 8)).std() <= 2


def test_a_convolution_of_no_images():
    x = torch.empty(0, 4, 5, 5, requires_grad=True)
    y = KANConv2d(4, 6, 3)(x)
    assert y.shape == (0, 6, 3, 3)
    y.sum().backward()
    assert x.grad.shape == x.shape


@given(shape=st.lists(st.integers(0, 3), max_size=3), inputs=st.integers(1, 3), outputs=st.integers(1, 3))
def test_leading_axes_are_kept(shape, inputs, outputs):
    layer = KANLinear(inputs, outputs, ("bspline", "gaussian"))
    assert layer(torch.zeros(*shape, inputs)).shape == (*shape, outputs)


def test_bfloat16_inputs_come_out_as_bfloat16():
    layer = KANConv2d(4, 6, 3)
    x = torch.randn(2, 4, 5, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x.bfloat16())
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), layer(x), atol=0.1, rtol=0.1)


def test_a_layer_writes_nothing_and_keeps_no_compiled_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    layer = KANLinear(3, 5)
    for _ in range(2):
        layer(torch.randn(7, 3)).sum().backward()
    layer.eval()(torch.randn(7, 3))
    assert os.listdir(tmp_path) == []
    assert {type(value).__name__ for value in vars(layer).values()} <= {
        "bool", "str", "float", "dict", "set", "OrderedDict", "NoneType", "Mixing"
    }  # fmt: skip


def test_a_layer_exports_with_a_batch_of_any_size():
    layer = KANLinear(3, 5, ("gaussian", "graph")).eval()
    program = torch.export.export(layer, (torch.randn(7, 3),), dynamic_shapes=({0: torch.export.Dim("batch")},))
    x = torch.randn(40, 3)
    torch.testing.assert_close(program.module()(x), layer(x))


@pytest.mark.parametrize(
    ("arguments", "settings", "message"),
    [
        ((0, 4), {}, "at least 1 feature in and out, got 0 and 4"),
        ((4, 0), {}, "at least 1 feature in and out, got 4 and 0"),
        ((4, 4, ()), {}, "at least one basis family"),
        ((4, 4, ("bsplines",)), {}, "unknown basis family 'bsplines'; the nearest is 'bspline'"),
        ((4, 4, (("bspline", {"gird": 3}),)), {}, "unknown setting of bspline 'gird'; the nearest is 'grid'"),
        ((4, 4), {"normalizer": "layers"}, "unknown normalizer 'layers'; the nearest is 'layer'"),
        ((4, 4), {"base": "sulu"}, "unknown base activation 'sulu'; the nearest is 'silu'"),
        ((4, 4), {"combine": "prod"}, "unknown combination 'prod'; the nearest is 'product'"),
        ((4, 4), {"post": "minmax"}, "unknown post norm 'minmax'"),
        ((4, 4, ("legendre",)), {"normalizer": "layer"}, "legendre needs inputs in .*'layer' does not give"),
        (
            (4, 4, ("bspline", ("gaussian", {"grid": 5}))),
            {"combine": "shared"},
            r"equal numbers of functions, got \[8, 5\]",
        ),
        ((10**7, 10**7), {}, "functions an input, 10000000 inputs and 10000000 outputs need .* the machine has"),
    ],
)
def test_what_cannot_be_built_is_refused_with_both_values(arguments, settings, message):
    with pytest.raises(InputError, match=message) as caught:
        KANLinear(*arguments, **settings)
    assert "\n" not in str(caught.value)


def test_a_convolutions_groups_must_divide_its_channels():
    with pytest.raises(InputError, match="groups=3 must divide the channels in and out, 4 and 6"):
        KANConv2d(4, 6, 3, groups=3)


def test_outputs_that_cannot_be_shared_out_are_served_by_all_families():
    assert KANConv2d(4, 6, 3, groups=2, families=TWO, combine="concat").combine == "sum"
    assert KANLinear(4, 1, TWO, combine="concat").combine == "sum"
    assert KANLinear(4, 2, TWO, combine="concat").combine == "concat"


@pytest.mark.parametrize("normalizer", ["minmax", "batch"])
def test_recomputed_gradients_are_those_of_the_plain_layer(normalizer):
    layer = KANLinear(5, 3, ("gaussian",), normalizer=normalizer)
    again = KANLinear(5, 3, ("gaussian",), normalizer=normalizer, recompute=True)
    again.load_state_dict(layer.state_dict())
    x, cotangent = torch.randn(16, 5), torch.randn(16, 3)
    found = []
    for module in (layer, again):
        given = x.clone().requires_grad_()
        module(given).backward(cotangent)
        found.append([given.grad, *(p.grad for p in module.parameters()), *module.buffers()])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


def test_a_wrong_width_is_refused_at_the_call():
    with pytest.raises(InputError, match=r"expected 3 features in the last axis, got shape \(7, 4\)"):
        KANLinear(3, 5)(torch.randn(7, 4))


def test_more_than_memory_is_refused_before_it_is_taken(monkeypatch):
    monkeypatch.setattr(layers.os, "sysconf", lambda name: {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 1000}[name])
    KANLinear(10, 10)
    with pytest.raises(InputError, match=r"need .* GiB to train, and the machine has 0\.00381"):
        KANLinear(1000, 100)
