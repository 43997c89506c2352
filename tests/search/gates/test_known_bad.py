"""Layers that are known to be bad, each with the gate of the default config that it must die at."""

import re
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from normact.launch.config import compose_config, gates_of, task_of
from normact.search.evaluate import Evaluator
from normact.search.pool import Job
from normact.spaces import GraphLayer, Site, parse
from tests.tasks import ModuleSpace, Pointwise


def pointwise(function):
    return lambda site: Pointwise(function)


def graph(text):
    return lambda site: GraphLayer(parse(text), site.in_features, site.layout)


class Anywhere(nn.Module):
    """A graph at a causal site, by somebody who did not look at what its moments see."""

    def __init__(self, text, site):
        super().__init__()
        self.layer = GraphLayer(parse(text), site.in_features, site.layout)

    def forward(self, x):
        return self.layer(x)


BAD = {
    "division without a guard, 0 / 0": (pointwise(lambda x: x / torch.relu(x)), "probe", "non-finite output"),
    "division without a guard, near 0": (pointwise(lambda x: 1 / x), "propagation", "gradient .* outside"),
    "division without a guard, near 1": (pointwise(lambda x: x / (x - 1)), "propagation", "gradient .* outside"),
    "exponential of a square": (pointwise(lambda x: torch.exp(x.square())), "probe", "non-finite output"),
    "the same, as a graph": (graph("affine(exp(square(x)))"), "probe", "non-finite output"),
    "constant": (pointwise(lambda x: 0 * x + 3), "probe", "constant output"),
    "constant, from moments": (graph("affine(div(add(x, zero), add(x, zero)))"), "probe", "constant output|zero grad"),
    "the same for all samples": (graph("affine(batch_std(x))"), "probe", "the same output for every sample"),
    "nearly the same for all samples": (
        pointwise(lambda x: x.mean(0, keepdim=True) + 0.05 * torch.tanh(x)),
        "propagation",
        "samples collapse",
    ),
    "identity": (pointwise(lambda x: x), "linearity", "no nonlinearity"),
    "batch normalization alone": (graph("affine(div(add(x, neg(batch_mean(x))), batch_std(x)))"), "linearity", ""),
    "division by the batch's deviation": (graph("affine(div(x, batch_std(x)))"), "linearity", ""),
    "mean over positions": (graph("affine(instance_mean(x))"), "linearity", "no nonlinearity"),
}
LEAKING = {
    "instance moment": "max(div(x, instance_std(x)), zero)",
    "layer moment": "max(div(x, layer_std(x)), zero)",
    "group moment": "max(div(x, group_std(x)), zero)",
    "batch moment": "max(div(x, batch_std(x)), zero)",
}


class CausalSpace(ModuleSpace):
    def probe_sites(self):
        return [Site("norm_act", i, 8, layout=layout, causal=True) for i, layout in enumerate(self.layouts)]


@pytest.fixture(scope="module")
def default():
    config = compose_config([])
    return SimpleNamespace(task=task_of(config), gates=gates_of(config))


def judged(default, space, name):
    """Where the layer ends, in screening and in training."""
    judge = Evaluator(space, default.task, default.gates)
    for kind in ("screen", "train"):
        (outcome,) = judge(Job(0, kind, ((0, name),), seed=0))
        if outcome.gate:
            return outcome
    return outcome


@pytest.mark.parametrize("name", BAD)
def test_a_bad_layer_dies_at_its_gate(default, name):
    maker, gate, reason = BAD[name]
    outcome = judged(default, ModuleSpace(("NCHW", "NLC"), bad=maker), "bad")
    assert outcome.gate == gate, f"{outcome.gate}: {outcome.reason}"
    assert re.search(reason, outcome.reason), outcome.reason


@pytest.mark.parametrize("name", LEAKING)
def test_a_moment_that_leaks_over_positions_at_a_causal_site_dies_at_causality(default, name):
    space = CausalSpace(("NLC",), bad=lambda site: Anywhere(LEAKING[name], site))
    outcome = judged(default, space, "bad")
    assert outcome.gate == "causality", f"{outcome.gate}: {outcome.reason}"


@pytest.mark.parametrize(
    "text", ["max(div(x, channel_std(x)), zero)", "silu(div(add(x, neg(channel_mean(x))), channel_std(x)))"]
)
def test_a_moment_over_channels_passes_screening_at_a_causal_site(default, text):
    judge = Evaluator(CausalSpace(("NLC",), good=graph(text)), default.task, default.gates)
    (outcome,) = judge(Job(0, "screen", ((0, "good"),), seed=0))
    assert outcome.accepted, f"{outcome.gate}: {outcome.reason}"
