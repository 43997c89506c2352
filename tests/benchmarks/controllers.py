"""Controllers on the table of a whole small space (see table.py): the truth of what each has found, by trainings spent.

Ours run as in a search: the engine answers what it knows and screens the rest, and only trainings count. Optuna's
samplers used directly, by `study.ask` and `study.tell` on the space's `suggest`, get screening for free too, but
nothing remembers for them what was trained. A run sees the trainings of one of the table's two seeds; the truth of
what looks best to it is the skill under the other seed, so that luck is not rewarded.

A rejected function's truth is 0, a trivial model's.

Killed, it goes on where it was: what each search came to is kept in `results/controllers.jsonl`.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import optuna

from normact.launch.config import compose_config, controller_of, space_of, task_of
from normact.search.budget import Budget, Limits
from normact.search.engine import Engine
from normact.search.ledger import Ledger
from normact.search.objective import Objective
from normact.search.outcome import Outcome, mean_skill
from normact.search.pool import LocalPool
from tests.benchmarks.ask_tell import ask_tell_after
from tests.benchmarks.records import Record, read, recorded
from tests.benchmarks.studies import interval
from tests.benchmarks.table import PATH, Table, table_config

RUNS = PATH.with_name("controllers.jsonl")
TRAININGS = 200
SEEDS = 30
CHECKPOINTS = (10, 20, 50, 100, 150, 200)
MOST_PROPOSALS = 100_000
OURS = {
    "random": ["controller=random"],
    "evolution": ["controller=evolution"],
    "evolution_mean": ["controller=evolution", "controller.winner=mean"],
    "evolution_crossover": ["controller=evolution", "controller.crossover=0.5"],
    "regularized": ["controller=regularized"],
    "surrogate": ["controller=surrogate"],
    "tpe": ["controller=tpe"],
    "nsga2": ["controller=nsga2"],
}
VARIANTS = {
    f"{name}_{variant}": [f"controller={name}", *(f"controller.{setting}" for setting in settings)]
    for name in ("tpe", "nsga2")
    for variant, settings in {
        "rejected_fail": ["rejected=fail"],
        "rejected_constraint": ["rejected=constraint"],
        "rejected_fail_window_100": ["rejected=fail", "window=100"],
    }.items()
}
DIRECT: dict[str, Callable[[int], optuna.samplers.BaseSampler]] = {
    "optuna_random": lambda seed: optuna.samplers.RandomSampler(seed),
    "optuna_tpe": lambda seed: optuna.samplers.TPESampler(seed=seed),
    "optuna_nsga2": lambda seed: optuna.samplers.NSGAIISampler(seed=seed),
}
NAMES = (*OURS, *VARIANTS, *DIRECT)
BEHIND = (1_000, 100_000)
"""Outcomes before an ask and a tell are timed."""


@dataclass(frozen=True)
class Run:
    """One search on the table.

    Args:
        repeats: trainings that it paid for, of a function that it had trained before.
        truths: the truth of the best that it had seen, after each of CHECKPOINTS trainings.
        proposals: that it made.
        seconds: of processor time.
    """

    repeats: int
    truths: tuple[float, ...]
    proposals: int
    seconds: float


def run() -> dict[str, Any]:
    found = searches()
    runs = {name: [found[name, seed] for seed in range(SEEDS)] for name in NAMES}
    table, objective = _table(False)
    truths = sorted((truth(objective, outcome) for outcome in table.functions.values()), reverse=True)
    rows = {name: summary(of) for name, of in runs.items()}
    for name in rows:
        rows[name]["vs"] = {other: paired(runs[name], runs[other]) for other in ("random", *DIRECT) if other != name}
        print(name, rows[name], flush=True)
    space = space_of(compose_config([]))
    for name, overrides in OURS.items():
        rows[name]["ask_tell_ms"] = {str(behind): ask_tell_after(space, overrides, behind) for behind in BEHIND}
    return {
        "functions": len(truths),
        "best_there_is": round(truths[0], 4),
        "tenth_best": round(truths[9], 4),
        "best_tenth": round(truths[len(truths) // 10], 4),
        "trainings": TRAININGS,
        "seeds": SEEDS,
        "controllers": rows,
    }


def searches() -> dict[tuple[str, int], Run]:
    """What each controller came to under each seed."""
    kept = {(row["name"], row["seed"]): Run(**row["run"]) for row in read(RUNS)}
    jobs = [(name, seed) for seed in range(SEEDS) for name in NAMES if (name, seed) not in kept]
    for row in recorded(RUNS, jobs, _record, None, "searches"):
        kept[row["name"], row["seed"]] = Run(**row["run"])
    return kept


def _record(job: tuple[str, int]) -> Record:
    name, seed = job
    return {"name": name, "seed": seed, "run": asdict(searched(name, seed))}


# -- one search --------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=2)
def _table(swap: bool) -> tuple[Table, Objective]:
    config = table_config()
    return Table(read(PATH), space_of(config), swap), task_of(config).objective()


def searched(name: str, seed: int) -> Run:
    """A search by a controller, under a seed of its own; every other seed sees the table's other trainings."""
    table, objective = _table(seed % 2 == 1)
    table.judged.clear()
    start = time.process_time()
    search = _direct if name in DIRECT else _by_engine
    proposals = search(name, seed, table, objective)
    seconds = time.process_time() - start
    trained = table.judged[:TRAININGS]
    truths = _truths(trained, table, objective)
    return Run(
        len(trained) - len(set(trained)), tuple(truths[n - 1] for n in CHECKPOINTS), proposals, round(seconds, 2)
    )


def _by_engine(name: str, seed: int, table: Table, objective: Objective) -> int:
    config = compose_config([*{**OURS, **VARIANTS}[name], f"seed={seed}"])
    controller = controller_of(config, table.space, [objective], ())
    with tempfile.TemporaryDirectory() as folder, Ledger(Path(folder) / "ledger.sqlite", create=True) as ledger:
        pool = LocalPool(lambda: table)
        engine = Engine(table.space, controller, ledger, pool, Budget(MOST_PROPOSALS), objective, seed, Limits(batch=1))

        def end_when_spent(progress: Any) -> None:
            if len(table.judged) >= TRAININGS:
                engine.stop()

        engine.run(end_when_spent)
        return engine.funnel.proposals


def _direct(name: str, seed: int, table: Table, objective: Objective) -> int:
    """Optuna by itself."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=DIRECT[name](seed), direction="maximize")
    while True:
        trial = study.ask()
        candidate = table.space.suggest(trial)
        outcome = table.screened(candidate)
        if not outcome.gate:
            outcome = table.trained(candidate)
        if outcome.gate:
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
        else:
            study.tell(trial, mean_skill(objective, outcome))
        if len(table.judged) >= TRAININGS or trial.number == MOST_PROPOSALS:
            return trial.number + 1


def _truths(trained: Sequence[str], table: Table, objective: Objective) -> list[float]:
    """After each training, the truth of what has looked best by then."""
    best, truths = (-np.inf, 0.0), []
    for function in trained:
        seen = table.seen(function)
        if not seen.gate:
            best = max(best, (mean_skill(objective, seen), truth(objective, table.truth(function))))
        truths.append(best[1])
    return truths


def truth(objective: Objective, outcome: Outcome) -> float:
    """The mean skill of a function that was trained to the end, else 0."""
    return 0.0 if outcome.gate else mean_skill(objective, outcome)


# -- summing up --------------------------------------------------------------------------------------------------------


def summary(runs: Sequence[Run]) -> dict[str, Any]:
    """What a controller's runs come to."""
    best = [run.truths[-1] for run in runs]
    return {
        "best_mean": round(statistics.mean(best), 4),
        "best_sd": round(statistics.stdev(best), 4),
        "repeats": statistics.mean(run.repeats for run in runs),
        "proposals": round(statistics.mean(run.proposals for run in runs)),
        "seconds": round(statistics.median(run.seconds for run in runs), 1),
        "curve": {n: with_interval([run.truths[k] for run in runs]) for k, n in enumerate(CHECKPOINTS)},
    }


def with_interval(values: Sequence[float]) -> list[float]:
    """The mean and its 95% interval."""
    return [round(statistics.mean(values), 4), *interval(values)]


def paired(ours: Sequence[Run], theirs: Sequence[Run]) -> list[float]:
    """The difference of the final truths, seed by seed: its mean and 95% interval."""
    return with_interval([a.truths[-1] - b.truths[-1] for a, b in zip(ours, theirs, strict=True)])
