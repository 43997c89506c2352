"""`normact curves`: the strongest edges of a found network, as curves and as elementary functions."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from normact.launch import report, run_folder
from normact.launch.config import search_evaluator
from normact.launch.export import find
from normact.launch.plot import plot
from normact.launch.setting import Setting
from normact.search.evaluate import Evaluator
from normact.search.history import History
from normact.search.training import Training, drawing_from
from normact.spaces.errors import InputError
from normact.spaces.kan.edges import EdgeCurve, LayerEdges, strongest_edges
from normact.spaces.kan.reading import THRESHOLD, Reading, fit

EXAMPLES = 512
"""Of the validation split, on which edges are measured."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """The command's own options."""
    parser.add_argument("--candidate", default="", metavar="KEY", help="key or #number; the best where left out")
    parser.add_argument("--top", type=_count, default=3, help="edges of each layer (3)")
    parser.add_argument("--threshold", type=_share, default=THRESHOLD, help=f"R2 that a reading needs ({THRESHOLD})")


def curves(setting: Setting, folder: Path, key: str, top: int, threshold: float) -> int:
    """Train a candidate as the search did, and print what the strongest edges of its KAN layers compute."""
    config = run_folder.trusted_config(folder, setting.allow)
    with run_folder.open_ledger(folder) as ledger:
        evaluator = search_evaluator(config)
        history = History(ledger)
        history.check()
        number = find(history, evaluator.task.objective(), key)
        outcome = history.outcome(number)
        candidate = evaluator.space.from_json(history.record(number).candidate)
    objective = evaluator.task.objective().name
    before = outcome.final(objective) if outcome else {}
    seed = outcome.seed if outcome and before else config["seed"]
    setting.say(f"candidate #{number}: {report.readable(evaluator.space, candidate)}")
    for anchor in evaluator.task.anchors:
        training, values = _trained(evaluator, candidate, anchor, seed)
        searched = f"; the search measured {before[anchor]:.4g}" if anchor in before else ""
        setting.say(f"\n{anchor}, trained anew: {objective} {values[objective]:.4g}{searched}")
        for layer in strongest_edges(training.model, top, evaluator.task.splits.validation.x[:EXAMPLES]):
            _print_layer(setting, layer, threshold)
    return 0


def _trained(evaluator: Evaluator, candidate: Any, anchor: str, seed: int) -> tuple[Training, dict[str, float]]:
    """A training as in the search, and what it reached. It stops to measure where the gates did: that moves statistics.

    Raises:
        InputError: the loss is not finite.
    """
    task, space = evaluator.task, evaluator.space
    with drawing_from(seed):
        training = task.start(anchor, lambda site: space.build(candidate, site), seed)
        values: dict[str, float] = {}
        for step in sorted({task.recipe.steps, *(s for gate in evaluator.train_gates for s in gate.steps)} - {0}):
            if not training.run_to(step):
                raise InputError(
                    f"the loss on {anchor} was {training.losses[-1]} at step {training.step}: nothing to read"
                )
            values = task.measure(training)
    return training, values


def _print_layer(setting: Setting, layer: LayerEdges, threshold: float) -> None:
    setting.say(f"\nlayer {layer.name}, {layer.kind}{': ' if layer.remark else ''}{layer.remark}")
    for edge in layer.edges:
        setting.say(f"\ninput {edge.input} to output {edge.output}, standard deviation {edge.std:.4g}")
        setting.say(plot(edge.points, edge.values, edge.variable, setting.console.options.ascii_only))
        setting.say(reading_of(edge, threshold))


def reading_of(edge: EdgeCurve, threshold: float) -> str:
    """What an edge is, in a line or two."""
    reading = fit(edge.points, edge.values, threshold=threshold)
    text = f"y = {reading.of(edge.variable)}    R2 {reading.r2!r}" if isinstance(reading, Reading) else reading.reason
    if edge.variable == "u":
        beside = f", and the base branch adds {edge.base}" if edge.base else ""
        text += f"\nu is input {edge.input} behind the layer's norm, which looks at all inputs{beside}"
    return text


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return int(text)


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"must be a number from 0 to 1, got {text!r}")
    return value
