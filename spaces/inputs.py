"""The inputs of a layer graph: x, zero, and trainable vectors whose name carries their initial value."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache
from itertools import count

from normact.spaces.errors import InputError

_TRAINABLE = re.compile(r"([vs])([0-9]{1,9}(?:\.[0-9]{1,9})?)(?:_[0-9]{1,9})?")


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


def another(name: str, taken: Collection[str]) -> str:
    """A trainable input of the same kind and initial value whose name is free: `v1_2` where `v1` is taken."""
    base = name.partition("_")[0]
    return next(free for number in count(2) if (free := f"{base}_{number}") not in taken)


def check_input(name: str, where: str = "") -> str:
    """The name, checked.

    Args:
        name: of an input.
        where: where in the input data it stood, such as " at node 4"; may be empty.

    Raises:
        InputError: it is no input's name.
    """
    if not is_input(name):
        raise InputError(
            f"{name[:40]!r}{where} is not an input: use x, zero, v0 or v1 (per channel, starting from "
            "that number), s0.01 (a scalar), or v0_2 for a second one of the same initial value"
        )
    return name
