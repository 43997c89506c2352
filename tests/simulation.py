"""A search on simulated workers: engine, controller and ledger are the real ones; clock and pool are not.

A discrete-event simulation. What the driver computes takes the time that it takes; what workers do takes the time
that their outcomes say, on a clock that jumps over waiting. So a search on 5,000 workers runs on one core.
"""

from __future__ import annotations

import heapq
import math
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from statistics import NormalDist

from normact.search.clock import Clock
from normact.search.objective import Score
from normact.search.outcome import Outcome
from normact.search.pool import Done, Evaluate, Job, Pool
from normact.spaces import Space
from tests.judges import digest

PREFETCH_BELOW = 0.5  # seconds, as the Ray pool's


class SimulatedClock(Clock):
    """Runs with the machine's clock, less what is taken out, and jumps forward when told to."""

    def __init__(self) -> None:
        self._offset = 0.0
        self._stopped_at: float | None = None

    def now(self) -> float:
        return time.perf_counter() + self._offset if self._stopped_at is None else self._stopped_at

    def date(self) -> float:
        return self.now()

    def jump(self, seconds: float) -> None:
        if self._stopped_at is None:
            self._offset += seconds
        else:
            self._stopped_at += seconds

    @contextmanager
    def stopped(self):
        """What runs inside takes no time."""
        self._stopped_at = self.now()
        try:
            yield
        finally:
            self._offset = self._stopped_at - time.perf_counter()
            self._stopped_at = None


@dataclass(eq=False)
class SimulatedWorker:
    """A worker and the jobs in its hands, the first of which it runs."""

    jobs: deque[Done] = field(default_factory=deque)


class SimulatedPool(Pool):
    """As `RayPool` deals out work: to an idle worker, or behind a short job of a busy one.

    Args:
        evaluate: judges at once; how long a job takes is what its outcomes say.
        workers: how many.
        clock: the engine's.
        pool_seconds: of the driver's time that a job costs the pool, submission and answer together.
        job_seconds: that a job takes beside its candidates, on the worker and on the way to it.
        prefetch: jobs that may wait behind a short one.
    """

    def __init__(
        self,
        evaluate: Evaluate,
        workers: int,
        clock: SimulatedClock,
        pool_seconds: float = 0.0,
        job_seconds: float = 0.0,
        prefetch: int = 1,
    ) -> None:
        self.evaluate, self.size, self.clock = evaluate, workers, clock
        self.pool_seconds, self.job_seconds, self.prefetch = pool_seconds, job_seconds, prefetch
        self.busy: list[tuple[float, float]] = []
        """(start, seconds) of every job that ran, in the order in which they ended."""
        self.waits: list[tuple[float, float]] = []
        """(start, seconds) of every time that the driver waited."""
        self._idle = deque(SimulatedWorker() for _ in range(workers))
        self._roomy: dict[SimulatedWorker, None] = {}
        self._ends: list[tuple[float, int, float, SimulatedWorker]] = []
        self._reports: deque[Done] = deque()
        self._mean: dict[str, float] = {}

    @property
    def capacity(self):
        return {"screen": self.size, "train": self.size}

    def free(self, kind):
        if not self._is_short(kind):
            return len(self._idle)
        return len(self._idle) * (1 + self.prefetch) + len(self._roomy)

    def submit(self, job: Job) -> None:
        self.clock.jump(self.pool_seconds)
        with self.clock.stopped():
            worker = self._idle.popleft() if self._idle else self._roomy.popitem()[0]
            worker.jobs.append(Done(job, tuple(self.evaluate(job))))
            if len(worker.jobs) == 1:
                self._start(worker, self.clock.now())

    def next(self, timeout):
        with self.clock.stopped():
            self._advance()
            if not self._reports and timeout > 0:
                now = self.clock.now()
                until = min(now + timeout, self._ends[0][0] if self._ends else math.inf)
                if until > now:
                    self.waits.append((now, until - now))
                    self.clock.jump(until - now)
                self._advance()
            return self._reports.popleft() if self._reports else None

    def cancel(self, job_id):
        pass

    def close(self):
        pass

    def _is_short(self, kind: str) -> bool:
        return self._mean.get(kind, math.inf) < PREFETCH_BELOW

    def _start(self, worker: SimulatedWorker, now: float) -> None:
        done = worker.jobs[0]
        seconds = self.job_seconds + sum(sum(o.seconds.values()) for o in done.outcomes)
        heapq.heappush(self._ends, (now + seconds, done.job.id, seconds, worker))
        if self._is_short(done.job.kind) and len(worker.jobs) <= self.prefetch:
            self._roomy[worker] = None

    def _advance(self) -> None:
        """Let end what ends up to now; a worker takes the next of its jobs at once, whatever the driver does."""
        while self._ends and self._ends[0][0] <= self.clock.now():
            end, _, seconds, worker = heapq.heappop(self._ends)
            done = worker.jobs.popleft()
            kind = done.job.kind
            self._mean[kind] = 0.8 * self._mean.get(kind, seconds) + 0.2 * seconds
            self.busy.append((end - seconds, seconds))
            self._reports.append(done)
            self._roomy.pop(worker, None)
            if worker.jobs:
                self._start(worker, end)
            else:
                self._idle.append(worker)

    def utilisation(self, start: float, end: float) -> float:
        """The share of the workers' time between two moments that they ran jobs; jobs still under way count too."""
        running = [(finish - seconds, seconds) for finish, _, seconds, _ in self._ends]
        return _within([*self.busy, *running], start, end) / (self.size * (end - start))

    def driver_load(self, start: float, end: float) -> float:
        """The share of the time between two moments that the driver did not wait."""
        return 1 - _within(self.waits, start, end) / (end - start)


class TimedJudge:
    """Judges by the candidate's key: a share passes screening; trainings take log-normal times.

    Args:
        space: of the candidates.
        train_seconds: the mean of a training.
        screen_seconds: of one screening.
        passes: share of the candidates that pass screening.
        spread: standard deviation of the logarithm of a training's time.
        wait: what the seconds are spent with; by default nothing, they are only said.
    """

    def __init__(
        self,
        space: Space,
        train_seconds: float,
        screen_seconds: float = 2.5e-3,
        passes: float = 0.15,
        spread: float = 0.5,
        wait: Callable[[float], None] = lambda seconds: None,
    ) -> None:
        self.space, self.train_seconds, self.screen_seconds = space, train_seconds, screen_seconds
        self.passes, self.spread, self.wait = passes, spread, wait

    def __call__(self, job: Job) -> list[Outcome]:
        start = time.perf_counter()
        outcomes = [self._judge(job, n, self.space.key(self.space.from_json(data))) for n, data in job.candidates]
        left = sum(sum(o.seconds.values()) for o in outcomes) - (time.perf_counter() - start)
        self.wait(max(0.0, left))
        return outcomes

    def _judge(self, job: Job, number: int, key: str) -> Outcome:
        draw = digest(key)
        if job.kind == "screen":
            gate = "" if draw % 10_000 < 10_000 * self.passes else "probe"
            screened = Outcome(number, gate, seconds={"probe": self.screen_seconds}, seed=job.seed)
            return screened if gate else replace(screened, fingerprint=f"print of {key}")
        normal = NormalDist().inv_cdf((draw // 10_000 % 99_999 + 0.5) / 99_999)
        seconds = self.train_seconds * math.exp(self.spread * normal - self.spread**2 / 2)
        scores = tuple(Score("loss", anchor, 100, draw // 7**k % 1000 / 1000) for k, anchor in enumerate("ab"))
        return Outcome(number, scores=scores, steps=100, seconds={"train": seconds}, seed=job.seed, device="cpu")


def _within(spans: Iterable[tuple[float, float]], start: float, end: float) -> float:
    """How much of (start, seconds) spans lies between two moments."""
    return sum(max(0.0, min(end, s + seconds) - max(start, s)) for s, seconds in spans)
