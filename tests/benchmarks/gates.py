"""The gate study: what each gate wrongly rejects and what it saves, on random graphs trained to the end.

`python -m tests.benchmarks gates` completes the records (see gates_study.py; a killed run goes on), then replays the
gates on them. False rejections are counted among the top tenth: the tenth of the graphs with the best final skill (mean
over anchors of the leading objective), less those of them that are affine, which are counted apart.
"""

from __future__ import annotations

import lzma
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scipy.stats import binomtest

from normact.launch.config import compose_config, gates_of, task_of
from normact.search.gates import (
    Duplicate,
    Gate,
    Linearity,
    Probe,
    Quality,
    ScreenGate,
    SignalPropagation,
    Stability,
    Stall,
    Structure,
)
from normact.search.objective import Objective
from tests.benchmarks.gates_replay import (
    End,
    Replay,
    counts,
    final_skill,
    full_seconds,
    functions,
    passes_screening,
    recorded_name,
    skill_at,
    top,
)
from tests.benchmarks.gates_study import DEPTHS, SETTING, Record, study

RESULTS = Path(__file__).parent / "results"
QUALITY_STEPS = (10, 20, 30, 50)
FACTORS = (-1.0, 0.0, 0.5, 1.0, 1.5, 2.0, 3.0)
"""Points of the trade-off curve: the thresholds of quality, relative to the chosen ones."""


def run() -> dict[str, Any]:
    config = compose_config(SETTING)
    path = RESULTS / "gates_study.jsonl"
    records = study(path)
    path.with_name(path.name + ".xz").write_bytes(lzma.compress(path.read_bytes(), preset=9))
    judge = Judge(records, task_of(config).objectives)
    # No site of evonorm_b is causal, and that space gives no estimate of its size.
    shipped = [gate for gate in gates_of(config) if gate.name not in ("causality", "size")]
    figures = judge.study(shipped)
    table = markdown(figures)
    (RESULTS / "gates.md").write_text(table)
    print(table)
    return figures


class Judge:
    """Counts what gates do to the records of a study.

    Args:
        records: of the study.
        objectives: of its task; the first leads.
    """

    def __init__(self, records: Sequence[Record], objectives: dict[str, Objective]) -> None:
        self.records = list(records)
        self.objectives = objectives
        self.objective = next(iter(objectives.values()))
        self.full = sum(map(full_seconds, self.records))

    # -- the top tenth -----------------------------------------------------------------------------------------

    def top_tenth(self, records: Sequence[Record]) -> list[Record]:
        """The best tenth of the graphs, less those that are affine: no gate is wrong to reject them."""
        return [r for r in top(records, self.objective, len(records) // 10) if not affine(r)]

    def false(self, ends: Sequence[End], records: Sequence[Record], best: Sequence[Record]) -> list[str]:
        """The gates that rejected graphs of the top tenth, one entry a graph."""
        numbers = {record["number"] for record in best}
        return [end.gate for end, record in zip(ends, records, strict=True) if record["number"] in numbers and end.gate]

    # -- choosing ----------------------------------------------------------------------------------------------

    def choose(self, records: Sequence[Record]) -> list[Gate]:
        """Thresholds from the top tenth of these records.

        Quality: the smallest skill that one of them had on any anchor at that step, less 5% of the median one; no
        gate where some blew up on their way. Propagation: the greatest depth at which none of them is rejected.
        """
        best = self.top_tenth(records)
        gates: list[Gate] = [Structure(), Probe(), Linearity(), Duplicate()]
        harmless = [d for d in DEPTHS if all(passes_screening(SignalPropagation(d), record) for record in best)]
        gates += [SignalPropagation(max(harmless))] if harmless else []
        for step in QUALITY_STEPS:
            skills = [min(skill_at(a, step, self.objective) for a in r["anchors"].values()) for r in best]
            threshold = min(skills) - 0.05 * statistics.median(skills)
            gates += [Quality(step, threshold)] if threshold > -0.1 else []
        return gates

    def crossed(self) -> dict[str, Any]:
        """Thresholds chosen on one half and judged on the other, both ways: what the rule does to new graphs."""
        halves = [self.records[0::2], self.records[1::2]]
        wrong, tried, chosen = 0, 0, []
        for chooses, reports in (halves, halves[::-1]):
            gates = self.choose(chooses)
            best = self.top_tenth(reports)
            wrong += len(self.false(Replay(gates, self.objectives).all(reports), reports, best))
            tried += len(best)
            chosen.append({gate.name: setting(gate) for gate in gates if setting(gate) is not None})
        return {**rate(wrong, tried), "chosen_on_even": chosen[0], "chosen_on_odd": chosen[1]}

    # -- judging -----------------------------------------------------------------------------------------------

    def alone(self, gate: Gate) -> dict[str, Any]:
        """One gate with no other: whom it rejects, and the training time that it saves, its own cost taken off."""
        known = [record for record in self.records if recorded(gate, record)]
        ends = Replay([gate], self.objectives, duplicates=False).all(known)
        best = self.top_tenth(known)
        everyone = functions(known)
        full = sum(map(full_seconds, known))
        saved = full - sum(end.seconds for end in ends)
        number = {record["number"] for record in self.top_tenth(everyone)}
        wrong = [r for r, end in zip(known, ends, strict=True) if end.gate == gate.name and r["number"] in number]
        return {
            "n": len(known),
            "rejects": sum(end.gate == gate.name for end in ends),
            "false_rejections": rate(self.false(ends, known, best).count(gate.name), len(best)),
            "false_rejections_of_functions": rate(len(wrong), len(number)),
            "saves_s": round(saved, 1),
            "saves_share": round(saved / full, 3),
        }

    def together(self, gates: Sequence[Gate], records: Sequence[Record] | None = None) -> dict[str, Any]:
        """All gates in order, duplicates answered."""
        records = self.records if records is None else records
        ends = Replay(gates, self.objectives).all(records)
        spent = sum(end.seconds for end in ends)
        best = self.top_tenth(records)
        full = sum(map(full_seconds, records))
        distinct = sum(map(full_seconds, functions(records)))
        return {
            "ended": dict(counts(ends)),
            "false_rejections": rate(len(self.false(ends, records, best)), len(best)),
            "seconds": round(spent, 1),
            "train_all_seconds": round(full, 1),
            "compute_ratio": round(full / spent, 1),
            "compute_ratio_to_distinct_functions": round(distinct / spent, 1),
        }

    def bound(self) -> dict[str, Any]:
        """No gates can do better than to train the distinct functions of the top tenth and nothing else."""
        best = self.top_tenth(self.records)
        seconds = sum(map(full_seconds, functions(best)))
        return {
            "top_tenth": len(best),
            "functions_in_it": len(functions(best)),
            "seconds": round(seconds, 1),
            "compute_ratio": round(self.full / seconds, 1),
            "skill_of_the_last": round(final_skill(best[-1], self.objective), 3),
        }

    def trade_off(self, gates: Sequence[Gate]) -> list[dict[str, Any]]:
        """The same gates with the thresholds of quality multiplied."""
        rows = []
        for factor in FACTORS:
            moved = [Quality(g.steps[0], g.skill * factor, g.objective) if isinstance(g, Quality) else g for g in gates]
            found = self.together(moved)
            rows.append({"factor": factor, **found["false_rejections"], "compute_ratio": found["compute_ratio"]})
        return rows

    def affine_among_the_best(self) -> dict[str, Any]:
        """How much of the top tenth is affine."""
        count = len(self.records) // 10
        return rate(count - len(self.top_tenth(self.records)), count)

    def study(self, shipped: Sequence[Gate]) -> dict[str, Any]:
        """All figures."""
        tried = [gate for gate in shipped if not isinstance(gate, Structure | Duplicate)]
        papers = [Quality(100, 1 / 9, "accuracy"), Quality(5, 1 / 9, "accuracy"), Stability(5, at=0)]
        names = ["paper: twice chance at step 100", "paper: twice chance at a twentieth, step 5", title(papers[2])]
        former = [SignalPropagation(8), Stability(5, at=10), Quality(10, 0.0), Quality(30, 0.1)]
        return {
            "n": len(self.records),
            "functions": len(functions(self.records)),
            "divergent": sum(final_skill(record, self.objective) == -math.inf for record in self.records),
            "alone": {title(gate): self.alone(gate) for gate in tried},
            "paper": dict(zip(names, map(self.alone, papers), strict=True)),
            "former": {title(gate): self.alone(gate) for gate in former},
            "shipped": self.together(shipped),
            "shipped_on_odd": self.together(shipped, self.records[1::2]),
            "rule_on_the_other_half": self.crossed(),
            "bound": self.bound(),
            "trade_off": self.trade_off(shipped),
            "affine_among_the_best": self.affine_among_the_best(),
            "compute_ratio": self.together(shipped)["compute_ratio"],
        }


def affine(record: Record) -> bool:
    """Whether the graph has no nonlinearity."""
    found = record["screen"]["linearity"]
    return not found["passed"] and "nonlinearity" in found


def recorded(gate: Gate, record: Record) -> bool:
    """Whether the study asked this gate wherever the graph's training went so far."""
    if isinstance(gate, ScreenGate):
        return recorded_name(gate) in record["screen"]
    if not isinstance(gate, Stability):
        return True
    anchors = record["anchors"].values()
    return any("diverged" in anchor for anchor in anchors) or all(f"ascent@{gate.steps[0]}" in a for a in anchors)


def setting(gate: Gate) -> float | None:
    """What the rule chose of a gate."""
    if isinstance(gate, Quality):
        return round(gate.skill, 4)
    return gate.depth if isinstance(gate, SignalPropagation) else None


def title(gate: Gate) -> str:
    """A gate with its threshold, for tables."""
    if isinstance(gate, Quality):
        return f"{gate.name}, skill {gate.skill:g}"
    if isinstance(gate, Stall):
        return f"{gate.name}, skill {gate.low:g} to {gate.high:g}"
    if isinstance(gate, Stability):
        return f"stability@{gate.steps[0]}, {gate.ascent_steps} ascent steps, norm {gate.limit:.0e}"
    return f"propagation, depth {gate.depth}" if isinstance(gate, SignalPropagation) else gate.name


def rate(count: int, n: int) -> dict[str, float]:
    """A share with its 95% interval (Clopper and Pearson)."""
    interval = binomtest(count, n).proportion_ci(0.95, "exact")
    return {"count": count, "of": n, "low": round(interval.low, 4), "high": round(interval.high, 4)}


def markdown(figures: dict[str, Any]) -> str:
    """The tables of the study."""
    lines = ["| gate, alone | rejects | false rejections, 95% interval | training time saved |", "|---|---|---|---|"]
    for name, found in {**figures["alone"], **figures["paper"], **figures["former"]}.items():
        lines.append(
            f"| {name} | {found['rejects']} of {found['n']} | {shown(found['false_rejections'])} | {saved(found)} |"
        )
    lines += [
        "",
        "| thresholds of quality, times | false rejections, 95% interval | times less compute |",
        "|---|---|---|",
    ]
    for row in figures["trade_off"]:
        lines.append(f"| {row['factor']:g} | {shown(row)} | {row['compute_ratio']:g} |")
    return "\n".join(lines) + "\n"


def shown(found: dict[str, Any]) -> str:
    share = f"{found['count'] / found['of']:.1%}"
    return f"{found['count']} of {found['of']}: {share} ({found['low']:.1%} to {found['high']:.1%})"


def saved(found: dict[str, Any]) -> str:
    return f"{found['saves_s']:.0f} s, {found['saves_share']:.0%}"
