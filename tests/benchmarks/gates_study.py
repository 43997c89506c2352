"""The records of the gate study: random graphs trained to the end, while every gate is asked and none rejects.

One JSON line a graph, appended as it comes: a study that was killed goes on where it ended. Seconds are CPU time of
the one thread that does the work, which other programs on the machine change little.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from normact.launch.config import compose_config, search_evaluator
from normact.search.evaluate import Evaluator
from normact.search.gates import (
    Duplicate,
    Linearity,
    Pass,
    Probe,
    ScreenContext,
    ScreenGate,
    SignalPropagation,
    Stability,
)
from normact.search.task import Task
from normact.search.training import Training, drawing_from
from normact.spaces import Space
from tests.benchmarks.records import Record, read, recorded

GRAPHS = 2000
CHECKPOINTS = (5, 10, 20, 30, 50, 100)
ASCENTS = (0, 10, 30)
"""Training steps at which the stability gate is asked."""

SETTING = ["recipe.steps=100"]
"""Of the trainings: what was the default then."""

DEPTHS = (2, 3, 4, 8)
"""Of signal propagation."""

SAMPLE_SEED = 7
OPEN = (0.0, math.inf)


def further(space: Space[Any], keys: set[str], count: int) -> Iterator[tuple[int, str]]:
    """So many sampled graphs, as number and text, none with a key that is known or came before."""
    number = 0
    while count:
        graph = space.sample(np.random.default_rng([SAMPLE_SEED, number])).canonical
        if (key := space.key(graph)) not in keys:
            keys.add(key)
            count -= 1
            yield number, space.describe(graph)
        number += 1


def study(path: Path, count: int = GRAPHS) -> list[Record]:
    """Complete the records of a study.

    Args:
        path: of the JSON lines; what is there is kept.
        count: graphs.

    Returns:
        The records, in the order in which their graphs were sampled.
    """
    space = search_evaluator(compose_config(SETTING)).space
    records = read(path)
    keys = {space.key(space.parse(record["graph"])) for record in records}
    missing = list(further(space, keys, max(0, count - len(records))))
    records += recorded(path, missing, _one, _initialise, "graphs")
    return sorted(records, key=lambda record: record["number"])


_evaluator: Evaluator | None = None


def _initialise() -> None:
    global _evaluator
    torch.set_num_threads(1)
    _evaluator = search_evaluator(compose_config(SETTING))
    observe(_evaluator.space, _evaluator.task, "bn_relu", 0)  # warm-up: no graph pays for loading


def _one(job: tuple[int, str]) -> Record:
    assert _evaluator is not None
    number, text = job
    return observe(_evaluator.space, _evaluator.task, text, number)


def observe(space: Space[Any], task: Task, text: str, number: int, seed: int = 0) -> Record:
    """All that the gates could know of one graph, and how its training goes on.

    Returns:
        number, graph (text), fingerprint; `screen`: what each screening gate found; `seconds`: CPU time of each
        screening gate and of building; `anchors`: see `_train`.
    """
    graph = space.parse(text)
    with drawing_from(seed):
        ctx = ScreenContext(space, graph, seed)
        screened, seconds = screen(ctx)
        start = time.process_time()
        trainings = {name: task.start(name, lambda site: space.build(graph, site), seed) for name in task.anchors}
        seconds["build"] = _short(time.process_time() - start)
        anchors = _train(task, trainings)
    return {
        "number": number,
        "graph": text,
        "fingerprint": ctx.fingerprint[:16],
        "screen": screened,
        "seconds": seconds,
        "anchors": anchors,
    }


def screen(ctx: ScreenContext) -> tuple[Record, dict[str, float]]:
    """What each screening gate finds (propagation at several depths, rejecting nothing), and its CPU seconds."""
    found: Record = {}
    seconds: dict[str, float] = {}
    gates: dict[str, ScreenGate] = {gate.name: gate for gate in (Probe(), Linearity(), Duplicate())}
    for depth in DEPTHS:
        gates[f"propagation@{depth}"] = SignalPropagation(depth, OPEN, OPEN, 0.0)
    for name, gate in gates.items():
        start = time.process_time()
        try:
            verdict = gate.check(ctx)
            figures = {figure: _short(value) for figure, value in verdict.figures.items()}
            found[name] = {"passed": isinstance(verdict, Pass), **figures}
        except Exception as problem:  # a gate that raises rejects, as in the evaluator
            found[name] = {"passed": False, "raised": type(problem).__name__}
        seconds[name] = _short(time.process_time() - start)
    return found, seconds


def _train(task: Task, trainings: dict[str, Training]) -> Record:
    """Trains all anchors side by side; the first to diverge ends all.

    Returns:
        Per anchor, a list with one entry per checkpoint reached: `train`, `measure` (seconds of the stretch that ends
        there), every objective's value (None where not finite), `training_loss` (mean of the second half so far);
        `ascent@STEP`: decimal logarithms of the gradient norms, `ascent@STEP.seconds`; `diverged`: where.
    """
    anchors: Record = {name: {"train": [], "measure": []} for name in trainings}
    for step in sorted({*CHECKPOINTS, *ASCENTS}):
        for name, training in trainings.items():
            record = anchors[name]
            start = time.process_time()
            finite = training.run_to(step)
            seconds = time.process_time() - start
            if finite and step in CHECKPOINTS:
                finite = _measure(task, training, record)
            if step in CHECKPOINTS or not finite:
                record["train"].append(_short(seconds))
            if not finite:
                record["diverged"] = training.step
                return anchors
            if step in ASCENTS:
                record.update(ascent(training, step))
    return anchors


def _measure(task: Task, training: Training, record: Record) -> bool:
    start = time.process_time()
    values = {**task.measure(training), "training_loss": training.second_half_loss}
    record["measure"].append(_short(time.process_time() - start))
    for name, value in values.items():
        record.setdefault(name, []).append(_short(value))
    return all(math.isfinite(value) for value in values.values())


def ascent(training: Training, step: int, steps: int = 5) -> Record:
    """The stability gate's norms at a training step, as decimal logarithms; None for what is not finite."""
    start = time.process_time()
    norms: list[float | None] = []
    try:
        norms = [_short(math.log10(norm) if norm > 0 else norm) for norm in _bounded(Stability(steps).norms(training))]
    except Exception:  # such as an op without a second derivative
        norms = [None]
    return {f"ascent@{step}": norms, f"ascent@{step}.seconds": _short(time.process_time() - start)}


def _bounded(norms: Iterator[float], limit: float = 1e8) -> Iterator[float]:
    """The norms up to the first one that no limit would let pass."""
    for norm in norms:
        yield norm
        if not norm <= limit:
            return


def _short(value: float) -> Any:
    """Four significant digits; None for what is not finite, which JSON has not."""
    return float(f"{value:.4g}") if math.isfinite(value) else None
