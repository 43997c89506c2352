"""`Data`: splits of examples, held in memory as tensors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sized
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from normact.spaces.errors import InputError, unknown_name

Loss = Literal["cross_entropy", "mse"]


@dataclass(frozen=True)
class Split:
    """Examples: `x` float32 (n, ...), `y` int64 (n,) for classes or float32 (n, outputs) for values."""

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.x)

    def check_finite(self, what: str) -> Split:
        """The examples themselves, checked.

        Raises:
            InputError: an input or target is NaN or infinite; how many, of how many.
        """
        for name, values in (("inputs", self.x), ("targets", self.y)):
            if not (finite := torch.isfinite(values)).all():
                bad = ~finite.flatten(1).all(1) if finite.dim() > 1 else ~finite
                raise InputError(
                    f"{values.numel() - int(finite.sum())} of {values.numel()} values of the {what} {name} are NaN or "
                    f"infinite, in {int(bad.sum())} of {len(self)} examples, first in number {int(bad.nonzero()[0])}; "
                    "clean the data, or leave those examples out"
                )
        return self

    def to(self, device: torch.device | str) -> Split:
        """The examples on a device."""
        return Split(self.x.to(device), self.y.to(device))


@dataclass(frozen=True)
class Splits:
    """What a search may see: examples to train on and to validate on."""

    train: Split
    validation: Split

    def check_finite(self) -> Splits:
        """The splits themselves, checked.

        Raises:
            InputError: see `Split.check_finite`.
        """
        return Splits(self.train.check_finite("training"), self.validation.check_finite("validation"))


class Data(ABC):
    """A data set. Made from config in every worker; loads at the first `load`, so making one is cheap.

    Attributes:
        loss: that nets are trained with.
        name: what tables call it; empty for the name of what makes it.
    """

    loss: Loss = "cross_entropy"
    name: str = ""

    @property
    def target_unit(self) -> float:
        """How much 1 of the targets handed over is in the data's own unit: not 1 where they are standardised."""
        return 1.0

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Shape of one example."""

    @property
    @abstractmethod
    def outputs(self) -> int:
        """Classes, or values to predict."""

    @abstractmethod
    def load(self) -> Splits:
        """Train and validation examples; the same at every call.

        Raises:
            InputError: the files are not there, with what to do about it.
        """

    @abstractmethod
    def load_test(self) -> Split:
        """Test examples. The final rerank alone calls this."""


class TensorData(Data):
    """Your own data: three torch Datasets of (x, y), or (x, y) pairs of tensors.

    Args:
        train: to train on.
        validation: to validate on.
        test: read by the final rerank alone.
        outputs: classes, or values to predict.
        loss: `cross_entropy` for classes, `mse` for values.

    Raises:
        InputError: a split is empty or holds NaN or infinity, the splits' shapes differ, the loss is unknown, or
            targets do not suit it.
    """

    def __init__(self, train: Any, validation: Any, test: Any, outputs: int, loss: Loss = "cross_entropy") -> None:
        splits = {"training": train, "validation": validation, "test": test}
        self._train, self._validation, self._test = (_stack(s).check_finite(name) for name, s in splits.items())
        self._outputs = outputs
        self.loss = loss
        if loss not in get_args(Loss):
            raise unknown_name("loss", loss, get_args(Loss))
        for split in (self._train, self._validation, self._test):
            _check_targets(split.y, outputs, loss)
        shapes = {tuple(s.x.shape[1:]) for s in (self._train, self._validation, self._test)}
        if len(shapes) != 1:
            raise InputError(f"train, validation and test examples have different shapes: {sorted(shapes)}")

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self._train.x.shape[1:])

    @property
    def outputs(self) -> int:
        return self._outputs

    def load(self) -> Splits:
        return Splits(self._train, self._validation)

    def load_test(self) -> Split:
        return self._test


def _stack(examples: Any) -> Split:
    if isinstance(examples, tuple | list) and len(examples) == 2 and isinstance(examples[0], Tensor):
        x, y = examples
    elif isinstance(examples, Sized) and hasattr(examples, "__getitem__") and len(examples):
        rows = [examples[i] for i in range(len(examples))]
        x = torch.stack([torch.as_tensor(row[0]) for row in rows])
        y = torch.stack([torch.as_tensor(row[1]) for row in rows])
    else:
        raise InputError(f"expected a non-empty Dataset of (x, y) or a pair of tensors, got {type(examples).__name__}")
    if not len(x) or len(x) != len(y):
        raise InputError(f"a split has {len(x)} inputs and {len(y)} targets; both must be equal and above 0")
    return Split(x.float(), y.float() if y.is_floating_point() else y.long())


def _check_targets(y: Tensor, outputs: int, loss: Loss) -> None:
    if loss == "cross_entropy":
        if y.is_floating_point() or y.dim() != 1:
            raise InputError(f"classes are whole numbers, one per example, got {y.dtype} of shape {tuple(y.shape)}")
        if not 0 <= int(y.min()) <= int(y.max()) < outputs:
            raise InputError(f"classes must lie in 0 to {outputs - 1}, got {int(y.min())} to {int(y.max())}")
    elif not y.is_floating_point() or y[0].numel() != outputs:
        raise InputError(
            f"targets of loss mse are floats, {outputs} per example, got {y.dtype} of shape {tuple(y.shape)}"
        )


def three_way(count: int, validation: int, test: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """A fixed random partition of range(count): the rest for training, so many for validation and for test."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return order[validation + test :], order[:validation], order[validation : validation + test]
