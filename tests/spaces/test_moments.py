import numpy as np
import pytest
import torch

from normact.spaces import GraphLayer, InputError, LayerOptions, parse
from normact.spaces.moments import AXES, INDEX_SETS, STATISTICS, check_layout, divisor_at_most, unusable

# Written out by hand; per layout the shape of the probe and, per index set, the axes; "group" over those of
# the tensor whose channel axis was split into (groups, channels per group).
SHAPES = {"NCHW": (4, 6, 3, 5), "NCL": (4, 6, 7), "NCDHW": (3, 6, 2, 3, 4), "NLC": (4, 5, 6), "NC": (7, 6)}
EXPECTED_AXES = {
    ("NCHW", "batch"): (0, 2, 3),
    ("NCHW", "instance"): (2, 3),
    ("NCHW", "layer"): (1, 2, 3),
    ("NCHW", "group"): (2, 3, 4),
    ("NCHW", "channel"): (1,),
    ("NCL", "batch"): (0, 2),
    ("NCL", "instance"): (2,),
    ("NCL", "layer"): (1, 2),
    ("NCL", "group"): (2, 3),
    ("NCL", "channel"): (1,),
    ("NCDHW", "batch"): (0, 2, 3, 4),
    ("NCDHW", "instance"): (2, 3, 4),
    ("NCDHW", "layer"): (1, 2, 3, 4),
    ("NCDHW", "group"): (2, 3, 4, 5),
    ("NCDHW", "channel"): (1,),
    ("NLC", "batch"): (0, 1),
    ("NLC", "instance"): (1,),
    ("NLC", "layer"): (1, 2),
    ("NLC", "group"): (1, 3),
    ("NLC", "channel"): (2,),
    ("NC", "batch"): (0,),
    ("NC", "layer"): (1,),
    ("NC", "group"): (2,),
    ("NC", "channel"): (1,),
}
EPS = 1e-3
GROUPS = 3


def layout_of(shape_name):
    return shape_name if shape_name in ("NLC", "NC") else "NCHW"


def numpy_statistic(x, statistic, axes):
    if statistic == "mean":
        return x.mean(axes, keepdims=True)
    if statistic == "rms":
        return np.sqrt((x**2).mean(axes, keepdims=True) + EPS)
    return np.sqrt(((x - x.mean(axes, keepdims=True)) ** 2).mean(axes, keepdims=True) + EPS)


def expected_moment(x, index_set, statistic, shape_name):
    axes = EXPECTED_AXES[shape_name, index_set]
    if index_set != "group":
        return np.broadcast_to(numpy_statistic(x, statistic, axes), x.shape)
    if shape_name == "NLC":
        n, length, c = x.shape
        split = x.reshape(n, length, GROUPS, c // GROUPS)
    else:
        n, c, *rest = x.shape
        split = x.reshape(n, GROUPS, c // GROUPS, *rest)
    return np.broadcast_to(numpy_statistic(split, statistic, axes), split.shape).reshape(x.shape)


def probe(shape_name, dtype=torch.float64):
    generator = torch.Generator().manual_seed(5)
    shape = SHAPES[shape_name]
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    slope = torch.linspace(0.3, 2.0, x.numel(), dtype=torch.float64).view(shape)
    return (x * slope + 0.5 * slope).to(dtype)


def layer_for(expression, layout, features=6, **options):
    return GraphLayer(parse(expression), features, layout, LayerOptions(groups=GROUPS, eps=EPS, **options))


@pytest.mark.parametrize("statistic", STATISTICS)
@pytest.mark.parametrize(("shape_name", "index_set"), sorted(EXPECTED_AXES))
def test_a_moment_is_the_statistic_over_its_axes(shape_name, index_set, statistic):
    x = probe(shape_name)
    got = layer_for(f"{index_set}_{statistic}(x)", layout_of(shape_name))(x)
    assert got.shape == x.shape
    expected = expected_moment(x.numpy(), index_set, statistic, shape_name)
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-12, atol=1e-13)


def test_index_sets_differ_on_the_probe():
    """Or the test above could not tell one from another."""
    for shape_name in SHAPES:
        sets = [index_set for name, index_set in EXPECTED_AXES if name == shape_name]
        values = [expected_moment(probe(shape_name).numpy(), s, "std", shape_name) for s in sets]
        for i, a in enumerate(values):
            for j, b in enumerate(values[:i]):
                same_by_meaning = shape_name == "NC" and {sets[i], sets[j]} == {"layer", "channel"}
                assert same_by_meaning or np.abs(a - b).max() > 0.01


def test_the_table_of_axes_agrees():
    for (shape_name, index_set), axes in EXPECTED_AXES.items():
        layout = layout_of(shape_name)
        if shape_name in AXES[index_set]:
            assert len(AXES[index_set][layout].split(",")) == len(axes)
    assert not AXES["instance"]["NC"]
    assert set(AXES) == set(INDEX_SETS)


def test_a_moment_of_a_constant_has_the_input_shape():
    """Moments of trainables and of other moments are taken as if those had the input's shape."""
    x = probe("NCHW")
    layer = layer_for("layer_mean(v1)", "NCHW")
    with torch.no_grad():
        layer.v1.copy_(torch.arange(6.0))
    torch.testing.assert_close(layer(x), torch.full_like(x, 2.5))
    nested = layer_for("batch_mean(instance_std(x))", "NCHW")(x)
    inner = expected_moment(x.numpy(), "instance", "std", "NCHW")
    np.testing.assert_allclose(nested.numpy(), np.broadcast_to(inner.mean((0, 2, 3), keepdims=True), x.shape))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("index_set", INDEX_SETS)
def test_statistics_of_half_precision_are_taken_in_float32(dtype, index_set):
    """Entries about 300: squares exceed float16's 65,504, and 1,152 of them bfloat16's 8 bits."""
    generator = torch.Generator().manual_seed(0)
    x = (300 + 40 * torch.randn(8, 6, 12, 12, generator=generator)).to(dtype)
    got = layer_for(f"{index_set}_rms(x)", "NCHW")(x)
    assert got.dtype == dtype
    expected = expected_moment(x.double().numpy(), index_set, "rms", "NCHW")
    rounding = torch.finfo(dtype).eps / 2
    np.testing.assert_allclose(got.double().numpy(), expected, rtol=1.01 * rounding)
    std = layer_for(f"{index_set}_std(x)", "NCHW")(x)
    expected = expected_moment(x.double().numpy(), index_set, "std", "NCHW")
    np.testing.assert_allclose(std.double().numpy(), expected, rtol=1.01 * rounding)


def test_a_layer_in_half_precision_keeps_finite_running_statistics():
    x = torch.full((4, 6, 3, 3), 300.0, dtype=torch.float16)
    x[::2] = -300.0
    layer = layer_for("div(x, batch_rms(x))", "NCHW", momentum=1.0)
    y = layer(x)
    assert y.dtype == torch.float16
    torch.testing.assert_close(layer.running_mean_square, torch.full((6,), 90000.0))
    torch.testing.assert_close(y, x.sign())
    torch.testing.assert_close(layer.eval()(x), x.sign())


def test_autocast_changes_no_statistic_and_no_dtype():
    x = probe("NCHW", torch.bfloat16)
    layer = layer_for("mul(sigmoid(x), add(exp(x), add(batch_std(x), log(group_rms(x)))))", "NCHW")
    plain = layer(x)
    buffer = layer.running_var.clone()
    layer.reset_running_stats()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = layer(x)
    assert cast.dtype == plain.dtype == torch.bfloat16
    assert torch.equal(layer.running_var, buffer)
    torch.testing.assert_close(cast, plain, rtol=3 * 2**-8, atol=2**-7)


def recurrence(batches, statistic, axes, momentum):
    """What the buffer must hold: an own loop in float64."""
    running = 0.0 if statistic == "mean" else 1.0
    for x in batches:
        count = x.size // 6
        if statistic == "mean":
            new = x.mean(axes)
        elif statistic == "rms":
            new = (x**2).mean(axes)
        else:
            new = x.var(axes, ddof=1) if count > 1 else 0 * x.mean(axes)
        running = (1 - momentum) * running + momentum * new
    return running


@pytest.mark.parametrize("momentum", [0.1, 0.37, 1.0])
@pytest.mark.parametrize("statistic", STATISTICS)
@pytest.mark.parametrize("shape_name", ["NCHW", "NLC", "NC"])
def test_running_statistics_follow_the_recurrence_and_are_used_in_evaluation(shape_name, statistic, momentum):
    layer = layer_for(f"batch_{statistic}(x)", shape_name, momentum=momentum).double()
    batches = [probe(shape_name) * (k + 1) - k for k in range(5)]
    for x in batches:
        layer(x)
    axes = EXPECTED_AXES[shape_name, "batch"]
    raw = recurrence([x.numpy() for x in batches], statistic, axes, momentum)
    name = {"mean": "running_mean", "rms": "running_mean_square", "std": "running_var"}[statistic]
    assert dict(layer.named_buffers()).keys() == {name}
    np.testing.assert_allclose(getattr(layer, name).numpy(), raw, rtol=1e-12)
    value = raw if statistic == "mean" else np.sqrt(raw + EPS)
    shape = [1] * len(SHAPES[shape_name])
    shape[2 if shape_name == "NLC" else 1] = 6
    evaluated = layer.eval()(100 * batches[0])
    expected = np.broadcast_to(value.reshape(shape), SHAPES[shape_name])
    np.testing.assert_allclose(evaluated.numpy(), expected, rtol=1e-12)
    np.testing.assert_allclose(getattr(layer, name).numpy(), raw, rtol=1e-12)


@pytest.mark.parametrize("statistic", STATISTICS)
def test_a_batch_of_one_value_per_channel_is_defined(statistic):
    x = torch.tensor([[3.0, -2.0, 0.5, 1.0, 4.0, -1.0]], dtype=torch.float64)
    layer = layer_for(f"batch_{statistic}(x)", "NC", momentum=0.5).double()
    expected = {"mean": x, "rms": (x**2 + EPS).sqrt(), "std": torch.full_like(x, EPS**0.5)}[statistic]
    torch.testing.assert_close(layer(x), expected)
    (buffer,) = layer.buffers()
    kept = {"mean": 0.5 * x[0], "rms": 0.5 + 0.5 * x[0] ** 2, "std": torch.full((6,), 0.5).double()}[statistic]
    torch.testing.assert_close(buffer, kept)


def test_two_moments_of_one_kind_have_a_buffer_each():
    layer = layer_for("add(batch_mean(x), batch_mean(square(x)))", "NC", momentum=1.0).double()
    x = probe("NC")
    layer(x)
    assert sorted(name for name, _ in layer.named_buffers()) == ["running_mean", "running_mean_2"]
    kept = sorted(buffer.sum().item() for buffer in layer.buffers())
    assert kept == pytest.approx(sorted([x.mean(0).sum().item(), (x**2).mean(0).sum().item()]))
    expected = (x.mean(0) + (x**2).mean(0)).expand(7, 6)
    torch.testing.assert_close(layer.eval()(x), expected)


def test_no_running_statistic_without_a_batch_moment():
    assert not list(layer_for("div(x, group_std(x))", "NCHW").buffers())


def test_running_statistics_carry_no_gradient():
    layer = layer_for("div(x, batch_std(x))", "NCHW")
    layer(probe("NCHW", torch.float32).requires_grad_()).sum().backward()
    assert not layer.running_var.requires_grad
    assert layer.running_var.grad_fn is None


@pytest.mark.parametrize(
    ("groups", "channels", "expected"),
    [(1, 7, 1), (8, 16, 8), (8, 12, 6), (32, 48, 24), (32, 8, 8), (8, 7, 7), (6, 7, 1), (5, 6, 3)],
)
def test_groups_fall_back_to_a_divisor(groups, channels, expected):
    assert divisor_at_most(groups, channels) == expected
    assert GraphLayer(parse("group_std(x)"), channels, "NC", LayerOptions(groups=groups)).groups == expected


@pytest.mark.parametrize(("groups", "channels"), [(0, 4), (-1, 4), (4, 0)])
def test_groups_and_channels_are_counts(groups, channels):
    with pytest.raises(InputError, match="at least 1"):
        divisor_at_most(groups, channels)


def test_an_empty_index_set_is_named():
    assert "empty for layout NC" in unusable("instance", "NC")
    assert not unusable("instance", "NLC")


@pytest.mark.parametrize("layout", ["NCHW", "NLC", "NC"])
@pytest.mark.parametrize("index_set", INDEX_SETS)
def test_a_causal_site_allows_sets_of_channels_alone(layout, index_set):
    # On NC there is no position: a layer or group moment is over channels of one sample.
    allowed = index_set == "channel" or (layout == "NC" and index_set in ("layer", "group"))
    assert (not unusable(index_set, layout, causal=True)) == allowed
    if allowed:
        GraphLayer(parse(f"{index_set}_std(x)"), 6, layout, causal=True)
    else:
        with pytest.raises(InputError, match=f"cannot build .*{index_set} moments are left out"):
            GraphLayer(parse(f"{index_set}_std(x)"), 6, layout, causal=True)


def test_an_unknown_layout_is_answered_with_the_nearest():
    with pytest.raises(InputError, match="unknown layout 'NHWC'; the nearest is 'NCHW'"):
        check_layout("NHWC")
