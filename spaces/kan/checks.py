"""Checks of what a basis family is given."""

from __future__ import annotations

from normact.spaces.errors import InputError


def check_whole(family: str, setting: str, value: int, least: int, most: int) -> None:
    """Check a grid, a degree, an order...

    Raises:
        InputError: it is no whole number from `least` to `most`.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise InputError(f"{family} needs {setting} to be a whole number from {least} to {most}, got {value!r}")
