"""The ledger: durable, idempotent by number, and strict about what it opens."""

import math
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
from dataclasses import replace

import pytest

from normact.search.ledger import APPLICATION_ID, SCHEMA, Event, Ledger
from normact.search.objective import Score
from normact.search.outcome import Outcome
from normact.spaces import InputError


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ledger.sqlite"


def proposed(number):
    return Event("proposed", number, {"candidate": number})


def test_events_come_back_in_order_with_their_data(path):
    events = [
        proposed(0),
        Event("started", 0, {"job": 1}),
        Event("lost", 0, {"why": "x"}),
        Event("finished", 0, {"number": 0}),
    ]
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
        ledger.append([Event(kind, 3, {"number": 3})])
        with pytest.raises(InputError, match="in the ledger already"):
            ledger.append([Event("started", 4, {}), Event(kind, 3, {"number": 3})])
        assert [e.number for e in ledger.events()] == [3]
        ledger.append([Event("lost", 3, {}), Event("lost", 3, {})])  # may repeat


def test_meta_is_kept_and_replaced(path):
    with Ledger(path, create=True) as ledger:
        ledger.set_meta("versions", {"torch": "1"})
        ledger.set_meta("versions", {"torch": "2"})
    with Ledger(path, write=False) as ledger:
        assert ledger.meta("versions") == {"torch": "2"}
        assert ledger.meta("nothing", 7) == 7


def outcome(number, value, **fields):
    scores = [("a", 10, value), ("b", 5, 99.0), ("b", 10, value + 2)]
    made = Outcome(number, scores=(*(Score("loss", *s) for s in scores), Score("size", "a", 10, 1.0)))
    return Event("finished", number, replace(made, **{"device": "cpu", **fields}).to_json())


def test_accepted_outcomes_are_ranked_by_their_last_mean_over_anchors(path):
    with Ledger(path, create=True) as ledger:
        rejected = [outcome(5, 0.0, gate="probe"), outcome(6, 0.0, same_as=1), outcome(7, math.inf)]
        ledger.append([outcome(0, 3.0), outcome(1, 2.0), outcome(2, 2.0), outcome(3, 0.5, device="gpu"), *rejected])
        assert ledger.ranked("loss", "cpu", largest_first=False) == [1, 2, 0]
        assert ledger.ranked("loss", "cpu", largest_first=True) == [0, 1, 2]
        assert ledger.ranked("loss", "cpu", largest_first=False, most=1) == [1]
        assert ledger.devices("loss") == {"cpu": 3, "gpu": 1}
        assert ledger.measured() == ["loss", "size"]


def test_means_of_several_objectives_come_in_order_of_number(path):
    def both(number, loss, size, device="cpu"):
        scores = tuple(Score("loss", anchor, 10, loss + d) for anchor, d in (("a", -0.25), ("b", 0.25)))
        outcome = Outcome(number, scores=(*scores, Score("size", "a", 10, size)), device=device)
        return Event("finished", number, outcome.to_json())

    with Ledger(path, create=True) as ledger:
        ledger.append([both(2, 0.5, 3.0), both(0, 1.5, 1.0), both(3, 1.0, 2.0, "gpu"), outcome(1, math.inf)])
        numbers, means = ledger.means(["size", "loss"], "cpu")
        assert numbers.tolist() == [0, 2]
        assert means.tolist() == [[1.0, 1.5], [3.0, 0.5]]
        numbers, means = ledger.means(["time", "loss"], "cpu")
        assert numbers.shape == (0,) and means.shape == (0, 2)


def test_identities_are_keys_and_fingerprints_in_order(path):
    with Ledger(path, create=True) as ledger:
        ledger.append([Event("proposed", n, {"key": key}) for n, key in enumerate(["aa", "ab", "aa"])])
        ledger.append([outcome(1, 1.0, fingerprint="f"), Event("started", 0, {}), outcome(2, 1.0, same_as=0)])
        rows = [tuple(identity) for identity in ledger.identities()]
        assert rows[:3] == [("proposed", 0, "aa", None), ("proposed", 1, "ab", None), ("proposed", 2, "aa", None)]
        assert rows[3:] == [("finished", 1, "f", None), ("finished", 2, None, 0)]
        assert ledger.with_key("a", 10) == [("aa", 0), ("ab", 1)]
        assert ledger.with_key("a", 1) == [("aa", 0)]
        assert ledger.with_key("%", 10) == []


def test_facts_are_kept_with_the_events_or_not_at_all(path):
    with Ledger(path, create=True) as ledger:
        ledger.append([proposed(0)], {"seconds": 1.0})
        with pytest.raises(InputError, match="already"):
            ledger.append([proposed(0)], {"seconds": 2.0})
        assert ledger.meta("seconds") == 1.0


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
        with pytest.raises(InputError, match=r"is cut off: it has 9000 bytes, [0-9]{6} were written"):
            Ledger(path)
        with pytest.raises(InputError, match="cannot be read as a ledger"):
            list(Ledger(path, write=False).events())

    def test_a_ledger_cut_off_in_its_last_page(self, path):
        with Ledger(path, create=True) as ledger:
            ledger.append([Event("started", i, {"text": "x" * 2000}) for i in range(200)])
        path.write_bytes(path.read_bytes()[:-1])
        with pytest.raises(InputError, match="is cut off: it has"):
            Ledger(path)

    @pytest.mark.parametrize(("schema", "words"), [(SCHEMA + 1, "upgrade"), (SCHEMA - 1, "the one that wrote it")])
    def test_another_schema(self, path, schema, words):
        Ledger(path, create=True).close()
        db = sqlite3.connect(path)
        db.execute(f"PRAGMA user_version={schema}")
        db.close()
        with pytest.raises(InputError, match=f"schema {schema}.*reads {SCHEMA}.*{words}"):
            Ledger(path)

    def test_an_unknown_durability(self, path):
        with pytest.raises(InputError, match="durability"):
            Ledger(path, create=True, durability="some")


def test_the_header_names_the_program(path):
    Ledger(path, create=True).close()
    assert int.from_bytes(path.read_bytes()[68:72], "big") == APPLICATION_ID
