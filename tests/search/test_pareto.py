"""The Pareto front against its definition."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from normact.search import pareto
from normact.search.pareto import non_dominated


def by_definition(skills):
    def dominates(a, b):
        return all(x >= y for x, y in zip(a, b, strict=True)) and any(x > y for x, y in zip(a, b, strict=True))

    return [not any(dominates(other, row) for other in skills) for row in skills]


def test_a_front_by_hand():
    skills = np.array([[1.0, 0.0], [0.5, 0.5], [0.5, 0.4], [0.0, 1.0], [0.5, 0.5], [0.0, 0.9]])
    assert non_dominated(skills).tolist() == [True, True, False, True, True, False]


@pytest.mark.parametrize("block", [1, 3, 1024])
@given(columns=st.integers(1, 4), data=st.data())
def test_the_front_is_that_of_the_definition_whatever_the_blocks(block, columns, data):
    value = st.one_of(st.integers(-2, 2).map(float), st.floats(-1e300, 1e300), st.just(-np.inf))
    rows = data.draw(st.lists(st.tuples(*[value] * columns), max_size=12))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pareto, "BLOCK", block)
        assert non_dominated(np.array(rows).reshape(-1, columns)).tolist() == by_definition(rows)


def test_a_front_of_two_among_many_is_the_running_maximum():
    """With two objectives: sorted by the first, a row is on the front where the second passes all before."""
    skills = np.random.default_rng(0).standard_normal((50_000, 2))
    order = np.argsort(-skills[:, 0])
    second = skills[order, 1]
    before = np.concatenate([[-np.inf], np.maximum.accumulate(second)[:-1]])
    expected = np.sort(order[second > before])
    assert np.flatnonzero(non_dominated(skills)).tolist() == expected.tolist()
