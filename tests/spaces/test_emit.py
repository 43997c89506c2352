"""Printed layers: equal to what `GraphLayer` computes, standing alone, and fit to be read."""

import importlib.util
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
    Op,
    Site,
    emit,
    named,
    parse,
    register,
)
from normact.spaces.moments import unusable

RUNNER = Path(__file__).with_name("run_emitted.py")
FEATURES = 12
SHAPES = {"NCHW": (4, FEATURES, 3, 5), "NLC": (4, 5, FEATURES), "NC": (7, FEATURES)}
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


@pytest.fixture(scope="session")
def runner():
    spec = importlib.util.spec_from_file_location("run_emitted", RUNNER)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def layouts_of(graph):
    sets = {moment.index_set for node in graph.canonical.nodes if (moment := OPS[node.op].moment)}
    return [layout for layout in SHAPES if not any(unusable(s, layout) for s in sets)]


def batches(layout, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    found = []
    for k in range(3):
        x = torch.randn(SHAPES[layout], generator=generator, dtype=torch.float64) * (1 + k) + 0.3 * k
        found.append((x.to(dtype), torch.randn(SHAPES[layout], generator=generator).to(dtype)))
    return found


def disturbed(module, dtype):
    """The module with parameters away from 0 and 1, so that none is idle."""
    module = module.to(dtype)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.5 * torch.rand(parameter.shape, generator=generator).to(dtype))
    return module


def case_of(graph, module, layout, dtype, **arguments):
    """What the other process needs: source, state before any batch, batches."""
    name = arguments.pop("name", "layer")
    source = arguments.pop("source", None) or emit(graph, name)
    return {
        "name": name,
        "source": source,
        "arguments": {"num_features": FEATURES, "layout": layout, "dtype": dtype, **arguments},
        "state": {key: value.clone() for key, value in module.state_dict().items()},
        "batches": batches(layout, dtype),
    }


def run_apart(cases, folder):
    torch.save(cases, folder / "cases.pt")
    command = [
        sys.executable,
        "-I",
        "-W",
        "error",
        str(RUNNER),
        str(folder / "cases.pt"),
        str(folder / "results.pt"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    return torch.load(folder / "results.pt")


def assert_equal(got, expected, what, known_error=0.0, least=0.0, slack=1):
    """To 1e-10 in float64 and 1e-5 in float32, relative to the expected tensor's root mean square.

    `known_error`: that of the interpreter itself in the same precision. `least`: of the root mean square.
    """
    assert (got is None) == (expected is None), what
    if got is not None:
        assert got.shape == expected.shape, what
        assert got.dtype == expected.dtype, what
        rms = max(expected.double().square().mean().sqrt().item(), least)
        if slack > 1 and expected.numel():  # random layers have heavy tails
            rms = max(rms, expected.abs().max().item())
        worst = (got.double() - expected.double()).abs().max().item()
        tolerance = slack * (1e-10 if expected.dtype == torch.float64 else 1e-5)
        assert worst <= tolerance * rms + slack * known_error, f"{what}: {worst:.3g} off, RMS {rms:.3g}"


def off(a, b):
    return 0.0 if a is None or not a.numel() else (a.double() - b.double()).abs().max().item()


def assert_same_response(got, expected, exact, what, slack=1):
    for number, (ours, theirs, wanted) in enumerate(zip(*(r["phases"] for r in (got, expected, exact)), strict=True)):
        assert ours.keys() == theirs.keys(), what
        for name in theirs:
            error = off(theirs[name], wanted[name])
            right = None if theirs[name] is None else wanted[name].to(theirs[name].dtype)
            # A small gradient is a difference of terms as large as the cotangents, which are of size 1.
            least = 0.0 if name == "y" else 1.0
            assert_equal(ours[name], right, f"{what}, phase {number}, {name}", error, least, slack)
    assert got["state"].keys() == expected["state"].keys(), what
    for name, tensor in expected["state"].items():
        assert_equal(got["state"][name], tensor, f"{what}, state {name}")


def exact_response(graph, layout, case, runner):
    """What the interpreter gives in float64."""
    module = GraphLayer(graph, FEATURES, layout).double()
    module.load_state_dict(case["state"])
    return runner.respond(module, [(x.double(), cotangent.double()) for x, cotangent in case["batches"]])


def compare_apart(graphs, layouts, dtype, folder, runner, slack=1):
    """Every graph at every layout: the printed one in a process without normact, ours here."""
    cases, expected, exact, what = [], [], [], []
    for graph in graphs:
        source = emit(graph, "layer")
        for layout in layouts(graph):
            module = disturbed(GraphLayer(graph, FEATURES, layout), dtype)
            cases.append(case_of(graph, module, layout, dtype, source=source))
            expected.append(runner.respond(module, cases[-1]["batches"]))
            exact.append(exact_response(graph, layout, cases[-1], runner))
            what.append(f"{graph} at {layout} in {dtype}")
    results = run_apart(cases, folder)
    assert len(results) == len(cases)
    for responses in zip(results, expected, exact, what, strict=True):
        assert_same_response(*responses, slack)
    return len(results)


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
@pytest.mark.parametrize("preset", ["evonorm_b", "evonorm_s", "pointwise"])
def test_random_survivors_printed_equal_the_graph_layer_without_normact(preset, tmp_path, runner):
    space = space_of(compose_config([f"space={preset}"]))
    rng = np.random.default_rng(17)
    found = {}
    while len(found) < 300:
        graph = space.whole(space.sample(rng))
        if all(survives(graph, layout, torch.float32, runner) for layout in space.layouts):
            found[graph.key()] = graph
    for dtype in (torch.float64, torch.float32):
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
        assert "normact" not in source


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


def load(source, name="layer", **more):
    namespace = {"__name__": name, **more}
    exec(compile(source, f"{name}.py", "exec"), namespace)
    return namespace[name]


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


# -- ops of one's own ---------------------------------------------------------------------------------------


def squeeze(a):
    """Several lines, with a comment and a nested function."""
    size = a.abs()  # a comment stays

    def inner(b):
        return b + 1

    return a / inner(size)


def with_default(a, slope=0.25):
    return torch.where(a > 0, a, slope * a)


def said_in_one_line(a, b):
    return torch.nn.functional.softplus(a, beta=2.0) * b


SCALE = 2.0


def uses_a_global(a):
    return a * SCALE


def uses_numpy(a):
    return a * float(np.pi)


def widened(a):
    return a.float()


def div_1(a):
    a = a + 1
    return a * a


def make_share():
    def share(a):
        a = a * 2
        return a + 1

    return share


def make_other_share(k):
    def share(a):
        a = a * k
        return a + 1

    return share


@pytest.mark.parametrize(
    ("op", "text", "line"),
    [
        (Op("squeeze", 1, squeeze), "affine(squeeze(div(x, batch_std(x))))", "# a comment stays"),
        (Op("bent", 1, with_default), "bent(group_std(x))", "def with_default(a, slope=0.25):"),
        (Op("one_line", 2, said_in_one_line), "one_line(neg(x), v1)", "softplus(neg_1, beta=2.0) * v1"),
        (Op("mine", 1, make_share()), "mul(mine(x), batch_std(x))", "def share_op(a):"),
        (Op("like_a_local", 1, div_1), "div(like_a_local(x), v1)", "def div_1_op(a):"),
    ],
    ids=lambda value: value.name if isinstance(value, Op) else None,
)
def test_an_op_of_ones_own_is_printed_from_its_source(op_table, runner, tmp_path, op, text, line):
    register(op)
    graph = parse(text)
    assert line in emit(graph, "layer")
    assert compare_apart([graph], layouts_of, torch.float32, tmp_path, runner) == 3


def test_an_op_that_widens_does_not_widen_the_layer(op_table):
    register(Op("widened", 1, widened))
    graph = parse("affine(add(widened(x), group_mean(x)))")
    x = torch.randn(SHAPES["NCHW"]).bfloat16()
    layer = load(emit(graph, "layer"))(FEATURES)
    assert layer(x).dtype == GraphLayer(graph, FEATURES)(x).dtype == torch.bfloat16
    assert torch.equal(layer(x), layer(x.float()).bfloat16())


def test_functions_of_one_name_stay_apart(op_table):
    def bump(a):
        a = a + 1
        return a * 2

    first = bump

    def bump(a):
        a = a + 3
        return a * 4

    register(Op("first", 1, first))
    register(Op("second", 1, bump))
    layer = load(emit(parse("add(first(x), second(first(x)))"), "layer"))(3)
    x = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(layer(x), (x + 1) * 2 + ((x + 1) * 2 + 3) * 4)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda a: a * 2, "op 'own' .*write it as a `def`"),
        (uses_a_global, "op 'own' uses SCALE, which an exported file would lack"),
        (uses_numpy, "op 'own' uses np, which an exported file would lack"),
        (make_other_share(3), "op 'own' uses k, which an exported file would lack"),
        (torch.relu, "op 'own' has no source to export"),
        (load("def layer(a):\n    return a\n"), "op 'own' has no source to export"),
    ],
    ids=["lambda", "global", "numpy", "closure", "builtin", "no file"],
)
def test_an_op_that_cannot_stand_alone_is_refused(op_table, function, message):
    register(Op("own", 1, function))
    with pytest.raises(InputError, match=message) as error:
        emit(parse("own(x)"), "layer")
    assert "\n" not in str(error.value)
