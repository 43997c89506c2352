"""The engine: durable outcomes a second with a trivial training, on two Ray workers."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import ray

from normact.launch.ray_pool import RayPool
from normact.search.controllers import RandomSearch
from normact.search.engine import Budget, Engine
from normact.search.ledger import Ledger
from normact.search.pool import Evaluate, Pool
from normact.spaces import EVONORM_MOMENTS, EVONORM_POINTWISE, GraphSpace
from tests import judges
from tests.benchmarks.machine import spread

PROPOSALS = 4000
REPEATS = 5
SPACE = GraphSpace([*EVONORM_POINTWISE, *EVONORM_MOMENTS])


class FreeTraining(judges.Judge):
    """Passes everything in screening, and trains nothing: what is left is the engine's own work."""


def make_evaluate() -> Evaluate:
    return FreeTraining(SPACE, reject=0.0)


def run() -> dict[str, Any]:
    import tests.benchmarks.engine as module

    for part in (module, judges):  # workers need not be able to import the tests
        ray.cloudpickle.register_pickle_by_value(part)
    pool = RayPool(module.make_evaluate, workers=2)
    try:
        search(pool, "normal", seed=0)  # warm-up
        rates: dict[str, list[float]] = {"normal": [], "full": []}
        new: dict[str, list[float]] = {"normal": [], "full": []}
        for repeat in range(REPEATS):
            for durability in rates:
                rate, distinct = search(pool, durability, seed=repeat + 1)
                rates[durability].append(rate)
                new[durability].append(distinct)
                print(f"synchronous={durability}: {rate:.0f} outcomes/s, {distinct:.0f} of them trained/s")
    finally:
        pool.close()
    return {
        "outcomes_per_s": spread(rates["normal"], 0)["median"],
        "normal": spread(rates["normal"], 0),
        "full": spread(rates["full"], 0),
        "trained_per_s": spread(new["normal"], 0),
        "proposals": PROPOSALS,
        "workers": 2,
    }


def search(pool: Pool, durability: Any, seed: int) -> tuple[float, float]:
    """All outcomes a second, and those that were trained rather than answered as duplicates."""
    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger(Path(folder) / "ledger.sqlite", create=True, durability=durability)
        with ledger:
            controller = RandomSearch(SPACE, judges.LOSS, seed)
            engine = Engine(SPACE, controller, ledger, pool, Budget(proposals=PROPOSALS), judges.LOSS, seed)
            start = time.perf_counter()
            engine.run()
            seconds = time.perf_counter() - start
            assert ledger.count("finished") == PROPOSALS
    return PROPOSALS / seconds, engine.funnel.ended["accepted"] / seconds
