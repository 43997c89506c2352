"""Scikit-learn's digits: 1,797 real 8x8 images of handwritten digits, in its wheel."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from normact.search.data.base import Data, Split, Splits, three_way
from normact.spaces.errors import InputError


class Digits(Data):
    """1,797 images (1, 8, 8) of 10 classes: 60% train, 20% validation, 20% test, by a fixed partition.

    Args:
        shuffle_labels: permute all labels (a control: then nothing can be learnt, and no layer is better).

    Raises:
        InputError: at `load`, scikit-learn is not installed.
    """

    def __init__(self, shuffle_labels: bool = False) -> None:
        self.shuffle_labels = shuffle_labels
        self.name = "digits with shuffled labels" if shuffle_labels else "digits"

    @property
    def shape(self) -> tuple[int, ...]:
        return (1, 8, 8)

    @property
    def outputs(self) -> int:
        return 10

    @cached_property
    def _all(self) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor]]:
        try:
            from sklearn.datasets import load_digits
        except ImportError:
            raise InputError("data=digits needs scikit-learn: pip install 'normact[digits]'") from None
        bunch = load_digits()
        x = torch.tensor(bunch.images, dtype=torch.float32).unsqueeze(1)
        y = torch.tensor(bunch.target, dtype=torch.int64)
        if self.shuffle_labels:
            y = y[torch.randperm(len(y), generator=torch.Generator().manual_seed(1))]
        parts = three_way(len(x), len(x) // 5, len(x) // 5, seed=0)
        mean, std = x[parts[0]].mean(), x[parts[0]].std()
        return (x - mean) / std, y, parts

    def load(self) -> Splits:
        x, y, (train, validation, _) = self._all
        return Splits(Split(x[train], y[train]), Split(x[validation], y[validation]))

    def load_test(self) -> Split:
        x, y, (_, _, test) = self._all
        return Split(x[test], y[test])
