"""Edges of KAN layers: together they are the layer, alone they are functions that can be written down."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from normact.spaces import InputError
from normact.spaces.kan import NORMALIZERS, KANConv2d, KANLinear
from normact.spaces.kan.af import AFKANLinear
from normact.spaces.kan.edges import edges_of, strongest_edges
from normact.spaces.kan.node import NodeConv2d, NodeLinear
from normact.spaces.kan.reading import Reading, fit
from normact.spaces.kan.selectable import SelectableKANConv2d, SelectableKANLinear, prune_model
from normact.spaces.site import Conv

INPUTS, OUTPUTS = 4, 3


def disturbed(layer):
    """In float64 and evaluation, nothing at its start, running statistics that have run."""
    layer = layer.double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.3 * torch.rand_like(parameter))
    layer.train()(2 * torch.randn(64, INPUTS, dtype=torch.float64) + 0.5)
    return layer.eval()


def selected(granularity, **settings):
    families = ["gaussian", "bspline", "rational"]
    layer = SelectableKANLinear(INPUTS, OUTPUTS, families, granularity=granularity, **settings).double()
    with torch.no_grad():
        layer.logits.copy_(torch.randn_like(layer.logits))
    layer.select()
    return layer


ADDITIVE = {
    **{f"normalizer {name}": lambda name=name: KANLinear(4, 3, ["gaussian"], normalizer=name) for name in NORMALIZERS},
    "two families": lambda: KANLinear(4, 3, ["bspline", "gaussian"], normalizer="minmax"),
    "no base": lambda: KANLinear(4, 3, ["bspline"], base="none"),
    "shared": lambda: KANLinear(4, 3, [("gaussian", {"grid": 8}), "sech"], combine="shared"),
    "mean": lambda: KANLinear(4, 3, ["bspline", "gaussian"], combine="mean", base="tanh"),
    "mean without base": lambda: KANLinear(4, 3, ["bspline", "gaussian"], combine="mean", base="none"),
    "concat": lambda: KANLinear(4, 3, ["bspline", "gaussian"], combine="concat"),
    "concat without base": lambda: KANLinear(4, 3, ["bspline", "gaussian"], combine="concat", base="none"),
    "ends of its own for each input": lambda: KANLinear(4, 3, ["relu_kan", "rational"]),
    "node": lambda: NodeLinear(4, 3, "bspline", normalizer="minmax"),
    "node of a graph": lambda: NodeLinear(4, 3, ("graph", {"expression": "mul(v1, tanh(x))"})),
    "not yet selected": lambda: SelectableKANLinear(4, 3, ["gaussian", "bspline"]),
    **{f"selected by {g}": lambda g=g: selected(g) for g in ("layer", "node", "input")},
    **{f"pruned by {g}": lambda g=g: selected(g, base="none").prune() for g in ("layer", "node", "input")},
}


@pytest.mark.parametrize("make", ADDITIVE.values(), ids=ADDITIVE)
def test_the_edges_of_a_layer_and_its_bias_are_the_layer(make):
    layer = disturbed(make())
    edges = edges_of(layer)
    x = torch.randn(9, INPUTS, dtype=torch.float64)
    total = torch.einsum("npi,opi->no", edges.features(x), edges.weights) + layer.bias
    torch.testing.assert_close(total, layer(x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("make", ADDITIVE.values(), ids=ADDITIVE)
def test_a_curve_is_what_one_input_does_to_an_output(make):
    """Where an edge is a function of x: the layer's own output while that input alone moves, up to a constant."""
    layer = disturbed(make())
    edges = edges_of(layer)
    norms = [m for m in layer.normalizer.modules() if isinstance(m, nn.LayerNorm)]
    assert edges.apart is not bool(norms)
    for number, output in itertools.product(range(INPUTS), range(OUTPUTS)):
        curve = edges.curve(number, output, (-1.5, 1.2))
        assert (curve.points[0], curve.points[-1]) == (-1.5, 1.2)
        points = torch.from_numpy(curve.points)
        if edges.apart:
            x = torch.full((len(points), INPUTS), 0.3, dtype=torch.float64)
            x[:, number] = points
            alone = layer(x)[:, output].detach().numpy()
            assert curve.variable == "x"
            assert curve.base == ""
        else:
            assert curve.variable == "u"
            alone = behind_the_norm(layer, points, number)[:, output]
        offset = alone - curve.values
        np.testing.assert_allclose(offset, offset[0], atol=1e-10)


def behind_the_norm(layer, points, number):
    """The layer's output without its base branch, while what the normalizer gives for one input moves."""
    u = torch.zeros(len(points), INPUTS, dtype=torch.float64)
    u[:, number] = points
    layer.normalizer = Fixed(u)
    x = torch.zeros(len(points), INPUTS, dtype=torch.float64)  # where silu, the base branch here, is 0
    return layer(x).detach().numpy()


class Fixed(nn.Module):
    def __init__(self, u):
        super().__init__()
        self.u = u

    def forward(self, x):
        return self.u


def test_a_base_branch_of_another_variable_is_told_apart():
    layer = disturbed(KANLinear(INPUTS, OUTPUTS, ["gaussian"], normalizer="layer", base="tanh"))
    weight = layer.weights[0].view(OUTPUTS, -1, INPUTS)[2, -1, 1].item()
    assert edges_of(layer).curve(1, 2).base == f"{weight!r}*tanh(x)"
    assert edges_of(disturbed(KANLinear(INPUTS, OUTPUTS, ["gaussian"], normalizer="batch"))).curve(1, 2).base == ""


@pytest.mark.parametrize("make", ADDITIVE.values(), ids=ADDITIVE)
def test_the_strength_is_the_deviation_of_what_an_edge_adds(make):
    layer = disturbed(make())
    edges = edges_of(layer)
    x = torch.randn(50, INPUTS, dtype=torch.float64)
    added = torch.einsum("npi,opi->noi", edges.features(x), edges.weights)
    torch.testing.assert_close(edges.std(x), added.std(0, correction=0), rtol=1e-8, atol=1e-10)


def test_the_strongest_edges_of_a_model_are_read_as_what_they_are():
    """Three edges of known functions, by least squares of their coefficients; the model as it was."""
    torch.manual_seed(0)
    layer = KANLinear(2, 2, [("bspline", {"grid": 60, "order": 3})], normalizer="clamp", base="none")
    grid = torch.linspace(-1, 1, 400)
    wanted = {(0, 0): torch.sin(4 * grid), (1, 0): 2 * grid**2, (0, 1): 0.5 * torch.exp(grid)}
    with torch.no_grad():
        layer.weights[0].zero_()
        columns = layer.weights[0].view(2, -1, 2)
        basis = layer.bases[0].planes(grid.unsqueeze(1).expand(-1, 2))[:, :, 0]
        for (number, output), y in wanted.items():
            columns[output, :, number] = torch.linalg.lstsq(basis, y.unsqueeze(1)).solution[:, 0]
    model = nn.Sequential(nn.Identity(), layer).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    (found,) = strongest_edges(model, 4, 2 * torch.rand(2000, 2) - 1)
    assert (found.name, found.kind, found.remark) == ("1", "KANLinear", "")
    assert [(edge.input, edge.output) for edge in found.edges] == [(0, 0), (1, 0), (0, 1), (1, 1)]
    readings = [fit(edge.points, edge.values) for edge in found.edges]
    assert [reading.name for reading in readings] == ["sin", "x^2", "exp", "0"]
    assert all(reading.r2 > 0.9999 for reading in readings)
    assert readings[0].a == pytest.approx(4, abs=1e-2)
    assert -1 <= found.edges[0].points.min() < -0.97
    assert found.edges[0].std == pytest.approx(float(torch.sin(4 * grid).std()), abs=0.02)
    assert found.edges[3].std == 0
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


UNREADABLE = [
    (KANConv2d(2, 2, 3), "KANConv2d cannot be read: each of a convolution's is a kernel"),
    (NodeConv2d(2, 2, Conv(3), "bspline"), "NodeConv2d cannot be read"),
    (SelectableKANConv2d(2, 2, 3, families=["gaussian"]), "SelectableKANConv2d cannot be read"),
    (AFKANLinear(3, 2), "AFKANLinear cannot be read: AF-KAN normalizes and weighs all inputs together"),
    *(
        (KANLinear(3, 2, ["gaussian", "bspline"], combine=form), f"with combine={form} no output is a sum")
        for form in ("product", "sum_product", "quadratic", "max", "min")
    ),
    (nn.Linear(2, 2), "Linear is no KAN layer"),
]


@pytest.mark.parametrize(("layer", "message"), UNREADABLE, ids=[message[:40] for _, message in UNREADABLE])
def test_layers_that_are_no_sum_of_edges_are_refused(layer, message):
    with pytest.raises(InputError, match=message):
        edges_of(layer)


class Chain(nn.ModuleDict):
    def forward(self, x):
        return self["third"](self["second"](self["first"](x)))


def test_a_model_says_for_each_layer_what_can_be_read():
    product = KANLinear(3, 3, ["gaussian", "bspline"], combine="product")
    unused = KANLinear(3, 1, ["gaussian"])
    shared = SelectableKANLinear(3, 3, ["gaussian", "bspline"])
    model = Chain({"first": KANLinear(2, 3, ["gaussian"]), "second": product, "third": shared, "last": unused})
    found = strongest_edges(model, 2, torch.randn(5, 7, 2))
    assert [layer.name for layer in found] == ["first", "second", "third", "last"]
    assert [len(layer.edges) for layer in found] == [2, 0, 2, 0]
    assert "no output is a sum" in found[1].remark
    assert "does not use" in found[3].remark
    pruned = strongest_edges(prune_model(nn.Sequential(shared)), 1, torch.randn(40, 3))
    assert pruned[0].kind == "PrunedKANLinear"
    assert len(pruned[0].edges) == 1
    with pytest.raises(InputError, match="has no KAN layer"):
        strongest_edges(nn.Linear(2, 2), 1, torch.randn(4, 2))


def test_a_norm_behind_the_edges_is_mentioned():
    model = nn.Sequential(KANLinear(3, 3, ["gaussian"], post="layer"), NodeLinear(3, 3, "bspline", post="batch"))
    for layer in strongest_edges(model, 1, torch.randn(20, 3)):
        assert layer.remark == "a norm follows the sum of the edges"
        assert len(layer.edges) == 1


def test_no_such_edge():
    edges = edges_of(KANLinear(2, 3, ["gaussian"]))
    for number, output in ((2, 0), (0, 3), (-1, 0)):
        with pytest.raises(InputError, match="the layer has 2 inputs and 3 outputs"):
            edges.curve(number, output)


def test_an_edge_behind_a_layer_norm_is_read_in_its_own_variable():
    layer = disturbed(KANLinear(INPUTS, OUTPUTS, ["gaussian"], normalizer="layer"))
    curve = edges_of(layer).curve(0, 0)
    assert (curve.points[0], curve.points[-1]) == (-2.0, 2.0)
    reading = fit(curve.points, curve.values, threshold=0.0)
    assert isinstance(reading, Reading)
    assert "u" in reading.of("u")
