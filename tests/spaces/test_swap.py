import pytest
import timm
import torch
import torchvision
from torch import nn

from normact.spaces import ChannelAffine, GraphLayer, InputError, named
from normact.spaces.swap import NORMS, replace_layers


def make(site):
    if not site.activation:
        return ChannelAffine(site.in_features, site.layout)
    return GraphLayer(named("bn_relu").graph, site.in_features, site.layout)


class Attributes(nn.Module):
    """A module whose attributes are used as `forward` says."""

    def __init__(self, forward, **modules):
        super().__init__()
        self._forward = forward
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, x):
        return self._forward(self, x)


def conv(features=4):
    return nn.Conv2d(features, features, 3, padding=1)


def bn():
    return nn.BatchNorm2d(4)


X = torch.randn(2, 4, 5, 5, generator=torch.Generator().manual_seed(0))

# -- what is found ---------------------------------------------------------------------------------------------


def test_a_sequential_models_pairs_and_lone_norms():
    model = nn.Sequential(conv(), bn(), nn.ReLU(), conv(), bn(), nn.Sequential(bn(), nn.Identity(), nn.GELU()))
    done = replace_layers(model, make)
    assert done.pairs == (("1", "2"), ("5.0", "5.2"))
    assert done.norms == ("4",)
    assert [type(m) for m in model[1:5]] == [GraphLayer, nn.Identity, nn.Conv2d, ChannelAffine]
    assert [type(m) for m in model[5]] == [GraphLayer, nn.Identity, nn.Identity]


def test_swapping_in_the_same_function_changes_nothing():
    model = nn.Sequential(conv(), bn(), nn.ReLU(), Attributes(lambda m, x: m.a(m.n(x)) + x, a=nn.ReLU(), n=bn()))
    expected = model(X)
    replace_layers(model, make)
    assert not any(isinstance(m, nn.BatchNorm2d | nn.ReLU) for m in model.modules())
    torch.testing.assert_close(model(X), expected)


def test_the_order_of_attributes_does_not_matter_but_that_of_forward():
    model = Attributes(lambda m, x: m.second(m.norm(x)) + m.first(x), norm=bn(), first=nn.Tanh(), second=nn.ReLU())
    expected = model(X)
    assert replace_layers(model, make).pairs == (("norm", "second"),)
    assert isinstance(model.first, nn.Tanh)
    torch.testing.assert_close(model(X), expected)


@pytest.mark.parametrize(
    ("norm", "x", "layout", "features"),
    [
        (nn.BatchNorm1d(6), torch.randn(3, 6), "NC", 6),
        (nn.BatchNorm2d(6), torch.randn(3, 6, 2, 2), "NCHW", 6),
        (nn.BatchNorm3d(6), torch.randn(3, 6, 2, 2, 2), "NCHW", 6),
        (nn.GroupNorm(2, 6), torch.randn(3, 6, 2, 2), "NCHW", 6),
        (nn.InstanceNorm2d(6), torch.randn(3, 6, 2, 2), "NCHW", 6),
        (nn.LayerNorm(6), torch.randn(3, 2, 6), "NLC", 6),
    ],
)
def test_each_norm_becomes_a_site_of_its_width_and_layout(norm, x, layout, features):
    seen = []
    model = nn.Sequential(norm, nn.ReLU())
    replace_layers(model, lambda site: seen.append(site) or make(site))
    ((site,)) = seen
    assert (site.kind, site.index, site.in_features, site.layout) == ("norm_act", 0, features, layout)
    assert model(x).shape == x.shape


def test_every_norm_of_the_table_is_tested_above():
    assert len(NORMS) == 6


# -- shared modules --------------------------------------------------------------------------------------------


def test_an_activation_registered_once_for_several_norms_goes_with_each():
    model = Attributes(lambda m, x: m.relu(m.n2(m.relu(m.n1(x)))), n1=bn(), relu=nn.ReLU(), n2=bn())
    expected = model(X)
    done = replace_layers(model, make)
    assert done.pairs == (("n1", "relu"), ("n2", "relu"))
    assert type(model.relu) is nn.Identity
    torch.testing.assert_close(model(X), expected)


def test_one_activation_object_at_two_places_goes_from_both():
    relu = nn.ReLU()
    model = nn.Sequential(bn(), relu, conv(), bn(), relu)
    expected = model(X)
    assert len(replace_layers(model, make).pairs) == 2
    assert [type(m) for m in model] == [GraphLayer, nn.Identity, nn.Conv2d, GraphLayer, nn.Identity]
    torch.testing.assert_close(model(X), expected)


def test_one_norm_object_at_two_places_stays_one():
    norm = bn()
    model = nn.Sequential(norm, nn.ReLU(), conv(), norm, nn.ReLU())
    with pytest.raises(InputError, match="used in two ways"):
        replace_layers(model, make)
    relu = nn.ReLU()
    model = nn.Sequential(norm, relu, conv(), norm, relu)
    replace_layers(model, make)
    assert model[0] is model[3]


def residual():
    """torchvision's basic block: the one `relu` also follows the addition."""
    return Attributes(
        lambda m, x: m.relu(x + m.bn2(m.c2(m.relu(m.bn1(m.c1(x)))))),
        c1=conv(),
        bn1=bn(),
        relu=nn.ReLU(),
        c2=conv(),
        bn2=bn(),
    )


def branching(m, x):
    return m.n(x) if x.sum() > 0 else m.a(m.n(x))


REFUSED = {
    "used behind norm '2.bn1' and elsewhere too": residual(),
    "norm '2.n' is followed by the function relu": Attributes(lambda m, x: torch.relu(m.n(x)), n=bn()),
    "followed by the function leaky_relu": Attributes(lambda m, x: nn.functional.leaky_relu(m.n(x)), n=bn()),
    "followed by the function sigmoid_": Attributes(lambda m, x: m.n(x).sigmoid_(), n=bn()),
    "cannot be traced": Attributes(branching, n=bn(), a=nn.ReLU()),
    "several axes": nn.Sequential(nn.LayerNorm((5, 5)), nn.ReLU()),
    "Sequential has nothing to replace": nn.Sequential(bn(), conv()),
    "Conv2d has nothing to replace": conv(),
    "nothing to replace: no BatchNorm1d": nn.Sequential(nn.ReLU(), bn()),
}


@pytest.mark.parametrize("match", REFUSED)
def test_what_would_become_another_model_is_refused_and_left_as_it_was(match):
    model = nn.Sequential(bn(), nn.ReLU(), REFUSED[match]) if "nothing" not in match else REFUSED[match]
    before = list(model.named_modules())
    with pytest.raises(InputError, match=match.replace("'", ".")):
        replace_layers(model, make)
    assert list(model.named_modules()) == before


def test_an_error_of_the_maker_leaves_the_model_as_it_was():
    model = nn.Sequential(bn(), nn.ReLU(), bn(), nn.ReLU())
    before = list(model.named_modules())

    def failing(site):
        if site.index == 1:
            raise ZeroDivisionError
        return make(site)

    with pytest.raises(ZeroDivisionError):
        replace_layers(model, failing)
    assert list(model.named_modules()) == before


# -- where the new module goes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", [nn.BatchNorm2d(4), nn.BatchNorm2d(4, affine=False), nn.InstanceNorm2d(4)])
def test_the_new_module_has_the_norms_dtype_and_device(norm):
    model = nn.Sequential(conv(), norm, nn.ReLU()).double()
    replace_layers(model, make)
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    assert model(X.double()).dtype == torch.float64
    meta = nn.Sequential(conv(), nn.BatchNorm2d(4), nn.ReLU()).to("meta")
    replace_layers(meta, make)
    assert {t.device.type for t in (*meta.parameters(), *meta.buffers())} == {"meta"}


@pytest.mark.parametrize("training", [True, False])
def test_the_new_module_is_in_the_norms_mode(training):
    model = nn.Sequential(conv(), bn(), nn.ReLU(), bn()).train(training)
    replace_layers(model, make)
    assert {m.training for m in model.modules()} == {training}


# -- models of others ------------------------------------------------------------------------------------------


def test_mobilenet_is_swapped_and_resnet_refused():
    model = torchvision.models.mobilenet_v2(width_mult=0.25)
    done = replace_layers(model, make)
    assert (len(done.pairs), len(done.norms)) == (35, 17)  # 17 blocks: stem and head, 2 each but 1 in the first
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 1000)
    with pytest.raises(InputError, match=r"layer1\.0\.relu"):
        replace_layers(torchvision.models.resnet18(), make)


def test_timms_resnet_keeps_the_activation_behind_the_addition():
    model = timm.create_model("resnet18")
    model.train()
    x = torch.randn(2, 3, 32, 32)
    done = replace_layers(model, make)
    assert ("layer1.0.bn1", "layer1.0.act1") in done.pairs and "layer1.0.bn2" in done.norms
    assert isinstance(model.layer1[0].act2, nn.ReLU)
    assert model(x).shape == (2, 1000)
