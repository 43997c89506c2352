"""The inputs of a layer graph: x, zero, and trainable vectors that carry their initial value in their name."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from normact.spaces.errors import InputError

_TRAINABLE = re.compile(r"([vs])(\d+(?:\.\d+)?)(?:_(\d+))?")


@dataclass(frozen=True)
class Trainable:
    """A trainable input: `v0`, `v1` are per-channel vectors initialised to 0 and 1, `s0.01` a scalar to 0.01.

    A further one with the same initial value carries a number: `v0_2`.
    """

    name: str
    per_channel: bool
    init: float

    @property
    def attribute(self) -> str:
        """The name as a Python attribute: `s0.01` becomes `s0p01`."""
        return self.name.replace(".", "p")


@lru_cache(maxsize=1024)
def trainable(name: str) -> Trainable | None:
    """The trainable input of that name, or None where the name is not of that form."""
    match = _TRAINABLE.fullmatch(name)
    return Trainable(name, match[1] == "v", float(match[2])) if match else None


def is_input(name: str) -> bool:
    """Whether an expression's name stands for an input."""
    return name in ("x", "zero") or trainable(name) is not None


def check_input(name: str) -> str:
    """The name, checked.

    Raises:
        InputError: it is no input's name.
    """
    if not is_input(name):
        raise InputError(
            f"{name!r} is not an input: use x, zero, v0 or v1 (per channel, initialised to that number), "
            "s0.01 (a scalar), or v0_2 for a second one of the same initial value"
        )
    return name
