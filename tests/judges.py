"""Evaluators that train nothing, for tests of engine and pools: what they answer is a function of the job."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from normact.search.objective import Objective, Score
from normact.search.outcome import Outcome, Proposal
from normact.search.pool import Job
from normact.spaces import Space

LOSS = Objective("loss", "", "minimize", trivial=1.0, perfect=0.0)


class Judge:
    """Answers from a candidate's key: screening passes or rejects, fingerprints collide where told to.

    Args:
        space: of the candidates.
        fingerprint: what a key computes; by default a function of the key that merges none.
        reject: share of candidates that screening rejects.
    """

    def __init__(
        self, space: Space, fingerprint: Callable[[str], str] = lambda key: f"print of {key}", reject: float = 0.5
    ) -> None:
        self.space = space
        self.fingerprint = fingerprint
        self.reject = reject
        self.trained: list[int] = []

    def __call__(self, job: Job) -> list[Outcome]:
        one = self.screen if job.kind == "screen" else self.train
        return [one(number, self.space.key(self.space.from_json(data)), job) for number, data in job.candidates]

    def screen(self, number: int, key: str, job: Job) -> Outcome:
        if digest(key) % 1000 < 1000 * self.reject:
            return Outcome(number, "probe", "unlucky", seconds={"probe": 1e-3})
        return Outcome(number, fingerprint=self.fingerprint(key), seconds={"probe": 1e-3}, figures={"probe.size": 1.0})

    def train(self, number: int, key: str, job: Job) -> Outcome:
        self.trained.append(number)
        value = (digest(key) // 1000 % 1000) / 1000
        scores = (Score("loss", "a", 100, value), Score("loss", "b", 100, 1 - value))
        return Outcome(number, scores=scores, steps=100, seconds={"train": 2e-3}, seed=job.seed, device="cpu")


def digest(key: str) -> int:
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")


def expected(space: Space, proposal: Proposal) -> str:
    """Where a candidate ends, from its key alone, for a `Judge` with default arguments."""
    return "probe" if digest(space.key(proposal.candidate)) % 1000 < 500 else "accepted"


def scored(outcomes: dict[int, Outcome]) -> dict[int, Any]:
    """What must not depend on workers, order or kills: everything but costs, timed scores and the worker's name."""
    costs = ("seconds", "memory", "worker", "device")
    untimed = {
        n: replace(o, scores=tuple(s for s in o.scores if s.objective != "relative_time")) for n, o in outcomes.items()
    }
    return {n: {k: v for k, v in o.to_json().items() if k not in costs} for n, o in sorted(untimed.items())}
