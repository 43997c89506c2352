"""Fashion-MNIST from its IDX files: 70,000 images of clothing (arXiv 1708.07747)."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from normact.search.data.base import Data, Split, Splits, three_way
from normact.spaces.errors import InputError

_TYPES = {0x08: torch.uint8}
_MEAN, _STD = 0.2860, 0.3530  # of the training images, computed by tests/search/data/test_fashion_mnist.py


class FashionMnist(Data):
    """60,000 training images (1, 28, 28) of 10 classes, of which 10,000 validate, and 10,000 test images.

    Args:
        folder: where the four IDX files lie, gzipped or not. Debian's package puts them in the default place.
        train_size: use only so many training images (the first of a fixed shuffle); 0 for all.
        validation_size: images held out of the training files to validate on.

    Raises:
        InputError: at `load`, files are missing or damaged, with the install command.
    """

    def __init__(
        self,
        folder: str = "/usr/share/datasets/fashion-mnist",
        train_size: int = 0,
        validation_size: int = 10_000,
    ) -> None:
        if not 1 <= validation_size < 60_000:
            raise InputError(f"validation_size must lie between 1 and 59,999, got {validation_size}")
        if not 0 <= train_size <= 60_000 - validation_size:
            raise InputError(
                f"train_size={train_size} does not fit: {60_000 - validation_size} images are left for training"
            )
        self.folder = Path(folder).expanduser()
        self.train_size = train_size
        self.validation_size = validation_size
        self.name = f"{train_size:,} images of Fashion-MNIST" if train_size else "Fashion-MNIST"

    @property
    def shape(self) -> tuple[int, ...]:
        return (1, 28, 28)

    @property
    def outputs(self) -> int:
        return 10

    def load(self) -> Splits:
        return self._splits

    @cached_property
    def _splits(self) -> Splits:
        whole = self._read("train")
        if self.validation_size + max(self.train_size, 1) > len(whole):
            raise InputError(
                f"{self.folder} holds {len(whole)} training images, too few for "
                f"validation_size={self.validation_size} and train_size={self.train_size}"
            )
        train, validation, _ = three_way(len(whole), self.validation_size, 0, seed=0)
        train = train[: self.train_size or None]
        return Splits(Split(whole.x[train], whole.y[train]), Split(whole.x[validation], whole.y[validation]))

    def load_test(self) -> Split:
        return self._read("t10k")

    def _read(self, part: str) -> Split:
        images = read_idx(self._find(f"{part}-images-idx3-ubyte"))
        labels = read_idx(self._find(f"{part}-labels-idx1-ubyte"))
        if len(images) != len(labels):
            raise InputError(f"{self.folder}: {len(images)} images but {len(labels)} labels in {part!r}")
        return Split((images.float().unsqueeze(1) / 255 - _MEAN) / _STD, labels.long())

    def _find(self, name: str) -> Path:
        for path in (self.folder / name, self.folder / f"{name}.gz"):
            if path.is_file():
                return path
        raise InputError(
            f"Fashion-MNIST is not in {self.folder}: no {name}[.gz] there; install it with "
            "'apt-get install dataset-fashion-mnist', or give data.folder=DIR"
        )


def read_idx(path: Path) -> Tensor:
    """The array of an IDX file of unsigned bytes.

    Raises:
        InputError: the file is not of that format or is cut short.
    """
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as problem:
        raise InputError(f"{path} cannot be read ({problem}); fetch it again") from None
    if len(raw) < 4 or raw[:2] != b"\0\0" or raw[2] not in _TYPES:
        raise InputError(f"{path} is no IDX file of unsigned bytes: it starts with {raw[:4].hex()}")
    dims = raw[3]
    header = 4 + 4 * dims
    if len(raw) < header:
        raise InputError(f"{path} is cut short: {len(raw)} bytes, the header alone has {header}")
    shape = struct.unpack(f">{dims}I", raw[4:header])
    expected = math.prod(shape)
    if len(raw) - header != expected:
        raise InputError(
            f"{path} should hold {expected} bytes of data for shape {shape}, but holds {len(raw) - header}"
        )
    if not expected:
        raise InputError(f"{path} is empty: its shape is {shape}")
    return torch.frombuffer(bytearray(raw), dtype=_TYPES[raw[2]], offset=header).reshape(shape)
