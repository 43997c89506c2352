"""Evolution after EvoNorm (arXiv 2004.02967): a sliding window, tournaments, winners of a Pareto front."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from normact.search.controllers.base import Controller, Start
from normact.search.objective import Objective
from normact.search.outcome import Outcome, Proposal
from normact.search.pareto import non_dominated
from normact.spaces.errors import InputError
from normact.spaces.space import Space


@dataclass(frozen=True)
class Member:
    """A candidate in the window: its skills by objective, in their order, and by the anchor's name."""

    number: int
    candidate: Any
    skills: tuple[float, ...]


class Evolution(Controller):
    """Tournament evolution over a sliding window of accepted candidates.

    Each proposal: with probability `fresh` a new sample. Otherwise a tournament is drawn from the window, its
    winner is a random member of the tournament's Pareto front over objectives and anchors (or the member of the
    highest mean), and is mutated `mutations` times in sequence; a share `crossover` of the children is crossed with a
    second winner before. Until `warmup` members are in the window, everything is
    fresh. Rejected candidates, duplicates, and what was trained on another kind of device than the first do not
    enter it.

    Args:
        window: most recent accepted candidates that are kept (aging).
        tournament: share of the window that enters a tournament.
        least_tournament: but at least so many members.
        winner: `pareto` over objectives and anchors, or `mean` of the skills.
        mutations: mutations in sequence per child.
        fresh: share of new samples.
        warmup: members in the window before the first tournament.
        crossover: share of children that have two parents.

    Raises:
        InputError: a number out of range, an unknown `winner`, or crossover in a space that has none.
    """

    def __init__(
        self,
        space: Space,
        objectives: Sequence[Objective],
        seed: int,
        start_from: Sequence[Start] = (),
        window: int = 2500,
        tournament: float = 0.05,
        least_tournament: int = 5,
        winner: Literal["pareto", "mean"] = "pareto",
        mutations: int = 2,
        fresh: float = 0.5,
        warmup: int = 10,
        crossover: float = 0.0,
    ) -> None:
        super().__init__(space, objectives, seed, start_from)
        if window < 1 or mutations < 1 or warmup < 1 or least_tournament < 1:
            raise InputError(
                "evolution needs window, mutations, warmup and least_tournament of at least 1, got "
                f"{window}, {mutations}, {warmup}, {least_tournament}"
            )
        if not 0 < tournament <= 1 or not 0 <= fresh <= 1:
            raise InputError(f"evolution needs 0 < tournament <= 1 and 0 <= fresh <= 1, got {tournament}, {fresh}")
        if not 0 <= crossover <= 1:
            raise InputError(f"evolution needs 0 <= crossover <= 1, got {crossover}")
        if crossover:
            one = space.sample(np.random.default_rng(seed))
            space.crossover(one, one, np.random.default_rng(seed))  # a space that has none says so
        if winner not in ("pareto", "mean"):
            raise InputError(f"winner must be pareto or mean, got {winner!r}")
        self.device = ""  # scores of other kinds of device are not compared with those of the first
        self.window: deque[Member] = deque(maxlen=window)
        self.history = window
        self.tournament = tournament
        self.least_tournament = least_tournament
        self.winner = winner
        self.mutations = mutations
        self.fresh = fresh
        self.warmup = warmup
        self.crossover = crossover

    def propose(self, number: int, rng: np.random.Generator) -> Proposal:
        if len(self.window) < self.warmup or rng.random() < self.fresh:
            return Proposal(number, self.space.sample(rng), (), "sample")
        parents = [self._winner(rng)]
        if self.crossover and rng.random() < self.crossover:
            parents.append(self._winner(rng))
        child = parents[0].candidate
        if len(parents) > 1:
            child = self.space.crossover(child, parents[1].candidate, rng)
        for _ in range(self.mutations):
            child = self.space.mutate(child, rng)
        numbers = tuple(dict.fromkeys(parent.number for parent in parents))
        return Proposal(number, child, numbers, "mutate" if len(parents) == 1 else "crossover")

    def learn(self, proposal: Proposal, outcome: Outcome) -> None:
        if outcome.accepted and outcome.device == (self.device or outcome.device):
            self.device = outcome.device
            skills = [s for objective in self.objectives for s in skills_by_anchor(objective, outcome).values()]
            self.window.append(Member(proposal.number, proposal.candidate, tuple(skills)))

    def _winner(self, rng: np.random.Generator) -> Member:
        size = max(self.least_tournament, round(self.tournament * len(self.window)))
        picks = rng.choice(len(self.window), size=min(size, len(self.window)), replace=False)
        entrants = [self.window[int(i)] for i in picks]
        if self.winner == "mean":
            return max(entrants, key=lambda m: (sum(m.skills), -m.number))
        front = pareto_front(entrants)
        return front[int(rng.integers(len(front)))]


def skills_by_anchor(objective: Objective, outcome: Outcome) -> Mapping[str, float]:
    """The objective's last skill per anchor, sorted by the anchor's name."""
    return {anchor: objective.skill(v) for anchor, v in sorted(outcome.final(objective.name).items())}


def pareto_front(members: Sequence[Member]) -> list[Member]:
    """The members that no other one is at least as good as on every anchor and better on one, in their order.

    Raises:
        ValueError: some have more skills than others.
    """
    on_front = non_dominated(np.array([member.skills for member in members], dtype=float)).tolist()
    return [member for member, kept in zip(members, on_front, strict=True) if kept]
