"""The one exception for input that a person can mend."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """A config, file, expression or argument is wrong.

    The message is one line: what is wrong, the values involved, and what to do. The command line prints it
    and exits with status 2; library callers can catch it as a `ValueError`.
    """


def unknown_name(kind: str, name: str, known: Iterable[str], where: str = "") -> InputError:
    """The error for a name that is not in a table: names the nearest known one, and lists all.

    Args:
        kind: what the name stands for, such as "op" or "layer".
        name: the name that was not found.
        known: the names that exist.
        where: where in the input it stood, such as " at position 4"; may be empty.
    """
    names = sorted(known)
    name = name if len(name) <= 60 else name[:60] + "..."
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    nearest = f"; the nearest is {close[0]!r}" if close else ""
    return InputError(f"unknown {kind} {name!r}{where}{nearest}; known: {', '.join(names)}")
