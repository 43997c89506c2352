"""Where jobs wait and run in a `RayPool`: tasks, the seats of workers, groups of seats."""

from __future__ import annotations

import contextlib
import math
import re
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import ray

from normact.launch.ray_worker import shortened
from normact.search.pool import Job, JobKind
from normact.spaces.errors import InputError


@dataclass(eq=False)
class Task:
    """A job under way, as text.

    Args:
        job: what was submitted.
        text: what is sent.
        deaths: workers that died with it in hand; once there is one, it runs alone.
        cancelled: whether nobody wants its answer any more.
        answer: Ray's promise of one, once it was sent.
    """

    job: Job
    text: str
    deaths: int = 0
    cancelled: bool = False
    answer: ray.ObjectRef | None = None


@dataclass(eq=False)
class Seat:
    """A worker and the jobs in its hands, the first of which it runs.

    Args:
        group: where it belongs.
        actor: Ray's handle of the worker.
        since: when it was asked to start; once it is up, when its first job became the first.
        up: whether it has started.
        tasks: its jobs, in order.
    """

    group: Group
    actor: Any
    since: float
    up: bool = False
    tasks: deque[Task] = field(default_factory=deque)

    @property
    def deadline(self) -> float:
        """When its first job must be judged."""
        limit = self.tasks[0].job.time_limit if self.tasks else 0.0
        return self.since + limit if limit > 0 else math.inf

    def give_up_waiting(self) -> list[Task]:
        """Its jobs except the first, to run elsewhere; what it makes of them itself is not reported."""
        waiting = [task for task in list(self.tasks)[1:] if not task.cancelled]
        for task in waiting:
            task.cancelled = True
        return [Task(task.job, task.text, task.deaths) for task in waiting]

    def kill(self) -> None:
        """End the worker, whatever it does. One that ended already, or with its cluster, is fine."""
        with contextlib.suppress(ray.exceptions.RayError):
            if ray.is_initialized():
                ray.kill(self.actor, no_restart=True)


@dataclass(eq=False)
class Group:
    """Workers that hold the same resources, and the jobs that wait for one of them.

    Args:
        kinds: the kinds of job it serves.
        size: how many workers.
        cpus: CPUs that each holds.
        gpus: GPU share that each holds.
        deaths: workers that died while they started, since one last came up.
    """

    kinds: tuple[JobKind, ...]
    size: int
    cpus: float
    gpus: float
    deaths: int = 0
    seats: list[Seat] = field(default_factory=list)
    queue: deque[Task] = field(default_factory=deque)

    @property
    def needs(self) -> dict[str, float]:
        """CPUs and GPUs of all its workers."""
        return {"CPU": self.size * self.cpus, "GPU": self.size * self.gpus}

    @property
    def is_up(self) -> bool:
        """Whether there is a worker."""
        return any(seat.up for seat in self.seats)

    @property
    def oldest_start(self) -> float:
        """Since when it has waited for its first worker; never, where there is one."""
        return math.inf if self.is_up else min((seat.since for seat in self.seats), default=math.inf)

    def put_back(self, tasks: Iterable[Task]) -> None:
        """Queue jobs again, before all others, in their order."""
        self.queue.extendleft(reversed([task for task in tasks if not task.cancelled]))


def groups(workers: int, screen_workers: int | None, gpus: float, cpus: float) -> list[Group]:
    """One group for all; or with GPUs, one that trains and one that screens.

    Raises:
        InputError: a number is not above zero, or a share of a GPU is below it.
    """
    for name, value in (("workers", workers), ("cpus_per_worker", cpus), ("screen_workers", screen_workers)):
        if value is not None and not value > 0:
            raise InputError(f"pool.{name} must be above zero, got {value}")
    if not gpus >= 0:
        raise InputError(f"pool.gpus_per_worker must be zero or more, got {gpus}")
    if not gpus:
        return [Group(("screen", "train"), workers, cpus, 0.0)]
    screeners = workers if screen_workers is None else screen_workers
    return [Group(("train",), workers, cpus, gpus), Group(("screen",), screeners, cpus, 0.0)]


def cause(problem: Exception) -> str:
    """Why a worker died, from the page that Ray writes about it."""
    text = " ".join(str(problem).split())
    found = re.search(r"exit detail: (.*?)(?:\. Some common causes|$)", text)
    return f"worker died: {shortened(found.group(1) if found else text)}"
