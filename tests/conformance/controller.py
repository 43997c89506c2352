"""What every controller must do: one function per promise. A test lists controllers and runs them all.

A made-up judge answers from a candidate's key alone, so no training is needed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable

import numpy as np
import pytest

from normact.search.controllers import Controller, Start
from normact.search.objective import Objective, Score
from normact.search.outcome import Outcome, Proposal
from normact.spaces import Space

MakeController = Callable[..., Controller]
LOSS = Objective("loss", "", "minimize", trivial=1.0, perfect=0.0)
COST = Objective("cost", "", "minimize", trivial=256.0, perfect=0.0)


def judge(space: Space, proposal: Proposal) -> Outcome:
    """Accept half, reject a third, call the rest duplicates; two scores on two anchors. By the key alone."""
    digest = hashlib.sha256(space.key(proposal.candidate).encode()).digest()
    if digest[0] % 6 in (0, 1):
        return Outcome(proposal.number, "probe", "unlucky")
    if digest[0] % 6 == 2 and proposal.number:
        return Outcome(proposal.number, "duplicate", "as the first", same_as=0)
    losses = (Score("loss", "a", 10, digest[1] / 256), Score("loss", "b", 10, digest[2] / 256))
    scores = (*losses, Score("cost", "a", 10, digest[3]), Score("cost", "b", 10, digest[4]))
    return Outcome(proposal.number, scores=scores, steps=10)


def run(controller: Controller, count: int, flying: int = 1) -> list[Proposal]:
    """Ask and tell with so many open at once; those open longest are told in a shuffled order."""
    rng = np.random.default_rng(5)
    asked: list[Proposal] = []
    while len(asked) < count or controller.open:
        while len(asked) < count and len(controller.open) < flying:
            asked.append(controller.ask())
        number = controller.open[int(rng.integers(len(controller.open)))]
        controller.tell(number, judge(controller.space, asked[number]))
    return asked


def as_json(controller: Controller, proposals: list[Proposal]) -> list[tuple]:
    """Proposals as plain data."""
    return [(p.number, controller.space.to_json(p.candidate), p.parents, p.operator, p.note) for p in proposals]


def check_numbers_and_candidates(make: MakeController) -> None:
    """Numbers count from 0, candidates are of the space and survive JSON, parents are earlier numbers."""
    controller = make(seed=1)
    asked = run(controller, 150, flying=4)
    assert [p.number for p in asked] == list(range(150))
    for proposal in asked:
        assert controller.space.invalid(proposal.candidate) == ""
        assert controller.space.from_json(controller.space.to_json(proposal.candidate)) == proposal.candidate
        assert all(parent < proposal.number for parent in proposal.parents)


def check_seed(make: MakeController) -> None:
    """The seed decides everything: same seed, same proposals; another seed, others."""
    first, second, other = (run(make(seed=s), 120, flying=3) for s in (3, 3, 4))
    controller = make(seed=3)
    assert as_json(controller, first) == as_json(controller, second)
    assert as_json(controller, first) != as_json(controller, other)


def check_order_is_guarded(make: MakeController) -> None:
    """What was never asked or was told before cannot be told; replayed numbers must come in order."""
    controller = make(seed=1)
    proposal = controller.ask()
    with pytest.raises(ValueError, match="not open"):
        controller.tell(7, Outcome(7))
    controller.tell(0, judge(controller.space, proposal))
    with pytest.raises(ValueError, match="not open"):
        controller.tell(0, judge(controller.space, proposal))
    with pytest.raises(ValueError, match="out of order"):
        controller.replay(Proposal(5, proposal.candidate))


def check_start_from_comes_first(make: MakeController) -> None:
    """The starts are the first proposals, with their origin in the note."""
    space = make(seed=1).space
    candidates = [space.sample(np.random.default_rng(i)) for i in (10, 11)]
    controller = make(seed=1, start_from=[Start(c, f"mine{i}") for i, c in enumerate(candidates)])
    first = [controller.ask() for _ in range(3)]
    assert [p.candidate for p in first[:2]] == candidates
    assert [p.operator for p in first[:2]] == ["start", "start"]
    assert [p.note["origin"] for p in first[:2]] == ["mine0", "mine1"]
    assert first[2].operator != "start"


def check_killed_with_eight_in_flight(make: MakeController) -> None:
    """A driver killed with 8 proposals open, replayed into a fresh controller, goes on as if never killed."""
    unbroken = make(seed=2)
    rng = np.random.default_rng(0)
    log: list[tuple[str, object]] = []
    asked: list[Proposal] = []

    def turn(controller: Controller) -> None:
        while len(controller.open) < 8:
            asked.append(controller.ask())
            log.append(("proposed", asked[-1]))
        number = controller.open[int(rng.integers(8))]
        outcome = judge(controller.space, asked[number])
        log.append(("finished", outcome))
        controller.tell(number, outcome)

    for _ in range(100):
        turn(unbroken)
    while len(unbroken.open) < 8:
        asked.append(unbroken.ask())
        log.append(("proposed", asked[-1]))
    fresh = make(seed=2)
    for kind, item in log:
        if kind == "proposed":
            assert isinstance(item, Proposal)
            restored = fresh.space.from_json(fresh.space.to_json(item.candidate))
            note = json.loads(json.dumps(item.note))
            fresh.replay(Proposal(item.number, restored, item.parents, item.operator, note))
        else:
            assert isinstance(item, Outcome)
            fresh.tell(item.number, Outcome.from_json(item.to_json()))
    assert len(fresh.open) == 8
    assert fresh.open == unbroken.open
    if not fresh.replayable:  # it goes on, but elsewhere
        assert fresh.ask().number == unbroken.ask().number
        return
    for number in list(unbroken.open):
        outcome = judge(unbroken.space, asked[number])
        unbroken.tell(number, outcome)
        fresh.tell(number, outcome)
    further = [unbroken.ask() for _ in range(30)], [fresh.ask() for _ in range(30)]
    assert as_json(unbroken, further[0]) == as_json(fresh, further[1])


def check_restored_from_what_it_says_it_needs(make: MakeController) -> None:
    """A controller that needs but some history goes on from that alone as if never stopped."""
    unbroken = make(seed=6)
    if unbroken.history is None:
        return
    accepted: list[tuple[Proposal, Outcome]] = []
    open_now: dict[int, Proposal] = {}
    rng = np.random.default_rng(1)
    for _ in range(150):
        while len(open_now) < 5:
            proposal = unbroken.ask()
            open_now[proposal.number] = proposal
        number = list(open_now)[int(rng.integers(5))]
        outcome = judge(unbroken.space, open_now[number])
        unbroken.tell(number, outcome)
        proposal = open_now.pop(number)
        if outcome.accepted:
            accepted.append((proposal, outcome))
    made = max(open_now) + 1
    fresh = make(seed=6)
    fresh.restore(made, list(open_now.values()), accepted[-unbroken.history :] if unbroken.history else [])
    assert fresh.open == unbroken.open
    further = [unbroken.ask() for _ in range(30)], [fresh.ask() for _ in range(30)]
    assert as_json(unbroken, further[0]) == as_json(fresh, further[1])


def check_bad_outcomes_do_not_stop_it(make: MakeController) -> None:
    """Nothing but rejections and duplicates, and scores that are not finite: it goes on proposing."""
    controller = make(seed=1)
    for i in range(60):
        proposal = controller.ask()
        if i % 3 == 0:
            outcome = Outcome(i, "quality@10", "bad")
        elif i % 3 == 1:
            outcome = Outcome(i, "duplicate", "same", same_as=0)
        else:
            outcome = Outcome(i, scores=(Score("loss", "a", 1, float("nan")), Score("loss", "b", 1, float("inf"))))
        controller.tell(proposal.number, outcome)
    assert controller.ask().number == 60


def check_several_objectives(make: MakeController) -> None:
    """It goes by several objectives, each on every anchor, as it does by one."""
    asked = run(make(seed=1, objectives=[LOSS, COST]), 60, flying=4)
    controller = make(seed=1, objectives=[LOSS, COST])
    assert as_json(controller, asked) == as_json(controller, run(controller, 60, flying=4))
    assert controller.objectives == (LOSS, COST)
    assert controller.objective == LOSS


def check_rejections_alone(make: MakeController) -> None:
    """Where everything is rejected it goes on, and does not propose the same again and again."""
    controller = make(seed=1)
    keys = set()
    for number in range(60):
        keys.add(controller.space.key(controller.ask().candidate))
        controller.tell(number, Outcome(number, "probe", "no"))
    assert len(keys) > 30


CHECKS = (
    check_numbers_and_candidates,
    check_seed,
    check_order_is_guarded,
    check_start_from_comes_first,
    check_killed_with_eight_in_flight,
    check_restored_from_what_it_says_it_needs,
    check_bad_outcomes_do_not_stop_it,
    check_several_objectives,
    check_rejections_alone,
)
