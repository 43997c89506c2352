"""Exported layers in training: derivatives, memory, several processes, odd inputs."""

import subprocess
import sys
from pathlib import Path

import pytest
import timm.layers
import torch

from normact.spaces import CATALOGUE, GraphLayer, emit, named, parse

RANK = Path(__file__).with_name("ranks.py")


def load(graph, **arguments):
    namespace = {"__name__": "layer"}
    exec(compile(emit(graph, "layer"), "layer.py", "exec"), namespace)
    return namespace["layer"](**arguments)


def disturbed(layer):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in layer.parameters():
            p.add_(0.5 * torch.rand(p.shape, generator=generator, dtype=p.dtype))
    return layer


MANY = [
    "affine(add(batch_std(sigmoid(x)), mul(x, group_std(x))))",
    "div(min(abs(x), v1), add(batch_rms(x), square(sub(v0, mul(x, x)))))",
    "mul(tanh(sub(x, layer_mean(x))), exp(neg(div(square(x), group_rms(x)))))",
    "sub(gelu(x), relu(add(x, x)))",
]
GRAPHS = {**{name: layer.graph for name, layer in CATALOGUE.items()}, **{text: parse(text) for text in MANY}}


@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize("name", GRAPHS)
def test_first_and_second_derivatives_are_right(name, checkpoint):
    layer = disturbed(load(GRAPHS[name], num_features=4, groups=2, checkpoint=checkpoint, dtype=torch.float64))
    x = torch.randn(3, 4, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).requires_grad_()
    names = [n for n, _ in layer.named_parameters()]

    def call(x, *tensors):
        return torch.func.functional_call(layer, dict(zip(names, tensors, strict=True)), (x,))

    inputs = (x, *layer.parameters())
    assert torch.autograd.gradcheck(call, inputs)
    assert torch.autograd.gradgradcheck(call, inputs)


def kept(layer, x):
    """Bytes that a forward pass keeps for the backward one, its input included."""
    found = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        layer(x)
    return sum(found.values())


def test_little_is_kept_for_the_backward_pass():
    x = torch.randn(4, 32, 28, 28, requires_grad=True)
    for name, other in (("evonorm_b0", timm.layers.EvoNorm2dB0), ("evonorm_s0", timm.layers.EvoNorm2dS0)):
        theirs = kept(other(32), x)
        assert kept(load(named(name).graph, num_features=32), x) <= 0.3 * theirs
    mixed = parse(MANY[0])
    assert kept(load(mixed, num_features=32, checkpoint=True), x) <= 0.5 * kept(load(mixed, num_features=32), x)


def test_a_backward_pass_can_be_repeated():
    layer, x = load(named("evonorm_b0").graph, num_features=4), torch.randn(3, 4, 5, 5, requires_grad=True)
    loss = layer(x).square().sum()
    (first,) = torch.autograd.grad(loss, x, retain_graph=True)
    (second,) = torch.autograd.grad(loss, x)
    assert torch.equal(first, second)


def test_the_output_may_be_written_over():
    layer, x = load(named("evonorm_s0").graph, num_features=4, groups=2), torch.randn(3, 4, 5, 5, requires_grad=True)
    (expected,) = torch.autograd.grad(layer(x).sum(), x)
    y = layer(x)
    y.add_(1)
    assert torch.equal(torch.autograd.grad(y.sum(), x)[0], expected)


@pytest.mark.parametrize("name", CATALOGUE)
def test_one_sample_of_one_position_and_none_at_all(name):
    layer = load(named(name).graph, num_features=8)
    x = torch.randn(1, 8, 1, 1, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad.isfinite().all()
    state = {key: value.clone() for key, value in layer.state_dict().items()}
    assert all(value.isfinite().all() for value in state.values())
    assert layer(torch.zeros(0, 8, 5, 5)).shape == (0, 8, 5, 5)
    assert all(torch.equal(value, state[key]) for key, value in layer.state_dict().items())


@pytest.mark.parametrize("name", ["evonorm_b0", "bn_relu", "affine(add(batch_std(sigmoid(x)), mul(x, batch_mean(x))))"])
def test_two_processes_take_the_statistics_of_both_shares(name, tmp_path):
    graph = named(name).graph if name in CATALOGUE else parse(name)
    layer = disturbed(load(graph, num_features=6, dtype=torch.float64))
    reference = GraphLayer(graph, 6, dtype=torch.float64)
    reference.load_state_dict(layer.state_dict())
    generator = torch.Generator().manual_seed(0)
    x, cotangent = (torch.randn(8, 6, 3, 4, dtype=torch.float64, generator=generator) for _ in range(2))
    case = {"source": emit(graph, "layer"), "arguments": {"num_features": 6, "dtype": torch.float64}}
    torch.save({**case, "state": layer.state_dict(), "x": x, "cotangent": cotangent}, tmp_path / "case.pt")
    command = [sys.executable, "-I", "-W", "error", str(RANK), str(tmp_path)]
    ranks = [subprocess.Popen([*command, str(rank), "2"], stderr=subprocess.PIPE, text=True) for rank in range(2)]
    for rank in ranks:
        _, said = rank.communicate(timeout=120)
        assert rank.returncode == 0, said
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    whole = x.clone().requires_grad_()
    y = reference(whole)
    y.backward(cotangent)
    torch.testing.assert_close(torch.cat([f["y"] for f in found]), y.detach())
    torch.testing.assert_close(torch.cat([f["x"] for f in found]), whole.grad)
    for key, parameter in reference.named_parameters():
        torch.testing.assert_close(found[0]["grads"][key] + found[1]["grads"][key], parameter.grad)
    for f in found:
        torch.testing.assert_close(f["state"], dict(reference.state_dict()))


def test_compiled_variances_keep_their_digits_far_from_zero():
    namespace = {"__name__": "layer"}
    exec(compile(emit(named("evonorm_s0").graph, "layer"), "compiled_layer.py", "exec"), namespace)
    sizes = torch.tensor([1e-3, 1, 1e3]).view(3, 1, 1)
    x = torch.randn(2, 3, 40, 50, generator=torch.Generator().manual_seed(5)) * sizes
    x += torch.tensor([1.0, 1000.0, 0.0]).view(3, 1, 1)
    x[..., 0, 0] -= 30  # far out, among the entries that the pass is centred on
    mean, var = torch.compile(namespace["plane_mean_var"], fullgraph=True)(x, 1)
    exact_var, exact_mean = torch.var_mean(x.double(), (2, 3), correction=0, keepdim=True)
    torch.testing.assert_close(mean.double(), exact_mean, rtol=1e-6, atol=1e-3)
    torch.testing.assert_close(var.double(), exact_var, rtol=1e-5, atol=0)
