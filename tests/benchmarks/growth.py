"""A ledger of a million outcomes: what it takes to make, to resume and to show. Trainings are free.

Each part runs in a process of its own, so that its peak of memory is its own too.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from normact.launch import run_folder
from normact.launch.config import compose_config, controller_of, space_of
from normact.search.budget import Budget
from normact.search.controllers import Controller
from normact.search.engine import Engine
from normact.search.funnel import ACCEPTED
from normact.search.history import History
from normact.search.ledger import Ledger
from normact.search.objective import Objective
from normact.search.outcome import Proposal
from normact.search.pool import LocalPool
from tests.judges import Judge

OUTCOMES = int(os.environ.get("NORMACT_BENCH_OUTCOMES", 1_000_000))
ASKED = 1000
LOSS = Objective("loss", "", "minimize", trivial=1.0, perfect=0.0)


def run() -> dict[str, Any]:
    with TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        made = in_process(make, run_dir, OUTCOMES)
        print(made)
        resumed = {name: in_process(resume, run_dir, name) for name in ("random", "evolution")}
        print(resumed)
        shown = in_process(show, run_dir)
        print(shown)
    return {"outcomes": OUTCOMES, "made": made, "resumed": resumed, "show": shown}


def in_process(part: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """What a part gives in a fresh process, with its peak of memory."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measured, (part, arguments))


def measured(part: Callable[..., dict[str, Any]], arguments: tuple[Any, ...]) -> dict[str, Any]:
    found = part(*arguments)
    usage = resource.RUSAGE_CHILDREN if part is show else resource.RUSAGE_SELF
    return {**found, "peak_mb": round(resource.getrusage(usage).ru_maxrss / 1024)}


class Timed(Controller):
    """Passes on to a controller and notes how long its asks take, here and there."""

    def __init__(self, inner: Controller) -> None:
        super().__init__(inner.space, inner.objectives, inner.seed)
        self.inner = inner
        self.history = inner.history
        self.milliseconds: dict[int, list[float]] = {10**k: [] for k in range(3, 7)}

    def propose(self, number: int, rng: Any) -> Proposal:
        start = time.perf_counter()
        proposal = self.inner.propose(number, rng)
        for count, times in self.milliseconds.items():
            if count <= number + ASKED and len(times) < ASKED:
                times.append(1e3 * (time.perf_counter() - start))
        return proposal

    def learn(self, proposal: Any, outcome: Any) -> None:
        self.inner.learn(proposal, outcome)

    @property
    def medians(self) -> Mapping[str, float]:
        """Median milliseconds of 1,000 asks, by how many came before."""
        return {str(count): round(median(times), 4) for count, times in self.milliseconds.items() if times}


def make(folder: Path, outcomes: int) -> dict[str, Any]:
    """A run folder with so many outcomes."""
    config = compose_config(["pool=local", f"run_dir={folder}"])
    space = space_of(config)
    controller = Timed(controller_of(config, space, [LOSS], []))
    start = time.perf_counter()
    with run_folder.create(folder, config) as ledger:
        run_folder.check_fingerprints(ledger, space)
        ledger.set_meta("objectives", [asdict(LOSS)])
        engine = _engine(space, controller, ledger, Budget(proposals=outcomes))
        engine.run()
        seconds = time.perf_counter() - start
        assert ledger.count("finished") == outcomes
    return {
        "seconds": round(seconds, 1),
        "outcomes_per_s": round(outcomes / seconds),
        "accepted": engine.funnel.ended[ACCEPTED],
        "ask_ms_after": controller.medians,
        "ledger_mb": round((folder / run_folder.LEDGER).stat().st_size / 2**20),
    }


def resume(folder: Path, controller: str) -> dict[str, Any]:
    """From the start to the first new proposal."""
    config = compose_config(["pool=local", f"controller={controller}"])
    space = space_of(config)
    start = time.perf_counter()
    with run_folder.open_ledger(folder, write=True) as ledger:
        history = History(ledger)
        history.check()
        checked = time.perf_counter() - start
        engine = _engine(space, controller_of(config, space, [LOSS], []), ledger, Budget(proposals=1))
        engine.replay()
        proposal = engine.controller.ask()
        seconds = time.perf_counter() - start
        assert proposal.number == history.funnel.proposals == ledger.count("proposed")
    return {"seconds": round(seconds, 1), "of_which_checking": round(checked, 1)}


def show(folder: Path) -> dict[str, Any]:
    """The command, Python's start and all imports included."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "normact.launch.main", "show", str(folder), "--json"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return {"seconds": round(time.perf_counter() - start, 1)}


def _engine(space: Any, controller: Controller, ledger: Ledger, budget: Budget) -> Engine:
    pool = LocalPool(lambda: Judge(space, reject=0.0))
    return Engine(space, controller, ledger, pool, budget, LOSS)
