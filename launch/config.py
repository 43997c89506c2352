"""Config in, objects out: composing with Hydra, filling in, instantiating, and saying what is wrong in one line."""

from __future__ import annotations

import difflib
import functools
import math
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from normact.launch.guard import one_line, theirs
from normact.launch.schema import check_form
from normact.search.anchors import Anchor, sites_of
from normact.search.budget import Budget, Limits
from normact.search.controllers import Controller, Start
from normact.search.data import Data
from normact.search.evaluate import Evaluator
from normact.search.gates import Gate
from normact.search.leaders import Leaders, Race
from normact.search.objective import Objective
from normact.search.pool import Evaluate, Pool
from normact.search.task import Measure, Task
from normact.search.training import Recipe
from normact.spaces.errors import InputError, unknown_name
from normact.spaces.space import Space

Config = dict[str, Any]
"""A resolved config: plain dictionaries, lists and values."""

MOST_TOKENS = 64
"""That an image is cut into by default: 196 of 28x28 cost ten times the time of 49."""


def compose_config(overrides: Sequence[str], config_dir: Path | None = None) -> Config:
    """The resolved config of a command line.

    Held-out data of the rerank are what its anchors are made for, and what suits them is chosen for the rerank alone.

    Args:
        overrides: Hydra overrides, such as `data=fashion_mnist` or `budget.minutes=30`.
        config_dir: a folder with further YAML files, laid out like ours.

    Raises:
        InputError: an unknown group, option or key, a value that does not fit, or data that cannot be made.
    """
    with composing("config", overrides, config_dir) as search_path:
        composed = compose("config", [*search_path, *overrides])
        judged, held_out = composed, OmegaConf.select(composed, "rerank.data")
        if held_out is not None:
            others = [text for text in overrides if not text.lstrip("+~").startswith("rerank.data.")]
            composed = compose("config", [*search_path, *others, "~data@rerank.data"])
        composed.input = input_of(plain(composed.get("data")), "data")
        config: Config = plain(composed)
        if held_out is not None:
            judged.input = input_of(plain(held_out), "rerank.data")
            config["rerank"] = plain(judged.rerank)
    check_form(config)
    return config


@contextmanager
def composing(primary: str, overrides: Sequence[str], config_dir: Path | None) -> Iterator[list[str]]:
    """Where `hydra.compose` finds our YAML files; gives overrides that let it find a person's, too.

    Args:
        primary: the config that is composed.
        overrides: a person's, for what is said of them.
        config_dir: a folder with further YAML files.

    Raises:
        InputError: what Hydra raised inside, in our words; or there is no such folder.
    """
    if config_dir is not None and not config_dir.is_dir():
        raise InputError(f"--config-dir {config_dir} is no folder")
    search_path = [f"hydra.searchpath=[file://{config_dir.absolute()}]"] if config_dir else []
    GlobalHydra.instance().clear()
    try:
        with initialize_config_module("normact.conf", version_base="1.3"):
            yield search_path
    except InputError:
        raise
    except (yaml.YAMLError, UnicodeDecodeError) as problem:
        raise InputError(f"a YAML file in --config-dir {config_dir} cannot be read: {one_line(problem)}") from None
    except (HydraException, OmegaConfBaseException) as problem:
        raise _explained(problem, primary, search_path, overrides) from None
    except ValueError as problem:  # Hydra's, of `data=5`; it does not say where
        given = ", ".join(overrides)
        raise InputError(f"{one_line(problem)}: in one of {given}; to leave a group out, give ~GROUP") from None
    finally:
        GlobalHydra.instance().clear()


def plain(node: Any) -> Any:
    """A composed node as plain dictionaries, lists and values, its interpolations resolved."""
    if not OmegaConf.is_config(node):
        return node
    return OmegaConf.to_container(node, resolve=True, throw_on_missing=True)


def input_of(node: Any, what: str) -> Config:
    """What anchors need to know of the data, which are called `what` where they cannot be made."""
    data = _data(node, what)
    with theirs(what):
        return {
            "channels": data.shape[0],
            "size": data.shape[-1],
            "features": math.prod(data.shape),
            "outputs": data.outputs,
            "patch": patch_of(data.shape[-1]),
        }


def patch_of(size: int) -> int:
    """Side of the patches that an image is cut into: the least that divides it, from 2 on, into at most `MOST_TOKENS`.

    And 2 where none does, as for a prime: so that `TokenNet` refuses it, and a person chooses.
    """
    sides = (side for side in range(2, size // 2 + 1) if size % side == 0)
    return next((side for side in sides if (size // side) ** 2 <= MOST_TOKENS), 2)


def _explained(problem: Exception, primary: str, search_path: list[str], overrides: Sequence[str]) -> InputError:
    """Hydra's error as ours: what was not found, and the nearest that could be."""
    text = one_line(problem)
    if match := re.search(r"Could not find '([^']+)/([^']+)' Available options in '[^']+': (.*?) Config search", text):
        return unknown_name(f"option of {match[1]}", match[2], match[3].split())
    if match := re.search(r"Could not override '([^']+)'", text):
        GlobalHydra.instance().clear()
        with initialize_config_module("normact.conf", version_base="1.3"):
            known = _settings(primary, [*search_path, *_choices(overrides)]) or _settings(primary, search_path)
        if match[1] in known:
            how = f"+{match[1]}.NAME.SETTING=[...]"
            return InputError(f"{match[1]} is a section that takes new entries with a plus: {how}")
        close = difflib.get_close_matches(match[1], known, n=1, cutoff=0.5)
        nearest = f"; the nearest is {close[0]!r}" if close else ""
        return InputError(f"there is no setting {match[1]!r}{nearest}; `normact search --dry-run` prints all of them")
    return InputError(text)


def _choices(overrides: Sequence[str]) -> list[str]:
    """Of overrides those that choose an option, such as `space=kan`: they decide which settings there are."""
    groups = ("space", "data", "anchor", "recipe", "objective", "gates", "controller", "pool", "experiment")
    return [text for text in overrides if text.partition("=")[0].partition("@")[0] in groups]


def _settings(primary: str, overrides: list[str]) -> list[str]:
    """The names of all settings of a config; none where the choices themselves are wrong."""
    try:
        return list(_keys(OmegaConf.to_container(compose(primary, overrides))))
    except HydraException:
        return []


def _keys(node: Any, prefix: str = "") -> Iterator[str]:
    for name, value in node.items():
        yield f"{prefix}{name}"
        if isinstance(value, dict):
            yield from _keys(value, f"{prefix}{name}.")


def make(node: Any, what: str, **kwargs: Any) -> Any:
    """Instantiate a config node.

    Raises:
        InputError: its `_target_` cannot be found, imported or called, or its arguments are refused.
    """
    if not isinstance(node, dict) or "_target_" not in node:
        raise InputError(f"{what}: needs a section with a `_target_`, got {str(node)[:60]!r}")
    with theirs(what):
        try:
            return instantiate(node, _convert_="all", **kwargs)
        except (InputError, HydraException, OmegaConfBaseException, ImportError, TypeError) as problem:
            raise InputError(f"{what}: {one_line(problem)}") from None


def add_module_paths(paths: Sequence[str]) -> None:
    """Let a person's own modules be imported from these folders: after all other places.

    So a `random.py` that happens to lie there is not taken for the standard library's.
    """
    for path in [str(Path(p).absolute()) for p in paths]:
        if path not in sys.path:
            sys.path.append(path)


def space_of(config: Config) -> Space:
    """The space."""
    return _made(config["space"], "space", Space)


def task_of(config: Config) -> Task:
    """The task that candidates are searched on."""
    return _task(config, config["data"], config.get("anchor", {}), config["recipe"])


def rerank_data(config: Config) -> Config:
    """The node of the data that the rerank trains and judges on: those that are held out, or the search's own."""
    data: Config = config["rerank"].get("data", config["data"])
    return data


def rerank_task_of(config: Config) -> Task:
    """The task of the rerank: other anchors and recipe, a test split, and other data where the config names them."""
    parts = config["rerank"].get("anchor", {}), config["rerank"]["recipe"]
    if "data" not in config["rerank"]:
        return _task(config, config["data"], *parts)
    try:
        return _task(config, rerank_data(config), *parts)
    except InputError as problem:
        raise InputError(f"with rerank.data: {problem}") from None


def _task(config: Config, node: Config, anchors: Config, recipe: Config) -> Task:
    data = _data(node, "data")
    with theirs("data"):
        data.load().check_finite()  # objectives may look at it; what is missing is said here, not by a worker later
    measures = {name: _made(node, f"objective {name}", Measure) for name, node in config.get("objective", {}).items()}
    for name, measure in measures.items():
        with theirs(f"objective {name}"):
            objective = measure.objective(data)
        _check_class(objective, f"objective {name}: its `objective`", Objective)
    return Task(
        data,
        {name: _anchor(node, f"anchor {name}") for name, node in anchors.items()},
        _made(recipe, "recipe", Recipe),
        list(measures.values()),
        config["task"]["device"],
    )


def _data(node: Any, what: str) -> Data:
    return _made(node, what, Data)


def _anchor(node: Any, what: str) -> Anchor:
    anchor = make(node, what)
    if not callable(anchor):
        raise InputError(
            f"{what}: {node['_target_']} makes a {type(anchor).__name__}, which cannot be called; "
            "for a plain function add `_partial_: true`"
        )
    return anchor


def _made(node: Any, what: str, wanted: type) -> Any:
    made = make(node, what)
    _check_class(made, f"{what}: {node['_target_']}", wanted)
    return made


def _check_class(made: Any, who: str, wanted: type) -> None:
    if not isinstance(made, wanted):
        raise InputError(f"{who} makes a {type(made).__name__}, not a {wanted.__name__}; derive it from that class")


def gates_of(config: Config) -> list[Gate]:
    """The gates, in order; one that is null in the config is left out."""
    return [_made(node, f"gate {name}", Gate) for name, node in config["gates"].items() if node]


def front_of(config: Config, task: Task) -> list[Objective]:
    """The objectives that the controller optimises: those in `front`, or the leading one.

    Raises:
        InputError: one that the task does not measure, or one named twice.
    """
    names = config.get("front") or [""]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise InputError(f"front={names} names {twice!r} twice; name each objective once")
    return [task.objective(name) for name in names]


def controller_of(config: Config, space: Space, objectives: Sequence[Objective], starts: Sequence[Start]) -> Controller:
    """The controller, of the objectives of `front_of`."""
    partial = make(config["controller"], "controller")
    if not callable(partial):
        raise InputError("controller: its config needs `_partial_: true`, as it is made with the space at hand")
    with theirs("controller"):
        try:
            controller = partial(space=space, objectives=objectives, seed=config["seed"], start_from=starts)
        except (HydraException, TypeError) as problem:
            raise InputError(f"controller: {one_line(problem)}") from problem
    _check_class(controller, f"controller: {config['controller']['_target_']}", Controller)
    return controller


def pool_of(config: Config, make_evaluate: Callable[[], Evaluate], module_paths: Sequence[str]) -> Pool:
    """The pool, its workers judging by `make_evaluate`."""
    node = dict(config["pool"])
    if node["_target_"].endswith("RayPool"):
        node["module_paths"] = list(module_paths)
    partial = make(node, "pool")
    if not callable(partial):
        raise InputError("pool: its config needs `_partial_: true`, as it is made with the evaluator at hand")
    with theirs("pool"):
        try:
            pool = partial(make_evaluate)
        except (HydraException, TypeError) as problem:
            raise InputError(f"pool: {one_line(problem)}") from problem
    _check_class(pool, f"pool: {node['_target_']}", Pool)
    return pool


def check_meets(task: Task, space: Space) -> None:
    """Check that the space can fill every site of the task's anchors, and that these suit the data.

    Raises:
        InputError: see `Task.check_meets` and `Task.check_outputs`; or an anchor cannot be made, or not take the data.
    """
    for name, anchor in task.anchors.items():
        with theirs(f"anchor {name}"):
            sites_of(anchor)
    task.check_meets(space)
    for name in task.anchors:
        with theirs(f"anchor {name}, on an example of shape {tuple(task.data.shape)}"):
            task.check_outputs(name)


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
        if share := pool.get("gpus_per_worker"):
            raise InputError(
                f"pool.gpus_per_worker={share:g} reserves GPUs, but task.device={device} trains without; "
                "give task.device=cuda, or pool.gpus_per_worker=0"
            )
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


def leaders_of(config: Config, evaluator: Evaluator) -> Leaders:
    """What races and the gates that compare with the best candidates need; runs of before have no `race`."""
    count = max((gate.leaders for gate in evaluator.train_gates), default=0)
    return Leaders(evaluator.task.objective(), Race(**config.get("race", {})), count)


def search_evaluator(config: Config) -> Evaluator:
    """What judges candidates in a search; workers call it with the resolved config."""
    return Evaluator(space_of(config), task_of(config), gates_of(config))


def rerank_evaluator(config: Config) -> Evaluator:
    """What judges entrants of a rerank: no gates, and the test split is measured."""
    return Evaluator(space_of(config), rerank_task_of(config), [], measure_test=True)


def proxy_evaluator(config: Config) -> Evaluator:
    """What judges layers of a proxy study: the search's task without gates."""
    return Evaluator(space_of(config), task_of(config), [])


def transfer_evaluator(config: Config) -> Evaluator:
    """What judges layers elsewhere in a proxy study: the rerank's task, of which the test split stays unread."""
    return Evaluator(space_of(config), rerank_task_of(config), [])


def in_worker(build: Callable[[Config], Evaluator], config: Config) -> Callable[[], Evaluate]:
    """A picklable factory of an evaluator, for a pool."""
    return functools.partial(build, config)
