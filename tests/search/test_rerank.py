import dataclasses
import itertools
import math

import numpy as np
import pytest
from scipy import stats

from normact.search.ledger import Ledger
from normact.search.objective import Objective, Score
from normact.search.outcome import Outcome
from normact.search.pool import Failed, LocalPool, Lost, TimedOut
from normact.search.rerank import FIRST_SEED, FIRST_TUNING_SEED, Entrant, Rerank, standings
from normact.search.trainings import Trainings, Wanted
from normact.spaces import InputError

ACCURACY = Objective("accuracy", "", "maximize", 0.1, 1.0)
LOSS = Objective("loss", "", "minimize", 2.3, 0.0)


def outcome(test, validation, objective=ACCURACY, anchors=("net",)):
    name = objective.name
    scores = [Score(name, a, 10, validation) for a in anchors] + [Score(f"test_{name}", a, 10, test) for a in anchors]
    return Outcome(0, scores=tuple(scores), steps=10)


def judge(tests, objective=ACCURACY, validations=None):
    """The standings of layers by name: those whose name starts with b are baselines; test values per seed."""
    names = sorted(tests)
    entrants = [Entrant(n, "baseline" if n.startswith("b") else "finalist", n, n) for n in names]
    seeds = list(range(len(tests[names[0]])))
    validations = validations or tests
    results = {
        (i, s): outcome(float(tests[n][s]), float(validations[n][s]), objective)
        for i, n in enumerate(names)
        for s in seeds
    }
    return {row.entrant.name: row for row in standings(entrants, seeds, results, objective)}


def draws(seed, count=8, spread=0.01):
    return np.random.default_rng(seed).normal(0, spread, count)


# -- the statistics --------------------------------------------------------------------------------------------


def test_intervals_hold_together_and_p_values_are_holms():
    noise = draws(0)
    tests = {
        "bn": 0.8 + noise,
        "f1": 0.83 + noise + draws(1),
        "f2": 0.805 + noise + draws(2),
        "f3": 0.76 + noise + draws(3, spread=0.02),
    }
    rows = judge(tests)
    paired = {name: stats.ttest_rel(tests[name], tests["bn"]) for name in ("f1", "f2", "f3")}
    least, middle, most = sorted(paired, key=lambda n: paired[n].pvalue)
    adjusted = {least: 3 * paired[least].pvalue}
    adjusted[middle] = max(adjusted[least], 2 * paired[middle].pvalue)
    adjusted[most] = max(adjusted[middle], paired[most].pvalue)
    for name in paired:
        assert rows[name].p == pytest.approx(adjusted[name], rel=1e-6)
        interval = paired[name].confidence_interval(1 - 0.05 / 3)
        assert (rows[name].low, rows[name].high) == pytest.approx((interval.low, interval.high), rel=1e-9)
        assert rows[name].difference == pytest.approx(np.mean(tests[name] - tests["bn"]), rel=1e-9)
        assert rows[name].test == pytest.approx(tests[name].mean())
        assert rows[name].deviation == pytest.approx(np.std(tests[name], ddof=1))
    verdicts = {name: rows[name].verdict for name in rows}
    assert verdicts == {"bn": "best baseline", "f1": "better", "f2": "no difference shown", "f3": "worse"}
    assert rows["bn"].difference is None and rows["bn"].low is None and rows["bn"].high is None


def test_a_difference_that_one_test_would_show_is_not_shown_among_three():
    """p = 0.03 is enough alone, and not against 0.05 / 3."""
    step = stats.t.isf(0.015, 7)
    d = np.array([1, -1] * 4) * 1.0
    d = 0.001 * (d / stats.sem(d) + step)
    base = 0.8 + draws(0)
    assert stats.ttest_rel(base + d, base).pvalue == pytest.approx(0.03, rel=1e-6)
    assert judge({"bn": base, "f1": base + d})["f1"].verdict == "better"
    others = {"f2": base + draws(5), "f3": base + draws(6)}
    assert judge({"bn": base, "f1": base + d, **others})["f1"].verdict == "no difference shown"


def test_after_one_that_shows_nothing_no_later_one_does():
    """Two with p = 0.03: the second is below its own level 0.05, but the first is above 0.05 / 2."""
    d = np.array([1, -1] * 4) * 1.0
    d = 0.001 * (d / stats.sem(d) + stats.t.isf(0.015, 7))
    base = 0.8 + draws(0)
    rows = judge({"bn": base, "f1": base + d, "f2": base + 1.0001 * d})
    assert {rows["f1"].verdict, rows["f2"].verdict} == {"no difference shown"}


def test_where_less_is_better_signs_turn():
    noise = draws(0)
    tests = {"bn": 0.8 + noise, "f1": 0.7 + noise + draws(1), "f2": 0.9 + noise + draws(2)}
    rows = judge(tests, LOSS)
    assert rows["f1"].verdict == "better" and rows["f1"].difference < 0
    assert rows["f2"].verdict == "worse" and rows["f2"].difference > 0
    assert list(rows) == ["f1", "bn", "f2"]
    assert list(judge(tests)) == ["f2", "bn", "f1"]


def test_the_best_baseline_is_chosen_on_validation_not_on_test():
    flat = np.zeros(8)
    tests = {"b1": 0.9 + flat, "b2": 0.7 + flat, "f": 0.8 + draws(1)}
    validations = {"b1": 0.6 + flat, "b2": 0.65 + flat, "f": 0.1 + flat}
    rows = judge(tests, validations=validations)
    assert (rows["b1"].verdict, rows["b2"].verdict) == ("baseline", "best baseline")
    assert rows["f"].difference == pytest.approx(np.mean(tests["f"]) - 0.7)
    assert rows["f"].verdict == "better"
    losses = judge(tests, LOSS, validations)
    assert (losses["b1"].verdict, losses["b2"].verdict) == ("best baseline", "baseline")


@pytest.mark.parametrize("count", range(2, 8))
def test_fewer_than_8_seeds_are_never_better_or_worse(count):
    base = 0.5 + draws(0, count)
    rows = judge({"bn": base, "f1": base + 0.3 + draws(1, count, 1e-4), "f2": base - 0.3})
    assert {rows["f1"].verdict, rows["f2"].verdict} == {f"preliminary, {count} seeds"}


def test_layers_that_do_the_same_show_no_difference():
    base = 0.8 + draws(0)
    row = judge({"bn": base, "f1": base.copy()})["f1"]
    assert (row.difference, row.low, row.high, row.verdict) == (0.0, 0.0, 0.0, "no difference shown")


def test_a_value_is_the_mean_over_anchors():
    entrants = [Entrant("bn", "baseline", 0, ""), Entrant("f", "finalist", 1, "")]
    values = {0: (0.5, 0.7), 1: (0.9, 0.6)}
    results = {
        (i, s): Outcome(
            i,
            scores=tuple(
                Score(n, a, 5, v) for n in ("accuracy", "test_accuracy") for a, v in zip("pq", values[i], strict=True)
            ),
        )
        for i in (0, 1)
        for s in range(8)
    }
    rows = {row.entrant.name: row for row in standings(entrants, range(8), results, ACCURACY)}
    assert rows["f"].test == pytest.approx(0.75) and rows["bn"].validation == pytest.approx(0.6)
    assert rows["f"].by_anchor == {"p": pytest.approx(0.9), "q": pytest.approx(0.6)}


@pytest.mark.parametrize("broken", [Outcome(0, "divergence", "NaN"), outcome(math.nan, 0.9), outcome(0.9, math.inf)])
def test_failed_trainings_count_as_trivial(broken):
    entrants = [Entrant("bn", "baseline", 0, ""), Entrant("f", "finalist", 1, "")]
    results = {(i, s): outcome(0.9, 0.9) for i in (0, 1) for s in range(8)}
    results |= {(1, s): broken for s in (2, 5)}
    rows = {row.entrant.name: row for row in standings(entrants, range(8), results, ACCURACY)}
    assert (rows["f"].failed, rows["bn"].failed) == (2, 0)
    expected = (6 * 0.9 + 2 * 0.1) / 8
    assert rows["f"].test == rows["f"].validation == pytest.approx(expected)
    assert rows["f"].by_anchor == {"net": pytest.approx(expected)}


def test_results_without_a_test_value_are_no_results():
    entrants = [Entrant("bn", "baseline", 0, ""), Entrant("f", "finalist", 1, "")]
    results = {(i, s): Outcome(i, scores=(Score("accuracy", "net", 5, 0.5),)) for i in (0, 1) for s in range(8)}
    with pytest.raises(InputError, match="no test_accuracy"):
        standings(entrants, range(8), results, ACCURACY)


def test_without_an_effect_better_is_rare():
    """2,000 reranks of 3 finalists that differ from the baseline by chance alone: a family-wise error of 5%."""
    rng, repetitions = np.random.default_rng(7), 2_000
    shown = better = 0
    for _ in range(repetitions):
        values = 0.8 + rng.normal(0, 0.01, (4, 8)) + rng.normal(0, 0.02, 8)  # what a seed does to all is shared
        rows = judge(dict(zip(("bn", "f1", "f2", "f3"), values, strict=True)))
        verdicts = [row.verdict for row in rows.values()]
        shown += "better" in verdicts or "worse" in verdicts
        better += "better" in verdicts
    margin = 3 * math.sqrt(0.05 * 0.95 / repetitions)
    assert shown / repetitions <= 0.05 + margin
    assert 0 < better < shown


# -- the run ---------------------------------------------------------------------------------------------------

ENTRANTS = [
    Entrant("bn_relu", "baseline", {"layer": "bn"}, "bn"),
    Entrant("gn_relu", "baseline", {"layer": "gn"}, "gn"),
    Entrant("#7", "finalist", {"layer": "new"}, "new"),
]
QUALITY = {"bn": 0.8, "gn": 0.75, "new": 0.85}


class Judge:
    """An evaluator that knows the results, and counts."""

    def __init__(self, quality=QUALITY):
        self.quality = quality
        self.trained = []

    def __call__(self, job):
        ((number, candidate),) = job.candidates
        self.trained.append((candidate["layer"], job.seed))
        value = self.quality[candidate["layer"]] + float(np.random.default_rng(job.seed).normal(0, 0.01))
        scores = tuple(Score(name, "net", 5, value) for name in ("accuracy", "test_accuracy"))
        return [Outcome(number, scores=scores, steps=5, seed=job.seed)]


@pytest.fixture
def ledger(tmp_path):
    with Ledger(tmp_path / "ledger.sqlite", create=True) as ledger:
        yield ledger


def rerank(ledger, entrants=ENTRANTS, seeds=8, setting="task", pool=None, judge=None, **grid):
    judge = judge or Judge()
    trainings = Trainings(setting, ledger, pool or LocalPool(lambda: judge), reads_test=True)
    run = Rerank(entrants, seeds, ACCURACY, trainings, **grid)
    return run, judge.trained


def test_everyone_is_trained_on_every_fresh_seed(ledger):
    run, trained = rerank(ledger)
    progress = []
    rows = run.run(lambda done, total: progress.append((done, total)))
    assert sorted(trained) == sorted((n, FIRST_SEED + s) for n in ("bn", "gn", "new") for s in range(8))
    assert progress == [(done, 24) for done in range(25)]
    assert [(r.entrant.name, r.verdict) for r in rows] == [
        ("#7", "better"),
        ("bn_relu", "best baseline"),
        ("gn_relu", "baseline"),
    ]
    assert rows[0].difference == pytest.approx(0.05)


class LikesItsOwnRate(Judge):
    """The finalist is best at another learning rate than the baselines on validation; the test split says otherwise."""

    def __call__(self, job):
        (done,) = super().__call__(job)
        lr, best = job.recipe["lr"], {"new": 0.4, "bn": 0.1, "gn": 0.2}[job.candidates[0][1]["layer"]]
        loss = 0.1 * abs(lr - best)
        change = {"accuracy": -loss, "test_accuracy": loss}
        scores = tuple(dataclasses.replace(s, value=s.value + change[s.objective]) for s in done.scores)
        self.rates.append((job.candidates[0][1]["layer"], job.seed, lr))
        return [dataclasses.replace(done, scores=scores)]


def test_each_layer_gets_the_learning_rate_that_is_best_for_it_on_validation(ledger):
    judge = LikesItsOwnRate()
    judge.rates = []
    run, _ = rerank(ledger, judge=judge, grid=[0.1, 0.2, 0.4], tuning_seeds=3)
    progress = []
    rows = {row.entrant.name: row for row in run.run(lambda done, total: progress.append((done, total)))}
    assert {name: row.lr for name, row in rows.items()} == {"#7": 0.4, "bn_relu": 0.1, "gn_relu": 0.2}
    fresh = [rate for rate in judge.rates if rate[1] < FIRST_TUNING_SEED]
    assert len(fresh) == 24 and {(layer, lr) for layer, _, lr in fresh} == {("new", 0.4), ("bn", 0.1), ("gn", 0.2)}
    assert len(judge.rates) == 24 + 3 * 3 * 3
    assert progress[-1] == (51, 51) and all(a <= b for a, b in itertools.pairwise(progress))
    again, trained = rerank(ledger, grid=[0.1, 0.2, 0.4], tuning_seeds=3)
    assert {row.entrant.name: row for row in again.run()} == rows
    assert trained == []


class KeepsTheTestBack(Judge):
    """Measures the test split where the job asks for it, as the evaluator does."""

    def __call__(self, job):
        (done,) = super().__call__(job)
        self.tested[job.seed] = job.test
        scores = tuple(score for score in done.scores if job.test or score.objective == "accuracy")
        return [dataclasses.replace(done, scores=scores)]


def test_tuning_trainings_do_not_read_the_test_split(ledger):
    judge = KeepsTheTestBack()
    judge.tested = {}
    rows = rerank(ledger, judge=judge, grid=[0.1, 0.2])[0].run()
    assert {row.entrant.name for row in rows} == {entrant.name for entrant in ENTRANTS}
    assert judge.tested == {seed: seed < FIRST_TUNING_SEED for seed in judge.tested} and len(judge.tested) == 8 + 2
    assert len(judge.trained) == 3 * 8 + 3 * 2 * 2
    assert [event.data["trainings"] for event in ledger.events("test_read")] == [3 * 8]


def test_a_training_without_the_test_split_answers_none_with_it(ledger):
    judge = KeepsTheTestBack()
    judge.tested = {}
    plain, tested = (Wanted(0, "bn", {"layer": "bn"}, 5, test=test) for test in (False, True))
    for wanted, trained, reads in (([plain], 1, 0), ([tested], 2, 1), ([plain, tested], 2, 1)):
        trainings = Trainings("task", ledger, LocalPool(lambda: judge), reads_test=True)  # reads the ledger anew
        outcomes = trainings.run(wanted)
        assert [bool(outcome.final("test_accuracy")) for outcome in outcomes][-1] == wanted[-1].test
        assert (len(judge.trained), ledger.count("test_read")) == (trained, reads)


def test_trainings_of_earlier_releases_which_all_read_the_test_split_are_not_repeated(ledger):
    judge = Judge()
    rows = rerank(ledger, judge=judge, grid=[0.1, 0.2])[0].run()
    old = [
        dataclasses.replace(event, data={name: value for name, value in event.data.items() if name != "test"})
        for event in ledger.events("reranked")
    ]
    with Ledger(ledger.path.with_name("old.sqlite"), create=True) as other:
        other.append(old)
        again, trained = rerank(other, grid=[0.1, 0.2])
        assert again.run() == rows
        assert trained == [] and other.count("test_read") == 0


def test_a_grid_of_one_rate_tunes_nothing(ledger):
    judge = LikesItsOwnRate()
    judge.rates = []
    rows = rerank(ledger, judge=judge, grid=[0.2])[0].run()
    assert len(judge.rates) == 24 and {row.lr for row in rows} == {0.2}


NEW = [Entrant(f"#{k}", "finalist", {"layer": f"new{k}"}, "new") for k in range(4)]
MORE = {**QUALITY, "new0": 0.7, "new1": 0.9, "new2": 0.5, "new3": 0.82}


@pytest.mark.parametrize("grid", [[], [0.1], [0.1, 0.2]])
def test_the_best_of_a_long_list_on_validation_are_judged(ledger, grid):
    judge = KeepsTheTestBack(MORE)
    judge.tested = {}
    run, trained = rerank(ledger, [*NEW, *ENTRANTS[:2]], judge=judge, grid=grid, keep=2)
    progress = []
    rows = run.run(lambda done, total: progress.append((done, total)))
    assert {row.entrant.name for row in rows} == {"#1", "#3", "bn_relu", "gn_relu"}
    fresh = [layer for layer, seed in trained if seed < FIRST_TUNING_SEED]
    assert sorted(set(fresh)) == ["bn", "gn", "new1", "new3"] and len(fresh) == 4 * 8
    assert len(trained) == 6 * 2 * max(1, len(grid)) + 4 * 8 == progress[-1][0] == progress[-1][1]
    assert all(seed < FIRST_TUNING_SEED for seed, tested in judge.tested.items() if tested)


def test_a_long_list_that_is_no_longer_tries_nothing(ledger):
    run, trained = rerank(ledger, [*NEW, *ENTRANTS[:2]], judge=Judge(MORE), keep=4)
    assert len(run.run()) == 6 and len(trained) == 6 * 8


def test_further_seeds_are_none_of_the_first_ones(ledger):
    rerank(ledger)[0].run()
    run, trained = rerank(ledger, first_seed=8)
    assert {row.seeds for row in run.run()} == {8}
    assert {seed for _, seed in trained} == {FIRST_SEED + 8 + k for k in range(8)}


@pytest.mark.parametrize("arguments", [{"grid": [0.1, 0.1]}, {"grid": [0.1], "tuning_seeds": 0}])
def test_a_grid_that_makes_no_sense_is_refused(ledger, arguments):
    with pytest.raises(InputError, match=r"the grid|to tune on"):
        rerank(ledger, **arguments)


def test_a_second_run_trains_nothing_and_says_the_same(ledger):
    first, _ = rerank(ledger)
    rows = first.run()
    again, trained = rerank(ledger)
    assert again.run() == rows
    assert trained == []
    assert ledger.count("reranked") == 24 and ledger.count("test_read") == 1


def test_a_run_that_broke_off_goes_on_where_it_was(ledger, tmp_path):
    class Breaking(Judge):
        def __call__(self, job):
            if len(self.trained) == 10:
                raise KeyboardInterrupt
            return super().__call__(job)

    broken = Breaking()
    with pytest.raises(KeyboardInterrupt):
        rerank(ledger, judge=broken)[0].run()
    run, trained = rerank(ledger)
    rows = run.run()
    assert len(trained) == 14 and not set(trained) & set(broken.trained)
    assert ledger.count("test_read") == 2
    with Ledger(tmp_path / "other.sqlite", create=True) as other:
        assert rerank(other)[0].run() == rows  # as if it had not broken off


def test_a_changed_setting_trains_again(ledger):
    rerank(ledger)[0].run()
    run, trained = rerank(ledger, setting="another task")
    run.run()
    assert len(trained) == 24


def test_more_seeds_and_entrants_train_only_what_is_new(ledger):
    rerank(ledger)[0].run()
    run, trained = rerank(
        ledger,
        [*ENTRANTS[::-1], Entrant("#9", "finalist", {"layer": "worse"}, "")],
        9,
        judge=Judge({**QUALITY, "worse": 0.2}),
    )
    rows = run.run()
    new = [("worse", FIRST_SEED + s) for s in range(9)] + [(n, FIRST_SEED + 8) for n in QUALITY]
    assert sorted(trained) == sorted(new)
    assert [r.entrant.name for r in rows] == ["#7", "bn_relu", "gn_relu", "#9"]


def test_a_finalist_that_is_a_baseline_is_trained_once_and_shows_no_difference(ledger):
    entrants = [*ENTRANTS, Entrant("#3", "finalist", {"layer": "bn"}, "found again")]
    run, trained = rerank(ledger, entrants)
    rows = {row.entrant.name: row for row in run.run()}
    assert len(trained) == 24
    assert rows["#3"].verdict == "no difference shown" and rows["#3"].difference == 0
    again, trained = rerank(ledger, entrants)
    again.run()
    assert trained == []


# -- what a pool may report ------------------------------------------------------------------------------------


class ReportingPool(LocalPool):
    """Reports the finalist's first training as something else than done."""

    def __init__(self, reports):
        super().__init__(Judge)
        self.reports = list(reports)

    def next(self, timeout):
        if self._jobs and self._jobs[0].candidates[0][1] == {"layer": "new"} and self.reports:
            return self.reports.pop(0)(self._jobs.popleft())
        return super().next(timeout)


def lost(job):
    return Lost(job, "gone")


@pytest.mark.parametrize(("reports", "failed"), [([lost], 0), ([lost, lost], 1), ([lambda job: TimedOut(job, 3.0)], 1)])
def test_a_lost_training_is_tried_once_more_and_then_counts_as_failed(ledger, reports, failed):
    run, _ = rerank(ledger, pool=ReportingPool(reports))
    rows = {row.entrant.name: row for row in run.run()}
    assert rows["#7"].failed == failed and rows["bn_relu"].failed == 0
    values = [o.gate for o in run.results.values()]
    assert len(values) == 24 and sum(bool(gate) for gate in values) == failed


def test_an_evaluator_that_fails_ends_the_rerank_and_records_nothing_for_it(ledger):
    run, _ = rerank(ledger, pool=ReportingPool([lambda job: Failed(job, "no test data in /data")]))
    with pytest.raises(InputError, match="the trainings cannot go on: no test data in /data"):
        run.run()
    assert ledger.count("reranked") == 2  # the two baselines before it


@pytest.mark.parametrize(
    ("entrants", "seeds", "match"),
    [
        (ENTRANTS[:2], 8, "got 0 and 2"),
        (ENTRANTS[2:], 8, "got 1 and 0"),
        ([*ENTRANTS, ENTRANTS[0]], 8, "different names"),
        (ENTRANTS, 1, "at least 2 seeds"),
    ],
)
def test_a_rerank_that_can_say_nothing_is_refused(ledger, entrants, seeds, match):
    with pytest.raises(InputError, match=match):
        rerank(ledger, entrants, seeds)
