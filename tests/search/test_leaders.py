import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from normact.search.evaluate import Evaluator, further_seed
from normact.search.gates import Pace
from normact.search.leaders import SKILL, Leaders, Race, skills_by_seed
from normact.search.objective import Objective, Score
from normact.search.outcome import Outcome
from normact.search.pool import Job
from normact.spaces import InputError
from tests.tasks import ModuleSpace, blobs, small_task

LOSS = Objective("validation_loss", "", "minimize", 1.0, 0.0)


def outcome(number, skill, *further, curve=(), gate="", device="cpu"):
    """Accepted with that skill, and under further seeds with those."""
    skills = (skill, *further)
    scores = [Score("validation_loss", "net", step, 1 - value) for step, value in curve]
    scores.append(Score("validation_loss", "net", 100, 1 - float(np.mean(skills))))
    figures = {f"{SKILL}{n}": value for n, value in enumerate(skills)} if further else {}
    return Outcome(number, gate, figures=figures, scores=tuple(scores), device=device)


@pytest.mark.parametrize("arguments", [{"seeds": 0}, {"share": 0.0}, {"share": 1.0}, {"least": 0}])
def test_a_race_out_of_range_is_refused(arguments):
    with pytest.raises(InputError, match="a race needs"):
        Race(**arguments)


def test_nothing_is_sent_along_where_nothing_is_asked_for():
    leaders = Leaders(LOSS)
    leaders.learn(outcome(0, 0.5))
    assert leaders.snapshot() == {}


@given(st.lists(st.lists(st.floats(-1, 1), min_size=1, max_size=3), max_size=60), st.floats(0.1, 0.9))
def test_the_best_share_of_those_that_came_so_far_goes_on(skills, share):
    leaders = Leaders(LOSS, Race(3, share, least=4))
    for number, of in enumerate(skills):
        leaders.learn(outcome(number, *of))
    bars = leaders.snapshot()["race"]
    json.dumps(leaders.snapshot())
    for seeds, bar in enumerate(bars, 1):
        means = [sum(of[:seeds]) / seeds for of in skills if len(of) >= seeds]
        going_on = sum(mean >= bar - 1e-9 for mean in means)
        assert going_on >= share * (len(means) - 1)
        assert going_on == len(means) or sum(mean > bar + 1e-9 for mean in means) <= share * (len(means) - 1) + 1
    assert (len(bars) > 0) == (len(skills) >= 4)
    assert len(bars) < 2 or sum(len(of) >= 2 for of in skills) >= 4


def test_rejected_ones_and_other_devices_do_not_count():
    leaders = Leaders(LOSS, count=2)
    leaders.learn(outcome(0, 0.9, gate="quality@50"))
    leaders.learn(outcome(1, 0.5, curve=[(50, 0.25)]))
    leaders.learn(outcome(2, 0.9, device="a GPU"))
    assert leaders.snapshot()["curves"] == {}
    leaders.learn(outcome(3, 0.75, curve=[(50, 0.125)]))
    leaders.learn(outcome(4, 0.25, curve=[(50, 0.5)]))
    assert leaders.snapshot()["curves"] == {"net": {"50": [0.125, 0.25], "100": [0.75, 0.5]}}


def test_the_latest_ones_alone_count():
    leaders = Leaders(LOSS, count=1, window=2)
    for number, skill in enumerate([0.9, 0.1, 0.2]):
        leaders.learn(outcome(number, skill))
    assert leaders.snapshot()["curves"] == {"net": {"100": [0.2]}}


# -- in a worker -----------------------------------------------------------------------------------------------


def judged(snapshot, *gates, seed=3):
    evaluate = Evaluator(ModuleSpace(), small_task(data=blobs()), gates)
    return evaluate(Job(0, "train", ((0, "bn_relu"),), seed, snapshot=snapshot))[0]


def final_loss(outcome):
    (value,) = outcome.final("validation_loss").values()
    return value


def test_a_candidate_near_the_front_gets_the_mean_of_more_seeds():
    alone = [final_loss(judged({}, seed=seed)) for seed in (3, further_seed(3, 1), further_seed(3, 2))]
    assert len(set(alone)) == 3
    raced = judged({"race": [-10.0, -10.0]})
    objective = small_task(data=blobs()).objective("validation_loss")
    assert final_loss(raced) == pytest.approx(np.mean(alone), rel=1e-6)
    assert skills_by_seed(raced, objective) == pytest.approx([objective.skill(v) for v in alone], rel=1e-6)


def test_one_below_the_bar_gets_no_more():
    first = judged({})
    skill = skills_by_seed(first, small_task(data=blobs()).objective())[0]
    assert final_loss(judged({"race": [skill + 0.01, -10.0]})) == final_loss(first)
    second = judged({"race": [skill - 0.01, 10.0]})
    assert final_loss(second) != final_loss(first)
    assert sum(name.startswith(SKILL) for name in second.figures) == 2


def test_pace_stops_what_lags_behind_the_leaders():
    gate = Pace(at=2, margin=0.1, leaders=2)
    task = small_task(data=blobs())
    (anchor,) = task.anchors
    passed = judged({}, gate)
    assert passed.gate == ""
    skill = passed.figures[f"pace@2.{anchor}.skill"]
    near = {"curves": {anchor: {"2": [skill + 9, skill + 0.09]}}}
    assert judged(near, gate).gate == ""
    far = {"curves": {anchor: {"2": [skill + 9, skill + 0.11]}}}
    stopped = judged(far, gate)
    assert stopped.gate == "pace@2" and stopped.steps == 2
    assert "leaders had" in stopped.reason


@pytest.mark.parametrize("arguments", [{"at": 0}, {"at": 1, "margin": -1.0}, {"at": 1, "leaders": 0}])
def test_a_pace_out_of_range_is_refused(arguments):
    with pytest.raises(InputError, match="a pace gate needs"):
        Pace(**arguments)
