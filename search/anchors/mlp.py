"""A multilayer perceptron, its activations searched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import nn

from normact.search.anchors.base import Make, Sites
from normact.spaces.errors import InputError


@dataclass(frozen=True)
class MLP:
    """Linear maps of the widths [inputs, *hidden, outputs], a layer behind each but the last.

    Args:
        inputs: numbers of an example, which is flattened.
        hidden: widths between, at least one.
        outputs: classes, or values to predict.

    Sites: `norm_act`, NC, one of each hidden width.

    Raises:
        InputError: no hidden width, or a width below 1.
    """

    inputs: int
    hidden: Sequence[int]
    outputs: int

    def __post_init__(self) -> None:
        if not self.hidden or min(self.inputs, *self.hidden, self.outputs) < 1:
            raise InputError(
                f"MLP needs a hidden width, and widths of at least 1, got inputs={self.inputs}, "
                f"hidden={list(self.hidden)}, outputs={self.outputs}"
            )

    def __call__(self, make: Make) -> nn.Module:
        sites = Sites(make)
        layers: list[nn.Module] = [nn.Flatten()]
        for i, o in pairwise((self.inputs, *self.hidden)):
            layers += [nn.Linear(i, o), sites.norm_act(o, "NC")]
        return nn.Sequential(*layers, nn.Linear(self.hidden[-1], self.outputs))
