"""The elementary functions as which a curve can be read, each with a grid of scales and shifts to try.

The functions and their complexities are those of pykan's symbolic library (KindXiaoming/pykan, kan/utils.py), and the
sigmoid and what a KAN's base branch may be.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Function:
    """An elementary function.

    Args:
        name: of it.
        complexity: what it costs against others that fit as well.
        value: of z.
        text: as Python, numpy and sympy write it; `{z}` stands for z, `{part}` for z where it needs parentheses.
        starts: (G, 2) pairs (a, b) to try, for arguments x from -1 to 1.
        free: which of a and b are refined; the other is as it starts, for it could be had by c, d or the other.
        domain: between which z the function exists.
    """

    name: str
    complexity: int
    value: Callable[[Array], Array]
    text: str
    starts: Array
    free: str = "ab"
    domain: tuple[float, float] = (-math.inf, math.inf)


def _pairs(a: Sequence[float] | Array, b: Sequence[float] | Array) -> Array:
    """All (a, b)."""
    return np.stack(np.meshgrid(np.asarray(a, float), np.asarray(b, float), indexing="ij"), -1).reshape(-1, 2)


def _inside(domain: float, count: int = 24) -> Array:
    """(a, b) that take [-1, 1] to intervals within [-domain, domain], close to its ends too."""
    ends = domain * np.tanh(np.linspace(-3.5, 3.5, count)) / np.tanh(3.5)
    low, high = np.meshgrid(ends, ends, indexing="ij")
    keep = high > low
    return np.stack([(high - low)[keep] / 2, (high + low)[keep] / 2], -1)


def _bumps(signs: Sequence[float] = (1.0,)) -> Array:
    """(a, b) of steps and bumps, from wide to narrow ones, around places inside and outside of [-1, 1]."""
    places = np.concatenate([np.linspace(-1, 1, 65), np.linspace(1.1, 4, 12), -np.linspace(1.1, 4, 12)])
    grid = _pairs(np.geomspace(0.15, 60, 22), places)
    grid[:, 1] *= -grid[:, 0]
    return np.concatenate([grid * sign for sign in signs])


_FAR = np.sinh(np.linspace(-3.5, 3.5, 71))
_BEYOND = 1 + np.concatenate([[0.0], np.geomspace(1e-4, 15, 40)])
_POLES = np.concatenate([_BEYOND[1:], -_BEYOND[1:]])
_KINKS = np.linspace(-0.99, 0.99, 100)
_SIDES = _pairs([1.0, -1.0], _BEYOND)
_WAVES = _pairs(np.concatenate([np.linspace(0.2, 40, 200), np.linspace(40.25, 90, 200)]), np.arange(8) * math.pi / 8)


def _power(n: int, complexity: int) -> Function:
    name = "x" if n == 1 else f"x^{n}"
    starts = _pairs([1.0], [0.0] if n == 1 else _FAR)
    return Function(
        name, complexity, lambda z: z**n, "{part}" if n == 1 else f"{{part}}**{n}", starts, "" if n == 1 else "b"
    )


def _inverse(n: int, complexity: int) -> Function:
    name, text = ("1/x", "1/{part}") if n == 1 else (f"1/x^{n}", f"1/{{part}}**{n}")
    return Function(name, complexity, lambda z: z ** float(-n), text, _pairs([1.0], _POLES), "b")


_POSITIVE = (0.0, math.inf)
_LIBRARY = [
    _power(1, 1),
    _power(2, 2),
    _power(3, 3),
    _power(4, 3),
    _power(5, 3),
    _inverse(1, 2),
    _inverse(2, 2),
    _inverse(3, 3),
    _inverse(4, 4),
    _inverse(5, 5),
    Function("sqrt", 2, np.sqrt, "sqrt({z})", _SIDES, "b", _POSITIVE),
    Function("x^1.5", 4, lambda z: z**1.5, "{part}**1.5", _SIDES, "b", _POSITIVE),
    Function("1/sqrt", 2, lambda z: z**-0.5, "1/sqrt({z})", _SIDES, "b", _POSITIVE),
    Function(
        "exp", 2, np.exp, "exp({z})", _pairs([*np.geomspace(0.1, 30, 30), *-np.geomspace(0.1, 30, 30)], [0.0]), "a"
    ),
    Function("log", 2, np.log, "log({z})", _SIDES, "b", _POSITIVE),
    Function("abs", 3, np.abs, "abs({z})", _pairs([1.0], _KINKS), "b"),
    Function("sin", 2, np.sin, "sin({z})", _WAVES),
    Function("cos", 2, np.cos, "cos({z})", _WAVES),
    Function("tan", 3, np.tan, "tan({z})", _inside(math.pi / 2), "ab", (-math.pi / 2, math.pi / 2)),
    Function("tanh", 3, np.tanh, "tanh({z})", _bumps()),
    Function("sgn", 3, np.sign, "sign({z})", _pairs([1.0], np.linspace(-1, 1, 401)[1:-1]), ""),
    Function("arcsin", 4, np.arcsin, "asin({z})", _inside(1.0), "ab", (-1.0, 1.0)),
    Function("arccos", 4, np.arccos, "acos({z})", _inside(1.0), "ab", (-1.0, 1.0)),
    Function("arctan", 4, np.arctan, "atan({z})", _bumps()),
    Function("arctanh", 4, np.arctanh, "atanh({z})", _inside(1.0), "ab", (-1.0, 1.0)),
    Function("gaussian", 3, lambda z: np.exp(-(z**2)), "exp(-{part}**2)", _bumps()),
    Function("sigmoid", 4, lambda z: 0.5 + 0.5 * np.tanh(z / 2), "1/(1 + exp(-{part}))", _bumps()),
    Function("relu", 3, lambda z: np.maximum(z, 0.0), "({part} + abs({z}))/2", _pairs([1.0, -1.0], _KINKS), "b"),
    Function("silu", 4, lambda z: z * (0.5 + 0.5 * np.tanh(z / 2)), "{part}/(1 + exp(-{part}))", _bumps((1.0, -1.0))),
]

LIBRARY: dict[str, Function] = {function.name: function for function in _LIBRARY}
"""The functions by name; a constant, `0`, is found without one."""
