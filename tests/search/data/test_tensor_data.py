import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import TensorDataset

from normact.search.data import TensorData
from normact.search.data.base import three_way
from normact.spaces import InputError

X, Y = torch.arange(24.0).view(4, 2, 3), torch.tensor([0, 2, 1, 2])
GOOD = (X, Y)


def test_pairs_and_datasets_give_the_same_splits():
    dataset = TensorDataset(X.double(), Y.int())
    data = TensorData(dataset, GOOD, [(x, int(y)) for x, y in zip(X, Y, strict=True)], 3)
    for split in (data.load().train, data.load().validation, data.load_test()):
        assert (split.x.dtype, split.y.dtype) == (torch.float32, torch.int64)
        assert torch.equal(split.x, X) and torch.equal(split.y, Y)
    assert (data.shape, data.outputs, data.loss) == ((2, 3), 3, "cross_entropy")


def test_values_become_float32():
    y = torch.randn(4, 2, dtype=torch.float64)
    data = TensorData((X, y), (X, y), (X, y), 2, "mse")
    assert torch.equal(data.load().train.y, y.float())
    one = torch.randn(4)
    assert TensorData((X, one), (X, one), (X, one), 1, "mse").load().train.y.shape == (4,)


@pytest.mark.parametrize(
    ("bad", "match"),
    [
        ((X[:0], Y[:0]), "0 inputs and 0 targets"),
        ((X, Y[:3]), "4 inputs and 3 targets"),
        ([], "non-empty Dataset"),
        (7, "got int"),
        ((X[:, :1], Y), "different shapes"),
        ((X, Y + 1), "must lie in 0 to 2, got 1 to 3"),
        ((X, Y - 1), "must lie in 0 to 2, got -1 to 1"),
        ((X, Y.float()), "whole numbers"),
        ((X, Y.view(4, 1)), "one per example"),
    ],
)
@pytest.mark.parametrize("place", range(3))
def test_a_bad_split_is_refused_wherever_it_is(bad, match, place):
    splits = [GOOD, GOOD, GOOD]
    splits[place] = bad
    with pytest.raises(InputError, match=match):
        TensorData(*splits, 3)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(("place", "name"), [(0, "training"), (1, "validation"), (2, "test")])
def test_inputs_that_are_not_finite_are_refused_with_how_many_there_are(bad, place, name):
    x = X.clone()
    x[1, 0, 0] = x[1, 1, 2] = x[3, 1, 1] = bad
    splits = [GOOD, GOOD, GOOD]
    splits[place] = (x, Y)
    with pytest.raises(InputError, match=f"3 of 24 values of the {name} inputs .* 2 of 4 examples, first in number 1"):
        TensorData(*splits, 3)


def test_targets_that_are_not_finite_are_refused():
    good, bad = torch.ones(4), torch.tensor([1.0, 2.0, math.nan, 3.0])
    with pytest.raises(
        InputError, match=r"1 of 4 values of the validation targets .* 1 of 4 examples, first in number 2"
    ):
        TensorData((X, good), (X, bad), (X, good), 1, "mse")


def test_targets_that_do_not_suit_the_loss_are_refused():
    with pytest.raises(InputError, match="targets of loss mse are floats"):
        TensorData(GOOD, GOOD, GOOD, 1, "mse")
    wide = (X, torch.randn(4, 3))
    with pytest.raises(InputError, match="2 per example"):
        TensorData(wide, wide, wide, 2, "mse")
    with pytest.raises(InputError, match="unknown loss 'mae'"):
        TensorData(GOOD, GOOD, GOOD, 3, "mae")


@given(st.integers(0, 50), st.integers(0, 50), st.integers(0, 50), st.integers(0, 9))
def test_three_way_is_a_partition_of_the_sizes_asked_for(train, validation, test, seed):
    count = train + validation + test
    parts = three_way(count, validation, test, seed)
    assert [len(p) for p in parts] == [train, validation, test]
    assert sorted(torch.cat(parts).tolist()) == list(range(count))
    assert all(torch.equal(a, b) for a, b in zip(parts, three_way(count, validation, test, seed), strict=True))
