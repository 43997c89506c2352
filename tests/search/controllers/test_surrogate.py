from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, stats

from normact.search.controllers.surrogate import Surrogate, expected_improvement, features_of
from normact.search.objective import Score
from normact.search.outcome import Outcome
from normact.spaces import EVONORM_MOMENTS, EVONORM_POINTWISE, GraphSpace, InputError
from tests.conformance.controller import CHECKS, LOSS
from tests.toy import ToySpace

GRAPHS = GraphSpace([*EVONORM_POINTWISE, *EVONORM_MOMENTS])
QUICK = partial(Surrogate, least=8, trees=2, pool=3, refit=1.0, warmup=5, window=20)


@pytest.mark.parametrize("check", CHECKS, ids=lambda c: c.__name__)
@pytest.mark.parametrize("space", [GRAPHS, ToySpace()], ids=["graph", "toy"])
def test_conformance(space, check):
    check(partial(QUICK, space, objectives=[LOSS]))


@given(st.floats(-2, 2), st.floats(0.05, 2), st.floats(-2, 2))
def test_expected_improvement_is_the_integral(mean, deviation, best):
    density = stats.norm(mean, deviation).pdf
    expected, _ = integrate.quad(lambda y: (y - best) * density(y), best, mean + 12 * deviation, limit=200)
    found = expected_improvement(np.array([mean]), np.array([deviation]), best)[0]
    assert found == pytest.approx(max(expected, 0.0), abs=1e-6)


def test_without_uncertainty_it_is_the_plain_gain():
    assert expected_improvement(np.array([1.0, -1.0]), np.zeros(2), 0.5).tolist() == [0.5, 0.0]


def test_features_tell_order_and_count_words():
    one, other = features_of("add(sigmoid(x), tanh(v1))"), features_of("add(tanh(x), sigmoid(v1))")
    assert one[-1] == other[-1] == 5
    assert one[:128].tolist() == other[:128].tolist() and one.tolist() != other.tolist()
    assert one[:128].sum() == 5 and one[128:-1].sum() == 4


def run(controller, count, quality):
    best = -np.inf
    for _ in range(count):
        proposal = controller.ask()
        value = quality(proposal.candidate)
        best = max(best, value)
        controller.tell(
            proposal.number, Outcome(proposal.number, scores=(Score("loss", "net", 10, 1 - value),), steps=10)
        )
    return best


def words(candidate):
    """A quality that the words of a candidate tell: sigmoids are good, anything long is bad."""
    text = GRAPHS.describe(candidate)
    return 0.5 + 0.1 * min(text.count("sigmoid"), 4) - 0.001 * len(text)


def test_it_learns_what_is_good_and_says_how_well():
    controller = Surrogate(GRAPHS, [LOSS], 0, least=30, trees=10, pool=16, refit=0.5, fresh=0.2, warmup=10)
    run(controller, 150, words)
    assert float(controller.report().split("rank correlation ")[1].split()[0]) > 0.3
    blind = Surrogate(GRAPHS, [LOSS], 0, least=10_000, warmup=10, fresh=0.2)
    assert blind.report() == ""
    run(blind, 150, words)
    ours, theirs = ([np.mean(m.skills) for m in list(c.window)[-60:]] for c in (controller, blind))
    assert np.mean(ours) > np.mean(theirs)


@pytest.mark.parametrize("arguments", [{"pool": 0}, {"least": 1}, {"refit": 0.0}, {"trees": 1}])
def test_numbers_out_of_range_are_refused(arguments):
    with pytest.raises(InputError, match="a surrogate needs"):
        Surrogate(GRAPHS, [LOSS], 0, **arguments)
