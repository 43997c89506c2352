"""`Ledger`: the only truth of a run: an SQLite log of events, in order.

Written by the driver alone, readable meanwhile. After `append` returns, the events survive `kill -9` of the
process (WAL with `synchronous=NORMAL`); with `durability="full"` also a power cut.
"""

from __future__ import annotations

import fcntl
import json
import math
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal, NamedTuple, get_args
from urllib.parse import quote

import numpy as np

from normact.search.outcome import Outcome
from normact.spaces.errors import InputError

SCHEMA = 2
APPLICATION_ID = 0x6E6D6163  # "nmac", in the file's header
EventKind = Literal["proposed", "started", "finished", "lost", "reranked", "test_read"]

_TABLES = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE events (
    id INTEGER PRIMARY KEY,
    time REAL NOT NULL,
    kind TEXT NOT NULL,
    number INTEGER NOT NULL,
    key TEXT,
    same_as INTEGER,
    data TEXT NOT NULL
);
CREATE UNIQUE INDEX once ON events (kind, number) WHERE kind IN ('proposed', 'finished');
CREATE TABLE ranking (
    objective TEXT NOT NULL,
    device TEXT NOT NULL,
    value REAL NOT NULL,
    number INTEGER NOT NULL,
    PRIMARY KEY (objective, device, value, number)
) WITHOUT ROWID;
"""
# What is asked of a ledger of a million outcomes has columns of its own, taken from the data as they come in: the
# key of a proposal, the fingerprint of an outcome, what it is the same as, and each objective's mean over anchors.

_ONCE = "kind IN ('proposed', 'finished')"  # in a query, for SQLite to see that the index serves it


class Identity(NamedTuple):
    """What tells whether a function is known: of a proposal its key; of an outcome its fingerprint.

    `key` is None where there is none, `same_as` the number of an earlier proposal that computes the same.
    """

    kind: str
    number: int
    key: str | None
    same_as: int | None


@dataclass(frozen=True)
class Event:
    """One thing that happened.

    Args:
        kind: `proposed` and `finished` happen once a number; `started` and `lost` may repeat; `reranked` carries
            the number of a layer in the rerank, `test_read` counts readings of the test split.
        number: the proposal's.
        data: plain JSON.
        time: seconds since the epoch; 0 for now.
    """

    kind: EventKind
    number: int
    data: Any
    time: float = 0.0


class Ledger:
    """The log of a run.

    Args:
        path: the file. With `create`, it must not exist; without, it must.
        create: start a new log.
        write: hold the run's writer lock; else the log is opened for reading alone.
        durability: `normal`, or `full` to survive power cuts too.

    Raises:
        InputError: the file exists, is missing, is no ledger, is of a newer schema, is damaged, or another
            driver holds the lock.
    """

    def __init__(
        self,
        path: Path,
        create: bool = False,
        write: bool = True,
        durability: Literal["normal", "full"] = "normal",
    ) -> None:
        self.path = Path(path)
        check_durability(durability)
        if create and self.path.exists():
            raise InputError(f"{self.path} exists already; give another run_dir, or resume it")
        if not create and not self.path.is_file():
            raise InputError(f"{self.path.parent} is no run: {self.path.name} is not in it")
        self._lock: IO[str] | None = _lock(self.path) if write else None
        mode = "rwc" if create else "rw" if write else "ro"
        try:
            if write and not create:
                self._check_size()
            self._db = sqlite3.connect(f"file:{_quoted(self.path)}?mode={mode}", uri=True, isolation_level=None)
            if create:
                self._make(durability)
            self._check()
            if write:
                self._db.execute("PRAGMA journal_mode=WAL")
                self._db.execute(f"PRAGMA synchronous={durability.upper()}")
        except sqlite3.DatabaseError as problem:
            self.close()
            raise InputError(f"{self.path} cannot be read as a ledger ({problem}); restore it from a copy") from None
        except InputError:
            self.close()
            raise

    def _make(self, durability: str) -> None:
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute(f"PRAGMA synchronous={durability.upper()}")
        self._db.executescript(
            f"BEGIN; PRAGMA application_id={APPLICATION_ID}; PRAGMA user_version={SCHEMA}; {_TABLES} COMMIT;"
        )

    def _check(self) -> None:
        (application,) = self._db.execute("PRAGMA application_id").fetchone()
        (schema,) = self._db.execute("PRAGMA user_version").fetchone()
        if application != APPLICATION_ID:
            raise InputError(f"{self.path} is an SQLite file, but no ledger of this program")
        if schema > SCHEMA:
            raise InputError(f"{self.path} has schema {schema}, this version reads {SCHEMA}; upgrade the program")
        if schema < SCHEMA:
            raise InputError(f"{self.path} has schema {schema}, this version reads {SCHEMA}; use the one that wrote it")

    def _check_size(self) -> None:
        """Whether the file is as long as its header says.

        Asked where nobody else writes, and where a killed driver left no log beside it: moving that log's pages into
        the file begins with the header.
        """
        log = self.path.with_name(self.path.name + "-wal")
        if log.exists() and log.stat().st_size:
            return
        with self.path.open("rb") as file:
            header = file.read(100)
        if not header.startswith(b"SQLite format 3"):
            return
        size, pages = int.from_bytes(header[16:18], "big"), int.from_bytes(header[28:32], "big")
        expected = pages * (65536 if size == 1 else size)
        if (actual := self.path.stat().st_size) < expected:
            raise InputError(
                f"{self.path} is cut off: it has {actual} bytes, {expected} were written; restore it from a copy"
            )

    def append(self, events: Sequence[Event], facts: Mapping[str, Any] | None = None) -> None:
        """Add events in one transaction: all of them or none.

        Args:
            events: in order; the data of `finished` are an outcome's JSON.
            facts: to keep as `set_meta` does, in the same transaction.

        Raises:
            InputError: a number was proposed or finished before (nothing is written), or the disk is full.
        """
        rows = [(e.time or time.time(), e.kind, e.number, *_identity(e), _dumps(e.data)) for e in events]
        ranks = [rank for e in events if e.kind == "finished" for rank in _ranks(e.number, e.data)]
        if not rows and not facts:
            return
        try:
            with self._transaction():
                self._db.executemany(
                    "INSERT INTO events (time, kind, number, key, same_as, data) VALUES (?, ?, ?, ?, ?, ?)", rows
                )
                self._db.executemany("INSERT INTO ranking VALUES (?, ?, ?, ?)", ranks)
                for name, value in (facts or {}).items():
                    self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, _dumps(value)))
        except sqlite3.IntegrityError:
            raise InputError(
                f"an event of {sorted({(r[1], r[2]) for r in rows})[:3]}... is in the ledger already"
            ) from None

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """All that is written inside, or nothing of it, whatever ends it."""
        try:
            self._db.execute("BEGIN IMMEDIATE")
            yield
            self._db.execute("COMMIT")
        except sqlite3.OperationalError as problem:
            raise InputError(f"cannot write to {self.path} ({problem}); make room, then resume the run") from None
        finally:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """What is damaged inside the file is said in one line."""
        try:
            yield
        except (sqlite3.DatabaseError, json.JSONDecodeError) as problem:
            raise InputError(f"{self.path} is damaged ({problem}); restore it from a copy") from None

    def events(self, *kinds: EventKind, after: int = 0, backwards: bool = False) -> Iterator[Event]:
        """Events in the order in which they were appended, or backwards; of some kinds, or of all.

        Args:
            kinds: which ones; all where none is named.
            after: skip the events with an id up to this.
            backwards: the latest first.
        """
        kinds = kinds or get_args(EventKind)
        marks = ", ".join("?" * len(kinds))
        order = "DESC" if backwards else "ASC"
        query = f"SELECT kind, number, data, time FROM events WHERE kind IN ({marks}) AND id > ? ORDER BY id {order}"
        with self._reading():
            for kind, number, data, when in self._db.execute(query, (*kinds, after)):
                yield Event(kind, number, json.loads(data), when)

    def event(self, kind: Literal["proposed", "finished"], number: int) -> Event | None:
        """What was proposed or finished under a number, or None."""
        query = f"SELECT data, time FROM events WHERE {_ONCE} AND kind = ? AND number = ?"
        with self._reading():
            row = self._db.execute(query, (kind, number)).fetchone()
            return None if row is None else Event(kind, number, json.loads(row[0]), row[1])

    def identities(self) -> Iterator[Identity]:
        """The identities of all that was proposed and finished, in order, without their data."""
        with self._reading():
            for row in self._db.execute(f"SELECT kind, number, key, same_as FROM events WHERE {_ONCE} ORDER BY id"):
                yield Identity(*row)

    def with_key(self, beginning: str, most: int) -> list[tuple[str, int]]:
        """Distinct keys of proposals that begin so, sorted, each with its first number; at most so many."""
        query = (
            f"SELECT key, min(number) FROM events WHERE {_ONCE} AND kind = 'proposed' AND substr(key, 1, ?) = ? "
            "GROUP BY key ORDER BY key LIMIT ?"
        )
        with self._reading():
            return self._db.execute(query, (len(beginning), beginning, most)).fetchall()

    def ranked(self, objective: str, device: str, largest_first: bool, most: int = -1) -> list[int]:
        """Numbers of accepted outcomes by an objective's mean over anchors, the best first, earlier ones before equals.

        Args:
            objective: its name.
            device: kind of device that they were trained on.
            largest_first: whether large values are good.
            most: how many; all where negative.
        """
        order = "DESC" if largest_first else "ASC"
        query = f"SELECT number FROM ranking WHERE objective = ? AND device = ? ORDER BY value {order}, number LIMIT ?"
        with self._reading():
            return [number for (number,) in self._db.execute(query, (objective, device, most))]

    def means(self, objectives: Sequence[str], device: str) -> tuple[np.ndarray, np.ndarray]:
        """Numbers (n,) of the accepted outcomes of a kind of device that have all of these objectives, rising; and
        their means over anchors (n, objectives)."""
        marks = ", ".join("?" * len(objectives))
        each = ", ".join(["max(CASE objective WHEN ? THEN value END)"] * len(objectives))
        query = (
            f"SELECT number, {each} FROM ranking WHERE device = ? AND objective IN ({marks}) "
            "GROUP BY number HAVING count(*) = ? ORDER BY number"
        )
        with self._reading():
            rows = self._db.execute(query, (*objectives, device, *objectives, len(objectives))).fetchall()
        table = np.array(rows, dtype=float).reshape(len(rows), 1 + len(objectives))
        return table[:, 0].astype(int), table[:, 1:]

    def devices(self, objective: str) -> dict[str, int]:
        """Per kind of device how many accepted outcomes measured an objective; most first."""
        query = "SELECT device, count(*) FROM ranking WHERE objective = ? GROUP BY device ORDER BY 2 DESC, 1"
        with self._reading():
            return dict(self._db.execute(query, (objective,)).fetchall())

    def measured(self) -> list[str]:
        """Names of the objectives that accepted outcomes have."""
        with self._reading():
            return [name for (name,) in self._db.execute("SELECT DISTINCT objective FROM ranking ORDER BY 1")]

    def count(self, kind: EventKind) -> int:
        """How many events of a kind there are."""
        once = f"{_ONCE} AND " if kind in ("proposed", "finished") else ""
        with self._reading():
            return int(self._db.execute(f"SELECT count(*) FROM events WHERE {once}kind = ?", (kind,)).fetchone()[0])

    def set_meta(self, name: str, value: Any) -> None:
        """Keep a fact about the run, such as versions; replaces an earlier value."""
        self.append([], {name: value})

    def meta(self, name: str, default: Any = None) -> Any:
        """A fact that `set_meta` kept, or the default."""
        with self._reading():
            row = self._db.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
            return default if row is None else json.loads(row[0])

    def close(self) -> None:
        """Close the file and give the lock back. Twice is fine."""
        if hasattr(self, "_db"):
            self._db.close()
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _identity(event: Event) -> tuple[str | None, int | None]:
    """The columns `key` and `same_as` of an event."""
    if event.kind == "proposed":
        return event.data.get("key"), None
    if event.kind == "finished":
        return event.data.get("fingerprint") or None, event.data.get("same_as")
    return None, None


def _ranks(number: int, data: Any) -> Iterator[tuple[str, str, float, int]]:
    """The rows of an outcome in the ranking; none where it was not accepted or a value is not finite."""
    if data.get("gate") or data.get("same_as") is not None:
        return
    outcome = Outcome.from_json(data)
    for objective, value in outcome.means().items():
        if math.isfinite(value):
            yield objective, outcome.device, value, number


_dumps = json.JSONEncoder(allow_nan=False).encode  # json.dumps would make an encoder for every event


def check_durability(durability: str) -> None:
    """Check that a durability is one.

    Raises:
        InputError: it is neither `normal` nor `full`.
    """
    if durability not in ("normal", "full"):
        raise InputError(f"durability must be normal or full, got {durability!r}")


def _lock(path: Path) -> IO[str]:
    """Hold the run folder's lock; it goes with the process, however that ends."""
    try:
        file = open(path.with_suffix(".lock"), "w")  # noqa: SIM115 - stays open as long as the ledger
    except OSError as problem:
        raise InputError(f"cannot write in {path.parent} ({problem}); check its permissions") from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise InputError(f"{path.parent} is in use by another driver; wait for it, or stop it") from None
    return file


def _quoted(path: Path) -> str:
    return quote(str(path.absolute()))
