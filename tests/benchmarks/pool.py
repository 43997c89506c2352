"""What a job costs the driver: `RayPool` alone at 2 to 5,000 busy workers, and Ray's part with 5,000 calls open."""

from __future__ import annotations

import queue
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ray

from normact.launch.ray_pool import RayPool
from normact.launch.ray_session import close_ray, open_ray
from normact.search.pool import Job
from tests.benchmarks.machine import spread
from tests.fake_ray import FakeRay, fake_ray

WORKERS = (2, 50, 500, 5000)
JOBS = 2000
REPEATS = 5
LIMIT = 600.0  # seconds a job: there, so that deadlines are kept


def run() -> dict[str, Any]:
    own = {n: [] for n in WORKERS}  # type: dict[int, list[float]]
    for _ in range(REPEATS):
        for n in WORKERS:
            own[n].append(1e3 * seconds_per_job(n))
    waits = {n: of_ray(n) for n in (50, 5000)}
    return {
        "pool_ms_per_job": {str(n): spread(times, 4) for n, times in own.items()},
        "ray_ms": {str(n): {what: spread(times, 3) for what, times in found.items()} for n, found in waits.items()},
    }


def seconds_per_job(workers: int, jobs: int = JOBS) -> float:
    """The pool's own time for a job, all workers busy all the time: `next`, `free`, `submit`."""
    with fake_ray() as fake:
        pool = RayPool(dict, workers=workers)
        while pool.free("train"):
            pool.next(0.0)
            pool.submit(_job(len(fake.pending)))
        seconds = sum(_one_more(pool, fake, workers + n) for n in range(jobs))
        assert len(fake.pending) >= workers
        pool.close()
    return seconds / jobs


def _one_more(pool: RayPool, fake: FakeRay, number: int) -> float:
    fake.answer_one()
    start = time.perf_counter()
    report = pool.next(60.0)
    assert report is not None
    if pool.free("train"):
        pool.submit(_job(number))
    return time.perf_counter() - start


def _job(number: int) -> Job:
    return Job(number, "train", ((number, {"nodes": [["mul", 0, 1]] * 8}),), 7, LIMIT)


def of_ray(pending: int) -> dict[str, list[float]]:
    """Milliseconds of a call to an idle actor while so many others are open: by `ray.wait`, and by callback.

    `driver_cpu` is what a call by callback takes of the driver's processor time, Ray's threads in it included.
    """
    with TemporaryDirectory() as folder:
        open_ray("local", {"CPU": 3, "GPU": 0})
        try:
            blocked, idle = [_Waits.remote() for _ in range(2)], _Waits.remote()  # type: ignore[attr-defined]
            refs = [blocked[n % 2].until.remote(str(Path(folder) / "never")) for n in range(pending)]
            ray.get(idle.answer.remote())
            found: dict[str, list[float]] = {"wait": [], "callback": [], "driver_cpu": []}
            for _ in range(100):
                found["wait"].append(1e3 * _by_wait(idle, refs))
                found["callback"].append(1e3 * _by_callback(idle))
            for _ in range(5):
                found["driver_cpu"].append(1e3 * _cpu_of_one(idle))
            return found
        finally:
            close_ray()


@ray.remote
class _Waits:
    def until(self, path: str) -> None:
        while not Path(path).exists():
            time.sleep(0.1)

    def answer(self) -> str:
        return "x" * 500


def _by_wait(idle: Any, refs: list[ray.ObjectRef]) -> float:
    start = time.perf_counter()
    ready, _ = ray.wait([*refs, idle.answer.remote()], num_returns=1)
    ray.get(ready[0])
    return time.perf_counter() - start


def _by_callback(idle: Any) -> float:
    inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
    start = time.perf_counter()
    idle.answer.remote().future().add_done_callback(inbox.put)
    inbox.get(timeout=60).result()
    return time.perf_counter() - start


def _cpu_of_one(idle: Any, calls: int = 500) -> float:
    inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
    start = time.process_time()
    for _ in range(calls):
        idle.answer.remote().future().add_done_callback(inbox.put)
    for _ in range(calls):
        inbox.get(timeout=60).result()
    return (time.process_time() - start) / calls
