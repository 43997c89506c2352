"""The fingerprint: what a layer computes, as a hash. The project's identity test, not a proof.

In float64, on the CPU, in one thread: outputs and gradients on two successive different train batches, then
in evaluation, at every probe site. Every parameter gets fixed random values of its own (with v0 = 0 and
v1 = 1 distinct layers collapse). Each tensor is quantised relative to its largest entry, with a zero floor.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn

from normact.spaces.site import Site

LEVELS = 2**20
"""Quantisation steps between zero and a tensor's largest entry."""

ZERO = 1e-12
"""A tensor whose largest entry is below this is all zeros."""


def fingerprint(build: Callable[[Site], nn.Module], sites: Sequence[Site]) -> str:
    """The hash, 32 hexadecimal digits, of what `build` gives at the sites.

    Gradients are taken with respect to the input and to each parameter; a parameter without influence counts
    like one that is not there. Non-finite entries are one symbol.
    """
    digest = hashlib.blake2b(digest_size=16)
    with _one_thread():
        for site in sites:
            module = build(site).double()
            _set_parameters(module)
            for mode, batch in ((True, 0), (True, 1), (False, 0)):
                module.train(mode)
                for name, tensor in _response(module, *probe_batch(site, batch)):
                    digest.update(name.encode())
                    digest.update(_quantised(tensor))
    return digest.hexdigest()


def probe_shape(site: Site) -> tuple[int, ...]:
    """A small shape for a site, all sizes distinct where the layout allows; an image is no smaller than the kernel."""
    c, kernel = site.in_features, site.conv.kernel_size if site.conv else 1
    return {"NCHW": (4, c, max(3, kernel), max(5, kernel + 2)), "NLC": (4, 5, c), "NC": (7, c)}[site.layout]


@lru_cache(maxsize=256)
def probe_batch(site: Site, number: int) -> tuple[Tensor, Tensor]:
    """Input and cotangent (float64, of the output's shape) of a probe batch; later ones are scaled and shifted."""
    generator = torch.Generator().manual_seed(7919 * (number + 1) + site.in_features)
    shape = probe_shape(site)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    if number:
        channels = torch.randn(site.in_features, generator=generator, dtype=torch.float64)
        x = 2.5 * x + 0.7 + (channels if site.layout == "NLC" else channels.view(-1, *[1] * (x.dim() - 2)))
    return x, torch.randn(site.output_shape(shape), generator=generator, dtype=torch.float64)


@lru_cache(maxsize=4096)
def _values(name: str, shape: tuple[int, ...]) -> Tensor:
    seed = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=7).digest())
    generator = torch.Generator().manual_seed(seed)
    return 0.5 + torch.rand(shape, generator=generator, dtype=torch.float64)


@torch.no_grad()
def _set_parameters(module: nn.Module) -> None:
    fixed = _fixed_starts(module)
    for name, parameter in module.named_parameters():
        values = _values(name, tuple(parameter.shape))
        parameter.copy_(values + parameter if name in fixed else values)


def _fixed_starts(module: nn.Module) -> set[str]:
    """Parameters whose start, alike in each copy, tells functions apart: modules name them, or all, `fixed_starts`."""
    found = set()
    for prefix, part in module.named_modules():
        named = getattr(part, "fixed_starts", ())
        found |= {
            f"{prefix}.{name}" if prefix else name
            for name, _ in part.named_parameters(recurse=False)
            if named is True or (named and name in named)
        }
    return found


def _response(module: nn.Module, x: Tensor, cotangent: Tensor) -> Iterator[tuple[str, Tensor]]:
    x = x.clone().requires_grad_()
    y = module(x)
    yield "y", y.detach()
    names, parameters = ["x"], [x]
    for name, parameter in module.named_parameters():
        names.append(name)
        parameters.append(parameter)
    if not y.requires_grad:
        return
    grads = torch.autograd.grad(y, parameters, cotangent, allow_unused=True)
    for name, grad in sorted(zip(names, grads, strict=True), key=lambda item: item[0]):
        if grad is not None and not _is_zero(grad):
            yield name, grad


def _is_zero(tensor: Tensor) -> bool:
    return _largest(tensor.numpy()) < ZERO


def _largest(values: np.ndarray) -> float:
    return float(np.abs(values).max(initial=0.0))


def _quantised(tensor: Tensor) -> bytes:
    values = tensor.numpy()  # on arrays of this size numpy is several times faster
    finite = None
    largest = _largest(values)
    if not math.isfinite(largest):
        finite = np.isfinite(values)
        values = np.where(finite, values, 0.0)
        largest = _largest(values)
    if largest < ZERO:
        steps = np.zeros(values.shape, np.int32)
    else:
        steps = np.rint(values * (LEVELS / largest)).astype(np.int32)
    if finite is not None:
        steps[~finite] = 2**30
    # The largest entry itself, to as many bits: otherwise y and 2 y would be one.
    size = f"{largest:.5e}" if largest >= ZERO else "0"
    return size.encode() + steps.tobytes()


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    if threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
