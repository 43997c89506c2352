"""Your own model as an anchor: its norm-activation pairs are replaced."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from normact.search.anchors.base import Make
from normact.spaces.errors import InputError
from normact.spaces.swap import replace_layers


@dataclass(frozen=True)
class SwappedModel:
    """A model of your own: each norm that is followed by an activation becomes a site, and each norm that is not
    becomes one with `activation=False`.

    Args:
        factory: called without arguments, gives a fresh model; see `normact.spaces.swap.replace_layers` for
            what is found in it.
        example: shape of one example, such as (3, 32, 32). With it the model is read from a run on two random
            ones: for a forward that cannot be traced, and where the number of axes matters.

    Raises:
        InputError: at call, the factory gives no module or the model has nothing to replace.
    """

    factory: Callable[[], nn.Module]
    example: Sequence[int] | None = None

    def __call__(self, make: Make) -> nn.Module:
        model = self.factory()
        if not isinstance(model, nn.Module):
            raise InputError(f"the model factory gave a {type(model).__name__}, not a torch module")
        inputs = None
        if self.example is not None:
            inputs = torch.randn(2, *self.example, generator=torch.Generator().manual_seed(0))
        # Nothing is carried over: a candidate starts as it would in any other anchor.
        replace_layers(model, make, carry=False, example_inputs=inputs)
        return model
