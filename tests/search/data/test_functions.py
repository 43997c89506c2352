"""Golden values are from scalar formulas written anew, or from what is known of a function."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from scipy import stats

from normact.search.data import FUNCTIONS, FunctionData
from normact.spaces import InputError

PI, E, SIN, COS = math.pi, math.exp, math.sin, math.cos


def nearest(x):
    return abs(x - math.floor(x + 0.5))


def kiesswetter(x, y):
    total = 0.0
    for n in range(12):
        p, q = (4**n * x) % 1, (4**n * y) % 1
        total += (abs(p - 0.5) - 0.25) * (abs(q - 0.5) - 0.25) / 4**n
    return total


def cyclic(a, b, c, d, e):
    s = a * b + b * c + c * d + d * e + e * a
    return (SIN(3 * PI * s) + COS(2 * PI * (a + c - e)) / 2) / (1 + a * a + b * b + c * c + d * d + e * e)


SCALAR = {
    "exp_sin": lambda x, y: E(SIN(PI * x) + y * y),
    "damped_wave": lambda x: SIN(6 * PI * x) / E(4 * x * x),
    "chirp": lambda x: (SIN(4 * PI * x * x + 2 * PI * x) + SIN(4 * PI * x * x - 2 * PI * x)) / 2,
    "chirp_2d": lambda x, y: SIN(3 * PI * x * x) * COS(3 * PI * y),
    "damped_wave_3d": lambda x, y, z: (
        E(-3 * ((x - 0.5) ** 2 + (y - 0.5) ** 2)) * SIN(4 * PI * z + 10 * (x - 0.5) * (y - 0.5))
    ),
    "products_4d": lambda x, y, z, w: SIN(3 * PI * (x * y + z)) * COS(2 * PI * w * y),
    "feynman_iii_17_37": lambda b, a, t: b + a * b * COS(t),
    "feynman_i_13_4": lambda m, v, u, w: 0.5 * m * (v * v + u * u + w * w),
    "fast_waves_2d": lambda x, y: (SIN(PI * (20 * x + 18 * y)) + SIN(PI * (20 * x - 18 * y))) / 2,
    "steep_3d": lambda x, y, z: 1 - 2 / (E(100 * (x - y + z / 2 - 0.5)) + 1),
    "cyclic_5d": cyclic,
    "weierstrass": lambda x: math.fsum(COS(PI * ((5**n * x) % 2)) / 2**n for n in range(10)),
    "takagi": lambda x: math.fsum(nearest(2**n * x) / 2**n for n in range(20)),
    "riemann": lambda x: math.fsum(SIN(PI * ((n * n * x) % 2)) / n**2 for n in range(1, 41)),
    "weierstrass_2d": lambda x, y: math.fsum(COS(3**n * PI * x) * COS(3**n * PI * y) / 2**n for n in range(5)),
    "takagi_2d": lambda x, y: math.fsum((nearest(2**n * x) + nearest(2**n * y)) / 2**n for n in range(20)),
    "brownian_2d": lambda x, y: math.fsum(SIN(2**i * PI * x) * COS(2**i * PI * y) / 2**i for i in range(6)),
    "kiesswetter_2d": kiesswetter,
}
ROUGH = {
    "weierstrass", "takagi", "cantor", "riemann", "weierstrass_2d", "takagi_2d", "brownian_2d", "kiesswetter_2d",
}  # fmt: skip


def at(name, *values):
    return FUNCTIONS[name].formula(*(np.array([float(v)]) for v in values))[0]


@pytest.mark.parametrize("name", SCALAR)
def test_a_function_is_its_formula(name):
    function = FUNCTIONS[name]
    rng = np.random.default_rng(7)
    points = function.low + (function.high - function.low) * rng.uniform(size=(50, function.dimension))
    expected = [SCALAR[name](*point) for point in points.tolist()]
    np.testing.assert_allclose(function.formula(*points.T), expected, rtol=1e-9, atol=1e-9)


def test_every_function_has_a_formula_here_but_cantors_which_has_known_values():
    assert set(FUNCTIONS) == {*SCALAR, "cantor"}
    assert {name for name, function in FUNCTIONS.items() if function.rough} == ROUGH


@pytest.mark.parametrize(
    ("x", "value"),
    [("0", "0"), ("1", "1"), ("1/2", "1/2"), ("1/4", "1/3"), ("3/4", "2/3"), ("3/10", "2/5"), ("1/10", "1/5")],
)
def test_cantors_function_has_its_known_values(x, value):
    assert at("cantor", Fraction(x)) == pytest.approx(float(Fraction(value)), abs=2**-19)


def test_cantors_function_is_flat_between_thirds_symmetric_and_like_itself():
    x = np.random.default_rng(0).uniform(size=300)
    cantor = FUNCTIONS["cantor"].formula
    np.testing.assert_allclose(cantor(1 - x), 1 - cantor(x), atol=2**-19)
    np.testing.assert_allclose(cantor(x / 3), cantor(x) / 2, atol=2**-19)
    np.testing.assert_array_equal(cantor(np.linspace(0.334, 0.666, 50)), 0.5)


@pytest.mark.parametrize(("x", "value"), [("1/3", "2/3"), ("1/2", "1/2"), ("1/4", "1/2"), ("1/6", "1/2"), ("0", "0")])
def test_takagis_function_has_its_known_values(x, value):
    assert at("takagi", Fraction(x)) == pytest.approx(float(Fraction(value)), abs=2**-19)


def test_riemanns_function_at_a_half_is_the_sum_over_odd_numbers():
    """sin(n^2 pi / 2) is 1 for odd n and 0 for even ones; the sum over all odd n is pi^2 / 8."""
    assert at("riemann", 0.5) == pytest.approx(math.pi**2 / 8 - 1 / 80, abs=1e-4)  # the tail after 40 is about 1/80


# -- splits ----------------------------------------------------------------------------------------------------


def in_units(data, split):
    """Points in the function's domain, and targets in its unit."""
    function = data.function
    points = function.low + (split.x.double().numpy() + 1) / 2 * (function.high - function.low)
    y = function.formula(*points.T)
    return y, split.y.double().squeeze(1).numpy() * data.target_unit


@pytest.mark.parametrize("name", FUNCTIONS)
def test_splits_hold_the_function_at_points_of_their_own(name):
    data = FunctionData(name, samples=100, validation=50, test=70)
    splits = [data.load().train, data.load().validation, data.load_test()]
    assert [len(s) for s in splits] == [100, 50, 70]
    assert (data.shape, data.outputs, data.loss) == ((FUNCTIONS[name].dimension,), 1, "mse")
    offsets = []
    for split in splits:
        assert (split.x.dtype, split.y.dtype) == (torch.float32, torch.float32)
        assert (split.x.shape[1:], split.y.shape[1:]) == (data.shape, (1,))
        assert -1 <= float(split.x.min()) < -0.7 and 0.7 < float(split.x.max()) <= 1
    for split in splits:
        y, handed = in_units(data, split)
        offsets.append(y - handed)
    mean = np.median(np.concatenate(offsets))
    # Inputs are rounded to float32, which the steepest of the rough functions magnify.
    assert np.median(np.abs(np.concatenate(offsets) - mean)) < 1e-3 * data.target_unit
    everything = torch.cat([s.x for s in splits])
    assert len(torch.unique(everything, dim=0)) == len(everything)


def test_training_targets_are_standardized_by_the_unit():
    data = FunctionData("exp_sin", samples=500)
    train = data.load().train
    assert float(train.y.mean()) == pytest.approx(0, abs=1e-5)
    assert float(train.y.std(correction=0)) == pytest.approx(1, rel=1e-5)
    assert data.target_unit == pytest.approx(np.std(in_units(data, train)[0]), rel=1e-5)


def test_points_are_uniform():
    x = FunctionData("products_4d", samples=2000).load().train.x.double().numpy()
    for column in x.T:
        assert stats.kstest(column, "uniform", args=(-1, 2)).pvalue > 1e-3
    assert np.abs(np.corrcoef(x.T) - np.eye(4)).max() < 0.1


def test_noise_is_on_training_targets_alone_and_relative_to_them():
    clean, noisy = FunctionData("feynman_i_13_4", 4000), FunctionData("feynman_i_13_4", 4000, noise=0.25)
    assert torch.equal(clean.load().train.x, noisy.load().train.x)
    difference = (noisy.load().train.y - clean.load().train.y).squeeze(1).numpy()
    assert difference.std() == pytest.approx(0.25, rel=0.05)
    assert abs(difference.mean()) < 0.02
    assert stats.kstest(difference / 0.25, "norm").pvalue > 1e-3
    for a, b in ((clean.load().validation, noisy.load().validation), (clean.load_test(), noisy.load_test())):
        assert torch.equal(a.y, b.y)
    assert clean.target_unit == noisy.target_unit


def test_a_seed_gives_the_same_points_and_another_seed_others():
    def points(seed, noise=0.1):
        return FunctionData("chirp", 30, noise=noise, seed=seed).load().train

    assert torch.equal(points(3).x, points(3).x) and torch.equal(points(3).y, points(3).y)
    assert not torch.equal(points(3).x, points(4).x)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"function": "chrip"}, "unknown function 'chrip'; the nearest is 'chirp'"),
        ({"samples": 1}, "samples=1"),
        ({"validation": 0}, "validation=0"),
        ({"test": 0}, "test=0"),
        ({"noise": -0.1}, "noise=-0.1"),
        ({"noise": math.inf}, "noise=inf"),
        ({"seed": -1}, "seed=-1"),
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused(settings, match):
    with pytest.raises(InputError, match=match):
        FunctionData(**settings)
