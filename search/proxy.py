"""How far a short training can be trusted to rank layers: signal to noise, and rank correlation with long trainings."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from normact.spaces.errors import InputError

RESAMPLES = 1000
LEVEL = 0.95
SLACK = 0.05
"""Of a rank correlation: a few tens of layers tell no finer."""


@dataclass(frozen=True)
class ProxyRow:
    """One way to score a candidate.

    Args:
        score: the objective.
        steps: of a training.
        seeds: trainings a candidate, whose mean counts.
        correlation: Spearman's with the long trainings, over the better half of the layers by these; the mean over the
            choices of seeds. A search decides among good layers: bad ones are told from them by any score.
        low, high: its 95% interval, by resampling layers.
        overall: the correlation over all layers.
        unpaired: the spread between layers, of the better half, over that between seeds, for a single training.
        paired: the same where layers share seeds, and what seeds do to all layers alike is taken out.
    """

    score: str
    steps: int
    seeds: int
    correlation: float
    low: float
    high: float
    overall: float
    unpaired: float
    paired: float

    @property
    def cost(self) -> int:
        """Training steps a candidate."""
        return self.steps * self.seeds


def signal_to_noise(values: np.ndarray) -> tuple[float, float]:
    """The spread between layers over the spread between seeds, unpaired and paired.

    By the mean squares of a two-way table without repeats: layers' is n_seeds var(layer) + var(residual); within a
    layer seeds vary by var(seed) + var(residual), and where layers share seeds, by var(residual) alone.

    Args:
        values: (layers, seeds), at least two of each.
    """
    layers, seeds = values.shape
    if layers < 2 or seeds < 2:
        raise ValueError(f"signal to noise needs two layers and two seeds, got {layers} and {seeds}")
    residual = values - values.mean(1, keepdims=True) - values.mean(0, keepdims=True) + values.mean()
    noise = float(np.square(residual).sum() / ((layers - 1) * (seeds - 1)))
    signal = max(0.0, float(values.mean(1).var(ddof=1)) - noise / seeds)
    within = float(values.var(1, ddof=1).mean())
    return _ratio(signal, within), _ratio(signal, noise)


def _ratio(signal: float, noise: float) -> float:
    return float(np.sqrt(signal / noise)) if noise > 0 else float("inf")


def rank_correlation(values: np.ndarray, truth: np.ndarray, seeds: int) -> float:
    """Spearman's correlation of the mean over so many seeds with the truth: the mean over all choices of seeds.

    Args:
        values: (layers, all seeds).
        truth: (layers,)
        seeds: at most all.
    """
    choices = itertools.combinations(range(values.shape[1]), seeds)
    return float(np.mean([_spearman(values[:, list(chosen)].mean(1), truth) for chosen in choices]))


def _spearman(a: np.ndarray, b: np.ndarray) -> float:
    """0 where one is constant: it ranks nothing."""
    ranks = stats.rankdata(a), stats.rankdata(b)
    if any(np.ptp(r) == 0 for r in ranks):
        return 0.0
    return float(np.corrcoef(*ranks)[0, 1])


def proxy_rows(skills: Mapping[tuple[str, int], np.ndarray], truth: np.ndarray, seed: int = 0) -> list[ProxyRow]:
    """All ways to score a candidate, the cheapest first.

    Args:
        skills: by objective and steps: (layers, seeds), larger is better.
        truth: (layers,) what long trainings on other seeds gave, larger is better.
        seed: of the resampling.
    """
    better = truth >= np.median(truth)
    picks = np.random.default_rng(seed).integers(0, better.sum(), (RESAMPLES, better.sum()))
    rows = []
    for (score, steps), values in skills.items():
        unpaired, paired = signal_to_noise(values[better])
        for seeds in range(1, values.shape[1] + 1):
            first = values[better, :seeds].mean(1)  # resampling layers, one choice of seeds stands for all
            resampled = [_spearman(first[pick], truth[better][pick]) for pick in picks]
            low, high = np.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
            correlation = rank_correlation(values[better], truth[better], seeds)
            overall = rank_correlation(values, truth, seeds)
            rows.append(ProxyRow(score, steps, seeds, correlation, float(low), float(high), overall, unpaired, paired))
    return sorted(rows, key=lambda row: (row.cost, row.score))


def recommend(rows: Sequence[ProxyRow], slack: float = SLACK) -> ProxyRow:
    """The cheapest row whose correlation is within `slack` of the best; of those of equal cost, the best one.

    Raises:
        InputError: the slack is below zero.
    """
    if slack < 0:
        raise InputError(f"slack must be at least 0, got {slack}")
    best = max(row.correlation for row in rows)
    enough = [row for row in rows if row.correlation >= best - slack]
    return min(enough, key=lambda row: (row.cost, -row.correlation))
