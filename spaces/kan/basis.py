"""`Basis`: the functions of one input that a KAN layer mixes, and the table of families."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from normact.spaces.errors import InputError, unknown_name

WIDE, UNIT = 2.0, 1.0
"""How far from 0 a normalized input reaches: two standard deviations, or the ends of [-1, 1]."""


class Basis(nn.Module, ABC):
    """K functions of one number, applied to each of I inputs: x (..., I) to (..., I, K).

    A family is one subclass in one file of `bases/`. Its constructor takes `features` and `reach`, and beyond them
    the keywords that `choices` names, each with a default. It may own parameters; vectors (one axis) are not decayed
    by our recipes. All is elementwise: the functions of one input see no other input and no other sample.

    Attributes:
        name: of the family, as it stands in genomes, texts and configs.
        choices: what a search may set, and the values it tries.
        bounded: whether inputs must lie in [-1, 1], which a polynomial needs; see `normalizers.BOUNDED`.

    Args:
        features: I, at least 1.
        size: K, at least 1.
        reach: the inputs are expected within [-reach, reach], which is where a family puts its grid.
    """

    name: ClassVar[str] = ""
    choices: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    bounded: ClassVar[bool] = False
    kept: ClassVar[int] = 1  # tensors of the planes' size that autograd keeps, for estimates of memory
    fixed_starts: ClassVar[Sequence[str] | bool] = True  # what the parameters start from is part of the function

    def __init__(self, features: int, size: int, reach: float = WIDE) -> None:
        super().__init__()
        if features < 1:
            raise InputError(f"a basis needs at least 1 input feature, got {features}")
        if not 1 <= size <= MOST_FUNCTIONS:
            name = self.name or type(self).__name__
            raise InputError(f"{name} would have {size} functions an input; 1 to {MOST_FUNCTIONS} are possible")
        if not 0 < reach < float("inf"):
            raise InputError(f"reach must be a finite number above 0, got {reach}")
        self.features = features
        self.size = size
        self.reach = float(reach)

    @abstractmethod
    def planes(self, x: Tensor) -> Tensor:
        """(..., I) to (..., K, I): function after function, so that each lies together in memory."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., I) to (..., I, K): the value of each function at each input; give float32 or float64."""
        return self.planes(x).transpose(-1, -2)

    def vjp(self, x: Tensor, planes: Tensor, grad: Tensor) -> tuple[Tensor, ...] | None:
        """From the gradient of the planes that of x and of each parameter, in their order, without autograd.

        None leaves it to autograd, which then computes the planes again.

        Args:
            x: (N, I), what `planes` was called with.
            planes: (N, K, I), what it gave.
            grad: (N, K, I).
        """
        return None

    def relative_std(self) -> Tensor:
        """(K,): how large the coefficients of each function start, relative to each other. Alike by default."""
        return torch.ones(self.size)


MOST_FUNCTIONS = 4096
"""Functions an input that any family may have: a slip of the keyboard, not a limit of memory."""

BASES: dict[str, type[Basis]] = {}
"""The families by name."""


def register_basis(cls: type[Basis]) -> type[Basis]:
    """Class decorator: put a family in the table.

    Raises:
        InputError: it has no name, or another family has it.
    """
    if not cls.name.isidentifier():
        raise InputError(f"{cls.__name__}.name must be a word, got {cls.name!r}")
    other = BASES.setdefault(cls.name, cls)
    if other is not cls and (other.__module__, other.__qualname__) != (cls.__module__, cls.__qualname__):
        raise InputError(f"there are two families named {cls.name!r}: {other.__module__} and {cls.__module__}")
    BASES[cls.name] = cls
    return cls


def find_basis(name: str) -> type[Basis]:
    """The family of that name.

    Raises:
        InputError: there is none; the nearest name is given.
    """
    if name not in BASES:
        raise unknown_name("basis family", name, BASES)
    return BASES[name]
