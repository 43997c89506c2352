"""One seed gives one ledger: in another process, after a kill and a resume, whichever worker judges when."""

import os
import subprocess

from normact.launch.config import compose_config, in_worker, search_evaluator, space_of
from normact.launch.ray_pool import RayPool
from normact.search.history import History
from normact.search.ledger import Ledger
from normact.search.pool import Done, Job
from tests.judges import scored
from tests.launch.conftest import TINY
from tests.launch.processes import SELF_KILLING, check_nothing_lost_or_doubled, run

PROPOSALS = 40


def recorded(folder):
    history = check_nothing_lost_or_doubled(folder, PROPOSALS)
    return history.proposals, scored(history.outcomes)


def search(*controller):
    """Jobs of one candidate, so that what is proposed when does not hang on the clock."""
    return ["search", *TINY, *controller, "limits.batch=1", f"budget.proposals={PROPOSALS}"]


def test_one_worker_writes_the_same_in_another_process(tmp_path):
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        run(*search("controller=evolution", "controller.warmup=2"), f"run_dir=run{seed}", cwd=tmp_path, env=environment)
    proposals, outcomes = recorded(tmp_path / "run1")
    assert any(record.parents for record in proposals.values())
    assert sum(not outcome["gate"] for outcome in outcomes.values()) >= 3
    assert recorded(tmp_path / "run2") == (proposals, outcomes)


def test_one_worker_writes_the_same_after_a_kill(tmp_path):
    command = search("controller=random")
    run(*command, "run_dir=whole", cwd=tmp_path)
    killed = subprocess.run([*SELF_KILLING, "transaction", "4", *command, "run_dir=killed"], cwd=tmp_path, timeout=200)
    assert killed.returncode == -9
    with Ledger(tmp_path / "killed/ledger.sqlite", write=False) as ledger:
        assert 0 < len(History(ledger).outcomes) < PROPOSALS
    run("resume", "killed", cwd=tmp_path)
    assert recorded(tmp_path / "killed") == recorded(tmp_path / "whole")


def test_an_outcome_depends_on_its_job_alone(tmp_path):
    """Real trainings on Ray: one worker in order, then two backwards; and screening in one batch, then one by one."""
    config = compose_config([part for part in TINY if part != "pool=local"])
    space = space_of(config)
    layers = [space.to_json(candidate) for candidate in list(space.baselines().values())[:6]]
    together = [Job(0, "screen", tuple(enumerate(layers)), 5)]
    alone = [Job(n, "screen", ((n, layer),), 5) for n, layer in enumerate(layers)]
    trainings = [Job(10 + n, "train", ((n, layer),), 5) for n, layer in enumerate(layers)]
    first = judged(config, 1, [*together, *trainings])
    second = judged(config, 2, [*alone, *trainings][::-1])
    assert first == second
    assert len(first) == 12


def judged(config, workers, jobs):
    pool = RayPool(in_worker(search_evaluator, config), workers=workers)
    try:
        for job in jobs:
            pool.submit(job)
        found = {}
        while len(found) < sum(len(job.candidates) for job in jobs):
            report = pool.next(120.0)
            assert isinstance(report, Done), report
            found |= {(report.job.kind, outcome.number): outcome for outcome in report.outcomes}
    finally:
        pool.close()
    return {key: scored({0: outcome}) for key, outcome in found.items()}
