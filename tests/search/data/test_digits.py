import sys

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from normact.search.data import Digits
from normact.spaces import InputError


def splits(data):
    return [data.load().train, data.load().validation, data.load_test()]


def test_sizes_and_types():
    data = Digits()
    parts = splits(data)
    assert [len(p) for p in parts] == [1079, 359, 359]
    assert sum(len(p) for p in parts) == len(load_digits().target)
    for part in parts:
        assert part.x.shape[1:] == data.shape == (1, 8, 8)
        assert (part.x.dtype, part.y.dtype) == (torch.float32, torch.int64)
        assert set(part.y.tolist()) == set(range(data.outputs))


def images_and_labels(parts, mean, std):
    return [
        (tuple(np.rint(x.numpy().ravel() * std + mean).astype(int)), int(y))
        for part in parts
        for x, y in zip(part.x.double(), part.y, strict=True)
    ]


def training_moments():
    """Mean and deviation of the raw training images, found by their content in scikit-learn's own arrays."""
    train = Digits().load().train.x.double().numpy().ravel()
    raw = load_digits().images
    # The map from raw to standardised values is affine: 0 is the least and 16 the largest of both.
    std = 16 / (train.max() - train.min())
    mean = -train.min() * std
    assert raw.min() == 0 and raw.max() == 16
    return mean, std


def test_every_image_is_in_one_split_with_its_own_label():
    found = images_and_labels(splits(Digits()), *training_moments())
    bunch = load_digits()
    expected = [(tuple(x.ravel().astype(int)), int(y)) for x, y in zip(bunch.images, bunch.target, strict=True)]
    assert sorted(found) == sorted(expected)
    assert len(set(found)) == len(found)  # no image twice: so the splits are disjoint


def test_standardisation_is_that_of_the_training_images_alone():
    train, validation, test = splits(Digits())
    assert float(train.x.double().mean()) == pytest.approx(0, abs=1e-5)
    assert float(train.x.double().std()) == pytest.approx(1, abs=1e-5)
    rest = torch.cat([validation.x, test.x]).double()
    everything = torch.cat([train.x.double(), rest])
    assert abs(float(rest.mean())) > 1e-4 and abs(float(everything.mean())) > 1e-4


def test_shuffled_labels_keep_the_counts_and_lose_the_mapping():
    plain, shuffled = splits(Digits()), splits(Digits(shuffle_labels=True))
    y, z = (torch.cat([p.y for p in parts]) for parts in (plain, shuffled))
    assert torch.equal(torch.bincount(y), torch.bincount(z))
    assert all(torch.equal(a.x, b.x) for a, b in zip(plain, shuffled, strict=True))
    for a, b in zip(plain, shuffled, strict=True):  # chance is 0.1, with a deviation of 0.016 on 359 examples
        assert abs(float((a.y == b.y).float().mean()) - 0.1) < 0.06
    table = torch.zeros(10, 10).index_put_((y, z), torch.ones(len(y)), accumulate=True)
    expected = torch.outer(torch.bincount(y).float(), torch.bincount(z).float()) / len(y)
    chi2 = float(((table - expected) ** 2 / expected).sum())
    assert chi2 < 126  # 81 degrees of freedom: 0.999 of independent labellings lie below


def test_two_loads_are_the_same():
    assert all(
        torch.equal(a.x, b.x) and torch.equal(a.y, b.y) for a, b in zip(splits(Digits()), splits(Digits()), strict=True)
    )


def test_without_scikit_learn_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(InputError, match=r"pip install 'normact\[digits\]'"):
        Digits().load()
