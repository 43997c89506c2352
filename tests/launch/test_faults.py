"""What may go wrong while a search runs, done for real on Ray: drivers, workers and nodes die, candidates are hostile,
the disk is full, two drivers meet, files are damaged. Nothing recorded may be lost, doubled or changed."""

import json
import re
import subprocess
import time
from itertools import cycle, islice

import numpy as np
import pytest

from normact.launch.run_folder import open_ledger
from normact.search.history import History
from normact.search.ledger import Ledger
from normact.spaces import InputError
from tests.launch.conftest import TINY
from tests.launch.processes import (
    NORMACT,
    SELF_KILLING,
    check_nothing_lost_or_doubled,
    check_same_finds,
    count_finished,
    finished,
    kill_when,
    make_toy_config,
    run,
    toy_command,
    wait_a_little,
)

ON_RAY = [*TINY, "pool=ray", "pool.workers=2"]
KILLS = 20


# -- the driver --------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_driver_killed_twenty_times_loses_nothing(tmp_path):
    """`kill -9` at random moments, inside a transaction, and between dispatch and append; then against one unkilled."""
    proposals = 300
    command = ["search", *ON_RAY, "controller=random", f"budget.proposals={proposals}", "limits.batch=4"]
    rng, path, known = np.random.default_rng(0), tmp_path / "killed/ledger.sqlite", {}
    for kill, mode in enumerate(islice(cycle(["moment", "transaction", "dispatch"]), KILLS)):
        arguments = ["resume", "killed"] if path.exists() else [*command, "run_dir=killed"]
        if mode == "moment":
            moment = Moment(path, count=int(rng.integers(1, 12)), delay=float(rng.uniform(0, 0.3)))
            kill_when([*NORMACT, *arguments], tmp_path, moment.has_come)
        else:
            count = int(rng.integers(3, 8))
            kill_when([*SELF_KILLING, mode, count, *arguments], tmp_path, lambda: False)
        now = finished(path)
        assert all(now.get(number) == data for number, data in known.items()), f"kill {kill} ({mode}) changed a record"
        known = now
    assert 0 < len(known) < proposals
    run("resume", "killed", cwd=tmp_path)
    killed = check_nothing_lost_or_doubled(tmp_path / "killed", proposals)
    assert all(killed.outcomes[n].to_json() == data for n, data in known.items())
    run(*command, "run_dir=whole", cwd=tmp_path)
    check_same_finds(killed, check_nothing_lost_or_doubled(tmp_path / "whole", proposals), at_least=150)


class Moment:
    """Some time after so many more outcomes are in a ledger.

    Args:
        path: of the ledger.
        count: how many more than now.
        delay: seconds after that.
    """

    def __init__(self, path, count, delay):
        self.path, self.delay = path, delay
        self.wanted = count_finished(path) + count
        self.at = None

    def has_come(self):
        if self.at is None and count_finished(self.path) >= self.wanted:
            self.at = time.monotonic() + self.delay
        return self.at is not None and time.monotonic() >= self.at


def test_a_second_driver_is_refused_while_the_first_runs(tmp_path):
    command = [*NORMACT, "search", *TINY, "budget.proposals=1000000", "run_dir=run"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as first:
        try:
            while first.poll() is None and count_finished(tmp_path / "run/ledger.sqlite") < 5:
                wait_a_little(first)
            for arguments in (["resume", "run"], ["rerank", "run", "rerank.finalists=1"]):
                second = subprocess.run(
                    [*NORMACT, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=120
                )
                assert second.returncode == 2
                assert "in use by another driver" in second.stderr
                assert len(second.stderr.splitlines()) == 1
            assert first.poll() is None, "the first one was disturbed"
        finally:
            first.kill()


# -- candidates --------------------------------------------------------------------------------------------

HOSTILE = """
import os
import time
from pathlib import Path

import torch
from toy_parts import BASES, Choice, ToySpace

SENT = Path(__file__).parent / "sent"


class Nan(torch.nn.Linear):
    def forward(self, x):
        return super().forward(x) * float("nan")


class HostileSpace(ToySpace):
    def baselines(self):
        return {"plain_square": Choice("square", 2)}

    def build(self, candidate, site):
        if candidate.basis == "square":
            return super().build(candidate, site)
        with open(SENT / str(candidate.count), "a") as file:
            file.write(f"{time.monotonic()}\\n")
        if candidate.count == 1:
            raise ArithmeticError("no such layer")
        if candidate.count == 2:
            os._exit(1)
        while candidate.count == 3:
            pass
        if candidate.count == 4:
            return torch.nn.Identity()
        if candidate.count == 5:
            return Nan(site.in_features, site.features_out)
        if candidate.count == 6:
            kept = []
            while True:
                kept.append(torch.ones(2**24))
        if candidate.count == 7:
            kept = []
            while True:
                kept.append(bytearray(2**26))
        if candidate.count == 8:
            os.kill(os.getpid(), 11)
        raise AssertionError(candidate)
"""
ENDS = {
    1: ("error", "ArithmeticError: no such layer"),
    2: ("worker", "worker died"),
    3: ("time", "no answer within"),
    4: ("probe", ""),
    5: ("probe", ""),
    6: ("error", "memory"),
    7: ("error", "MemoryError"),
    8: ("worker", "worker died"),
}
SECONDS = 10  # a candidate may be screened; enough for one that is well on a busy machine


@pytest.mark.slow
def test_hostile_candidates_are_recorded_rejections_and_all_others_are_judged(tmp_path):
    """Each in a real worker, in a space of 16 functions, of which eight raise, hang, end the process or take all."""
    config = make_toy_config(tmp_path / "config")
    (config / "sent").mkdir()
    (config / "hostile_parts.py").write_text(HOSTILE)
    (config / "space/hostile.yaml").write_text("_target_: hostile_parts.HostileSpace\nmost: 8\n")
    command = toy_command(config, "ray", space="hostile")
    limits = [f"limits.screen_seconds={SECONDS}", "pool.memory_gib=2", "rerank.finalists=0"]
    run(*command, *limits, "budget.proposals=120", "run_dir=run", cwd=tmp_path)
    history = check_nothing_lost_or_doubled(tmp_path / "run", 120)
    ended = {}
    for number, outcome in history.outcomes.items():
        if outcome.same_as is None:
            choice = history.proposals[number].candidate
            ended[choice["basis"], choice["count"]] = outcome
    assert len(ended) == 16
    squares = {count: outcome.gate for (basis, count), outcome in ended.items() if basis == "square"}
    assert squares == {1: "linearity"} | dict.fromkeys(range(2, 9), ""), "x ** 1 has no nonlinearity"
    for count, (gate, words) in ENDS.items():
        outcome = ended["sine", count]
        assert outcome.gate == gate, outcome
        assert words in outcome.reason
    took = float(re.search(r"no answer within ([0-9.]+) s", ended["sine", 3].reason)[1])
    assert SECONDS <= took < 2 * SECONDS
    sent = {count: len((config / "sent" / str(count)).read_text().splitlines()) for count in ENDS}
    assert sent[2] == sent[8] == 2, "one that ended its worker twice is not sent a third time"
    assert sent[3] <= 2, "once in a batch, once alone"


# -- the disk ----------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own of 700 kB; gives a function that makes it larger."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(options):
        command = ["mount", "-t", "tmpfs", "-o", options, "none", str(folder)]
        return subprocess.run(command, capture_output=True).returncode == 0

    if not mount("size=700k"):  # a right of whoever runs the tests, which nothing that is installed gives
        pytest.skip("needs the right to mount a tmpfs")
    yield lambda: mount("remount,size=64m")
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.slow
def test_a_full_disk_stops_the_search_clearly_and_it_goes_on_with_room(tmp_path, small_disk):
    command = [*NORMACT, "search", *ON_RAY, "controller=random", "budget.proposals=600", "run_dir=disk/run"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "cannot write to" in done.stderr
    assert "make room, then resume the run" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    before = finished(tmp_path / "disk/run/ledger.sqlite")
    assert 20 < len(before) < 600
    assert small_disk()
    run("resume", "disk/run", cwd=tmp_path)
    history = check_nothing_lost_or_doubled(tmp_path / "disk/run", 600)
    assert all(history.outcomes[number].to_json() == data for number, data in before.items())


# -- the ledger's file -------------------------------------------------------------------------------------


def read_all(ledger):
    """Whatever a command can ask: events, one by one and through their index, the ranking, facts."""
    History(ledger).check()
    list(ledger.identities())
    for event in ledger.events("proposed", "finished"):
        ledger.event(event.kind, event.number)
    for objective in ledger.measured():
        for device in ledger.devices(objective):
            ledger.ranked(objective, device, True)
    ledger.meta("versions")


def test_a_ledger_cut_off_anywhere_is_one_clear_error(tmp_path, normact):
    assert normact("search", *TINY, "run_dir=run")[0] == 0
    path = tmp_path / "run/ledger.sqlite"
    with Ledger(path) as ledger:
        ledger._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    whole = path.read_bytes()
    lengths = {0, 1, 15, 16, 99, 100, 4095, 4096, len(whole) - 1, *range(512, len(whole), len(whole) // 24)}
    for length in sorted(lengths):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"ledger\.sqlite") as error, open_ledger(tmp_path / "run") as ledger:
            read_all(ledger)
        assert "\n" not in str(error.value)
    path.write_bytes(whole)
    assert json.loads(normact("show", "run", "--json")[1])["proposals"] == 40
