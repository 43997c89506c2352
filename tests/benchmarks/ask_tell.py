"""What a controller takes for one ask and one tell, with 100,000 outcomes behind it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from normact import conf
from normact.launch.config import compose_config, controller_of
from normact.search.controllers import Controller
from normact.search.objective import Score
from normact.search.outcome import Outcome, Proposal
from normact.spaces import Space
from tests.judges import LOSS

BEHIND = 100_000
SLOW = ("cmaes", "nsga2", "nsga3", "optuna", "surrogate", "tpe")
"""Controllers that think for milliseconds: Optuna's, and the surrogate; and `cmaes` does not suit a space of graphs."""
MEASURED = 3_000
CONTROLLERS = sorted(path.stem for path in Path(conf.__path__[0]).glob("controller/*.yaml"))
VARIANTS = {"evolution_mean": ["controller=evolution", "controller.winner=mean"]}
OVERRIDES: dict[str, list[str]] = {
    **{name: [f"controller={name}"] for name in CONTROLLERS},
    **VARIANTS,
}
"""Every controller of `conf/controller`, with its own settings, and variants."""


def made(name: str, space: Space) -> Controller:
    """A controller as `normact search` makes it."""
    return controller_of(compose_config(OVERRIDES[name]), space, [LOSS], ())


def ask_tell(space: Space) -> dict[str, dict[str, float]]:
    """Per controller: median and 99th percentile in ms of wall time, and of the thread's processor time."""
    return {name: measure(aged(made(name, space))) for name in OVERRIDES if name not in SLOW}


def ask_tell_after(space: Space, overrides: Sequence[str], behind: int) -> float:
    """Median milliseconds of an ask and a tell together, of 100, after so many outcomes."""
    controller = controller_of(compose_config(overrides), space, [LOSS], ())
    times = measure(aged(controller, behind), 100)
    return round(times["ask_median_ms"] + times["tell_median_ms"], 3)


def aged(controller: Controller, behind: int = BEHIND) -> Controller:
    """The controller with so many accepted proposals of 2,000 candidates behind it."""
    candidates = [controller.space.sample(np.random.default_rng([1, k])) for k in range(2000)]
    notes = [_note(controller.space, candidate) for candidate in candidates] if behind else []
    outcome = outcomes()
    for number in range(behind):
        k = number % len(candidates)
        controller.replay(Proposal(number, candidates[k], note=notes[k]))
        controller.tell(number, next(outcome))
    return controller


def _note(space: Space, candidate: Any) -> Any:
    """What a sampler of Optuna has noted of a candidate; of no generation, so that NSGA-II starts its first."""
    return {"trial": [space.trial_parameters(candidate), {}], "answered": [], "study": {}}


def outcomes() -> Iterator[Outcome]:
    """Accepted ones with random losses on two anchors, numbered from 0."""
    rng = np.random.default_rng(0)
    number = 0
    while True:
        a, b = rng.random(2)
        yield Outcome(number, scores=(Score("loss", "a", 100, a), Score("loss", "b", 100, b)), steps=100, device="cpu")
        number += 1


def measure(controller: Controller, count: int = MEASURED) -> dict[str, float]:
    """Times of further asks and tells, one after the other."""
    times: dict[str, list[float]] = {name: [] for name in ("ask", "tell", "ask_cpu", "tell_cpu")}

    def timed(name: str, call: Callable[[], Any]) -> Any:
        wall, cpu = time.perf_counter(), time.thread_time()
        result = call()
        times[f"{name}_cpu"].append(time.thread_time() - cpu)
        times[name].append(time.perf_counter() - wall)
        return result

    outcome = outcomes()
    for _ in range(count):
        proposal = timed("ask", controller.ask)
        timed("tell", partial(controller.tell, proposal.number, next(outcome)))
    return {
        f"{name}_{kind}_ms": round(1e3 * value, 4)
        for name, seconds in times.items()
        for kind, value in (("median", statistics.median(seconds)), ("p99", float(np.percentile(seconds, 99))))
    }
