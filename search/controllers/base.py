"""`Controller`: proposes candidates and learns from their outcomes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from normact.search.objective import Objective
from normact.search.outcome import Outcome, Proposal
from normact.spaces.space import Space


@dataclass(frozen=True)
class Start:
    """A candidate to begin with, and where it is from, such as `evonorm_b0` or `run:KEY`."""

    candidate: Any
    origin: str


class Controller(ABC):
    """Proposes by `ask`, learns by `tell`. Lives in the driver, is used by one thread, owns no files.

    Outcomes come in any order, each number once; several proposals may be open at once. The randomness of a
    proposal comes from (seed, number) alone, never from a running stream: so a controller to which a ledger was
    replayed goes on as if it had never stopped. The proposals of `start_from` come first.

    To write one: override `propose` and `learn`; keep what they need in memory.

    Args:
        space: what to propose from.
        objectives: what to be good at, at least one; scores come per anchor.
        seed: of all proposals.
        start_from: proposed first, in order.

    Attributes:
        objective: the first of the objectives.
        replayable: False where `replay` and `tell` cannot bring back the state exactly.
        history: what it needs when a run is resumed: so many of the latest accepted outcomes, where these alone
            change what it proposes; None for every proposal and outcome, in order.
    """

    replayable: bool = True
    history: int | None = None

    def __init__(
        self, space: Space, objectives: Sequence[Objective], seed: int, start_from: Sequence[Start] = ()
    ) -> None:
        self.space = space
        self.objectives = tuple(objectives)
        self.objective = self.objectives[0]
        self.seed = seed
        self.start_from = tuple(start_from)
        self._next = 0
        self._open: dict[int, Proposal] = {}

    def ask(self) -> Proposal:
        """The next proposal. Its number counts from 0."""
        number = self._next
        if number < len(self.start_from):
            start = self.start_from[number]
            proposal = Proposal(number, start.candidate, (), "start", {"origin": start.origin})
        else:
            proposal = self.propose(number, np.random.default_rng(np.random.SeedSequence([self.seed, number])))
        self.replay(proposal)
        return proposal

    def replay(self, proposal: Proposal) -> None:
        """Take note of a proposal that was made before: by `ask`, or by an earlier driver of the run.

        Raises:
            ValueError: its number is not the next one.
        """
        if proposal.number != self._next:
            raise ValueError(f"proposal {proposal.number} is out of order: the next number is {self._next}")
        self._open[proposal.number] = proposal
        self._next += 1

    def restore(self, proposals: int, unfinished: Iterable[Proposal], told: Iterable[tuple[Proposal, Outcome]]) -> None:
        """Take up a run that an earlier driver left, where `history` is a number. Called once, on a fresh one.

        Args:
            proposals: how many were made.
            unfinished: those that were not told.
            told: the latest `history` accepted ones on one kind of device, in the order in which they were told.
        """
        self._next = proposals
        self._open = {proposal.number: proposal for proposal in unfinished}
        for proposal, outcome in told:
            self.learn(proposal, outcome)

    def tell(self, number: int, outcome: Outcome) -> None:
        """What was learnt about an open proposal.

        Raises:
            ValueError: no such proposal is open.
        """
        if number not in self._open:
            raise ValueError(f"proposal {number} is not open: it was never asked, or was told before")
        self.learn(self._open.pop(number), outcome)

    @property
    def open(self) -> tuple[int, ...]:
        """Numbers of the proposals that were not told yet, in order."""
        return tuple(self._open)

    def report(self) -> str:
        """What a person should know of it at the end of a search, in one line; empty for nothing."""
        return ""

    @abstractmethod
    def propose(self, number: int, rng: np.random.Generator) -> Proposal:
        """Make proposal `number`, drawing from `rng` alone."""

    @abstractmethod
    def learn(self, proposal: Proposal, outcome: Outcome) -> None:
        """Take in an outcome: accepted (with scores), rejected, or the same as an earlier one."""
