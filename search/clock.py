"""`Clock`: the engine's time, replaceable, so that a simulation can run the real engine on a time of its own."""

from __future__ import annotations

import time


class Clock:
    """The machine's own time."""

    def now(self) -> float:
        """Seconds that only ever grow; of use as differences."""
        return time.monotonic()

    def date(self) -> float:
        """Seconds since the epoch, for records."""
        return time.time()
