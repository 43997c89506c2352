"""`Duplicates`: which proposals compute the same as an earlier one, by key or by fingerprint."""

from __future__ import annotations

from collections import defaultdict


class Duplicates:
    """The first proposal of every key and of every fingerprint, and who waits for whose outcome.

    Holds two table entries per distinct function: about 0.4 kB.
    """

    def __init__(self) -> None:
        self._by_key: dict[str, int] = {}
        self._by_fingerprint: dict[str, int] = {}
        self._waiting: defaultdict[int, list[tuple[int, str]]] = defaultdict(list)

    def first_of_key(self, key: str, number: int) -> int:
        """The proposal that a key belongs to: an earlier one's, or from now on this one's."""
        return self._by_key.setdefault(key, number)

    def first_of_fingerprint(self, fingerprint: str, number: int) -> int:
        """The proposal that a fingerprint belongs to: an earlier one's, or from now on this one's."""
        return self._by_fingerprint.setdefault(fingerprint, number)

    def belongs(self, key: str, number: int) -> None:
        """From now on the key is that proposal's: the one of its proposal turned out to compute the same."""
        self._by_key[key] = number

    def wait(self, number: int, first: int, how: str) -> None:
        """A proposal waits for the outcome of another; `how` says by what they are known to be equal."""
        self._waiting[first].append((number, how))

    def waited_for(self, number: int) -> list[tuple[int, str]]:
        """Who waited for a proposal that now has its outcome, and how they are known to be equal; once."""
        return self._waiting.pop(number, [])
