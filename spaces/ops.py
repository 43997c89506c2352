"""The primitive operations, each defined once: name, function, algebra, how it is printed.

A pointwise op's `function` is both what `GraphLayer` runs and what an exported file contains: the emitter
reads its source. So a function here uses nothing but its arguments, `torch` and numbers.

Guards are the exact identity away from the singular point, and the value, the derivative and the second
derivative stay finite on it: the stability gate differentiates twice. The few ops marked `guarded=False` are the
plain operators of a published benchmark (see `act_bench`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from normact.spaces.errors import InputError, unknown_name
from normact.spaces.inputs import is_input
from normact.spaces.moments import INDEX_SETS, STATISTICS, Moment

OP_TABLE_VERSION = 1
"""Part of every `key`: raise it when the meaning of an existing op changes."""


@dataclass(frozen=True)
class Op:
    """One primitive.

    Args:
        name: how it is written in an expression; a Python identifier in ASCII.
        arity: number of arguments, at least 1.
        function: tensors in, one tensor out, elementwise and broadcasting; None for a moment.
        commutative: whether the order of the arguments does not matter.
        symbol: infix (arity 2) or prefix (arity 1) symbol for formulas; empty for `name(...)`.
        precedence: binds tighter when larger; of use with `symbol` only.
        latex: template with `{0}`, `{1}` for LaTeX; empty for `\\mathrm{name}(...)`.
        moment: what a moment computes; None for a pointwise op.
        passes: how many times it reads or writes a whole tensor, for the relative cost.
        guarded: False where the plain operator is meant, which is not finite at its singular points.
    """

    name: str
    arity: int
    function: Callable[..., Tensor] | None = field(compare=False)
    commutative: bool = False
    symbol: str = ""
    precedence: int = 9
    latex: str = ""
    moment: Moment | None = None
    passes: float = 1.0
    guarded: bool = True

    def __post_init__(self) -> None:
        if not (self.name.isidentifier() and self.name.isascii()):
            raise InputError(f"an op's name must be a Python identifier in ASCII, got {self.name!r}")
        if self.arity < 1:
            raise InputError(f"op {self.name!r} has arity {self.arity}, but an op takes at least 1 argument")
        if (self.function is None) == (self.moment is None):
            raise InputError(f"op {self.name!r} needs exactly one of `function` and `moment`")


def add(a: Tensor, b: Tensor) -> Tensor:
    return a + b


def mul(a: Tensor, b: Tensor) -> Tensor:
    return a * b


def div(a: Tensor, b: Tensor) -> Tensor:
    eps = 1e-5
    guard = eps * torch.where(b < 0, -1.0, 1.0).to(b.dtype)  # the cast keeps half precision what it is
    return a / torch.where(b.abs() > eps, b, guard)


def maximum(a: Tensor, b: Tensor) -> Tensor:
    return torch.maximum(a, b)


def neg(a: Tensor) -> Tensor:
    return -a


def sigmoid(a: Tensor) -> Tensor:
    return torch.sigmoid(a)


def tanh(a: Tensor) -> Tensor:
    return torch.tanh(a)


def exp(a: Tensor) -> Tensor:
    return torch.exp(a)


def log(a: Tensor) -> Tensor:
    eps = 1e-5
    size = a.abs()
    return torch.sign(a) * torch.log(torch.where(size > eps, size, eps))


def absolute(a: Tensor) -> Tensor:
    return a.abs()


def square(a: Tensor) -> Tensor:
    return a.square()


def sqrt(a: Tensor) -> Tensor:
    eps = 1e-6  # linear within: continuous, and both derivatives stay finite
    size = a.abs()
    root = torch.sign(a) * torch.sqrt(torch.where(size > eps, size, eps))
    return torch.where(size > eps, root, a * eps**-0.5)


def sub(a: Tensor, b: Tensor) -> Tensor:
    return a - b


def minimum(a: Tensor, b: Tensor) -> Tensor:
    return torch.minimum(a, b)


def relu(a: Tensor) -> Tensor:
    return torch.relu(a)


def relu6(a: Tensor) -> Tensor:
    return torch.clamp(a, 0.0, 6.0)


def leaky_relu(a: Tensor) -> Tensor:
    return torch.nn.functional.leaky_relu(a, 0.01)


def elu(a: Tensor) -> Tensor:
    return torch.nn.functional.elu(a)


def selu(a: Tensor) -> Tensor:
    return torch.nn.functional.selu(a)


def gelu(a: Tensor) -> Tensor:
    return torch.nn.functional.gelu(a)


def silu(a: Tensor) -> Tensor:
    return torch.nn.functional.silu(a)


def mish(a: Tensor) -> Tensor:
    return torch.nn.functional.mish(a)


def softplus(a: Tensor) -> Tensor:
    return torch.nn.functional.softplus(a)


def softsign(a: Tensor) -> Tensor:
    return torch.nn.functional.softsign(a)


def log_sigmoid(a: Tensor) -> Tensor:
    return torch.nn.functional.logsigmoid(a)


def hard_sigmoid(a: Tensor) -> Tensor:
    return torch.clamp(a / 6.0 + 0.5, 0.0, 1.0)


def erf(a: Tensor) -> Tensor:
    return torch.erf(a)


def sin(a: Tensor) -> Tensor:
    return torch.sin(a)


def cos(a: Tensor) -> Tensor:
    return torch.cos(a)


def atan(a: Tensor) -> Tensor:
    return torch.atan(a)


def asinh(a: Tensor) -> Tensor:
    return torch.asinh(a)


def zeros(a: Tensor) -> Tensor:
    return torch.zeros_like(a)


def ones(a: Tensor) -> Tensor:
    return torch.ones_like(a)


def identity(a: Tensor) -> Tensor:
    return a


def reciprocal(a: Tensor) -> Tensor:
    return 1.0 / a


def erfc(a: Tensor) -> Tensor:
    return torch.erfc(a)


def sinh(a: Tensor) -> Tensor:
    return torch.sinh(a)


def cosh(a: Tensor) -> Tensor:
    return torch.cosh(a)


def expm1(a: Tensor) -> Tensor:
    return torch.expm1(a)


def bessel_i0e(a: Tensor) -> Tensor:
    return torch.special.i0e(a)


def bessel_i1e(a: Tensor) -> Tensor:
    return torch.special.i1e(a)


def plain_div(a: Tensor, b: Tensor) -> Tensor:
    return a / b


def plain_pow(a: Tensor, b: Tensor) -> Tensor:
    return torch.pow(a, b)


def _moment_ops() -> Iterable[Op]:
    for index_set in INDEX_SETS:
        for statistic in STATISTICS:
            subscript = index_set[0].upper()
            letter = {"mean": r"\mu", "rms": r"\rho", "std": r"\sigma"}[statistic]
            yield Op(
                f"{index_set}_{statistic}",
                1,
                None,
                latex=rf"{letter}_{{{{{subscript}}}}}\left({{0}}\right)",
                moment=Moment(index_set, statistic),
                passes=2.0,
            )


EVONORM_POINTWISE = (
    "add", "mul", "div", "max", "neg", "sigmoid", "tanh", "exp", "log", "abs", "square", "sqrt",
)  # fmt: skip
"""The 12 pointwise ops of EvoNorm (arXiv 2004.02967), in the order of its table."""

EVONORM_MOMENTS = tuple(f"{i}_{s}" for i in ("batch", "instance", "layer", "group") for s in STATISTICS)
"""Its 3 moments over 4 index sets."""

OPS: dict[str, Op] = {}
"""Every op that an expression may name. `register` adds to it; nothing else does."""


def register(op: Op) -> Op:
    """Add an op to `OPS` and return it. The same op again is fine; another of the same name is refused.

    Raises:
        InputError: the name is taken by a different op, or would hide an input name (`x`, `zero`, `v0`...).
    """
    if is_input(op.name) or op.name == "affine":
        raise InputError(f"an op cannot be called {op.name!r}: that is the name of an input; choose another")
    known = OPS.get(op.name)
    if known is not None and (known != op or not _same_function(known.function, op.function)):
        raise InputError(f"op {op.name!r} is already registered with another meaning; choose another name")
    return OPS.setdefault(op.name, op)


def _same_function(a: Callable[..., Tensor] | None, b: Callable[..., Tensor] | None) -> bool:
    if a is None or b is None:
        return a is b
    # By code, not by identity: a worker that imports the module again gets new, equal functions.
    return a is b or (_code(a) is not None and _code(a) == _code(b))


def _code(function: Callable[..., Tensor]) -> object:
    return getattr(function, "__code__", None)


def find_op(name: str, where: str = "") -> Op:
    """The op of that name.

    Raises:
        InputError: no op has that name; the message gives the nearest one.
    """
    try:
        return OPS[name]
    except KeyError:
        raise unknown_name("op", name, OPS, where) from None


def _fill_table() -> None:
    def named(name: str) -> str:
        return r"\mathrm{{" + name.replace("_", r"\_") + r"}}\left({0}\right)"

    for op in (
        Op("add", 2, add, True, "+", 1, "{0} + {1}", passes=1.5),
        Op("mul", 2, mul, True, "*", 2, r"{0} \cdot {1}", passes=1.5),
        Op("div", 2, div, False, "/", 2, r"\frac{{{0}}}{{{1}}}", passes=1.5),
        Op("max", 2, maximum, True, latex=r"\max\left({0}, {1}\right)", passes=1.5),
        Op("neg", 1, neg, symbol="-", precedence=3, latex="-{0}"),
        Op("sigmoid", 1, sigmoid, latex=r"\sigma\left({0}\right)"),
        Op("tanh", 1, tanh, latex=r"\tanh\left({0}\right)"),
        Op("exp", 1, exp, latex=r"e^{{{0}}}"),
        Op("log", 1, log, latex=r"\mathrm{{sln}}\left({0}\right)"),
        Op("abs", 1, absolute, latex=r"\left|{0}\right|"),
        Op("square", 1, square, latex=r"\left({0}\right)^2"),
        Op("sqrt", 1, sqrt, latex=r"\mathrm{{ssqrt}}\left({0}\right)"),
        *_moment_ops(),
        Op("sub", 2, sub, False, "-", 1, "{0} - {1}", passes=1.5),
        Op("min", 2, minimum, True, latex=r"\min\left({0}, {1}\right)", passes=1.5),
        Op("sin", 1, sin, latex=r"\sin\left({0}\right)"),
        Op("cos", 1, cos, latex=r"\cos\left({0}\right)"),
        *(
            Op(f.__name__, 1, f, latex=named(f.__name__))
            for f in (
                relu, relu6, leaky_relu, elu, selu, gelu, silu, mish, softplus, softsign, log_sigmoid,
                hard_sigmoid, erf, atan, asinh,
            )
        ),
        *(
            Op(f.__name__, 1, f, latex=named(f.__name__))
            for f in (zeros, ones, identity, erfc, sinh, cosh, expm1, bessel_i0e, bessel_i1e)
        ),
        Op("reciprocal", 1, reciprocal, latex=named("reciprocal"), guarded=False),
        Op("plain_div", 2, plain_div, latex=r"\frac{{{0}}}{{{1}}}", passes=1.5, guarded=False),
        Op("plain_pow", 2, plain_pow, latex=r"\left({0}\right)^{{{1}}}", passes=1.5, guarded=False),
    ):  # fmt: skip
        register(op)


_fill_table()

BENCHMARK_ONLY = (
    "zeros", "ones", "identity", "erfc", "sinh", "cosh", "expm1", "bessel_i0e", "bessel_i1e",
    "reciprocal", "plain_div", "plain_pow",
)  # fmt: skip
"""Ops that Act-Bench's operator set has beyond the others (see `act_bench`); of the presets, `pangaea` has them too."""

ACTIVATIONS = tuple(
    name
    for name, op in OPS.items()
    if op.arity == 1 and op.moment is None and name not in (*EVONORM_POINTWISE, *BENCHMARK_ONLY)
)
"""The usual activations and elementary functions; off in the EvoNorm presets."""
