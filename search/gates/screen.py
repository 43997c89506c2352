"""Gates that train nothing: structure, probe, duplicate, signal propagation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor, nn

from normact.search.gates.base import Pass, ScreenContext, ScreenGate, Verdict
from normact.search.outcome import Rejection
from normact.spaces.errors import InputError
from normact.spaces.fingerprint import fingerprint, probe_batch, probe_shape
from normact.spaces.site import Site


class Structure(ScreenGate):
    """What can be said without building: the output depends on x, the space's constraints hold."""

    name = "structure"

    def check(self, ctx: ScreenContext) -> Verdict:
        reason = ctx.space.invalid(ctx.candidate)
        return self.rejection(reason) if reason else Pass()


class Probe(ScreenGate):
    """Outputs and input gradients on random batches of several scales and shifts.

    Rejected are: another shape than the site's, non-finite entries, an output that is constant or the same for
    every sample, and an input gradient that is zero throughout.

    Args:
        scales: standard deviations of the normal inputs.
        shifts: their means, one per scale.
    """

    name = "probe"

    def __init__(self, scales: Sequence[float] = (1.0, 0.1, 10.0, 1.0), shifts: Sequence[float] = (0, 0, 0, 3)) -> None:
        if not scales or len(scales) != len(shifts):
            raise InputError(f"probe needs one shift per scale, got {len(scales)} scales and {len(shifts)} shifts")
        self.batches = list(zip(scales, shifts, strict=True))

    def check(self, ctx: ScreenContext) -> Verdict:
        for site in ctx.space.probe_sites():
            module = ctx.space.build(ctx.candidate, site).train()
            for scale, shift in self.batches:
                base, cotangent = _probe(site)
                if verdict := self._trial(module, base * scale + shift, cotangent, f"{site.layout} {scale}x+{shift}"):
                    return verdict
        return Pass()

    def _trial(self, module: nn.Module, x: Tensor, cotangent: Tensor, where: str) -> Rejection | None:
        x = x.requires_grad_()
        y = module(x)
        if y.shape != cotangent.shape:
            return self.rejection(f"output shape {tuple(y.shape)}, expected {tuple(cotangent.shape)}, at {where}")
        if not torch.isfinite(y).all():
            return self.rejection(f"non-finite output at {where}")
        flat = y.detach().flatten(1)
        size = float(flat.abs().max())
        if float(flat.max() - flat.min()) <= 1e-6 * size:
            return self.rejection(f"constant output at {where}")
        if float((flat - flat[:1]).abs().max()) <= 1e-6 * size:
            return self.rejection(f"the same output for every sample at {where}")
        if not y.requires_grad:
            return self.rejection(f"no gradient at {where}")
        (gradient,) = torch.autograd.grad(y, x, cotangent, allow_unused=True)
        if gradient is None or not gradient.any():
            return self.rejection(f"zero gradient at {where}")
        if not torch.isfinite(gradient).all():
            return self.rejection(f"non-finite gradient at {where}")
        return None


@lru_cache(maxsize=64)
def _probe(site: Site) -> tuple[Tensor, Tensor]:
    x, cotangent = probe_batch(site, 0)
    return x.float(), cotangent.float()


class Duplicate(ScreenGate):
    """Takes the fingerprint. The driver, which knows all earlier ones, rejects what computes the same."""

    name = "duplicate"

    def check(self, ctx: ScreenContext) -> Verdict:
        ctx.fingerprint = fingerprint(lambda site: ctx.space.build(ctx.candidate, site), ctx.space.probe_sites())
        return Pass()


class SignalPropagation(ScreenGate):
    """A deep random net of the layer, at its start, neither kills nor explodes what goes through it.

    A stack of `depth` random maps (orthogonal over channels), each followed by the layer; of layers alone where they
    carry weights themselves (`linear` and `conv` sites, of those that keep the shape). Measured after it:
    the output's size (root mean square), the share of its variance that is between samples (1 for inputs that
    stay distinct, 0 where all samples become one), and the ratio of the input gradient's norm to the output's, of half
    the output's square; at `linear` and `conv` sites, where a layer may end with a norm, which holds that square fixed,
    of a random weighting of the output that is as large. The figures are named by layout, as in `NCHW.size`, and by
    site where a layout has several, as in `NC1.size`.

    Args:
        depth: layers in the stack.
        size: smallest and largest output size.
        gradient: smallest and largest gradient ratio.
        distinct: smallest share of variance between samples.
    """

    name = "propagation"

    def __init__(
        self,
        depth: int = 8,
        size: tuple[float, float] = (1e-4, 1e4),
        gradient: tuple[float, float] = (1e-5, 1e5),
        distinct: float = 1e-4,
    ) -> None:
        if depth < 1:
            raise InputError(f"propagation depth must be at least 1, got {depth}")
        self.depth = depth
        self.size = tuple(size)
        self.gradient = tuple(gradient)
        self.distinct = distinct

    def check(self, ctx: ScreenContext) -> Verdict:
        figures: dict[str, float] = {}
        sites = [site for site in ctx.space.probe_sites() if _keeps_shape(site)]
        layouts = [site.layout for site in sites]
        for site in sites:
            found = self._propagate(ctx, site)
            where = site.layout if layouts.count(site.layout) == 1 else f"{site.layout}{site.index}"
            figures.update({f"{where}.{name}": value for name, value in found.items()})
            if reason := self._reason(found):
                return self.rejection(f"{reason} after {self.depth} layers at {where}", **figures)
        return Pass(figures)

    def _reason(self, figures: dict[str, float]) -> str:
        if not all(math.isfinite(value) for value in figures.values()):
            return "non-finite signal"
        for name, (low, high) in (("size", self.size), ("gradient", self.gradient)):
            if not low <= figures[name] <= high:
                return f"{name} {figures[name]:.2g} outside {low:g} to {high:g}"
        if figures["distinct"] < self.distinct:
            return f"samples collapse: between-sample share {figures['distinct']:.2g} below {self.distinct:g}"
        return ""

    def _propagate(self, ctx: ScreenContext, site: Site) -> dict[str, float]:
        x, cotangent = _probe(site)
        x = x.clone().requires_grad_()
        h = x
        weighted = site.kind in ("linear", "conv")
        along = "nlc,cd->nld" if site.layout == "NLC" else "nc...,cd->nd..."
        for maps in _random_maps(site.in_features, self.depth):
            mixed = h if weighted else torch.einsum(along, h, maps)
            h = ctx.space.build(ctx.candidate, site).train()(mixed)
        flat = h.detach().flatten(1)
        direction = cotangent * (h.detach().norm() / cotangent.norm()) if weighted else h.detach()
        (gradient,) = torch.autograd.grad(h, x, direction)
        total = float(flat.var(correction=0))
        between = float(flat.var(0, correction=0).mean())
        size = float(flat.square().mean().sqrt())
        return {
            "size": size,
            "distinct": between / total if total > 0 else 0.0,
            "gradient": float(gradient.norm() / h.detach().norm()) if size > 0 else 0.0,
        }


def _keeps_shape(site: Site) -> bool:
    shape = probe_shape(site)
    return site.output_shape(shape) == shape


@lru_cache(maxsize=16)
def _random_maps(features: int, depth: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.linalg.qr(torch.randn(features, features, generator=generator))[0] for _ in range(depth)]
