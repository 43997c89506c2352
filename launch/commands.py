"""What the commands on runs do: search, resume, rerank."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

import numpy as np
import yaml

from normact.launch import report, run_folder
from normact.launch.changes import RESUME, changed
from normact.launch.config import (
    Config,
    budget_of,
    check_device,
    check_meets,
    controller_of,
    front_of,
    gates_of,
    in_worker,
    leaders_of,
    limits_of,
    pool_of,
    rerank_evaluator,
    search_evaluator,
    task_of,
)
from normact.launch.interrupt import stop_on_interrupt
from normact.launch.progress import search_progress
from normact.launch.reranking import check_rerank, finalists_in, grid_of, longlist_in, run_rerank
from normact.launch.setting import Setting
from normact.launch.standings import conditions_of
from normact.search.controllers import Start
from normact.search.engine import Engine
from normact.search.evaluate import Evaluator
from normact.search.funnel import ACCEPTED
from normact.search.history import History
from normact.search.ledger import Ledger, check_durability
from normact.search.pool import Pool
from normact.search.rerank import trainings_in
from normact.spaces.errors import InputError
from normact.spaces.space import Space


def search(setting: Setting, config: Config) -> int:
    """`normact search`: a new run, its rerank and export. Nothing is written before all of the config was checked."""
    folder = Path(config["run_dir"])
    run_folder.check_new(folder)
    evaluator = checked_evaluator(setting, config)
    check_rerank(setting, config, evaluator.space)
    starts = starts_of(config, evaluator.space)
    controller_of(config, evaluator.space, front_of(config, evaluator.task), starts)
    pool = pool_of(config, in_worker(search_evaluator, config), setting.module_paths)
    with closing(pool), run_folder.create(folder, config) as ledger:
        origins = [[evaluator.space.to_json(start.candidate), start.origin] for start in starts]
        objectives = [asdict(objective) for objective in evaluator.task.objectives.values()]
        ledger.append([], {"objectives": objectives, "starts": origins})
        finished = _search(setting, config, folder, ledger, evaluator, starts, pool)
    return _after(setting, config, folder, evaluator, finished)


def resume(setting: Setting, folder: Path, overrides: Sequence[str] = (), config_dir: Path | None = None) -> int:
    """`normact resume`: go on with a run that was stopped or killed, or that ended and gets a larger budget.

    The config and the numbers are those of the run; overrides change its budget, pool or rerank for once.

    Raises:
        InputError: the run cannot be read, or see `changed`.
    """
    with run_folder.open_ledger(folder, write=True) as ledger:
        History(ledger).check()
        config = changed(run_folder.trusted_config(folder, setting.allow), overrides, config_dir, RESUME)
        evaluator = checked_evaluator(setting, config)
        check_rerank(setting, config, evaluator.space)
        kept = ledger.meta("starts")
        if kept is None:  # killed in its first moment
            starts = starts_of(config, evaluator.space)
        else:
            starts = [Start(evaluator.space.from_json(data), origin) for data, origin in kept]
        with closing(pool_of(config, in_worker(search_evaluator, config), setting.module_paths)) as pool:
            finished = _search(setting, config, folder, ledger, evaluator, starts, pool)
    return _after(setting, config, folder, evaluator, finished)


def _after(setting: Setting, config: Config, folder: Path, evaluator: Evaluator, finished: bool) -> int:
    """What follows a search: the rerank and the export, or how to go on."""
    if not finished:
        setting.say(f"stopped; everything is recorded. Go on with: normact resume {folder}")
        return 130
    with run_folder.open_ledger(folder, write=True) as ledger:
        if not History(ledger).funnel.ended[ACCEPTED]:
            setting.say("Nothing passed every gate: search longer (budget.minutes), or loosen the gates.")
        elif finalists_in(config):
            return run_rerank(setting, config, folder, ledger, evaluator)
    return 0


def rerank(setting: Setting, folder: Path, overrides: Sequence[str], config_dir: Path | None) -> int:
    """`normact rerank`: the finalists of a run against baselines, on fresh seeds; overrides change its config for once.

    Raises:
        InputError: the run has no finalist, or see `changed` and `check_rerank`.
    """
    with run_folder.open_ledger(folder, write=True) as ledger:
        history = History(ledger)
        history.check()
        config = changed(run_folder.trusted_config(folder, setting.allow), overrides, config_dir)
        evaluator = checked_evaluator(setting, config)
        if not finalists_in(config):
            raise InputError("a rerank needs a finalist, got rerank.finalists=0; give 1 or more")
        if not history.funnel.ended[ACCEPTED]:
            raise InputError(f"{folder} has no finalist: nothing passed every gate; search longer, or loosen the gates")
        check_rerank(setting, config, evaluator.space)
        return run_rerank(setting, config, folder, ledger, evaluator)


def checked_evaluator(setting: Setting, config: Config) -> Evaluator:
    """The search's evaluator, made in the driver too: what is wrong with the config is said before anything runs."""
    evaluator = search_evaluator(config)
    for note in evaluator.space.notes:
        setting.say(f"# note: {note}")  # as a comment, so that what a dry run prints stays YAML
    check_meets(evaluator.task, evaluator.space)
    evaluator.task.objective()
    evaluator.task.data.load()  # a missing folder is said now, not by a worker later
    check_device(config)
    check_durability(config["durability"])
    budget_of(config)
    limits_of(config)
    leaders_of(config, evaluator)
    return evaluator


def starts_of(config: Config, space: Space) -> list[Start]:
    """The candidates to start from: names, expressions, or `run:DIR` for the ten best of another run.

    Raises:
        InputError: one cannot be read or is none of the space.
    """
    starts: list[Start] = []
    for text in config["start_from"]:
        if text.startswith("run:"):
            starts += _best_of_run(Path(text[4:]), config, space)
        else:
            starts.append(Start(space.parse(text), text))
    for start in starts:
        if reason := space.invalid(start.candidate):
            raise InputError(f"start_from {start.origin!r} is none of the space: {reason}")
    return starts


def _best_of_run(folder: Path, config: Config, space: Space, count: int = 10) -> list[Start]:
    objective = task_of(config).objective()
    with run_folder.open_ledger(folder) as ledger:
        history, measured = History(ledger), ledger.measured()
        if not measured:
            raise InputError(f"start_from run:{folder} has nothing to start from: nothing passed every gate there")
        if objective.name not in measured:
            raise InputError(
                f"start_from run:{folder} cannot be ranked: it never measured {objective.name}, only "
                f"{', '.join(measured)}; put one of those first in objective=[...]"
            )
        best = history.ranked(objective, count)[history.device or ""]
        numbers = [outcome.number for outcome in best]
        return [Start(space.from_json(history.record(n).candidate), f"run:{folder}#{n}") for n in numbers]


def _search(
    setting: Setting,
    config: Config,
    folder: Path,
    ledger: Ledger,
    evaluator: Evaluator,
    starts: Sequence[Start],
    pool: Pool,
) -> bool:
    """Run the engine and print what it found; False where Ctrl-C ended it."""
    console, space, objective = setting.console, evaluator.space, evaluator.task.objective()
    front = front_of(config, evaluator.task)
    known = run_folder.check_fingerprints(ledger, space)
    controller = controller_of(config, space, front, starts)
    leaders = leaders_of(config, evaluator)
    engine = Engine(
        space,
        controller,
        ledger,
        pool,
        budget_of(config),
        objective,
        config["seed"],
        limits_of(config),
        leaders=leaders,
    )
    again = engine.replay()
    if engine.funnel.proposals:
        setting.say(f"resumed at {engine.funnel.proposals} proposals, {again} of them judged again")
    gates = [gate.name for gate in gates_of(config)]
    progress = search_progress(console, gates, engine.budget, objective, engine.describe)
    with stop_on_interrupt(engine.stop), progress as on_progress:
        finished = engine.run(on_progress)
    if engine.exhausted:
        setting.say("ended early: nothing but duplicates was proposed any more; widen the space")
    report.print_funnel(console, engine.funnel, gates, engine.seconds)
    if said := controller.report():
        setting.say(said)
    report.print_top(console, report.top_rows(History(ledger), space, objective, known, 5), objective)
    if len(front) > 1:
        report.print_front(console, report.front_rows(History(ledger), space, front, known))
    setting.say(f"run folder: {folder}")
    return finished


def dry_run(setting: Setting, config: Config) -> int:
    """`normact search --dry-run`: the resolved config, and how long it would take."""
    run_folder.check_new(Path(config["run_dir"]))
    evaluator = checked_evaluator(setting, config)
    check_rerank(setting, config, evaluator.space)
    starts = starts_of(config, evaluator.space)
    controller_of(config, evaluator.space, front_of(config, evaluator.task), starts)
    setting.console.file.write(yaml.safe_dump(config, sort_keys=False))
    minutes = config["budget"]["minutes"]
    workers = config["pool"].get("workers", 1)
    if minutes is None:
        search_seconds = config["budget"]["proposals"] * _seconds_per_training(evaluator) / workers
        text = f"at most {search_seconds / 60:.1f} minutes, if every proposal were trained to the end"
    else:
        text = f"{minutes:g} minutes"
    setting.say(f"# search: {text}")
    if finalists := finalists_in(config):
        judge = rerank_evaluator(config)
        baselines, seeds = len(config["rerank"]["baselines"]), config["rerank"]["seeds"]
        grid = grid_of(config, judge.task.recipe)
        trainings = sum(trainings_in(max(finalists, longlist_in(config)), baselines, seeds, grid, finalists))
        seconds = trainings * _seconds_per_training(judge) / workers
        data = conditions_of(config, judge.task).data
        setting.say(f"# rerank: {trainings} trainings on {data}, about {seconds / 60:.1f} minutes")
    return 0


def _seconds_per_training(evaluator: Evaluator, steps: int = 3) -> float:
    """A first baseline's time for a few steps on every anchor, scaled up; a sample's where there is no baseline."""
    space, task = evaluator.space, evaluator.task
    candidate = next(iter(space.baselines().values()), None) or space.sample(np.random.default_rng(0))
    seconds = 0.0
    for anchor in task.anchors:
        training = task.start(anchor, lambda site: space.build(candidate, site), 0)
        training.run_to(1)
        start = time.perf_counter()
        training.run_to(1 + steps)
        seconds += (time.perf_counter() - start) / steps * task.recipe.steps
    return seconds
