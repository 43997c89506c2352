"""`Job`, `Pool` and the in-process pool: how work reaches a worker, whoever that is."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from normact.search.outcome import Outcome

JobKind = Literal["screen", "train"]


@dataclass(frozen=True)
class Job:
    """What a worker is given. **Its outcomes are a pure function of it.**

    Args:
        id: unique within a driver's life.
        kind: `screen` (gates that train nothing, a batch of proposals) or `train` (normally one).
        candidates: (proposal number, the candidate as the space's JSON).
        seed: of everything random in it.
        time_limit: seconds after which a pool that can kill gives up; 0 for none.
        snapshot: plain data that stopping rules compare with.
        recipe: changes of the task's recipe, such as `{"lr": 0.02}`.
        test: whether an evaluator that measures the test split does so here.
    """

    id: int
    kind: JobKind
    candidates: tuple[tuple[int, Any], ...]
    seed: int
    time_limit: float = 0.0
    snapshot: Mapping[str, Any] = field(default_factory=dict)
    recipe: Mapping[str, Any] = field(default_factory=dict)
    test: bool = True


class Evaluate(Protocol):
    """What runs in a worker: judges a job's candidates, in order. Candidates' own errors become rejections."""

    def __call__(self, job: Job) -> Sequence[Outcome]: ...


@dataclass(frozen=True)
class Done:
    """The job was judged: one outcome per candidate."""

    job: Job
    outcomes: tuple[Outcome, ...]


@dataclass(frozen=True)
class Failed:
    """The evaluator itself raised (not a candidate: those are outcomes), or gave data of a wrong form."""

    job: Job
    reason: str


@dataclass(frozen=True)
class TimedOut:
    """The job ran past its time limit and was killed."""

    job: Job
    seconds: float


@dataclass(frozen=True)
class Lost:
    """The worker died while it had the job. Whether the candidate or the machine was at fault is not known.

    Args:
        job: the only one that the worker had.
        reason: what is known of the death.
        deaths: workers that have died with it in hand, this one included: where one dies with several jobs, a
            pool may first run each again alone.
    """

    job: Job
    reason: str
    deaths: int = 1


Report = Done | Failed | TimedOut | Lost


class Pool(ABC):
    """Workers that judge jobs. Used by one thread.

    Every submitted job is reported by `next` exactly once, unless it was cancelled or the pool closed.
    """

    @property
    @abstractmethod
    def capacity(self) -> Mapping[JobKind, int]:
        """How many jobs of each kind can run at once; kinds may share workers."""

    @abstractmethod
    def free(self, kind: JobKind) -> int:
        """How many more jobs of the kind would start at once."""

    @abstractmethod
    def submit(self, job: Job) -> None:
        """Queue a job. Starts at once where a worker is free."""

    @abstractmethod
    def next(self, timeout: float) -> Report | None:
        """The next report, or None where none came within `timeout` seconds."""

    @abstractmethod
    def cancel(self, job_id: int) -> None:
        """Forget a job; it may run on, but is never reported. Unknown ids are ignored."""

    @abstractmethod
    def close(self) -> None:
        """End the workers. Twice is fine."""

    @property
    def can_kill(self) -> bool:
        """Whether time limits are enforced."""
        return True


class LocalPool(Pool):
    """Runs each job in this process when `next` is called: for debugging, tests, and machines without Ray.

    It cannot kill a candidate that hangs, and one that ends the process ends the run (which can be resumed).

    Args:
        make_evaluate: makes the evaluator; called once, at the first job.
    """

    def __init__(self, make_evaluate: Callable[[], Evaluate]) -> None:
        self._make = make_evaluate
        self._evaluate: Evaluate | None = None
        self._jobs: deque[Job] = deque()

    @property
    def capacity(self) -> Mapping[JobKind, int]:
        return {"screen": 1, "train": 1}

    @property
    def can_kill(self) -> bool:
        return False

    def free(self, kind: JobKind) -> int:
        return 0 if self._jobs else 1

    def submit(self, job: Job) -> None:
        self._jobs.append(job)

    def next(self, timeout: float) -> Report | None:
        if not self._jobs:
            return None
        job = self._jobs.popleft()
        if self._evaluate is None:
            self._evaluate = self._make()
        try:
            return checked(job, [o.to_json() for o in self._evaluate(job)])
        except Exception as problem:
            return Failed(job, f"{type(problem).__name__}: {problem}")

    def cancel(self, job_id: int) -> None:
        self._jobs = deque(job for job in self._jobs if job.id != job_id)

    def close(self) -> None:
        self._jobs.clear()


def checked(job: Job, data: Any) -> Report:
    """A worker's answer as a report: `Done`, or `Failed` where the data have a wrong form.

    Args:
        job: what was asked.
        data: a list of outcomes as JSON, one per candidate, in order.
    """
    try:
        outcomes = tuple(Outcome.from_json(item) for item in data)
    except (ValueError, TypeError) as problem:
        return Failed(job, f"worker sent data of a wrong form: {problem}")
    expected = [number for number, _ in job.candidates]
    if [o.number for o in outcomes] != expected:
        return Failed(job, f"worker judged proposals {[o.number for o in outcomes]}, but was given {expected}")
    return Done(job, outcomes)


def worker_name() -> str:
    """Who judges: the process, for the record."""
    return f"pid {os.getpid()}"
