import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from normact.spaces import CATALOGUE, OPS, GraphLayer, InputError, named, parse
from normact.spaces.swap.pointwise import pointwise_part, standardized

X = torch.linspace(-3, 3, 24).view(2, 4, 3)

BY_HAND = {  # with every mean 0 and every root 1, at the initial parameters
    "bn_relu": F.relu,
    "bn_prelu": lambda x: F.leaky_relu(x, 0.25),
    "bn_silu": F.silu,
    "gn_relu": F.relu,
    "gn_silu": F.silu,
    "ln_gelu": F.gelu,
    "frn_tlu": F.relu,
    "evonorm_b0": lambda x: x / torch.clamp(x + 1, min=1),
    "evonorm_b1": lambda x: x / torch.clamp(x + 1, min=1),
    "evonorm_b2": lambda x: x / torch.clamp(1 - x, min=1),
    "evonorm_s0": F.silu,
    "evonorm_s1": F.silu,
    "evonorm_s2": F.silu,
    "bn_crrelu": lambda x: F.relu(x) + 0.01 * x * torch.exp(-(x**2) / 2),
    "normact_b0": lambda x: F.relu(x) + 0.01 * x * torch.exp(torch.tensor(1.0)),
}


def test_every_layer_of_the_catalogue_is_below():
    assert BY_HAND.keys() == CATALOGUE.keys()


@pytest.mark.parametrize("name", BY_HAND)
def test_the_pointwise_part_is_the_formula_without_statistics(name):
    part = pointwise_part(named(name).graph)
    assert not any(OPS[node.op].moment for node in part.nodes) and not part.affine
    torch.testing.assert_close(GraphLayer(part, 4)(X), BY_HAND[name](X))


@pytest.mark.parametrize("text", ["affine(div(add(x, neg(batch_mean(x))), batch_std(x)))", "div(x, instance_rms(x))"])
def test_a_norm_alone_has_no_pointwise_part(text):
    with pytest.raises(InputError, match="without its normalization is x: there is no pointwise part"):
        pointwise_part(parse(text))


@given(st.data())
def test_a_pointwise_part_sees_every_entry_alone(graphs, data):
    graph = data.draw(graphs)
    try:
        part = pointwise_part(graph)
    except InputError:
        return
    assert not any(OPS[node.op].moment for node in part.nodes)
    layer = GraphLayer(part, 4)
    torch.testing.assert_close(layer(X)[1:], layer(X[1:]), equal_nan=True)


def test_the_affine_of_a_norm_is_found_in_any_order_and_only_there():
    norm = "div(add(neg(group_mean(x)), x), group_std(x))"
    for text, weight, bias in [
        (f"relu(add(v0, mul({norm}, v1)))", "v1", "v0"),
        (f"relu(mul({norm}, v1_2))", "v1_2", ""),
        (f"relu({norm})", "", ""),
        (f"affine({norm})", "weight", "bias"),
        (f"affine(relu({norm}))", "", ""),
        (f"relu(add(mul(v0, {norm}), v1))", "", ""),  # starts as another function than a norm does
    ]:
        place = standardized(parse(text).canonical)
        assert place is not None and (place.index_set, place.weight, place.bias) == ("group", weight, bias)
    for text in ("div(x, group_std(x))", "div(add(x, neg(batch_mean(x))), group_std(x))", "relu(x)"):
        assert standardized(parse(text).canonical) is None
