"""B-splines against scipy's, which evaluates de Boor's recursion in double precision."""

import numpy as np
import pytest
import torch
from scipy.interpolate import BSpline as Oracle

from normact.spaces.kan import BASES
from tests.benchmarks.kan import INPUTS, Recursion

X = torch.cat([torch.linspace(-5, 5, 2001), torch.randn(500, generator=torch.Generator().manual_seed(1))])


def oracle(x, reach, grid, order):
    """All B-splines at x; 0 beyond their knots."""
    cell = 2 * reach / grid
    knots = -reach + cell * np.arange(-order, grid + order + 1)
    elements = [Oracle.basis_element(knots[k : k + order + 2], extrapolate=False) for k in range(grid + order)]
    return np.nan_to_num(np.stack([element(x) for element in elements], 1))


@pytest.mark.parametrize("reach", [1.0, 2.0])
@pytest.mark.parametrize("order", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("grid", [3, 5, 10, 50])
def test_values_agree_with_scipys(grid, order, reach):
    basis = BASES["bspline"](1, reach, grid=grid, order=order)
    found = basis(X.unsqueeze(1)).squeeze(1).double().numpy()
    assert np.abs(found - oracle(X.double().numpy(), reach, grid, order)).max() <= 1e-5


@pytest.mark.parametrize("order", [6, 7])
def test_the_highest_orders_agree_in_double_precision(order):
    basis = BASES["bspline"](1, 2.0, grid=5, order=order)
    found = basis(X.double().unsqueeze(1)).squeeze(1).numpy()
    assert np.abs(found - oracle(X.double().numpy(), 2.0, 5, order)).max() <= 1e-12


@pytest.mark.parametrize("order", [2, 3, 5])
def test_slopes_agree_with_scipys(order):
    grid, reach = 5, 2.0
    cell = 2 * reach / grid
    knots = -reach + cell * np.arange(-order, grid + order + 1)
    x = torch.linspace(-1.9, 1.9, 77, requires_grad=True)
    planes = BASES["bspline"](1, reach, grid=grid, order=order).planes(x.unsqueeze(1)).squeeze(2)
    for k in range(grid + order):
        (slope,) = torch.autograd.grad(planes[:, k].sum(), x, retain_graph=True)
        spline = Oracle(knots, np.eye(grid + order)[k], order).derivative()
        assert np.abs(slope.numpy() - spline(x.detach().double().numpy())).max() <= 1e-5


@pytest.mark.parametrize("order", [1, 2, 3, 5, 7])
def test_they_sum_to_one_on_the_grid_and_vanish_far_from_their_cells(order):
    basis = BASES["bspline"](1, 2.0, grid=6, order=order)
    x = torch.linspace(-2, 2, 101).unsqueeze(1)
    values = basis(x).squeeze(1)
    torch.testing.assert_close(values.sum(-1), torch.ones(101), atol=1e-5, rtol=0)
    assert (values >= -1e-6).all()
    assert ((values != 0).sum(-1) <= order + 1).all()
    beyond = 2 + (order + 1) * 4 / 6
    assert not basis(torch.tensor([[beyond], [-beyond], [1e6]])).any()


def test_the_benchmarks_recursion_has_the_same_functions():
    basis, other = BASES["bspline"](INPUTS, 2.0, grid=5, order=3), Recursion(5, 3)
    x = torch.randn(8, INPUTS)
    torch.testing.assert_close(other.bases(x), basis(x), atol=1e-5, rtol=0)
