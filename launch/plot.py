"""A curve in a terminal: dots of Braille cells, or stars where those cannot be shown."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

WIDTH, HEIGHT = 56, 9
"""Cells of a plot, without its labels."""

_BRAILLE = np.array([[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]])
"""The bit of each dot of a cell, four rows of two (Unicode, Braille Patterns)."""


def plot(x: NDArray[np.float64], y: NDArray[np.float64], variable: str = "x", ascii: bool = False) -> str:
    """The curve through (x, y), its ends and extremes as labels.

    Args:
        x: (N,) rising.
        y: (N,) finite.
        variable: name of x.
        ascii: no other characters than ASCII's.
    """
    down, across = (1, 1) if ascii else (4, 2)
    dots = _dots(x, y, HEIGHT * down, WIDTH * across)
    if ascii:
        rows = ["".join("*" if dot else " " for dot in row) for row in dots]
    else:
        cells = dots.reshape(HEIGHT, 4, WIDTH, 2).transpose(0, 2, 1, 3)
        rows = ["".join(_cell(int((cell * _BRAILLE).sum())) for cell in row) for row in cells]
    bar, corner, line = ("|", "+", "-") if ascii else ("│", "└", "─")
    labels = [f"{y.max():.4g}", *[""] * (HEIGHT - 2), f"{y.min():.4g}"]
    wide = max(map(len, labels))
    lines = [f"{label:>{wide}} {bar}{row}".rstrip() for label, row in zip(labels, rows, strict=True)]
    left, right = f"{x[0]:.4g}", f"{x[-1]:.4g}"
    below = f"{left}{variable:^{WIDTH - len(left) - len(right)}}{right}"
    return "\n".join([*lines, f"{'':>{wide}} {corner}{line * WIDTH}", f"{'':>{wide}}  {below}"])


def _cell(bits: int) -> str:
    return chr(0x2800 + bits) if bits else " "  # some fonts show an empty cell as rings


def _dots(x: NDArray[np.float64], y: NDArray[np.float64], height: int, width: int) -> NDArray[np.bool_]:
    """(height, width), the highest first: a curve without gaps, one that is constant in the middle."""
    heights = np.interp(np.linspace(x[0], x[-1], width), x, y)
    span = float(y.max() - y.min())
    parts = (heights - y.min()) / span if span > 0 else np.full(width, 0.5)
    rows = np.rint((1 - parts) * (height - 1)).astype(int)
    dots = np.zeros((height, width), bool)
    before = rows[0]
    for column, row in enumerate(rows):
        low, high = sorted((row, before + int(np.sign(row - before))))
        dots[low : high + 1, column] = True
        before = row
    return dots
