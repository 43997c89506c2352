"""What gates would have done: any thresholds, from the records of the gate study, without training again."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from normact.search.gates import Gate, Quality, ScreenGate, SignalPropagation, Stability, Stall, TrainGate
from normact.search.objective import Objective
from tests.benchmarks.gates_study import CHECKPOINTS, Record

LAST = CHECKPOINTS[-1]


@dataclass(frozen=True)
class End:
    """Where one graph ended, and what that took.

    Attributes:
        gate: which rejected it, `divergence`, or empty for none; of a duplicate, what became of the first one.
        seconds: of CPU.
        duplicate: whether it was answered without training.
    """

    gate: str
    seconds: float
    duplicate: bool = False


@dataclass
class Replay:
    """Gates applied to records, one after the other.

    Args:
        gates: in order.
        objectives: by name; the first leads.
        duplicates: whether a function that was screened before is answered rather than trained.
    """

    gates: Sequence[Gate]
    objectives: dict[str, Objective]
    duplicates: bool = True
    _seen: dict[str, str] = field(default_factory=dict)

    def all(self, records: Iterable[Record]) -> list[End]:
        """Where each record's graph ends, in order."""
        self._seen.clear()
        return [self.one(record) for record in records]

    def one(self, record: Record) -> End:
        """Where the next graph ends."""
        screen = 0.0
        for gate in (gate for gate in self.gates if isinstance(gate, ScreenGate)):
            name = recorded_name(gate)
            screen += record["seconds"].get(name, 0.0)  # the structure gate took none: all graphs pass it
            if not passes_screening(gate, record):
                return End(gate.name, screen)
        if self.duplicates and record["fingerprint"] in self._seen:
            return End(self._seen[record["fingerprint"]], screen, duplicate=True)
        name, seconds = self._train(record)
        self._seen[record["fingerprint"]] = name
        return End(name, screen + seconds)

    def _train(self, record: Record) -> tuple[str, float]:
        gates = [gate for gate in self.gates if isinstance(gate, TrainGate)]
        seconds = record["seconds"]["build"]
        for step in sorted({*CHECKPOINTS, *(step for gate in gates for step in gate.steps)}):
            due = [gate for gate in gates if step in gate.steps]
            for anchor in record["anchors"].values():
                if step in CHECKPOINTS:
                    seconds += _stretch(anchor, step)
                    if _diverges(anchor, step):
                        return "divergence", seconds
                    if due or step == LAST:
                        seconds += anchor["measure"][CHECKPOINTS.index(step)]
                for gate in due:
                    seconds += ascent_seconds(gate, anchor)
                    if not self.passes(gate, anchor):
                        return gate.name, seconds
        return "", seconds

    def passes(self, gate: Gate, anchor: Record) -> bool:
        """Whether a training gate passes an anchor's training."""
        if isinstance(gate, Stability):
            norms = anchor[f"ascent@{gate.steps[0]}"][: gate.ascent_steps + 1]
            return all(norm is not None and norm <= math.log10(gate.limit) for norm in norms)
        assert isinstance(gate, Quality | Stall), f"the study does not know gate {gate.name}"
        objective = self.objectives[gate.objective or next(iter(self.objectives))]
        skill = skill_at(anchor, gate.steps[0], objective)
        return skill >= gate.skill if isinstance(gate, Quality) else not gate.low <= skill < gate.high


def recorded_name(gate: Gate) -> str:
    """The key of a screening gate in the records."""
    return f"propagation@{gate.depth}" if isinstance(gate, SignalPropagation) else gate.name


def passes_screening(gate: Gate, record: Record) -> bool:
    """Whether a screening gate passes a graph."""
    found = record["screen"].get(recorded_name(gate), {"passed": True})
    if not isinstance(gate, SignalPropagation) or not found["passed"]:
        return bool(found["passed"])
    for name, value in found.items():
        figure = name.split(".")[-1]
        low, high = {"size": gate.size, "gradient": gate.gradient, "distinct": (gate.distinct, math.inf)}.get(
            figure, (-math.inf, math.inf)
        )
        if value is None or not low <= value <= high:
            return False
    return True


def skill_at(anchor: Record, step: int, objective: Objective) -> float:
    """The objective's skill on an anchor at a checkpoint; minus infinity where the training did not get there."""
    values = anchor.get(objective.name, [])
    index = CHECKPOINTS.index(step)
    value = values[index] if index < len(values) else None
    return -math.inf if value is None else objective.skill(value)


def final_skill(record: Record, objective: Objective) -> float:
    """The mean skill over anchors at the end; minus infinity where one diverged."""
    return sum(skill_at(anchor, LAST, objective) for anchor in record["anchors"].values()) / len(record["anchors"])


def full_seconds(record: Record) -> float:
    """CPU seconds of training a graph to the end, which divergence may bring early, and measuring it there."""
    anchors = record["anchors"].values()
    measures = sum(anchor["measure"][-1] for anchor in anchors if len(anchor["measure"]) == len(CHECKPOINTS))
    return float(record["seconds"]["build"] + sum(sum(anchor["train"]) for anchor in anchors) + measures)


def top(records: Sequence[Record], objective: Objective, count: int) -> list[Record]:
    """The best so many by final skill."""
    return sorted(records, key=lambda record: -final_skill(record, objective))[:count]


def functions(records: Iterable[Record]) -> list[Record]:
    """The first graph of each function."""
    first: dict[str, Record] = {}
    for record in records:
        first.setdefault(record["fingerprint"] or str(record["number"]), record)
    return list(first.values())


def counts(ends: Iterable[End]) -> Counter[str]:
    """How many ended where."""
    return Counter("duplicate" if end.duplicate else end.gate or "accepted" for end in ends)


def ascent_seconds(gate: Gate, anchor: Record) -> float:
    """CPU seconds that a stability gate took on an anchor; 0 for another gate."""
    if not isinstance(gate, Stability):
        return 0.0
    name = f"ascent@{gate.steps[0]}"
    share = min(1.0, (gate.ascent_steps + 1) / len(anchor[name]))
    return float(share * anchor[f"{name}.seconds"])


def _stretch(anchor: Record, step: int) -> float:
    index = CHECKPOINTS.index(step)
    return float(anchor["train"][index]) if index < len(anchor["train"]) else 0.0


def _diverges(anchor: Record, step: int) -> bool:
    return "diverged" in anchor and CHECKPOINTS.index(step) == len(anchor["train"]) - 1
