"""Measures of what layers let through: read at the sites, on examples, in evaluation mode."""

from __future__ import annotations

import math
from abc import abstractmethod
from functools import partial
from typing import Any

import torch
from torch import Tensor

from normact.search.data.base import Data
from normact.search.measures.base import Measure, Measured
from normact.search.objective import Objective
from normact.search.training import EVALUATION_BATCH, outputs_of
from normact.spaces.errors import InputError


class _AtSites(Measure):
    """A statistic of what goes out of each site, one value an example, over the first 256 examples.

    Sites without an activation (`Site.activation`) are left out, unless an anchor has no others.
    """

    quality = False

    def value(self, measured: Measured) -> float:
        layers = measured.training.layers
        active = [layer for site, layer in layers.items() if site.activation] or list(layers.values())
        found: list[list[Tensor]] = [[] for _ in active]
        handles = [
            layer.register_forward_hook(partial(self._note, into)) for layer, into in zip(active, found, strict=True)
        ]
        try:
            outputs_of(measured.training.model, measured.examples.x[:EVALUATION_BATCH])
        finally:
            for handle in handles:
                handle.remove()
        return self.over_sites([float(torch.cat(values).mean()) for values in found if values])

    def _note(self, into: list[Tensor], layer: Any, inputs: Any, y: Tensor) -> None:
        into.append(self.of_examples(y.detach().flatten(1).double()))

    @abstractmethod
    def of_examples(self, y: Tensor) -> Tensor:
        """The statistic of each row of y (n, entries), float64: (n,)."""

    @abstractmethod
    def over_sites(self, values: list[float]) -> float:
        """The objective's value from the sites' means over examples."""


class NonzeroShare(_AtSites):
    """Share of activations that are not zero: the mean over sites, examples and positions ("The Lazy Neuron
    Phenomenon", arXiv 2210.06313). The fewer, the more of a product with them can be left out.

    Smooth activations are never exactly 0: what is at most `tolerance` times the root mean square of its example's
    entries at that site counts as zero.

    Trivial: 1, nothing is zero. Perfect: 0.

    Args:
        tolerance: see above.

    Raises:
        InputError: a tolerance below 0, or of 1 or more.
    """

    def __init__(self, tolerance: float = 1e-3) -> None:
        if not 0 <= tolerance < 1:
            raise InputError(f"nonzero_share needs 0 <= tolerance < 1, got tolerance={tolerance}")
        self.tolerance = tolerance

    def objective(self, data: Data) -> Objective:
        return Objective("nonzero_share", "", "minimize", 1.0, 0.0)

    def of_examples(self, y: Tensor) -> Tensor:
        rms = y.square().mean(1, keepdim=True).sqrt()
        share = (y.abs() > self.tolerance * rms).double().mean(1)
        return torch.where(torch.isfinite(rms.squeeze(1)), share, math.nan)

    def over_sites(self, values: list[float]) -> float:
        return sum(values) / len(values)


class MassiveActivation(_AtSites):
    """Massive activations: the largest over sites of log10 of max |y| / median |y|, the ratio a mean over examples.

    The ratio is that of "Massive Activations in Large Language Models" (arXiv 2402.17762), followed through training
    in arXiv 2508.03616. There it is taken on the residual stream; here on what goes out of the layers, which is what
    the next product would quantise, in any anchor. Since activations may be exactly 0, the median is that of the
    entries that are not. An example of nothing but zeros has the ratio 1.

    Trivial: 3, the ratio of 1000 from which that paper calls an activation massive. Perfect: 0, all are as large.
    """

    def objective(self, data: Data) -> Objective:
        return Objective("massive_activation", "log10", "minimize", 3.0, 0.0)

    def of_examples(self, y: Tensor) -> Tensor:
        size = y.abs()
        median = torch.where(size == 0, math.nan, size).nanmedian(1).values  # of an even number the lower one
        largest = size.amax(1)
        return torch.where(largest == 0, 1.0, largest / median)

    def over_sites(self, values: list[float]) -> float:
        return math.log10(max(values)) if all(map(math.isfinite, values)) else math.nan
