"""Exported files are checked against the searched layers, at every kind of site."""

import sys

import pytest
import torch

from normact.launch.export import compare, export, load_factory
from normact.spaces import EVONORM_MOMENTS, EVONORM_POINTWISE, GraphSpace, InputError
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
def test_a_kan_candidate_is_exported_and_agrees_at_every_place(site, text, tmp_path):
    space = space_for(site)
    difference = export(space, space.parse(text), "mine", tmp_path / "mine.py", "a note")
    assert difference <= 1e-12
    before = set(sys.modules)
    factory = load_factory(tmp_path / "mine.py", "mine")
    assert set(sys.modules) == before
    places = space.probe_sites()
    assert len({place.index for place in places}) == 2
    made = [factory(**space.source_arguments(place)) for place in places]
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
        export(space, space.parse(text), "mine", tmp_path / "mine.py", "")
    assert not list(tmp_path.iterdir())


def test_a_graph_layer_agrees_too(tmp_path):
    space = GraphSpace([*EVONORM_POINTWISE, *EVONORM_MOMENTS])
    candidate = space.parse("evonorm_b0")
    assert export(space, candidate, "mine", tmp_path / "mine.py", "") <= 1e-12
    assert compare(space, candidate, load_factory(tmp_path / "mine.py", "mine")) <= 1e-12
