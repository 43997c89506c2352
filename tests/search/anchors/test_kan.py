import pytest
import torch
from torch import nn

from normact.search.anchors import MLP, KanConvNet, KanNet, PreActResNet, TokenNet, sites_of, sites_on
from normact.spaces import Conv, InputError
from normact.spaces.kan import KANConv2d, KANLinear
from tests.tasks import layer


def kan(site):
    """A KAN layer at a `linear` or `conv` site."""
    settings = {"families": ["gaussian"], "normalizer": "none"}
    if site.kind == "linear":
        return KANLinear(site.in_features, site.features_out, **settings)
    conv = site.conv
    return KANConv2d(site.in_features, site.features_out, conv.kernel_size, conv.stride, conv.padding, **settings)


def plain(site):
    """The map without a nonlinearity."""
    if site.kind == "linear":
        return nn.Linear(site.in_features, site.features_out)
    return nn.Conv2d(site.in_features, site.features_out, site.conv.kernel_size, site.conv.stride, site.conv.padding)


def parameters(model):
    return sum(p.numel() for p in model.parameters())


# -- the net of linear sites -----------------------------------------------------------------------------------


@pytest.mark.parametrize("hidden", [(), (5,), (5, 2)])
def test_sites_of_a_kan_are_its_widths(hidden):
    widths = [6, *hidden, 3]
    sites = sites_of(KanNet(6, hidden, 3))
    assert [(s.index, s.kind, s.layout, s.in_features, s.features_out) for s in sites] == [
        (k, "linear", "NC", widths[k], widths[k + 1]) for k in range(len(widths) - 1)
    ]


def test_a_kan_flattens_and_has_nothing_between_its_layers():
    torch.manual_seed(0)
    model = KanNet(12, (5,), 3)(kan)
    first, second = (m for m in model if isinstance(m, KANLinear))
    x = torch.randn(4, 3, 2, 2)
    torch.testing.assert_close(model(x), second(first(x.reshape(4, 12))))
    assert parameters(model) == parameters(first) + parameters(second)
    assert model(torch.randn(2, 12)).shape == (2, 3)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: KanNet(0, [5], 3), r"\[0, 5, 3\]"),
        (lambda: KanNet(2, [5, 0], 3), r"\[2, 5, 0, 3\]"),
        (lambda: MLP(2, [], 3), r"hidden=\[\]"),
        (lambda: MLP(2, [0], 3), r"hidden=\[0\]"),
        (lambda: KanConvNet(1, 3, widths=[], strides=[]), "at least 1 layer"),
        (lambda: KanConvNet(1, 3, widths=[4], strides=[0]), r"strides=\[0\]"),
        (lambda: KanConvNet(1, 3, widths=[4, 4], strides=[1]), "2 widths and 1 strides"),
    ],
)
def test_widths_that_cannot_be_are_refused(make, match):
    with pytest.raises(InputError, match=match):
        make()


# -- the net of conv sites -------------------------------------------------------------------------------------


def test_sites_of_a_conv_kan_are_three_by_three():
    sites = sites_of(KanConvNet(3, 10, widths=(4, 6), strides=(1, 2)))
    assert [(s.kind, s.layout, s.in_features, s.features_out, s.conv) for s in sites] == [
        ("conv", "NCHW", 3, 4, Conv(3, 1, 1)),
        ("conv", "NCHW", 4, 6, Conv(3, 2, 1)),
    ]


@pytest.mark.parametrize("make", [kan, plain])
def test_a_conv_kan_pools_and_classifies(make):
    torch.manual_seed(0)
    model = KanConvNet(3, 10, widths=(4, 6), strides=(1, 2))(make)
    x = torch.randn(2, 3, 9, 8)
    seen = model[1](model[0](x))
    assert seen.shape == (2, 6, 5, 4)
    torch.testing.assert_close(model(x), model[-1](seen.mean((2, 3))))


# -- the perceptron --------------------------------------------------------------------------------------------


def test_an_mlp_has_a_layer_behind_each_linear_map_but_the_last():
    sites = sites_of(MLP(6, (5, 4), 3))
    assert [(s.kind, s.layout, s.in_features, s.activation) for s in sites] == [
        ("norm_act", "NC", 5, True),
        ("norm_act", "NC", 4, True),
    ]
    model = MLP(6, (5, 4), 3)(lambda site: nn.ReLU())
    x = torch.randn(2, 3, 2)
    maps = [m for m in model if isinstance(m, nn.Linear)]
    expected = maps[2](maps[1](maps[0](x.flatten(1)).relu()).relu())
    torch.testing.assert_close(model(x), expected)


# -- positions -------------------------------------------------------------------------------------------------


def test_positions_are_the_pixels_and_tokens_that_come_in():
    def positions(anchor, *shape):
        return [site.positions for site in sites_on(anchor, shape)]

    assert positions(KanNet(12, (5,), 3), 3, 2, 2) == [1, 1]
    assert positions(KanConvNet(1, 10, (4, 6, 6), (2, 1, 2)), 1, 28, 28) == [28 * 28, 14 * 14, 14 * 14]
    assert positions(TokenNet(1, 8, 10, patch=2, depth=1), 1, 8, 8) == [16] * 4
    assert positions(PreActResNet(1, 10, 4, (1, 1)), 1, 8, 8) == [64, 64, 64, 16, 16]


def test_a_site_that_is_used_twice_has_the_positions_of_both_uses_and_one_that_is_not_used_has_one():
    class Net(nn.Module):
        def __init__(self, make):
            super().__init__()
            used, _ = (make(site) for site in sites_of(KanNet(4, (4,), 4)))
            self.used = used

        def forward(self, x):
            return self.used(self.used(x))

    assert [site.positions for site in sites_on(Net, (4,))] == [2, 1]


def test_asking_for_positions_changes_nothing_else():
    anchor = PreActResNet(1, 10, 4, (1, 1))
    before = torch.get_rng_state()
    sites = sites_on(anchor, (1, 8, 8))
    assert torch.equal(torch.get_rng_state(), before)
    assert [s.index for s in sites] == [s.index for s in sites_of(anchor)]
    assert layer("bn_relu")(sites[0])(torch.randn(2, 4, 8, 8)).shape == (2, 4, 8, 8)
