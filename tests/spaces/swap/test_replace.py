import pytest
import torch
from torch import nn
from torch.nn import functional as F

from normact.spaces import ChannelAffine, GraphLayer, LayerOptions, Site, named, parse
from normact.spaces.swap import NORMS, ChannelsLast, replace_layers
from tests.spaces.swap.swapping import Attributes, Block, exported, make


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


EACH = [
    (nn.BatchNorm1d(6), torch.randn(3, 6), "NC"),
    (nn.BatchNorm2d(6), torch.randn(3, 6, 2, 2), "NCHW"),
    (nn.BatchNorm3d(6), torch.randn(3, 6, 2, 2, 2), "NCHW"),
    (nn.SyncBatchNorm(6), torch.randn(3, 6, 2, 2), "NCHW"),
    (nn.GroupNorm(2, 6), torch.randn(3, 6, 2, 2), "NCHW"),
    (nn.InstanceNorm1d(6), torch.randn(3, 6, 4), "NCHW"),
    (nn.InstanceNorm2d(6), torch.randn(3, 6, 2, 2), "NCHW"),
    (nn.InstanceNorm3d(6), torch.randn(3, 6, 2, 2, 2), "NCHW"),
    (nn.LayerNorm(6), torch.randn(3, 2, 6), "NLC"),
    (nn.RMSNorm(6), torch.randn(3, 2, 6), "NLC"),
]


@pytest.mark.parametrize("example", [False, True])
@pytest.mark.parametrize(("norm", "x", "layout"), EACH, ids=lambda v: type(v).__name__)
def test_each_norm_becomes_a_site_of_its_width_and_layout(norm, x, layout, example):
    seen = []
    model = nn.Sequential(norm, nn.ReLU())
    report = replace_layers(model, lambda s: seen.append(s) or make(s), example_inputs=x if example else None)
    assert seen == [Site("norm_act", 0, 6, layout=layout)]
    assert report.how == ("run" if example else "trace")
    assert model(x).shape == x.shape


def test_every_norm_of_the_table_is_tested_above():
    assert {type(norm) for norm, _, _ in EACH} == set(NORMS)


def test_an_example_tells_what_axes_there_are():
    for norm, shape, layout in [
        (nn.BatchNorm1d(6), (3, 6, 4), "NCHW"),
        (nn.GroupNorm(2, 6), (3, 6), "NC"),
        (nn.LayerNorm(6), (3, 6), "NC"),
        (nn.SyncBatchNorm(6), (3, 6), "NC"),
    ]:
        model, x = nn.Sequential(norm, nn.ReLU()), torch.randn(shape)
        report = replace_layers(model, "bn_relu", example_inputs=x)
        assert model[0].layout == layout and not report.reshaped
        assert model(x).shape == shape


def test_a_norm_behind_a_1d_convolution_takes_sequences_without_an_example():
    model = nn.Sequential(
        nn.Conv1d(6, 6, 3), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 6), nn.BatchNorm1d(6), nn.ReLU()
    )
    replace_layers(model, "bn_relu")
    assert (model[1].layout, model[4].layout) == ("NCHW", "NC")


@pytest.mark.parametrize("shape", [(3, 6), (3, 5, 6), (3, 4, 5, 6), (0, 4, 5, 6)])
def test_a_layer_norm_of_unknown_axes_serves_any_number(shape):
    model = nn.Sequential(nn.LayerNorm(6), nn.GELU())
    report = replace_layers(model, "ln_gelu", options=LayerOptions(eps=1e-5))
    assert report.reshaped == ("0",) and isinstance(model[0], ChannelsLast)
    x = torch.randn(shape)
    torch.testing.assert_close(model(x), F.gelu(F.layer_norm(x, (6,))))


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
    norm, relu = bn(), nn.ReLU()
    model = nn.Sequential(norm, relu, conv(), norm, relu)
    replace_layers(model, make)
    assert model[0] is model[3]


def test_a_norm_that_is_used_in_two_ways_is_left_with_its_activations():
    norm = bn()
    model = nn.Sequential(norm, nn.ReLU(), norm, nn.Tanh(), bn(), nn.ReLU())
    report = replace_layers(model, make)
    assert report.left == (("0", "it is used in two ways, with different activations behind it"),)
    assert [type(m) for m in model[:4]] == [nn.BatchNorm2d, nn.ReLU, nn.BatchNorm2d, nn.Tanh]


def test_a_shared_activation_in_a_sequential_goes_only_from_behind_the_norms():
    relu = nn.ReLU()
    model = nn.Sequential(bn(), relu, conv(), relu, bn(), relu)
    expected = model(X)
    report = replace_layers(model, make)
    assert not report.rewritten and type(model) is nn.Sequential
    assert [type(m) for m in model] == [GraphLayer, nn.Identity, nn.Conv2d, nn.ReLU, GraphLayer, nn.Identity]
    torch.testing.assert_close(model(X), expected)


# -- what is asked for -----------------------------------------------------------------------------------------


LAYERS = {
    "name": "bn_relu",
    "expression": named("bn_relu").expression,
    "graph": named("bn_relu").graph,
    "exported": exported("bn_relu"),
    "site": make,
}


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_a_layer_is_a_name_an_expression_a_graph_a_factory_or_a_function_of_a_site(layer):
    model = nn.Sequential(conv(), bn(), nn.ReLU(), conv(), bn())
    expected = F.relu(model[:2](X))
    replace_layers(model, layer)
    torch.testing.assert_close(model[:3](X), expected)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model)


@pytest.mark.parametrize(
    ("x", "norm"), [(torch.randn(3, 6), nn.BatchNorm1d(6)), (torch.randn(3, 2, 6), nn.LayerNorm(6))]
)
def test_a_factory_is_given_the_layout(x, norm):
    model = nn.Sequential(norm, nn.ReLU())
    replace_layers(model, exported("bn_relu"), example_inputs=x)
    assert model[0].layout == ("NC" if x.dim() == 2 else "NLC")
    assert model(x).shape == x.shape


def test_norms_alone_become_affine_or_stay_or_become_the_layer():
    for lone, kind in [("affine", ChannelAffine), ("keep", nn.BatchNorm2d), ("layer", GraphLayer)]:
        model = nn.Sequential(bn(), nn.ReLU(), bn(), conv())
        report = replace_layers(model, "evonorm_s0", lone=lone)
        assert type(model[2]) is kind
        assert report.norms == (() if lone == "keep" else ("2",))
        assert dict(report.left).keys() == ({"2"} if lone == "keep" else set())
    model = nn.Sequential(bn(), conv())
    assert replace_layers(model, "evonorm_s0", lone="layer").norms == ("0",)


def test_an_activation_behind_an_addition_stays_or_takes_the_pointwise_part():
    for after_add in ("keep", "pointwise"):
        model = nn.Sequential(Block(), Block())
        with pytest.warns(match="post-activation"):
            report = replace_layers(model, "evonorm_s1", after_add=after_add)
        x = model[0].bn2(model[0].conv2(model[0].bn1(model[0].conv1(X)))) + X
        behind = F.relu(x) if after_add == "keep" else F.silu(x)
        torch.testing.assert_close(model[0](X), behind)
        names = ("0.relu", "1.relu")
        assert report.activations == (() if after_add == "keep" else names)
        assert tuple(dict(report.left)) == (names if after_add == "keep" else ())


def test_a_pointwise_part_with_parameters_has_the_channels_of_the_sum():
    model = nn.Sequential(Block(4))
    with pytest.warns(match="post-activation"):
        replace_layers(model, exported("evonorm_s0"), after_add="pointwise")
    assert model[0].after_add_1.v1.shape == (4,)
    assert model[0].after_add_1.graph == parse("mul(x, sigmoid(mul(v1, x)))").canonical
    model(X).sum().backward()
    assert model[0].after_add_1.v1.grad is not None


def test_group_size_and_options_reach_the_layers():
    model = nn.Sequential(bn(), nn.ReLU())
    replace_layers(model, "evonorm_s0", group_size=2, options=LayerOptions(eps=1e-3), carry=False)
    assert (model[0].groups, model[0].eps) == (2, 1e-3)
    model = nn.Sequential(bn(), nn.ReLU())
    replace_layers(model, exported("evonorm_s0"), group_size=2)
    assert model[0].groups == 2


def test_a_swapped_model_can_be_swapped_again():
    model = nn.Sequential(bn(), nn.ReLU(), conv(), bn())
    replace_layers(model, "evonorm_s0")
    report = replace_layers(model, "bn_silu")
    assert report.pairs == (("0", "0"),) and report.norms == ("3",)
    assert model[0].graph == named("bn_silu").graph.canonical
    blocks = nn.Sequential(Block())
    for layer in ("evonorm_s0", exported("bn_relu"), "gn_silu"):
        with pytest.warns(match="post-activation"):
            replace_layers(blocks, layer)
    assert type(blocks[0]).__mro__[1] is Block
    assert blocks[0].bn1.graph == named("gn_silu").graph.canonical


def test_a_report_says_all_of_it_in_words():
    model = nn.Sequential(Block(), bn(), nn.ReLU(), nn.LayerNorm((5, 5)))
    with pytest.warns(match="post-activation"):
        report = replace_layers(model, "evonorm_s0", example_inputs=X)
    text = str(report)
    for line in (
        "read by a run with the example inputs",
        "replaced 0.bn1 and 0.relu",
        "replaced 0.bn2, a norm alone",
        "left 3: it normalizes over several axes, (5, 5)",
        "left 0.relu: it is behind an addition, and after_add='keep'",
        "rewrote the forward of 0",
        "note: Sequential is a post-activation model",
    ):
        assert line in text


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
def test_modes_stay_as_they_were_module_by_module(training):
    model = nn.Sequential(conv(), bn(), nn.ReLU(), bn()).train(training)
    model[1].train(not training)
    replace_layers(model, make, example_inputs=X)
    assert [m.training for m in model] == [training, not training, training, training]


def test_frozen_norms_become_frozen_layers():
    model = nn.Sequential(bn(), nn.ReLU(), bn(), nn.ReLU(), nn.BatchNorm2d(4, affine=False), nn.ReLU())
    model[0].requires_grad_(False)
    for carry in (True, False):
        replace_layers(model, "bn_relu", carry=carry)
        assert [{p.requires_grad for p in model[i].parameters()} for i in (0, 2, 4)] == [{False}, {True}, {True}]
