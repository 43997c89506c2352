"""The rerank of a run: who enters, the trainings, the table, the winner's export."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path

from rich.console import Console

from normact.launch import report, run_folder
from normact.launch.config import Config, check_meets, front_of, in_worker, pool_of, rerank_evaluator, rerank_task_of
from normact.launch.export import Target, write_export
from normact.launch.progress import trainings_progress
from normact.launch.setting import Setting
from normact.launch.standings import Standings, conditions_of, depends_on, keep
from normact.search.evaluate import Evaluator
from normact.search.history import History
from normact.search.ledger import Ledger
from normact.search.outcome import Outcome
from normact.search.pool import Pool
from normact.search.rerank import ENOUGH_SEEDS, Entrant, Rerank, Standing
from normact.search.task import Task
from normact.search.training import Recipe
from normact.search.trainings import Trainings
from normact.spaces.errors import InputError, unknown_name
from normact.spaces.space import Space


def check_rerank(setting: Setting, config: Config, space: Space) -> None:
    """Check the rerank's part of a config before hours are spent on the search, and say where it can show nothing.

    Raises:
        InputError: no baseline or an unknown one, a long list shorter than the finalists, an objective that a test
            split does not have, anchors that the space cannot fill or that do not suit the data, or held-out data that
            are the search's.
    """
    if not finalists_in(config):
        return
    _check_baselines(config, space)
    if 0 < longlist_in(config) < finalists_in(config):
        raise InputError(
            f"rerank.longlist={longlist_in(config)} is shorter than rerank.finalists={finalists_in(config)}: give more "
            "to choose from, or 0 to choose none"
        )
    if config["rerank"].get("data") == config["data"]:
        name = config["data"]["_target_"].rpartition(".")[2]
        raise InputError(
            f"rerank.data holds nothing out: it is the search's own data, {name}; choose other data, or leave out "
            "data@rerank.data"
        )
    task = rerank_task_of(config)
    check_meets(task, space)
    task.test_objective(config["rerank"]["objective"])
    if (seeds := config["rerank"]["seeds"]) < ENOUGH_SEEDS:
        setting.say(f"# note: rerank.seeds={seeds} gives preliminary verdicts; a claim needs {ENOUGH_SEEDS} or more")


def finalists_in(config: Config) -> int:
    """How many finalists a config's rerank has at most: those that it names, or so many of the best."""
    return len(config["rerank"].get("only", [])) or int(config["rerank"]["finalists"])


def longlist_in(config: Config) -> int:
    """How many finds are tried on validation, of which the best are the finalists; 0 where all finalists are named."""
    return 0 if config["rerank"].get("only") else int(config["rerank"].get("longlist", 0))


def _check_baselines(config: Config, space: Space) -> None:
    known, wanted = space.baselines(), config["rerank"]["baselines"]
    if not wanted:
        raise InputError(f"rerank.baselines is empty: name what finds are compared with, of {', '.join(known)}")
    for name in wanted:
        if name not in known:
            raise unknown_name("baseline", name, known, " in rerank.baselines")
    if len(set(wanted)) != len(wanted):
        raise InputError(f"rerank.baselines names one twice: {', '.join(wanted)}")


def run_rerank(setting: Setting, config: Config, folder: Path, ledger: Ledger, evaluator: Evaluator) -> int:
    """Rerank a run's finalists, print the table, export the best one by validation. The exit status: 130 for Ctrl-C."""
    console = setting.console
    history = History(ledger)
    entrants = entrants_of(config, history, evaluator, ledger.meta("known_fingerprints", {}))
    if all(entrant.role == "baseline" for entrant in entrants):
        names = [objective.name for objective in front_of(config, evaluator.task)]
        where = f" on the front of {' and '.join(names)}" if len(names) > 1 else ""
        setting.say(f"no rerank: nothing{where} computes something else than the baselines; search longer")
        return 0
    task, own = rerank_task_of(config), run_folder.read_config(folder)
    objective = task.test_objective(config["rerank"]["objective"])
    try:
        with closing(pool_of(config, in_worker(rerank_evaluator, config), setting.module_paths)) as pool:
            rows = _rerank(console, config, ledger, entrants, task, pool)
    except KeyboardInterrupt:
        overrides = "" if config["rerank"] == own["rerank"] else " and the same overrides"
        setting.say(f"stopped; what was trained is recorded. Go on with: normact rerank {folder}{overrides}")
        return 130
    standings = Standings(conditions_of(config, task), rows)
    keep(ledger, own, config, standings)
    report.print_standings(console, standings)
    if config["export"]["winner"]:
        finalists = [row for row in rows if row.entrant.role == "finalist"]
        winner = max(finalists, key=lambda row: objective.skill(row.validation))
        number = int(winner.entrant.name.lstrip("#").split()[0])
        _export_winner(setting, folder, ledger, history, evaluator, number)
    return 0


def _rerank(
    console: Console, config: Config, ledger: Ledger, entrants: list[Entrant], task: Task, pool: Pool
) -> list[Standing]:
    seconds = config["limits"]["train_seconds"]
    trainings = Trainings(depends_on(config), ledger, pool, seconds, reads_test=True)
    objective = task.test_objective(config["rerank"]["objective"])
    seeds, first = config["rerank"]["seeds"], config["rerank"].get("first_seed", 0)
    grid, keep = grid_of(config, task.recipe), finalists_in(config)
    judged = Rerank(entrants, seeds, objective, trainings, grid, first_seed=first, keep=keep)
    with trainings_progress(console, "rerank") as on_progress:
        return judged.run(on_progress)


def grid_of(config: Config, recipe: Recipe) -> list[float]:
    """The learning rates that entrants choose from: that of the rerank's recipe times each factor."""
    return [recipe.lr * factor for factor in config["rerank"].get("lr_factors", [])]


def entrants_of(config: Config, history: History, evaluator: Evaluator, known: dict[str, str]) -> list[Entrant]:
    """The finalists of a run, and the baselines. A find that is a baseline is no finalist.

    Raises:
        InputError: `rerank.only` names a candidate that is none of the run, was rejected, or is a baseline.
    """
    space, baselines = evaluator.space, evaluator.space.baselines()
    names = {fingerprint: name for name, fingerprint in known.items()}
    wanted = config["rerank"]["baselines"]
    entrants = []
    for outcome in _named(config, history, names) or _best(config, history, evaluator, names):
        data = history.record(outcome.number).candidate
        candidate = space.from_json(data)
        called = f" = {names[outcome.fingerprint]}" if outcome.fingerprint in names else ""
        text = report.readable(space, candidate)
        entrants.append(Entrant(f"#{outcome.number}{called}", "finalist", data, text))
    for name in wanted:
        candidate = baselines[name]
        entrants.append(Entrant(name, "baseline", space.to_json(candidate), report.readable(space, candidate)))
    return entrants


def _named(config: Config, history: History, names: Mapping[str, str]) -> list[Outcome]:
    """The candidates that a config names as finalists."""
    numbers = config["rerank"].get("only", [])
    found = {number: history.outcome(number) for number in numbers}
    for number, outcome in found.items():
        if outcome is None:
            raise InputError(f"rerank.only={numbers}: the run has no outcome #{number}; `normact show` lists them")
        if not outcome.accepted:
            raise InputError(
                f"rerank.only={numbers}: #{number} was rejected by gate {outcome.gate}; name accepted ones"
            )
        if (name := names.get(outcome.fingerprint, "")) in config["rerank"]["baselines"]:
            raise InputError(f"rerank.only={numbers}: #{number} computes the same as the baseline {name}")
    return [outcome for outcome in found.values() if outcome]


def _best(config: Config, history: History, evaluator: Evaluator, names: Mapping[str, str]) -> list[Outcome]:
    """The best distinct finds."""
    count = max(config["rerank"]["finalists"], longlist_in(config))
    wanted = config["rerank"]["baselines"]
    enough = count + len(names)  # a known layer is among the outcomes at most once
    front = front_of(config, evaluator.task)
    ranked = history.front(front) if len(front) > 1 else history.ranked(front[0], enough)
    finds = [o for o in ranked.get(history.device or "", []) if names.get(o.fingerprint) not in wanted]
    return finalists_of(finds, count, spread=len(front) > 1)


def finalists_of(finds: Sequence[Outcome], count: int, spread: bool) -> list[Outcome]:
    """So many of the finds, best first: the first ones; or spread evenly along a front, its first among them."""
    if not spread or len(finds) <= count:
        return list(finds[:count])
    return [finds[round(i * (len(finds) - 1) / max(count - 1, 1))] for i in range(count)]


def _export_winner(
    setting: Setting, folder: Path, ledger: Ledger, history: History, evaluator: Evaluator, number: int
) -> None:
    exports = folder / run_folder.EXPORTS
    exports.mkdir(exist_ok=True)
    candidate = evaluator.space.from_json(history.record(number).candidate)
    name = f"layer_{evaluator.space.key(candidate)[:8]}"
    path = exports / f"{name}.py"
    if path.exists():
        setting.say(f"already exported: {path}")
        return
    try:
        write_export(setting, folder, ledger, history, evaluator, number, Target(path))
    except InputError as problem:
        setting.say(f"not exported: {problem}")
