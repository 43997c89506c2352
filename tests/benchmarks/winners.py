"""Long searches of the spaces of graphs, and their finalists beside known layers, on data that no search saw.

One search a space, by evolution from the known layers of its kind, on digits; the finalists and known layers are then
judged on digits and on Fashion-MNIST, on other networks than those that searched. On a machine with a GPU the latter
trains there. Killed, it goes on where it was; what each run knows is kept packed, so that another machine goes on too.
"""

from __future__ import annotations

import os
import tarfile
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from normact.launch import commands, run_folder
from normact.launch.config import Config, task_of
from normact.launch.setting import Setting
from normact.launch.standings import standings_of
from normact.search.history import History
from normact.search.ledger import Ledger
from normact.search.objective import Objective
from normact.search.outcome import mean_skill
from tests.benchmarks.studies import RESULTS, Study, counts

STARTS = {
    "evonorm_b": ("bn_relu", "bn_silu", "bn_crrelu", "evonorm_b0"),
    "evonorm_s": ("gn_relu", "gn_silu", "evonorm_s0"),
    "pointwise": ("relu(x)", "silu(x)"),
}
WORKERS = os.cpu_count() or 1
MINUTES = 3.4
"""Of search, a space, all sessions together; what is larger than what was done makes a search go on."""
SEARCH = (
    "race.seeds=3",
    "rerank.finalists=6",
    "rerank.baselines=[bn_relu,bn_silu,bn_crrelu,gn_relu,gn_silu,evonorm_b0,evonorm_s0]",
)
GPU = (f"pool.gpus_per_worker={0.99 / WORKERS:.4f}", "task.device=cuda") if torch.cuda.is_available() else ()
HELD_OUT = ("data@rerank.data=fashion_mnist", "limits.train_seconds=1800", f"pool.workers={WORKERS}", *GPU)
"""Of the second rerank; the first, on digits, is that of the search."""


def run() -> dict[str, Any]:
    study = Study("winners")
    found = {space: searched(study, space) for space in STARTS}
    for folder, config in found.values():
        if not judged_elsewhere(folder, config):  # by another machine, perhaps on a GPU
            if status := commands.rerank(Setting(Console(width=160)), folder, HELD_OUT, None):
                raise SystemExit(status)
            keep(folder)
    return {"workers": WORKERS, "spaces": {space: figures(*of) for space, of in found.items()}}


def searched(study: Study, space: str) -> tuple[Path, Config]:
    """The run folder of a space's search, and its config."""
    folder = study.runs / space
    if not folder.exists() and packed(folder).exists():
        with tarfile.open(packed(folder)) as archive:
            archive.extractall(folder.parent, filter="data")
    here = [f"budget.minutes={MINUTES}", f"pool.workers={WORKERS}"]
    ran = study.ran(space, [f"space={space}", *here, *SEARCH], STARTS[space], again=here)
    keep(folder)
    return ran


def packed(folder: Path) -> Path:
    """A run as the repository keeps it."""
    return RESULTS / f"{folder.parent.name}_{folder.name}.tar.xz"


def keep(folder: Path) -> None:
    """Pack a run's config and ledger."""
    part = packed(folder).with_suffix(".part")
    with tarfile.open(part, "w:xz") as archive:
        for name in (run_folder.CONFIG, run_folder.VERSIONS, run_folder.LEDGER):
            archive.add(folder / name, f"{folder.name}/{name}")
    part.replace(packed(folder))


def judged_elsewhere(folder: Path, config: Config) -> bool:
    """Whether a run's finalists were judged on the held-out data."""
    with run_folder.open_ledger(folder) as ledger:
        return any(standings.conditions.held_out for standings in standings_of(ledger, config))


def figures(folder: Path, config: Config) -> dict[str, Any]:
    objective = task_of(config).objective()
    with run_folder.open_ledger(folder) as ledger:
        history = History(ledger)
        return {
            **counts(history),
            "starts": starts(ledger, history, objective),
            "reranks": [standings.to_json() for standings in standings_of(ledger, config)],
        }


def starts(ledger: Ledger, history: History, objective: Objective) -> dict[str, float]:
    """The skill of each layer that the search started from, by the scores of the search: they are its first proposals.

    One that a gate rejected is left out.
    """
    origins = [origin for _, origin in ledger.meta("starts")]
    first = [history.outcomes.get(number) for number in range(len(origins))]
    found = zip(origins, first, strict=True)
    return {
        origin: round(mean_skill(objective, outcome), 4) for origin, outcome in found if outcome and outcome.accepted
    }
