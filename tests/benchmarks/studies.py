"""Studies: trainings of given candidates through the engine and its ledger, for hours if need be.

A study's runs lie under `runs/NAME/` and go on where they were killed. What the trainings gave is kept in
`results/NAME.jsonl` as they end, and packed, from which another machine goes on.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from scipy import stats

from normact.launch import commands, run_folder
from normact.launch.config import Config, compose_config, in_worker, pool_of, rerank_evaluator, space_of, task_of
from normact.launch.setting import Setting
from normact.search.history import History
from normact.search.ledger import Event, Ledger
from normact.search.outcome import Outcome
from normact.search.rerank import Entrant, Rerank
from normact.search.trainings import Trainings
from normact.spaces import Space
from tests.benchmarks.records import read

RESULTS = Path(__file__).parent / "results"
TRAIN_SECONDS = 7200.0
PLAIN = (
    "rerank.finalists=0",
    "export.winner=false",
    f"limits.train_seconds={TRAIN_SECONDS}",
    "pool.workers=2",
)
"""Of every run here, unless overrides say otherwise: it searches, and we do the rest."""


@dataclass
class Study:
    """A study's folder and what is kept of it.

    Args:
        name: of both.
    """

    name: str
    kept: list[dict[str, Any]] = field(init=False)

    def __post_init__(self) -> None:
        self.path = RESULTS / f"{self.name}.jsonl"
        self.runs = Path("runs") / self.name
        self.kept = read(self.path)

    def rows(self, part: str) -> list[dict[str, Any]]:
        """What is kept of a part."""
        return [row for row in self.kept if row["part"] == part]

    def keep(self, part: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add rows to what is kept; a row that is there stays alone."""
        known = {_text(row) for row in self.kept}
        fresh = [row for row in ({"part": part, **row} for row in rows) if _text(row) not in known]
        with self.path.open("a") as file:
            file.writelines(_text(row) + "\n" for row in fresh)
        self.kept += fresh

    def search(
        self, part: str, overrides: Sequence[str], starts: Sequence[str] = (), seed: int = 0
    ) -> list[dict[str, Any]]:
        """What a search gives: one row for each distinct candidate, with its last scores on the first anchor.

        Args:
            part: names the run.
            overrides: of the config.
            starts: what it starts from, see `start_from`.
            seed: of the search.
        """
        if done := self.rows(f"{part} done"):
            return self.rows(part)[: done[0]["rows"]]
        folder, config = self.ran(part, overrides, starts, seed)
        rows = outcomes_of(folder, space_of(config))
        self.keep(part, rows)
        self.keep(f"{part} done", [{"rows": len(rows)}])
        return rows

    def ran(
        self, part: str, overrides: Sequence[str], starts: Sequence[str] = (), seed: int = 0, again: Sequence[str] = ()
    ) -> tuple[Path, Config]:
        """The run folder of a search that has ended, and its config; one that was killed goes on.

        Args: as `search`, and
            again: overrides for going on.
        """
        config = compose_config([*PLAIN, *overrides, f"seed={seed}"])
        config["start_from"] = list(starts)
        folder = self.runs / part
        config["run_dir"] = str(folder)
        setting = Setting(Console(width=140))
        status = commands.resume(setting, folder, again) if folder.exists() else commands.search(setting, config)
        if status:
            raise SystemExit(status)
        return folder, config

    def judge(
        self, part: str, overrides: Sequence[str], entrants: Mapping[str, str], seeds: int
    ) -> dict[str, list[Outcome]]:
        """Train entrants (name to text) on fresh seeds, paired, and test them: the outcomes of each, by seed."""
        config = compose_config([*PLAIN, *overrides])
        config["rerank"]["anchor"], config["rerank"]["recipe"] = config["anchor"], config["recipe"]
        space = space_of(config)
        candidates = {name: space.to_json(space.parse(text)) for name, text in entrants.items()}
        members = [Entrant(name, "finalist", candidate, entrants[name]) for name, candidate in candidates.items()]
        first = members[0]  # a rerank compares with a baseline: it is trained once all the same
        members.append(Entrant("baseline", "baseline", first.candidate, first.text))
        folder = self.runs / part
        if not folder.exists():
            run_folder.create(folder, config).close()
        with run_folder.open_ledger(folder, write=True) as ledger:
            self._recall(part, ledger)
            objective = task_of(config).objective(config["rerank"]["objective"])
            depends = {name: config[name] for name in ("recipe", "anchor", "data")}
            with closing(pool_of(config, in_worker(rerank_evaluator, config), [])) as pool:
                judged = Rerank(
                    members, seeds, objective, Trainings(depends, ledger, pool, TRAIN_SECONDS, reads_test=True)
                )
                begin = time.perf_counter()

                def progress(done: int, total: int) -> None:
                    self._remember(part, ledger)
                    print(f"{part}: {done} of {total} trainings, {time.perf_counter() - begin:.0f} s", flush=True)

                judged.run(progress)
        return {m.name: [judged.results[i, s] for s in judged.seeds] for i, m in enumerate(members[:-1])}

    def _recall(self, part: str, ledger: Ledger) -> None:
        """Give a new ledger the trainings that are kept."""
        if not any(True for _ in ledger.events("reranked")):
            ledger.append([Event("reranked", row["number"], row["data"]) for row in self.rows(part)])

    def _remember(self, part: str, ledger: Ledger) -> None:
        self.keep(part, [{"number": event.number, "data": event.data} for event in ledger.events("reranked")])


def outcomes_of(folder: Path, space: Space[Any]) -> list[dict[str, Any]]:
    """A row for each distinct candidate of a run."""
    with run_folder.open_ledger(folder) as ledger:
        history = History(ledger)
        return [
            {
                "text": space.describe(space.from_json(history.record(number).candidate)),
                "scores": {score.objective: score.value for score in outcome.scores} if outcome.accepted else {},
                "gate": outcome.gate,
                "seconds": round(outcome.seconds.get("train", 0.0), 2),
            }
            for number, outcome in sorted(history.outcomes.items())
            if outcome.same_as is None
        ]


def counts(history: History) -> dict[str, float]:
    """How much a search did: its proposals, and of the distinct ones, how many were trained, and what they took."""
    outcomes = [outcome for outcome in history.outcomes.values() if outcome.same_as is None]
    return {
        "proposals": history.funnel.proposals,
        "trained": sum(outcome.steps > 0 for outcome in outcomes),
        "accepted": sum(outcome.accepted for outcome in outcomes),
        "worker_seconds": round(sum(sum(outcome.seconds.values()) for outcome in outcomes), 1),
    }


def interval(values: Sequence[float]) -> list[float]:
    """95% interval of a mean, by Student's t."""
    half = float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))
    mean = float(np.mean(values))
    return [round(mean - half, 5), round(mean + half, 5)]


def _text(row: Mapping[str, Any]) -> str:
    return json.dumps(row, sort_keys=True, separators=(",", ":"))
