"""The form of a config: its sections and the plain values in them, of a command line or of a run folder."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from normact.spaces.errors import InputError


@dataclass(frozen=True)
class Kind:
    """What a setting may be: in words, and as a test."""

    text: str
    fits: Callable[[Any], bool]


def _whole(least: int) -> Kind:
    return Kind(f"a whole number of at least {least}", lambda v: type(v) is int and v >= least)


def _or_null(kind: Kind) -> Kind:
    return Kind(f"{kind.text}, or null", lambda v: v is None or kind.fits(v))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


_NUMBER = Kind("a finite number", _is_number)
_SECONDS = Kind("a number of seconds above zero", lambda v: _is_number(v) and v > 0)
_ABOVE = Kind("a number above zero", lambda v: _is_number(v) and v > 0)
_SHARE = Kind("a number of at least 0", lambda v: _is_number(v) and v >= 0)
_TEXT = Kind("a text that is not empty", lambda v: isinstance(v, str) and v != "")
_TEXTS = Kind("a list of texts", lambda v: isinstance(v, list) and all(isinstance(item, str) for item in v))
_FACTORS = Kind(
    "a list of different numbers above zero",
    lambda v: isinstance(v, list) and all(_ABOVE.fits(item) for item in v) and len(set(v)) == len(v),
)
_NUMBERS = Kind(
    "a list of different candidates' numbers",
    lambda v: isinstance(v, list) and all(_whole(0).fits(item) for item in v) and len(set(v)) == len(v),
)
_SWITCH = Kind("true or false", lambda v: isinstance(v, bool))
_SECTION = Kind("a section", lambda v: isinstance(v, dict))
_PART = Kind("a section with a `_target_`", lambda v: isinstance(v, dict) and isinstance(v.get("_target_"), str))
_PARTS = Kind(
    "a section of parts, each with a `_target_`",
    lambda v: isinstance(v, dict) and all(isinstance(name, str) and _PART.fits(part) for name, part in v.items()),
)
_GATES = Kind(
    "a section of parts, each with a `_target_` or null",
    lambda v: _PARTS.fits({n: p for n, p in v.items() if p is not None}) if isinstance(v, dict) else False,
)

_ROOT = {
    "run_dir": _TEXT,
    "seed": _whole(0),
    "start_from": _TEXTS,
    "durability": Kind("normal or full", lambda v: v in ("normal", "full")),
    "space": _PART,
    "controller": _PART,
    "data": _PART,
    "recipe": _PART,
    "pool": _PART,
    "gates": _GATES,
    "budget": _SECTION,
    "limits": _SECTION,
    "task": _SECTION,
    "rerank": _SECTION,
    "export": _SECTION,
}
_ROOT_OPTIONAL = {
    "anchor": _PARTS,
    "objective": _PARTS,
    "front": _TEXTS,
    "race": _SECTION,
}  # an empty list leaves a group out
_POOL_OPTIONAL = {
    "workers": _whole(1),
    "gpus_per_worker": _SHARE,
    "memory_gib": _or_null(_ABOVE),
}  # other keys are the pool's own matter

_CLOSED: dict[str, tuple[dict[str, Kind], dict[str, Kind]]] = {
    "budget": ({"proposals": _or_null(_whole(0)), "minutes": _or_null(_NUMBER)}, {}),
    "limits": (
        {"screen_seconds": _SECONDS, "train_seconds": _SECONDS, "job_seconds": _SECONDS, "batch": _whole(1)},
        {},
    ),
    "task": ({"device": _TEXT}, {}),
    "rerank": (
        {"finalists": _whole(0), "baselines": _TEXTS, "seeds": _whole(2), "objective": _TEXT, "recipe": _PART},
        {
            "anchor": _PARTS,
            "lr_factors": _FACTORS,
            "data": _PART,
            "only": _NUMBERS,
            "first_seed": _whole(0),
            "longlist": _whole(0),
        },
    ),
    "export": ({"winner": _SWITCH}, {}),
    "race": ({"seeds": _whole(1), "share": _ABOVE, "least": _whole(1)}, {}),
}
"""Sections that have no other keys than these: what must be there, and what may."""


def check_form(config: Any) -> None:
    """Check a resolved config's sections and plain values, before anything is made of them.

    What the parts themselves take (a space's `nodes`, a recipe's `lr`) is checked where they are made.

    Raises:
        InputError: a section or setting is missing, of another type or out of range, or one that is not known.
    """
    _check(config, "", _ROOT, _ROOT_OPTIONAL)
    _check(config["pool"], "pool.", {}, _POOL_OPTIONAL)
    for section, (needed, optional) in _CLOSED.items():
        if section not in config:  # an optional one
            continue
        _check(config[section], f"{section}.", needed, optional)
        for key in config[section]:
            if key not in needed and key not in optional:
                raise _unknown(section, str(key), [*needed, *optional])


def _check(section: dict[str, Any], prefix: str, needed: dict[str, Kind], optional: dict[str, Kind]) -> None:
    for name, kind in {**needed, **optional}.items():
        if name not in section:
            if name in optional:
                continue
            raise InputError(f"the config has no {prefix}{name}; give {kind.text}")
        if not kind.fits(section[name]):
            raise InputError(f"{prefix}{name} must be {kind.text}, got {str(section[name])[:60]!r}")


def _unknown(section: str, key: str, known: list[str]) -> InputError:
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    nearest = f"; the nearest is {section}.{close[0]}" if close else ""
    return InputError(f"there is no setting {section}.{key}{nearest}; known: {', '.join(sorted(known))}")
