"""`Proposal`, `Outcome`, `Rejection`: plain data about candidates, checked where they come in."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from normact.search.objective import Objective, Score
from normact.spaces.errors import InputError


@dataclass(frozen=True)
class Proposal:
    """What a controller wants judged.

    Args:
        number: counts a run's proposals from 0.
        candidate: the space's value object.
        parents: numbers of the proposals that it was made from.
        operator: how it was made, such as `sample` or `mutate`.
        note: plain JSON that the controller alone reads.
    """

    number: int
    candidate: Any
    parents: tuple[int, ...] = ()
    operator: str = "sample"
    note: Any = None


@dataclass(frozen=True)
class Rejection:
    """A gate's no: which gate, why, and the figures behind it."""

    gate: str
    reason: str
    figures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """All that was learnt about one proposal.

    Args:
        number: the proposal's.
        gate: the gate that rejected it; empty for none.
        reason: why; empty where accepted.
        figures: what the gates measured, by `gate.figure`.
        scores: all scores, the last step's included.
        steps: training steps reached on the anchor that went furthest (the fidelity).
        seconds: wall time by gate, `train` for training.
        memory: peak resident bytes of the worker, 0 where unknown.
        seed: of the training.
        device: such as `cpu` or `NVIDIA H100`; rankings never mix kinds of device.
        worker: who judged it.
        same_as: the number of an earlier proposal that computes the same; None for none.
        fingerprint: what it computes; empty where it did not get so far.
    """

    number: int
    gate: str = ""
    reason: str = ""
    figures: Mapping[str, float] = field(default_factory=dict)
    scores: tuple[Score, ...] = ()
    steps: int = 0
    seconds: Mapping[str, float] = field(default_factory=dict)
    memory: int = 0
    seed: int = 0
    device: str = ""
    worker: str = ""
    same_as: int | None = None
    fingerprint: str = ""

    @property
    def accepted(self) -> bool:
        """Whether it passed every gate and was trained to the end, itself."""
        return not self.gate and self.same_as is None

    def final(self, objective: str) -> dict[str, float]:
        """The objective's last value per anchor."""
        last: dict[str, Score] = {}
        for score in self.scores:
            if score.objective == objective and (score.anchor not in last or score.step >= last[score.anchor].step):
                last[score.anchor] = score
        return {anchor: score.value for anchor, score in last.items()}

    def means(self) -> dict[str, float]:
        """Each objective's last value, as the mean over anchors: what candidates are ranked by."""
        return {
            name: sum(values.values()) / len(values)
            for name in dict.fromkeys(score.objective for score in self.scores)
            if (values := self.final(name))
        }

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; non-finite numbers become their names, which JSON has not."""
        data = {name: getattr(self, name) for name in _FIELDS}
        data["scores"] = [[s.objective, s.anchor, s.step, _number_out(s.value)] for s in self.scores]
        data["figures"] = {k: _number_out(v) for k, v in self.figures.items()}
        data["seconds"] = {k: _number_out(v) for k, v in self.seconds.items()}
        return data

    @staticmethod
    def from_json(data: Any) -> Outcome:
        """The outcome that `to_json` gave, checked field by field.

        Raises:
            InputError: a field is missing, unknown or of another type.
        """
        if not isinstance(data, dict):
            raise InputError(f"an outcome is a mapping, got {str(data)[:80]}")
        if unknown := set(data) - set(_FIELDS):
            raise InputError(f"an outcome has no field {sorted(unknown)[0]!r}; known: {', '.join(_FIELDS)}")
        for name, types in _FIELDS.items():
            if name in data and (not isinstance(data[name], types) or isinstance(data[name], bool)):
                raise InputError(f"outcome field {name!r} has the wrong type: {str(data[name])[:80]!r}")
        if "number" not in data:
            raise InputError("an outcome lacks its number")
        values = dict(data)
        values["scores"] = tuple(_score(row) for row in data.get("scores", ()))
        values["figures"] = _numbers("figures", data.get("figures", {}))
        values["seconds"] = _numbers("seconds", data.get("seconds", {}))
        return Outcome(**values)


def mean_skill(objective: Objective, outcome: Outcome) -> float:
    """The mean over anchors of the objective's last skill; minus infinity where there is none."""
    values = outcome.final(objective.name).values()
    return sum(objective.skill(v) for v in values) / len(values) if values else float("-inf")


_FIELDS: dict[str, tuple[type, ...]] = {
    "number": (int,),
    "gate": (str,),
    "reason": (str,),
    "figures": (dict,),
    "scores": (list, tuple),
    "steps": (int,),
    "seconds": (dict,),
    "memory": (int,),
    "seed": (int,),
    "device": (str,),
    "worker": (str,),
    "same_as": (int, type(None)),
    "fingerprint": (str,),
}


def _score(row: Any) -> Score:
    if not isinstance(row, list | tuple) or len(row) != 4:
        raise InputError(f"a score is [objective, anchor, step, value], got {str(row)[:80]}")
    objective, anchor, step, value = row
    whole = isinstance(step, int) and not isinstance(step, bool)
    if not isinstance(objective, str) or not isinstance(anchor, str) or not whole:
        raise InputError(f"a score is [text, text, whole number, number], got {str(row)[:80]}")
    return Score(objective, anchor, step, _number_in("scores", value))


def _numbers(field_name: str, data: dict[Any, Any]) -> dict[str, float]:
    return {str(name): _number_in(f"{field_name}.{name}", value) for name, value in data.items()}


def _number_in(where: str, value: Any) -> float:
    problem = InputError(f"outcome field {where!r} needs a number, got {str(value)[:40]!r}")
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise problem
    try:
        return float(value)
    except (ValueError, OverflowError):
        raise problem from None


def _number_out(value: float) -> float | str:
    value = float(value)  # numpy's and torch's scalars are no JSON
    return value if math.isfinite(value) else str(value)
