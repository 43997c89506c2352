"""Polynomials against numpy's and scipy's, which sum other formulas in double precision."""

import numpy as np
import pytest
import torch
from numpy.polynomial import chebyshev, legendre
from scipy.special import eval_jacobi

from normact.spaces.kan import BASES

X = torch.linspace(-1, 1, 401)
DEGREES = (1, 2, 5, 12)


def found(family, **settings):
    """(401, K) in double precision, from values in float32."""
    return BASES[family](1, 1.0, **settings)(X.unsqueeze(1)).squeeze(1).detach().double().numpy()


@pytest.mark.parametrize("degree", DEGREES)
@pytest.mark.parametrize(("family", "module"), [("chebyshev", chebyshev.chebvander), ("legendre", legendre.legvander)])
def test_chebyshev_and_legendre_agree_with_numpys(family, module, degree):
    expected = module(X.double().numpy(), degree)[:, 1:]
    assert np.abs(found(family, degree=degree) - expected).max() <= 1e-5


@pytest.mark.parametrize("degree", DEGREES)
@pytest.mark.parametrize(
    ("alpha", "beta"), [(1.0, 1.0), (0.0, 0.0), (-0.5, -0.5), (0.5, 2.0), (2.0, -0.9), (-0.3, -0.7)]
)
def test_jacobi_agrees_with_scipys(alpha, beta, degree):
    x = X.double().numpy()[:, None]
    expected = eval_jacobi(np.arange(1, degree + 1), alpha, beta, x)
    error = np.abs(found("jacobi", degree=degree, alpha=alpha, beta=beta) - expected)
    assert (error <= 1e-5 * np.maximum(1, np.abs(expected).max(0))).all()


@pytest.mark.parametrize("degree", [2, 5, 8])
def test_gram_starts_orthogonal_on_evenly_spread_points(degree):
    points = -1 + (2 * np.arange(1, degree + 2) - 1) / (degree + 1)
    basis = BASES["gram"](1, 1.0, degree=degree).double()
    with torch.no_grad():
        values = basis(torch.tensor(points).unsqueeze(1)).squeeze(1).numpy()
    values = np.column_stack([np.ones(degree + 1), values])
    products = values.T @ values
    assert np.abs(products - np.diag(products.diagonal())).max() <= 1e-6
    leading = np.polynomial.polynomial.polyfit(points, values, degree).diagonal()[1:]
    np.testing.assert_allclose(leading, 2.0 ** np.arange(degree), rtol=1e-6)


def test_gram_is_chebyshevs_where_every_beta_is_one():
    basis = BASES["gram"](1, 1.0, degree=7)
    with torch.no_grad():
        basis.betas.fill_(1.0)
        expected = chebyshev.chebvander(X.double().numpy(), 7)[:, 1:]
        values = basis(X.unsqueeze(1)).squeeze(1).double().numpy()
    assert np.abs(values - expected).max() <= 1e-5
