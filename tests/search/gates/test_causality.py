import pytest
import torch
from torch import nn

from normact.search.gates import Causality, Pass, ScreenContext
from normact.search.outcome import Rejection
from normact.spaces import CATALOGUE, GraphSpace, LayerOptions, Site, parse
from tests.tasks import ModuleSpace, Pointwise


class CausalSpace(ModuleSpace):
    """A person's own space, which does not look at what its layers see."""

    causal = True

    def probe_sites(self):
        return [Site("norm_act", i, 8, layout=layout, causal=self.causal) for i, layout in enumerate(self.layouts)]


class Anywhere(CausalSpace):
    causal = False


def verdict(function, layout="NLC", space=CausalSpace):
    return Causality().check(ScreenContext(space((layout,), it=lambda site: Pointwise(function)), "it", 0))


def future_mean(x):
    """The mean of this and all later positions."""
    return x.flip(1).cumsum(1).flip(1)


def past_mean(x):
    return x.cumsum(1)


def to_first_from_second(x):
    return torch.cat([x[:, :1] + 1e-3 * x[:, 1:2], x[:, 1:]], 1)


class Straight(torch.autograd.Function):
    """The identity, whose derivative is said to reach all positions."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient + gradient.mean(1, keepdim=True)


LEAKS = {
    "instance moment": lambda x: x / x.std(1, keepdim=True),
    "batch moment": lambda x: x - x.mean((0, 1), keepdim=True),
    "later positions": future_mean,
    "the second position to the first": to_first_from_second,
    "gradient alone": Straight.apply,
    "other samples, same position": lambda x: x - x.mean(0, keepdim=True),
    "neighbour in the batch": lambda x: x + 1e-3 * x.roll(1, 0),
}


@pytest.mark.parametrize("name", LEAKS)
def test_a_leak_is_rejected(name):
    found = verdict(LEAKS[name])
    assert isinstance(found, Rejection) and found.gate == "causality"
    assert found.reason.endswith("at a causal NLC site")


@pytest.mark.parametrize("name", LEAKS)
def test_at_a_site_that_is_not_causal_none_of_it_matters(name):
    assert verdict(LEAKS[name], space=Anywhere) == Pass()


def test_the_reason_says_what_leaks():
    assert "outputs of positions up to 1 depend on later ones" in verdict(to_first_from_second).reason
    assert "gradients of positions up to 1 depend on later ones" in verdict(Straight.apply).reason
    assert "outputs of a sample depend on other samples" in verdict(LEAKS["neighbour in the batch"]).reason


@pytest.mark.parametrize(
    "function",
    [torch.relu, past_mean, lambda x: x / x.std(2, keepdim=True), lambda x: nn.functional.dropout(x, 0.5)],
    ids=["relu", "past", "channels", "dropout"],
)
def test_what_looks_back_or_along_channels_passes(function):
    assert verdict(function) == Pass()


def test_images_are_read_row_by_row():
    """(4, 8, 3, 5): a row may look at the one above it, and not at the one below."""
    assert verdict(lambda x: nn.functional.pad(x, (0, 0, 1, 0))[:, :, :-1] + x, "NCHW") == Pass()
    below = verdict(lambda x: nn.functional.pad(x, (0, 0, 0, 1))[:, :, 1:] + x, "NCHW")
    assert "outputs of positions up to 1 depend" in below.reason


def test_without_positions_samples_alone_are_looked_at():
    assert verdict(torch.relu, "NC") == Pass()
    assert isinstance(verdict(lambda x: x - x.mean(0), "NC"), Rejection)


def test_running_statistics_do_not_hide_a_leak_through_the_batch():
    """In evaluation batch normalization is causal; while it trains it is not."""
    space = CausalSpace(("NLC",), it=lambda site: BatchNorm(site.in_features))
    assert isinstance(Causality().check(ScreenContext(space, "it", 0)), Rejection)


class BatchNorm(nn.BatchNorm1d):
    def forward(self, x):
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


class OwnGraphs(GraphSpace):
    """A space that builds any graph at a causal site, though some look ahead there."""

    def build(self, candidate, site):
        return super().build(candidate, Site(site.kind, site.index, site.in_features, layout=site.layout))

    def probe_sites(self):
        return [Site("norm_act", 0, 2 * self.options.groups, layout="NLC", causal=True)]


@pytest.mark.parametrize("index_set", ["batch", "instance", "layer", "group", "channel"])
@pytest.mark.parametrize("statistic", ["mean", "rms", "std"])
def test_it_agrees_with_what_the_graph_space_refuses(index_set, statistic):
    graph = parse(f"affine(add(x, {index_set}_{statistic}(x)))")
    options = LayerOptions(groups=4)
    strict = GraphSpace(["add"], nodes=2, layouts=("NLC",), causal=True, options=options)
    found = Causality().check(ScreenContext(OwnGraphs(["add"], nodes=2, options=options), graph, 0))
    assert isinstance(found, Rejection) == bool(strict.invalid(graph))


def test_known_layers_of_a_causal_space_pass():
    space = GraphSpace(["add", "max"], nodes=3, layouts=("NLC",), causal=True)
    assert {"ln_gelu"} <= set(space.baselines()) < set(CATALOGUE)
    for graph in space.baselines().values():
        assert Causality().check(ScreenContext(space, graph, 0)) == Pass()
