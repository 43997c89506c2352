"""`Rerank`: finalists and baselines, trained on fresh paired seeds, on anchors and data the search never saw."""

from __future__ import annotations

import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy import stats

from normact.search.ledger import Event, Ledger
from normact.search.objective import Objective
from normact.search.outcome import Outcome
from normact.search.pool import Done, Failed, Job, Lost, Pool
from normact.spaces.errors import InputError

FIRST_SEED = 1_000_000
"""Seeds of reranks count from here, so that none is a search's."""

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


class Rerank:
    """Trains every entrant on every seed, in parallel, resumable: trainings in the ledger are not repeated.

    Entrants with the same candidate, such as a catalogue layer that the search found again, are trained once.

    Args:
        entrants: finalists and baselines.
        seeds: how many paired seeds.
        objective: what decides, such as accuracy; its test value is measured as `test_<name>`.
        setting: what the rerank's trainings depend on (task, recipe); a change of it makes a new rerank.
        ledger: of the run; opened for writing.
        pool: judges with an evaluator that measures the test split.
        train_seconds: wall time one training may take.

    Raises:
        InputError: no finalist, no baseline, two entrants of one name, or no seed.
    """

    def __init__(
        self,
        entrants: Sequence[Entrant],
        seeds: int,
        objective: Objective,
        setting: Any,
        ledger: Ledger,
        pool: Pool,
        train_seconds: float = 600.0,
    ) -> None:
        roles = [entrant.role for entrant in entrants]
        if "finalist" not in roles or "baseline" not in roles:
            raise InputError(
                f"a rerank needs a finalist and a baseline, got {roles.count('finalist')} and "
                f"{roles.count('baseline')}; search longer, or name baselines"
            )
        if len({entrant.name for entrant in entrants}) != len(entrants):
            raise InputError(f"entrants need different names, got {[entrant.name for entrant in entrants]}")
        if seeds < 2:
            raise InputError(f"a rerank needs at least 2 seeds to have a spread, got {seeds}")
        self.entrants = list(entrants)
        self.seeds = [FIRST_SEED + i for i in range(seeds)]
        self.objective = objective
        self.setting = hashlib.blake2b(json.dumps(setting, sort_keys=True).encode(), digest_size=8).hexdigest()
        self.ledger = ledger
        self.pool = pool
        self.train_seconds = train_seconds
        self.results: dict[tuple[int, int], Outcome] = {}
        self._alike: defaultdict[str, list[int]] = defaultdict(list)
        for index, entrant in enumerate(self.entrants):
            self._alike[_text(entrant.candidate)].append(index)

    def run(self, on_progress: Callable[[int, int], None] = lambda done, total: None) -> list[Standing]:
        """Train what the ledger lacks, and judge. Calls `on_progress(done, total)` after each training."""
        self._recall()
        total = len(self.entrants) * len(self.seeds)
        jobs = [
            Job(i, "train", ((index, self.entrants[index].candidate),), seed, self.train_seconds)
            for i, (index, seed) in enumerate((e[0], s) for s in self.seeds for e in self._alike.values())
            if (index, seed) not in self.results
        ]
        on_progress(len(self.results), total)
        if jobs:
            self.ledger.append([Event("test_read", 0, {"setting": self.setting, "trainings": len(jobs)})])
        for outcome, job in self._judged(jobs):
            index = job.candidates[0][0]
            self._take(self.entrants[index].candidate, job.seed, outcome)
            self.ledger.append([self._event(index, job.seed, outcome)])
            on_progress(len(self.results), total)
        return standings(self.entrants, self.seeds, self.results, self.objective)

    def _judged(self, jobs: Sequence[Job]) -> Iterator[tuple[Outcome, Job]]:
        waiting = list(reversed(jobs))
        flying = 0
        deaths: defaultdict[int, int] = defaultdict(int)
        while waiting or flying:
            while waiting and self.pool.free("train") > 0:
                self.pool.submit(waiting.pop())
                flying += 1
            report = self.pool.next(1.0)
            if report is None:
                continue
            flying -= 1
            job = report.job
            if isinstance(report, Done):
                yield report.outcomes[0], job
            elif isinstance(report, Failed):  # the evaluator's fault, such as missing test data: no layer's result
                raise InputError(f"the rerank cannot go on: {report.reason}")
            elif isinstance(report, Lost) and not deaths[job.id]:
                deaths[job.id] += 1
                waiting.append(job)
            else:
                yield (
                    Outcome(job.candidates[0][0], type(report).__name__, str(report)[:500], seed=job.seed),
                    job,
                )

    def _event(self, index: int, seed: int, outcome: Outcome) -> Event:
        entrant = self.entrants[index]
        data = {
            "setting": self.setting,
            "entrant": entrant.name,
            "candidate": entrant.candidate,
            "seed": seed,
            "outcome": outcome.to_json(),
        }
        return Event("reranked", index, data)

    def _recall(self) -> None:
        for event in self.ledger.events("reranked"):
            data = event.data
            if data["setting"] == self.setting and data["seed"] in self.seeds:
                self._take(data["candidate"], data["seed"], Outcome.from_json(data["outcome"]))

    def _take(self, candidate: Any, seed: int, outcome: Outcome) -> None:
        for index in self._alike.get(_text(candidate), ()):
            self.results[index, seed] = outcome


def _text(candidate: Any) -> str:
    return json.dumps(candidate, sort_keys=True)


def standings(
    entrants: Sequence[Entrant],
    seeds: Sequence[int],
    results: Mapping[tuple[int, int], Outcome],
    objective: Objective,
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
