"""Exported files are checked against the searched layers, at every kind of site."""

import sys

import pytest
import torch

from normact.launch.export import Target, export
from normact.launch.exports.printing import compare, printed
from normact.spaces import EVONORM_MOMENTS, EVONORM_POINTWISE, ActBenchSpace, GraphSpace, InputError, parse
from normact.spaces.kan.space import KanSpace

LAYERS = [
    ("linear", "kan(gaussian(grid=5)); af()"),
    ("linear", "selectable(bspline, chebyshev); node(rational)"),
    ("conv", "kan(chebyshev, bspline, combine=product); node(graph)"),
    ("norm_act", "node(bspline); node(gaussian, normalizer=batch)"),
]


def space_for(site):
    return KanSpace(site, kinds=["node"] if site == "norm_act" else ["kan", "af", "selectable", "node"])


@pytest.mark.parametrize(("site", "text"), LAYERS)
def test_a_kan_candidate_is_printed_and_agrees_at_every_place(site, text):
    space = space_for(site)
    candidate = space.parse(text)
    with printed(space.source(candidate, "mine", "a note"), "mine") as factory:
        assert compare(space, candidate, "mine", factory) <= 1e-12
        places = space.probe_sites()
        made = [factory(**space.source_arguments(place)) for place in places]
    assert not [name for name in sys.modules if name.startswith("normact_export_")]
    assert len({place.index for place in places}) == 2
    assert all(isinstance(module, torch.nn.Module) for module in made)


class Swapped(KanSpace):
    """Prints the layers of the places in another order than it builds them."""

    def source_arguments(self, site):
        return super().source_arguments(site) | {"index": 1 - site.index}


class Silent(KanSpace):
    """Prints a node layer that lost its spline, which has no weight at the start."""

    def source(self, candidate, name, note=""):
        text = super().source(candidate, name, note)
        changed = text.replace("+ (columns * planes).sum(-2)", "+ 0 * (columns * planes).sum(-2)")
        assert changed != text
        return changed


@pytest.mark.parametrize(
    ("space", "text"), [(Swapped(), "kan(gaussian, base=silu); kan(gaussian, base=tanh)"), (Silent(), "node(bspline)")]
)
def test_a_file_that_computes_something_else_is_not_left_behind(space, text, tmp_path):
    with pytest.raises(InputError, match="differs from the layer by"):
        export(space, space.parse(text), Target(tmp_path / "mine.py"), "", print)
    assert not list(tmp_path.iterdir())


def test_a_graph_layer_agrees_too():
    space = GraphSpace([*EVONORM_POINTWISE, *EVONORM_MOMENTS])
    candidate = space.parse("evonorm_b0")
    with printed(space.source(candidate, "mine"), "mine") as factory:
        assert compare(space, candidate, "mine", factory) <= 1e-12


def test_a_gradient_that_is_only_rounding_is_not_compared_with_itself():
    """That of |x| / x: zero but for rounding, and each way of computing it rounds differently."""
    space = ActBenchSpace(norm="add(mul(v1, div(add(x, neg(batch_mean(x))), batch_std(x))), v0)")
    candidate = parse("mul(abs(x), reciprocal(x))")
    with printed(space.source(candidate, "mine"), "mine") as factory:
        assert compare(space, candidate, "mine", factory) <= 1e-10
