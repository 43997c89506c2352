"""What every `Pool` must do: subclass `PoolSuite`, and `KillSuite` where the pool can kill.

A candidate of these tests is plain JSON that says what its evaluation does, see `act`.
"""

import os
import signal
import time
from pathlib import Path

import pytest

from normact.search.outcome import Outcome
from normact.search.pool import Done, Failed, Job, Lost, TimedOut, worker_name

WAIT = 60.0  # seconds within which whatever must come has come; nothing is asserted about being near it
LIMIT = 0.5  # a time limit that is to be hit


def act(number, candidate, seed):
    """Evaluate one candidate of these tests.

    `{"do": "judge"}` gives an outcome that depends on number, seed and `value`. An evaluator's errors: `raise`,
    `leave` (SystemExit), `wrong_number`, `wrong_type`, `no_outcome`. Without end: `hang`, and `spin`, which holds
    the interpreter. Ends of the process: `exit`, `kill`. `meet` writes the process id to `path`, and goes on when
    `path.go` is there.
    """
    do = candidate["do"]
    if do == "raise":
        raise ArithmeticError("no " + "evaluation " * 1000)
    if do == "leave":
        raise SystemExit(3)
    if do == "exit":
        os._exit(3)
    if do == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if do in ("hang", "spin"):
        while True:
            time.sleep(0.01) if do == "hang" else pow(7, 100_000)
    if do == "meet":
        wait_at(candidate["path"])
    if do == "no_outcome":
        return {"number": number}
    if do == "wrong_type":
        return Outcome(number, steps="many")
    value = float(candidate.get("value", 0.0))
    return Outcome(
        number + (do == "wrong_number"),
        figures={"test.value": value + seed, "test.infinite": float("inf")},
        seed=seed,
        device="cpu",
        worker=worker_name(),
    )


def wait_at(path):
    """Say that this process is here, and stay until `path.go` is."""
    arrived = Path(path + ".writing")
    arrived.write_text(str(os.getpid()))
    arrived.rename(path)
    while not Path(path + ".go").exists():
        time.sleep(0.001)


def make_evaluate():
    return lambda job: [act(number, candidate, job.seed) for number, candidate in job.candidates]


def job(number, do="judge", kind="train", limit=0.0, **candidate):
    """A job for one candidate; its id is not its number."""
    return Job(1000 + number, kind, ((number, {"do": do, **candidate}),), seed=7, time_limit=limit)


def reports(pool, count):
    """That many reports, by proposal number of the job's first candidate; that no more come is asserted."""
    found = {}
    end = time.monotonic() + WAIT
    while len(found) < count:
        assert time.monotonic() < end, f"only {len(found)} of {count} reports: {found}"
        report = pool.next(1.0)
        if report is not None:
            number = report.job.candidates[0][0]
            assert number not in found, f"reported twice: {found[number]}, {report}"
            found[number] = report
    assert pool.next(0.0) is None
    return found


def kinds(found):
    return {number: type(report) for number, report in found.items()}


class PoolSuite:
    """Override `new_pool`, a fixture of scope class: a function that makes pools over `make_evaluate`."""

    @pytest.fixture(scope="class")
    @classmethod
    def new_pool(cls):
        raise NotImplementedError

    @pytest.fixture(scope="class")
    @classmethod
    def pool(cls, new_pool):
        """One for all tests, as workers take seconds to start: each test leaves it empty."""
        return new_pool()

    def test_nothing_submitted_nothing_reported(self, pool):
        assert pool.next(0.0) is None

    def test_capacity_and_free(self, pool):
        for kind in ("screen", "train"):
            assert pool.capacity[kind] >= 1
            assert pool.free(kind) >= 1
            while pool.free(kind):
                before = pool.free(kind)
                pool.submit(job(before, kind=kind))
                assert pool.free(kind) < before
            while pool.next(WAIT):
                pass
            assert pool.free(kind) >= 1

    def test_every_job_is_reported_once(self, pool):
        jobs = {n: job(n, kind="screen" if n % 3 else "train", value=n) for n in range(60)}
        for one in jobs.values():
            pool.submit(one)
        found = reports(pool, len(jobs))
        assert {n: report.job for n, report in found.items()} == jobs
        assert set(kinds(found).values()) == {Done}
        assert all(found[n].outcomes[0].figures["test.value"] == n + 7 for n in jobs)

    def test_more_may_be_submitted_while_others_run(self, pool):
        seen = []
        for n in range(20):
            pool.submit(job(n))
            if n >= 3:
                seen.append(pool.next(WAIT).job.id)
        while (report := pool.next(WAIT)) is not None:
            seen.append(report.job.id)
        assert sorted(seen) == [1000 + n for n in range(20)]

    def test_an_outcome_depends_on_its_job_alone(self, pool):
        def scored(order):
            for n in order:
                pool.submit(job(n, value=n * 0.1))
            return {n: r.outcomes[0].figures for n, r in reports(pool, len(order)).items()}

        assert scored(range(12)) == scored(range(11, -1, -1))

    def test_a_batch_is_judged_in_order(self, pool):
        batch = Job(1, "screen", tuple((n, {"do": "judge", "value": n}) for n in (5, 3, 9)), seed=0)
        pool.submit(batch)
        report = pool.next(WAIT)
        assert isinstance(report, Done)
        assert [(o.number, o.figures["test.value"]) for o in report.outcomes] == [
            (5, 5.0),
            (3, 3.0),
            (9, 9.0),
        ]

    def test_outcomes_arrive_whole(self, pool):
        pool.submit(job(4, value=0.1))
        outcome = pool.next(WAIT).outcomes[0]
        assert outcome.figures == {"test.value": 0.1 + 7, "test.infinite": float("inf")}
        assert outcome.worker.startswith("pid ")

    @pytest.mark.parametrize(
        ("do", "words"),
        [
            ("raise", "ArithmeticError: no evaluation"),
            ("wrong_number", "[1]"),
            ("wrong_type", "steps"),
            ("no_outcome", "AttributeError"),
        ],
    )
    def test_an_evaluator_in_error_is_a_failed_job(self, pool, do, words):
        pool.submit(job(0, do))
        pool.submit(job(1))
        found = reports(pool, 2)
        assert kinds(found) == {0: Failed, 1: Done}
        assert words in found[0].reason

    def test_a_cancelled_job_is_not_reported(self, pool):
        for n in range(8):
            pool.submit(job(n))
        for n in (0, 3, 7):
            pool.cancel(1000 + n)
        assert sorted(reports(pool, 5)) == [1, 2, 4, 5, 6]

    def test_a_job_may_be_cancelled_twice_or_late_or_never_known(self, pool):
        pool.cancel(4)
        pool.submit(job(0))
        assert sorted(reports(pool, 1)) == [0]
        pool.cancel(1000)
        pool.submit(job(1))
        pool.cancel(1001)
        pool.cancel(1001)
        assert pool.next(0.0) is None

    def test_closing_drops_what_is_open_and_may_be_repeated(self, new_pool):
        pool = new_pool()
        for n in range(4):
            pool.submit(job(n))
        pool.close()
        assert pool.next(0.0) is None
        pool.close()


class KillSuite:
    """For pools whose workers are processes of their own, beside `PoolSuite`; `new_pool` gives two workers."""

    def test_it_says_so(self, pool):
        assert pool.can_kill

    @pytest.mark.parametrize("do", ["hang", "spin"])
    def test_a_job_past_its_limit_is_killed_and_the_others_go_on(self, pool, do):
        pool.submit(job(0, do, limit=LIMIT))
        for n in range(1, 10):
            pool.submit(job(n, limit=WAIT))
        found = reports(pool, 10)
        assert kinds(found) == {0: TimedOut} | dict.fromkeys(range(1, 10), Done)
        assert found[0].seconds >= LIMIT

    def test_all_workers_hang_at_once(self, pool):
        for n in range(3):
            pool.submit(job(n, "hang", limit=LIMIT))
        pool.submit(job(3))
        assert kinds(reports(pool, 4)) == dict.fromkeys(range(3), TimedOut) | {3: Done}

    @pytest.mark.parametrize("do", ["exit", "kill"])
    def test_a_job_that_ends_its_worker_is_lost_and_the_others_go_on(self, pool, do):
        warm_up(pool)
        for n in range(20):
            pool.submit(job(n, do if n == 6 else "judge"))
        found = reports(pool, 20)
        assert kinds(found) == {n: Lost if n == 6 else Done for n in range(20)}
        assert found[6].deaths in (1, 2)
        assert "died" in found[6].reason

    def test_only_what_ends_workers_is_lost(self, pool):
        warm_up(pool)
        killers = {3, 4}
        for n in range(16):
            pool.submit(job(n, "exit" if n in killers else "judge"))
        found = reports(pool, 16)
        assert {n for n, report in found.items() if isinstance(report, Lost)} == killers
        assert set(kinds(found).values()) == {Lost, Done}

    def test_a_worker_killed_from_outside_loses_what_it_ran(self, pool, tmp_path):
        warm_up(pool)
        pids = {}
        for n in range(2):
            pool.submit(job(n, "meet", path=str(tmp_path / str(n))))
        for n in range(2):
            pids[n] = int(arrival(pool, tmp_path / str(n)))
        assert pids[0] != pids[1] != os.getpid()
        os.kill(pids[0], signal.SIGKILL)
        assert kinds(reports(pool, 1)) == {0: Lost}
        (tmp_path / "1.go").touch()
        pool.submit(job(2))
        assert kinds(reports(pool, 2)) == {1: Done, 2: Done}

    def test_an_evaluator_that_exits_is_a_failed_job_and_its_worker_stays(self, pool):
        def workers():
            for n in range(10):
                pool.submit(job(n))
            return {r.outcomes[0].worker for r in reports(pool, 10).values()}

        before = workers()
        pool.submit(job(10, "leave"))
        assert kinds(reports(pool, 1)) == {10: Failed}
        assert workers() <= before

    def test_a_limit_counts_from_the_first_place_in_line(self, pool, tmp_path):
        """Jobs wait in line for longer than their limit, and are not ended for it."""
        warm_up(pool)
        for n in range(2):
            pool.submit(job(n, "meet", path=str(tmp_path / str(n))))
        for n in range(2, 8):
            pool.submit(job(n, limit=2.0))
        for n in range(2):
            arrival(pool, tmp_path / str(n))
        assert pool.next(3.0) is None
        for n in range(2):
            (tmp_path / f"{n}.go").touch()
        assert set(kinds(reports(pool, 8)).values()) == {Done}

    def test_no_job_waits_behind_a_long_one_where_a_worker_is_idle(self, pool, tmp_path):
        warm_up(pool)
        for n in range(2):
            pool.submit(job(n, "meet", path=str(tmp_path / str(n))))
        for n in range(2, 6):
            pool.submit(job(n))
        for n in range(2):
            arrival(pool, tmp_path / str(n))
        (tmp_path / "1.go").touch()
        assert set(kinds(reports(pool, 5)).values()) == {Done}
        (tmp_path / "0.go").touch()
        pool.submit(job(6))
        assert kinds(reports(pool, 2)) == {0: Done, 6: Done}

    def test_a_cancelled_job_that_hangs_is_ended_unreported(self, pool):
        for n in range(2):
            pool.submit(job(n, "hang", limit=LIMIT))
            pool.cancel(1000 + n)
        pool.submit(job(2))
        assert kinds(reports(pool, 1)) == {2: Done}


def warm_up(pool, workers=2):
    """Short jobs until all workers have judged some: all are up, and a pool may queue several on one."""
    end = time.monotonic() + WAIT
    seen = set()
    while len(seen) < workers:
        assert time.monotonic() < end
        for n in range(8):
            pool.submit(job(n))
        seen = {report.outcomes[0].worker for report in reports(pool, 8).values()}


def arrival(pool, path):
    """What the job that meets at `path` wrote; the pool works meanwhile, and must have nothing to report."""
    end = time.monotonic() + WAIT
    while not path.exists():
        assert time.monotonic() < end
        assert pool.next(0.01) is None
    return path.read_text()
