"""`Anchor`: a network whose sites are filled by the candidate, and what can be asked of any."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import nn

from normact.spaces.site import Site

Make = Callable[[Site], nn.Module]
"""What fills a site."""


class Anchor(Protocol):
    """A network with places for a layer. A plain function of that form is one too.

    It asks `make` for every site in a fixed order, numbering them from 0, and for nothing else; its own random
    draws come from torch's global generator.
    """

    def __call__(self, make: Make) -> nn.Module: ...


def sites_of(anchor: Anchor) -> list[Site]:
    """The sites that an anchor asks for, in order."""
    sites: list[Site] = []

    def record(site: Site) -> nn.Module:
        sites.append(site)
        return nn.Identity()

    with torch.random.fork_rng(devices=[]):
        anchor(record)
    return sites


class Sites:
    """Numbers an anchor's sites as it makes them."""

    def __init__(self, make: Make) -> None:
        self._make = make
        self._index = 0

    def norm_act(self, features: int, layout: str = "NCHW", activation: bool = True, causal: bool = False) -> nn.Module:
        """The next site, of kind `norm_act`."""
        site = Site("norm_act", self._index, features, layout=layout, activation=activation, causal=causal)  # type: ignore[arg-type]
        self._index += 1
        return self._make(site)
