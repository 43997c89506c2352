"""Your own model as an anchor: its norm-activation pairs are replaced."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from normact.search.anchors.base import Make
from normact.spaces.errors import InputError
from normact.spaces.swap import replace_layers


@dataclass(frozen=True)
class SwappedModel:
    """A model of your own: each norm that is followed by an activation becomes a site.

    Args:
        factory: called without arguments, gives a fresh model; see `normact.spaces.swap.replace_layers` for
            what is found in it.

    Raises:
        InputError: at call, the factory gives no module or the model has nothing to replace.
    """

    factory: Callable[[], nn.Module]

    def __call__(self, make: Make) -> nn.Module:
        model = self.factory()
        if not isinstance(model, nn.Module):
            raise InputError(f"the model factory gave a {type(model).__name__}, not a torch module")
        replace_layers(model, make)
        return model
