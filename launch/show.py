"""`normact show`: what a run found."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from normact.launch import report, run_folder
from normact.launch.config import Config, gates_of, space_of, task_of
from normact.launch.setting import Setting
from normact.launch.standings import standings_of
from normact.search.funnel import ACCEPTED
from normact.search.history import History
from normact.search.objective import Objective
from normact.spaces.errors import unknown_name


def add_options(parser: argparse.ArgumentParser) -> None:
    """The command's own options."""
    parser.add_argument("--top", type=_at_least_one, default=10, help="how many layers (10)")
    parser.add_argument(
        "--front",
        type=_names,
        default=(),
        metavar="NAMES",
        help="objectives whose Pareto front is shown, such as validation_loss,parameters; the run's front if left out",
    )
    parser.add_argument("--json", action="store_true", help="as JSON")


def _at_least_one(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return int(text)


def _names(text: str) -> list[str]:
    names = list(dict.fromkeys(name.strip() for name in text.split(",")))
    if not all(names):
        raise argparse.ArgumentTypeError(f"must be names with a comma between, got {text!r}")
    return names


def show(setting: Setting, options: argparse.Namespace) -> int:
    """`normact show`: the best layers, the Pareto front, the funnel and the rerank of a run, also while it goes on.

    It reads what it shows alone, so that a run of millions is shown at once; the other commands check all of it.
    """
    config = run_folder.trusted_config(options.run_dir, setting.allow)
    space = space_of(config)
    gates = [gate.name for gate in gates_of(config)]
    with run_folder.open_ledger(options.run_dir) as ledger:
        history = History(ledger)
        objective = next(iter((history.objectives or task_of(config).objectives).values()))
        front = _front(history, config, options.front)
        known, reranks = ledger.meta("known_fingerprints", {}), standings_of(ledger, config)
        seconds, reads = float(ledger.meta("active_seconds", 0.0)), ledger.count("test_read")
        rows, funnel = report.top_rows(history, space, objective, known, options.top), history.funnel
        front_rows = report.front_rows(history, space, front, known) if front else {}
    if options.json:
        data = {
            "run": options.run_dir.name,
            "proposals": funnel.proposals,
            "accepted": funnel.ended[ACCEPTED],
            "trained_past_step_10": funnel.trained,
            "same_key": funnel.same_key,
            "fingerprinted": funnel.fingerprinted,
            "same_fingerprint": funnel.same_fingerprint,
            "seconds": seconds,
            "funnel": [{"ended_at": n, "candidates": c, "left": left} for n, c, left in funnel.rows(gates)],
            "worker_seconds": dict(funnel.seconds),
            "objective": objective.name,
            "top": rows,
            "front": front_rows,
            "reranks": [standings.to_json() for standings in reranks],
            "test_reads": reads,
        }
        report.print_json(setting.console, data)
        return 0
    report.print_top(setting.console, rows, objective)
    report.print_front(setting.console, front_rows)
    report.print_funnel(setting.console, funnel, gates, seconds)
    for standings in reranks:
        report.print_standings(setting.console, standings)
    setting.say(f"the test split was read by {reads} rerank(s)")
    return 0


def _front(history: History, config: Config, asked: Sequence[str]) -> list[Objective]:
    """The objectives of the front that is shown: those asked for, or the run's where these are several.

    Raises:
        InputError: the run does not measure one.
    """
    ours: list[Any] = config.get("front") or []
    names = asked or (ours if len(ours) > 1 else [])
    known = history.objectives  # data need not be at hand to look at a run
    for name in names:
        if name not in known:
            raise unknown_name("objective", name, known, " in --front")
    return [known[name] for name in names]
