"""The values of several bases and of the base branch in one tensor, as one step of autograd."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from normact.spaces.kan.basis import Basis


class _Packed(torch.autograd.Function):
    """See `pack`. Keeps x and the planes alone, which the product of matrices behind it keeps too."""

    @staticmethod
    def forward(ctx: Any, bases: Sequence[Basis], x: Tensor, base: Tensor | None, *parameters: Tensor) -> Tensor:
        ctx.bases, ctx.has_base = bases, base is not None
        planes = x.new_empty(*x.shape[:-1], sum(basis.size for basis in bases) + ctx.has_base, x.shape[-1])
        for basis, part in zip(bases, _parts(bases, planes), strict=True):
            part.copy_(basis.planes(x))
        if base is not None:
            planes.select(-2, -1).copy_(base)
        ctx.save_for_backward(x, planes, *parameters)
        return planes

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, planes, *parameters = ctx.saved_tensors
        x_needed, base_needed, *needs = ctx.needs_input_grad[1:]
        found: list[Tensor | None] = []
        x_grad: Tensor | None = None
        for basis, own, above in zip(ctx.bases, _parts(ctx.bases, planes), _parts(ctx.bases, grad), strict=True):
            count = sum(1 for _ in basis.parameters())
            given, parameters = parameters[:count], parameters[count:]
            needed, needs = needs[:count], needs[count:]
            if x_needed or any(needed):
                part, *others = _gradients(basis, x, own, above, given, (x_needed, *needed))
                x_grad = part if x_grad is None or part is None else x_grad + part
                found += others
            else:
                found += [None] * count
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


def _rows(x: Tensor, planes: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """With one leading axis."""
    rows = x.reshape(-1, x.shape[-1])
    shape = (len(rows), -1, x.shape[-1]) if planes.numel() else (0, planes.shape[-2], x.shape[-1])
    return rows, planes.reshape(shape), grad.reshape(shape)


def _gradients(
    basis: Basis, x: Tensor, planes: Tensor, grad: Tensor, parameters: Sequence[Tensor], needed: Sequence[bool]
) -> Sequence[Tensor | None]:
    """Of x, then of the parameters; the basis's own formula where it has one and all is as it was."""
    swapped = any(a is not b for a, b in zip(parameters, basis.parameters(), strict=True))
    again = torch.is_grad_enabled()
    own = None if again or swapped else basis.vjp(*_rows(x, planes, grad))
    if own is not None:
        return own[0].view(x.shape), *own[1:]
    with torch.enable_grad():
        names = dict(zip((name for name, _ in basis.named_parameters()), parameters, strict=True))
        value = torch.func.functional_call(basis, names, (x,)).transpose(-1, -2)
        wanted = [tensor for tensor, need in zip((x, *parameters), needed, strict=True) if need]
        found = iter(torch.autograd.grad(value, wanted, grad, create_graph=again, allow_unused=True))
    return [next(found) if need else None for need in needed]
