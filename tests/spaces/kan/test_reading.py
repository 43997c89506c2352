"""Curves made of elementary functions are read back; others are refused."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from normact.spaces import InputError
from normact.spaces.kan.elementary import LIBRARY
from normact.spaces.kan.reading import Reading, Refused, fit

X = np.linspace(-2.0, 2.0, 257)

WRITTEN = {  # each function by an independent formula, on [-2, 2]
    "0": lambda x: 0 * x + 3.25,
    "x": lambda x: -3 * x + 1,
    "x^2": lambda x: 2 * (x - 0.3) * (x - 0.3) - 1,
    "x^3": lambda x: x * x * x + 0.5,
    "x^4": lambda x: -0.1 * np.power(x + 0.2, 4),
    "x^5": lambda x: np.power(x - 0.1, 5),
    "1/x": lambda x: 2 / (x + 2.5),
    "1/x^2": lambda x: 1 / ((x - 2.3) * (x - 2.3)),
    "1/x^3": lambda x: -1 / np.power(x + 3, 3),
    "1/x^4": lambda x: 1 / np.power(x + 2.6, 4),
    "1/x^5": lambda x: 1 / np.power(2.7 - x, 5),
    "sqrt": lambda x: 3 * np.power(x + 2.0, 0.5),
    "x^1.5": lambda x: np.power(2.1 - x, 1.5),
    "1/sqrt": lambda x: np.power(x + 2.2, -0.5),
    "exp": lambda x: 0.1 * np.power(math.e, -1.5 * x) + 7,
    "log": lambda x: -2 * np.log2(2.05 - x),
    "abs": lambda x: np.maximum(x - 0.4, 0.4 - x),
    "sin": lambda x: 0.5 * np.sin(3 * x + 0.2) + 1,
    "cos": lambda x: 4 * np.cos(5 * x),
    "tan": lambda x: np.sin(0.7 * x) / np.cos(0.7 * x),
    "tanh": lambda x: 1 - 2 / (np.exp(4 * x - 1) + 1),
    "sgn": lambda x: np.where(x > 0.3, 2.0, -1.0),
    "arcsin": lambda x: np.arctan2(0.49 * x, np.sqrt(1 - (0.49 * x) ** 2)),
    "arctan": lambda x: np.arctan2(3 * x + 1, 1),
    "arctanh": lambda x: 0.5 * np.log((1 + 0.48 * x) / (1 - 0.48 * x)),
    "gaussian": lambda x: 2 * np.power(math.e, -((3 * x - 1) ** 2)),
    "relu": lambda x: np.where(x > 0.25, x - 0.25, 0),
    "silu": lambda x: 3 * x / (1 + np.exp(-2 * x)),
}
SAME = {"arccos": "arcsin", "sigmoid": "tanh"}  # the same curves up to c and d, which cost more or come later

NAMES = {name: getattr(np, name) for name in ("sin", "cos", "tan", "tanh", "exp", "log", "sqrt", "abs", "sign")}
NAMES |= {"asin": np.arcsin, "acos": np.arccos, "atan": np.arctan, "atanh": np.arctanh}


def evaluated(formula, x, variable="x"):
    """A formula as Python reads it; a constant as a vector."""
    return eval(formula, {"__builtins__": {}}, {**NAMES, variable: x}) + 0 * x


def test_every_function_is_written_down_here():
    assert set(WRITTEN) | set(SAME) == {*LIBRARY, "0"}


@pytest.mark.parametrize("name", WRITTEN)
def test_each_function_is_read_back_by_its_name(name):
    y = WRITTEN[name](X)
    reading = fit(X, y)
    assert isinstance(reading, Reading)
    assert reading.name == name
    assert reading.r2 > 1 - 1e-9
    np.testing.assert_allclose(reading(X), y, atol=1e-5 * max(np.ptp(y), 1))
    np.testing.assert_allclose(evaluated(reading.formula, X), reading(X), rtol=1e-9, atol=1e-9 * np.abs(y).max())
    assert evaluated(reading.of("u"), X, "u") == pytest.approx(evaluated(reading.formula, X), nan_ok=False)


@pytest.mark.parametrize(("name", "simpler"), SAME.items())
def test_functions_that_are_another_up_to_scale_and_shift(name, simpler):
    y = {"arccos": lambda x: np.arccos(0.3 * x - 0.1), "sigmoid": lambda x: 1 / (1 + np.exp(1 - 3 * x))}[name](X)
    assert fit(X, y).name == simpler
    reading = fit(X, y, [name])
    assert reading.name == name
    assert reading.r2 > 1 - 1e-9
    np.testing.assert_allclose(evaluated(reading.formula, X), y, atol=1e-6)


nonzero = st.floats(0.1, 5).flatmap(lambda size: st.sampled_from([size, -size]))
COMMON = [
    ("x", lambda a, b, x: x),
    ("x^2", lambda a, b, x: (x - b) ** 2),
    ("x^3", lambda a, b, x: (x - b) ** 3),
    ("exp", lambda a, b, x: np.exp(a * x)),
    ("sin", lambda a, b, x: np.sin(a * x + b)),
    ("tanh", lambda a, b, x: np.tanh(a * (x - b))),
    ("gaussian", lambda a, b, x: np.exp(-((a * (x - b)) ** 2))),
    ("1/x", lambda a, b, x: 1 / (x - 1.2 - abs(b))),
    ("log", lambda a, b, x: np.log(x + 1.2 + abs(b))),
    ("sqrt", lambda a, b, x: np.sqrt(1 + abs(b) - x)),
    ("abs", lambda a, b, x: np.abs(x - b)),
    ("arctan", lambda a, b, x: np.arctan(a * (x - b))),
]


@settings(max_examples=24)
@given(
    st.sampled_from(COMMON),
    st.floats(1.2, 6),
    st.floats(-0.6, 0.6),
    nonzero,
    st.floats(-3, 3),
    st.floats(-50, 50),
    st.floats(0.1, 30),
)
def test_a_function_of_any_scale_anywhere_is_explained(function, a, b, c, d, middle, half):
    name, f = function
    x = middle + half * np.linspace(-1, 1, 129)
    y = c * f(a, b, np.linspace(-1, 1, 129)) + d
    reading = fit(x, y)
    assert isinstance(reading, Reading)
    assert reading.r2 > 0.999999
    assert reading.name == name or (name, reading.name) == ("sin", "cos")
    np.testing.assert_allclose(evaluated(reading.formula, x), reading(x), rtol=1e-6, atol=1e-6 * (abs(c) + abs(d)))


@settings(max_examples=20)
@given(st.floats(0.5, 60), st.floats(-math.pi, math.pi), nonzero)
def test_a_sine_of_any_frequency(frequency, phase, c):
    x = np.linspace(-1.0, 1.0, 257)
    reading = fit(x, c * np.sin(frequency * x + phase), ["sin"])
    assert reading.r2 > 1 - 1e-9
    assert reading.a == pytest.approx(frequency, rel=1e-5)
    assert abs(reading.c) == pytest.approx(abs(c), rel=1e-3)
    assert abs(reading.b) <= math.pi / 2


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("count", [32, 257])
def test_noise_is_refused_with_what_comes_nearest(seed, count):
    y = np.random.default_rng(seed).normal(size=count)
    refused = fit(np.linspace(-1, 1, count), y)
    assert isinstance(refused, Refused)
    assert refused.best.r2 < 0.9
    assert refused.reason == f"no elementary function fits: the best, {refused.best.name}, has R2 {refused.best.r2!r}"


def test_the_threshold_decides():
    y = np.sin(3 * X) + 0.05 * np.random.default_rng(0).normal(size=len(X))
    reading = fit(X, y)
    assert reading.name == "sin"
    assert 0.99 < reading.r2 < 0.999
    refused = fit(X, y, threshold=0.999)
    assert isinstance(refused, Refused)
    assert refused.best == reading
    assert fit(X, np.random.default_rng(1).normal(size=len(X)), threshold=0.0).r2 < 0.9


def test_a_function_between_two_of_the_library_is_refused():
    assert isinstance(fit(X, np.sin(4 * X) + X**2), Refused)


def test_of_functions_that_fit_as_well_the_simpler():
    small = np.linspace(-0.01, 0.01, 100)
    assert fit(small, np.sin(small)).name == "x"
    assert fit(X, X**2 + 1e-7 * np.sin(40 * X)).name == "x^2"
    assert fit(X, np.exp(X), ["x^5", "x^4", "exp"]).name == "exp"


@pytest.mark.parametrize("name", ["x^2", "gaussian", "abs", "cos", "tanh", "sin", "x^3", "arctan"])
def test_symmetric_curves_are_read_without_a_shift(name):
    """An even or odd function on a symmetric range: b is 0, or rounding."""
    y = {"abs": np.abs, "gaussian": lambda x: np.exp(-x * x), "x^2": np.square, "x^3": lambda x: x**3}.get(name)
    y = (y or getattr(np, name))(X)
    reading = fit(X, y)
    assert reading.name == name
    assert abs(reading.b) < 1e-7
    mirrored = fit(X, y[::-1])
    assert mirrored.name == name
    assert mirrored.r2 == pytest.approx(reading.r2, abs=1e-9)


def test_nothing_is_rounded():
    reading = fit(X, 0.1234567890123 * X + 0.9876543210987)
    assert float(reading.formula.split("*")[0]) == reading.c
    assert abs(reading.c - 0.1234567890123) < 1e-15
    assert repr(reading.d) in reading.formula


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(bad):
    y = np.sin(X)
    y[[3, 5]] = bad
    assert fit(X, y) == Refused("2 of 257 values are not finite")
    x = X.copy()
    x[0] = bad
    assert fit(x, np.sin(X)) == Refused("1 of 257 values are not finite")


@pytest.mark.parametrize("value", [0.0, -2.5, 1e-30, 1e30])
def test_a_constant_is_a_constant(value):
    reading = fit(X, np.full_like(X, value))
    assert (reading.name, reading.d, reading.r2) == ("0", value, 1.0)
    assert float(reading.formula) == value


def test_points_need_not_be_even_or_in_order():
    rng = np.random.default_rng(3)
    x = rng.permutation(np.sort(rng.uniform(-3, 1, 200)))
    reading = fit(x, 2 * np.sin(2 * x + 0.5))
    assert reading.name == "sin"
    assert reading.r2 > 1 - 1e-12


@pytest.mark.parametrize("name", ["sqrt", "log", "1/x", "1/sqrt", "x^1.5", "tan", "arcsin", "arctanh"])
def test_what_is_read_exists_on_the_whole_curve(name):
    """Even fitted to what it is not: no pole and no end of the domain within the range."""
    for y in (np.exp(3 * X), np.abs(X), X**3, np.sign(X)):
        reading = fit(X, y, [name], threshold=0.0)
        assert np.isfinite(evaluated(reading.formula, X)).all()
        inner = np.linspace(X[0], X[-1], 5000)
        assert np.isfinite(reading(inner)).all()
        assert np.ptp(reading(inner)) < 10 * np.ptp(y)


BAD = [
    ((X, X[:-1]), {}, r"got shapes \(257,\) and \(256,\)"),
    ((X[:10], X[:10]), {}, "16 or more points"),
    ((np.zeros(20), np.arange(20.0)), {}, "needs a range of x, and all 20 are 0.0"),
    ((X, X), {"library": ["sinus"]}, "unknown elementary function 'sinus'; the nearest is 'sin'"),
    ((X, X), {"threshold": 1.5}, "from 0 to 1, got 1.5"),
]


@pytest.mark.parametrize(("curve", "settings_", "message"), BAD, ids=[message[:30] for *_, message in BAD])
def test_bad_input(curve, settings_, message):
    with pytest.raises(InputError, match=message):
        fit(*curve, **settings_)
