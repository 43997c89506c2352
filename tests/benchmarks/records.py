"""Records of a study: a JSON line each, appended as it comes, so that a study goes on where it was killed."""

from __future__ import annotations

import json
import lzma
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

Record = dict[str, Any]
WORKERS = 2


def read(path: Path) -> list[Record]:
    """The records of a file, which is cut back to its whole lines: a kill may have torn the last one."""
    packed = packed_of(path)
    if not path.exists() and packed.exists():
        part = path.with_name(f"{path.name}.{os.getpid()}")  # several processes may read at once
        part.write_bytes(lzma.decompress(packed.read_bytes()))
        part.replace(path)
    if not path.exists():
        return []
    text = path.read_text()
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        path.write_text(whole)
    return [json.loads(line) for line in whole.splitlines()]


def packed_of(path: Path) -> Path:
    """The same file as the repository keeps it."""
    return path.with_name(path.name + ".xz")


def pack(folder: Path) -> None:
    """Write all records of a folder as the repository keeps them, where they are newer than that."""
    for path in folder.glob("*.jsonl"):
        packed = packed_of(path)
        if not packed.exists() or packed.stat().st_mtime < path.stat().st_mtime:
            packed.write_bytes(lzma.compress(path.read_bytes(), preset=9 | lzma.PRESET_EXTREME))


def recorded(
    path: Path, jobs: Sequence[Any], work: Callable[[Any], Record], initialise: Callable[[], None] | None, label: str
) -> Iterator[Record]:
    """Do jobs in processes of their own and append what each gives, in whatever order they end.

    Args:
        path: of the JSON lines.
        jobs: arguments of `work`.
        work: makes a record; a function of a module.
        initialise: called once in each process; None for nothing.
        label: of what is counted, for lines of progress.
    """
    if not jobs:
        return
    begin = said = time.perf_counter()
    with path.open("a") as file, multiprocessing.get_context("spawn").Pool(WORKERS, initialise) as pool:
        for done, record in enumerate(pool.imap_unordered(work, jobs), start=1):
            file.write(json.dumps(record, separators=(",", ":")) + "\n")
            file.flush()
            os.fsync(file.fileno())
            now = time.perf_counter()
            if done == len(jobs) or now - said > 60:
                said = now
                print(f"{done} of {len(jobs)} {label}, {(now - begin) / done:.2f} s each", flush=True)
            yield record
