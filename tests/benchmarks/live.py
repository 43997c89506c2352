"""A live study: searches by evolution, TPE and at random, of equal time on the same two workers, and what they found.

The default space and task; three seeds each; the searches of a seed run one after the other, in an order that rotates.
What each found best by its own scores is then trained again under fresh seeds, on the anchors that searched and on
those that judge in a rerank, beside known layers. Killed, it goes on where it was.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from normact.launch import run_folder
from normact.launch.config import Config, compose_config, space_of, task_of
from normact.search.history import History
from normact.search.objective import Objective
from normact.search.outcome import Outcome, mean_skill
from tests.benchmarks.studies import Study, counts, interval

CONTROLLERS = ("evolution", "tpe", "random")
SEEDS = 3
MINUTES = 3
FRESH_SEEDS = 8
KNOWN = ("bn_relu", "bn_silu", "evonorm_b0", "evonorm_s0", "gn_relu")
JUDGED_ON = {"searched": (), "other": ("anchor=[inverted_residual,token_transformer]", "recipe=longer")}


def run() -> dict[str, Any]:
    study = Study("live")
    for seed in range(SEEDS):
        for name in CONTROLLERS[seed:] + CONTROLLERS[:seed]:
            if not any((row["controller"], row["seed"]) == (name, seed) for row in study.rows("search")):
                study.keep("search", [search(study, name, seed)])
    found = {f"{row['controller']} {row['seed']}": row for row in study.rows("search")}
    entrants = {name: row["best"] for name, row in found.items()} | {name: name for name in KNOWN}
    truths = {}
    for where, overrides in JUDGED_ON.items():
        outcomes = study.judge(f"fresh_{where}", overrides, entrants, FRESH_SEEDS)
        truths[where] = {name: summary(of, objective_of(overrides)) for name, of in outcomes.items()}
    return {
        "minutes": MINUTES,
        "searches": found,
        "truths": truths,
        "controllers": {name: of_controller(name, found, truths) for name in CONTROLLERS},
    }


def search(study: Study, name: str, seed: int) -> dict[str, Any]:
    """One search: how much it did, and the best by its own scores."""
    folder, config = study.ran(f"{name}_{seed}", [f"controller={name}", f"budget.minutes={MINUTES}"], seed=seed)
    return {"controller": name, "seed": seed, **figures(folder, config)}


def figures(folder: Path, config: Config) -> dict[str, Any]:
    space, objective = space_of(config), task_of(config).objective()
    with run_folder.open_ledger(folder) as ledger:
        history = History(ledger)
        distinct = (outcome for outcome in history.outcomes.values() if outcome.same_as is None)
        best = max((outcome for outcome in distinct if outcome.accepted), key=lambda o: mean_skill(objective, o))
        return {
            **counts(history),
            "best": space.describe(space.from_json(history.record(best.number).candidate)),
            "best_skill": round(mean_skill(objective, best), 4),
        }


def objective_of(overrides: tuple[str, ...]) -> Objective:
    return task_of(compose_config([*overrides])).objective()


def summary(outcomes: list[Outcome], objective: Objective) -> dict[str, Any]:
    """Skill on validation and accuracy on the test split, means over anchors and seeds with 95% intervals."""
    skills = [max(0.0, mean_skill(objective, outcome)) if outcome.accepted else 0.0 for outcome in outcomes]
    tests = [statistics.mean(outcome.final("test_accuracy").values() or [0.0]) for outcome in outcomes]
    return {
        "skill": [round(statistics.mean(skills), 4), *interval(skills)],
        "test_accuracy": [round(statistics.mean(tests), 4), *interval(tests)],
    }


def of_controller(name: str, found: dict[str, Any], truths: dict[str, Any]) -> dict[str, Any]:
    """Mean and standard deviation over its searches."""
    mine = [f"{name} {seed}" for seed in range(SEEDS)]
    rows: dict[str, Any] = {
        f"{where}_{what}": [round(statistics.mean(values), 4), round(statistics.stdev(values), 4)]
        for where, of in truths.items()
        for what in ("skill", "test_accuracy")
        if (values := [of[entrant][what][0] for entrant in mine])
    }
    return rows | {
        what: [found[entrant][what] for entrant in mine] for what in ("trained", "worker_seconds", "best_skill")
    }
