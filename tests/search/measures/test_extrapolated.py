import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from normact.search.measures.extrapolated import extrapolated


@given(st.floats(0.0, 2.0), st.floats(0.1, 3.0), st.floats(0.2, 1.5))
def test_a_power_law_is_continued(c, a, b):
    steps = np.arange(1, 401)
    found = extrapolated(c + a * steps**-b, 10.0)
    assert found == pytest.approx(c + a * 4000.0**-b, abs=0.03 * a + 1e-9)


def test_noise_averages_out():
    rng = np.random.default_rng(0)
    steps = np.arange(1, 2001)
    law = 0.5 + 2 * steps**-0.5
    found = [extrapolated(law + rng.normal(0, 0.1, len(law)), 10.0) for _ in range(20)]
    assert np.mean(found) == pytest.approx(0.5 + 2 * 20000**-0.5, abs=0.03)


@given(st.lists(st.floats(0, 100), min_size=1, max_size=50))
def test_it_is_finite_and_between_nothing_and_the_largest(losses):
    found = extrapolated(losses, 10.0)
    assert 0 <= found <= max(losses) * (1 + 1e-6) + 1e-9


@pytest.mark.parametrize("losses", [[], [1.0, math.nan], [math.inf]])
def test_no_losses_or_broken_ones_have_no_continuation(losses):
    assert math.isnan(extrapolated(losses, 10.0))
