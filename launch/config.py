"""Config in, objects out: composing with Hydra, filling in, instantiating, and saying what is wrong in one line."""

from __future__ import annotations

import difflib
import functools
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from normact.search.controllers import Controller, Start
from normact.search.engine import Budget, Limits
from normact.search.evaluate import Evaluator
from normact.search.gates import Gate
from normact.search.objective import Objective
from normact.search.pool import Evaluate, Pool
from normact.search.task import Task
from normact.spaces.errors import InputError, unknown_name
from normact.spaces.space import Space

Config = dict[str, Any]
"""A resolved config: plain dictionaries, lists and values."""


def compose_config(overrides: Sequence[str], config_dir: Path | None = None) -> Config:
    """The resolved config of a command line.

    Args:
        overrides: Hydra overrides, such as `data=fashion_mnist` or `budget.minutes=30`.
        config_dir: a folder with further YAML files, laid out like ours.

    Raises:
        InputError: an unknown group, option or key, a value that does not fit, or data that cannot be made.
    """
    if config_dir is not None and not config_dir.is_dir():
        raise InputError(f"--config-dir {config_dir} is no folder")
    search_path = [f"hydra.searchpath=[file://{config_dir.absolute()}]"] if config_dir else []
    GlobalHydra.instance().clear()
    try:
        with initialize_config_module("normact.conf", version_base="1.3"):
            composed = compose("config", [*search_path, *overrides])
        data = make(OmegaConf.to_container(composed.data, resolve=True), "data")
        composed.input = {"channels": data.shape[0], "size": data.shape[-1], "outputs": data.outputs}
        return OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)  # type: ignore[return-value]
    except (HydraException, OmegaConfBaseException) as problem:
        raise _explained(problem, search_path) from None
    finally:
        GlobalHydra.instance().clear()


def _explained(problem: Exception, search_path: list[str]) -> InputError:
    """Hydra's error as ours: what was not found, and the nearest that could be."""
    text = _one_line(problem)
    if match := re.search(r"Could not find '([^']+)/([^']+)' Available options in '[^']+': (.*?) Config search", text):
        return unknown_name(f"option of {match[1]}", match[2], match[3].split())
    if match := re.search(r"Could not override '([^']+)'", text):
        GlobalHydra.instance().clear()
        with initialize_config_module("normact.conf", version_base="1.3"):
            known = list(_keys(OmegaConf.to_container(compose("config", search_path))))
        close = difflib.get_close_matches(match[1], known, n=1, cutoff=0.5)
        nearest = f"; the nearest is {close[0]!r}" if close else ""
        return InputError(f"there is no setting {match[1]!r}{nearest}; `normact search --dry-run` prints all of them")
    return InputError(text)


def _keys(node: Any, prefix: str = "") -> Iterator[str]:
    for name, value in node.items():
        yield f"{prefix}{name}"
        if isinstance(value, dict):
            yield from _keys(value, f"{prefix}{name}.")


def make(node: Any, what: str, **kwargs: Any) -> Any:
    """Instantiate a config node.

    Raises:
        InputError: its `_target_` cannot be found or imported, or its arguments are refused.
    """
    try:
        return instantiate(node, _convert_="all", **kwargs)
    except InputError as problem:
        raise InputError(f"{what}: {problem}") from None
    except (HydraException, OmegaConfBaseException, ImportError, TypeError) as problem:
        raise InputError(f"{what}: {_one_line(problem)}") from None


def _one_line(problem: BaseException) -> str:
    """The message at the root of a chain of exceptions, on one line."""
    chain = [problem]
    while (deeper := chain[-1].__cause__ or chain[-1].__context__) is not None and deeper not in chain:
        chain.append(deeper)
    root = next((p for p in chain if isinstance(p, InputError)), None)
    if root is None and isinstance(problem, HydraException) and len(chain) > 1:
        lines = [*str(problem).splitlines()[:1], f"{type(chain[-1]).__name__}: {chain[-1]}"]
        return " ".join(" ".join(lines).split())
    return " ".join(str(root or problem).split())


def add_module_paths(paths: Sequence[str]) -> None:
    """Let a person's own modules be imported from these folders, before any other place."""
    for path in reversed([str(Path(p).absolute()) for p in paths]):
        if path not in sys.path:
            sys.path.insert(0, path)


def check_targets(config: Any, allowed: Sequence[str] = ()) -> None:
    """Check that a config from a run folder names only our own classes, or modules that were named again.

    Raises:
        InputError: a `_target_` is elsewhere: it would run whatever the file says.
    """
    for target in _targets(config):
        module = target.rpartition(".")[0]
        if not any(module == name or module.startswith(f"{name}.") for name in ("normact", *allowed)):
            raise InputError(
                f"the run's config names {target!r}, which is not ours; if you trust it, add --allow {module or target}"
            )


def _targets(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if "_target_" in node:
            yield str(node["_target_"])
        for value in node.values():
            yield from _targets(value)
    elif isinstance(node, list):
        for value in node:
            yield from _targets(value)


def space_of(config: Config) -> Space:
    """The space."""
    space = make(config["space"], "space")
    if not isinstance(space, Space):
        raise InputError(f"space: {config['space'].get('_target_')} makes a {type(space).__name__}, not a Space")
    return space


def task_of(config: Config) -> Task:
    """The task that candidates are searched on."""
    return _task(config, config.get("anchor", {}), config["recipe"])


def rerank_task_of(config: Config) -> Task:
    """The task of the rerank: the same data, other anchors and recipe, a test split."""
    return _task(config, config["rerank"].get("anchor", {}), config["rerank"]["recipe"])


def _task(config: Config, anchors: Config, recipe: Config) -> Task:
    return Task(
        make(config["data"], "data"),
        {name: make(node, f"anchor {name}") for name, node in anchors.items()},
        make(recipe, "recipe"),
        [make(node, f"objective {name}") for name, node in config.get("objective", {}).items()],
        config["task"]["device"],
    )


def gates_of(config: Config) -> list[Gate]:
    """The gates, in order; one that is null in the config is left out."""
    gates = {name: make(node, f"gate {name}") for name, node in config["gates"].items() if node}
    for name, gate in gates.items():
        if not isinstance(gate, Gate):
            raise InputError(f"gate {name}: a {type(gate).__name__} is no Gate")
    return list(gates.values())


def controller_of(config: Config, space: Space, objective: Objective, starts: Sequence[Start]) -> Controller:
    """The controller."""
    partial = make(config["controller"], "controller")
    try:
        return partial(space=space, objective=objective, seed=config["seed"], start_from=starts)
    except TypeError as problem:
        raise InputError(f"controller: {_one_line(problem)}; a controller's config needs `_partial_: true`") from None


def pool_of(config: Config, make_evaluate: Callable[[], Evaluate], module_paths: Sequence[str]) -> Pool:
    """The pool, its workers judging by `make_evaluate`."""
    node = dict(config["pool"])
    if node["_target_"].endswith("RayPool"):
        node["module_paths"] = list(module_paths)
    return make(node, "pool")(make_evaluate)


def check_device(config: Config) -> None:
    """Check that trainings will find the device that they are to run on.

    Raises:
        InputError: no such device, or a GPU that no worker of the pool would hold.
    """
    device, pool = config["task"]["device"], config["pool"]
    try:
        kind = torch.device(device).type
    except RuntimeError:
        raise InputError(f"task.device={device!r} is no torch device; use cpu or cuda") from None
    if kind != "cuda":
        return
    if "gpus_per_worker" in pool and not pool["gpus_per_worker"]:
        raise InputError(f"task.device={device} needs a GPU in each worker: give pool.gpus_per_worker=1 (or a share)")
    if "gpus_per_worker" not in pool and not torch.cuda.is_available():
        raise InputError(f"task.device={device}, but torch finds no GPU here; use task.device=cpu")


def budget_of(config: Config) -> Budget:
    """The budget."""
    return Budget(**config["budget"])


def limits_of(config: Config) -> Limits:
    """The limits."""
    return Limits(**config["limits"])


def search_evaluator(config: Config) -> Evaluator:
    """What judges candidates in a search; workers call it with the resolved config."""
    return Evaluator(space_of(config), task_of(config), gates_of(config))


def rerank_evaluator(config: Config) -> Evaluator:
    """What judges entrants of a rerank: no gates, and the test split is measured."""
    return Evaluator(space_of(config), rerank_task_of(config), [], measure_test=True)


def in_worker(build: Callable[[Config], Evaluator], config: Config) -> Callable[[], Evaluate]:
    """A picklable factory of an evaluator, for a pool."""
    return functools.partial(build, config)
