"""A run folder: the resolved config, the versions, the ledger, the exports."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from normact.launch.config import Config
from normact.launch.guard import theirs
from normact.launch.schema import check_form
from normact.launch.trust import check_targets
from normact.search.ledger import Ledger
from normact.spaces.errors import InputError
from normact.spaces.fingerprint import fingerprint
from normact.spaces.space import Space

LEDGER = "ledger.sqlite"
CONFIG = "config.yaml"
VERSIONS = "versions.json"
EXPORTS = "exports"
_PACKAGES = ("normact", "torch", "numpy", "scipy", "ray", "optuna", "hydra-core")


def create(folder: Path, config: Config) -> Ledger:
    """Make a run folder and its ledger.

    Raises:
        InputError: the folder exists and is not empty, or cannot be made.
    """
    check_new(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        ledger = Ledger(folder / LEDGER, create=True, durability=config["durability"])
        (folder / CONFIG).write_text(yaml.safe_dump(config, sort_keys=False))
        (folder / VERSIONS).write_text(json.dumps(versions(), indent=2) + "\n")
    except OSError as problem:
        raise InputError(f"cannot make the run folder {folder}: {problem}") from None
    ledger.set_meta("versions", versions())
    return ledger


def check_new(folder: Path) -> None:
    """Check that a run folder can be made without touching anything.

    Raises:
        InputError: it exists and is not empty.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} exists already; give another run_dir, or `normact resume {folder}`")


def open_ledger(folder: Path, write: bool = False) -> Ledger:
    """The ledger of a run folder.

    Raises:
        InputError: the folder is no run, another driver uses it, or it is no ledger.
    """
    if not (folder / LEDGER).is_file():
        raise InputError(f"{folder} is no run folder: there is no {LEDGER} in it")
    durability: Any = read_config(folder).get("durability", "normal") if write else "normal"
    return Ledger(folder / LEDGER, write=write, durability=durability)


def read_config(folder: Path) -> Config:
    """The resolved config of a run folder, as plain data; nothing of it is run.

    Raises:
        InputError: the folder has none, or it is no YAML mapping.
    """
    path = folder / CONFIG
    try:
        config = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as problem:
        raise InputError(
            f"{folder} is no run folder: cannot read {CONFIG} ({' '.join(str(problem).split())})"
        ) from None
    if not isinstance(config, dict):
        raise InputError(f"{path} is no mapping: it holds {str(config)[:60]!r}")
    return config


def trusted_config(folder: Path, allow: Sequence[str]) -> Config:
    """The resolved config of a run folder, checked to have a config's form and to name our own parts alone.

    Args:
        folder: of the run.
        allow: modules of the person's own that it may name too.

    Raises:
        InputError: see `read_config`, `check_form` and `check_targets`.
    """
    config = read_config(folder)
    try:
        check_form(config)
    except InputError as problem:
        raise InputError(f"{folder / CONFIG}: {problem}") from None
    check_targets(config, allow)
    return config


def versions() -> dict[str, str]:
    """Versions of what decides a run's numbers, and the machine."""
    found = {"python": sys.version.split()[0], "machine": f"{platform.system()} {platform.machine()}"}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def known_fingerprints(space: Space) -> dict[str, str]:
    """Fingerprints of the space's named layers: what a find is called by, if it computes the same."""
    sites = space.probe_sites()
    prints = {}
    for name, candidate in space.baselines().items():
        with theirs(f"the space's baseline {name}"):
            prints[name] = fingerprint(partial(space.build, candidate), sites)
    return prints


def check_fingerprints(ledger: Ledger, space: Space) -> dict[str, str]:
    """The fingerprints of the named layers, compared with those stored with the run.

    Raises:
        InputError: they differ: this machine or torch version hashes differently, so that duplicates of earlier
            finds would not be recognised.
    """
    now = known_fingerprints(space)
    stored: dict[str, Any] | None = ledger.meta("known_fingerprints")
    if stored is None:
        ledger.set_meta("known_fingerprints", now)
        return now
    changed = sorted(name for name in stored if name in now and stored[name] != now[name])
    if changed:
        raise InputError(
            f"fingerprints of {', '.join(changed)} differ from those stored with the run (made with torch "
            f"{ledger.meta('versions', {}).get('torch')}, now {versions().get('torch')}): resume there, or start anew"
        )
    return now
