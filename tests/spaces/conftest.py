"""Random graphs, and a registry that forgets the ops that tests add."""

import importlib.util

import pytest
from hypothesis import strategies as st

from normact.spaces import ACTIVATIONS, EVONORM_MOMENTS, EVONORM_POINTWISE, OPS, LayerGraph, Node
from tests.spaces.emitted import RUNNER

INPUTS = ("x", "zero", "v0", "v1", "s0.01", "v0_2")


def graph_strategy(ops, inputs=INPUTS, max_nodes=9, affine=True):
    """Graphs as `LayerGraph` allows them: dead nodes, shared ones, any wiring."""

    @st.composite
    def draw_graph(draw):
        nodes = []
        for position in range(draw(st.integers(1, max_nodes))):
            op = draw(st.sampled_from(ops))
            choices = [*inputs, *range(position)]
            args = tuple(draw(st.sampled_from(choices)) for _ in range(OPS[op].arity))
            nodes.append(Node(op, args))
        return LayerGraph(tuple(nodes), affine and draw(st.booleans()))

    return draw_graph()


@pytest.fixture(scope="session")
def graphs():
    """Any graph over the whole op table of a fresh process."""
    channel = tuple(f"channel_{statistic}" for statistic in ("mean", "rms", "std"))
    return graph_strategy((*EVONORM_POINTWISE, *EVONORM_MOMENTS, *channel, *ACTIVATIONS, "sub", "min"))


@pytest.fixture(scope="session")
def tame_graphs():
    """Graphs whose values stay moderate, so that reordered arithmetic agrees to rounding."""
    ops = ("add", "mul", "max", "min", "sub", "neg", "abs", "tanh", "sigmoid", "batch_mean", "group_rms")
    return graph_strategy(ops, inputs=("x", "zero", "v0", "v1"))


@pytest.fixture
def op_table():
    """`OPS`, put back as it was after the test."""
    before = dict(OPS)
    yield OPS
    OPS.clear()
    OPS.update(before)


@pytest.fixture(scope="session")
def runner():
    spec = importlib.util.spec_from_file_location("run_emitted", RUNNER)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
