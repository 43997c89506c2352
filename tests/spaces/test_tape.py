"""The quick way through a layer against the definitions: autograd over what `GraphLayer` interprets."""

import copy

import numpy as np
import pytest
import torch

from normact.spaces import CATALOGUE, EVONORM_MOMENTS, EVONORM_POINTWISE, GraphLayer, GraphSpace, parse, tape
from normact.spaces.ops import OPS

SHAPES = {"NCHW": (6, 16, 5, 4), "NLC": (6, 20, 16), "NC": (96, 16)}
NEVER = 10**12
SPACE = GraphSpace([*EVONORM_POINTWISE, *EVONORM_MOMENTS])


def reaches_every_entry(graph):
    """Whether each moment is of something that varies over its index set; else its std is rounding alone."""
    full = {}
    for i, (op, args) in enumerate(graph.canonical.nodes):
        varies = [arg == "x" or full.get(arg, False) for arg in args]
        if OPS[op].moment and not varies[0]:
            return False
        full[i] = not OPS[op].moment and any(varies)
    return True


RANDOM = [g for i in range(160) if reaches_every_entry(g := SPACE.sample(np.random.default_rng([3, i])))]


def randomised(layer, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in layer.state_dict().values():
            tensor.add_(0.2 * torch.rand(tensor.shape, generator=generator))
    return layer


def response(layer, x, smallest, monkeypatch, twice=False):
    """Output, gradients and running statistics of a copy, and with `twice` the gradients of the gradients' norm."""
    monkeypatch.setattr(tape, "SMALLEST", smallest)
    layer = copy.deepcopy(layer).to(x.dtype)
    x = x.clone().requires_grad_()
    y = layer(x)
    inputs = [x, *layer.parameters()]
    cotangent = torch.linspace(-1, 2, y.numel(), dtype=x.dtype).view(y.shape).sin()
    found = torch.autograd.grad(y, inputs, cotangent, create_graph=twice, allow_unused=True)
    if twice:
        norm = sum(g.square().sum() for g in found if g is not None)
        found = [*found, *(torch.autograd.grad(norm, inputs, allow_unused=True) if norm.requires_grad else [])]
    return [y.detach(), *(None if g is None else g.detach() for g in found), *layer.buffers()]


def assert_same(quick, plain, exact, what):
    """As near to the definitions in float32 as these are to themselves in float64, within a factor."""
    assert len(quick) == len(plain) == len(exact)
    for a, b, c in zip(quick, plain, exact, strict=True):
        if b is None or not torch.isfinite(b).all():
            assert a is None or b is not None, what
            continue
        if a is None:
            assert not b.any(), what
            continue
        rounding = float((b.double() - c).abs().max())
        allowed = 2e-5 * float(c.abs().max()) + 8 * rounding + 1e-6
        assert float((a - b).abs().max()) <= allowed, what


def graphs():
    return {**{name: layer.graph for name, layer in CATALOGUE.items()}, **{str(graph): graph for graph in RANDOM}}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("layout", SHAPES)
def test_values_gradients_and_statistics_are_those_of_the_definitions(layout, training, monkeypatch):
    calls = count_runs(monkeypatch)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(SHAPES[layout], generator=generator) * 1.5 + 0.3
    served = [(n, g) for n, g in graphs().items() if layout != "NC" or "instance" not in n + str(g)]
    for seed, (name, graph) in enumerate(served):
        layer = randomised(GraphLayer(graph, 16, layout), seed).train(training)
        quick = response(layer, x, 1, monkeypatch)
        plain = response(layer, x, NEVER, monkeypatch)
        assert_same(quick, plain, response(layer, x.double(), NEVER, monkeypatch), f"{name}, {layout}, {training}")
    assert len(calls) == len(served) > 40


@pytest.mark.parametrize("name", CATALOGUE)
def test_second_derivatives_are_those_of_the_definitions(name, monkeypatch):
    x = torch.randn(SHAPES["NLC"], generator=torch.Generator().manual_seed(2))
    layer = randomised(GraphLayer(CATALOGUE[name].graph, 16, "NLC"), 0)
    quick = response(layer, x, 1, monkeypatch, twice=True)
    plain = response(layer, x, NEVER, monkeypatch, twice=True)
    assert_same(quick, plain, response(layer, x.double(), NEVER, monkeypatch, twice=True), name)


def count_runs(monkeypatch):
    calls = []
    run = tape.run
    monkeypatch.setattr(tape, "run", lambda *args: calls.append(1) or run(*args))
    return calls


def test_only_large_float32_tensors_and_known_ops_go_this_way(monkeypatch):
    calls = count_runs(monkeypatch)
    large = torch.randn(64, 16, 4, 4)
    layer = GraphLayer(parse("affine(sigmoid(x))"), 16)
    layer(large)
    assert len(calls) == 1
    layer(large[:4])
    GraphLayer(parse("affine(mish(x))"), 16)(large)
    GraphLayer(parse("affine(sigmoid(x))"), 16).double()(large.double())
    GraphLayer(parse("affine(sigmoid(x))"), 16).double()(large)
    with torch.autocast("cpu", torch.bfloat16):
        layer(large)
    assert len(calls) == 1


def test_what_needs_no_gradient_gets_none(monkeypatch):
    monkeypatch.setattr(tape, "SMALLEST", 1)
    layer = GraphLayer(parse("affine(mul(v1, sigmoid(x)))"), 16)
    layer.v1.requires_grad_(False)
    layer(torch.randn(SHAPES["NCHW"])).sum().backward()
    assert layer.v1.grad is None
    torch.testing.assert_close(layer.bias.grad, torch.full((16,), 120.0))


@pytest.mark.parametrize("expression", ["sigmoid(x)", "affine(tanh(x))", "exp(neg(abs(x)))"])
def test_writing_into_the_output_spoils_no_gradient(expression, monkeypatch):
    """As `out += skip` does in many a residual net."""
    monkeypatch.setattr(tape, "SMALLEST", 1)
    layer = GraphLayer(parse(expression), 16)
    data = torch.randn(SHAPES["NCHW"])
    gradients = []
    for write in (False, True):
        x = data.clone().requires_grad_()
        y = layer(x)
        y = y.add_(3.0) if write else y + 3.0
        gradients.append(torch.autograd.grad(y.sin().sum(), x)[0])
    torch.testing.assert_close(*gradients)


def test_a_weight_changed_before_the_way_back_is_an_error(monkeypatch):
    monkeypatch.setattr(tape, "SMALLEST", 1)
    layer = GraphLayer(parse("affine(sigmoid(x))"), 16)
    y = layer(torch.randn(SHAPES["NCHW"])).sum()
    with torch.no_grad():
        layer.weight.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


def test_statistics_are_kept_once_even_when_differentiated_twice(monkeypatch):
    layer = GraphLayer(parse("affine(div(x, batch_std(x)))"), 16)
    x = torch.randn(SHAPES["NCHW"])
    once = response(layer, x, 1, monkeypatch)[-1]
    twice = response(layer, x, 1, monkeypatch, twice=True)[-1]
    assert torch.equal(once, twice)
    assert not torch.equal(once, torch.ones(16))


def test_without_gradients_the_values_are_the_same(monkeypatch):
    monkeypatch.setattr(tape, "SMALLEST", 1)
    layer = GraphLayer(CATALOGUE["evonorm_b0"].graph, 16).eval()
    x = torch.randn(SHAPES["NCHW"])
    with torch.no_grad():
        without = layer(x)
    assert torch.equal(without, layer(x).detach())
