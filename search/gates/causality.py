"""`Causality`: at a causal site, no position sees a later one, and no sample another."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from normact.search.gates.base import Pass, ScreenContext, ScreenGate, Verdict
from normact.search.training import drawing_from
from normact.spaces.fingerprint import probe_batch
from normact.spaces.site import Site

Response = tuple[Tensor, Tensor]
"""Outputs, and the gradient of a weighted sum of some of them; both (batch, positions, channels)."""


class Causality(ScreenGate):
    """Proves at each causal probe site, in training, that a position depends on those up to it alone.

    For every cut between two positions, all that comes after it is replaced, in every sample: outputs before the cut
    may not change, nor the gradient of a sum of them, which may not reach beyond the cut either. Then all other
    samples are replaced: nothing may change for the one that stays. (Moments over the batch fail by either.)
    Positions are those of the sequence (NLC), or of the image, row by row (NCHW); NC has a single one, so that the
    samples alone are looked at. Spaces without causal sites pass.

    In float64; what the layer draws is the same in each call.

    Args:
        tolerance: largest change, relative to the largest entry.
    """

    name = "causality"

    def __init__(self, tolerance: float = 1e-9) -> None:
        self.tolerance = tolerance

    def check(self, ctx: ScreenContext) -> Verdict:
        for site in ctx.space.probe_sites():
            if site.causal and site.kind != "conv":
                module = ctx.space.build(ctx.candidate, site).double().train()
                if reason := self._leak(module, site):
                    return self.rejection(f"{reason} at a causal {site.layout} site")
        return Pass()

    def _leak(self, module: nn.Module, site: Site) -> str:
        x, other = (_positions(probe_batch(site, number)[0], site) for number in range(2))
        for cut in range(1, x.shape[1]):
            past = torch.zeros_like(x, dtype=torch.bool)
            past[:, :cut] = True
            if what := self._change(module, site, x, other, past):
                return f"{what} of positions up to {cut} depend on later ones"
        one = torch.zeros_like(x, dtype=torch.bool)
        one[0] = True
        if what := self._change(module, site, x, other, one):
            return f"{what} of a sample depend on other samples"
        return ""

    def _change(self, module: nn.Module, site: Site, x: Tensor, other: Tensor, kept: Tensor) -> str:
        """What differs at the places kept once all else is replaced by `other`; empty for nothing."""
        cotangent = _positions(probe_batch(site, 0)[1], site) * kept[..., :1]
        before, after = (_response(module, site, value, cotangent) for value in (x, torch.where(kept, x, other)))
        shown = kept[..., :1].expand_as(before[0])
        if not self._same(before[0][shown], after[0][shown], before[0]):
            return "outputs"
        held = torch.where(kept, after[1], 0.0)
        return "" if self._same(before[1], held, before[1]) else "gradients"

    def _same(self, a: Tensor, b: Tensor, scale: Tensor) -> bool:
        return bool(((a - b).abs() <= self.tolerance * scale.abs().max()).all())


def _positions(x: Tensor, site: Site) -> Tensor:
    """A tensor of the site's layout as (batch, positions, channels)."""
    if site.layout == "NLC":
        return x
    return x.flatten(2).transpose(1, 2) if site.layout == "NCHW" else x.unsqueeze(1)


def _response(module: nn.Module, site: Site, x: Tensor, cotangent: Tensor) -> Response:
    """Outputs at x and the gradient of their product with the cotangent, by a layer that keeps nothing of it."""
    module = copy.deepcopy(module)
    x = x.clone().requires_grad_()
    with drawing_from(0):
        y = _positions(module(_in_layout(x, site)), site)
    if not y.requires_grad:
        return y, torch.zeros_like(x)
    (gradient,) = torch.autograd.grad(y, x, cotangent, allow_unused=True)
    return y.detach(), torch.zeros_like(x) if gradient is None else gradient


def _in_layout(x: Tensor, site: Site) -> Tensor:
    if site.layout == "NLC":
        return x
    if site.layout == "NC":
        return x.squeeze(1)
    height, width = probe_batch(site, 0)[0].shape[2:]
    return x.transpose(1, 2).unflatten(2, (height, width))
