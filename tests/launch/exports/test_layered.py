"""Where a picture's boxes and arrows go."""

from collections import Counter, defaultdict

import numpy as np
import pytest

from normact.launch.exports.layered import layered, spread
from normact.spaces import CATALOGUE, EVONORM_MOMENTS, EVONORM_POINTWISE, GraphSpace, parse

SPACE = GraphSpace([*EVONORM_POINTWISE, *EVONORM_MOMENTS], nodes=14)
RANDOM = [SPACE.sample(np.random.default_rng(seed)) for seed in range(30)]


@pytest.mark.parametrize("graph", [*(layer.graph for layer in CATALOGUE.values()), *RANDOM])
def test_boxes_do_not_overlap_and_arrows_go_down(graph):
    vertices, arrows = layered(graph)
    nodes = graph.canonical.nodes
    rows = defaultdict(list)
    for vertex in vertices:
        rows[vertex.row].append(vertex.across)
    for row in rows.values():
        assert np.diff(sorted(row)).min(initial=1.0) > 1 - 1e-9
    for arrow in arrows:
        assert [vertices[i].row - vertices[arrow.path[0]].row for i in arrow.path] == list(range(len(arrow.path)))
        assert all(bool(vertices[i].label) == (i in (arrow.path[0], arrow.path[-1])) for i in arrow.path)
    into = Counter(vertices[arrow.path[-1]].label for arrow in arrows)
    expected = Counter(node.op for node in nodes for _ in node.args) + Counter(["affine"] * graph.affine)
    assert into == expected
    drawn = Counter(vertex.label for vertex in vertices if vertex.label)
    inputs = Counter(a for node in nodes for a in node.args if isinstance(a, str) and a != "x")
    assert drawn == Counter(node.op for node in nodes) + inputs + Counter(["x"] + ["affine"] * graph.affine)


def test_arrows_enter_in_the_order_of_arguments():
    vertices, arrows = layered(parse("div(tanh(x), exp(x))"))
    ports = {vertices[a.path[0]].label: a.port for a in arrows if vertices[a.path[-1]].label == "div"}
    assert ports == {"tanh": 0, "exp": 1}


def test_what_has_room_stays_where_it_wants_to_be():
    assert spread([0.0, 3.0, 4.5]) == [0.0, 3.0, 4.5]
    assert spread([2.0, 2.0]) == [1.5, 2.5]
