"""Rank correlations against scipy, their resamples against copied rows, and the behaviour of edges."""

import math

import numpy as np
import pytest
from scipy import stats

from nearid_ray.evaluation.bootstrap import difference, interval, resample_weights, resampled
from nearid_ray.evaluation.correlations import (
    fisher_mean,
    fisher_statistic,
    kendall,
    kendall_statistic,
    oracle_statistics,
    pearson,
    pearson_statistic,
    spearman,
    spearman_statistic,
)

KINDS = {
    "pearson": (pearson, pearson_statistic, stats.pearsonr),
    "spearman": (spearman, spearman_statistic, stats.spearmanr),
    "kendall": (kendall, kendall_statistic, stats.kendalltau),
}


def tied_pairs(seed: int, pairs: int = 50):
    random = np.random.default_rng(seed)
    x = random.integers(0, 9, pairs) / 3
    return x, np.round(x + random.normal(size=pairs), 1), random.integers(0, 12, pairs)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", [0, 1])
def test_correlation_with_ties_equals_scipy(kind, seed):
    ours, statistic, theirs = KINDS[kind]
    x, y, identity = tied_pairs(seed)
    assert ours(x, y) == pytest.approx(theirs(x, y).statistic, abs=1e-12)
    assert statistic(x, y, identity).value() == pytest.approx(theirs(x, y).statistic, abs=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_gaps_are_left_out_and_told(kind):
    ours, statistic, theirs = KINDS[kind]
    x, y, identity = tied_pairs(2)
    gapped_x, gapped_y = x.copy(), y.copy()
    gapped_x[3], gapped_y[7], gapped_y[8] = np.nan, np.inf, np.nan
    kept = np.isfinite(gapped_x) & np.isfinite(gapped_y)
    assert ours(gapped_x, gapped_y) == pytest.approx(theirs(x[kept], y[kept]).statistic, abs=1e-12)
    assert interval(statistic(gapped_x, gapped_y, identity), resamples=5).coverage == pytest.approx(47 / 50)


@pytest.mark.parametrize("kind", KINDS)
def test_resamples_equal_the_correlation_of_copied_rows(kind):
    _, statistic, theirs = KINDS[kind]
    x, y, identity = tied_pairs(3)
    found = statistic(x, y, identity)
    slow = []
    for weights in np.concatenate(list(resample_weights(len(found.identities), 25, seed=4))):
        rows = [
            row
            for name, weight in zip(found.identities, weights, strict=True)
            for row in np.flatnonzero(identity.astype(str) == name).repeat(int(weight))
        ]
        slow.append(theirs(x[rows], y[rows]).statistic)
    np.testing.assert_allclose(resampled(found, resamples=25, seed=4), slow, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_a_constant_column_gives_zero_and_too_few_pairs_give_nan(kind):
    ours, statistic, _ = KINDS[kind]
    assert ours([1, 2, 3], [0.1, 0.1, 0.1]) == statistic([0.1] * 3, [1, 2, 3]).value() == 0.0
    assert math.isnan(ours([1.0], [2.0])) and math.isnan(ours([], [])) and math.isnan(ours([np.nan, 1], [1, 1]))
    assert math.isnan(interval(statistic([], []), resamples=5).low)
    with pytest.raises(ValueError, match="2 and 1 values"):
        ours([1, 2], [1])


def test_blocks_of_weights_do_not_change_ranks(monkeypatch):
    from nearid_ray.evaluation import bootstrap

    x, y, identity = tied_pairs(5)
    whole = resampled(spearman_statistic(x, y, identity), resamples=30)
    monkeypatch.setattr(bootstrap, "BLOCK_NUMBERS", 400)
    np.testing.assert_array_equal(resampled(spearman_statistic(x, y, identity), resamples=30), whole)


def test_fisher_mean_is_nan_where_a_part_could_not_be_measured():
    assert fisher_mean([0.2, 0.8]) == pytest.approx(math.tanh((math.atanh(0.2) + math.atanh(0.8)) / 2))
    assert fisher_mean([1.0, 1.0]) == pytest.approx(0.999)
    assert math.isnan(fisher_mean([0.2, math.nan])) and math.isnan(fisher_mean([]))


def test_fisher_mean_resamples_all_parts_with_the_same_identities():
    x, y, identity = tied_pairs(6)
    first, second = pearson_statistic(x, y, identity), pearson_statistic(x, -y, identity)
    both = fisher_statistic([first, second])
    np.testing.assert_allclose(resampled(both, resamples=20), 0.0, atol=1e-12)
    assert fisher_statistic([]).identities == ()


def test_a_gap_in_one_oracle_leaves_the_other_sample_numbers_in_place():
    random = np.random.default_rng(7)
    own, crossed, oracle = random.random((3, 30, 2))
    oracle[4, 1] = np.nan
    both, pair = oracle_statistics(own, crossed, oracle)
    keep = np.arange(30) != 4
    expected = [
        stats.pearsonr(own[:, 0], oracle[:, 0]).statistic,
        stats.pearsonr(own[keep, 1], oracle[keep, 1]).statistic,
        stats.pearsonr(crossed[keep, 0], oracle[keep, 1]).statistic,
        stats.pearsonr(crossed[:, 1], oracle[:, 0]).statistic,
    ]
    assert both.value() == pytest.approx(fisher_mean(expected), abs=1e-12)
    assert pair.value() == pytest.approx(fisher_mean(expected[:2]), abs=1e-12)
    assert len(both.identities) == 30 and both.coverage == pytest.approx(118 / 120)


def test_the_better_of_two_scorers_is_above_in_nearly_all_resamples():
    random = np.random.default_rng(8)
    oracle = random.random(80)
    worse, better = oracle + random.normal(size=80), oracle + 0.1 * random.normal(size=80)
    found = difference(pearson_statistic(worse, oracle), pearson_statistic(better, oracle), resamples=200)
    assert found.value == pytest.approx(pearson(better, oracle) - pearson(worse, oracle))
    assert 0 < found.low < found.value < found.high and found.share_above_zero > 0.99
