"""The simulation of many workers, and what the engine does with them."""

import pytest

from normact.search.budget import Budget
from normact.search.controllers import RandomSearch
from normact.search.engine import Engine
from normact.search.history import History
from normact.search.ledger import Ledger
from normact.search.outcome import Outcome
from normact.search.pool import Job, LocalPool
from normact.spaces import EVONORM_POINTWISE, GraphSpace
from tests.judges import LOSS, scored
from tests.simulation import SimulatedClock, SimulatedPool, TimedJudge

SPACE = GraphSpace([*EVONORM_POINTWISE, "batch_std", "instance_std"])


def search(tmp_path, pool, clock, budget):
    with Ledger(tmp_path / "ledger.sqlite", create=True) as ledger:
        engine = Engine(SPACE, RandomSearch(SPACE, [LOSS], 0), ledger, pool, budget, LOSS, clock=clock)
        engine.run()
        return engine.funnel, scored({n: o for n, o in History(ledger).outcomes.items() if o.same_as is None})


def test_a_job_takes_what_its_outcomes_say():
    clock = SimulatedClock()

    def evaluate(job):
        return [Outcome(n, seconds={"train": 100.0 * (n + 1)}) for n, _ in job.candidates]

    pool = SimulatedPool(evaluate, 1, clock, job_seconds=10.0)
    start = clock.now()
    pool.submit(Job(0, "train", ((0, {}), (1, {})), 0))
    assert pool.free("train") == 0
    assert pool.next(50.0) is None
    assert pool.next(1000.0).outcomes[1].seconds == {"train": 200.0}
    assert clock.now() - start == pytest.approx(310, abs=1)
    assert pool.free("train") == 1
    assert pool.utilisation(start, start + 620) == pytest.approx(0.5, abs=0.01)
    assert pool.driver_load(start, start + 310) == pytest.approx(0, abs=0.01)


def test_short_jobs_are_handed_out_ahead():
    clock = SimulatedClock()
    pool = SimulatedPool(lambda job: [Outcome(job.candidates[0][0], seconds={"probe": 0.1})], 2, clock)
    for number in range(2):
        pool.submit(Job(number, "screen", ((number, {}),), 0))
    assert pool.free("screen") == 0, "how long a job takes is not known yet"
    assert [pool.next(1.0).job.id for _ in range(2)] == [0, 1]
    assert pool.free("screen") == 4
    start = clock.now()
    for number in range(2, 6):
        pool.submit(Job(number, "screen", ((number, {}),), 0))
    assert pool.free("screen") == 0
    assert sorted(pool.next(1.0).job.id for _ in range(4)) == [2, 3, 4, 5]
    assert clock.now() - start == pytest.approx(0.2, abs=0.05), "the second of a worker follows on its first"


def test_what_is_found_does_not_depend_on_the_workers(tmp_path):
    judge = TimedJudge(SPACE, train_seconds=0.05)
    found = []
    for name, make in (("one", None), ("many", 20)):
        clock = SimulatedClock()
        pool = SimulatedPool(judge, make, clock) if make else LocalPool(lambda: judge)
        (tmp_path / name).mkdir()
        found.append(search(tmp_path / name, pool, clock, Budget(proposals=400)))
    assert found[0][0].ended["accepted"] == found[1][0].ended["accepted"] > 20
    by_print = [{o["fingerprint"]: o["scores"] for o in outcomes.values() if not o["gate"]} for _, outcomes in found]
    assert by_print[0] == by_print[1]


def test_two_hundred_workers_are_kept_busy_without_proposing_far_ahead(tmp_path):
    """Trainings of 20 s mean: the driver has time enough even on a machine that does other things."""
    clock = SimulatedClock()
    pool = SimulatedPool(TimedJudge(SPACE, train_seconds=20.0), 200, clock, pool_seconds=1e-3, job_seconds=1e-3)
    start = clock.now()
    funnel, _ = search(tmp_path, pool, clock, Budget(minutes=2))
    assert pool.utilisation(start + 40, start + 120) > 0.95
    assert pool.driver_load(start + 40, start + 120) < 0.5
    trained = funnel.ended["accepted"]
    assert trained > 700
    screened = funnel.ended["probe"] + trained
    waiting = 0.15 * screened - trained  # what passed and was not trained yet: in flight, or waiting for a worker
    assert waiting < 200 + 64 + 60
