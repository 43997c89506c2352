"""Functions to fit: a suite of smooth and rough formulas of one to five variables."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from normact.search.data.base import Data, Loss, Split, Splits
from normact.spaces.errors import InputError, unknown_name

Formula = Callable[..., np.ndarray]
"""Values (n,) from one array (n,) per variable, in float64."""

PI = math.pi


@dataclass(frozen=True)
class Function:
    """A formula to fit.

    Args:
        formula: of the variables.
        dimension: how many variables there are.
        low: where each variable begins,
        high: and where it ends.
        rough: not differentiable, or not anywhere; else smooth.
    """

    formula: Formula
    dimension: int
    low: float = 0.0
    high: float = 1.0
    rough: bool = False


def _exp_sin(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.exp(np.sin(PI * x) + y**2)


def _damped_wave(x: np.ndarray) -> np.ndarray:
    return np.exp(-4 * x**2) * np.sin(6 * PI * x)


def _chirp(x: np.ndarray) -> np.ndarray:
    return np.sin(4 * PI * x**2) * np.cos(2 * PI * x)


def _chirp_2d(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.sin(3 * PI * x**2) * np.cos(3 * PI * y)


def _damped_wave_3d(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    u, v = x - 0.5, y - 0.5
    return np.exp(-3 * (u**2 + v**2)) * np.sin(4 * PI * z + 10 * u * v)


def _products_4d(x: np.ndarray, y: np.ndarray, z: np.ndarray, w: np.ndarray) -> np.ndarray:
    return np.sin(3 * PI * (x * y + z)) * np.cos(2 * PI * y * w)


def _magnetic(b: np.ndarray, a: np.ndarray, t: np.ndarray) -> np.ndarray:
    return b * (1 + a * np.cos(t))


def _kinetic(m: np.ndarray, v: np.ndarray, u: np.ndarray, w: np.ndarray) -> np.ndarray:
    return m * (v**2 + u**2 + w**2) / 2


def _fast_waves_2d(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.sin(20 * PI * x) * np.cos(18 * PI * y)


def _steep_3d(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    return np.tanh(50 * (x - y + z / 2 - 0.5))


def _cyclic_5d(*x: np.ndarray) -> np.ndarray:
    point = np.stack(x)
    neighbours = (point * np.roll(point, -1, 0)).sum(0)
    waves = np.sin(3 * PI * neighbours) + np.cos(2 * PI * (x[0] + x[2] - x[4])) / 2
    return waves / (1 + (point**2).sum(0))


def _weierstrass(x: np.ndarray) -> np.ndarray:
    return np.sum([0.5**n * np.cos(5**n * PI * x) for n in range(10)], axis=0)


def _weierstrass_2d(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.sum([0.5**n * np.cos(3**n * PI * x) * np.cos(3**n * PI * y) for n in range(5)], axis=0)


def _takagi(x: np.ndarray) -> np.ndarray:
    return np.sum([np.abs(2**n * x - np.round(2**n * x)) / 2**n for n in range(20)], axis=0)


def _takagi_2d(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return _takagi(x) + _takagi(y)


def _cantor(x: np.ndarray) -> np.ndarray:
    value, rest, inside = np.zeros_like(x), x, np.ones_like(x)
    for n in range(1, 21):
        digit = np.minimum(np.floor(3 * rest), 2)  # of x in base 3; x = 1 is 0.222...
        value = value + inside * (digit >= 1) / 2**n
        inside = inside * (digit != 1)
        rest = 3 * rest - digit
    return value


def _riemann(x: np.ndarray) -> np.ndarray:
    return np.sum([np.sin(n**2 * PI * x) / n**2 for n in range(1, 41)], axis=0)


def _brownian_2d(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.sum([0.5**i * np.sin(2**i * PI * x) * np.cos(2**i * PI * y) for i in range(6)], axis=0)


def _kiesswetter_2d(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.sum([_zigzag(4**n * x) * _zigzag(4**n * y) / 4**n for n in range(12)], axis=0)


def _zigzag(x: np.ndarray) -> np.ndarray:
    return np.abs(x - np.floor(x) - 0.5) - 0.25


FUNCTIONS: dict[str, Function] = {
    "exp_sin": Function(_exp_sin, 2, -1.0, 1.0),
    "damped_wave": Function(_damped_wave, 1),
    "chirp": Function(_chirp, 1),
    "chirp_2d": Function(_chirp_2d, 2),
    "damped_wave_3d": Function(_damped_wave_3d, 3),
    "products_4d": Function(_products_4d, 4),
    "feynman_iii_17_37": Function(_magnetic, 3),
    "feynman_i_13_4": Function(_kinetic, 4),
    "fast_waves_2d": Function(_fast_waves_2d, 2),
    "steep_3d": Function(_steep_3d, 3),
    "cyclic_5d": Function(_cyclic_5d, 5),
    "weierstrass": Function(_weierstrass, 1, rough=True),
    "takagi": Function(_takagi, 1, rough=True),
    "cantor": Function(_cantor, 1, rough=True),
    "riemann": Function(_riemann, 1, rough=True),
    "weierstrass_2d": Function(_weierstrass_2d, 2, rough=True),
    "takagi_2d": Function(_takagi_2d, 2, rough=True),
    "brownian_2d": Function(_brownian_2d, 2, rough=True),
    "kiesswetter_2d": Function(_kiesswetter_2d, 2, rough=True),
}
"""By name. Sources: `exp_sin` is the first example of pykan (KindXiaoming/pykan); the others are those of All-KAN's
function fitting (hoangthangta/All-KAN, run_ff.py), with Cantor's function as it is defined elsewhere:

    exp_sin            exp(sin(pi x) + y^2), on [-1, 1]^2; all others on [0, 1]^d
    damped_wave        exp(-4 x^2) sin(6 pi x)
    chirp              sin(4 pi x^2) cos(2 pi x)
    chirp_2d           sin(3 pi x^2) cos(3 pi y)
    damped_wave_3d     exp(-3 (u^2 + v^2)) sin(4 pi z + 10 u v), u = x - 1/2, v = y - 1/2
    products_4d        sin(3 pi (x y + z)) cos(2 pi y w)
    feynman_iii_17_37  b (1 + a cos t)
    feynman_i_13_4     m (v^2 + u^2 + w^2) / 2
    fast_waves_2d      sin(20 pi x) cos(18 pi y)
    steep_3d           tanh(50 (x - y + z / 2 - 1/2))
    cyclic_5d          (sin(3 pi s) + cos(2 pi (x1 + x3 - x5)) / 2) / (1 + |x|^2), s = x1 x2 + x2 x3 + ... + x5 x1
    weierstrass        sum of 0.5^n cos(5^n pi x), n = 0 to 9
    takagi             sum of 2^-n |2^n x - nearest integer|, n = 0 to 19
    cantor             Cantor's function, to 20 digits in base 3
    riemann            sum of sin(n^2 pi x) / n^2, n = 1 to 40
    weierstrass_2d     sum of 0.5^n cos(3^n pi x) cos(3^n pi y), n = 0 to 4
    takagi_2d          takagi(x) + takagi(y)
    brownian_2d        sum of 0.5^i sin(2^i pi x) cos(2^i pi y), i = 0 to 5: in the manner of fractional Brownian motion
    kiesswetter_2d     sum of 4^-n t(4^n x) t(4^n y), n = 0 to 11, t(x) = |x - floor(x) - 1/2| - 1/4
"""


class FunctionData(Data):
    """Points of a function, drawn uniformly from its domain; `x` (n, d), `y` (n, 1), loss `mse`.

    Inputs are handed over scaled from the domain to [-1, 1]; targets less their mean, over their standard deviation
    (of the training points, before noise), which is `target_unit`: RMSE is reported in the function's own unit. All
    three splits have points of their own; validation and test targets have no noise.

    Args:
        function: a name in `FUNCTIONS`.
        samples: points to train on.
        noise: standard deviation of the normal noise on training targets, relative to that of the targets.
        validation: points to validate on.
        test: points that the rerank alone reads.
        seed: of the points and the noise.

    Raises:
        InputError: an unknown function, less than 2 points in a split, or a noise or seed below 0.
    """

    loss: Loss = "mse"

    def __init__(
        self,
        function: str = "exp_sin",
        samples: int = 1024,
        noise: float = 0.0,
        validation: int = 1024,
        test: int = 4096,
        seed: int = 0,
    ) -> None:
        if function not in FUNCTIONS:
            raise unknown_name("function", function, FUNCTIONS)
        if min(samples, validation, test) < 2:
            raise InputError(
                f"a function needs at least 2 points in each split, got samples={samples}, validation={validation}, "
                f"test={test}"
            )
        if not 0 <= noise < math.inf or seed < 0:
            raise InputError(f"noise and seed must be finite and at least 0, got noise={noise}, seed={seed}")
        self.function = FUNCTIONS[function]
        self.name = f"function {function}"
        self.sizes = (samples, validation, test)
        self.noise = noise
        self.seed = seed

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.function.dimension,)

    @property
    def outputs(self) -> int:
        return 1

    @property
    def target_unit(self) -> float:
        return self._moments[1]

    @cached_property
    def _moments(self) -> tuple[float, float]:
        """Mean and standard deviation of the training targets without noise."""
        y = self._points(0)[1]
        return float(y.mean()), float(y.std())

    def load(self) -> Splits:
        return self._splits

    @cached_property
    def _splits(self) -> Splits:
        return Splits(self._split(0, self.noise), self._split(1))

    def load_test(self) -> Split:
        return self._split(2)

    def _points(self, part: int) -> tuple[np.ndarray, np.ndarray]:
        """Points (n, d) in the unit cube, and the function (n,) there."""
        unit = np.random.default_rng([self.seed, part]).uniform(size=(self.sizes[part], self.function.dimension))
        low, high = self.function.low, self.function.high
        return unit, self.function.formula(*(low + (high - low) * unit).T)

    def _split(self, part: int, noise: float = 0.0) -> Split:
        unit, y = self._points(part)
        mean, std = self._moments
        y = (y - mean) / std + noise * np.random.default_rng([self.seed, 3]).standard_normal(len(y))
        return Split(torch.from_numpy(2 * unit - 1).float(), torch.from_numpy(y).float().unsqueeze(1))
