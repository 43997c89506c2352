"""`Anchor`: a network whose sites are filled by the candidate, and what can be asked of any."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor, nn

from normact.spaces.site import Conv, Site

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


def sites_on(anchor: Anchor, shape: Sequence[int]) -> list[Site]:
    """The sites of an anchor, with the positions that one example of that shape has there.

    A site that is used more than once has the positions of all its uses.
    """
    return _passed(anchor, torch.zeros(1, *shape))[0]


def outputs_on(anchor: Anchor, examples: Tensor) -> Tensor:
    """What comes out of an anchor for some examples, of the right shape alone: its sites compute nothing."""
    return _passed(anchor, examples)[1]


def _passed(anchor: Anchor, examples: Tensor) -> tuple[list[Site], Tensor]:
    """Examples go through the network, its sites filled by modules that compute nothing: its sites, what comes out."""
    sites: list[Site] = []
    positions: Counter[int] = Counter()

    def record(site: Site) -> nn.Module:
        sites.append(site)
        return _Counts(site, positions)

    with torch.random.fork_rng(devices=[]), torch.no_grad():
        outputs = anchor(record).eval()(examples)
    return [replace(site, positions=max(positions[site.index], 1)) for site in sites], outputs


class _Counts(nn.Module):
    """In the place of a layer: counts the positions that come in, and gives zeros of the shape that goes out."""

    def __init__(self, site: Site, positions: Counter[int]) -> None:
        super().__init__()
        self.site, self.positions = site, positions

    def forward(self, x: Tensor) -> Tensor:
        self.positions[self.site.index] += x.numel() // (len(x) * self.site.in_features)
        return x.new_zeros(self.site.output_shape(x.shape))


class Sites:
    """Numbers an anchor's sites as it makes them."""

    def __init__(self, make: Make) -> None:
        self._make = make
        self._index = 0

    def norm_act(self, features: int, layout: str = "NCHW", activation: bool = True, causal: bool = False) -> nn.Module:
        """The next site, of kind `norm_act`."""
        site = Site("norm_act", self._index, features, layout=layout, activation=activation, causal=causal)  # type: ignore[arg-type]
        return self._next(site)

    def linear(self, in_features: int, out_features: int, layout: str = "NC") -> nn.Module:
        """The next site, of kind `linear`."""
        return self._next(Site("linear", self._index, in_features, out_features, layout=layout))  # type: ignore[arg-type]

    def conv(self, in_channels: int, out_channels: int, conv: Conv) -> nn.Module:
        """The next site, of kind `conv`."""
        return self._next(Site("conv", self._index, in_channels, out_channels, conv=conv))

    def _next(self, site: Site) -> nn.Module:
        self._index += 1
        return self._make(site)
