"""`Gate`: a test that a candidate passes or fails, cheap ones first."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from normact.search.outcome import Rejection
from normact.search.task import Task
from normact.search.training import Training
from normact.spaces.space import Space

Stage = Literal["screen", "train"]


@dataclass(frozen=True)
class Pass:
    """A gate's yes, with the figures behind it."""

    figures: Mapping[str, float] = field(default_factory=dict)


Verdict = Pass | Rejection


@dataclass
class ScreenContext:
    """What a screening gate may look at.

    `task` is what the candidate would be trained on; None where it is only looked at. `fingerprint` is set by the
    duplicate gate.
    """

    space: Space
    candidate: Any
    seed: int
    task: Task | None = None
    fingerprint: str = ""


@dataclass
class TrainContext:
    """What a training gate may look at: one anchor's training at its current step, measured there.

    `snapshot` is what the best candidates had reached when the job was made, see `Leaders.snapshot`.
    """

    space: Space
    candidate: Any
    task: Task
    anchor: str
    training: Training
    values: Mapping[str, float]
    seed: int
    snapshot: Mapping[str, Any] = field(default_factory=dict)


class Gate(ABC):
    """A test of candidates. Made once per worker, holds nothing that changes.

    Attributes:
        name: in records and tables; unique within a run.
    """

    name: str

    def rejection(self, reason: str, **figures: float) -> Rejection:
        """This gate's no."""
        return Rejection(self.name, reason, figures)


class ScreenGate(Gate):
    """A gate that trains nothing; runs in screening, in the order of config."""

    @abstractmethod
    def check(self, ctx: ScreenContext) -> Verdict:
        """Pass or reject. Exceptions of the candidate become rejections by gate `error`."""


class TrainGate(Gate):
    """A gate that looks at a training.

    Attributes:
        steps: at which training steps it is asked, for each anchor; 0 is before training.
        leaders: with how many of the best candidates it compares, by the context's snapshot.
        objective: which of the task's objectives it goes by; empty for the first.
    """

    steps: tuple[int, ...]
    leaders: int = 0
    objective: str = ""

    @abstractmethod
    def check(self, ctx: TrainContext) -> Verdict:
        """Pass or reject one anchor's training. The model may not be changed."""
