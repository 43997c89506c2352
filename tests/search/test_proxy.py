import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from normact.search.proxy import ProxyRow, proxy_rows, rank_correlation, recommend, signal_to_noise
from normact.spaces import InputError


def table(seed, layers=400, seeds=6, between=1.0, shared=2.0, own=0.5):
    """Values of layers that differ by `between`, seeds that shift all by `shared`, and noise of each by `own`."""
    rng = np.random.default_rng(seed)
    return rng.normal(0, between, (layers, 1)) + rng.normal(0, shared, seeds) + rng.normal(0, own, (layers, seeds))


def test_signal_to_noise_finds_what_the_values_were_made_with():
    found = np.array([signal_to_noise(table(seed, seeds=40)) for seed in range(10)])
    assert found[:, 1].mean() == pytest.approx(1 / 0.5, rel=0.03)
    assert found[:, 0].mean() == pytest.approx(1 / np.hypot(2.0, 0.5), rel=0.05)


def test_layers_that_do_not_differ_have_no_signal():
    found = [signal_to_noise(table(seed, between=0.0))[1] for seed in range(20)]
    assert np.median(found) < 0.1


@pytest.mark.parametrize("shape", [(1, 4), (4, 1)])
def test_one_layer_or_seed_has_no_ratio(shape):
    with pytest.raises(ValueError, match="two layers and two seeds"):
        signal_to_noise(np.zeros(shape))


@given(st.integers(0, 1000), st.integers(1, 3))
def test_rank_correlation_is_scipys_over_all_choices_of_seeds(seed, seeds):
    values, truth = table(seed, layers=12, seeds=3), np.random.default_rng(seed).normal(size=12)
    theirs = [
        stats.spearmanr(values[:, chosen].mean(1), truth).statistic
        for chosen in map(list, itertools.combinations(range(3), seeds))
    ]
    assert rank_correlation(values, truth, seeds) == pytest.approx(np.mean(theirs))


def test_a_score_that_is_the_same_for_all_ranks_nothing():
    assert rank_correlation(np.ones((5, 2)), np.arange(5.0), 1) == 0


def test_more_seeds_and_less_noise_correlate_better_and_intervals_hold_the_value():
    rng = np.random.default_rng(0)
    truth = rng.normal(size=60)
    skills = {
        ("noisy", 100): truth[:, None] + rng.normal(0, 2, (60, 4)),
        ("clear", 100): truth[:, None] + rng.normal(0, 0.2, (60, 4)),
        ("clear", 200): truth[:, None] + rng.normal(0, 0.1, (60, 4)),
    }
    rows = proxy_rows(skills, truth)
    of = {(row.score, row.steps, row.seeds): row for row in rows}
    assert len(of) == 12 and [row.cost for row in rows] == sorted(row.cost for row in rows)
    assert of["noisy", 100, 4].correlation > of["noisy", 100, 1].correlation
    assert of["clear", 100, 1].correlation > of["noisy", 100, 4].correlation
    assert of["clear", 100, 1].paired > 2 > of["noisy", 100, 1].paired
    assert all(row.low - 0.1 <= row.correlation <= row.high + 0.1 for row in rows)
    assert recommend(rows, slack=0.1) == of["clear", 100, 1]


def test_what_counts_is_the_better_half():
    """A score that tells bad layers from good ones, but not good ones apart, and one that does the opposite."""
    truth = np.arange(40.0)
    coarse = np.where(truth < 20, truth, 20 + (truth * 7) % 20)
    fine = np.where(truth < 20, (truth * 7) % 20, truth)
    skills = {(name, 100): np.stack([values, values], 1) for name, values in (("coarse", coarse), ("fine", fine))}
    of = {row.score: row for row in proxy_rows(skills, truth) if row.seeds == 1}
    assert of["fine"].correlation == pytest.approx(1) and of["coarse"].correlation < 0.5
    for row, values in ((of["fine"], fine), (of["coarse"], coarse)):
        assert row.overall == pytest.approx(stats.spearmanr(values, truth).statistic)
        assert row.correlation == pytest.approx(stats.spearmanr(values[20:], truth[20:]).statistic)
    assert recommend(list(of.values())) == of["fine"]


def row(score, steps, seeds, correlation):
    return ProxyRow(score, steps, seeds, correlation, 0.0, 1.0, 0.0, 1.0, 1.0)


def test_the_cheapest_that_is_as_good_is_recommended():
    rows = [row("a", 50, 1, 0.80), row("a", 100, 1, 0.90), row("b", 50, 2, 0.91), row("a", 400, 4, 0.92)]
    assert recommend(rows, slack=0.02) == rows[2]
    assert recommend(rows, slack=0.0) == rows[3]
    assert recommend(rows, slack=0.2) == rows[0]
    with pytest.raises(InputError, match=r"slack must be at least 0, got -0\.1"):
        recommend(rows, slack=-0.1)
