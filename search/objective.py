"""`Objective` and `Score`: what is measured, in which direction, and what a trivial model reaches."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from normact.spaces.errors import InputError

Direction = Literal["maximize", "minimize"]


@dataclass(frozen=True)
class Objective:
    """What is measured.

    Args:
        name: such as `accuracy` or `validation_loss`.
        unit: for tables; empty for none.
        direction: which way is better.
        trivial: the value of a model that ignores its input (chance, or predicting the mean).
        perfect: the best value there can be.

    Raises:
        InputError: `trivial` or `perfect` is not finite, or `perfect` is not the better one in that direction.
    """

    name: str
    unit: str
    direction: Direction
    trivial: float
    perfect: float

    def __post_init__(self) -> None:
        gain = self.perfect - self.trivial
        if not math.isfinite(gain) or (gain if self.direction == "maximize" else -gain) <= 0:
            raise InputError(
                f"objective {self.name!r} leaves nothing to gain: {self.direction} from {self.trivial:g} (trivial) "
                f"to {self.perfect:g} (perfect); do the targets differ at all?"
            )

    def skill(self, value: float) -> float:
        """The value on the scale from 0 (trivial) to 1 (perfect); minus infinity where it is not finite.

        Thresholds are set on this scale, so that they mean the same for each objective and task.
        """
        if not math.isfinite(value):
            return -math.inf
        return (value - self.trivial) / (self.perfect - self.trivial)

    def better(self, a: float, b: float) -> bool:
        """Whether `a` is strictly better than `b`; a non-finite value is better than nothing."""
        return self.skill(a) > self.skill(b)


@dataclass(frozen=True)
class Score:
    """A measured value: of an objective, on an anchor, after a number of training steps."""

    objective: str
    anchor: str
    step: int
    value: float
