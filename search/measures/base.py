"""`Measure`: how an objective is computed; `Measured`: what it may look at."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from normact.search.data.base import Data, Split
from normact.search.objective import Objective
from normact.search.training import Training


@dataclass(frozen=True)
class Measured:
    """What a measure may look at: a training so far, its running statistics re-estimated, and examples.

    Args:
        training: of one anchor; its model may be run, but not changed.
        examples: that are measured: the validation examples, or the test split's in the final rerank.
        outputs: the model's on these examples.
        validation: examples that may be looked at to set something, such as a temperature.
        target_unit: how much 1 of the targets is in the data's own unit, see `Data.target_unit`.
    """

    training: Training
    examples: Split
    outputs: Tensor
    validation: Split
    target_unit: float = 1.0

    @property
    def targets(self) -> Tensor:
        """The examples' targets."""
        return self.examples.y


class Measure(ABC):
    """How an objective is computed. One instance serves all anchors.

    Attributes:
        reads_examples: False where the value does not depend on the examples that are given, so that there is
            none for the test split.
        quality: whether the value tells how well a net does what it is trained for. Others (costs, activations) are
            measured once, when the training has ended; they can neither lead a search nor be asked for by a gate.
    """

    reads_examples: bool = True
    quality: bool = True

    @abstractmethod
    def objective(self, data: Data) -> Objective:
        """The objective, with what is trivial on these data.

        Raises:
            InputError: these data cannot give it.
        """

    @abstractmethod
    def value(self, measured: Measured) -> float:
        """The value on an anchor."""
