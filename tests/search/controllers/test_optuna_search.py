"""What Optuna's samplers are told as controllers: repeats, rejections, duplicates, several values, a window."""

import optuna
import pytest
from optuna.samplers import CmaEsSampler, NSGAIISampler, PartialFixedSampler, RandomSampler, TPESampler
from optuna.trial import TrialState

from normact.search.controllers import OptunaSearch, Start
from normact.search.controllers.latest_trials import LatestTrials
from normact.search.objective import Score
from normact.search.outcome import Outcome, Proposal
from normact.spaces import EVONORM_MOMENTS, EVONORM_POINTWISE, Constraints, GraphSpace, InputError
from tests.conformance.controller import COST, LOSS
from tests.toy import Choice, Plane, ToySpace


def search(space, *objectives, sampler=None, rejected="fail", **settings):
    sampler = sampler or RandomSampler()
    return OptunaSearch(space, objectives or [LOSS], 0, sampler=sampler, rejected=rejected, **settings)


def accepted(number, a=0.5, b=0.5):
    scores = [Score("loss", "a", 1, a), Score("loss", "b", 1, b), Score("cost", "a", 1, 64), Score("cost", "b", 1, 128)]
    return Outcome(number, scores=tuple(scores), device="cpu")


def of(study, state=TrialState.COMPLETE):
    return [trial for trial in study.trials if trial.state == state]


def test_a_repeat_is_answered_and_not_proposed():
    controller = search(ToySpace(most=5), max_repeats=200)
    proposed = []
    for number in range(10):  # all that there are
        proposed.append(controller.ask().candidate)
        controller.tell(number, accepted(number, a=number / 10))
    assert len(set(proposed)) == 10
    assert controller.replaced == 0
    told = of(controller.study)
    assert len(told) == 10 + controller.repeats > 10
    for trial in told:
        first = proposed.index(Choice(trial.params["basis"], trial.params["count"]))
        assert trial.values == [pytest.approx(1 - (first / 10 + 0.5) / 2)]


def test_a_repeat_of_an_open_proposal_waits_for_its_outcome():
    controller = search(ToySpace(most=1), max_repeats=30)  # two candidates
    first, second = controller.ask(), controller.ask()
    waiting = of(controller.study, TrialState.RUNNING)
    assert len(waiting) == 2 + controller.repeats
    same = [trial for trial in waiting if trial.params["basis"] == first.candidate.basis]
    controller.tell(0, accepted(0))
    assert len(of(controller.study)) == len(same)
    controller.tell(second.number, Outcome(1, "probe", "no"))
    assert not of(controller.study, TrialState.RUNNING)


def test_after_so_many_repeats_a_mutation_is_proposed_and_told():
    controller = search(ToySpace(most=50), sampler=PartialFixedSampler({"basis": "sine", "count": 7}, RandomSampler()))
    proposals = [controller.ask() for _ in range(4)]
    assert [p.operator for p in proposals] == ["suggest", "mutate", "mutate", "mutate"]
    assert [p.parents for p in proposals] == [(), (0,), (0,), (0,)]
    assert len({p.candidate for p in proposals}) == 4
    assert all(p.candidate.basis == "sine" for p in proposals)
    assert controller.repeats == 3 * 21
    assert controller.replaced == 3
    controller.tell(1, accepted(1, 0.2, 0.2))
    [told] = of(controller.study)
    assert told.params == {"basis": "sine", "count": proposals[1].candidate.count}
    assert told.values == [pytest.approx(0.8)]


def test_what_breaks_a_constraint_is_told_at_once():
    space = GraphSpace(["add", "neg", "exp", "batch_mean"], nodes=4, constraints=Constraints(nodes=2))
    controller = search(space, max_repeats=500)
    for number in range(8):
        proposal = controller.ask()
        assert space.invalid(proposal.candidate) == ""
        assert proposal.operator == "suggest"
        controller.tell(number, accepted(number))
    broken = [first for _, _, first in proposal.note["answered"] if first is None]
    assert controller.storage.newest + 1 >= 8 + controller.repeats + len(broken)
    assert len(of(controller.study)) == 8 + controller.repeats


def test_a_duplicate_is_told_what_the_first_one_was():
    controller = search(Plane())
    for _ in range(3):
        controller.ask()
    controller.tell(0, accepted(0, 0.1, 0.3))
    controller.tell(1, Outcome(1, "duplicate", "computes the same", same_as=0))
    controller.tell(2, Outcome(2, "duplicate", "computes the same", same_as=1))
    assert [trial.values for trial in controller.study.trials] == [[pytest.approx(0.8)]] * 3


@pytest.mark.parametrize("rejected", ["fail", "worst", "constraint"])
def test_rejected_candidates_are_told_as_asked(rejected):
    controller = search(Plane(), rejected=rejected)
    for _ in range(5):
        controller.ask()
    controller.tell(0, accepted(0, 0.1, 0.3))
    controller.tell(1, Outcome(1, "probe", "no"))
    controller.tell(2, accepted(2, 1.5, 1.9))  # worse than trivial
    controller.tell(3, Outcome(3, "probe", "no"))
    controller.tell(4, accepted(4, float("nan"), 0.5))
    values = [trial.value for trial in of(controller.study)]
    expected = [0.8, -0.7] if rejected == "fail" else [0.8, 0.0, -0.7, -0.7, -0.7]
    assert values == pytest.approx(expected)
    violated = [list(trial.constraints.values()) for trial in of(controller.study)]
    assert violated == ([[0], [1], [0], [1], [1]] if rejected == "constraint" else [[]] * len(values))


@pytest.mark.parametrize("sampler", [TPESampler(n_startup_trials=4), NSGAIISampler(population_size=4)])
def test_samplers_avoid_what_violates(sampler):
    """All values are the same here: nothing but the violations says where to go."""
    controller = search(Plane(), sampler=sampler, rejected="constraint")
    outside = []
    for number in range(120):
        outside.append(controller.ask().candidate[0] > 0)
        controller.tell(number, Outcome(number, "probe", "no") if outside[-1] else accepted(number, 1.0, 1.0))
    assert sum(outside[40:]) < 25


@pytest.mark.parametrize("rejected", ["fail", "worst"])
def test_scores_of_another_kind_of_device_are_not_compared(rejected):
    controller = search(Plane(), rejected=rejected)
    for number, device in enumerate(["cpu", "NVIDIA H100", "cpu"]):
        controller.ask()
        controller.tell(number, Outcome(number, scores=accepted(0).scores, device=device))
    assert len(of(controller.study)) == 2


@pytest.mark.parametrize(
    ("anchors", "values"), [("mean", [0.6, 0.625]), ("each", [0.9, 0.3, 0.75, 0.5])]
)  # loss from 1 (trivial), cost from 256
def test_the_study_has_a_value_for_each_objective_or_for_each_on_each_anchor(anchors, values):
    controller = search(Plane(), LOSS, COST, sampler=NSGAIISampler(population_size=4), anchors=anchors)
    for number in range(12):
        controller.ask()
        controller.tell(number, Outcome(number, "probe", "no") if number == 0 else accepted(number, 0.1, 0.7))
    assert [direction.name for direction in controller.study.directions] == ["MAXIMIZE"] * len(values)
    assert controller.study.trials[0].values == pytest.approx(values)


def test_the_sampler_sees_the_latest_trials_alone():
    controller = search(Plane(), window=5)
    for number in range(30):
        controller.ask()
        if number > 2:
            rejected = Outcome(number - 2, "probe", "no")
            controller.tell(number - 2, rejected if number % 4 == 0 else accepted(number - 2))
    controller.ask()
    assert [trial.number for trial in of(controller.study)] == [21, 23, 24, 25, 27]  # 22 and 26 were rejected
    assert [trial.number for trial in of(controller.study, TrialState.RUNNING)] == [0, 28, 29, 30]
    assert [trial.number for trial in controller.study.trials] == [0, 21, 23, 24, 25, 27, 28, 29, 30]


def test_starts_are_told_with_their_parameters():
    starts = [Start(Choice("square", 3), "mine"), Start(Choice("sine", 99), "from elsewhere")]
    controller = OptunaSearch(ToySpace(most=50), [LOSS], 0, starts, sampler=TPESampler())
    for number in range(2):
        controller.ask()
        controller.tell(number, accepted(number, 0.2, 0.2))
    [trial] = controller.study.trials
    assert trial.params == {"basis": "square", "count": 3}
    assert trial.values == [pytest.approx(0.8)]


def test_latest_trials_serve_a_sampler_as_optuna_s_own_storage_does():
    """The same trials of the same seed, as long as none leaves; with some open, failed and given beforehand."""
    space = GraphSpace([*EVONORM_POINTWISE, *EVONORM_MOMENTS], nodes=3)
    drawn = []
    for storage in (optuna.storages.InMemoryStorage(), LatestTrials(1000)):
        study = optuna.create_study(storage=storage, sampler=TPESampler(seed=1, n_startup_trials=5))
        study.enqueue_trial({"op0": "mul", "arg0_0": "x"})
        params = []
        for number in range(25):
            trial = study.ask()
            space.suggest(trial)
            params.append(trial.params)
            if number % 5 == 4:
                study.tell(trial, state=TrialState.FAIL)
            elif number % 7 != 6:
                study.tell(trial, len(set(trial.params.values())))
        drawn.append(params)
        assert params[0]["op0"] == "mul"
    assert drawn[0] == drawn[1]


def test_only_samplers_that_repeat_themselves_are_called_replayable():
    assert search(Plane(), sampler=TPESampler()).replayable
    assert search(Plane(), sampler=NSGAIISampler()).replayable
    assert search(Plane(), sampler=RandomSampler()).replayable
    assert not search(Plane(), sampler=CmaEsSampler()).replayable
    assert not search(Plane(), sampler=PartialFixedSampler({}, RandomSampler())).replayable
    assert not search(Plane(), sampler=PartialFixedSampler({"a": 0.0}, CmaEsSampler())).replayable


def test_nothing_that_a_sampler_would_unpickle_is_taken_from_a_ledger():
    controller = search(Plane(), sampler=CmaEsSampler())
    for number in range(20):
        note = controller.ask().note
        controller.tell(number, accepted(number, 0.1 * number, 0.1))
        assert note["trial"][1] == {}
    evil = [{"a": 0.0, "b": 0.0}, {"cma:optimizer:0": "00"}]
    controller.replay(Proposal(20, (0.0, 0.0), (), "suggest", {"trial": evil, "answered": [], "study": {"x": "00"}}))
    assert controller.storage.get_trial(controller.storage.newest).system_attrs == {}
    assert "x" not in controller.storage.study_attributes


@pytest.mark.parametrize(
    "note", [None, 7, {}, {"trial": [{"basis": "sine"}, {}], "answered": [], "study": {}}, {"trial": 3, "answered": []}]
)
def test_a_damaged_note_is_said_in_one_line(note):
    with pytest.raises(InputError, match="the note of proposal 0 is damaged") as caught:
        search(ToySpace()).replay(Proposal(0, Choice("sine", 3), (), "suggest", note))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"window": 0}, "window at least 1, got 20 and 0"),
        ({"max_repeats": -1}, "max_repeats must be at least 0"),
        ({"anchors": "all"}, "anchors must be mean or each, got 'all'"),
        ({"rejected": "no"}, "rejected must be fail, worst or constraint, got 'no'"),
        ({"sampler": "tpe"}, "sampler must be one of Optuna's"),
        ({"sampler": CmaEsSampler()}, "CmaEsSampler draws numbers alone, but ToySpace has .* such as basis"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        search(ToySpace(), **settings)


def test_a_sampler_of_one_objective_is_refused_several():
    with pytest.raises(InputError, match="CmaEsSampler takes one objective, got loss, cost with anchors=mean"):
        search(Plane(), LOSS, COST, sampler=CmaEsSampler())
    with pytest.raises(InputError, match="CmaEsSampler takes one objective, got loss with anchors=each"):
        search(Plane(), sampler=CmaEsSampler(), anchors="each")


def test_a_space_without_suggest_is_refused():
    class Silent(ToySpace):
        suggest = ToySpace.__mro__[1].suggest

    with pytest.raises(InputError, match=r"Silent has no suggest\(trial\)"):
        search(Silent())


def test_tpe_finds_what_is_good():
    """Beside random search, on the distance to a point: 60 trials, the mean of the best five."""
    best = {}
    for name, sampler in (("random", RandomSampler()), ("tpe", TPESampler())):
        controller = search(Plane(), sampler=sampler)
        losses = []
        for number in range(60):
            a, b = controller.ask().candidate
            losses.append(abs(a - 0.3) / 2 + abs(b + 0.6) / 2)
            controller.tell(number, accepted(number, losses[-1], losses[-1]))
        best[name] = sum(sorted(losses)[:5]) / 5
    assert best["tpe"] < 0.5 * best["random"]
