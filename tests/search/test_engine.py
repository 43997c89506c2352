"""The engine: nothing lost, nothing doubled, duplicates never trained, hostile candidates recorded."""

from collections import deque
from itertools import count

import pytest

from normact.search.budget import Budget, Limits
from normact.search.controllers import Evolution, RandomSearch
from normact.search.engine import Engine
from normact.search.funnel import Funnel
from normact.search.history import History
from normact.search.ledger import Ledger
from normact.search.objective import Score
from normact.search.outcome import Outcome, Proposal, mean_skill
from normact.search.pool import Done, Failed, Job, LocalPool, Lost, Pool, TimedOut
from normact.spaces import EVONORM_MOMENTS, EVONORM_POINTWISE, GraphSpace, InputError
from tests.judges import LOSS, Judge, expected, scored
from tests.toy import ToySpace

GRAPHS = GraphSpace([*EVONORM_POINTWISE, *EVONORM_MOMENTS])


@pytest.fixture
def ledger(tmp_path):
    with Ledger(tmp_path / "ledger.sqlite", create=True) as ledger:
        yield ledger


def engine(ledger, space=GRAPHS, judge=None, pool=None, proposals=200, controller=None, **kwargs):
    judge = judge or Judge(space)
    pool = pool or LocalPool(lambda: judge)
    controller = controller or RandomSearch(space, [LOSS], 0)
    return Engine(space, controller, ledger, pool, Budget(proposals=proposals), LOSS, **kwargs)


def outcomes(run):
    """All outcomes of a run, from its ledger."""
    return History(run.ledger).outcomes


def candidates(run):
    """All candidates of a run by number, from its ledger."""
    return {n: run.space.from_json(r.candidate) for n, r in History(run.ledger).proposals.items()}


def check_complete(ledger, proposals):
    """Every proposal was proposed once and finished once, in the ledger."""
    assert [e.number for e in ledger.events("proposed")] == list(range(proposals))
    assert sorted(e.number for e in ledger.events("finished")) == list(range(proposals))


def test_every_proposal_gets_its_outcome(ledger):
    run = engine(ledger)
    assert run.run()
    check_complete(ledger, 200)
    history = History(ledger)
    for number, outcome in history.outcomes.items():
        if outcome.same_as is None:
            proposal = Proposal(number, GRAPHS.from_json(history.proposals[number].candidate))
            assert (outcome.gate or "accepted") == expected(GRAPHS, proposal)
    assert sum(count for _, count, _ in run.funnel.rows()) + run.funnel.ended["accepted"] == 200


def test_screening_is_part_of_a_trained_outcome(ledger):
    run = engine(ledger)
    run.run()
    trained = next(o for o in outcomes(run).values() if o.accepted)
    assert trained.figures == {"probe.size": 1.0}
    assert trained.seconds == {"probe": 1e-3, "train": 2e-3}
    assert trained.fingerprint.startswith("print of")


def test_the_best_has_the_highest_mean_skill(ledger):
    judge = Judge(GRAPHS)
    judge.train = lambda number, key, job: Outcome(
        number, scores=(Score("loss", "a", 1, (number % 17) / 17), Score("loss", "b", 1, 0.5)), steps=1
    )
    run = engine(ledger, judge=judge)
    run.run()
    accepted = [o for o in outcomes(run).values() if o.accepted]
    assert run.best_skill == max(mean_skill(LOSS, o) for o in accepted) == pytest.approx(1 - 0.25)
    assert run.best.number % 17 == 0


def test_the_best_is_of_one_kind_of_device(ledger):
    judge = Judge(GRAPHS, reject=0.0)
    judge.train = lambda number, key, job: Outcome(
        number, scores=(Score("loss", "a", 1, 1 / (2 + number)),), steps=1, device="cpu" if number < 50 else "other"
    )
    run = engine(ledger, judge=judge, proposals=100)
    run.run()
    assert {o.device for o in outcomes(run).values() if o.accepted} == {"cpu", "other"}
    assert run.best.device == "cpu"
    assert run.best.number == max(n for n, o in outcomes(run).items() if o.accepted and n < 50)


class TestDuplicates:
    def test_equal_keys_are_trained_once(self, ledger):
        space, judge = ToySpace(most=10), None
        judge = Judge(space, reject=0.0)
        run = engine(ledger, space, judge, proposals=300)
        run.run()
        keys = {number: space.key(c) for number, c in candidates(run).items()}
        assert len({keys[n] for n in judge.trained}) == len(judge.trained) == 20
        for number, outcome in outcomes(run).items():
            if outcome.same_as is not None:
                assert keys[outcome.same_as] == keys[number]
                assert outcomes(run)[outcome.same_as].same_as is None, "a duplicate names the first, not another one"

    def test_equal_fingerprints_are_trained_once(self, ledger):
        space = ToySpace(most=50)
        judge = Judge(space, fingerprint=lambda key: f"{key[:4]}{len(key)}", reject=0.0)
        run = engine(ledger, space, judge, proposals=300)
        run.run()
        prints = {judge.fingerprint(space.key(candidates(run)[n])) for n in judge.trained}
        assert len(judge.trained) == len(prints) == 4
        check_complete(ledger, 300)

    def test_a_twin_of_one_in_flight_waits_for_it(self, ledger):
        space = ToySpace(most=1)  # two candidates in all
        pool = Scripted(Judge(space, reject=0.0), hold={"train"})
        run = engine(ledger, space, pool=pool, proposals=12)
        run._fill()
        for _ in range(4):
            run._collect()
            run._fill()
        assert sum(job.kind == "train" for job in pool.jobs) == 2
        assert sum(o.same_as is not None for o in outcomes(run).values()) == 0, "none is answered before the first"
        pool.hold = set()
        run.run()
        check_complete(ledger, 12)
        assert run.funnel.ended["duplicate"] == 10

    def test_duplicates_do_not_enter_an_evolution_window(self, ledger):
        space = ToySpace(most=5)
        controller = Evolution(space, [LOSS], 0, warmup=3)
        run = engine(ledger, space, Judge(space, reject=0.0), proposals=120, controller=controller)
        run.run()
        assert len(controller.window) == 10
        assert run.funnel.ended["duplicate"] == 110


def test_a_space_that_is_exhausted_ends_the_search(ledger, monkeypatch):
    """Two functions in all: budgets of many proposals are spent on duplicates, one without end is not."""
    monkeypatch.setattr("normact.search.engine.EXHAUSTED", 500)
    space = ToySpace(most=1)
    run = Engine(
        space, RandomSearch(space, [LOSS], 0), ledger, LocalPool(lambda: Judge(space)), Budget(minutes=60), LOSS
    )
    assert run.run()
    assert run.exhausted
    assert 500 < run.funnel.proposals < 700
    assert run.funnel.unfinished == 0


def test_duplicates_alone_do_not_end_a_search(ledger):
    space = ToySpace(most=1)
    run = engine(ledger, space, Judge(space), proposals=3000)
    assert run.run()
    check_complete(ledger, 3000)


class Scripted(Pool):
    """A pool that runs jobs in this process and lets a test say what becomes of each."""

    def __init__(self, judge, fate=lambda job: None, hold=()):
        self.judge, self.fate, self.hold = judge, fate, set(hold)
        self.jobs, self.waiting, self.cancelled = [], deque(), []

    @property
    def capacity(self):
        return {"screen": 2, "train": 2}

    def free(self, kind):
        return max(0, 2 - len(self.waiting))

    def submit(self, job):
        self.jobs.append(job)
        self.waiting.append(job)

    def next(self, timeout):
        for _ in range(len(self.waiting)):
            job = self.waiting.popleft()
            if job.kind not in self.hold:
                return self.fate(job) or Done(job, tuple(self.judge(job)))
            self.waiting.append(job)
        return None

    def cancel(self, job_id):
        self.cancelled.append(job_id)
        self.waiting = deque(job for job in self.waiting if job.id != job_id)

    def close(self):
        self.waiting.clear()


def has(job, number):
    return any(n == number for n, _ in job.candidates)


class TestHostileCandidates:
    """Proposal 5 misbehaves, alone or in company; the others get their outcomes all the same."""

    @pytest.mark.parametrize(
        ("report", "gate", "times"),
        [
            (lambda job: Lost(job, "killed by signal 9"), "worker", 2),
            (lambda job: TimedOut(job, 3.0), "time", 1),
            (lambda job: Failed(job, "MemoryError"), "error", 1),
        ],
        ids=["kills its worker", "hangs", "fails"],
    )
    @pytest.mark.parametrize("kind", ["screen", "train"])
    def test_is_a_recorded_rejection(self, ledger, kind, report, gate, times):
        judge = Judge(GRAPHS, reject=0.0)
        pool = Scripted(judge, fate=lambda job: report(job) if job.kind == kind and has(job, 5) else None)
        run = engine(ledger, pool=pool, proposals=40)
        assert run.run()
        check_complete(ledger, 40)
        assert outcomes(run)[5].gate == gate
        assert sum(o.gate == gate for o in outcomes(run).values()) == 1
        alone = [job for job in pool.jobs if job.kind == kind and has(job, 5) and len(job.candidates) == 1]
        assert len(alone) == times, "it is sent alone, and not a third time"
        assert sum(e.number == 5 for e in ledger.events("lost")) >= times

    def test_a_worker_lost_once_is_bad_luck(self, ledger):
        fates = count()

        def fate(job):
            return Lost(job, "node gone") if job.kind == "train" and has(job, 5) and next(fates) == 0 else None

        run = engine(ledger, pool=Scripted(Judge(GRAPHS, reject=0.0), fate=fate), proposals=20)
        run.run()
        assert outcomes(run)[5].accepted

    def test_a_pool_that_saw_two_deaths_is_believed(self, ledger):
        pool = Scripted(
            Judge(GRAPHS, reject=0.0),
            fate=lambda job: Lost(job, "again", deaths=2) if has(job, 5) and job.kind == "train" else None,
        )
        run = engine(ledger, pool=pool, proposals=10, limits=Limits(batch=1))
        run.run()
        assert outcomes(run)[5].gate == "worker"
        assert sum(has(job, 5) and job.kind == "train" for job in pool.jobs) == 1

    def test_a_key_that_cannot_be_taken_does_not_stop_the_search(self, ledger):
        space = ToySpace()
        space.key = lambda candidate: 1 / 0 if candidate.count == 7 else f"{candidate}"
        run = engine(ledger, space, Judge(ToySpace()), proposals=300)
        run.run()
        check_complete(ledger, 300)
        sevens = [n for n, c in candidates(run).items() if c.count == 7]
        assert len(sevens) > 2
        assert all(outcomes(run)[n].gate != "" or outcomes(run)[n].accepted for n in sevens)

    def test_a_late_answer_is_taken_once(self, ledger):
        run = engine(ledger, proposals=10)
        run.run()
        before = dict(outcomes(run))
        run._handle(Done(Job(0, "screen", ((0, None),), 0), (Outcome(0, "probe", "late"),)))
        run._flush()
        assert outcomes(run) == before
        check_complete(ledger, 10)


class Restarting(Scripted):
    """As a pool of one worker: none is free after a death until `next` brought a new one up."""

    def __init__(self, judge, fate):
        super().__init__(judge, fate)
        self.up, self.turns = True, 0

    def free(self, kind):
        return 1 if self.up and not self.waiting else 0

    def next(self, timeout):
        self.turns += 1
        assert self.turns < 2000, "the engine spins"
        if not self.up:
            self.up = True
            return None
        report = super().next(timeout)
        self.up = not isinstance(report, Lost | TimedOut)
        return report


@pytest.mark.parametrize("report", [lambda job: Lost(job, "gone"), lambda job: TimedOut(job, 1.0)])
@pytest.mark.parametrize("kind", ["screen", "train"])
def test_the_only_worker_dies_and_the_search_goes_on(ledger, kind, report):
    judge = Judge(GRAPHS, reject=0.0)
    run = engine(
        ledger, pool=Restarting(judge, lambda j: report(j) if j.kind == kind and has(j, 3) else None), proposals=8
    )
    assert run.run()
    check_complete(ledger, 8)


class TestFailingEvaluators:
    def test_that_fail_on_everything_stop_the_search_and_blame_no_candidate(self, ledger):
        run = engine(ledger, pool=Scripted(Judge(GRAPHS), fate=lambda job: Failed(job, "no data")), proposals=40)
        with pytest.raises(InputError, match="no data"):
            run.run()
        assert ledger.count("finished") == 0

    def test_that_begin_to_fail_stop_it_too(self, ledger):
        pool = Scripted(
            Judge(GRAPHS, reject=0.0), fate=lambda job: Failed(job, "data are gone") if job.kind == "train" else None
        )
        run = engine(ledger, pool=pool, proposals=400, limits=Limits(batch=1))
        with pytest.raises(InputError, match="failed 3 times in a row: data are gone"):
            run.run()
        assert not any(o.gate == "error" for o in outcomes(run).values())


def test_a_batch_gets_little_more_time_than_one_candidate(ledger):
    """One that hangs in a batch of 64 must not hold its worker for 64 limits."""
    pool = Scripted(Judge(GRAPHS))
    engine(ledger, pool=pool, proposals=500, limits=Limits(screen_seconds=20, job_seconds=0.2)).run()
    assert max(len(job.candidates) for job in pool.jobs) == 64
    assert max(job.time_limit for job in pool.jobs if job.kind == "screen") <= 22


def test_rejections_by_time_carry_their_cost(ledger):
    pool = Scripted(Judge(GRAPHS, reject=0.0), fate=lambda job: TimedOut(job, 1.0) if has(job, 2) else None)
    run = engine(ledger, pool=pool, proposals=5)
    run.run()
    assert outcomes(run)[2].gate == "time"
    assert outcomes(run)[2].seconds["time"] >= 0
    assert "time" in run.funnel.seconds


def test_a_killed_sessions_minutes_count(ledger, monkeypatch):
    """The clock is in the ledger while the search runs, not only at its end."""
    monkeypatch.setattr("normact.search.engine.HOLD_SECONDS", 0.0)
    run = engine(ledger)
    seen = []
    run.run(lambda progress: seen.append(ledger.meta("active_seconds", 0.0)))
    assert 0 < seen[1] <= seen[-2] <= run.seconds


class TestResume:
    @pytest.mark.parametrize("make", [RandomSearch, lambda *a: Evolution(*a, warmup=5)], ids=["random", "evolution"])
    @pytest.mark.parametrize("stop_after", [1, 3, 10, 37])
    def test_a_search_stopped_anywhere_ends_like_one_never_stopped(self, tmp_path, make, stop_after):
        def start(path, create):
            ledger = Ledger(tmp_path / path, create=create)
            return ledger, engine(ledger, controller=make(GRAPHS, [LOSS], 0), proposals=250, limits=Limits(batch=4))

        ledger, unbroken = start("a.sqlite", True)
        unbroken.run()
        whole = outcomes(unbroken)
        ledger.close()
        ledger, broken = start("b.sqlite", True)
        turns = count()

        def interrupt(progress):
            if next(turns) == stop_after:
                raise KeyboardInterrupt

        assert not broken.run(interrupt)
        assert len(outcomes(broken)) < 250
        ledger.close()
        ledger, resumed = start("b.sqlite", False)
        again = resumed.replay()
        assert again == resumed.funnel.unfinished
        assert resumed.run()
        check_complete(ledger, 250)
        found = outcomes(resumed)
        assert resumed.funnel == History(ledger).funnel
        assert resumed.funnel.ended == Funnel.of(250, found.values()).ended
        ledger.close()
        if make is RandomSearch:  # evolution sees outcomes in another order when work is cut into other jobs
            merged = {n: o for n, o in found.items() if o.same_as is None}
            assert scored(merged) == scored({n: o for n, o in whole.items() if o.same_as is None})

    def test_one_worker_repeats_itself_exactly(self, tmp_path):
        results = []
        for name in ("a", "b"):
            with Ledger(tmp_path / f"{name}.sqlite", create=True) as ledger:
                controller = Evolution(GRAPHS, [LOSS], 0, warmup=5)
                run = engine(ledger, controller=controller, limits=Limits(batch=1))  # larger ones go by measured times
                run.run()
                results.append(scored(outcomes(run)))
        assert results[0] == results[1]

    def test_minutes_of_earlier_sessions_count(self, ledger):
        ledger.set_meta("active_seconds", 61.0)
        run = Engine(
            GRAPHS, RandomSearch(GRAPHS, [LOSS], 0), ledger, LocalPool(lambda: Judge(GRAPHS)), Budget(minutes=1), LOSS
        )
        run.replay()
        assert run.run()
        assert run.funnel.proposals == 0


def test_where_nothing_can_be_written_the_counts_stay_with_the_events(ledger, monkeypatch):
    """The disk is full at one append and has room at the next: what failed is written then, or not counted."""
    monkeypatch.setattr("normact.search.engine.HOLD_SECONDS", 0.0)
    append, fails = ledger.append, iter([False, False, True])

    def full_once(events, facts):
        if events and next(fails, False):
            raise InputError("cannot write")
        append(events, facts)

    ledger.append = full_once
    run = engine(ledger, pool=Scripted(Judge(GRAPHS)), proposals=500)
    with pytest.raises(InputError, match="cannot write"):
        run.run()
    ledger.append = append
    history = History(ledger)
    assert 0 < history.funnel.proposals == len(history.proposals)
    assert history.funnel.ended == Funnel.of(0, history.outcomes.values()).ended
    assert engine(ledger, proposals=500).replay() == history.funnel.unfinished


@pytest.mark.parametrize("at", [1, 6, 40, 90])
def test_an_interrupt_in_the_middle_of_a_step_tears_nothing(tmp_path, at):
    """Ctrl-C while a key is taken: what was half done is not written, and the run goes on."""
    space, calls = ToySpace(), count()
    key = space.key

    def interrupted(candidate):
        if next(calls) == at:
            raise KeyboardInterrupt
        return key(candidate)

    with Ledger(tmp_path / "ledger.sqlite", create=True) as ledger:
        run = engine(ledger, space, Judge(ToySpace()), proposals=120)
        space.key = interrupted
        assert not run.run()
        space.key = key
        history = History(ledger)
        history.check()
        assert history.funnel.proposals == ledger.count("proposed") <= at
        assert sum(history.funnel.ended.values()) == ledger.count("finished")
        resumed = engine(ledger, space, Judge(space), proposals=120)
        resumed.replay()
        assert resumed.run()
        check_complete(ledger, 120)
        History(ledger).check()


def test_the_best_can_be_described_at_once(ledger):
    run = engine(ledger)
    texts = []
    run.run(lambda progress: texts.append(progress.best and run.describe(progress.best.number)))
    assert texts[-1] == GRAPHS.describe(candidates(run)[run.best.number])


class TestBudget:
    def test_time_is_kept_and_the_rest_stays_unfinished(self, ledger):
        pool = Scripted(Judge(GRAPHS), hold={"train"})
        run = Engine(GRAPHS, RandomSearch(GRAPHS, [LOSS], 0), ledger, pool, Budget(minutes=0.01), LOSS)
        assert run.run()
        assert 0.5 < run.seconds < 5
        assert run.funnel.unfinished == ledger.count("proposed") - ledger.count("finished") > 0
        assert pool.cancelled, "what was in flight was given up"
        assert ledger.meta("active_seconds") == pytest.approx(run.seconds, abs=0.5)

    @pytest.mark.parametrize("bad", [{}, {"proposals": 0}, {"minutes": 0.0}, {"proposals": 5, "minutes": -1.0}])
    def test_no_budget_is_refused(self, bad):
        with pytest.raises(InputError, match="budget"):
            Budget(**bad)


def test_training_goes_first_and_screening_stops_at_the_backlog(ledger):
    """With trainings held, screening does not run ahead for ever."""
    pool = Scripted(Judge(GRAPHS, reject=0.0), hold={"train"})
    pool.free = lambda kind: max(0, 2 - sum(job.kind == kind for job in pool.waiting))
    run = engine(ledger, pool=pool, proposals=10_000)
    for _ in range(50):
        run._fill()
        run._collect()
    assert run.funnel.proposals < 200


def test_jobs_are_sized_by_measured_cost(ledger):
    pool = Scripted(Judge(GRAPHS))
    run = engine(ledger, pool=pool, proposals=2000, limits=Limits(job_seconds=0.03, batch=64))
    run.run()
    sizes = [len(job.candidates) for job in pool.jobs if job.kind == "screen"]
    assert sizes[0] == 8
    assert max(sizes) == 30  # 0.03 s at 1 ms each
