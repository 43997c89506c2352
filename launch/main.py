"""The command line: `normact search | proxy | resume | show | rerank | export | curves | check | layers | ops`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console

from normact.launch import commands, curves, export, look, proxy_study, show
from normact.launch.config import add_module_paths, compose_config
from normact.launch.run_folder import versions
from normact.launch.setting import Setting
from normact.spaces.errors import InputError

PLAIN_WIDTH = 140
"""Columns of tables where there is no terminal to ask."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; exit status 2 for what a person can mend, with one line that says how."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=PLAIN_WIDTH)
    options = _parsed(arguments)
    torch.set_num_threads(1)
    try:
        return _run(console, options)
    except InputError as problem:
        print(f"normact: {problem}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("normact: stopped", file=sys.stderr)
        return 130


def _run(console: Console, options: argparse.Namespace) -> int:
    paths = [str(Path.cwd())]
    if getattr(options, "config_dir", None):
        paths.insert(0, str(options.config_dir.absolute()))
    add_module_paths(paths)
    setting = Setting(console, tuple(paths), tuple(getattr(options, "allow", ())))
    match options.command:
        case "search":
            config = compose_config(options.overrides, options.config_dir)
            return commands.dry_run(setting, config) if options.dry_run else commands.search(setting, config)
        case "check":
            return look.check(setting, compose_config(options.overrides, options.config_dir), options.expression)
        case "proxy":
            plan = proxy_study.plan_of(options)
            return proxy_study.proxy(setting, compose_config(options.overrides, options.config_dir), plan)
        case "resume":
            return commands.resume(setting, options.run_dir, options.overrides, options.config_dir)
        case "rerank":
            return commands.rerank(setting, options.run_dir, options.overrides, options.config_dir)
        case "show":
            return show.show(setting, options)
        case "export":
            return export.export_command(setting, options)
        case "curves":
            return curves.curves(setting, options.run_dir, options.candidate, options.top, options.threshold)
        case "layers":
            return look.layers(console)
        case _:
            return look.ops(console)


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options; overrides may also follow an option, which argparse alone would not take."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    stray = [text for text in rest if text.startswith("-") or ("=" not in text and text[0] not in "+~")]
    if stray or (rest and not hasattr(options, "overrides")):
        parser.error(f"unrecognized arguments: {' '.join(stray or rest)}")
    if rest:
        options.overrides = [*options.overrides, *rest]
    return options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="normact", description="Search for the activation and normalization layers of neural networks."
    )
    parser.add_argument("--version", action="version", version=f"normact {versions().get('normact')}")
    commands_ = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    search = commands_.add_parser("search", help="start a search; overrides such as data=fashion_mnist")
    search.add_argument("--dry-run", action="store_true", help="print the resolved config and estimated minutes")
    check = commands_.add_parser("check", help="one layer through all gates and a training")
    check.add_argument("expression", help="an expression or a name from `normact layers`")
    proxy = commands_.add_parser("proxy", help="how far short trainings can be trusted, and what to score by")
    proxy_study.add_options(proxy)
    for sub in (search, check, proxy):
        sub.add_argument("overrides", nargs="*", help="Hydra overrides")
        sub.add_argument("--config-dir", type=Path, help="a folder with YAML files and modules of your own")

    for name, text in (
        ("resume", "go on with a run that was stopped or killed, or give it a larger budget"),
        ("show", "the best layers, the funnel with its costs, the rerank"),
        ("rerank", "train the best finds and baselines on fresh seeds"),
        (
            "export",
            "write a found layer as one Python file that needs torch alone, or as a program, a formula, a picture",
        ),
        ("curves", "train a found KAN anew, and read its edges as curves and elementary functions"),
    ):
        sub = commands_.add_parser(name, help=text)
        sub.add_argument("run_dir", type=Path, metavar="RUN_DIR")
        sub.add_argument("--config-dir", type=Path, help="where modules and YAML files of your own lie")
        sub.add_argument(
            "--allow",
            action="append",
            default=[],
            metavar="MODULE",
            help="trust this module of your own in the config",
        )
        if name == "show":
            show.add_options(sub)
        if name in ("resume", "rerank"):
            sub.add_argument("overrides", nargs="*", help="Hydra overrides: budget.minutes=60, rerank.seeds=16")
        if name == "export":
            export.add_options(sub)
        if name == "curves":
            curves.add_options(sub)
    commands_.add_parser("layers", help="the catalogue of known layers")
    commands_.add_parser("ops", help="the op table, and which axes each index set means")
    return parser


if __name__ == "__main__":
    sys.exit(main())
