"""`History`: what a ledger tells about a run. Reading it changes nothing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from normact.search.engine import mean_skill
from normact.search.funnel import Funnel
from normact.search.ledger import Ledger
from normact.search.objective import Objective
from normact.search.outcome import Outcome


@dataclass(frozen=True)
class Record:
    """A proposal as the ledger has it: the candidate is the space's JSON."""

    number: int
    candidate: Any
    parents: tuple[int, ...]
    operator: str
    note: Any


class History:
    """All proposals and outcomes of a run, read once.

    Attributes:
        proposals: records by number.
        outcomes: outcomes by number; what is unfinished has none.
        funnel: their counts.
    """

    def __init__(self, ledger: Ledger) -> None:
        self.proposals: dict[int, Record] = {}
        self.outcomes: dict[int, Outcome] = {}
        for event in ledger.events("proposed", "finished"):
            if event.kind == "finished":
                self.outcomes[event.number] = Outcome.from_json(event.data)
            else:
                d = event.data
                self.proposals[event.number] = Record(
                    event.number, d["candidate"], tuple(d["parents"]), d["operator"], d["note"]
                )
        self.funnel = Funnel.of(len(self.proposals), self.outcomes.values())

    def ranked(self, objective: Objective) -> Mapping[str, list[Outcome]]:
        """Accepted outcomes, best mean skill first, per kind of device: one ranking never mixes devices."""
        by_device: defaultdict[str, list[Outcome]] = defaultdict(list)
        for outcome in self.outcomes.values():
            if outcome.accepted:
                by_device[outcome.device].append(outcome)
        for outcomes in by_device.values():
            outcomes.sort(key=lambda o: (-mean_skill(objective, o), o.number))
        return dict(sorted(by_device.items(), key=lambda item: -len(item[1])))

    def lineage(self, number: int) -> list[Record]:
        """The proposal and its first parents, back to a sample or a start."""
        line = [self.proposals[number]]
        while line[-1].parents:
            line.append(self.proposals[line[-1].parents[0]])
        return line

    def origin(self, number: int) -> str:
        """Where a proposal is from: `sample #12`, or a start's name such as `evonorm_b0`, and how many steps ago."""
        line = self.lineage(number)
        first = line[-1]
        name = first.note["origin"] if first.operator == "start" else f"{first.operator} #{first.number}"
        return name if len(line) == 1 else f"{name}, {len(line) - 1} generation(s) on"
