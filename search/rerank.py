"""`Rerank`: finalists and baselines, trained on fresh paired seeds, on anchors and data the search never saw."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy import stats

from normact.search.objective import Objective
from normact.search.outcome import Outcome
from normact.search.trainings import Trainings, Wanted
from normact.spaces.errors import InputError

FIRST_SEED = 1_000_000
"""Seeds of reranks count from here, so that none is a search's."""

FIRST_TUNING_SEED = 2_000_000
"""Those that decide about learning rates."""

TUNING_SEEDS = 2

ENOUGH_SEEDS = 8
"""With fewer, a result is preliminary and nothing may be called better."""

ALPHA = 0.05


@dataclass(frozen=True)
class Entrant:
    """A layer in a rerank.

    Args:
        name: unique within the rerank.
        role: `finalist` or `baseline`.
        candidate: as the space's JSON.
        text: one line that describes it.
    """

    name: str
    role: Literal["finalist", "baseline"]
    candidate: Any
    text: str


@dataclass(frozen=True)
class Standing:
    """A layer's result: means over anchors and seeds, and the paired comparison with the best baseline.

    Args:
        entrant: the layer.
        validation: mean of the objective on validation examples.
        test: mean on test examples.
        deviation: standard deviation over seeds of the test value (a mean over anchors).
        by_anchor: mean test value per anchor.
        failed: trainings that failed or ended with a non-finite value; they count as trivial.
        difference: mean over seeds of the paired test difference to the best baseline; None for baselines.
        low, high: its 95% interval, simultaneous over the finalists.
        verdict: `better`, `worse` or `no difference shown`; with too few seeds `preliminary, N seeds`; for
            baselines `best baseline` or `baseline`.
        p: Holm-adjusted p value of the paired t test, which decides the verdict; None for baselines.
        seeds: how many.
        lr: the learning rate that was best for it on validation; None where there was no choice.
    """

    entrant: Entrant
    validation: float
    test: float
    deviation: float
    by_anchor: Mapping[str, float]
    failed: int
    difference: float | None
    low: float | None
    high: float | None
    verdict: str
    p: float | None
    seeds: int
    lr: float | None = None


class Rerank:
    """Trains every entrant on every seed, in parallel, resumable: trainings in the ledger are not repeated.

    Each entrant gets the learning rate of the grid that is best for it on validation, over tuning seeds of their own,
    which may also choose among the finalists; then those that stay are trained on the same fresh seeds, and these
    trainings alone measure the test split. Entrants with the same candidate, such as a catalogue layer that the search
    found again, are trained once.

    Args:
        entrants: finalists and baselines.
        seeds: how many paired seeds.
        objective: what decides, such as accuracy; its test value is measured as `test_<name>`.
        trainings: train on the pool, with an evaluator that measures the test split.
        grid: learning rates; the recipe's own alone where empty.
        tuning_seeds: how many seeds decide about the learning rate, where there is a choice.
        first_seed: which of all there are for this the seeds begin with.
        keep: how many finalists are judged: the best on validation under the tuning seeds; 0: all.

    Raises:
        InputError: no finalist, no baseline, two entrants of one name, too few seeds, or a learning rate twice.
    """

    def __init__(
        self,
        entrants: Sequence[Entrant],
        seeds: int,
        objective: Objective,
        trainings: Trainings,
        grid: Sequence[float] = (),
        tuning_seeds: int = TUNING_SEEDS,
        first_seed: int = 0,
        keep: int = 0,
    ) -> None:
        roles = [entrant.role for entrant in entrants]
        if "finalist" not in roles or "baseline" not in roles:
            raise InputError(
                f"a rerank needs a finalist and a baseline, got {roles.count('finalist')} and "
                f"{roles.count('baseline')}; search longer, or name baselines"
            )
        if len({entrant.name for entrant in entrants}) != len(entrants):
            raise InputError(f"entrants need different names, got {[entrant.name for entrant in entrants]}")
        if seeds < 2 or tuning_seeds < 1:
            raise InputError(
                f"a rerank needs at least 2 seeds to have a spread, and 1 to tune on, got {seeds} and {tuning_seeds}"
            )
        if len(set(grid)) != len(grid):
            raise InputError(f"the grid of learning rates names one twice: {list(grid)}")
        self.entrants = list(entrants)
        self.seeds = [FIRST_SEED + first_seed + i for i in range(seeds)]
        self.objective = objective
        self.trainings = trainings
        self.grid = list(grid)
        self.keep = keep
        chosen = len(grid) > 1 or 0 < keep < roles.count("finalist")
        self.tuning_seeds = [FIRST_TUNING_SEED + i for i in range(tuning_seeds if chosen else 0)]
        self.results: dict[tuple[int, int], Outcome] = {}

    def run(self, on_progress: Callable[[int, int], None] = lambda done, total: None) -> list[Standing]:
        """Train what the ledger lacks, and judge. Calls `on_progress(done, total)` after each training."""
        finalists = sum(entrant.role == "finalist" for entrant in self.entrants)
        tuning, judging = trainings_in(
            finalists, len(self.entrants) - finalists, len(self.seeds), self.grid, self.keep, len(self.tuning_seeds)
        )
        tuned = self._tuned(lambda done, _: on_progress(done, tuning + judging))
        judged = self._staying([skill for _, skill in tuned])
        cells = [(index, seed) for seed in self.seeds for index in judged]
        wanted = [self._wanted(index, seed, tuned[index][0]) for index, seed in cells]
        outcomes = self.trainings.run(wanted, lambda done, _: on_progress(tuning + done, tuning + judging))
        self.results = dict(zip(cells, outcomes, strict=True))
        results = {(k, seed): self.results[index, seed] for k, index in enumerate(judged) for seed in self.seeds}
        entrants, rates = [self.entrants[index] for index in judged], [tuned[index][0] for index in judged]
        return standings(entrants, self.seeds, results, self.objective, rates)

    def _tuned(self, on_progress: Callable[[int, int], None]) -> list[tuple[float | None, float]]:
        """Of each entrant, the learning rate that is best on validation (None for the recipe's own), and its skill."""
        grid: list[float | None] = list(self.grid) or [None]
        if not self.tuning_seeds:
            return [(grid[0], 0.0)] * len(self.entrants)
        cells = [(i, lr) for lr in grid for i in range(len(self.entrants))]
        wanted = [self._wanted(i, seed, lr, test=False) for i, lr in cells for seed in self.tuning_seeds]
        outcomes = iter(self.trainings.run(wanted, on_progress))
        found = {cell: [next(outcomes) for _ in self.tuning_seeds] for cell in cells}

        def skill(index: int, lr: float | None) -> float:
            values = [_mean(outcome, self.objective.name, self.objective) for outcome in found[index, lr]]
            return self.objective.skill(float(np.mean(values)))

        best = [max(grid, key=lambda lr: skill(index, lr)) for index in range(len(self.entrants))]
        return [(lr, skill(index, lr)) for index, lr in enumerate(best)]

    def _staying(self, skills: Sequence[float]) -> list[int]:
        """The entrants that are judged, in their order: baselines, and the finalists with the best skills."""
        finalists = [index for index, entrant in enumerate(self.entrants) if entrant.role == "finalist"]
        best = sorted(finalists, key=lambda index: -skills[index])[: self.keep or None]
        gone = set(finalists) - set(best)
        return [index for index in range(len(self.entrants)) if index not in gone]

    def _wanted(self, index: int, seed: int, lr: float | None, test: bool = True) -> Wanted:
        entrant = self.entrants[index]
        return Wanted(index, entrant.name, entrant.candidate, seed, {} if lr is None else {"lr": lr}, test)


def trainings_in(
    finalists: int, baselines: int, seeds: int, grid: Sequence[float], keep: int = 0, tuning_seeds: int = TUNING_SEEDS
) -> tuple[int, int]:
    """How many trainings a rerank tunes by and judges by; for its arguments see `Rerank`."""
    chosen = len(grid) > 1 or 0 < keep < finalists
    tuning = (finalists + baselines) * max(1, len(grid)) * tuning_seeds if chosen else 0
    return tuning, (min(keep or finalists, finalists) + baselines) * seeds


def standings(
    entrants: Sequence[Entrant],
    seeds: Sequence[int],
    results: Mapping[tuple[int, int], Outcome],
    objective: Objective,
    rates: Sequence[float | None] | None = None,
) -> list[Standing]:
    """Judge the trainings: the best test value first.

    The best baseline is the one with the best mean on *validation*; the test split decides nothing but the final
    numbers. Finalists are compared with it by paired t tests over seeds. A finalist is called better or worse if its
    p value, adjusted after Holm for m finalists, is at most alpha. The intervals are of level 1 - alpha / m each
    (Bonferroni), so that all of them together hold with 95%; they are a little wider than Holm's test is strict.
    """
    indices = range(len(entrants))
    validation = {i: [_mean(results[i, s], objective.name, objective) for s in seeds] for i in indices}
    test = {i: np.array([_mean(results[i, s], f"test_{objective.name}", objective) for s in seeds]) for i in indices}
    baselines = [i for i in indices if entrants[i].role == "baseline"]
    best = max(baselines, key=lambda i: objective.skill(float(np.mean(validation[i]))))
    finalists = [i for i in indices if entrants[i].role == "finalist"]
    compared = _holm({i: test[i] - test[best] for i in finalists}, objective)
    rows = []
    for i in indices:
        difference, low, high, verdict, p = compared.get(i, (None, None, None, "baseline", None))
        if i == best:
            verdict = "best baseline"
        elif len(seeds) < ENOUGH_SEEDS and i in compared:
            verdict = f"preliminary, {len(seeds)} seeds"
        rows.append(
            Standing(
                entrants[i],
                float(np.mean(validation[i])),
                float(test[i].mean()),
                float(test[i].std(ddof=1)),
                _by_anchor([results[i, s] for s in seeds], f"test_{objective.name}", objective),
                sum(_failed(results[i, s], objective) for s in seeds),
                difference,
                low,
                high,
                verdict,
                p,
                len(seeds),
                rates[i] if rates else None,
            )
        )
    return sorted(rows, key=lambda row: -objective.skill(row.test))


def _holm(
    differences: Mapping[int, np.ndarray], objective: Objective
) -> dict[int, tuple[float, float, float, str, float]]:
    """Per finalist: mean difference, its simultaneous interval, the verdict, the adjusted p value."""
    sign = 1.0 if objective.direction == "maximize" else -1.0
    spread = {i: float(stats.sem(d)) for i, d in differences.items()}
    raw = {i: _p_value(float(d.mean()), spread[i], len(d)) for i, d in differences.items()}
    judged, adjusted = {}, 0.0
    for rank, i in enumerate(sorted(raw, key=lambda k: raw[k])):
        adjusted = max(adjusted, min(1.0, raw[i] * (len(raw) - rank)))
        d = differences[i]
        mean = float(d.mean())
        half = float(stats.t.ppf(1 - ALPHA / len(raw) / 2, len(d) - 1)) * spread[i]
        verdict = ("better" if sign * mean > 0 else "worse") if adjusted <= ALPHA else "no difference shown"
        judged[i] = (mean, mean - half, mean + half, verdict, adjusted)
    return judged


def _p_value(mean: float, sem: float, count: int) -> float:
    """Two-sided paired t test; identical values in every seed are no evidence."""
    if sem == 0:
        return 1.0 if mean == 0 else 0.0
    return float(2 * stats.t.sf(abs(mean) / sem, count - 1))


def _mean(outcome: Outcome, name: str, objective: Objective) -> float:
    if _failed(outcome, objective):
        return objective.trivial
    values = list(outcome.final(name).values())
    if not values:
        raise InputError(f"a training gave no {name}; rerank with an evaluator that measures the test split")
    return float(np.mean(values))


def _failed(outcome: Outcome, objective: Objective) -> bool:
    values = (v for name in (objective.name, f"test_{objective.name}") for v in outcome.final(name).values())
    return bool(outcome.gate) or not all(math.isfinite(value) for value in values)


def _by_anchor(outcomes: Sequence[Outcome], name: str, objective: Objective) -> dict[str, float]:
    measured = [{} if _failed(outcome, objective) else outcome.final(name) for outcome in outcomes]
    anchors = sorted({anchor for values in measured for anchor in values})
    return {a: float(np.mean([values.get(a, objective.trivial) for values in measured])) for a in anchors}
