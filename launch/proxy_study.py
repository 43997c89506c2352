"""`normact proxy`: how far short trainings can be trusted on a task, and what to score candidates by."""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from normact.launch import report, run_folder
from normact.launch.commands import checked_evaluator
from normact.launch.config import Config, check_meets, in_worker, pool_of, proxy_evaluator, transfer_evaluator
from normact.launch.progress import trainings_progress
from normact.launch.setting import Setting
from normact.launch.standings import depends_on
from normact.search.evaluate import Evaluator
from normact.search.ledger import Ledger
from normact.search.objective import Objective
from normact.search.outcome import Outcome, mean_skill
from normact.search.pool import Job
from normact.search.proxy import SLACK, ProxyRow, proxy_rows, recommend
from normact.search.training import Recipe
from normact.search.trainings import Trainings, Wanted
from normact.spaces.errors import InputError
from normact.spaces.space import Space

FIRST_LONG_SEED = 3_000_000
"""Seeds of long trainings count from here: none is that of a short one."""

SCORES = {
    "training_loss": {"_target_": "normact.search.measures.TrainingLoss"},
    "extrapolated_loss": {"_target_": "normact.search.measures.ExtrapolatedLoss"},
}
"""Measured beside what the config asks for."""

TRIED_PER_SURVIVOR = 400
LEAST_LAYERS = 5
RESULT = "proxy.json"


@dataclass(frozen=True)
class Plan:
    """What a study trains.

    Args:
        steps: lengths of the short trainings, each with a schedule of its own.
        seeds: short trainings a layer, at each length.
        times: the long trainings have so many times the longest short one's steps.
        long_seeds: long trainings a layer.
        candidates: random ones that pass screening, beside the space's known layers.
        transfer: whether the long trainings are on the networks and data of the rerank, not on those of the search.
        least: a layer whose long trainings have less skill than this counts as not trained, and is left out.
        slack: the cheapest score whose rank correlation is within this of the best is recommended.
    """

    steps: tuple[int, ...] = (50, 100, 200)
    seeds: int = 3
    times: int = 10
    long_seeds: int = 2
    candidates: int = 50
    transfer: bool = False
    least: float = 0.2
    slack: float = SLACK

    def __post_init__(self) -> None:
        if not self.steps or min(self.steps) < 2 or len(set(self.steps)) != len(self.steps):
            raise InputError(f"--steps needs different numbers of at least 2, got {list(self.steps)}")
        if self.seeds < 2:
            raise InputError(f"--seeds must be at least 2, or there is no spread between seeds, got {self.seeds}")
        if self.times < 1 or self.long_seeds < 1 or self.candidates < 0:
            raise InputError(
                f"--times and --long-seeds must be at least 1 and --candidates at least 0, got {self.times}, "
                f"{self.long_seeds} and {self.candidates}"
            )
        if self.slack < 0:
            raise InputError(f"--slack must be at least 0, got {self.slack}")


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `normact proxy`."""
    plan = Plan()
    parser.add_argument("--steps", default=",".join(map(str, plan.steps)), help="of short trainings (%(default)s)")
    parser.add_argument("--seeds", type=int, default=plan.seeds, help="short trainings a layer (%(default)s)")
    parser.add_argument("--times", type=int, default=plan.times, help="so much longer are the long ones (%(default)s)")
    parser.add_argument("--long-seeds", type=int, default=plan.long_seeds, help="long trainings a layer (%(default)s)")
    parser.add_argument("--candidates", type=int, default=plan.candidates, help="random layers (%(default)s)")
    parser.add_argument("--transfer", action="store_true", help="long trainings on the networks and data of the rerank")
    parser.add_argument("--slack", type=float, default=plan.slack, help="of rank correlation (%(default)s)")


def plan_of(options: argparse.Namespace) -> Plan:
    """The plan that the options ask for.

    Raises:
        InputError: one is out of range or no number.
    """
    try:
        steps = tuple(int(text) for text in options.steps.split(","))
    except ValueError:
        raise InputError(f"--steps needs whole numbers with commas between, got {options.steps!r}") from None
    return Plan(
        steps=steps,
        seeds=options.seeds,
        times=options.times,
        long_seeds=options.long_seeds,
        candidates=options.candidates,
        transfer=options.transfer,
        slack=options.slack,
    )


def proxy(setting: Setting, config: Config, plan: Plan) -> int:
    """`normact proxy`: train, print the table, and write it to the run folder. The exit status: 130 for Ctrl-C.

    The same command with the same run_dir goes on where it was stopped.
    """
    objectives = config.get("objective", {})
    config["objective"] = {**objectives, **{name: part for name, part in SCORES.items() if name not in objectives}}
    folder = Path(config["run_dir"])
    evaluator = checked_evaluator(setting, config)
    task = evaluator.task
    judge = transfer_evaluator(config).task if plan.transfer else task
    check_meets(judge, evaluator.space)
    truth = judge.objective(config["rerank"]["objective"])
    long, seeds = plan.times * max(plan.steps), range(FIRST_LONG_SEED, FIRST_LONG_SEED + plan.long_seeds)
    with _ledger(folder, config, plan) as ledger:
        layers = _layers(config["seed"], evaluator, plan.candidates, ledger)
        last = _wanted(layers, judge.recipe, long, seeds)
        try:
            with _trainings(setting, config, ledger, proxy_evaluator) as trainings:
                short = [_wanted(layers, task.recipe, steps, range(plan.seeds)) for steps in plan.steps]
                here = [] if plan.transfer else [last]
                outcomes = _outcomes(setting.console, trainings, [*short, *here])
            if plan.transfer:
                with _trainings(setting, config, ledger, transfer_evaluator) as trainings:
                    outcomes += _outcomes(setting.console, trainings, [last])
        except KeyboardInterrupt:
            setting.say("stopped; what was trained is recorded. Go on with the same command")
            return 130
    skills = {
        (name, steps): _table(part, objective, plan.seeds)
        for steps, part in zip(plan.steps, outcomes[:-1], strict=True)
        for name, objective in task.objectives.items()
        if task.measures[name].quality
    }
    true = _table(outcomes[-1], truth, plan.long_seeds).mean(1)
    _conclude(setting, folder, plan, truth.name, list(judge.anchors), skills, true)
    return 0


def _conclude(
    setting: Setting,
    folder: Path,
    plan: Plan,
    truth: str,
    anchors: Sequence[str],
    skills: Mapping[tuple[str, int], np.ndarray],
    true: np.ndarray,
) -> None:
    """Write and print what the skills say: (layers, seeds) by score and steps, and those of long trainings, (layers,).

    Raises:
        InputError: too few layers were trained.
    """
    kept = np.isfinite(true) & (true >= plan.least)
    for values in skills.values():
        kept &= np.isfinite(values).all(1)
    if kept.sum() < LEAST_LAYERS:
        raise InputError(
            f"only {kept.sum()} of {len(true)} layers were trained to a skill of {plan.least:g}, and {LEAST_LAYERS} "
            "are needed; give longer --steps, or more --candidates"
        )
    rows = proxy_rows({key: values[kept] for key, values in skills.items()}, true[kept])
    chosen = recommend(rows, plan.slack)
    data = {"plan": asdict(plan), "truth": truth, "anchors": list(anchors), "layers": int(kept.sum()), "of": len(true)}
    data |= {"rows": [asdict(row) for row in rows], "recommended": asdict(chosen)}
    (folder / RESULT).write_text(json.dumps(data, indent=1) + "\n")
    print_rows(setting.console, rows, chosen)
    setting.say(
        f"{kept.sum()} of {len(true)} layers count; the others did not train. Long trainings: "
        f"{plan.times * max(plan.steps)} steps, {plan.long_seeds} other seeds, by {truth}, on {', '.join(anchors)}."
    )
    setting.say(
        f"Recommended: objective=[{chosen.score},...] recipe.steps={chosen.steps} with {chosen.seeds} seed(s): rank "
        f"correlation {chosen.correlation:.3f} ({chosen.low:.3f} to {chosen.high:.3f}) in the better half"
    )


def _ledger(folder: Path, config: Config, plan: Plan) -> Ledger:
    """The study's ledger, new or as it was left.

    Raises:
        InputError: the folder holds something else, or the study of another config.
    """
    asked = json.loads(json.dumps({"plan": asdict(plan), "config": config}))
    if not folder.exists() or not any(folder.iterdir()):
        ledger = run_folder.create(folder, config)
        ledger.set_meta("proxy", asked)
        return ledger
    ledger = run_folder.open_ledger(folder, write=True)
    if _study(ledger.meta("proxy", {})) != _study(asked):
        ledger.close()
        raise InputError(f"{folder} exists already, and is not this study; give another run_dir")
    return ledger


def _study(asked: Config) -> Config:
    """What makes it that study: where it runs does not count, nor how it is judged; what anchors take from the data
    stands in them.
    """
    left_out = {"config": ("run_dir", "pool", "input"), "plan": ("slack", "least")}
    asked = {"config": asked.get("config", {}), "plan": {"transfer": False, **asked.get("plan", {})}}
    return {
        part: {name: value for name, value in asked[part].items() if name not in names}
        for part, names in left_out.items()
    }


def _layers(seed: int, evaluator: Evaluator, count: int, ledger: Ledger) -> list[tuple[str, Any]]:
    """Known layers and so many random survivors of screening, by name and JSON.

    They are distinct by fingerprint, as far as it is taken.

    Raises:
        InputError: too few pass.
    """
    if (kept := ledger.meta("proxy_layers")) is not None:
        return [(name, data) for name, data in kept]
    space = evaluator.space
    found: dict[str, tuple[str, Any]] = {}
    for name, candidate in space.baselines().items():
        outcome = _screened(evaluator, space.to_json(candidate), seed)
        found.setdefault(outcome.fingerprint or name, (name, space.to_json(candidate)))
    known = len(found)
    for data in _random(space, seed, TRIED_PER_SURVIVOR * count):
        if len(found) - known >= count:
            break
        outcome = _screened(evaluator, data, seed)
        if not outcome.gate:
            candidate = space.from_json(data)
            found.setdefault(outcome.fingerprint or space.key(candidate), (report.readable(space, candidate), data))
    if len(found) - known < count:
        raise InputError(
            f"only {len(found) - known} of {count} random candidates passed screening; loosen the gates, or "
            "give fewer --candidates"
        )
    ledger.set_meta("proxy_layers", list(found.values()))
    return list(found.values())


def _random(space: Space, seed: int, most: int) -> Iterator[Any]:
    for number in range(most):
        rng = np.random.default_rng(np.random.SeedSequence([seed, number]))
        yield space.to_json(space.sample(rng))


def _screened(evaluator: Evaluator, data: Any, seed: int) -> Outcome:
    return evaluator(Job(0, "screen", ((0, data),), seed))[0]


@contextmanager
def _trainings(
    setting: Setting, config: Config, ledger: Ledger, build: Callable[[Config], Evaluator]
) -> Iterator[Trainings]:
    """Trainings by workers with such an evaluator."""
    parts = ("data", "objective", "space", "task", "anchor", "recipe")
    depends = depends_on(config) if build is transfer_evaluator else {part: config[part] for part in parts}
    with closing(pool_of(config, in_worker(build, config), setting.module_paths)) as pool:
        yield Trainings(depends, ledger, pool, config["limits"]["train_seconds"])


def _wanted(layers: Sequence[tuple[str, Any]], recipe: Recipe, steps: int, seeds: Sequence[int]) -> list[Wanted]:
    """Trainings of all layers under all seeds, of so many steps; the warm-up grows with them."""
    changes = {"steps": steps, "warmup": min(steps - 1, round(recipe.warmup * steps / recipe.steps))}
    return [Wanted(n, name, data, seed, changes) for n, (name, data) in enumerate(layers) for seed in seeds]


def _outcomes(console: Console, trainings: Trainings, parts: Sequence[list[Wanted]]) -> list[list[Outcome]]:
    """The outcomes of what is wanted, in the same parts."""
    with trainings_progress(console, "proxy") as on_progress:
        outcomes = iter(trainings.run([want for part in parts for want in part], on_progress))
    return [list(itertools.islice(outcomes, len(part))) for part in parts]


def _table(outcomes: Sequence[Outcome], objective: Objective, seeds: int) -> np.ndarray:
    """Mean skills, (layers, seeds); minus infinity where a training failed."""
    values = [-np.inf if outcome.gate else mean_skill(objective, outcome) for outcome in outcomes]
    return np.array(values).reshape(-1, seeds)


def print_rows(console: Console, rows: Sequence[ProxyRow], chosen: ProxyRow) -> None:
    """The study's table, the recommended row marked."""
    table = Table(title="Ways to score a candidate: rank correlation with long trainings", title_justify="left")
    table.add_column("score")
    for column in ("steps", "seeds", "better half", "95% interval", "all", "signal/noise", "paired"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(
            row.score,
            str(row.steps),
            str(row.seeds),
            f"{row.correlation:.3f}{' <' if row == chosen else ''}",
            f"{row.low:.3f} to {row.high:.3f}",
            f"{row.overall:.3f}",
            f"{row.unpaired:.2f}",
            f"{row.paired:.2f}",
        )
    console.print(table)
