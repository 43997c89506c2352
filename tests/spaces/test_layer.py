import copy
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from normact.spaces import CATALOGUE, ChannelAffine, GraphLayer, InputError, LayerOptions, Site, named, parse

SHAPES = {"NCHW": (4, 6, 3, 5), "NLC": (4, 5, 6), "NC": (7, 6)}


@given(data=st.data())
def test_the_output_has_the_inputs_shape_and_dtype(graphs, data):
    graph = data.draw(graphs)
    dtype = data.draw(st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]))
    x = torch.linspace(-1, 1, 4 * 6 * 3 * 5).view(SHAPES["NCHW"]).to(dtype)
    layer = GraphLayer(graph, 6, "NCHW", LayerOptions(groups=2))
    for mode in (True, False):
        y = layer.train(mode)(x)
        assert y.shape == x.shape
        assert y.dtype == dtype


@pytest.mark.parametrize(
    ("layout", "shape"),
    [
        ("NCHW", (4, 6)),
        ("NCHW", (6,)),
        ("NLC", (4, 6)),
        ("NLC", (4, 5, 5, 6)),
        ("NC", (4, 6, 1)),
        ("NC", (6,)),
    ],
)
def test_a_wrong_number_of_axes_is_refused(layout, shape):
    for layer in (GraphLayer(parse("relu(x)"), 6, layout), ChannelAffine(6, layout)):
        with pytest.raises(InputError, match=f"layout {layout} needs .* axes, got shape"):
            layer(torch.zeros(shape))


@pytest.mark.parametrize(("layout", "shape"), [("NCHW", (4, 5, 6, 6)), ("NLC", (4, 6, 5)), ("NC", (6, 5))])
def test_a_wrong_number_of_channels_is_refused(layout, shape):
    for layer in (GraphLayer(parse("relu(x)"), 6, layout), ChannelAffine(6, layout)):
        with pytest.raises(InputError, match="made for 6 channels, got 5 in shape"):
            layer(torch.zeros(shape))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"groups": 0}, "groups must be at least 1, got 0"),
        ({"eps": 0.0}, "eps must be above 0, got 0.0"),
        ({"eps": -1e-5}, "eps must be above 0"),
        ({"eps": float("nan")}, "eps must be above 0, got nan"),
        ({"momentum": 0.0}, "momentum must lie in"),
        ({"momentum": 1.1}, r"momentum must lie in \(0, 1\], got 1.1"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        LayerOptions(**options)


def test_parameters_start_where_their_names_say():
    layer = GraphLayer(parse("affine(add(mul(v1, x), add(v0_2, mul(s0.25, v3))))"), 6)
    values = {name: parameter.tolist() for name, parameter in layer.named_parameters()}
    assert values == {
        "weight": [1.0] * 6,
        "bias": [0.0] * 6,
        "s0p25": [0.25],
        "v0_2": [0.0] * 6,
        "v1": [1.0] * 6,
        "v3": [3.0] * 6,
    }


def test_trainables_of_dead_nodes_are_no_parameters():
    graph = parse("relu(x)").from_json({"nodes": [["mul", "v1", "x"], ["batch_std", "x"], ["relu", "x"]]})
    layer = GraphLayer(graph, 6)
    assert not list(layer.parameters())
    assert not list(layer.buffers())


@pytest.mark.parametrize("layout", SHAPES)
def test_per_channel_vectors_lie_along_the_channels(layout):
    x = torch.randn(SHAPES[layout])
    layer = GraphLayer(parse("affine(add(mul(v1, x), mul(s0.5, x)))"), 6, layout)
    plain = ChannelAffine(6, layout)
    v = torch.arange(1.0, 7.0)
    with torch.no_grad():
        layer.v1.copy_(v)
        layer.weight.copy_(2 * v)
        layer.bias.copy_(-v)
        plain.weight.copy_(2 * v)
        plain.bias.copy_(-v)
    along = (slice(None), None, None) if layout == "NCHW" else (slice(None),)
    torch.testing.assert_close(layer(x), (x * v[along] + 0.5 * x) * 2 * v[along] - v[along])
    torch.testing.assert_close(plain(x), x * 2 * v[along] - v[along])


def test_device_and_dtype_reach_every_tensor_of_the_state():
    layer = GraphLayer(named("bn_crrelu").graph, 6, device="meta", dtype=torch.float64)
    assert {t.device.type for t in layer.state_dict().values()} == {"meta"}
    assert {t.dtype for t in layer.state_dict().values()} == {torch.float64}


def test_running_statistics_can_be_forgotten():
    layer = GraphLayer(parse("add(batch_mean(x), add(batch_rms(x), batch_std(x)))"), 6)
    fresh = copy.deepcopy(layer.state_dict())
    layer(torch.randn(SHAPES["NCHW"]) * 3 + 1)
    assert all(not torch.equal(layer.state_dict()[name], value) for name, value in fresh.items())
    layer.reset_running_stats()
    assert {name: value.tolist() for name, value in layer.state_dict().items()} == {
        "running_mean": [0.0] * 6,
        "running_mean_square": [1.0] * 6,
        "running_var": [1.0] * 6,
    }


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
@pytest.mark.parametrize("name", CATALOGUE)
def test_a_layer_can_be_copied_and_pickled(name, copied):
    layer = GraphLayer(named(name).graph, 6)
    x = torch.randn(SHAPES["NCHW"])
    layer(x)
    twin = copied(layer).eval()
    assert torch.equal(twin(x), layer.eval()(x))


@pytest.mark.parametrize("layout", ["NCHW", "NLC"])
def test_at_a_causal_site_a_later_position_changes_nothing_earlier(layout):
    """Channel moments alone are accepted there; the same test finds the look-ahead of any other."""
    shape = SHAPES[layout]
    x = torch.randn(shape, dtype=torch.float64)
    later = x.clone()
    position = (slice(None), -1) if layout == "NLC" else (..., -1)
    later[position] += 10
    earlier = (slice(None), slice(0, -1)) if layout == "NLC" else (..., slice(0, -1))
    for statistic in ("mean", "rms", "std"):
        layer = GraphLayer(parse(f"div(x, channel_{statistic}(x))"), 6, layout, causal=True).double()
        assert torch.equal(layer(x)[earlier], layer(later)[earlier])
        assert not torch.equal(layer(x)[position], layer(later)[position])
    for index_set in ("batch", "instance", "layer", "group"):
        layer = GraphLayer(parse(f"div(x, {index_set}_std(x))"), 6, layout).double()
        assert not torch.equal(layer(x)[earlier], layer(later)[earlier])


def test_a_layer_shows_its_expression():
    assert "relu(x), features=6, layout=NLC" in repr(GraphLayer(parse("relu(x)"), 6, "NLC"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"in_features": 0}, "site 3 has 0 input features"),
        ({"in_features": 4, "out_features": 5}, "4 features in and 5 out; they must be equal"),
        ({"in_features": 4, "layout": "NWC"}, "unknown layout 'NWC'"),
    ],
)
def test_a_site_checks_itself(arguments, message):
    with pytest.raises(InputError, match=message):
        Site("norm_act", 3, **arguments)


def test_a_site_of_other_kinds_may_change_the_width():
    assert Site("linear", 0, 4, 5).features_out == 5
    assert Site("act", 0, 4).features_out == 4


@pytest.mark.parametrize("training", [True, False])
def test_the_compiler_takes_a_layer_whole(training):
    """Scalars, vectors, an affine and running statistics; more entries than `tape` starts at."""
    graph = parse("affine(div(mul(v1, x), max(batch_std(x), add(group_rms(x), s0.25))))")
    x = torch.randn(4, 8, 24, 24, generator=torch.Generator().manual_seed(0))
    layer = GraphLayer(graph, 8).train(training)
    eager, compiled = (copy.deepcopy(layer) for _ in range(2))
    found, expected = torch.compile(compiled, fullgraph=True, backend="aot_eager")(x), eager(x)
    found.square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(compiled.state_dict(), eager.state_dict())
    for ours, theirs in zip(compiled.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-4)
