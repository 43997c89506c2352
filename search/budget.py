"""`Budget` and `Limits`: when a search ends, and what one candidate may take."""

from __future__ import annotations

from dataclasses import dataclass

from normact.search.pool import JobKind
from normact.spaces.errors import InputError


@dataclass(frozen=True)
class Budget:
    """When a search ends: whichever comes first.

    Args:
        proposals: all of them are judged; None for no limit.
        minutes: of searching, earlier sessions of the run included; what is in flight then stays unfinished.

    Raises:
        InputError: neither is given, or one is not above zero.
    """

    proposals: int | None = None
    minutes: float | None = None

    def __post_init__(self) -> None:
        if self.proposals is None and self.minutes is None:
            raise InputError("no budget: give budget.proposals, budget.minutes or both")
        for name, value in (("proposals", self.proposals), ("minutes", self.minutes)):
            if value is not None and not value > 0:
                raise InputError(f"budget.{name} must be above zero, got {value}")

    def remaining(self, seconds: float) -> float | None:
        """Seconds that are left after so many of searching; None for no limit."""
        return None if self.minutes is None else max(0.0, self.minutes * 60 - seconds)


@dataclass(frozen=True)
class Limits:
    """What one candidate may take, and how work is cut into jobs.

    Args:
        screen_seconds: wall time of screening one candidate.
        train_seconds: wall time of training one candidate.
        job_seconds: how long a job should take; candidates are batched up to this by their measured cost.
        batch: most candidates in a job; with 1, nothing about jobs depends on the clock.
    """

    screen_seconds: float = 20.0
    train_seconds: float = 300.0
    job_seconds: float = 0.2
    batch: int = 64

    def per_candidate(self, kind: JobKind) -> float:
        """The wall time that one candidate may take in a job of that kind."""
        return self.screen_seconds if kind == "screen" else self.train_seconds

    def per_job(self, kind: JobKind, candidates: int) -> float:
        """The wall time that a job may take.

        A batch is sized to take `job_seconds`: with much more, one candidate that hangs would hold a worker long.
        """
        return self.per_candidate(kind) + (10 * self.job_seconds if candidates > 1 else 0.0)

    def batch_size(self, kind: JobKind, cost: float | None) -> int:
        """How many candidates go into a job, given the measured seconds of one; None where none was measured yet."""
        if cost is None:
            return min(8, self.batch) if kind == "screen" else 1
        return int(max(1, min(self.batch, self.job_seconds / max(cost, 1e-6))))
