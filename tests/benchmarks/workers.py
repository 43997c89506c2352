"""Many workers: how busy they and the driver are at 50, 500 and 5,000, and how long a training must be for 90%.

Controller, engine and ledger are the real ones, the workers are simulated (`tests/simulation.py`), with what Ray takes
of the driver for a job, measured first. The simulation is checked against a real search on two Ray workers.
"""

from __future__ import annotations

import statistics
import sys
import time
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ray

from normact.launch.ray_pool import RayPool
from normact.search.budget import Budget
from normact.search.controllers import Evolution
from normact.search.engine import Engine
from normact.search.ledger import Ledger
from normact.search.pool import Job
from normact.spaces import EVONORM_MOMENTS, EVONORM_POINTWISE, GraphSpace
from tests import judges, simulation
from tests.benchmarks.machine import spread
from tests.judges import LOSS
from tests.simulation import SimulatedClock, SimulatedPool, TimedJudge

SPACE = GraphSpace([*EVONORM_POINTWISE, *EVONORM_MOMENTS])
WORKERS = (50, 500, 5000)
MEANS = (60.0, 30.0, 10.0, 3.0, 1.0, 0.3, 0.1)
"""Mean seconds of a training that are tried, down to the first that does not keep workers 90% busy."""
ENOUGH = 0.9
REAL = {"train_seconds": 0.05, "screen_seconds": 2.5e-3}
PROPOSALS = 3000
REPEATS = 3


def run() -> dict[str, Any]:
    costs = pool_costs()
    checks = [check(costs, seed) for seed in range(REPEATS)]
    by_workers = {str(n): of_workers(n, costs) for n in WORKERS}
    return {
        "pool_cost_ms": {name: round(1e3 * seconds, 3) for name, seconds in costs.items()},
        "simulated_over_real": spread([simulated / real for real, simulated in checks], 3),
        "real_seconds": [round(real, 2) for real, _ in checks],
        "workers": by_workers,
    }


def pool_costs(jobs: int = 1000) -> dict[str, float]:
    """What a job costs on a real Ray pool of two: of the driver's time, and on its way to an idle worker and back."""
    pool = _ray_pool(partial(TimedJudge, SPACE, 0.0, 0.0, 0.0))
    job = Job(0, "screen", ((0, SPACE.to_json(SPACE.baselines()["bn_relu"])),), 0, 60.0)
    try:
        alone = [_round_trip(pool, job) for _ in range(100)]
        start = time.process_time()
        for _ in range(jobs):
            _round_trip(pool, job)
        return {"driver": (time.process_time() - start) / jobs, "round_trip": statistics.median(alone)}
    finally:
        pool.close()


def _round_trip(pool: RayPool, job: Job) -> float:
    start = time.perf_counter()
    pool.submit(job)
    while pool.next(1.0) is None:
        pass
    return time.perf_counter() - start


def check(costs: dict[str, float], seed: int) -> tuple[float, float]:
    """Seconds of the same search on two real workers, which sleep instead of training, and on two simulated ones."""
    pool = _ray_pool(partial(TimedJudge, SPACE, wait=time.sleep, **REAL))
    try:
        start = time.perf_counter()
        _search(pool, None, Budget(proposals=PROPOSALS), seed)
        real = time.perf_counter() - start
    finally:
        pool.close()
    clock = SimulatedClock()
    start = clock.now()
    _search(_simulated(2, clock, costs, TimedJudge(SPACE, **REAL)), clock, Budget(proposals=PROPOSALS), seed)
    simulated = clock.now() - start
    print(f"two workers, {PROPOSALS} proposals: real {real:.1f} s, simulated {simulated:.1f} s")
    return real, simulated


def of_workers(count: int, costs: dict[str, float]) -> dict[str, Any]:
    """Utilisation and driver load by mean training time, and the least time at which workers are 90% busy."""
    at: dict[str, Any] = {}
    least = None
    for mean in MEANS:
        at[f"{mean:g}"] = found = simulate(count, mean, costs)
        print(f"{count} workers, {mean:g} s a training: {found}", flush=True)
        if found["utilisation"] < ENOUGH:
            break
        least = mean
    return {"at": at, "least_mean_seconds_for_90_percent": least}


def simulate(count: int, mean: float, costs: dict[str, float]) -> dict[str, float]:
    """One search: what workers and driver do for two mean training times, after two and the time to fill workers."""
    clock = SimulatedClock()
    pool = _simulated(count, clock, costs, TimedJudge(SPACE, mean))
    start = clock.now()
    settled = fill_seconds(count) + 2 * mean
    lasting = max(2 * mean, 2.0)
    engine = _search(pool, clock, Budget(minutes=(settled + lasting) / 60), 0)
    window = (start + settled, start + settled + lasting)
    return {
        "utilisation": round(pool.utilisation(*window), 3),
        "driver_load": round(pool.driver_load(*window), 3),
        "trained": engine.funnel.ended["accepted"],
        "proposals": engine.funnel.proposals,
    }


def fill_seconds(count: int) -> float:
    """Generously, what the driver needs to give every worker its first training."""
    return 0.01 * count


def _search(pool: Any, clock: SimulatedClock | None, budget: Budget, seed: int) -> Engine:
    with TemporaryDirectory() as folder, Ledger(Path(folder) / "ledger.sqlite", create=True) as ledger:
        engine = Engine(SPACE, Evolution(SPACE, [LOSS], seed), ledger, pool, budget, LOSS, seed, clock=clock)
        engine.run()
        return engine


def _simulated(count: int, clock: SimulatedClock, costs: dict[str, float], judge: TimedJudge) -> SimulatedPool:
    away = max(0.0, costs["round_trip"] - costs["driver"])
    return SimulatedPool(judge, count, clock, costs["driver"], away)


def _ray_pool(make: Any) -> RayPool:
    for part in (sys.modules[__name__], judges, simulation):  # workers need not be able to import the tests
        ray.cloudpickle.register_pickle_by_value(part)
    return RayPool(make, workers=2)
