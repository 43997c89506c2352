"""Printed layers: equal to what `GraphLayer` computes, standing alone, and fit to be read."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import timm.layers
import torch

from normact.launch.config import compose_config, space_of
from normact.spaces import (
    ACTIVATIONS,
    CATALOGUE,
    OPS,
    ChannelAffine,
    GraphLayer,
    InputError,
    LayerOptions,
    Site,
    emit,
    named,
    parse,
)
from tests.spaces.emitted import (
    FEATURES,
    SHAPES,
    assert_equal,
    batches,
    compare_apart,
    disturbed,
    layouts_of,
    load,
)

BATCH_NORM = "add(mul(v1, div(add(x, neg(batch_mean(x))), batch_std(x))), v0)"
MORE = [  # what the catalogue does not have: every moment, scalars, several buffers of a name, constants
    "add(batch_mean(x), add(batch_rms(x), batch_std(x)))",
    "add(layer_mean(x), add(layer_rms(x), layer_std(x)))",
    "add(group_mean(x), add(group_rms(x), group_std(x)))",
    "add(channel_mean(x), add(channel_rms(x), channel_std(x)))",
    "add(instance_mean(x), add(instance_rms(x), instance_std(x)))",
    "affine(mul(x, add(batch_mean(square(x)), batch_mean(mul(s0.25, x)))))",
    "affine(add(batch_std(batch_mean(x)), mul(x, group_std(v1))))",
    "mul(v0_2, sqrt(log(div(x, max(zero, sub(x, v1))))))",
    "batch_mean(x)",
    "affine(instance_mean(x))",
    *(f"{name}(x)" for name in ACTIVATIONS),
]


KNOWN = [layer.graph for layer in CATALOGUE.values()] + [parse(text) for text in MORE]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_printed_layer_equals_the_graph_layer_without_normact(dtype, tmp_path, runner):
    assert compare_apart(KNOWN, layouts_of, dtype, tmp_path, runner) > 2 * len(KNOWN)


def test_the_catalogue_serves_every_layout_that_its_moments_allow():
    served = {name: layouts_of(layer.graph) for name, layer in CATALOGUE.items()}
    without_nc = {name for name, layouts in served.items() if layouts != ["NCHW", "NLC", "NC"]}
    assert without_nc == {"frn_tlu", "evonorm_b0", "evonorm_b1", "evonorm_b2"}
    assert all(layouts[:2] == ["NCHW", "NLC"] for layouts in served.values())


def survives(graph, layout, dtype, runner):
    """Finite outputs and gradients, in training and evaluation, and not constant."""
    module = disturbed(GraphLayer(graph, FEATURES, layout), dtype)
    for phase in runner.respond(module, batches(layout, dtype))["phases"]:
        if not all(torch.isfinite(tensor).all() for tensor in phase.values() if tensor is not None):
            return False
        if phase["y"].std() < 1e-3 or phase["x"] is None:
            return False
    return True


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["evonorm_b", "evonorm_s", "pointwise", "pangaea"])
def test_random_survivors_printed_equal_the_graph_layer_without_normact(preset, tmp_path, runner):
    space = space_of(compose_config([f"space={preset}"]))
    rng = np.random.default_rng(17)
    found = {}
    while len(found) < 300:
        graph = space.whole(space.sample(rng))
        if all(survives(graph, layout, torch.float32, runner) for layout in space.layouts):
            found[graph.key()] = graph
    # What is not guarded magnifies float32's rounding errors without bound where it jumps, as relu(x) / elu(x) at 0.
    guarded = all(OPS[name].guarded for name in space.ops)
    for dtype in (torch.float64, torch.float32) if guarded else (torch.float64,):
        # Random layers magnify rounding errors (quotients near zero): they may be ten times as large.
        count = compare_apart(found.values(), lambda graph: space.layouts, dtype, tmp_path, runner, slack=10)
        assert count == 600
    sources = {f"layer_{number}": emit(graph, f"layer_{number}") for number, graph in enumerate(found.values())}
    assert_well_written(sources, tmp_path)


def written(sources, folder):
    for name, source in sources.items():
        (folder / f"{name}.py").write_text(source)
    return [str(folder / f"{name}.py") for name in sources]


def assert_well_written(sources, folder):
    """What ruff says of files in the repository, it says of these: nothing."""
    config = Path(__file__).parents[2] / "pyproject.toml"
    files = written(sources, folder)
    for command in (["check"], ["format", "--check", "--diff"]):
        ruff = [sys.executable, "-m", "ruff", *command, "--config", str(config), "--no-cache", *files]
        done = subprocess.run(ruff, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    for source in sources.values():
        assert "noqa" not in source
        assert "normact" not in source.replace("normact_b0", "")  # the name of a layer


def test_printed_files_are_well_written(tmp_path):
    sources = {
        name: emit(layer.graph, name, note="Found by a run.\n\nAccuracy 0.9") for name, layer in CATALOGUE.items()
    }
    sources |= {f"layer_{k}": emit(parse(text), f"layer_{k}") for k, text in enumerate(MORE)}
    sources["no_act"] = emit(
        named("bn_relu").graph, "no_act", LayerOptions(groups=4, eps=1e-12, momentum=0.01), parse(BATCH_NORM)
    )
    assert_well_written(sources, tmp_path)


def test_the_docstring_has_formula_expression_and_note():
    source = emit(named("evonorm_s0").graph, "my_layer", note='Accuracy 0.9 ("good").\nRun C:\\new\\"""')
    docstring = compile(source, "f", "exec").co_consts[0]
    lines = docstring.splitlines()
    assert lines[0] == "my_layer: affine(sigmoid(v1 * x) * x / group_std(x))"
    assert parse(lines[2].removeprefix("expression: ")) == named("evonorm_s0").graph.canonical
    assert lines[4] == 'Accuracy 0.9 ("good").'
    assert lines[5] == "Run C:\\new\\'''"
    assert "class MyLayer(nn.Module):" in source


def test_a_long_expression_in_the_docstring_can_be_read_back():
    graph = named("bn_crrelu").graph
    docstring = compile(emit(graph, "layer"), "f", "exec").co_consts[0]
    assert parse(docstring.split("expression: ")[1]) == graph.canonical


@pytest.mark.parametrize("name", CATALOGUE)
def test_states_go_both_ways(name):
    ours = disturbed(GraphLayer(named(name).graph, FEATURES), torch.float32)
    theirs = load(emit(named(name).graph, "layer"))(FEATURES)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(SHAPES["NCHW"])
    theirs(x)
    ours.load_state_dict(theirs.state_dict())
    assert_equal(theirs.eval()(x), ours.eval()(x), name)


@pytest.mark.parametrize("name", CATALOGUE)
def test_a_new_printed_layer_starts_like_a_new_graph_layer(name):
    ours = GraphLayer(named(name).graph, FEATURES).state_dict()
    theirs = load(emit(named(name).graph, "layer"))(FEATURES).state_dict()
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[key], ours[key]) for key in ours)


@pytest.mark.parametrize("name", CATALOGUE)
def test_without_activation_stands_a_per_channel_affine(name):
    layer = load(emit(named(name).graph, "layer"))(FEATURES, apply_act=False)
    affine = disturbed(ChannelAffine(FEATURES), torch.float32)
    assert layer.state_dict().keys() == affine.state_dict().keys()
    layer.load_state_dict(affine.state_dict())
    x = torch.randn(SHAPES["NCHW"])
    assert torch.equal(layer(x), affine(x))


def test_without_activation_a_pointwise_layer_is_its_norm():
    space = space_of(compose_config(["space=pointwise"]))
    layer = load(space.source(parse("mul(v1, tanh(x))"), "layer"))
    x = torch.randn(SHAPES["NCHW"])
    torch.testing.assert_close(layer(FEATURES, apply_act=False)(x), torch.nn.BatchNorm2d(FEATURES)(x))
    torch.testing.assert_close(layer(FEATURES)(x), torch.tanh(torch.nn.BatchNorm2d(FEATURES)(x)))
    built = space.build(parse("mul(v1, tanh(x))"), Site("norm_act", 0, FEATURES, activation=False))
    assert layer(FEATURES, apply_act=False).state_dict().keys() == built.state_dict().keys()


def test_timms_arguments_are_taken_and_others_swallowed():
    layer = load(emit(named("gn_silu").graph, "layer", LayerOptions(groups=4, eps=1e-3)))
    assert layer(16).groups == 4
    assert layer(16).eps == 1e-3
    assert layer(16, groups=8, eps=1e-6).groups == 8
    assert layer(16, groups=8, eps=1e-6).eps == 1e-6
    assert layer(16, group_size=8).groups == 2
    assert layer(16, groups=3, group_size=8).groups == 2
    assert layer(10, groups=8).groups == 5
    with pytest.raises(ValueError, match="group_size=7 does not divide 16 channels"):
        layer(16, group_size=7)
    swallowed = layer(16, drop_layer=None, act_layer=torch.nn.ReLU, inplace=True, momentum=0.3, act_kwargs={})
    x = torch.randn(3, 16, 4, 4)
    torch.testing.assert_close(swallowed(x), torch.nn.functional.silu(torch.nn.GroupNorm(4, 16, 1e-3)(x)))
    assert layer(16, dtype=torch.float64, device="meta").v1.dtype == torch.float64
    assert layer(16, dtype=torch.float64, device="meta").v1.device.type == "meta"
    assert load(emit(named("bn_relu").graph, "layer"))(16, momentum=0.25).momentum == 0.25


def test_timm_takes_the_factory_as_it_is():
    layer = load(emit(named("evonorm_s0").graph, "layer"))
    assert timm.layers.get_norm_act_layer(layer) is layer
    model = timm.create_model("test_efficientnet", norm_layer=layer, pretrained=False).eval()
    classes = {type(module).__name__ for module in model.modules()}
    assert "Layer" in classes
    assert "BatchNormAct2d" not in classes
    assert model(torch.randn(2, 3, 64, 64)).isfinite().all()


def test_wrong_layouts_and_shapes_are_refused():
    layer = load(emit(named("evonorm_b0").graph, "layer"))
    with pytest.raises(ValueError, match="layout must be NCHW or NLC, got 'NC'"):
        layer(6, layout="NC")
    with pytest.raises(ValueError, match="layout must be NCHW, NLC or NC, got 'NHWC'"):
        load(emit(named("bn_relu").graph, "layer"))(6, layout="NHWC")
    for layout, shape in (
        ("NCHW", (4, 6)),
        ("NCHW", (4, 5, 6, 6)),
        ("NLC", (4, 6)),
        ("NLC", (4, 6, 5)),
        ("NLC", (2, 4, 5, 6)),
    ):
        with pytest.raises(ValueError, match=f"made for {layout} with C = 6, got shape"):
            layer(6, layout=layout)(torch.zeros(shape))


def test_running_statistics_can_be_forgotten():
    layer = load(emit(parse(MORE[0]), "layer"))(6)
    layer(torch.randn(3, 6, 2, 2))
    layer.reset_running_stats()
    assert {name: tensor.tolist() for name, tensor in layer.named_buffers()} == {
        "running_mean": [0.0] * 6,
        "running_mean_square": [1.0] * 6,
        "running_var": [1.0] * 6,
    }


def rounded_once(graph, layout, x, layer):
    """Whether a half-precision layer's output is what float64 gives, within one rounding (and float32's errors)."""
    exact = GraphLayer(graph, FEATURES, layout).double()
    exact.load_state_dict(layer.state_dict())
    expected = exact(x.double())
    rounding = torch.finfo(x.dtype).eps
    allowed = rounding * expected.abs() + 1e-4 * expected.square().mean().sqrt()
    return bool(((layer(x).double() - expected).abs() <= allowed).all())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", CATALOGUE)
def test_half_precision_is_rounded_once(name, dtype):
    graph = named(name).graph
    for layout in layouts_of(graph):
        x = batches(layout, dtype)[0][0]
        layer = disturbed(load(emit(graph, "layer"))(FEATURES, layout=layout), dtype)
        assert rounded_once(graph, layout, x, layer), layout
        with torch.no_grad():
            assert rounded_once(graph, layout, x, layer), layout


def test_squares_that_half_precision_cannot_hold_do_no_harm():
    layer = load(emit(named("evonorm_s0").graph, "layer"))(FEATURES)
    x = 1000 * torch.randn(SHAPES["NCHW"]).half()
    assert rounded_once(named("evonorm_s0").graph, "NCHW", x, layer)


def test_under_autocast_statistics_stay_in_float32():
    graph = parse("affine(mul(sigmoid(x), add(exp(x), add(batch_std(x), log(group_rms(x))))))")
    layer = load(emit(graph, "layer"))(FEATURES)
    for dtype in (torch.float32, torch.bfloat16):
        x = batches("NCHW", dtype)[0][0]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = layer(x)
        assert y.dtype == dtype
        assert_equal(y, layer(x), dtype)


NAMES_TAKEN = ["class", "lambda", "torch", "nn", "x", "self", "print", "positions", "share", "plane_mean"]


@pytest.mark.parametrize(
    "name", ["", "Layer", "my-layer", "1st", "a b", "_", "_a", "läyer", "a.b", "a\n", *NAMES_TAKEN]
)
def test_a_name_that_would_break_the_file_is_refused(name):
    with pytest.raises(InputError, match="a layer"):
        emit(named("evonorm_b0").graph, name)


@pytest.mark.parametrize("name", ["div", "sqrt", "relu", "a", "module", "tensor", "layer_2", "v1", "axis"])
def test_a_name_that_helpers_have_is_fine(name):
    graph = parse("affine(div(sqrt(x), log(add(v1, relu(batch_std(x))))))")
    x = torch.randn(SHAPES["NCHW"])
    assert_equal(load(emit(graph, name), name)(FEATURES)(x), GraphLayer(graph, FEATURES)(x), name)


def test_moments_of_what_is_constant_over_planes_lose_no_digits():
    """The mean of a plane with one value is that value; as a rounded sum it would spoil the differences behind it."""
    graph = parse("group_std(instance_std(x))")
    factory, groups = load(emit(graph, "layer")), LayerOptions(groups=6)
    off = {"searched": 0.0, "printed": 0.0}
    for seed in range(8):
        x, cotangent = (t.double() for t in batches("NCHW", torch.float32, seed)[1])
        made = {"searched": GraphLayer(graph, FEATURES, options=groups), "printed": factory(FEATURES, groups=6)}
        exact = gradient(GraphLayer(graph, FEATURES, options=groups).double(), x, cotangent)
        for kind, layer in made.items():
            found = gradient(layer, x.float(), cotangent.float())
            off[kind] = max(off[kind], float((found - exact).abs().max() / exact.square().mean().sqrt()))
    assert off["printed"] < 3 * off["searched"]


def gradient(layer, x, cotangent):
    x = x.clone().requires_grad_()
    return torch.autograd.grad(layer(x), x, cotangent)[0].double()
