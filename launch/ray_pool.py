"""`RayPool`: jobs on Ray actors, on this machine or a cluster."""

from __future__ import annotations

import json
import math
import os
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ray
from ray import cloudpickle

from normact.launch.ray_seats import Group, Seat, Task, cause, groups
from normact.launch.ray_session import amounts, close_ray, open_ray, there_is
from normact.launch.ray_worker import Worker, job_text, shortened
from normact.search.pool import Evaluate, Failed, Job, JobKind, Lost, Pool, Report, TimedOut, checked
from normact.spaces.errors import InputError

PREFETCH_BELOW = 0.5  # seconds: behind a longer job the next one would wait while other workers idle
START_DEATHS = 3  # workers of a group in a row that may die while they start

_WORKER_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # a worker without a GPU share sees no GPU
}


class RayPool(Pool):
    """Judges jobs in Ray actors that stay up: one process, one thread and one evaluator each.

    A job past its time limit, which starts when the job is the first of its worker, costs the worker its
    life; so does whatever ends the process. A new worker takes its place. Jobs that were queued behind one
    that timed out go to another worker. Where a worker dies with several jobs in hand it cannot be known
    which one did it, as answers still under way die with it; so all of them run again, each alone on a
    worker, and the one that kills again is `Lost`, with both deaths counted.

    A few jobs queue on a worker behind a short one, so that it never waits for the driver. Should that one turn
    out long, idle workers get them instead.

    With `gpus_per_worker` there are two groups of workers: for `train` with a share of a GPU each, for
    `screen` without. Otherwise one group serves both.

    Args:
        make_evaluate: makes the evaluator in each worker; a picklable function without arguments.
        workers: how many; with GPUs, how many that train.
        address: `local` starts Ray here, on loopback alone; `auto`, `host:port`, `ray://host:port` join a
            cluster. Where this process has Ray initialised already, that is used, and left as it is.
        gpus_per_worker: share of a GPU that a worker holds that trains.
        cpus_per_worker: CPUs that each worker holds.
        screen_workers: with GPUs, how many workers screen; None for as many as train.
        prefetch: jobs that may queue on a worker behind a short one.
        module_paths: folders that workers import from first, such as where a person's own module lies.
        runtime_env: of Ray, for the workers; its `env_vars` go before ours.
        namespace: of Ray.
        start_seconds: how long no worker of a group may be up before that is an error.

    Raises:
        InputError: Ray or the workers do not start, or `make_evaluate` raised. Also from `next`, later.
    """

    def __init__(
        self,
        make_evaluate: Callable[[], Evaluate],
        workers: int = 2,
        address: str = "local",
        gpus_per_worker: float = 0.0,
        cpus_per_worker: float = 1,
        screen_workers: int | None = None,
        prefetch: int = 1,
        module_paths: Sequence[str] = (),
        runtime_env: Mapping[str, Any] | None = None,
        namespace: str | None = None,
        start_seconds: float = 120.0,
    ) -> None:
        self._groups = groups(workers, screen_workers, gpus_per_worker, cpus_per_worker)
        self._make = cloudpickle.dumps(make_evaluate)
        self._module_paths = [os.path.abspath(path) for path in module_paths]
        self._environment = _environment(runtime_env or {})
        self._prefetch = prefetch
        self._start_seconds = start_seconds
        self._reports: deque[Report] = deque()
        self._awaited: dict[ray.ObjectRef, Seat] = {}
        self._seconds: dict[JobKind, float] = {}
        self._closed = False
        needs = {name: sum(group.needs[name] for group in self._groups) for name in ("CPU", "GPU")}
        self._opened = open_ray(address, needs, namespace)
        try:
            self._start_all()
        except BaseException:
            self.close()
            raise

    @property
    def capacity(self) -> Mapping[JobKind, int]:
        return {kind: group.size for group in self._groups for kind in group.kinds}

    def free(self, kind: JobKind) -> int:
        """How many more jobs of the kind would start at once, or be prefetched."""
        group = self._group(kind)
        if_idle = 1 + (self._prefetch if self._is_short(kind) else 0)
        room = sum(self._room(seat) if seat.tasks else if_idle for seat in group.seats if seat.up)
        return max(0, room - len(group.queue))

    def submit(self, job: Job) -> None:
        """Queue a job. Starts at once where a worker is free.

        Raises:
            TypeError: its candidates or its snapshot are not JSON.
            RuntimeError: the pool is closed.
        """
        if self._closed:
            raise RuntimeError("the pool is closed")
        self._group(job.kind).queue.append(Task(job, job_text(job)))
        self._dispatch()

    def next(self, timeout: float) -> Report | None:
        """The next report, or None where none came within `timeout` seconds, or none can come.

        None comes early where a worker came up and nothing waits for it.

        Raises:
            InputError: workers do not start any more.
        """
        end = time.monotonic() + timeout
        while not self._reports and self._awaited:
            unemployed = self._collect(min(end, self._next_deadline()) - time.monotonic())
            self._expire(time.monotonic())
            self._take_back(time.monotonic())
            self._dispatch()
            if unemployed or time.monotonic() >= end:
                break
        return self._reports.popleft() if self._reports else None

    def cancel(self, job_id: int) -> None:
        self._reports = deque(report for report in self._reports if report.job.id != job_id)
        for group in self._groups:
            group.queue = deque(task for task in group.queue if task.job.id != job_id)
            for task in (task for seat in group.seats for task in seat.tasks if task.job.id == job_id):
                task.cancelled = True

    def close(self) -> None:
        self._closed = True
        self._reports.clear()
        self._awaited.clear()
        for group in self._groups:
            group.queue.clear()
            while group.seats:
                group.seats.pop().kill()
        if self._opened:
            self._opened = False
            close_ray()

    # -- workers ---------------------------------------------------------------------------------------------

    def _start_all(self) -> None:
        for group in self._groups:
            for _ in range(group.size):
                self._start_one(group)
        while not all(group.is_up for group in self._groups):
            self._collect(self._next_deadline() - time.monotonic())
            self._expire(time.monotonic())

    def _start_one(self, group: Group) -> None:
        actor = ray.remote(Worker).options(
            num_cpus=group.cpus,
            num_gpus=group.gpus,
            max_restarts=0,
            max_task_retries=0,
            runtime_env=self._environment,
        )
        seat = Seat(group, actor.remote(self._module_paths), time.monotonic())
        group.seats.append(seat)
        self._awaited[seat.actor.start.remote(self._make)] = seat

    def _replace(self, seat: Seat) -> None:
        self._awaited = {ref: other for ref, other in self._awaited.items() if other is not seat}
        seat.group.seats.remove(seat)
        seat.kill()
        self._start_one(seat.group)

    def _came_up(self, seat: Seat, answer: dict[str, Any]) -> None:
        if "error" in answer:
            raise InputError(f"a worker cannot start: {shortened(str(answer['error']))}")
        seat.up = True
        seat.group.deaths = 0

    def _died(self, seat: Seat, problem: Exception) -> None:
        reason = cause(problem)
        if not seat.up:
            seat.group.deaths += 1
            if seat.group.deaths >= START_DEATHS:
                raise InputError(f"{START_DEATHS} workers in a row died while they started; {reason}") from problem
        for task in seat.tasks:
            task.deaths += 1
        if len(seat.tasks) == 1:
            task = seat.tasks.popleft()
            self._report(task, Lost(task.job, reason, task.deaths))
        seat.group.put_back(seat.tasks)
        self._replace(seat)

    # -- handing out -----------------------------------------------------------------------------------------

    def _group(self, kind: JobKind) -> Group:
        return next(group for group in self._groups if kind in group.kinds)

    def _is_short(self, kind: JobKind) -> bool:
        return self._seconds.get(kind, math.inf) < PREFETCH_BELOW

    def _room(self, seat: Seat) -> int:
        """How many more jobs a worker takes."""
        if not seat.up:
            return 0
        if not seat.tasks:
            return 1
        if any(task.deaths or not self._is_short(task.job.kind) for task in seat.tasks):
            return 0
        return max(0, 1 + self._prefetch - len(seat.tasks))

    def _dispatch(self) -> None:
        for group in self._groups:
            while group.queue and (seat := self._seat_for(group.queue[0], group)):
                self._send(seat, group.queue.popleft())

    def _seat_for(self, task: Task, group: Group) -> Seat | None:
        """Who takes the task now: the one with the least in hand, or if the task may kill, with nothing."""
        open_to_it = [seat for seat in group.seats if self._room(seat) and not (task.deaths and seat.tasks)]
        return min(open_to_it, key=lambda seat: len(seat.tasks), default=None)

    def _send(self, seat: Seat, task: Task) -> None:
        task.answer = seat.actor.run.remote(task.text)
        seat.tasks.append(task)
        if len(seat.tasks) == 1:
            self._await_first(seat)

    def _take_back(self, now: float) -> None:
        """Where workers are idle, give them what waits behind jobs that turned out long.

        There it runs in vain, later, for nobody can take it from the worker's hands; its outcome is the same.
        """
        for group in self._groups:
            if group.queue or not any(seat.up and not seat.tasks for seat in group.seats):
                continue
            for seat in group.seats:
                if now - seat.since >= PREFETCH_BELOW:
                    group.queue.extend(seat.give_up_waiting())

    def _await_first(self, seat: Seat) -> None:
        if seat.tasks:
            seat.since = time.monotonic()
            self._awaited[seat.tasks[0].answer] = seat

    # -- taking in -------------------------------------------------------------------------------------------

    def _collect(self, patience: float) -> bool:
        """Take in the answers that are there, or wait for one. Whether a worker came up to an empty queue."""
        refs = list(self._awaited)
        ready, _ = ray.wait(refs, num_returns=len(refs), timeout=0)
        if not ready and patience > 0:
            ready, _ = ray.wait(refs, num_returns=1, timeout=None if patience == math.inf else patience)
        unemployed = False
        for ref in ready:
            seat = self._awaited.pop(ref)
            unemployed = (not seat.up and not seat.group.queue) or unemployed
            self._take(seat, ref)
        return unemployed

    def _take(self, seat: Seat, ref: ray.ObjectRef) -> None:
        try:
            answer = json.loads(ray.get(ref))
        except ray.exceptions.RayError as problem:
            self._died(seat, problem)
            return
        if seat.up:
            self._judged(seat, answer)
        else:
            self._came_up(seat, answer)

    def _judged(self, seat: Seat, answer: dict[str, Any]) -> None:
        task = seat.tasks.popleft()
        seconds, kind = time.monotonic() - seat.since, task.job.kind
        self._seconds[kind] = 0.8 * self._seconds.get(kind, seconds) + 0.2 * seconds
        self._await_first(seat)
        if "error" in answer:
            self._report(task, Failed(task.job, shortened(str(answer["error"]))))
        else:
            self._report(task, checked(task.job, answer.get("outcomes")))

    def _report(self, task: Task, report: Report) -> None:
        if not task.cancelled:
            self._reports.append(report)

    def _next_deadline(self) -> float:
        jobs = (seat.deadline for group in self._groups for seat in group.seats)
        now = time.monotonic()
        late = (seat.since + PREFETCH_BELOW for group in self._groups for seat in group.seats if len(seat.tasks) > 1)
        starts = (group.oldest_start + self._start_seconds for group in self._groups)
        return min([*jobs, *starts, *(moment for moment in late if moment > now)])

    def _expire(self, now: float) -> None:
        """End what is past its time."""
        for seat in [seat for group in self._groups for seat in group.seats if seat.deadline <= now]:
            task = seat.tasks.popleft()
            self._report(task, TimedOut(task.job, now - seat.since))
            seat.group.put_back(seat.tasks)
            self._replace(seat)
        for group in self._groups:
            if group.oldest_start + self._start_seconds <= now:
                raise InputError(_none_up(group, self._start_seconds))


def _environment(asked: Mapping[str, Any]) -> dict[str, Any]:
    return {**asked, "env_vars": {**_WORKER_ENVIRONMENT, **asked.get("env_vars", {})}}


def _none_up(group: Group, seconds: float) -> str:
    one = amounts({"CPU": group.cpus, "GPU": group.gpus})
    return (
        f"no worker for {' and '.join(group.kinds)} came up in {seconds:g} s: asked for {group.size} with "
        f"{one} each, and Ray has {there_is()}; ask for fewer or smaller ones "
        "(pool.workers, pool.gpus_per_worker)"
    )
