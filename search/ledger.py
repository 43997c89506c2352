"""`Ledger`: the only truth of a run: an SQLite log of events, in order.

Written by the driver alone, readable meanwhile. After `append` returns, the events survive `kill -9` of the
process (WAL with `synchronous=NORMAL`); with `durability="full"` also a power cut.
"""

from __future__ import annotations

import fcntl
import json
import sqlite3
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal, get_args
from urllib.parse import quote

from normact.spaces.errors import InputError

SCHEMA = 1
APPLICATION_ID = 0x6E6D6163  # "nmac", in the file's header
EventKind = Literal["proposed", "started", "finished", "lost", "reranked", "test_read"]

_TABLES = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE events (
    id INTEGER PRIMARY KEY,
    time REAL NOT NULL,
    kind TEXT NOT NULL,
    number INTEGER NOT NULL,
    data TEXT NOT NULL
);
CREATE UNIQUE INDEX once ON events (kind, number) WHERE kind IN ('proposed', 'finished');
"""


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
            raise InputError(f"{self.path} has schema {schema}, this version reads up to {SCHEMA}; upgrade the program")

    def append(self, events: Iterable[Event]) -> None:
        """Add events in one transaction: all of them or none.

        Raises:
            InputError: a number was proposed or finished before (nothing is written), or the disk is full.
        """
        rows = [(e.time or time.time(), e.kind, e.number, json.dumps(e.data, allow_nan=False)) for e in events]
        if not rows:
            return
        try:
            with self._transaction():
                self._db.executemany("INSERT INTO events (time, kind, number, data) VALUES (?, ?, ?, ?)", rows)
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

    def events(self, *kinds: EventKind, after: int = 0) -> Iterator[Event]:
        """Events in the order in which they were appended; of some kinds, or of all.

        Args:
            kinds: which ones; all where none is named.
            after: skip the events with an id up to this.
        """
        kinds = kinds or get_args(EventKind)
        marks = ", ".join("?" * len(kinds))
        query = f"SELECT kind, number, data, time FROM events WHERE kind IN ({marks}) AND id > ? ORDER BY id"
        with self._reading():
            for kind, number, data, when in self._db.execute(query, (*kinds, after)):
                yield Event(kind, number, json.loads(data), when)

    def count(self, kind: EventKind) -> int:
        """How many events of a kind there are."""
        with self._reading():
            return int(self._db.execute("SELECT count(*) FROM events WHERE kind = ?", (kind,)).fetchone()[0])

    def set_meta(self, name: str, value: Any) -> None:
        """Keep a fact about the run, such as versions; replaces an earlier value."""
        with self._transaction():
            self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, json.dumps(value)))

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
