"""Models of torchvision and timm, with random weights and small inputs."""

import copy
import warnings

import pytest
import timm
import torch
import torchvision
from torch import nn

from normact.spaces.swap import PostActivationWarning, replace_layers
from tests.spaces.swap.swapping import check_swapped, exported, lived_in, post_activation_allowed

slow = pytest.mark.slow
tv = torchvision.models


def images(size=32):
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))


def seeded(model, x):
    """The output with the same random draws, such as those of stochastic depth."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        return model(x)


# Counted in the papers' tables: blocks times norms in each. `pairs` have an activation behind them, `alone` none.
TORCHVISION = [
    # (a model, arguments, pairs, alone, activations behind an addition)
    ("resnet18", {}, 9, 11, 8),  # stem, 8 blocks; 8 second norms, 3 shortcuts
    pytest.param("resnet50", {}, 33, 20, 16, marks=slow),  # stem, 2 in 16 blocks; 16 third norms, 4 shortcuts
    ("mobilenet_v2", {"width_mult": 0.25}, 35, 17, 0),  # stem, head, 2 in each of 17 blocks but 1 in the first; 17
    pytest.param("mobilenet_v3_small", {}, 23, 11, 0, marks=slow),  # stem, head, 2 in 11 blocks but 1 in the first
    pytest.param("mobilenet_v3_large", {}, 31, 15, 0, marks=slow),  # stem, head, 2 in 15 blocks but 1 in the first
    pytest.param("efficientnet_b0", {}, 33, 16, 0, marks=slow),  # stem, head, 2 in 16 blocks but 1 in the first
]


@pytest.mark.parametrize("example", [False, True], ids=["trace", "run"])
@pytest.mark.parametrize(("name", "kw", "pairs", "alone", "added"), TORCHVISION)
def test_a_torchvision_model_has_all_its_norms_replaced(name, kw, pairs, alone, added, example):
    model, x = getattr(tv, name)(**kw), images()
    cls = type(model)
    with post_activation_allowed():
        report = replace_layers(model, exported("evonorm_s0"), example_inputs=x if example else None)
    assert (len(report.pairs), len(report.norms), len(report.left)) == (pairs, alone, added)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules()) and type(model) is cls
    check_swapped(model, x)


@pytest.mark.parametrize(
    ("make", "layer"),
    [
        (tv.resnet18, "bn_relu"),
        pytest.param(tv.resnet50, "bn_relu", marks=slow),
        pytest.param(tv.efficientnet_b0, "bn_silu", marks=slow),
        (lambda: timm.create_model("test_resnet"), "bn_relu"),
        (lambda: timm.create_model("resnetv2_50", layers=(1, 1, 1, 1)), "bn_relu"),
        (lambda: timm.create_model("densenet121", block_config=(2, 2)), "bn_relu"),
    ],
)
@pytest.mark.parametrize("exports", [False, True])
def test_the_same_layer_carried_over_leaves_the_outputs(make, layer, exports):
    model = lived_in(make()).double()
    other, x = copy.deepcopy(model), images(64).double()  # on 1 x 1 maps two samples' variance amplifies rounding
    with post_activation_allowed():
        report = replace_layers(model, exported(layer) if exports else layer, lone="keep")
    assert len(report.carried) == len(report.pairs) > 0
    for training in (False, True, False):
        ours, theirs = (seeded(m.train(training), x) for m in (model, other))
        assert float((ours - theirs).abs().max()) < 1e-6 * float(theirs.abs().max())


@pytest.mark.parametrize("make", [tv.resnet18, pytest.param(tv.resnet50, marks=slow)])
def test_only_post_activation_models_are_warned_about(make):
    with pytest.warns(
        PostActivationWarning, match=r"ResNet is a post-activation model: layer1\.0\.relu .*\((8|16) such"
    ):
        report = replace_layers(make(), "evonorm_s0")
    assert "post-activation" in report.notes[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error", PostActivationWarning)
        assert not replace_layers(timm.create_model("resnetv2_50", layers=(1, 1, 1, 1)), "evonorm_s0").notes
        assert not replace_layers(tv.mobilenet_v2(width_mult=0.25), "evonorm_s0").notes


@pytest.mark.parametrize(
    ("make", "norms", "size"),
    [
        (lambda: tv.VisionTransformer(32, 8, 2, 2, 16, 32), 5, 32),  # 2 in each of 2 layers, and the last
        pytest.param(lambda: tv.vit_b_16(image_size=32), 25, 32, marks=slow),
        pytest.param(tv.convnext_tiny, 23, 32, marks=slow),  # stem, 18 blocks, 3 downsamplings, head
        (lambda: timm.create_model("test_convnext"), 14, 32),
        (lambda: timm.create_model("test_vit"), 13, 160),
    ],
)
def test_models_of_layer_norms_alone_take_the_layer_where_that_is_asked_for(make, norms, size):
    model, x = make(), images(size)
    with pytest.raises(ValueError, match=f"any of its {norms} norms"):
        replace_layers(model, "evonorm_s0", example_inputs=x)
    report = replace_layers(model, exported("evonorm_s0"), lone="layer", example_inputs=x)
    assert (report.pairs, len(report.norms), report.left) == ((), norms, ())
    assert not any(isinstance(m, nn.LayerNorm) for m in model.modules())
    if isinstance(model, tv.VisionTransformer):
        nn.init.normal_(model.heads.head.weight)  # starts from 0, and with it every output
    check_swapped(model, x)


# -- timm ------------------------------------------------------------------------------------------------------


def timm_model(name, **kw):
    return timm.create_model(name, **({"layers": (1, 1, 1, 1)} if name.startswith("resnetv2") else {}), **kw)


@pytest.mark.parametrize("layer", ["evonorm_s0", "bn_silu", "evonorm_b0"])
@pytest.mark.parametrize("name", ["test_efficientnet_evos", "test_efficientnet", "resnetv2_50d_evos", "resnetv2_50"])
def test_timm_takes_an_exported_factory_as_norm_layer_and_swap_puts_it_in_the_same_places(name, layer):
    factory, x = exported(layer), images(64)
    by_argument, swapped = timm_model(name, norm_layer=factory), timm_model(name)
    replace_layers(swapped, factory)

    def places(model):
        return {n: type(m).__name__ for n, m in model.named_modules() if type(m).__module__.startswith("emitted")}

    assert places(by_argument).keys() == places(swapped).keys() and len(places(swapped)) > 12
    swapped.load_state_dict(by_argument.state_dict())
    torch.testing.assert_close(swapped.eval()(x), by_argument.eval()(x))
    swapped.train()(x).square().sum().backward()
    assert all(p.grad is not None for p in swapped.parameters())


@pytest.mark.parametrize(
    "name", ["test_efficientnet_gn", "test_efficientnet_ln", "test_byobnet", "mobilenetv3_small_050"]
)
def test_timms_layers_with_an_activation_inside_are_pairs(name):
    model, x = timm.create_model(name), images(64)
    with post_activation_allowed():
        report = replace_layers(model, "evonorm_s0")
    assert len(report.pairs) > 5 and all(act == f"{norm}.act" for norm, act in report.pairs)
    assert not any(isinstance(m, nn.BatchNorm2d | nn.GroupNorm | nn.LayerNorm) for m in model.modules())
    check_swapped(model, x)


# -- exported and compiled -------------------------------------------------------------------------------------


@slow
def test_a_swapped_resnet_exports_and_compiles():
    model, x = tv.resnet18(num_classes=10).eval(), images()
    with post_activation_allowed():
        replace_layers(model, exported("evonorm_s0"))
    expected = model(x)
    torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), expected)
    torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="aot_eager")(x), expected)
