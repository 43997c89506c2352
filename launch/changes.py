"""Overrides of a run that is there: what going on with it, or its rerank, may change of what was saved."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra import compose
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf

from normact.launch.config import Config, composing, input_of, plain
from normact.launch.schema import check_form
from normact.spaces.errors import InputError

RESUME = ("budget", "rerank", "limits", "pool", "export")
"""What may change as a search goes on: of what is searched nothing."""

RERANK = ("rerank", "limits", "pool", "export", "task")
"""What a rerank may change; also the device, for what a search on processors found may be judged on GPUs."""

GROUPS = ("data@rerank.data", "anchor@rerank.anchor", "recipe@rerank.recipe", "pool")
"""The groups with an option in these sections."""

_LATER = {"longlist": 0, "only": [], "first_seed": 0}
"""Settings of a rerank that runs of earlier releases do not have, and what stands for that."""

_SUITED = ("anchor", "recipe", "objective", "gates")  # groups of a search that what suits data (suits/) also chooses
_SAVED = "saved_run"  # the primary config that takes the place of our `config.yaml`


def changed(
    config: Config, overrides: Sequence[str], config_dir: Path | None = None, sections: Sequence[str] = RERANK
) -> Config:
    """A run's config, changed by overrides such as `rerank.seeds=16` or `data@rerank.data=digits`.

    A run folder has the resolved config alone. So that is what Hydra composes the overrides onto, in the place of our
    defaults, which may have changed since. A group that is chosen replaces what the run has there; `~data@rerank.data`
    goes back to the data of the search. Where data are chosen and anchors are not, the run's anchors are made for these
    data: what an anchor's option takes from the data is taken again, all else stays as the run has it.

    Args:
        config: of the run, trusted.
        overrides: of what is in the sections, and of `GROUPS`.
        config_dir: a folder with further YAML files.
        sections: what may change, `RERANK` or `RESUME`.

    Raises:
        InputError: an override of something else, an unknown option or setting, or a value that does not fit.
    """
    if not overrides:
        return config
    with composing(_SAVED, overrides, config_dir) as search_path:
        chosen = _chosen(overrides, sections)
        defaults = [*({group: None} for group in (*_SUITED, *GROUPS)), "_self_"]
        known = {name: config[name] for name in sections} | {"rerank": {**_LATER, **config["rerank"]}}
        saved = _without(chosen, known, search_path)
        ConfigStore.instance().store(_SAVED, {"defaults": defaults, "input": {}, **saved})
        none = [f"{group}=[]" for group in (*_SUITED, *GROUPS) if group not in chosen]  # whatever suits the data
        composed = compose(_SAVED, [*search_path, *none, *overrides])
        held_out = OmegaConf.select(composed, "rerank.data")
        composed.input = input_of(config["data"] if held_out is None else plain(held_out), "rerank.data")
        result = {**config, **{name: plain(composed[name]) for name in sections}}
    check_form(result)
    return result


def _without(chosen: set[str], sections: Config, search_path: list[str]) -> Config:
    """What is saved of the sections, less the parts that are chosen anew; anchors as written if data are."""
    saved: Config = copy.deepcopy(sections)
    if "data@rerank.data" in chosen:
        anchors = saved["rerank"].get("anchor", {})
        saved["rerank"]["anchor"] = {name: _as_written(name, anchors[name], search_path) for name in anchors}
    for group in chosen:
        section, _, part = group.rpartition("@")[2].partition(".")
        if part:
            saved[section].pop(part, None)
        else:
            del saved[section]
    return saved


def _chosen(overrides: Sequence[str], sections: Sequence[str]) -> set[str]:
    """The groups that overrides choose of.

    Raises:
        InputError: an override is of something that does not change.
    """
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    for override in parsed:
        if (override.package or override.key_or_group).split(".")[0] not in sections:
            raise InputError(
                f"a run that is there changes in {', '.join(f'{name}.*' for name in sections)} and "
                f"{', '.join(GROUPS)} alone, got {override.input_line!r}; start another search for that"
            )
    return {key for override in parsed if (key := override.get_key_element().lstrip("+~")) in GROUPS}


def _as_written(name: str, saved: Config, search_path: list[str]) -> Config:
    """A saved anchor, with the interpolations that its option has; as it was saved where there is no such option."""
    if not name.isidentifier():  # it is somebody's text, which must not become more than one override
        return saved
    try:
        option = compose("config", [*search_path, f"anchor@rerank.anchor=['{name}']"]).rerank.anchor.get(name)
    except HydraException:
        return saved
    return _laid_over(OmegaConf.to_container(option), saved) if option else saved


def _laid_over(written: Any, saved: Any) -> Any:
    """The saved values, but where an interpolation is written."""
    if isinstance(written, str) and "${" in written:
        return written
    if isinstance(written, dict) and isinstance(saved, dict):
        return {key: _laid_over(written.get(key), value) for key, value in saved.items()}
    return saved
