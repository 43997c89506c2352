"""Trials a second of Ray Tune and Optuna on the engine's trivial objective, two at a time.

A trial has one parameter, a seed: the graph is sampled from it (a parameter for every choice in a graph would cost
the storages about 25 times as much), and its loss is what the engine's workers answer.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import optuna

from normact.search.pool import Job
from normact.spaces import GraphSpace
from tests.judges import Judge

SEEDS = 2**31 - 1


def trivial_loss(space: GraphSpace, seed: int) -> float:
    """The loss of the graph that a seed stands for."""
    graph = space.sample(np.random.default_rng(seed))
    job = Job(0, "train", ((0, space.to_json(graph)),), 0)
    return Judge(space)(job)[0].scores[0].value


def ray_tune(loss: Callable[[int], float], seconds: float) -> dict[str, float]:
    """Function trainables, two CPUs, one each. Ray must be running."""
    from ray import tune

    def trainable(config: dict[str, Any]) -> None:
        tune.report({"loss": loss(config["seed"])})

    with tempfile.TemporaryDirectory() as folder:
        tuner = tune.Tuner(
            tune.with_resources(trainable, {"cpu": 1}),
            param_space={"seed": tune.randint(0, SEEDS)},
            tune_config=tune.TuneConfig(num_samples=-1, time_budget_s=seconds, max_concurrent_trials=2),
            run_config=tune.RunConfig(storage_path=folder, verbose=0),
        )
        start = time.perf_counter()
        results = tuner.fit()
        took = time.perf_counter() - start
        assert not results.num_errors, results.errors[0]
        done = sum(result.metrics is not None and "loss" in result.metrics for result in results)
    return {"per_s": round(done / took, 2), "trials": done, "seconds": round(took, 1)}


def optuna_journal(loss: Callable[[int], float], seconds: float) -> dict[str, float]:
    """Two processes that share a journal file."""
    return _two_processes("journal", loss, seconds)


def optuna_sqlite(loss: Callable[[int], float], seconds: float) -> dict[str, float]:
    """Two processes that share an SQLite file."""
    return _two_processes("sqlite", loss, seconds)


def _two_processes(kind: str, loss: Callable[[int], float], seconds: float) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        optuna.create_study(storage=_storage(kind, folder), study_name="trivial")
        with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as processes:
            runs = [processes.submit(_optimize, kind, folder, loss, seconds, seed) for seed in range(2)]
            counts = [run.result() for run in runs]
        study = optuna.load_study(storage=_storage(kind, folder), study_name="trivial")
        done = len(study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,)))
    assert done == sum(trials for trials, _ in counts)
    rate = sum(trials / took for trials, took in counts)
    return {"per_s": round(rate, 1), "trials": done, "seconds": round(max(took for _, took in counts), 1)}


def _optimize(kind: str, folder: str, loss: Callable[[int], float], seconds: float, seed: int) -> tuple[int, float]:
    """One process: trials that it made, and the time from its first one on."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.RandomSampler(seed)  # the cheapest
    study = optuna.load_study(storage=_storage(kind, folder), study_name="trivial", sampler=sampler)
    made: list[int] = []
    start = time.perf_counter()
    study.optimize(
        lambda trial: loss(trial.suggest_int("seed", 0, SEEDS)),
        timeout=seconds,
        callbacks=[lambda _, trial: made.append(trial.number)],
    )
    return len(made), time.perf_counter() - start


def _storage(kind: str, folder: str) -> Any:
    if kind == "sqlite":
        return optuna.storages.RDBStorage(f"sqlite:///{Path(folder) / 'study.sqlite'}")
    return optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(Path(folder) / "study.log")))
