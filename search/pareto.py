"""The Pareto front: what no other is at least as good as in everything and better in something."""

from __future__ import annotations

import numpy as np

BLOCK = 1024
"""Rows that are compared with each other at once: so many bytes squared."""


def non_dominated(skills: np.ndarray) -> np.ndarray:
    """Which rows no other row dominates. Equal rows do not dominate each other.

    Rows are taken best first: none is dominated by a later one, so each block of them is compared with the front so
    far and with itself. That takes time in proportion to rows times front.

    Args:
        skills: (rows, columns) of numbers, larger is better; no NaN.

    Returns:
        (rows,) of bool.
    """
    if not skills.size:  # no rows, or nothing to tell them by
        return np.ones(len(skills), bool)
    order = np.lexsort(-skills.T[::-1])  # by the first column, ties by the next: what dominates a row comes before it
    front = order[:0]
    for start in range(0, len(order), BLOCK):
        rows = order[start : start + BLOCK]
        rows = rows[~_dominated(skills[rows], skills[front])]
        rows = rows[~_dominated(skills[rows], skills[rows])]
        front = np.concatenate([front, rows])
    on_front = np.zeros(len(skills), bool)
    on_front[front] = True
    return on_front


def _dominated(skills: np.ndarray, by: np.ndarray) -> np.ndarray:
    """Which rows of `skills` (n, columns) a row of `by` (m, columns) dominates: (n,)."""
    shape = (len(by), len(skills))
    as_good, better = np.ones(shape, bool), np.zeros(shape, bool)
    for theirs, ours in zip(by.T, skills.T, strict=True):
        as_good &= theirs[:, None] >= ours
        better |= theirs[:, None] > ours
    return np.any(as_good & better, axis=0)
