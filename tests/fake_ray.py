"""Ray without processes: actors whose calls are answered when a test says so. For what a pool itself costs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
import ray

from normact.launch import ray_pool, ray_seats
from normact.search.outcome import Outcome


class Ref:
    """An answer to come."""

    def __init__(self) -> None:
        self.answer: Future[str] = Future()

    def future(self) -> Future[str]:
        return self.answer


class Method:
    """An actor's method."""

    def __init__(self, call: Any) -> None:
        self.remote = call


class FakeRay:
    """Stands for the module `ray` in `RayPool`: workers are up at once, and jobs wait for `answer_one`."""

    exceptions = ray.exceptions

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.pending: list[tuple[Ref, str]] = []
        self.start, self.run = Method(self._start), Method(self._run)

    def remote(self, *_: Any) -> FakeRay:  # of a class, and of the class's actors: one stands for all
        return self

    def options(self, **_: Any) -> FakeRay:
        return self

    def is_initialized(self) -> bool:
        return True

    def kill(self, *_: Any, **__: Any) -> None:
        pass

    def _start(self, make: bytes) -> Ref:
        ref = Ref()
        ref.answer.set_result("{}")
        return ref

    def _run(self, text: str) -> Ref:
        ref = Ref()
        self.pending.append((ref, text))
        return ref

    def answer_one(self) -> None:
        """Answer any one of the jobs that workers have, whichever was sent first."""
        at = int(self.rng.integers(len(self.pending)))
        self.pending[at], self.pending[-1] = self.pending[-1], self.pending[at]
        ref, text = self.pending.pop()
        outcomes = [Outcome(number, seed=7, worker="fake").to_json() for number, _ in json.loads(text)["candidates"]]
        ref.answer.set_result(json.dumps({"outcomes": outcomes}))


@contextmanager
def fake_ray(fake: FakeRay | None = None) -> Iterator[FakeRay]:
    """Pools that are made within this have no Ray behind them."""
    fake = fake or FakeRay()
    with (
        mock.patch.object(ray_pool, "ray", fake),
        mock.patch.object(ray_seats, "ray", fake),
        mock.patch.object(ray_pool, "open_ray", lambda *_: False),
    ):
        yield fake
