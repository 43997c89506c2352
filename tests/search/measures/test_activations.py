"""Measures of activations: against numpy, on layers whose outputs are known."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from normact.search.measures import MassiveActivation, NonzeroShare, ValidationLoss
from normact.spaces import InputError, Site
from tests.tasks import layer, small_task


class Fixed(nn.Module):
    """A function of x, with a parameter for the optimiser to have."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.one = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return self.one * self.function(x)


def net(*activations):
    """Sites one after the other on flat inputs, each with or without an activation."""

    def anchor(make):
        sites = [Site("norm_act", i, 72, layout="NC", activation=on) for i, on in enumerate(activations)]
        return nn.Sequential(nn.Flatten(), *map(make, sites), nn.Linear(72, 3))

    return {"net": anchor}


def values(functions, activations=None):
    """The measured values with these functions at the sites, after no step; and the validation inputs, flat."""
    measures = [ValidationLoss(), NonzeroShare(), MassiveActivation()]
    task = small_task(steps=1, anchors=net(*(activations or [True] * len(functions))), measures=measures)
    training = task.start("net", lambda site: Fixed(functions[site.index]), seed=0)
    training.step = 1
    found = task.measure(training)
    assert not any(module._forward_hooks for module in training.model.modules())
    return found, task.splits.validation.x.flatten(1).double().numpy()


def test_the_share_is_of_entries_above_the_tolerance():
    found, x = values([torch.relu, lambda x: x**3])
    first = np.maximum(x, 0)
    second = first**3
    shares = [np.mean(np.abs(y) > 1e-3 * np.sqrt(np.mean(y**2, 1, keepdims=True))) for y in (first, second)]
    assert found["nonzero_share"] == pytest.approx(np.mean(shares), abs=1e-4)
    assert shares[0] > shares[1]  # small cubes fall below the tolerance


def test_bn_relu_lets_half_of_its_entries_through_before_training():
    task = small_task(steps=1, measures=[ValidationLoss(), NonzeroShare()])
    training = task.start("net", layer("bn_relu"), seed=0)
    training.step = 1
    assert task.measure(training)["nonzero_share"] == pytest.approx(0.5, abs=0.05)


def test_massive_activations_are_the_largest_ratio_over_sites_to_the_median_of_what_is_not_zero():
    found, x = values([torch.relu, lambda x: x**3])

    def ratio(y):
        return np.mean([np.max(np.abs(r)) / np.quantile(np.abs(r[r != 0]), 0.5, method="lower") for r in y])

    first = np.maximum(x, 0)
    expected = max(np.log10(ratio(first)), np.log10(ratio(first**3)))
    assert found["massive_activation"] == pytest.approx(expected, rel=1e-4)


def outlier(x):
    y = torch.ones_like(x)
    y[:, 7] = -1000
    return y


def test_a_ratio_of_1000_has_no_skill_and_equal_sizes_have_all():
    objective = MassiveActivation().objective(None)
    assert objective.skill(values([outlier])[0]["massive_activation"]) == pytest.approx(0)
    assert objective.skill(values([torch.ones_like])[0]["massive_activation"]) == pytest.approx(1)


def test_a_layer_of_zeros_has_no_share_and_nothing_that_stands_out():
    found, _ = values([torch.zeros_like])
    assert found["nonzero_share"] == 0
    assert found["massive_activation"] == 0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_is_no_value(bad):
    found, _ = values([lambda x: torch.full_like(x, bad)])
    assert math.isnan(found["nonzero_share"]) and math.isnan(found["massive_activation"])


def test_sites_without_an_activation_are_left_out_unless_there_are_no_others():
    found, _ = values([torch.ones_like, torch.zeros_like], [True, False])
    assert found["nonzero_share"] == 1
    assert values([torch.zeros_like], [False])[0]["nonzero_share"] == 0


def test_a_tolerance_out_of_range_is_refused():
    for tolerance in (-0.1, 1.0):
        with pytest.raises(InputError, match=f"tolerance={tolerance}"):
            NonzeroShare(tolerance)
