"""Ops with their derivatives written out, for large float32 tensors on a CPU.

Values are those of the definitions in `ops`, to the last bit (tanh up to rounding); first derivatives are theirs up
to rounding. No autograd records what is done here: `tape` runs it, forward and back.

Why: torch's kernels for `where`, `masked_fill`, `var` and comparisons into bool are not vectorised, and the first
two mispredict a branch at every sign change of a random tensor. On 65,536 entries of random sign (one core of an AMD
EPYC) `where` takes 190 microseconds, `var` 300, an addition 6. A comparison written into a float tensor is vectorised,
and a product with it picks the same entries.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from normact.spaces import ops

Needs = tuple[bool, ...]
"""Which arguments need a gradient."""


class Adjoint(NamedTuple):
    """A pointwise op forward and back.

    Args:
        forward: arguments to the value, and whatever else `backward` wants of it.
        backward: gradient of the value (in its shape), value, what `forward` kept, arguments, needs; to one
            gradient an argument, in the value's shape. What is not needed may be anything.
    """

    forward: Callable[..., tuple[Tensor, Any]]
    backward: Callable[[Tensor, Tensor, Any, list[Tensor], Needs], tuple[Tensor | None, ...]]


def mask(comparison: Callable[..., Any], a: Tensor, b: Tensor | float) -> Tensor:
    """1 where the comparison holds, else 0, as floats."""
    return comparison(a, b, out=a.new_empty(0))


def _simple(function: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, None]]:
    return lambda *args: (function(*args), None)


def _max_back(g: Tensor, y: Tensor, kept: Any, args: list[Tensor], needs: Needs) -> tuple[Tensor | None, ...]:
    a, b = args
    share = mask(torch.gt, a, b).add_(mask(torch.ge, a, b)).mul_(0.5)  # a half to each at ties, as torch does
    to_a = share.mul_(g) if share.shape == g.shape else share * g
    return to_a, g - to_a if needs[1] else None


def _min_back(g: Tensor, y: Tensor, kept: Any, args: list[Tensor], needs: Needs) -> tuple[Tensor | None, ...]:
    return _max_back(g, y, kept, args[::-1], needs)  # where b is larger, a is the minimum


def _mul_back(g: Tensor, y: Tensor, kept: Any, args: list[Tensor], needs: Needs) -> tuple[Tensor | None, ...]:
    a, b = args
    return g * b if needs[0] else None, g * a if needs[1] else None


def _div(a: Tensor, b: Tensor) -> tuple[Tensor, Any]:
    eps = 1e-5
    size = b.abs()
    if size.amin().item() > eps:
        return a / b, (b, None)
    safe = mask(torch.gt, size, eps)
    sign = mask(torch.lt, b, 0.0).mul_(-2).add_(1)
    divisor = torch.where(b.isnan(), eps, b * safe + sign.mul_(1 - safe).mul_(eps))
    return a / divisor, (divisor, safe)


def _div_back(g: Tensor, y: Tensor, kept: Any, args: list[Tensor], needs: Needs) -> tuple[Tensor | None, ...]:
    divisor, safe = kept
    to_a = g / divisor
    if not needs[1]:
        return to_a, None
    to_b = torch.mul(to_a, y).neg_()
    return to_a, to_b if safe is None else to_b.mul_(safe)


def _log(a: Tensor) -> tuple[Tensor, Any]:
    eps = 1e-5
    size, safe = a.abs(), None
    if not size.amin().item() > eps:
        safe = mask(torch.gt, size, eps)
        size = torch.where(size.isnan(), eps, size) if bool(size.isnan().any()) else size
        size = (size * safe).add_((1 - safe).mul_(eps))
    return size.log().mul_(a.sign()), (size, safe)


def _log_back(g: Tensor, y: Tensor, kept: Any, args: list[Tensor], needs: Needs) -> tuple[Tensor | None, ...]:
    size, safe = kept
    to_a = g / size
    return (to_a if safe is None else to_a.mul_(safe),)


def _sqrt(a: Tensor) -> tuple[Tensor, Any]:
    eps = 1e-6
    size = a.abs()
    smallest, largest = (value.item() for value in size.aminmax())
    if smallest > eps and largest < torch.inf:
        root = size.sqrt_()
        return root * a.sign(), (root, None)
    safe = mask(torch.gt, size, eps)
    root = size.clamp_min(eps).sqrt_()
    return ops.sqrt(a), (root, safe)


def _sqrt_back(g: Tensor, y: Tensor, kept: Any, args: list[Tensor], needs: Needs) -> tuple[Tensor | None, ...]:
    root, safe = kept
    slope = root.reciprocal().mul_(0.5)
    if safe is not None:
        slope = slope.mul_(safe).add_((1 - safe).mul_(1e-6**-0.5))
    return (slope.mul_(g),)


def _tanh(a: Tensor) -> tuple[Tensor, None]:
    # oneDNN's is vectorised: 30 microseconds for 65,536 entries where torch's takes 138, and as exact.
    vectorised = torch.backends.mkldnn.is_available() and a.numel() >= 4096 and a.is_contiguous()
    return a.to_mkldnn().tanh().to_dense() if vectorised else torch.tanh(a), None


_aten = torch.ops.aten

ADJOINTS: dict[Callable[..., Tensor], Adjoint] = {
    ops.add: Adjoint(_simple(ops.add), lambda g, y, kept, args, needs: (g, g)),
    ops.sub: Adjoint(_simple(ops.sub), lambda g, y, kept, args, needs: (g, -g if needs[1] else None)),
    ops.mul: Adjoint(_simple(ops.mul), _mul_back),
    ops.div: Adjoint(_div, _div_back),
    ops.maximum: Adjoint(_simple(ops.maximum), _max_back),
    ops.minimum: Adjoint(_simple(ops.minimum), _min_back),
    ops.neg: Adjoint(_simple(ops.neg), lambda g, y, kept, args, needs: (-g,)),
    ops.absolute: Adjoint(_simple(ops.absolute), lambda g, y, kept, args, needs: (args[0].sign().mul_(g),)),
    ops.square: Adjoint(_simple(ops.square), lambda g, y, kept, args, needs: (torch.mul(g, args[0]).mul_(2),)),
    ops.exp: Adjoint(_simple(ops.exp), lambda g, y, kept, args, needs: (g * y,)),
    ops.log: Adjoint(_log, _log_back),
    ops.sqrt: Adjoint(_sqrt, _sqrt_back),
    ops.sigmoid: Adjoint(_simple(ops.sigmoid), lambda g, y, kept, args, needs: (_aten.sigmoid_backward(g, y),)),
    ops.tanh: Adjoint(_tanh, lambda g, y, kept, args, needs: (_aten.tanh_backward(g, y),)),
    ops.relu: Adjoint(_simple(ops.relu), lambda g, y, kept, args, needs: (_aten.threshold_backward(g, y, 0),)),
    ops.silu: Adjoint(_simple(ops.silu), lambda g, y, kept, args, needs: (_aten.silu_backward(g, args[0]),)),
    ops.gelu: Adjoint(_simple(ops.gelu), lambda g, y, kept, args, needs: (_aten.gelu_backward(g, args[0]),)),
}
"""By the function that defines the op. A graph with any other op is left to autograd."""


def _affine_back(g: Tensor, y: Tensor, kept: Any, args: list[Tensor], needs: Needs) -> tuple[Tensor | None, ...]:
    value, weight, _ = args
    return g * weight if needs[0] else None, g * value if needs[1] else None, g


AFFINE = Adjoint(lambda value, weight, bias: ((value * weight).add_(bias), None), _affine_back)
"""value * weight + bias."""
