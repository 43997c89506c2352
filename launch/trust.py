"""Which objects the config of a run folder may name: it is a file that may come from somebody else."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

from normact.launch.guard import theirs
from normact.spaces.errors import InputError

OURS = (
    "normact.spaces",
    "normact.search.anchors",
    "normact.search.controllers",
    "normact.search.data",
    "normact.search.gates",
    "normact.search.measures",
    "normact.search.pool",
    "normact.search.task",
    "normact.search.training",
    "normact.launch.ray_pool",
    "optuna.samplers",
)
"""The modules whose objects a config may name: ours with parts (a `Ledger`, say, would write any file), and Optuna's
samplers, which only draw."""

HERE = (None, "local", "auto")  # addresses of Ray that are this machine's own matter


def check_targets(config: Any, allowed: Sequence[str] = ()) -> None:
    """Check that a run folder's config names only our own parts, or those of modules that were named again.

    Nothing is called. A module is imported only where its own name is one of ours or in `allowed`.

    Raises:
        InputError: a `_target_` is elsewhere, or leads elsewhere: it would run whatever the file says. Or a value is
            an interpolation, which a resolved config has none of, and which could make a `_target_` later. Or the
            pool joins a cluster at an address, or has a `runtime_env`: whoever answers there, and whatever that
            names, runs code here; `allowed` then has the address, or the word `pool.runtime_env`.
    """
    trusted = (*OURS, *allowed)
    for text in _texts(config):
        if "${" in text:
            raise InputError(
                f"the run's config holds the interpolation {text[:60]!r}, and a resolved config has none; "
                "write its value there"
            )
    for target in _targets(config):
        if not isinstance(target, str) or not _leads_to(target, trusted):
            module = str(target).rpartition(".")[0]
            raise InputError(
                f"the run's config names {target!r}, which is not ours; if you trust it, add --allow {module or target}"
            )
    _check_pool(config.get("pool") if isinstance(config, dict) else None, allowed)


def _check_pool(pool: Any, allowed: Sequence[str]) -> None:
    if not isinstance(pool, dict):
        return
    address = pool.get("address")
    if address not in HERE and address not in allowed:
        raise InputError(f"the run's config has pool.address={address}; if you trust it, add --allow {address}")
    if pool.get("runtime_env") and "pool.runtime_env" not in allowed:
        raise InputError(
            f"the run's config has pool.runtime_env={str(pool['runtime_env'])[:200]}, which may run anything; "
            "if you trust it, add --allow pool.runtime_env"
        )


def _targets(node: Any) -> Iterator[Any]:
    if isinstance(node, dict):
        if "_target_" in node:
            yield node["_target_"]
        for value in node.values():
            yield from _targets(value)
    elif isinstance(node, list):
        for value in node:
            yield from _targets(value)


def _texts(node: Any) -> Iterator[str]:
    if isinstance(node, str):
        yield node
    elif isinstance(node, dict):
        for key, value in node.items():
            yield from _texts(key)
            yield from _texts(value)
    elif isinstance(node, list):
        for value in node:
            yield from _texts(value)


def _within(module: str, trusted: Sequence[str]) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in trusted)


def _leads_to(target: str, trusted: Sequence[str]) -> bool:
    """Whether the dotted path is a class or function that a trusted module defines.

    The walk is Hydra's own (an attribute first, else a submodule), so that what was checked is what is called.
    It goes through no module but the parents that the path itself names: `ours.pool.os.system` ends at `os`.
    """
    parts = target.split(".")
    if len(parts) < 2 or not all(parts) or not _within(target.rpartition(".")[0], trusted):
        return False
    found: Any = _imported(parts[0], target)
    for count, part in enumerate(parts[1:], start=2):
        path = ".".join(parts[:count])
        if hasattr(found, part):
            found = getattr(found, part)
        elif isinstance(found, ModuleType):
            found = _imported(path, target)
        else:
            raise InputError(f"the run's config names {target!r}, but {'.'.join(parts[: count - 1])} has no {part!r}")
        if isinstance(found, ModuleType) and found.__name__ != path:
            return False
    return callable(found) and _within(str(getattr(found, "__module__", None)), trusted)


def _imported(module: str, target: str) -> ModuleType:
    try:
        with theirs(f"the run's config names {target!r}, whose module {module} raises"):
            return importlib.import_module(module)
    except InputError as problem:
        if not isinstance(cause := problem.__cause__, ModuleNotFoundError) or cause.name != module:
            raise
        parent, _, part = module.rpartition(".")
        missing = f"{parent} has no {part!r}" if parent else f"there is no module {module!r}"
        raise InputError(f"the run's config names {target!r}, but {missing}; is its folder in --config-dir?") from None
