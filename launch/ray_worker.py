"""What lives in a Ray actor: an evaluator behind text in and text out."""

from __future__ import annotations

import json
import pickle
import resource
import signal
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from normact.search.pool import Evaluate, Job
from normact.spaces.errors import InputError

REASON_LENGTH = 400
_JOB_FIELDS = tuple(field.name for field in fields(Job))


class Worker:
    """One worker: made in its process, then `start`, then `run` for each job.

    Both methods answer with JSON text and raise nothing that a person's code raised, so that the driver
    unpickles no object of theirs, and the process stays up.

    Args:
        module_paths: folders to import from first.
        memory: bytes of its own that the process may have once it has started; None for no limit. A candidate
            that wants more meets torch's RuntimeError or Python's MemoryError; and where the memory ends in the
            midst of something that cannot raise, the process ends.
    """

    def __init__(self, module_paths: Sequence[str], memory: int | None = None) -> None:
        # A terminal sends Ctrl-C to every process in it: the driver alone decides what becomes of a job.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        sys.path.extend(path for path in module_paths if path not in sys.path)
        self._memory = memory
        self._evaluate: Evaluate | None = None

    def start(self, make_evaluate: bytes) -> str:
        """Unpickle the factory and make the evaluator, one thread to each.

        It comes pickled twice, for the folders of `__init__` to count before anything in it is imported.

        Returns:
            JSON `{}`, or `{"error": ...}` where that raised.
        """
        try:
            make = pickle.loads(make_evaluate)
            if "torch" in sys.modules:  # imported later, it takes the number from the environment
                sys.modules["torch"].set_num_threads(1)
            self._evaluate = make()
            if self._memory is not None:
                limit_memory(self._memory)
        except (Exception, SystemExit) as problem:
            return json.dumps({"error": described(problem)})
        return json.dumps({})

    def run(self, text: str) -> str:
        """Judge a job.

        Args:
            text: what `job_text` gave.

        Returns:
            JSON `{"outcomes": [...]}`, or `{"error": ...}` where the evaluator raised.
        """
        try:
            assert self._evaluate is not None, "start comes first"
            return json.dumps({"outcomes": [o.to_json() for o in self._evaluate(_job(text))]})
        except (Exception, SystemExit) as problem:
            return json.dumps({"error": described(problem)})


def limit_memory(most: int) -> None:
    """Let this process have so many bytes of private memory that it can write to: heap, tensors, stacks.

    That is RLIMIT_DATA, which since Linux 4.7 counts anonymous mappings too. RLIMIT_AS would also count what Ray
    and torch map without filling it, such as the object store and libraries, and no figure for it means anything.

    Args:
        most: bytes, what the process has already included.

    Raises:
        InputError: it has more already.
    """
    taken = own_memory()
    if taken >= most:
        raise InputError(
            f"pool.memory_gib={most / 2**30:.3g} is not above the {taken / 2**30:.3g} GiB that a worker takes "
            "before it has a candidate; raise it"
        )
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    least = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (least, hard))


def own_memory() -> int:
    """Bytes of private memory that this process can write to, filled or not; 0 where there is no /proc."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmData:")), 0)


def job_text(job: Job) -> str:
    """A job as JSON text, which Ray sends twice as fast as the object.

    Raises:
        TypeError: a candidate or the snapshot is not JSON.
    """
    return json.dumps({name: getattr(job, name) for name in _JOB_FIELDS})


def _job(text: str) -> Job:
    data: dict[str, Any] = json.loads(text)
    data["candidates"] = tuple((number, candidate) for number, candidate in data["candidates"])
    return Job(**data)


def described(problem: BaseException) -> str:
    """An exception as one short line: type and message."""
    return shortened(f"{type(problem).__name__}: {problem}")


def shortened(text: str) -> str:
    """The text on one line, its middle left out where it is long."""
    line = " ".join(text.split())
    half = REASON_LENGTH // 2
    return line if len(line) <= REASON_LENGTH else f"{line[:half]} ... {line[-half:]}"
