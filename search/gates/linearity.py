"""`Linearity`: no layer without a nonlinearity."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor, nn

from normact.search.gates.base import Pass, ScreenContext, ScreenGate, Verdict
from normact.spaces.errors import InputError
from normact.spaces.fingerprint import probe_batch
from normact.spaces.site import Site


class Linearity(ScreenGate):
    """In evaluation, the layer is not affine in its input: f(a) + f(b) differs from f(c) + f(a + b - c).

    A layer that is affine at all its sites, such as batch normalization with nothing after it, or a linear map in the
    place of a Kolmogorov-Arnold layer, leaves a network a linear model. Sites that need no nonlinearity are passed
    over. Running statistics count as fixed, which they are in evaluation. What divides by a statistic of the
    sample itself, x / instance_std(x), is no affine map and passes without any other nonlinearity.

    The figure `nonlinearity` is |f(a) + f(b) - f(c) - f(a + b - c)| over the spread of the four values (Euclidean
    norms), at the first site and scale where it is above the tolerance. Trainable parameters get random values, since
    max(x, v1 * x) is affine at its start alone. All is in float64, where affine layers of `evonorm_b` have figures
    below 1e-12, and all others above 0.01.

    Args:
        scales: standard deviations of the normal inputs a, b, c.
        tolerance: largest figure that counts as affine.
    """

    name = "linearity"

    def __init__(self, scales: Sequence[float] = (1.0, 10.0), tolerance: float = 1e-6) -> None:
        if not scales or min(scales) <= 0 or tolerance < 0:
            raise InputError(
                f"linearity needs scales above 0 and a tolerance of at least 0, got scales={list(scales)}, "
                f"tolerance={tolerance}"
            )
        self.scales = tuple(scales)
        self.tolerance = tolerance

    def check(self, ctx: ScreenContext) -> Verdict:
        found = 1.0  # of a space that has no such site
        for site in ctx.space.probe_sites():
            if not site.activation:
                continue
            module = _settled(ctx.space.build(ctx.candidate, site), site)
            for scale in self.scales:
                found = _nonlinearity(module, site, scale)
                if found > self.tolerance:
                    return Pass({"nonlinearity": found})
        if found > self.tolerance:
            return Pass()
        return self.rejection("affine in its input: it has no nonlinearity", nonlinearity=found)


@torch.no_grad()
def _settled(module: nn.Module, site: Site) -> nn.Module:
    """The layer in evaluation, its parameters random, its running statistics those of a batch."""
    module = module.double().train()
    for number, parameter in enumerate(module.parameters()):
        parameter.copy_(_values(number, tuple(parameter.shape)))
    module(probe_batch(site, 1)[0])
    return module.eval()


@torch.no_grad()
def _nonlinearity(module: nn.Module, site: Site, scale: float) -> float:
    """How far the layer is from affine: 0 for an affine one; NaN and infinity, which others look for, count as 1."""
    fa, fb, fc, fd = module(scale * _points(site)).chunk(4)
    values = torch.stack([fa, fb, fc, fd])
    spread = float((values - values.mean(0)).norm())
    found = float((fa + fb - fc - fd).norm())
    return found / spread if 0 < spread < float("inf") else float(spread != 0)


@lru_cache(maxsize=64)
def _points(site: Site) -> Tensor:
    """a, b, c and a + b - c, one after the other along the batch."""
    shape, generator = probe_batch(site, 0)[0].shape, torch.Generator().manual_seed(0)
    a, b, c = torch.randn((3, *shape), generator=generator, dtype=torch.float64)
    return torch.cat([a, b, c, a + b - c])


@lru_cache(maxsize=1024)
def _values(number: int, shape: tuple[int, ...]) -> Tensor:
    return 0.5 + torch.rand(shape, generator=torch.Generator().manual_seed(number), dtype=torch.float64)
