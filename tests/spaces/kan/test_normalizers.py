import numpy as np
import pytest
import torch

from normact.spaces import InputError
from normact.spaces.kan import BASES, NORMALIZERS
from normact.spaces.kan.basis import UNIT, WIDE
from normact.spaces.kan.normalizers import BOUNDED, check_suits, make_normalizer, reach_of


@pytest.mark.parametrize("name", NORMALIZERS)
def test_the_bounded_ones_are_those_that_stay_in_the_unit_interval(name):
    normalizer = make_normalizer(name, 3)
    far = 1000 * torch.randn(64, 3)
    values = torch.cat([normalizer(far), normalizer.eval()(far), normalizer(torch.full((1, 3), 1e6))])
    assert bool(values.abs().max() <= 1) == (name in BOUNDED)
    assert reach_of(name) == (UNIT if name in BOUNDED else WIDE)


@pytest.mark.parametrize("shape", [(3,), (0, 3), (1, 3), (4, 0, 3), (4, 2, 5, 3)])
@pytest.mark.parametrize("name", NORMALIZERS)
def test_shapes_are_kept_in_both_modes(name, shape):
    normalizer, x = make_normalizer(name, 3), torch.randn(shape)
    assert normalizer(x).shape == shape
    assert normalizer.eval()(x).shape == shape


def test_a_layer_norm_is_over_the_features():
    x = torch.randn(5, 4)
    exact = x.double().numpy()
    expected = (exact - exact.mean(-1, keepdims=True)) / np.sqrt(exact.var(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(make_normalizer("layer", 4)(x).detach(), expected, atol=1e-5)
    np.testing.assert_allclose(make_normalizer("layer_tanh", 4)(x).detach(), np.tanh(expected), atol=1e-5)


def test_a_layer_norm_leaves_a_single_feature_and_has_nothing_to_train():
    normalizer, x = make_normalizer("layer", 1), torch.randn(5, 1)
    assert torch.equal(normalizer(x), x)
    assert list(normalizer.parameters()) == []


def test_a_batch_norm_is_over_all_leading_axes():
    normalizer, x = make_normalizer("batch", 3), torch.randn(4, 5, 3) * 2 + 1
    exact = x.double().numpy()
    expected = (exact - exact.mean((0, 1))) / np.sqrt(exact.var((0, 1)) + 1e-5)
    np.testing.assert_allclose(normalizer(x).detach(), expected, atol=1e-5)
    running = (0.1 * exact.mean((0, 1)), 0.9 + 0.1 * exact.var((0, 1), ddof=1))
    np.testing.assert_allclose(normalizer.running_mean, running[0], atol=1e-6)
    np.testing.assert_allclose(normalizer.running_var, running[1], atol=1e-5)


@pytest.mark.parametrize("rows", [0, 1])
def test_a_batch_norm_of_fewer_than_two_samples_uses_the_running_statistics(rows):
    normalizer = make_normalizer("batch", 3)
    normalizer(torch.randn(64, 3) * 3 + 2)
    x, before = torch.randn(rows, 3), normalizer.running_mean.clone()
    assert torch.equal(normalizer(x), normalizer.eval()(x))
    assert torch.equal(normalizer.running_mean, before)


def test_minmax_takes_the_first_batchs_range_and_follows_the_next_by_a_tenth():
    normalizer = make_normalizer("minmax", 2)
    first = torch.tensor([[0.0, -4.0], [2.0, 4.0], [1.0, 0.0]])
    assert normalizer(first).tolist() == [[-1.0, -1.0], [1.0, 1.0], [0.0, 0.0]]
    second = torch.tensor([[10.0, 0.0], [2.0, 0.0]])
    low, high = np.array([0.2, -3.6]), np.array([2.8, 3.6])
    expected = np.clip(2 * (second.numpy() - low) / (high - low) - 1, -1, 1)
    np.testing.assert_allclose(normalizer(second), expected, atol=1e-6)
    np.testing.assert_allclose(normalizer.eval()(second), expected, atol=1e-6)
    normalizer.reset_running_stats()
    assert normalizer(torch.tensor([[0.5, -2.0]])).tolist() == [[0.5, -1.0]]


def test_minmax_survives_a_constant_feature():
    normalizer = make_normalizer("minmax", 1)
    assert normalizer(torch.full((5, 1), 3.0)).isfinite().all()


def test_polynomials_refuse_a_normalizer_that_leaves_their_interval():
    for name in NORMALIZERS:
        if name in BOUNDED:
            check_suits(name, BASES["legendre"])
        else:
            with pytest.raises(InputError, match=f"legendre needs inputs in .*normalizer '{name}' does not give; use"):
                check_suits(name, BASES["legendre"])
        check_suits(name, BASES["bspline"])


def test_an_unknown_normalizer_is_answered_by_the_nearest():
    for unknown in (lambda: make_normalizer("lair", 3), lambda: check_suits("lair", BASES["bspline"])):
        with pytest.raises(InputError, match="unknown normalizer 'lair'; the nearest is 'layer'"):
            unknown()
