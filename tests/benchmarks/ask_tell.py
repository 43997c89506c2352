"""What a controller takes for one ask and one tell, with 100,000 outcomes behind it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from normact.search.controllers import Controller, Evolution, RandomSearch
from normact.search.objective import Score
from normact.search.outcome import Outcome, Proposal
from normact.spaces import Space
from tests.judges import LOSS

BEHIND = 100_000
MEASURED = 3_000
CONTROLLERS: dict[str, Callable[[Space], Controller]] = {
    "random": lambda space: RandomSearch(space, LOSS, 0),
    "evolution": lambda space: Evolution(space, LOSS, 0),
    "evolution_mean": lambda space: partial(Evolution, winner="mean")(space, LOSS, 0),
}
"""Those of `conf/controller`, with their own settings."""


def ask_tell(space: Space) -> dict[str, dict[str, float]]:
    """Per controller: median and 99th percentile in ms of wall time, and of the thread's processor time."""
    return {name: measure(aged(make(space))) for name, make in CONTROLLERS.items()}


def aged(controller: Controller) -> Controller:
    """The controller with 100,000 accepted proposals of 2,000 candidates behind it."""
    candidates = [controller.space.sample(np.random.default_rng([1, k])) for k in range(2000)]
    outcome = outcomes()
    for number in range(BEHIND):
        controller.replay(Proposal(number, candidates[number % len(candidates)]))
        controller.tell(number, next(outcome))
    return controller


def outcomes() -> Iterator[Outcome]:
    """Accepted ones with random losses on two anchors, numbered from 0."""
    rng = np.random.default_rng(0)
    number = 0
    while True:
        a, b = rng.random(2)
        yield Outcome(number, scores=(Score("loss", "a", 100, a), Score("loss", "b", 100, b)), steps=100, device="cpu")
        number += 1


def measure(controller: Controller) -> dict[str, float]:
    """Times of further asks and tells, one after the other."""
    times: dict[str, list[float]] = {name: [] for name in ("ask", "tell", "ask_cpu", "tell_cpu")}

    def timed(name: str, call: Callable[[], Any]) -> Any:
        wall, cpu = time.perf_counter(), time.thread_time()
        result = call()
        times[f"{name}_cpu"].append(time.thread_time() - cpu)
        times[name].append(time.perf_counter() - wall)
        return result

    outcome = outcomes()
    for _ in range(MEASURED):
        proposal = timed("ask", controller.ask)
        timed("tell", partial(controller.tell, proposal.number, next(outcome)))
    return {
        f"{name}_{kind}_ms": round(1e3 * value, 4)
        for name, seconds in times.items()
        for kind, value in (("median", statistics.median(seconds)), ("p99", float(np.percentile(seconds, 99))))
    }
