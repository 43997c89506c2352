"""Where a person's own code is called: whatever it raises becomes one line that says what was called."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from hydra.errors import HydraException

from normact.spaces.errors import InputError


@contextmanager
def theirs(what: str) -> Iterator[None]:
    """Around a call of a constructor, method or module that may be a person's own.

    Args:
        what: was called, such as `objective speed`.

    Raises:
        InputError: the call raised, or asked the process to exit. An `InputError` says itself what is wrong, and
            passes unchanged.
    """
    try:
        yield
    except InputError:
        raise
    except (Exception, SystemExit) as problem:
        raise InputError(f"{what}: {type(problem).__name__}: {one_line(problem)}") from problem


def one_line(problem: BaseException) -> str:
    """The message at the root of a chain of exceptions, on one line."""
    chain = [problem]
    while (deeper := chain[-1].__cause__ or chain[-1].__context__) is not None and deeper not in chain:
        chain.append(deeper)
    root = next((p for p in chain if isinstance(p, InputError)), None)
    if root is None and isinstance(problem, HydraException) and len(chain) > 1:
        lines = [*str(problem).splitlines()[:1], f"{type(chain[-1]).__name__}: {chain[-1]}"]
        return " ".join(" ".join(lines).split())
    return " ".join(str(root or problem).split())
