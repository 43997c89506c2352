"""`Funnel`: where proposals ended, and what each gate cost. It adds up to the proposals, always."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from normact.search.outcome import Outcome
from normact.spaces.errors import InputError

ACCEPTED = "accepted"
UNFINISHED = "unfinished"
FIRST_LOOK = 10
"""A function counts as trained once it passed this step."""


@dataclass
class Funnel:
    """Counts of a run.

    Attributes:
        proposals: all that were made.
        ended: how many ended where, by gate's name or `accepted`.
        seconds: worker seconds spent, by gate, `train` and `measure`; on whichever candidates.
        trained: distinct functions that were trained past step 10.
        same_key: duplicates that the key told, before anything was built.
        fingerprinted: proposals whose fingerprint was taken.
        same_fingerprint: duplicates that only the fingerprint told.
    """

    proposals: int = 0
    ended: Counter[str] = field(default_factory=Counter)
    seconds: Counter[str] = field(default_factory=Counter)
    trained: int = 0
    same_key: int = 0
    fingerprinted: int = 0
    same_fingerprint: int = 0

    @staticmethod
    def of(proposals: int, outcomes: Iterable[Outcome]) -> Funnel:
        """The funnel of a run's outcomes."""
        funnel = Funnel(proposals)
        for outcome in outcomes:
            funnel.add(outcome)
        return funnel

    def add(self, outcome: Outcome) -> None:
        """Count an outcome."""
        self.ended[outcome.gate or ACCEPTED] += 1
        self.trained += outcome.same_as is None and outcome.steps > FIRST_LOOK
        self.fingerprinted += bool(outcome.fingerprint)
        self.same_fingerprint += outcome.same_as is not None and bool(outcome.fingerprint)
        self.same_key += outcome.same_as is not None and not outcome.fingerprint
        for name, value in outcome.seconds.items():
            self.seconds[name] += value  # type: ignore[assignment]  # a Counter adds floats as well

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return {**vars(self), "ended": dict(self.ended), "seconds": dict(self.seconds)}

    @staticmethod
    def from_json(data: Any) -> Funnel:
        """The funnel that `to_json` gave; an empty one for an empty mapping.

        Raises:
            InputError: the data are of another form.
        """
        try:
            counters = {name: Counter(data.get(name, {})) for name in ("ended", "seconds")}
            return Funnel(**{**data, **counters})
        except (AttributeError, TypeError) as problem:
            raise InputError(f"the run's funnel cannot be read ({problem}); restore the ledger from a copy") from None

    @property
    def unfinished(self) -> int:
        """Proposals that have no outcome (yet)."""
        return self.proposals - sum(self.ended.values())

    def rows(self, order: Iterable[str] = ()) -> list[tuple[str, int, int]]:
        """(where, ended there, left after it) in the given order of gates, then others, then what is left.

        Raises:
            AssertionError: the counts do not add up to the proposals: a bug.
        """
        names = list(order)
        names += sorted(name for name in self.ended if name not in names and name != ACCEPTED)
        left = self.proposals
        rows = []
        for name in names:
            left -= self.ended[name]
            rows.append((name, self.ended[name], left))
        left -= self.unfinished
        rows.append((UNFINISHED, self.unfinished, left))
        assert left == self.ended[ACCEPTED], f"the funnel leaks: {left} left, {self.ended[ACCEPTED]} accepted"
        assert self.unfinished >= 0, f"more outcomes than proposals: {self.proposals}, {dict(self.ended)}"
        return rows
