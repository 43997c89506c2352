"""`RayPool`: jobs on Ray actors, on this machine or a cluster."""

from __future__ import annotations

import json
import math
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import Any

import ray
from ray import cloudpickle

from normact.launch.ray_seats import IDLE, Alarms, Group, Load, Seat, Task, cause, groups
from normact.launch.ray_session import amounts, close_ray, open_ray, there_is
from normact.launch.ray_worker import Worker, job_text, shortened
from normact.search.pool import Evaluate, Failed, Job, JobKind, Lost, Pool, Report, TimedOut, checked
from normact.spaces.errors import InputError

PREFETCH_BELOW = 0.5  # seconds: behind a longer job the next one would wait while other workers idle
START_DEATHS = 3  # workers of a group in a row that may die while they start; or as many as the group has

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
    worker, and the one that kills again is `Lost`, with both deaths counted. Jobs of several candidates are
    `Lost` at once, for whoever asked to submit them one by one: each of those runs alone, with the death that
    it had with the others counted. So whatever ends its worker is sent twice, and its second death says so.

    A few jobs queue on a worker behind a short one, so that it never waits for the driver. Should that one turn
    out long, idle workers get them instead.

    Where the cluster has room for some of the workers alone, those work, and the others start when nodes come.
    Answers arrive through a queue that Ray's own thread fills, as a `ray.wait` takes time in proportion to what
    it waits for; so what a job costs the driver does not depend on the number of workers.

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
        memory_gib: GiB of its own that a worker without a share of a GPU may have, the evaluator included; None
            for no limit. A candidate that wants more fails with torch's or Python's own error (see `Worker`).
        memory_gib_with_gpu: the same for workers with a share of a GPU, as CUDA maps much that it never fills.
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
        memory_gib: float | None = None,
        memory_gib_with_gpu: float | None = None,
        prefetch: int = 1,
        module_paths: Sequence[str] = (),
        runtime_env: Mapping[str, Any] | None = None,
        namespace: str | None = None,
        start_seconds: float = 120.0,
    ) -> None:
        memory = memory_gib, memory_gib_with_gpu
        self._groups = groups(workers, screen_workers, gpus_per_worker, cpus_per_worker, *memory)
        self._group_of = {kind: group for group in self._groups for kind in group.kinds}
        self._make = cloudpickle.dumps(make_evaluate)
        self._module_paths = [os.path.abspath(path) for path in module_paths]
        self._environment = _environment(runtime_env or {})
        self._prefetch = prefetch
        self._start_seconds = start_seconds
        self._reports: deque[Report] = deque()
        self._tasks: dict[int, Task] = {}
        self._inbox: SimpleQueue[tuple[Seat, int, Future[str]]] = SimpleQueue()
        self._awaited: set[Seat] = set()
        self._alarms = Alarms()
        self._seconds: dict[JobKind, float] = {}
        self._deaths_before: Counter[int] = Counter()
        self._closed = False
        needs = {name: sum(group.needs[name] for group in self._groups) for name in ("CPU", "GPU")}
        self._opened = open_ray(address, needs, namespace)
        self._actor = ray.remote(Worker)
        try:
            self._start_all()
        except BaseException:
            self.close()
            raise

    @property
    def capacity(self) -> Mapping[JobKind, int]:
        return {kind: group.size for kind, group in self._group_of.items()}

    def free(self, kind: JobKind) -> int:
        """How many more jobs of the kind would start at once, or be prefetched."""
        group = self._group_of[kind]
        if_idle = 1 + (self._prefetch if self._is_short(kind) else 0)
        room = sum(len(seats) * (self._room(load) if load.jobs else if_idle) for load, seats in group.loads.items())
        return max(0, room - group.waiting)

    def submit(self, job: Job) -> None:
        """Queue a job. Starts at once where a worker is free.

        Raises:
            TypeError: its candidates or its snapshot are not JSON.
            RuntimeError: the pool is closed.
        """
        if self._closed:
            raise RuntimeError("the pool is closed")
        task = Task(job, job_text(job))
        if len(job.candidates) == 1:
            task.deaths = self._deaths_before.pop(job.candidates[0][0], 0)
        self._queue(self._group_of[job.kind], task)
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
            self._look_at_clocks(time.monotonic())
            self._take_back()
            self._dispatch()
            if unemployed or time.monotonic() >= end:
                break
        return self._reports.popleft() if self._reports else None

    def cancel(self, job_id: int) -> None:
        task = self._tasks.pop(job_id, None)
        if task is None:
            self._reports = deque(report for report in self._reports if report.job.id != job_id)
        else:
            self._group_of[task.job.kind].cancel(task)

    def close(self) -> None:
        self._closed = True
        self._reports.clear()
        self._tasks.clear()
        self._awaited.clear()
        for group in self._groups:
            group.clear()
            for seat in list(group.seats):
                group.leave(seat, time.monotonic())
                seat.kill()
        if self._opened:
            self._opened = False
            close_ray()

    # -- workers ---------------------------------------------------------------------------------------------

    def _start_all(self) -> None:
        for group in self._groups:
            group.none_since = time.monotonic()
            for _ in range(group.size):
                self._start_one(group)
        while not all(group.loads for group in self._groups):
            self._collect(self._next_deadline() - time.monotonic())
            self._look_at_clocks(time.monotonic())

    def _start_one(self, group: Group) -> None:
        actor = self._actor.options(
            num_cpus=group.cpus,
            num_gpus=group.gpus,
            max_restarts=0,
            max_task_retries=0,
            runtime_env=self._environment,
        )
        seat = Seat(group, actor.remote(self._module_paths, group.memory), time.monotonic())
        group.starting[seat] = None
        self._await(seat, seat.actor.start.remote(self._make))

    def _replace(self, seat: Seat) -> None:
        self._awaited.discard(seat)
        seat.group.leave(seat, time.monotonic())
        seat.kill()
        self._start_one(seat.group)

    def _came_up(self, seat: Seat, answer: dict[str, Any]) -> None:
        if "error" in answer:
            raise InputError(f"a worker cannot start: {shortened(str(answer['error']))}")
        seat.group.came_up(seat)

    def _died(self, seat: Seat, problem: Exception) -> None:
        reason = cause(problem)
        if not seat.up:
            self._died_early(seat.group, reason)
        for task in seat.tasks:
            task.deaths += 1
        lost = [task for task in seat.tasks if len(seat.tasks) == 1 or len(task.job.candidates) > 1]
        seat.group.put_back([task for task in seat.tasks if task not in lost])
        for task in lost:
            self._deaths_before.update(number for number, _ in task.job.candidates)
            self._report(task, Lost(task.job, reason, task.deaths))
        self._replace(seat)

    def _died_early(self, group: Group, reason: str) -> None:
        """A node that goes takes all with it that start there: so many may die at once."""
        group.deaths += 1
        if group.deaths >= max(START_DEATHS, group.size):
            raise InputError(f"{group.deaths} workers in a row died while they started; {reason}")

    # -- handing out -----------------------------------------------------------------------------------------

    def _is_short(self, kind: JobKind) -> bool:
        return self._seconds.get(kind, math.inf) < PREFETCH_BELOW

    def _room(self, load: Load) -> int:
        """How many more jobs a worker takes."""
        if not load.jobs:
            return 1
        if load.risky or not all(self._is_short(kind) for kind in load.kinds):
            return 0
        return max(0, 1 + self._prefetch - load.jobs)

    def _queue(self, group: Group, task: Task) -> None:
        self._tasks[task.job.id] = task
        group.put([task])

    def _dispatch(self) -> None:
        for group in self._groups:
            while (task := group.first()) and (seat := self._seat_for(task, group)):
                self._send(seat, group.take_first())

    def _seat_for(self, task: Task, group: Group) -> Seat | None:
        """Who takes the task now: the one with the least in hand, or if the task may kill, with nothing."""
        open_to_it = [load for load in group.loads if self._room(load) and not (task.deaths and load.jobs)]
        if not open_to_it:
            return None
        return next(reversed(group.loads[min(open_to_it, key=lambda load: load.jobs)]))

    def _send(self, seat: Seat, task: Task) -> None:
        task.answer = seat.actor.run.remote(task.text)
        seat.tasks.append(task)
        seat.group.look_at(seat)
        if len(seat.tasks) == 1:
            self._turn(seat)
        elif len(seat.tasks) == 2:
            self._alarms.set(seat, seat.since + PREFETCH_BELOW)

    def _turn(self, seat: Seat) -> None:
        """Another job is the first of a worker's."""
        seat.turn += 1
        seat.group.late.pop(seat, None)
        if not seat.tasks:
            return
        seat.since = time.monotonic()
        self._await(seat, seat.tasks[0].answer)
        if seat.deadline < math.inf:
            self._alarms.set(seat, seat.deadline)
        if len(seat.tasks) > 1:
            self._alarms.set(seat, seat.since + PREFETCH_BELOW)

    def _take_back(self) -> None:
        """Where workers are idle, give them what waits behind jobs that turned out long.

        There it runs in vain, later, for nobody can take it from the worker's hands; its outcome is the same.
        """
        for group in self._groups:
            if group.late and IDLE in group.loads and not group.waiting:
                late, group.late = group.late, {}
                for task in (task for seat in late for task in seat.give_up_waiting()):
                    self._queue(group, task)

    # -- taking in -------------------------------------------------------------------------------------------

    def _await(self, seat: Seat, ref: ray.ObjectRef) -> None:
        """Let Ray's thread put the answer into the inbox."""
        self._awaited.add(seat)
        inbox, turn = self._inbox, seat.turn
        ref.future().add_done_callback(lambda answer: inbox.put((seat, turn, answer)))

    def _collect(self, patience: float) -> bool:
        """Take in the answers that are there, or wait for one. Whether a worker came up to an empty queue."""
        unemployed = False
        wait = None if patience == math.inf else max(0.0, patience)
        while True:  # it ends, as nothing is handed out meanwhile
            try:
                answer = self._inbox.get(timeout=wait)
            except Empty:
                return unemployed
            unemployed = self._take(*answer) or unemployed
            wait = 0.0

    def _take(self, seat: Seat, turn: int, future: Future[str]) -> bool:
        """Take in an answer, unless it is void. Whether it is that of a worker that came up to an empty queue."""
        if seat.turn != turn:
            return False
        self._awaited.discard(seat)
        starts = not seat.up
        try:
            answer = json.loads(future.result())
        except ray.exceptions.RayError as problem:
            self._died(seat, problem)
            return False
        if starts:
            self._came_up(seat, answer)
        else:
            self._judged(seat, answer)
        return starts and not seat.group.waiting

    def _judged(self, seat: Seat, answer: dict[str, Any]) -> None:
        task = seat.tasks.popleft()
        seconds, kind = time.monotonic() - seat.since, task.job.kind
        self._seconds[kind] = 0.8 * self._seconds.get(kind, seconds) + 0.2 * seconds
        seat.group.look_at(seat)
        self._turn(seat)
        if "error" in answer:
            self._report(task, Failed(task.job, shortened(str(answer["error"]))))
        else:
            self._report(task, checked(task.job, answer.get("outcomes")))

    def _report(self, task: Task, report: Report) -> None:
        if not task.cancelled:
            del self._tasks[task.job.id]
            self._reports.append(report)

    # -- clocks ----------------------------------------------------------------------------------------------

    def _next_deadline(self) -> float:
        return min(self._alarms.next, *(group.none_since + self._start_seconds for group in self._groups))

    def _look_at_clocks(self, now: float) -> None:
        """End what is past its time, and note who has jobs behind one that turned out long."""
        for seat in self._alarms.due(now):
            if seat.deadline <= now:
                self._expire(seat, now)
            elif len(seat.tasks) > 1 and now - seat.since >= PREFETCH_BELOW:
                seat.group.late[seat] = None
        for group in self._groups:
            if group.none_since + self._start_seconds <= now:
                raise InputError(_none_up(group, self._start_seconds))

    def _expire(self, seat: Seat, now: float) -> None:
        task = seat.tasks.popleft()
        self._report(task, TimedOut(task.job, now - seat.since))
        seat.group.put_back(seat.tasks)
        self._replace(seat)


def _environment(asked: Mapping[str, Any]) -> dict[str, Any]:
    return {**asked, "env_vars": {**_WORKER_ENVIRONMENT, **asked.get("env_vars", {})}}


def _none_up(group: Group, seconds: float) -> str:
    one = amounts({"CPU": group.cpus, "GPU": group.gpus})
    return (
        f"no worker for {' and '.join(group.kinds)} came up in {seconds:g} s: asked for {group.size} with "
        f"{one} each, and Ray has {there_is()}; ask for fewer or smaller ones "
        "(pool.workers, pool.gpus_per_worker)"
    )
