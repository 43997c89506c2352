"""Read a curve as an elementary function: y = c f(a x + b) + d, with how much of the curve that explains.

All is in float64; numbers are printed as they are, never rounded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from normact.spaces.errors import InputError, unknown_name
from normact.spaces.kan.elementary import LIBRARY, Array, Function

THRESHOLD = 0.99
"""The share of the variance that a function must explain to be a reading."""

FEWEST_POINTS = 16
"""Points that a curve must have: four numbers are fitted to it."""

PER_COMPLEXITY = 0.5
"""Powers of ten by which the unexplained variance must fall for each unit of complexity."""

EXACT = 1e-12
"""Unexplained shares below this count as equal: rounding."""

POINTS = 193
"""Of an even grid on which the first a and b are chosen."""

STARTS = 3
"""How many of a function's best grid points are refined."""

NEAR = 0.3
"""How much worse than the best function on the grid another may be to be refined."""

ROUNDS = 40
"""Of the refinement."""

SLOW = 1e-4
"""A round that takes less than this share of what is left over is the last."""


@dataclass(frozen=True)
class Reading:
    """y = c f(a x + b) + d.

    Args:
        name: of f; `0` for a constant, which is d.
        a, b, c, d: as fitted.
        r2: share of the curve's variance that is explained; 1 for a constant.
    """

    name: str
    a: float
    b: float
    c: float
    d: float
    r2: float

    @property
    def formula(self) -> str:
        """As Python, numpy and sympy read it, of x."""
        return self.of("x")

    def of(self, variable: str) -> str:
        """The formula of a variable with another name."""
        if self.name == "0":
            return repr(self.d)
        z = f"{_times(self.a)}{variable}{_plus(self.b)}"
        text = LIBRARY[self.name].text.format(z=z, part=z if z == variable else f"({z})")
        text = f"{self.c!r}{text[1:]}" if text.startswith("1/") else f"{_times(self.c)}{text}"
        return f"{text}{_plus(self.d)}"

    def __call__(self, x: Array) -> Array:
        """The fitted function."""
        if self.name == "0":
            return np.full_like(x, self.d)
        return self.c * LIBRARY[self.name].value(self.a * x + self.b) + self.d


@dataclass(frozen=True)
class Refused:
    """No function explains the curve.

    Args:
        reason: one line.
        best: what comes nearest, where there is anything.
    """

    reason: str
    best: Reading | None = None


def fit(x: Array, y: Array, library: Sequence[str] = tuple(LIBRARY), threshold: float = THRESHOLD) -> Reading | Refused:
    """The elementary function that a curve is.

    Of those that explain at least `threshold` of the variance, the one with the smallest
    log10(1 - R2) + complexity / 2: a unit of complexity must divide what is left over by 3. Poles and the ends of a
    domain are kept outside of the curve's range.

    Args:
        x: (N,), where the curve is known, not all the same.
        y: (N,), its values.
        library: functions to try, by name, see `LIBRARY`.
        threshold: R2 below which nothing is read, from 0 to 1.

    Raises:
        InputError: other shapes, fewer than 16 points, no range, an unknown function or a threshold out of range.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    _check(x, y, threshold)
    functions = [_find(name) for name in library]
    broken = int(np.sum(~np.isfinite(x) | ~np.isfinite(y)))
    if broken:
        return Refused(f"{broken} of {len(y)} values are not finite")
    if np.ptp(y) <= EXACT * max(1.0, float(np.abs(y).max())):
        return Reading("0", 0.0, 0.0, 0.0, float(y.mean() if np.ptp(y) else y[0]), 1.0)
    with np.errstate(all="ignore"):
        readings = _fitted(x, y, functions)
    if not readings:
        return Refused("no function of the library can be fitted")
    enough = [reading for reading in readings if reading.r2 >= threshold]
    if enough:
        return min(enough, key=_badness)
    best = max(readings, key=lambda reading: reading.r2)
    return Refused(f"no elementary function fits: the best, {best.name}, has R2 {best.r2!r}", best)


def _check(x: Array, y: Array, threshold: float) -> None:
    if x.ndim != 1 or x.shape != y.shape or len(x) < FEWEST_POINTS:
        raise InputError(
            f"a curve is two vectors of the same {FEWEST_POINTS} or more points, got shapes {x.shape} and {y.shape}"
        )
    if np.isfinite(x).all() and np.ptp(x) == 0:
        raise InputError(f"a curve needs a range of x, and all {len(x)} are {float(x[0])!r}")
    if not 0 <= threshold <= 1:
        raise InputError(f"threshold is a share of the variance, from 0 to 1, got {threshold}")


def _find(name: str) -> Function:
    if name not in LIBRARY:
        raise unknown_name("elementary function", name, LIBRARY)
    return LIBRARY[name]


def _badness(reading: Reading) -> float:
    """Small for what explains much by little; of a sine and a cosine, which always tie, for the smaller phase."""
    left = math.log10(max(1 - reading.r2, EXACT))
    phase = abs(reading.b) if reading.name in ("sin", "cos") else 0.0
    return left + PER_COMPLEXITY * LIBRARY[reading.name].complexity + 1e-6 * phase


@lru_cache(maxsize=64)
def _grid(function: Function) -> tuple[Array, Array]:
    """The starts at which f exists and is not flat, and f there: (G', POINTS), of mean 0 and norm 1."""
    z = function.starts[:, :1] * np.linspace(-1, 1, POINTS) + function.starts[:, 1:]
    f = np.where((z >= function.domain[0]) & (z <= function.domain[1]), function.value(z), np.nan)
    f -= f.mean(1, keepdims=True)
    norms = np.sqrt((f * f).sum(1, keepdims=True))
    keep = np.isfinite(norms[:, 0]) & (norms[:, 0] > 0)
    return function.starts[keep], f[keep] / norms[keep]


def _starts(function: Function, x: Array, y: Array) -> list[tuple[float, Array]]:
    """R2 and (a, b) of a function's best grid points, best first, each with another frequency, place or rate."""
    even = np.interp(np.linspace(x.min(), x.max(), POINTS), x, y)
    even = (even - even.mean()) / (np.linalg.norm(even - even.mean()) + 1e-300)
    pairs, features = _grid(function)
    scores = (features @ even) ** 2
    found: dict[float, tuple[float, Array]] = {}
    for index in np.argsort(-scores)[: 32 * STARTS]:
        found.setdefault(float(pairs[index, int("a" not in function.free)]), (float(scores[index]), pairs[index]))
    return list(found.values())[:STARTS]


def _fitted(x: Array, y: Array, functions: Sequence[Function]) -> list[Reading]:
    """The best reading by each function that comes near the best: on a grid, then by Levenberg and Marquardt."""
    order = np.argsort(x, kind="stable")
    x, y = x[order], y[order]
    middle, half = float(x.max() + x.min()) / 2, float(np.ptp(x)) / 2
    starts = {function: _starts(function, x, y) for function in functions}
    nearest = max((score for found in starts.values() for score, _ in found), default=0.0)
    readings = []
    for function, found in starts.items():
        near = [start for score, start in found if score >= nearest - NEAR]
        own: list[Reading] = []
        while near and not (own and own[-1].r2 > 1 - EXACT):
            a, b = _refined(function, (x - middle) / half, y, near.pop(0))
            reading = _reading(function, x, y, a / half, b - a * middle / half)
            own += [reading] if reading else []
        readings += [max(own, key=lambda reading: reading.r2)] if own else []
    return readings


def _refined(function: Function, t: Array, y: Array, start: Array) -> tuple[float, float]:
    free = ["ab".index(letter) for letter in function.free]
    p, damping = start.copy(), 1e-3
    if not free:
        return float(p[0]), float(p[1])
    rates = np.abs(function.starts[:, 0])
    slowest, fastest = rates.min(), 1.5 * rates.max()  # slower ones are lines or parabolas, faster ones jumps
    y = y - y.mean()
    rest = _left_over(function, t, y, p)
    for _ in range(ROUNDS):
        slope = np.stack([_slope(function, t, y, p, axis) for axis in free], 1)
        if not np.isfinite(slope).all():
            break
        normal, gradient = slope.T @ slope, slope.T @ rest
        step = np.zeros(2)
        step[free] = _solved(normal + damping * np.diag(np.diag(normal)), -gradient)
        tried = _left_over(function, t, y, p + step)
        if slowest <= abs(p[0] + step[0]) <= fastest and tried @ tried < rest @ rest:
            slow = tried @ tried > (1 - SLOW) * (rest @ rest)
            p, rest, damping = p + step, tried, max(damping / 10, 1e-15)
            if slow:
                break
        elif damping > 1e6:
            break
        else:
            damping *= 10
    return float(p[0]), float(p[1])


def _solved(matrix: Array, vector: Array) -> Array:
    """Of one or two equations; not finite where they have no solution."""
    if len(vector) == 1:
        return vector / matrix[0]
    (p, q), (r, s) = matrix
    return np.array([s * vector[0] - q * vector[1], p * vector[1] - r * vector[0]]) / (p * s - q * r)


def _left_over(function: Function, t: Array, y: Array, p: Array) -> Array:
    """(N,) y, of mean 0, minus the best c f + d; not finite where f does not exist, or is all but a constant."""
    z = p[0] * t + p[1]
    low, high = function.domain
    if (low > -math.inf and z.min() < low) or (high < math.inf and z.max() > high):
        return np.full_like(y, np.nan)
    f = function.value(z)
    f = f - f.sum() / len(f)
    return y - (f @ y) / (f @ f) * f


def _slope(function: Function, t: Array, y: Array, p: Array, axis: int) -> Array:
    """(N,) the derivative of what is left over; from one side where the other has left the domain."""
    step = np.zeros(2)
    step[axis] = 1e-6 * (1 + abs(p[axis]))
    above, below, width = _left_over(function, t, y, p + step), _left_over(function, t, y, p - step), 2.0
    if not math.isfinite(above[0]):
        above, width = _left_over(function, t, y, p), 1.0
    elif not math.isfinite(below[0]):
        below, width = _left_over(function, t, y, p), 1.0
    return (above - below) / (width * step[axis])


def _reading(function: Function, x: Array, y: Array, a: float, b: float) -> Reading | None:
    """The reading for some a and b, in a plain form; None where it is not finite."""
    best = _measured(function, x, y, *_plain(function, a, b, x))
    if best is None:
        return None
    for name in ("b", "d"):  # what is as good without is written without
        simpler = replace(best, b=0.0) if name == "b" else replace(best, d=0.0)
        r2 = _r2(y, simpler(x))
        if r2 >= best.r2 - EXACT:
            best = replace(simpler, r2=r2)
    return best


def _measured(function: Function, x: Array, y: Array, a: float, b: float) -> Reading | None:
    f = function.value(a * x + b)
    spread = float(np.std(f))
    if not math.isfinite(spread) or not spread > 1e-9 * float(np.abs(f).max()):  # flat, or lost in a large constant
        return None
    c = float((f - f.mean()) @ (y - y.mean()) / ((f - f.mean()) @ (f - f.mean())))
    d = float(y.mean() - c * f.mean())
    return Reading(function.name, a, b, c, d, _r2(y, c * f + d)) if math.isfinite(c * d) else None


def _r2(y: Array, fitted: Array) -> float:
    centered = y - y.mean()
    return 1 - float((y - fitted) @ (y - fitted)) / float(centered @ centered)


def _plain(function: Function, a: float, b: float, x: Array) -> tuple[float, float]:
    """The same function of x up to c and d: a is 1 or -1, or b is 0, where the other is enough."""
    if function.name == "x" or function.free == "a":
        return (1.0 if function.name == "x" else a), 0.0
    if "a" not in function.free:
        a, b = math.copysign(1.0, a), b / abs(a)
    if function.name in ("sin", "cos"):
        b = math.remainder(b, math.pi)  # the other half turn is a sign of c
    if function.domain[0] == 0:  # rounding must not take the end of the curve out of the domain
        return a, max(b, float(-(a * x).min()))
    over = float(np.abs(a * x + b).max()) / function.domain[1]
    return (a / over, b / over) if over > 1 else (a, b)


def _times(number: float) -> str:
    return "" if number == 1 else "-" if number == -1 else f"{number!r}*"


def _plus(number: float) -> str:
    if number == 0:
        return ""
    return f" + {number!r}" if number > 0 else f" - {-number!r}"
