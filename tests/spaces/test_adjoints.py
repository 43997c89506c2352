"""Each op's written-out derivative against autograd over its definition."""

import itertools

import pytest
import torch

from normact.spaces.adjoints import ADJOINTS, AFFINE
from normact.spaces.ops import OPS

KNOWN = {op.name: op for op in OPS.values() if op.function in ADJOINTS}
EDGES = [0.0, -0.0, 1e-5, -1e-5, 0.9e-5, -0.9e-5, 1e-6, -1e-6, 2e-6, 1e-7, 1.0, -1.0, 0.3, -2.5, 7.0, 1e20, -1e20]
NOT_FINITE = [float("inf"), float("-inf"), float("nan")]


def arguments(arity, edges):
    values = torch.tensor(edges)
    if arity == 1:
        return [values]
    pairs = torch.tensor(list(itertools.product(edges, edges)))
    return [pairs[:, 0].contiguous(), pairs[:, 1].contiguous()]


def both(op, args, cotangent):
    leaves = [a.clone().requires_grad_() for a in args]
    expected = op.function(*leaves)
    gradients = torch.autograd.grad(expected, leaves, cotangent)
    adjoint = ADJOINTS[op.function]
    value, kept = adjoint.forward(*args)
    found = adjoint.backward(cotangent, value, kept, list(args), (True,) * len(args))
    return value, expected.detach(), found, gradients


def test_every_op_of_evonorm_has_one():
    names = "add mul div max neg sigmoid tanh exp log abs square sqrt sub min relu silu gelu"
    assert set(KNOWN) == set(names.split())


@pytest.mark.parametrize("name", KNOWN)
def test_values_are_the_definitions_to_the_last_bit(name):
    op = KNOWN[name]
    for edges in (EDGES, EDGES[10:], EDGES + NOT_FINITE[:2], EDGES + NOT_FINITE):
        args = arguments(op.arity, edges)
        value, _ = ADJOINTS[op.function].forward(*args)
        torch.testing.assert_close(value, op.function(*args), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 0.1, 1.0, 10.0])
def test_tanh_of_a_large_tensor_is_as_exact_as_torchs(scale):
    x = scale * torch.randn(50000, generator=torch.Generator().manual_seed(0))
    x[:4] = torch.tensor([0.0, 1e30, -torch.inf, torch.nan])
    value, _ = ADJOINTS[OPS["tanh"].function].forward(x)
    torch.testing.assert_close(value.double(), x.double().tanh(), rtol=2.5e-7, atol=0, equal_nan=True)


@pytest.mark.parametrize("name", KNOWN)
def test_derivatives_are_autograds_at_ties_and_singular_points_too(name):
    op = KNOWN[name]
    for edges in (EDGES, EDGES[10:]):
        args = arguments(op.arity, edges)
        cotangent = torch.linspace(0.5, 2.0, len(args[0]))
        value, _, found, expected = both(op, args, cotangent)
        for a, b in zip(found, expected, strict=True):
            fine = torch.isfinite(b) & torch.isfinite(value)
            assert fine.float().mean() > 0.5
            torch.testing.assert_close(a[fine], b[fine], rtol=2e-6, atol=1e-30)


@pytest.mark.parametrize("name", [name for name, op in KNOWN.items() if op.arity == 2])
def test_arguments_may_be_smaller_than_the_value(name):
    op = KNOWN[name]
    x, small = torch.randn(6, 4, 5), torch.rand(1, 4, 1) + 0.5
    for args in ((x, small), (small, x)):
        _, _, found, expected = both(op, args, torch.randn(6, 4, 5))
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a.sum_to_size(b.shape), b, rtol=1e-4, atol=1e-4)


def test_the_affines_are_those_of_its_formula():
    x, w, b, g = torch.randn(6, 4, 5), torch.randn(1, 4, 1), torch.randn(1, 4, 1), torch.randn(6, 4, 5)
    value, kept = AFFINE.forward(x, w, b)
    assert torch.equal(value, x * w + b)
    to_x, to_w, to_b = AFFINE.backward(g, value, kept, [x, w, b], (True, True, True))
    assert torch.equal(to_x, g * w)
    assert torch.equal(to_w, g * x)
    assert torch.equal(to_b, g)
