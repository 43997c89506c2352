"""Printed layers run apart, in a process without normact, and compared with `GraphLayer`."""

import subprocess
import sys
from pathlib import Path

import torch

from normact.spaces import (
    OPS,
    GraphLayer,
    emit,
)
from normact.spaces.moments import unusable

RUNNER = Path(__file__).with_name("run_emitted.py")
FEATURES = 12
SHAPES = {"NCHW": (4, FEATURES, 3, 5), "NLC": (4, 5, FEATURES), "NC": (7, FEATURES)}


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


def load(source, name="layer", **more):
    namespace = {"__name__": name, **more}
    exec(compile(source, f"{name}.py", "exec"), namespace)
    return namespace[name]
