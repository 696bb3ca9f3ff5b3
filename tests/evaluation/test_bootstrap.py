"""Bootstrap intervals against a slow bootstrap that copies the drawn identities' trials and recomputes the rates."""

import math

import numpy as np
import pytest

from nearid_ray.evaluation import bootstrap
from nearid_ray.evaluation.bootstrap import bootstrap_difference, bootstrap_rates, percentile_interval, resample_weights
from nearid_ray.evaluation.margins import TrialCounts, count_trials


def random_trials(seed: int, identities: int = 25):
    random = np.random.default_rng(seed)
    trials = []
    for identity in range(identities):
        for engine in ("x", "y"):
            for _ in range(int(random.choice([0, 2, 6]))):
                trials.append((f"i{identity}", engine, float(random.normal(0.4, 1.0))))
    return trials


def counts_of(trials) -> TrialCounts:
    return count_trials([m for *_, m in trials], [i for i, *_ in trials], [e for _, e, _ in trials])


def slow_rates(trials, drawn_names):
    """SSR and PA of a resample: the n-th drawn identity is a new one named after n."""
    copies = [(f"{n}", engine, m) for n, name in enumerate(drawn_names) for i, engine, m in trials if i == name]
    ssr, pa, support = [], [], []
    for engine in ("x", "y"):
        mine = [(i, m) for i, e, m in copies if e == engine]
        names = {i for i, _ in mine}
        if not names:
            continue
        ssr.append(sum(all(m > 0 for i, m in mine if i == name) for name in names) / len(names))
        pa.append(sum(m > 0 for _, m in mine) / len(mine))
        support.append(len(names))
    return np.average(ssr, weights=support), np.average(pa, weights=support)


def slow_draws(names, resamples, seed):
    for block in resample_weights(len(names), resamples, seed):
        for weights in block:
            yield [name for name, weight in zip(names, weights, strict=True) for _ in range(int(weight))]


@pytest.mark.parametrize("seed", [0, 1])
def test_intervals_equal_a_bootstrap_by_explicit_loops(seed):
    trials = random_trials(seed)
    names = sorted({i for i, *_ in trials})
    slow = np.array([slow_rates(trials, drawn) for drawn in slow_draws(names, 60, seed=3)])
    for interval, column in zip(bootstrap_rates(counts_of(trials), resamples=60, seed=3), slow.T, strict=True):
        assert interval.low == pytest.approx(np.quantile(column, 0.025), abs=1e-12)
        assert interval.high == pytest.approx(np.quantile(column, 0.975), abs=1e-12)


def test_difference_equals_a_paired_bootstrap_by_explicit_loops():
    first, second = random_trials(4), random_trials(5)
    names = sorted({i for i, *_ in first} | {i for i, *_ in second})
    slow = np.array(
        [np.subtract(slow_rates(second, drawn), slow_rates(first, drawn)) for drawn in slow_draws(names, 60, seed=7)]
    )
    result = bootstrap_difference(counts_of(first), counts_of(second), resamples=60, seed=7)
    for interval, column in zip(result, slow.T, strict=True):
        assert interval.low == pytest.approx(np.quantile(column, 0.025), abs=1e-12)
        assert interval.high == pytest.approx(np.quantile(column, 0.975), abs=1e-12)


def test_a_scorer_compared_with_itself_differs_by_nothing():
    counts = counts_of(random_trials(2))
    for interval in bootstrap_difference(counts, counts):
        assert interval.value == interval.low == interval.high == 0.0


def test_same_seed_same_interval_and_another_seed_another():
    counts = counts_of(random_trials(3))
    assert bootstrap_rates(counts, seed=1) == bootstrap_rates(counts, seed=1)
    assert bootstrap_rates(counts, seed=1) != bootstrap_rates(counts, seed=2)


def test_blocks_do_not_change_the_draws(monkeypatch):
    counts = counts_of(random_trials(3))
    whole = bootstrap_rates(counts, resamples=50)
    monkeypatch.setattr(bootstrap, "BLOCK_NUMBERS", 70)
    assert bootstrap_rates(counts, resamples=50) == whole


def test_interval_has_the_width_of_the_binomial_it_estimates():
    random = np.random.default_rng(0)
    identities = 500
    counts = count_trials(np.where(random.random(identities) < 0.3, 1.0, -1.0), np.arange(identities))
    ssr, _ = bootstrap_rates(counts, resamples=2000)
    expected = 2 * 1.96 * math.sqrt(ssr.value * (1 - ssr.value) / identities)
    assert ssr.low < ssr.value < ssr.high
    assert ssr.high - ssr.low == pytest.approx(expected, rel=0.12)


def test_nothing_to_resample_gives_nan_and_bad_settings_are_refused():
    ssr, pa = bootstrap_rates(count_trials([np.nan], ["a"]))
    assert math.isnan(ssr.value) and math.isnan(ssr.low) and math.isnan(pa.high)
    with pytest.raises(ValueError, match="confidence is 95"):
        percentile_interval(0.5, [0.5], confidence=95)
    with pytest.raises(ValueError, match="at least 1"):
        list(resample_weights(3, resamples=0))
