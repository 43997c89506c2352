"""Where jobs wait and run in a `RayPool`: tasks, the seats of workers, groups of seats, alarms.

Nothing here takes time in proportion to the number of workers: a pool may have thousands.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import math
import re
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

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
        queued: whether it waits for a worker.
        answer: Ray's promise of one, once it was sent.
    """

    job: Job
    text: str
    deaths: int = 0
    cancelled: bool = False
    queued: bool = False
    answer: ray.ObjectRef | None = None


class Load(NamedTuple):
    """What a worker has in hand, as far as it decides how much more it takes.

    Args:
        jobs: how many.
        kinds: of what kinds.
        risky: whether one of them ended a worker before.
    """

    jobs: int
    kinds: frozenset[JobKind]
    risky: bool


IDLE = Load(0, frozenset(), False)


@dataclass(eq=False)
class Seat:
    """A worker and the jobs in its hands, the first of which it runs.

    Args:
        group: where it belongs.
        actor: Ray's handle of the worker.
        since: when it was asked to start; once it is up, when its first job became the first.
        tasks: its jobs, in order.
        turn: counts its first jobs; what was awaited of an earlier turn is void.
        load: what it had in hand when its group last looked; None where it is not up.
    """

    group: Group
    actor: Any
    since: float
    tasks: deque[Task] = field(default_factory=deque)
    turn: int = 0
    load: Load | None = None

    @property
    def up(self) -> bool:
        """Whether it has started."""
        return self.load is not None

    @property
    def deadline(self) -> float:
        """When its first job must be judged."""
        limit = self.tasks[0].job.time_limit if self.tasks else 0.0
        return self.since + limit if limit > 0 else math.inf

    @property
    def in_hand(self) -> Load:
        """What it has in hand."""
        if not self.tasks:
            return IDLE
        kinds = frozenset(task.job.kind for task in self.tasks)
        return Load(len(self.tasks), kinds, any(task.deaths for task in self.tasks))

    def give_up_waiting(self) -> list[Task]:
        """Its jobs except the first, to run elsewhere; what it makes of them itself is not reported."""
        waiting = [task for task in itertools.islice(self.tasks, 1, None) if not task.cancelled]
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
        memory: bytes of its own that each may have; None for no limit.
        deaths: workers that died while they started, since one last came up.
        none_since: since when no worker is up; infinity where one is.
        starting: workers that are not up yet.
        loads: those that are up, by what they have in hand.
        late: those whose first job turned out long, with others behind it.
        waiting: how many jobs wait.
    """

    kinds: tuple[JobKind, ...]
    size: int
    cpus: float
    gpus: float
    memory: int | None = None
    deaths: int = 0
    none_since: float = math.inf
    starting: dict[Seat, None] = field(default_factory=dict)
    loads: dict[Load, dict[Seat, None]] = field(default_factory=dict)
    late: dict[Seat, None] = field(default_factory=dict)
    waiting: int = 0
    _queue: deque[Task] = field(default_factory=deque)

    @property
    def needs(self) -> dict[str, float]:
        """CPUs and GPUs of all its workers."""
        return {"CPU": self.size * self.cpus, "GPU": self.size * self.gpus}

    @property
    def seats(self) -> Iterator[Seat]:
        """All workers."""
        return itertools.chain(self.starting, *self.loads.values())

    # -- workers ---------------------------------------------------------------------------------------------

    def came_up(self, seat: Seat) -> None:
        """A worker has started."""
        del self.starting[seat]
        self.deaths = 0
        self.none_since = math.inf
        self.look_at(seat)

    def look_at(self, seat: Seat) -> None:
        """What a worker that is up has in hand changed."""
        self._take_out(seat)
        seat.load = seat.in_hand
        self.loads.setdefault(seat.load, {})[seat] = None

    def leave(self, seat: Seat, now: float) -> None:
        """A worker is no more; what was awaited of it is void."""
        seat.turn += 1
        self.starting.pop(seat, None)
        self.late.pop(seat, None)
        was_up = seat.up
        self._take_out(seat)
        if was_up and not self.loads:
            self.none_since = now

    def _take_out(self, seat: Seat) -> None:
        if seat.load is not None:
            alike = self.loads[seat.load]
            del alike[seat]
            if not alike:
                del self.loads[seat.load]
            seat.load = None

    # -- jobs that wait --------------------------------------------------------------------------------------

    def put(self, tasks: Iterable[Task]) -> None:
        """Queue jobs behind all others."""
        self._queue.extend(self._queued(tasks))

    def put_back(self, tasks: Iterable[Task]) -> None:
        """Queue jobs again, before all others, in their order."""
        self._queue.extendleft(reversed(self._queued(tasks)))

    def _queued(self, tasks: Iterable[Task]) -> list[Task]:
        wanted = [task for task in tasks if not task.cancelled]
        for task in wanted:
            task.queued = True
        self.waiting += len(wanted)
        return wanted

    def cancel(self, task: Task) -> None:
        """Forget a job, in line or in hand."""
        task.cancelled = True
        if task.queued:  # it leaves the line when it would be its turn
            self.waiting -= 1

    def first(self) -> Task | None:
        """Whose turn it is; it stays in line."""
        while self._queue and self._queue[0].cancelled:
            self._queue.popleft()
        return self._queue[0] if self._queue else None

    def take_first(self) -> Task:
        """The one that `first` gave, out of the line."""
        task = self._queue.popleft()
        task.queued = False
        self.waiting -= 1
        return task

    def clear(self) -> None:
        """Forget all jobs that wait."""
        self._queue.clear()
        self.waiting = 0


class Alarms:
    """When to look at which worker again. An alarm is void once the worker has another first job, or is no more."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Seat, int]] = []
        self._serial = itertools.count()
        self._compact_at = 64

    def set(self, seat: Seat, moment: float) -> None:
        """Look at the worker at that moment, unless its turn is over by then."""
        if len(self._heap) >= self._compact_at:
            self._heap = [alarm for alarm in self._heap if alarm[2].turn == alarm[3]]
            heapq.heapify(self._heap)
            self._compact_at = max(64, 2 * len(self._heap))
        heapq.heappush(self._heap, (moment, next(self._serial), seat, seat.turn))

    @property
    def next(self) -> float:
        """The moment of the first alarm; infinity where there is none."""
        while self._heap and self._heap[0][2].turn != self._heap[0][3]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else math.inf

    def due(self, now: float) -> Iterator[Seat]:
        """Workers to look at now. An alarm is over when it was given."""
        while self.next <= now:
            yield heapq.heappop(self._heap)[2]


def groups(
    workers: int,
    screen_workers: int | None,
    gpus: float,
    cpus: float,
    memory: float | None = None,
    memory_with_gpu: float | None = None,
) -> list[Group]:
    """One group for all; or with GPUs, one that trains and one that screens.

    Raises:
        InputError: a number is not above zero, or a share of a GPU is below it.
    """
    for name, value in (
        ("workers", workers),
        ("cpus_per_worker", cpus),
        ("screen_workers", screen_workers),
        ("memory_gib", memory),
        ("memory_gib_with_gpu", memory_with_gpu),
    ):
        if value is not None and not (_is_number(value) and value > 0):
            raise InputError(f"pool.{name} must be above zero, got {value}")
    if not (_is_number(gpus) and gpus >= 0):
        raise InputError(f"pool.gpus_per_worker must be zero or more, got {gpus}")
    if not gpus:
        return [Group(("screen", "train"), workers, cpus, 0.0, _bytes(memory))]
    screeners = workers if screen_workers is None else screen_workers
    return [
        Group(("train",), workers, cpus, gpus, _bytes(memory_with_gpu)),
        Group(("screen",), screeners, cpus, 0.0, _bytes(memory)),
    ]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _bytes(gib: float | None) -> int | None:
    return None if gib is None else int(gib * 2**30)


def cause(problem: Exception) -> str:
    """Why a worker died, from the page that Ray writes about it."""
    text = " ".join(str(problem).split())
    found = re.search(r"exit detail: (.*?)(?:\. Some common causes|$)", text)
    return f"worker died: {shortened(found.group(1) if found else text)}"
