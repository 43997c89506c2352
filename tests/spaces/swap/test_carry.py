import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from normact.spaces import LayerOptions
from normact.spaces.swap import replace_layers
from tests.spaces.swap.swapping import exported, lived_in

X = torch.randn(4, 6, 5, 5, generator=torch.Generator().manual_seed(0))


def pair(norm, act=None, **kw):
    return lived_in(nn.Sequential(nn.Conv2d(6, 6, 3), norm(6, **kw), act or nn.ReLU()))


@pytest.mark.parametrize("kw", [{}, {"eps": 0.3, "momentum": 0.4}, {"momentum": None}, {"bias": False}], ids=str)
@pytest.mark.parametrize("layer", ["bn_relu", exported("bn_relu")], ids=["graph", "exported"])
def test_bn_relu_for_bn_relu_changes_no_output_and_goes_on_alike(layer, kw):
    if "bias" in kw:
        theirs = pair(lambda n: nn.BatchNorm2d(n))
        theirs[1].bias = None
        ours = pair(lambda n: nn.BatchNorm2d(n))
        ours[1].bias = None
    else:
        theirs, ours = pair(nn.BatchNorm2d, **kw), pair(nn.BatchNorm2d, **kw)
    ours.load_state_dict(theirs.state_dict())
    assert replace_layers(ours, layer).carried == ("1",)
    for training in (False, True, False):
        if training and theirs[1].momentum is None:
            break  # the mean over all batches is kept there, a running one here
        theirs.train(training)
        ours.train(training)
        torch.testing.assert_close(ours(X), theirs(X), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(ours[1].running_var, theirs[1].running_var, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(ours[1].running_mean, theirs[1].running_mean, rtol=1e-6, atol=1e-6)


def test_group_norm_and_layer_norm_hand_over_scale_and_shift():
    model = lived_in(nn.Sequential(nn.GroupNorm(2, 6, eps=0.1), nn.SiLU()))
    expected = model(X)
    replace_layers(model, "gn_silu", options=LayerOptions(groups=2))
    torch.testing.assert_close(model(X), expected)
    model = lived_in(nn.Sequential(nn.LayerNorm(5), nn.GELU()))
    expected = model(X)
    replace_layers(model, "ln_gelu")
    torch.testing.assert_close(model(X), expected)


def test_what_means_something_else_is_not_carried():
    model = pair(nn.BatchNorm2d)
    assert replace_layers(model, "gn_relu").carried == ()
    assert torch.equal(model[1].v1, torch.ones(6))
    model = pair(nn.BatchNorm2d)
    variance = model[1].running_var.clone()
    assert replace_layers(model, "evonorm_b0").carried == ("1",)
    assert torch.equal(model[1].running_var, variance)
    assert torch.equal(model[1].weight, torch.ones(6))  # behind the nonlinearity, it is no scale of a norm
    model = pair(nn.BatchNorm2d)
    assert replace_layers(model, "div(x, sigmoid(batch_std(mul(x, x))))").carried == ()
    assert torch.equal(model[1].running_var, torch.ones(6))


def test_nothing_is_carried_where_that_is_asked_for():
    model = pair(nn.BatchNorm2d)
    assert replace_layers(model, "bn_relu", carry=False).carried == ()
    assert torch.equal(model[1].running_mean, torch.zeros(6)) and torch.equal(model[1].v1, torch.ones(6))


@pytest.mark.parametrize("layer", ["evonorm_s0", exported("evonorm_s0")], ids=["graph", "exported"])
@pytest.mark.parametrize("affine", [True, False])
def test_a_batch_norm_alone_becomes_its_evaluation_form(layer, affine):
    model = lived_in(nn.Sequential(nn.BatchNorm2d(6), nn.ReLU(), nn.BatchNorm2d(6, eps=0.1, affine=affine))).eval()
    x = F.relu(X)
    expected = model[2](x)
    report = replace_layers(model, layer)
    assert "2" in report.carried
    torch.testing.assert_close(model[2](x), expected)


def test_each_parameter_keeps_whether_it_is_trained():
    model = pair(nn.BatchNorm2d)
    model[1].bias.requires_grad_(False)
    replace_layers(model, "bn_relu")
    assert (model[1].v1.requires_grad, model[1].v0.requires_grad) == (True, False)


def test_a_layer_that_normalizes_without_activation_too_takes_no_batch_norms_evaluation_form():
    for layer, carried in [(timm.layers.EvoNorm2dS0a, ()), (timm.layers.EvoNorm2dS0, ("2",))]:
        model = lived_in(nn.Sequential(nn.BatchNorm2d(6), nn.ReLU(), nn.BatchNorm2d(6)))
        assert replace_layers(model, layer, group_size=2).carried == carried
