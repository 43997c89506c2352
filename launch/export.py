"""`normact export`: a found layer as a file, checked against what was searched, in one of the formats of `formats`."""

from __future__ import annotations

import argparse
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from normact.launch import run_folder
from normact.launch.config import search_evaluator
from normact.launch.exports import picture
from normact.launch.exports.checks import Check, failures, table
from normact.launch.exports.formats import CURVES, FORMATS, Export, Place, check_target, pointwise
from normact.launch.exports.printing import check_layer, compare, printed, source_of
from normact.launch.plot import plot
from normact.launch.setting import Setting
from normact.search.evaluate import Evaluator
from normact.search.history import History
from normact.search.ledger import Ledger
from normact.search.objective import Objective
from normact.search.outcome import mean_skill
from normact.spaces.errors import InputError
from normact.spaces.graph_space import GraphSpace
from normact.spaces.space import Space

MOST_MEANT = 100


def add_options(parser: argparse.ArgumentParser) -> None:
    """The command's own options."""
    parser.add_argument("--candidate", default="", metavar="KEY", help="key or #number; the best where left out")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help=f"ends in {', '.join(FORMATS)}")
    parser.add_argument("--name", default="", help="of the factory function; the file's where left out")
    parser.add_argument("--curve", type=Path, metavar="FILE", help="draw the curve of a layer without moments, too")
    place = parser.add_argument_group("where a .pt2 or .onnx stands")
    place.add_argument("--features", type=_count, metavar="N", help="channels (64)")
    place.add_argument("--out-features", type=_count, metavar="N", help="channels that a KAN layer gives (as many)")
    place.add_argument("--layout", help="NCHW, NLC or NC (the first that the run's space has)")
    place.add_argument("--index", type=int, metavar="N", help="which of a KAN's layers (0)")


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return int(text)


def export_command(setting: Setting, options: argparse.Namespace) -> int:
    """`normact export`: one candidate of a run."""
    folder: Path = options.run_dir
    target = Target(
        options.out,
        options.name,
        Place(options.features, options.out_features, options.layout, options.index),
        options.curve,
    )
    target.check()
    config = run_folder.trusted_config(folder, setting.allow)
    with run_folder.open_ledger(folder) as ledger:
        evaluator = search_evaluator(config)
        history = History(ledger)
        history.check()
        number = find(history, evaluator.task.objective(), options.candidate)
        write_export(setting, folder, ledger, history, evaluator, number, target)
    return 0


@dataclass(frozen=True)
class Target:
    """What a person wants written.

    Args:
        path: of the file.
        name: of the factory function; empty for the file's, or `layer` where the format has no use for it.
        place: of a program.
        curve: of a picture of a pointwise layer, if wanted.
    """

    path: Path
    name: str = ""
    place: Place = field(default_factory=Place)
    curve: Path | None = None

    def check(self) -> None:
        """Check all that can be said without the layer.

        Raises:
            InputError: a file that cannot be written, or a place where the format has none.
        """
        check_target("--out", self.path, FORMATS)
        if self.curve:
            check_target("--curve", self.curve, CURVES)
        if self.place != Place() and not FORMATS[self.path.suffix].placed:
            placed = " and ".join(suffix for suffix, found in FORMATS.items() if found.placed)
            raise InputError(f"--features, --out-features, --layout and --index are for {placed}, got {self.path}")

    def check_layer(self, space: Space, candidate: Any) -> None:
        """Check the rest, before anything is written.

        Raises:
            InputError: a place that the layer cannot stand at, a formula or picture of a layer that is no graph, a
                curve of one that has none.
        """
        wanted = FORMATS[self.path.suffix]
        if wanted.placed:
            self.place.site(space)
        if wanted.graphs and not isinstance(space, GraphSpace):
            others = [suffix for suffix, found in FORMATS.items() if not found.graphs]
            raise InputError(
                f"{self.path.suffix} is for graph layers, got {space.describe(candidate)}; "
                f"write it as {', '.join(others[:-1])} or {others[-1]}"
            )
        if self.curve and pointwise(space, candidate) is None:
            raise InputError(f"--curve {self.curve}: only a graph without moments has one")

    @property
    def function(self) -> str:
        """The factory function's name."""
        return self.name or (self.path.stem.lower() if self.path.suffix == ".py" else "layer")


def export(space: Space, candidate: Any, target: Target, note: str, say: Callable[[str], None]) -> float:
    """Check a layer, say how it went, and write the file; nothing is left behind where that fails.

    Returns:
        The largest relative difference to the searched layer, over outputs and input gradients at every probe site, in
        training and in evaluation, in float64.

    Raises:
        InputError: the file cannot be written, or the printed source computes something else than the layer.
    """
    target.check()
    target.check_layer(space, candidate)
    name = target.function
    with printed(source_of(space, candidate, name, note), name) as factory:
        difference = compare(space, candidate, name, factory)
        checks = check_layer(space, candidate, factory)
        for line in table(checks):
            say(line)
        note = noted(note, checks)
        made = Export(space, candidate, name, factory, note, target.place)
        put(target.path, lambda path: FORMATS[target.path.suffix].write(made, path))
    graph = pointwise(space, candidate)
    if target.curve and graph:
        put(target.curve, lambda path: picture.save(picture.draw_curve(graph), path, note))
    return difference


def noted(note: str, checks: list[Check]) -> str:
    """The note, and what failed."""
    failed = failures(checks)
    return "\n".join([note, "", *failed]) if failed else note


def put(path: Path, write: Callable[[Path], None]) -> None:
    """Have a file written whole, or not at all.

    Raises:
        InputError: it cannot be written there.
    """
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / path.name
        write(made)
        data = made.read_bytes()
    try:
        with path.open("xb") as file:
            file.write(data)
    except OSError as problem:
        raise InputError(f"cannot write {path}: {problem}") from None


def find(history: History, objective: Objective, key: str) -> int:
    """The number of the candidate that a person means: by key, `#number`, or the best for an empty key.

    Raises:
        InputError: there is none, the beginning of a key is that of several, or nothing was accepted yet.
    """
    if not key:
        ranked = history.ranked(objective, 1)
        if not ranked:
            raise InputError("nothing in this run has passed every gate yet; search longer, or name a --candidate")
        return next(iter(ranked.values()))[0].number
    found = dict(history.ledger.with_key(key, most=MOST_MEANT))  # of each key its first number: the same layer
    if key in found:
        return found[key]
    meant = {number: f"{full[:12]} (#{number})" for full, number in found.items()}
    if re.fullmatch(r"#?[0-9]{1,18}", key) and history.ledger.event("proposed", number := int(key.lstrip("#"))):
        meant.setdefault(number, f"#{number}")
    if len(meant) > 1:
        several = ", ".join(list(meant.values())[:5])
        count = f"{len(meant)}" if len(found) < MOST_MEANT else f"{MOST_MEANT} or more"
        raise InputError(f"{key!r} may be any of {count} candidates: {several}; give more of it, or #number")
    for number in meant:
        return number
    raise InputError(f"no candidate {key!r} in this run; `normact show` lists keys and numbers")


def note_of(history: History, number: int, objective: Objective, run: str, versions: dict[str, str]) -> str:
    """Scores, run and versions, for an exported file's docstring."""
    lines = [f"candidate: #{number} of run {run}, {history.origin(number)}"]
    outcome = history.outcome(number)
    if outcome and outcome.accepted:
        values = ", ".join(f"{a} {v:.4f}" for a, v in outcome.final(objective.name).items())
        lines.append(f"search score: {objective.name} {values} (mean skill {mean_skill(objective, outcome):.4f}),")
        lines.append(f"    after {outcome.steps} steps, one seed: a hypothesis, not a result")
    lines.append(f"made by normact {versions.get('normact', '?')}, torch {versions.get('torch', '?')}")
    return "\n".join(lines)


def write_export(
    setting: Setting, folder: Path, ledger: Ledger, history: History, evaluator: Evaluator, number: int, target: Target
) -> None:
    """Export one candidate and say how it was checked and where it is."""
    space = evaluator.space
    candidate = space.from_json(history.record(number).candidate)
    versions: dict[str, str] = ledger.meta("versions", {})
    note = note_of(history, number, evaluator.task.objective(), folder.name, versions)
    difference = export(space, candidate, target, note, setting.say)
    same = f"outputs and gradients within {difference:.1g} of the searched layer's"
    setting.say(f"exported #{number} to {target.path}: {same}")
    if graph := pointwise(space, candidate):
        x, y, _ = (values.numpy() for values in picture.curve_of(graph))
        setting.say(plot(x[np.isfinite(y)], y[np.isfinite(y)], ascii=setting.console.options.ascii_only))
