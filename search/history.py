"""`History`: what a ledger tells about a run. Reading it changes nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from normact.search.funnel import Funnel
from normact.search.ledger import Event, Ledger
from normact.search.objective import Objective
from normact.search.outcome import Outcome, Proposal
from normact.search.pareto import non_dominated
from normact.spaces.errors import InputError
from normact.spaces.space import Space


@dataclass(frozen=True)
class Record:
    """A proposal as the ledger has it: the candidate is the space's JSON."""

    number: int
    candidate: Any
    parents: tuple[int, ...]
    operator: str
    note: Any

    def proposal(self, space: Space) -> Proposal:
        """The proposal itself.

        Raises:
            InputError: the data describe no candidate of the space.
        """
        return Proposal(self.number, space.from_json(self.candidate), self.parents, self.operator, self.note)


class History:
    """Proposals and outcomes of a run, read as they are asked for: a run may have millions.

    Args:
        ledger: of the run; also while it goes on.

    Raises:
        InputError: from every method, where what is read is damaged.
    """

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger

    @property
    def funnel(self) -> Funnel:
        """The counts of the run, as the engine wrote them with its last events."""
        return Funnel.from_json(self.ledger.meta("funnel", {}))

    @property
    def objectives(self) -> dict[str, Objective]:
        """What the run measures, by name, the leading one first; empty where it did not get so far.

        Raises:
            InputError: what is kept of it is damaged.
        """
        kept = self.ledger.meta("objectives") or [self.ledger.meta("objective")]  # runs of before kept the first alone
        try:
            objectives = [Objective(**data) for data in kept if data is not None]
        except TypeError as problem:
            raise InputError(f"{self.ledger.path} is damaged: its objectives cannot be read ({problem})") from None
        return {objective.name: objective for objective in objectives}

    def record(self, number: int) -> Record:
        """A proposal.

        Raises:
            InputError: there is none of that number.
        """
        event = self.ledger.event("proposed", number)
        if event is None:
            raise InputError(f"{self.ledger.path} has no proposal {number}")
        return self._record(event)

    def outcome(self, number: int) -> Outcome | None:
        """A proposal's outcome; None while it is unfinished."""
        event = self.ledger.event("finished", number)
        return None if event is None else self._outcome(event)

    @cached_property
    def proposals(self) -> dict[int, Record]:
        """All proposals by number, read at once."""
        return {event.number: self._record(event) for event in self.ledger.events("proposed")}

    @cached_property
    def outcomes(self) -> dict[int, Outcome]:
        """All outcomes by number, read at once; what is unfinished has none."""
        return {event.number: self._outcome(event) for event in self.ledger.events("finished")}

    def told(self) -> Iterator[Record | Outcome]:
        """Proposals and outcomes in the order in which a controller made and was told them."""
        for event in self.ledger.events("proposed", "finished"):
            yield self._record(event) if event.kind == "proposed" else self._outcome(event)

    def latest_accepted(self, count: int) -> list[Outcome]:
        """The latest accepted outcomes on the run's kind of device (the first one's), oldest first."""
        if not count:
            return []
        device = self.device
        found: list[Outcome] = []
        for event in self.ledger.events("finished", backwards=True):
            outcome = self._outcome(event)
            if outcome.accepted and outcome.device == device:
                found.append(outcome)
                if len(found) == count:
                    break
        return found[::-1]

    @property
    def device(self) -> str | None:
        """The kind of device of the first accepted outcome: others are not compared with it; None for none yet."""
        outcomes = (self._outcome(event) for event in self.ledger.events("finished"))
        return next((outcome.device for outcome in outcomes if outcome.accepted), None)

    def ranked(self, objective: Objective, count: int = -1) -> Mapping[str, list[Outcome]]:
        """Accepted outcomes, the best mean first, per kind of device: one ranking never mixes devices.

        Args:
            objective: what they are ranked by.
            count: how many per device; all where negative.
        """
        largest_first = objective.direction == "maximize"
        ranked = {}
        for device in self.ledger.devices(objective.name):
            numbers = self.ledger.ranked(objective.name, device, largest_first, count)
            ranked[device] = [outcome for number in numbers if (outcome := self.outcome(number))]
        return ranked

    def front(self, objectives: Sequence[Objective]) -> dict[str, list[Outcome]]:
        """The Pareto front per kind of device, the best of the first objective first, then of the next.

        By means over anchors, as in `ranked`: on it are the accepted outcomes with all of the objectives, such that no
        other is at least as good in each of them and better in one.
        """
        signs = [1.0 if objective.direction == "maximize" else -1.0 for objective in objectives]
        fronts = {}
        for device in self.ledger.devices(objectives[0].name):
            numbers, means = self.ledger.means([objective.name for objective in objectives], device)
            skills = means * signs
            best_first = np.lexsort((numbers, *-skills.T[::-1]))
            kept = best_first[non_dominated(skills)[best_first]]
            fronts[device] = [outcome for number in numbers[kept] if (outcome := self.outcome(int(number)))]
        return {device: front for device, front in fronts.items() if front}

    def lineage(self, number: int) -> list[Record]:
        """The proposal and its first parents, back to a sample or a start."""
        line = [self.record(number)]
        while line[-1].parents:
            line.append(self.record(line[-1].parents[0]))
        return line

    def origin(self, number: int) -> str:
        """Where a proposal is from: `sample #12`, or a start's name such as `evonorm_b0`, and how many steps ago."""
        line = self.lineage(number)
        first = line[-1]
        name = first.note["origin"] if first.operator == "start" else f"{first.operator} #{first.number}"
        return name if len(line) == 1 else f"{name}, {len(line) - 1} generation(s) on"

    def check(self) -> None:
        """Read everything once: proposals count from 0, none is finished that was not made, nothing is damaged.

        Raises:
            InputError: naming the first event that is wrong.
        """
        proposed = 0
        for event in self.ledger.events("proposed", "finished", "reranked"):
            if event.kind == "reranked":
                self._has(event, "setting", "candidate", "seed", "outcome")
            elif event.kind == "proposed":
                if event.number != proposed:
                    raise self._damaged(event, f"should be of number {proposed}")
                self._record(event)
                proposed += 1
            elif not 0 <= event.number < proposed:
                raise self._damaged(event, "was never proposed")
            else:
                self._outcome(event)

    def _record(self, event: Event) -> Record:
        d = event.data
        self._has(event, "candidate", "parents", "operator", "note")
        if not _are_earlier(d["parents"], event.number):
            raise self._damaged(event, f"has the parents {str(d['parents'])[:40]}")
        if d["operator"] == "start" and "origin" not in (d["note"] or {}):
            raise self._damaged(event, "lacks its origin")
        return Record(event.number, d["candidate"], tuple(d["parents"]), d["operator"], d["note"])

    def _outcome(self, event: Event) -> Outcome:
        try:
            outcome = Outcome.from_json(event.data)
        except InputError as problem:
            raise self._damaged(event, f"cannot be read: {problem}") from None
        if outcome.number != event.number:
            raise self._damaged(event, f"holds the outcome of {outcome.number}")
        return outcome

    def _has(self, event: Event, *names: str) -> None:
        if missing := [name for name in names if not isinstance(event.data, dict) or name not in event.data]:
            raise self._damaged(event, f"lacks {', '.join(missing)}")

    def _damaged(self, event: Event, what: str) -> InputError:
        return InputError(
            f"{self.ledger.path} is damaged: event {event.kind!r} of {event.number} {what}; restore it from a copy"
        )


def _are_earlier(parents: Any, number: int) -> bool:
    return isinstance(parents, list) and all(type(parent) is int and 0 <= parent < number for parent in parents)
