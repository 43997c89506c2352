"""Write a found layer as one Python file that needs torch alone, and check it against what was searched."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from normact.launch.checks import Check, failures, run_checks, table
from normact.launch.guard import theirs
from normact.launch.setting import Setting
from normact.search.evaluate import Evaluator
from normact.search.history import History
from normact.search.ledger import Ledger
from normact.search.objective import Objective
from normact.search.outcome import mean_skill
from normact.spaces.errors import InputError
from normact.spaces.fingerprint import probe_batch
from normact.spaces.site import Site
from normact.spaces.space import Space

TOLERANCE = 1e-6
MOST_MEANT = 100


def export(space: Space, candidate: Any, name: str, path: Path, note: str) -> float:
    """Write the file and return the largest relative difference between it and the searched layer.

    Outputs and input gradients are compared at every probe site, in training and in evaluation, in float64,
    relative to the root mean square.

    Raises:
        InputError: the path exists, has no folder or another ending than `.py`; or the file computes something
            else than the layer, in which case it is not left behind.
    """
    if path.suffix != ".py":
        raise InputError(f"--out {path} must end in .py")
    if path.exists():
        raise InputError(f"{path} exists already; choose another name, nothing was overwritten")
    if not path.parent.is_dir():
        raise InputError(f"the folder {path.parent} does not exist; make it first")
    with theirs(f"{type(space).__name__}.source"):
        text = space.source(candidate, name, note)
    try:
        path.write_text(text)
    except (OSError, TypeError) as problem:
        raise InputError(f"cannot write the source to {path}: {problem}") from None
    try:
        with theirs(f"the source of {name}"):
            difference = compare(space, candidate, load_factory(path, name))
    except BaseException:  # Ctrl-C too: what was not checked does not stay
        path.unlink()
        raise
    if not difference <= TOLERANCE:
        path.unlink()
        raise InputError(f"the exported {name} differs from the layer by {difference:.2g} of its size: not written")
    return difference


def load_factory(path: Path, name: str) -> Callable[..., nn.Module]:
    """The factory function of a file that was just written by `export`."""
    factory: Callable[..., nn.Module] = getattr(imported(path, name), name)
    return factory


def imported(path: Path, name: str) -> ModuleType:
    """The module of a file that was just written; `sys.modules` is as it was."""
    spec = importlib.util.spec_from_file_location(f"normact_export_{name}", path)
    assert spec and spec.loader
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules[spec.name]
    return module


def compare(space: Space, candidate: Any, factory: Callable[..., nn.Module]) -> float:
    """The largest relative difference of outputs and input gradients between a space's module and a factory's.

    At every probe site, so at one for each layer where a candidate's layers differ from place to place. Parameters are
    moved from where they start: what begins at 0 would else hide what it multiplies.
    """
    worst = 0.0
    for site in space.probe_sites():
        ours = _moved(space.build(candidate, site).double())
        theirs = factory(**space.source_arguments(site)).double()
        theirs.load_state_dict(ours.state_dict())
        for training, number in ((True, 0), (True, 1), (False, 0)):
            ours.train(training)
            theirs.train(training)
            for a, b in zip(_response(ours, site, number), _response(theirs, site, number), strict=True):
                size = float(a.square().mean().sqrt())
                worst = max(worst, float((a - b).abs().max()) / max(size, 1e-30))
    return worst


@torch.no_grad()
def _moved(module: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        parameter.add_(torch.rand(parameter.shape, generator=generator, dtype=parameter.dtype), alpha=0.1)
    return module


def _response(module: nn.Module, site: Site, number: int) -> tuple[torch.Tensor, torch.Tensor]:
    x, cotangent = probe_batch(site, number)
    x = x.clone().requires_grad_()
    y = module(x)
    (gradient,) = torch.autograd.grad(y, x, cotangent)
    return y.detach(), gradient


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
    setting: Setting,
    folder: Path,
    ledger: Ledger,
    history: History,
    evaluator: Evaluator,
    number: int,
    name: str,
    path: Path,
) -> None:
    """Export one candidate and say where it is and how it was checked."""
    space = evaluator.space
    candidate = space.from_json(history.record(number).candidate)
    versions: dict[str, str] = ledger.meta("versions", {})
    note = note_of(history, number, evaluator.task.objective(), folder.name, versions)
    difference = export(space, candidate, name, path, note)
    setting.say(f"exported #{number} to {path}: outputs and gradients within {difference:.1g} of the searched layer's")
    checks = check_file(space, candidate, name, path)
    if failed := failures(checks):
        path.write_text(space.source(candidate, name, "\n".join([note, "", *failed])))
    for line in table(checks):
        setting.say(line)


def check_file(space: Space, candidate: Any, name: str, path: Path) -> list[Check]:
    """What is checked of an exported file, at the first probe site; see `checks`."""
    site = space.probe_sites()[0]
    module = imported(path, name)
    state = _moved(space.build(candidate, site)).state_dict()

    def make() -> nn.Module:
        made: nn.Module = getattr(module, name)(**space.source_arguments(site))
        made.load_state_dict(state)
        return made

    sys.modules[module.__name__] = module  # a pickle names it
    try:
        return run_checks(make, probe_batch(site, 0)[0])
    finally:
        del sys.modules[module.__name__]
