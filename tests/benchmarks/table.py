"""A tabular benchmark: a whole small space of layers, every distinct function of it trained on digits under two seeds.

The space has all graphs of up to three live nodes over twelve of EvoNorm's and common operations. Each is screened by
the shipped gates; each distinct function that passes is trained as a search would train it, gates included, under two
seeds. `make bench ONLY=table` makes the table; killed, it goes on where it was. A search on it
takes milliseconds: see `Table`, which judges jobs as a pool's evaluator does.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from normact.launch.config import Config, compose_config, search_evaluator, space_of
from normact.search.evaluate import Evaluator
from normact.search.objective import Score
from normact.search.outcome import Outcome
from normact.search.pool import Job
from normact.spaces import OPS, LayerGraph, Node, Space
from tests.benchmarks.records import Record, read, recorded

OPERATIONS = (
    *("add", "mul", "div", "max", "sigmoid", "silu", "relu"),
    *("batch_mean", "batch_std", "instance_std", "group_std", "layer_std"),
)
INPUTS = ("x", "v1")
NODES = 3
SEEDS = (0, 1)
STEPS = 100
OBJECTIVES = ("validation_loss", "accuracy", "training_loss", "extrapolated_loss")
BATCH = 50  # graphs screened for one record
PATH = Path(__file__).parent / "results" / "table.jsonl"


def table_config() -> Config:
    """The config of the searches that the table answers."""
    space = [f"space.ops=[{','.join(OPERATIONS)}]", f"space.inputs=[{','.join(INPUTS)}]", f"space.nodes={NODES}"]
    return compose_config([*space, f"objective=[{','.join(OBJECTIVES)}]", f"recipe.steps={STEPS}"])


def all_graphs(
    ops: Sequence[str] = OPERATIONS, inputs: Sequence[str] = INPUTS, nodes: int = NODES
) -> Iterator[LayerGraph]:
    """The canonical form of every graph of so many live nodes at most whose output depends on x, each once."""
    seen: set[LayerGraph] = set()
    for graph in _grown((), ops, inputs, nodes):
        live = graph.canonical
        if len(graph.live) == len(graph.nodes) and live.reaches_x and live not in seen:
            seen.add(live)
            yield live


def _grown(nodes: tuple[Node, ...], ops: Sequence[str], inputs: Sequence[str], most: int) -> Iterator[LayerGraph]:
    """Every graph that begins with these nodes and has more of them, dead ones included."""
    for op in ops:
        for args in itertools.product((*inputs, *range(len(nodes))), repeat=OPS[op].arity):
            longer = (*nodes, Node(op, args))
            yield LayerGraph(longer, affine=True)
            if len(longer) < most:
                yield from _grown(longer, ops, inputs, most)


# -- making it ---------------------------------------------------------------------------------------------------------


def run() -> dict[str, Any]:
    records = study()
    trained = [record for record in records if "function" in record]
    return {
        "graphs": sum(len(record.get("screened", ())) for record in records),
        "functions": len(survivors(records)),
        "trainings": len(trained),
        "worker_hours": round(sum(record["seconds"] for record in trained) / 3600, 2),
    }


def study(path: Path = PATH) -> list[Record]:
    """Complete the table's records: first what screening says of each graph, then trainings of what passed."""
    records = read(path)
    space = space_of(table_config())
    known = {text for record in records if "screened" in record for text, *_ in record["screened"]}
    missing = [text for graph in all_graphs() if (text := space.describe(graph)) not in known]
    batches = [missing[i : i + BATCH] for i in range(0, len(missing), BATCH)]
    records += recorded(path, batches, _screen, _initialise, "batches screened")
    trained = {(record["function"], record["seed"]) for record in records if "function" in record}
    jobs = [
        (function, text, seed)
        for seed in SEEDS
        for function, text in survivors(records).items()
        if (function, seed) not in trained
    ]
    records += recorded(path, jobs, _train, _initialise, "trainings")
    return records


def survivors(records: Sequence[Record]) -> dict[str, str]:
    """The shortest graph of each distinct function that passes screening, by the function's name."""
    rows = [row for record in records for row in record.get("screened", ())]
    found: dict[str, str] = {}
    for text, gate, function in sorted(rows, key=lambda row: (len(row[0]), row[0])):
        if not gate:
            found.setdefault(function, text)
    return found


_evaluator: Evaluator | None = None


def _initialise() -> None:
    global _evaluator
    torch.set_num_threads(1)
    _evaluator = search_evaluator(table_config())


def _judged(kind: Any, text: str, seed: int) -> Outcome:
    assert _evaluator is not None
    space = _evaluator.space
    return _evaluator(Job(0, kind, ((0, space.to_json(space.parse(text))),), seed))[0]


def _screen(texts: Sequence[str]) -> Record:
    """[text, gate, function] of each graph; a graph that was rejected before it was fingerprinted has no function."""
    outcomes = [(text, _judged("screen", text, 0)) for text in texts]
    return {"screened": [[text, outcome.gate, function_of(outcome.fingerprint)] for text, outcome in outcomes]}


def function_of(fingerprint: str) -> str:
    """A short name of what a graph computes; empty where that is not known."""
    return hashlib.blake2b(fingerprint.encode(), digest_size=6).hexdigest() if fingerprint else ""


def _train(job: tuple[str, str, int]) -> Record:
    """What a training gave: objective to [step, value] pairs, by anchor."""
    function, text, seed = job
    outcome = _judged("train", text, seed)
    scores: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for score in outcome.scores:
        scores.setdefault(score.anchor, {}).setdefault(score.objective, []).append(
            (score.step, float(f"{score.value:.5g}"))
        )
    seconds = round(sum(outcome.seconds.values()), 3)
    return {"function": function, "seed": seed, "gate": outcome.gate, "steps": outcome.steps, "seconds": seconds} | {
        "scores": scores
    }


# -- using it ----------------------------------------------------------------------------------------------------------


class Table:
    """Answers jobs from the table.

    Args:
        records: of the study.
        space: of the table.
        swap: train under the other seed: what was seed 0 is seed 1.
    """

    def __init__(self, records: Sequence[Record], space: Space[Any], swap: bool = False) -> None:
        self.space = space
        rows = [row for record in records for row in record.get("screened", ())]
        self._screened = {space.key(space.parse(text)): (gate, function) for text, gate, function in rows}
        self._trained = {(r["function"], r["seed"]): outcome_of(r) for r in records if "function" in r}
        self._seeds = SEEDS[::-1] if swap else SEEDS
        self.judged: list[str] = []
        """The functions that were trained, in order."""

    def __call__(self, job: Job) -> list[Outcome]:
        """See `Evaluate`.

        Raises:
            KeyError: a graph that the table does not have.
        """
        answer = self.screened if job.kind == "screen" else self.trained
        return [replace(answer(self.space.from_json(data)), number=number) for number, data in job.candidates]

    def screened(self, candidate: Any) -> Outcome:
        gate, function = self._screened[self.space.key(candidate)]
        return Outcome(0, gate, fingerprint=function)

    def trained(self, candidate: Any) -> Outcome:
        _, function = self._screened[self.space.key(candidate)]
        self.judged.append(function)
        return self.seen(function)

    def seen(self, function: str) -> Outcome:
        """What the function gives a search."""
        return self._trained[function, self._seeds[0]]

    def truth(self, function: str) -> Outcome:
        """What the function gave under the other seed, which a search on this table does not see."""
        return self._trained[function, self._seeds[1]]

    @property
    def functions(self) -> Mapping[str, Outcome]:
        """The truth of every function."""
        return {function: self.truth(function) for function, seed in self._trained if seed == SEEDS[0]}


def outcome_of(record: Record) -> Outcome:
    """The outcome of a record."""
    scores = tuple(
        Score(objective, anchor, step, value)
        for anchor, of_anchor in record["scores"].items()
        for objective, pairs in of_anchor.items()
        for step, value in pairs
    )
    seconds = {"train": record["seconds"]}
    return Outcome(
        0, record["gate"], scores=scores, steps=record["steps"], seconds=seconds, device="cpu", seed=record["seed"]
    )
