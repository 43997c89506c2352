"""The values of several bases and of the base branch in one tensor, as one step of autograd."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from normact.spaces.kan.basis import Basis

BLOCK = 400_000
"""Values of a basis that are worked on at a time: what the many passes of a formula go over stays in the cache."""


class _Packed(torch.autograd.Function):
    """See `pack`. Keeps x and the planes alone, which the product of matrices behind it keeps too."""

    @staticmethod
    def forward(ctx: Any, bases: Sequence[Basis], x: Tensor, base: Tensor | None, *parameters: Tensor) -> Tensor:
        ctx.bases, ctx.has_base = bases, base is not None
        rows = x.reshape(-1, x.shape[-1])
        planes = x.new_empty(len(rows), sum(basis.size for basis in bases) + ctx.has_base, x.shape[-1])
        for basis, part in zip(bases, _parts(bases, planes), strict=True):
            for block, out in zip(*_blocks(basis, rows, part), strict=True):
                out.copy_(basis.planes(block))
        if base is not None:
            planes.select(-2, -1).copy_(base.reshape(rows.shape))
        ctx.save_for_backward(x, planes, *parameters)
        return planes.view(*x.shape[:-1], *planes.shape[1:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, planes, *parameters = ctx.saved_tensors
        x_needed, base_needed, *needs = ctx.needs_input_grad[1:]
        found: list[Tensor | None] = []
        x_grad: Tensor | None = None
        above = grad.reshape(planes.shape)
        for basis, own, part in zip(ctx.bases, _parts(ctx.bases, planes), _parts(ctx.bases, above), strict=True):
            count = sum(1 for _ in basis.parameters())
            given, parameters = parameters[:count], parameters[count:]
            needed, needs = (x_needed, *needs[:count]), needs[count:]
            of_x, *others = _gradients(basis, x, own, part, given, needed) if any(needed) else [None] * (count + 1)
            x_grad = of_x if x_grad is None or of_x is None else x_grad + of_x
            found += others
        return None, x_grad, grad.select(-2, -1) if base_needed else None, *found


def pack(bases: Sequence[Basis], x: Tensor, base: Tensor | None) -> Tensor:
    """The planes of bases at x (..., I), one after the other, and of the base branch (..., I): (..., planes, I).

    Derivatives of derivatives come from autograd, which computes the planes again. Under `torch.compile` and in an
    export all is left to them.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        planes = [basis.planes(x) for basis in bases] + ([] if base is None else [base.unsqueeze(-2)])
        return torch.cat(planes, -2) if len(planes) > 1 else planes[0]
    return _Packed.apply(bases, x, base, *(p for basis in bases for p in basis.parameters()))


def _parts(bases: Sequence[Basis], planes: Tensor) -> tuple[Tensor, ...]:
    """Each basis's share of all planes."""
    sizes = [basis.size for basis in bases]
    return planes.narrow(-2, 0, sum(sizes)).split(sizes, -2)


def _blocks(basis: Basis, *tensors: Tensor) -> list[tuple[Tensor, ...]]:
    """Tensors of as many rows, block by block."""
    rows = max(1, BLOCK // (basis.size * basis.features))
    return [tensor.split(rows) for tensor in tensors]


def _gradients(
    basis: Basis, x: Tensor, planes: Tensor, grad: Tensor, parameters: Sequence[Tensor], needed: Sequence[bool]
) -> Sequence[Tensor | None]:
    """Of x, then of the parameters; by the basis's own formula where it has one and all is as it was."""
    swapped = any(a is not b for a, b in zip(parameters, basis.parameters(), strict=True))
    if not (torch.is_grad_enabled() or swapped):
        blocks = zip(*_blocks(basis, x.reshape(-1, x.shape[-1]), planes, grad), strict=True)
        found = [basis.vjp(*block) for block in blocks]
        if None not in found:
            of_x, *others = zip(*found, strict=True)
            return torch.cat(of_x).view(x.shape), *(sum(parts[1:], parts[0]) for parts in others)
    return _derived(basis, x, grad.view(*x.shape[:-1], *grad.shape[1:]), parameters, needed)


def _derived(
    basis: Basis, x: Tensor, grad: Tensor, parameters: Sequence[Tensor], needed: Sequence[bool]
) -> list[Tensor | None]:
    """The same by autograd."""
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        names = dict(zip((name for name, _ in basis.named_parameters()), parameters, strict=True))
        value = torch.func.functional_call(basis, names, (x,)).transpose(-1, -2)
        wanted = [tensor for tensor, need in zip((x, *parameters), needed, strict=True) if need]
        found = iter(torch.autograd.grad(value, wanted, grad, create_graph=again, allow_unused=True))
    return [next(found) if need else None for need in needed]
