import gzip
import math
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from normact.search.data import FashionMnist
from normact.search.data.fashion_mnist import read_idx
from normact.spaces import InputError

DEFAULT = Path("/usr/share/datasets/fashion-mnist")
SIZE = 28 * 28


def idx(array, magic=0x08):
    """An IDX file of unsigned bytes, by its specification: two zeros, type, axes, sizes (big-endian), data."""
    header = bytes([0, 0, magic, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(np.uint8).tobytes()


def write(folder, part, images, labels, zipped=False):
    for name, array in ((f"{part}-images-idx3-ubyte", images), (f"{part}-labels-idx1-ubyte", labels)):
        data = idx(array)
        (folder / (f"{name}.gz" if zipped else name)).write_bytes(gzip.compress(data) if zipped else data)


def pictures(count, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, 28, 28)), rng.integers(0, 10, count)


@pytest.fixture
def folder(tmp_path):
    write(tmp_path, "train", *pictures(30))
    write(tmp_path, "t10k", *pictures(9, seed=1), zipped=True)
    return tmp_path


# -- the reader ------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 5), min_size=0, max_size=4), st.booleans())
def test_an_idx_file_is_read_back(tmp_path_factory, shape, zipped):
    array = np.random.default_rng(len(shape)).integers(0, 256, shape, dtype=np.uint8)
    path = tmp_path_factory.mktemp("idx") / ("a.gz" if zipped else "a")
    path.write_bytes(gzip.compress(idx(np.asarray(array))) if zipped else idx(np.asarray(array)))
    read = read_idx(path)
    assert read.dtype == torch.uint8 and tuple(read.shape) == tuple(shape)
    assert np.array_equal(read.numpy(), array)


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"", "no IDX file"),
        (b"\0\0\x08", "no IDX file"),
        (b"PK\x03\x04 and so on", "no IDX file of unsigned bytes: it starts with 504b0304"),
        (idx(np.ones((2, 3)), magic=0x0D), "it starts with 00000d02"),
        (idx(np.ones((2, 3)))[:9], "cut short: 9 bytes, the header alone has 12"),
        (idx(np.ones((2, 3)))[:-1], r"should hold 6 bytes of data for shape \(2, 3\), but holds 5"),
        (idx(np.ones((2, 3))) + b"x", "but holds 7"),
        (idx(np.ones((0, 3))), r"is empty: its shape is \(0, 3\)"),
        (b"\0\0\x08\x04" + b"\xff" * 16, "should hold 340282366604025813516997721482669850625 bytes"),
    ],
)
def test_a_damaged_file_is_refused_by_name(tmp_path, data, match):
    (tmp_path / "some-file").write_bytes(data)
    with pytest.raises(InputError, match=match) as caught:
        read_idx(tmp_path / "some-file")
    assert "some-file" in str(caught.value)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "not gzip"])
def test_a_damaged_gzip_file_is_refused(tmp_path, damage):
    data = bytearray(gzip.compress(idx(np.arange(200).reshape(10, 20))))
    if damage == "flipped":
        data[12] ^= 0xFF
    path = tmp_path / "a.gz"
    path.write_bytes({"truncated": data[:40], "flipped": data, "not gzip": b"hello"}[damage])
    with pytest.raises(InputError, match=r"a\.gz cannot be read .*fetch it again"):
        read_idx(path)


# -- the data set ----------------------------------------------------------------------------------------------


def raw(x):
    """The images as bytes again, from their documented standardisation."""
    return np.rint((x.numpy().reshape(len(x), SIZE) * 0.3530 + 0.2860) * 255).astype(int)


def rows(x, y):
    return sorted((*image, int(label)) for image, label in zip(x, y, strict=True))


def test_training_files_are_split_and_nothing_is_lost(folder):
    splits = FashionMnist(str(folder), validation_size=7).load()
    assert (len(splits.train), len(splits.validation)) == (23, 7)
    images, labels = pictures(30)
    both = rows(raw(splits.train.x), splits.train.y) + rows(raw(splits.validation.x), splits.validation.y)
    assert sorted(both) == rows(images.reshape(30, SIZE), labels)
    assert splits.train.x.dtype == torch.float32 and splits.train.y.dtype == torch.int64


def test_test_files_are_read_as_they_are(folder):
    test = FashionMnist(str(folder), validation_size=7).load_test()
    images, labels = pictures(9, seed=1)
    assert np.array_equal(raw(test.x), images.reshape(9, SIZE)) and test.y.tolist() == labels.tolist()


def test_fewer_training_images_are_a_part_of_all_and_leave_validation_alone(folder):
    few, all_ = (FashionMnist(str(folder), n, 7).load() for n in (5, 0))
    assert torch.equal(few.train.x, all_.train.x[:5]) and torch.equal(few.train.y, all_.train.y[:5])
    assert torch.equal(few.validation.x, all_.validation.x)


@pytest.mark.parametrize("size", range(1, 30))
def test_exactly_as_many_validate_as_asked(folder, size):
    assert len(FashionMnist(str(folder), validation_size=size).load().validation) == size


@pytest.mark.parametrize(("train", "validation"), [(0, 30), (24, 7), (0, 10_000)])
def test_more_images_than_the_files_hold_are_refused(folder, train, validation):
    with pytest.raises(InputError, match="holds 30 training images, too few"):
        FashionMnist(str(folder), train, validation).load()


@pytest.mark.parametrize(("train", "validation"), [(0, 0), (0, 60_000), (50_001, 10_000), (-1, 10_000)])
def test_sizes_that_cannot_be_are_refused_at_once(train, validation):
    with pytest.raises(InputError, match=r"validation_size|train_size"):
        FashionMnist("/nowhere", train, validation)


@pytest.mark.parametrize("missing", ["train-images-idx3-ubyte", "train-labels-idx1-ubyte"])
def test_a_missing_file_is_named_with_the_install_command(folder, missing):
    (folder / missing).unlink()
    data = FashionMnist(str(folder), validation_size=7)
    with pytest.raises(InputError, match=rf"{missing}.*apt-get install dataset-fashion-mnist.*data\.folder"):
        data.load()
    assert len(data.load_test()) == 9


def test_images_without_their_labels_are_refused(folder):
    (folder / "train-labels-idx1-ubyte").write_bytes(idx(np.zeros(29)))
    with pytest.raises(InputError, match="30 images but 29 labels in 'train'"):
        FashionMnist(str(folder), validation_size=7).load()


# -- the real files --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real():
    data = FashionMnist()
    splits = data.load()
    return splits, data.load_test()


@pytest.fixture
def real_data(require, request):
    require(DEFAULT.is_dir(), f"Fashion-MNIST in {DEFAULT} (apt-get install dataset-fashion-mnist)")
    return request.getfixturevalue("real")


def test_the_real_files_have_their_sizes_and_labels(real_data):
    splits, test = real_data
    assert [len(s) for s in (splits.train, splits.validation, test)] == [50_000, 10_000, 10_000]
    labels = torch.cat([splits.train.y, splits.validation.y])
    assert torch.bincount(labels).tolist() == [6_000] * 10
    assert torch.bincount(test.y).tolist() == [1_000] * 10
    assert test.x.shape[1:] == FashionMnist().shape


def test_the_real_training_images_are_standardised_by_their_own_moments(real_data):
    raw_bytes = gzip.decompress((DEFAULT / "train-images-idx3-ubyte.gz").read_bytes())
    counts = np.bincount(np.frombuffer(raw_bytes, np.uint8, offset=16), minlength=256)
    values = np.arange(256) / 255
    mean = (counts * values).sum() / counts.sum()
    std = math.sqrt((counts * values**2).sum() / counts.sum() - mean**2)
    assert counts.sum() == 60_000 * SIZE
    splits, _ = real_data
    x = torch.cat([splits.train.x, splits.validation.x])
    least, largest = float(x.min()), float(x.max())
    assert least == pytest.approx((0 - mean) / std, abs=5e-4)  # the constants have four digits
    assert largest == pytest.approx((1 - mean) / std, abs=5e-4)  # the constants have four digits
