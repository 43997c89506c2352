"""Families against their published formulas, by numpy in double precision."""

import math

import numpy as np
import pytest
import torch

from normact.spaces.kan import BASES
from normact.spaces.kan.packed import pack

X = torch.cat([torch.linspace(-5, 5, 1001), torch.tensor([-100.0, -20.0, 20.0, 100.0])])
REACHES = (1.0, 2.0)


def values(basis, x=X):
    with torch.no_grad():
        return basis(x.unsqueeze(1)).squeeze(1).double().numpy()


def agree(basis, expected, atol=1e-5):
    expected = np.stack(expected, 1)
    assert np.abs(values(basis) - expected).max() <= atol * max(1.0, np.abs(expected).max())


def steps(reach, grid):
    """x less each centre, in units of their distance."""
    x, h = X.double().numpy(), 2 * reach / (grid - 1)
    return [(x - (-reach + k * h)) / h for k in range(grid)]


@pytest.mark.parametrize("reach", REACHES)
@pytest.mark.parametrize("grid", [2, 8])
@pytest.mark.parametrize(
    ("family", "formula"),
    [
        ("gaussian", lambda u: np.exp(-(u**2))),
        ("sech", lambda u: 1 / np.cosh(u)),
        ("rswaf", lambda u: 1 - np.tanh(u) ** 2),
    ],
)
def test_bumps(family, formula, grid, reach):
    agree(BASES[family](1, reach, grid=grid), [formula(u) for u in steps(reach, grid)])


@pytest.mark.parametrize("reach", REACHES)
@pytest.mark.parametrize("frequencies", [1, 4, 16])
def test_fourier(frequencies, reach):
    x = X.double().numpy() * math.pi / (2 * reach)
    k = range(1, frequencies + 1)
    agree(BASES["fourier"](1, reach, frequencies=frequencies), [f(j * x) for f in (np.cos, np.sin) for j in k], 2e-4)


def test_the_sines_phases_differ_between_inputs():
    basis = BASES["sine"](3, 2.0, grid=4)
    with torch.no_grad():
        basis.rates.copy_(torch.tensor([0.3, 1.0, 1.7, 2.2]))
        found = basis(torch.full((1, 3), 0.7))[0].numpy()
    expected = [
        [math.sin(w * 0.7 + (k + 1) / 5 + math.pi * i / 2) for k, w in enumerate([0.3, 1.0, 1.7, 2.2])]
        for i in range(3)
    ]
    np.testing.assert_allclose(found, expected, atol=1e-6)


WAVELETS = {
    "mexican_hat": lambda u: 2 / (math.sqrt(3) * math.pi**0.25) * (1 - u**2) * np.exp(-(u**2) / 2),
    "morlet": lambda u: np.cos(5 * u) * np.exp(-(u**2) / 2),
    "dog": lambda u: -u * np.exp(-(u**2) / 2),
    "difference_of_gaussians": lambda u: np.exp(-(u**2) / 2) - np.exp(-(u**2) / 8) / 2,
}


@pytest.mark.parametrize("family", WAVELETS)
def test_wavelets_of_two_levels(family):
    """On [-2, 2]: one broad function, one of scale 2, two of scale 1 in the middles of the halves."""
    x, psi = X.double().numpy(), WAVELETS[family]
    agree(BASES[family](1, 2.0, levels=2), [psi(x / 4), psi(x / 2), psi(x + 1), psi(x - 1)])


@pytest.mark.parametrize("family", WAVELETS)
@pytest.mark.parametrize("levels", [1, 3, 5])
def test_each_level_of_wavelets_halves_the_scale_and_doubles_the_shifts(family, levels):
    basis = BASES[family](1, 1.0, levels=levels)
    scales = (1 / basis.per_scale).flatten().tolist()
    assert basis.size == len(scales) == 2**levels
    assert scales == [2.0] + [2.0**-level for level in range(levels) for _ in range(2**level)]
    finest = basis.shifts.flatten()[2 ** (levels - 1) :]
    np.testing.assert_allclose(finest, np.linspace(-1, 1, 2**levels + 1)[1::2], atol=1e-6)


def test_the_mexican_hat_has_norm_one():
    u = np.linspace(-12, 12, 100001)
    assert abs(np.trapezoid(WAVELETS["mexican_hat"](u) ** 2, u) - 1) <= 1e-9


@pytest.mark.parametrize(("grid", "reach"), [(2, 1.0), (3, 2.0), (8, 2.0), (16, 1.0)])
def test_hats_interpolate_and_go_on_linearly(grid, reach):
    """A mix of hats is the interpolation of its coefficients, beyond the nodes the end cells' lines."""
    nodes, coefficients = np.linspace(-reach, reach, grid), np.random.default_rng(0).normal(size=grid)
    x = X.double().numpy()
    expected = np.interp(x, nodes, coefficients)
    for outside, end, next_ in ((x < -reach, 0, 1), (x > reach, -1, -2)):
        slope = (coefficients[next_] - coefficients[end]) / (nodes[next_] - nodes[end])
        expected[outside] = coefficients[end] + slope * (x[outside] - nodes[end])
    found = values(BASES["piecewise_linear"](1, reach, grid=grid)) @ coefficients
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


def test_hats_at_a_node_have_the_slope_of_the_cell_to_its_left():
    """By the family's own gradient and by autograd's."""
    basis = BASES["piecewise_linear"](1, 2.0, grid=5)
    heights = torch.tensor([0.0, 1.0, 4.0, 9.0, 16.0])
    for planes in (basis.planes, lambda x: pack([basis], x, None)):
        x = torch.tensor([[-2.0], [-1.0], [0.0], [1.0], [2.0]], requires_grad=True)
        (slope,) = torch.autograd.grad((planes(x).squeeze(-1) @ heights).sum(), x)
        assert slope.flatten().tolist() == [1.0, 1.0, 3.0, 5.0, 7.0]


def relu_kan(x, starts, ends):
    """The published formula: squared products of two ReLUs, scaled to a peak of 1."""
    product = np.maximum(ends - x[:, None], 0) * np.maximum(x[:, None] - starts, 0)
    return product**2 * 16 / (ends - starts) ** 4


@pytest.mark.parametrize(("grid", "order"), [(5, 3), (3, 0), (1, 1)])
def test_relu_kan_on_the_unit_interval_has_the_published_ends(grid, order):
    """The paper's inputs lie in [0, 1]; ours in [-1, 1]."""
    i = np.arange(grid + order)
    starts = (i - order) / grid
    ends = starts + (order + 1) / grid
    expected = relu_kan((X.double().numpy() + 1) / 2, starts, ends)
    agree(BASES["relu_kan"](1, 1.0, grid=grid, order=order), list(expected.T))


def test_relu_kans_peaks_stay_at_one_when_its_ends_move():
    basis = BASES["relu_kan"](1, 2.0, grid=3, order=1)
    with torch.no_grad():
        basis.starts.copy_(torch.tensor([-3.0, -1.0, 0.0, 0.5]))
        basis.ends.copy_(torch.tensor([-1.0, 0.5, 2.5, 0.9]))
    starts, ends = (p.detach().double().numpy() for p in (basis.starts, basis.ends))
    agree(basis, list(relu_kan(X.double().numpy(), starts, ends).T))
    middles = (basis.starts + basis.ends).detach() / 2
    assert values(basis, middles).diagonal().tolist() == pytest.approx([1.0] * 4)


def test_relu_kan_survives_ends_that_meet_and_cross():
    basis = BASES["relu_kan"](1, 2.0, grid=2, order=1)
    with torch.no_grad():
        basis.ends.copy_(basis.starts - torch.tensor([0.0, 1.0, 1e-9]))
    x = X.unsqueeze(1).requires_grad_()
    planes = basis.planes(x)
    gradients = torch.autograd.grad(planes.sum(), [x, basis.starts, basis.ends])
    assert all(tensor.isfinite().all() for tensor in (planes, *gradients))


@pytest.mark.parametrize("groups", [1, 2, 3])
def test_rational_shares_coefficients_among_neighbours(groups):
    basis = BASES["rational"](6, groups=groups, above=5, below=4)
    p, q = np.random.default_rng(1).normal(size=(groups, 6)), np.random.default_rng(2).normal(size=(groups, 4))
    with torch.no_grad():
        basis.numerator.copy_(torch.tensor(p).flatten())
        basis.denominator.copy_(torch.tensor(q).flatten())
        found = basis(torch.linspace(-3, 3, 50).unsqueeze(1).expand(-1, 6)).squeeze(-1).double().numpy()
    x = np.linspace(-3, 3, 50)
    for channel in range(6):
        group = channel * groups // 6
        below = 1 + np.abs(np.polyval([*q[group][::-1], 0.0], x))
        np.testing.assert_allclose(found[:, channel], np.polyval(p[group][::-1], x) / below, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("above", "below", "tolerance"), [(5, 4, 1e-4), (5, 2, 2e-3), (3, 2, 0.05)])
def test_rational_starts_near_silu(above, below, tolerance):
    x = torch.linspace(-3, 3, 301)
    found = values(BASES["rational"](1, 2.0, above=above, below=below), x)[:, 0]
    x = x.double().numpy()
    assert np.abs(found - x / (1 + np.exp(-x))).max() <= tolerance


def test_rational_starts_as_the_identity_where_asked():
    x = torch.linspace(-3, 3, 301)
    found = values(BASES["rational"](1, 2.0, start="identity"), x)[:, 0]
    np.testing.assert_allclose(found, x.double().numpy(), atol=1e-6)
