"""The ledger: durable, idempotent by number, and strict about what it opens."""

import os
import signal
import sqlite3
import subprocess
import sys
import textwrap

import pytest

from normact.search.ledger import APPLICATION_ID, SCHEMA, Event, Ledger
from normact.spaces import InputError


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ledger.sqlite"


def proposed(number):
    return Event("proposed", number, {"candidate": number})


def test_events_come_back_in_order_with_their_data(path):
    events = [proposed(0), Event("started", 0, {"job": 1}), Event("lost", 0, {"why": "x"}), Event("finished", 0, [1.5])]
    with Ledger(path, create=True) as ledger:
        ledger.append(events[:2])
        ledger.append(events[2:])
    with Ledger(path, write=False) as ledger:
        assert [(e.kind, e.number, e.data) for e in ledger.events()] == [(e.kind, e.number, e.data) for e in events]
        assert [e.kind for e in ledger.events("proposed", "finished")] == ["proposed", "finished"]
        assert [e.kind for e in ledger.events(after=2)] == ["lost", "finished"]
        assert ledger.count("lost") == 1


@pytest.mark.parametrize("kind", ["proposed", "finished"])
def test_a_number_is_recorded_once_and_the_whole_batch_fails(path, kind):
    with Ledger(path, create=True) as ledger:
        ledger.append([Event(kind, 3, {})])
        with pytest.raises(InputError, match="in the ledger already"):
            ledger.append([Event("started", 4, {}), Event(kind, 3, {})])
        assert [e.number for e in ledger.events()] == [3]
        ledger.append([Event("lost", 3, {}), Event("lost", 3, {})])  # may repeat


def test_meta_is_kept_and_replaced(path):
    with Ledger(path, create=True) as ledger:
        ledger.set_meta("versions", {"torch": "1"})
        ledger.set_meta("versions", {"torch": "2"})
    with Ledger(path, write=False) as ledger:
        assert ledger.meta("versions") == {"torch": "2"}
        assert ledger.meta("nothing", 7) == 7


def test_it_is_readable_while_it_is_written(path):
    with Ledger(path, create=True) as writer, Ledger(path, write=False) as reader:
        writer.append([proposed(0)])
        assert reader.count("proposed") == 1
        writer.append([proposed(1)])
        assert reader.count("proposed") == 2


def test_a_second_writer_is_refused_until_the_first_closes(path):
    with Ledger(path, create=True), pytest.raises(InputError, match="in use by another driver"):
        Ledger(path)
    Ledger(path).close()


def test_what_append_returned_for_survives_kill_9(path):
    """A process appends and says so after each; it is killed while it goes on. All that it said is there."""
    code = """
        import sys
        from pathlib import Path
        from normact.search.ledger import Event, Ledger
        ledger = Ledger(Path(sys.argv[1]), create=True)
        for batch in range(100000):
            ledger.append([Event("proposed", 5 * batch + i, {"text": "x" * 500}) for i in range(5)])
            print(batch, flush=True)
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(path)]
    said = -1
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            said = int(line)
            if said == 200:
                os.kill(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    with Ledger(path) as ledger:  # the lock went with the process
        numbers = [e.number for e in ledger.events("proposed")]
    assert len(numbers) >= 5 * (said + 1)
    assert len(numbers) % 5 == 0, "a batch was written in part"
    assert numbers == list(range(len(numbers)))


@pytest.mark.parametrize(("durability", "level"), [("normal", 1), ("full", 2)])
def test_durability_is_what_sqlite_was_told(path, durability, level):
    with Ledger(path, create=True, durability=durability) as ledger:
        assert ledger._db.execute("PRAGMA synchronous").fetchone() == (level,)
        assert ledger._db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    with Ledger(path, durability=durability) as ledger:
        assert ledger._db.execute("PRAGMA synchronous").fetchone() == (level,)


def test_a_full_disk_stops_clearly_and_keeps_what_was_there(path):
    with Ledger(path, create=True) as ledger:
        ledger.append([proposed(0)])
        pages = ledger._db.execute("PRAGMA page_count").fetchone()[0]
        ledger._db.execute(f"PRAGMA max_page_count={pages + 2}")  # SQLite then fails as on a full disk
        with pytest.raises(InputError, match="make room"):
            ledger.append([Event("proposed", 1, {"text": "x" * 100_000})])
        assert [e.number for e in ledger.events()] == [0]


class TestRefused:
    def test_an_existing_file(self, path):
        path.write_text("precious")
        with pytest.raises(InputError, match="exists already"):
            Ledger(path, create=True)
        assert path.read_text() == "precious"

    def test_a_missing_file(self, path):
        with pytest.raises(InputError, match="is no run"):
            Ledger(path)
        assert not path.exists()

    def test_a_foreign_file(self, path):
        path.write_bytes(b"not a database, but long enough to look at" * 100)
        with pytest.raises(InputError, match="cannot be read as a ledger"):
            Ledger(path)

    def test_another_programs_database(self, path):
        sqlite3.connect(path).executescript("CREATE TABLE events (id)").close()
        with pytest.raises(InputError, match="no ledger"):
            Ledger(path)

    def test_a_truncated_ledger(self, path):
        with Ledger(path, create=True) as ledger:
            ledger.append([Event("proposed", i, {"text": "x" * 2000}) for i in range(200)])
        path.write_bytes(path.read_bytes()[:9000])
        with pytest.raises(InputError, match="cannot be read as a ledger"):
            list(Ledger(path).events())

    def test_a_newer_schema(self, path):
        Ledger(path, create=True).close()
        db = sqlite3.connect(path)
        db.execute(f"PRAGMA user_version={SCHEMA + 1}")
        db.close()
        with pytest.raises(InputError, match=f"schema {SCHEMA + 1}.*upgrade"):
            Ledger(path)

    def test_an_unknown_durability(self, path):
        with pytest.raises(InputError, match="durability"):
            Ledger(path, create=True, durability="some")


def test_the_header_names_the_program(path):
    Ledger(path, create=True).close()
    assert int.from_bytes(path.read_bytes()[68:72], "big") == APPLICATION_ID
