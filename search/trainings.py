"""`Trainings`: candidates trained on given seeds and recipes, in parallel, outside of the search; resumable."""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from normact.search.ledger import Event, Ledger
from normact.search.outcome import Outcome
from normact.search.pool import Done, Failed, Job, Lost, Pool
from normact.spaces.errors import InputError


@dataclass(frozen=True)
class Wanted:
    """One training that is wanted.

    Args:
        number: of the layer in the ledger's events.
        name: of the layer, for people who read the ledger.
        candidate: as the space's JSON.
        seed: of the training.
        recipe: changes of the task's recipe, such as `{"lr": 0.02}`.
        test: whether the test split is to be measured, where the pool's evaluator does that.
    """

    number: int
    name: str
    candidate: Any
    seed: int
    recipe: Mapping[str, Any] = field(default_factory=dict)
    test: bool = True

    @property
    def key(self) -> str:
        """Equal for trainings with the same result; number and name do not count."""
        return json.dumps([self.candidate, self.seed, dict(self.recipe), self.test], sort_keys=True)


class Trainings:
    """Trains what is wanted; what the ledger has under the same setting is not repeated.

    Args:
        setting: what all trainings depend on (task, recipe), as plain JSON: under another one, all is trained anew.
        ledger: opened for writing.
        pool: judges.
        train_seconds: wall time one training may take.
        reads_test: whether the pool's evaluator measures the test split: such readings are counted in the ledger.
    """

    def __init__(
        self, setting: Any, ledger: Ledger, pool: Pool, train_seconds: float = 600.0, reads_test: bool = False
    ) -> None:
        self.setting = key_of(setting)
        self.ledger = ledger
        self.pool = pool
        self.train_seconds = train_seconds
        self.reads_test = reads_test
        self._known: dict[str, Outcome] = {}
        self._jobs = 0
        for event in ledger.events("reranked"):
            data = event.data
            if data["setting"] == self.setting:
                self._know(_wanted(event), Outcome.from_json(data["outcome"]))

    def run(
        self, wanted: Sequence[Wanted], on_progress: Callable[[int, int], None] = lambda done, total: None
    ) -> list[Outcome]:
        """The outcome of each, in order. Calls `on_progress(done, total)` after each training.

        Raises:
            InputError: the evaluator fails, which is no candidate's fault.
        """
        keys = [want.key for want in wanted]
        times = Counter(key for key in keys if key not in self._known)
        missing = [wanted[keys.index(key)] for key in times]
        if self.reads_test and (reading := sum(want.test for want in missing)):
            self.ledger.append([Event("test_read", 0, {"setting": self.setting, "trainings": reading})])
        done = len(keys) - times.total()
        on_progress(done, len(keys))
        for want, outcome in self._judged(missing):
            self._know(want, outcome)
            self.ledger.append([self._event(want, outcome)])
            done += times[want.key]
            on_progress(done, len(keys))
        return [self._known[key] for key in keys]

    def _know(self, want: Wanted, outcome: Outcome) -> None:
        """Remember an outcome; one with the test split answers what is wanted without, too."""
        for test in {want.test, False}:
            self._known[replace(want, test=test).key] = outcome

    def _judged(self, wanted: Sequence[Wanted]) -> Iterator[tuple[Wanted, Outcome]]:
        jobs = dict(enumerate(wanted, self._jobs))
        self._jobs += len(jobs)
        waiting = [self._job(job_id, want) for job_id, want in jobs.items()][::-1]
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
                yield jobs[job.id], report.outcomes[0]
            elif isinstance(report, Failed):  # the evaluator's fault, such as missing test data: no layer's result
                raise InputError(f"the trainings cannot go on: {report.reason}")
            elif isinstance(report, Lost) and not deaths[job.id]:
                deaths[job.id] += 1
                waiting.append(job)
            else:
                failed = Outcome(jobs[job.id].number, type(report).__name__, str(report)[:500], seed=job.seed)
                yield jobs[job.id], failed

    def _job(self, job_id: int, want: Wanted) -> Job:
        candidates = ((want.number, want.candidate),)
        return Job(job_id, "train", candidates, want.seed, self.train_seconds, recipe=dict(want.recipe), test=want.test)

    def _event(self, want: Wanted, outcome: Outcome) -> Event:
        data = {
            "setting": self.setting,
            "entrant": want.name,
            "candidate": want.candidate,
            "seed": want.seed,
            "recipe": dict(want.recipe),
            "test": want.test,
            "outcome": outcome.to_json(),
        }
        return Event("reranked", want.number, data)


def key_of(setting: Any) -> str:
    """What tells settings apart: a hash of one, as plain JSON."""
    return hashlib.blake2b(json.dumps(setting, sort_keys=True).encode(), digest_size=8).hexdigest()


def _wanted(event: Event) -> Wanted:
    """What an event was the training of; earlier releases measured the test split in all of them."""
    data = event.data
    return Wanted(
        event.number, data["entrant"], data["candidate"], data["seed"], data.get("recipe", {}), data.get("test", True)
    )
