"""Krippendorff's alpha against its published example and explicit pairs; votes."""

import math

import numpy as np
import pytest

from nearid_ray.evaluation.agreement import attentive_raters, krippendorff_alpha, krippendorff_statistic, votes
from nearid_ray.evaluation.bootstrap import resample_weights, resampled

GAP = math.nan
# Krippendorff, "Computing Krippendorff's alpha-reliability" (2011): four observers, twelve units.
EXAMPLE = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, GAP, GAP, GAP],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, GAP, 3],
    [GAP, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, GAP],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, GAP],
]


def slow_alpha(rating_UR):
    units = [[value for value in unit if not math.isnan(value)] for unit in rating_UR]
    units = [unit for unit in units if len(unit) > 1]
    flat = [value for unit in units for value in unit]
    number = len(flat)
    observed = sum(sum((a - b) ** 2 for a in unit for b in unit) / (len(unit) - 1) for unit in units) / number
    expected = sum((a - b) ** 2 for a in flat for b in flat) / (number * (number - 1))
    return 1 - observed / expected


def test_alpha_of_the_published_example():
    assert krippendorff_alpha(np.array(EXAMPLE).T) == pytest.approx(0.849, abs=5e-4)


def test_alpha_and_its_resamples_equal_loops_over_all_pairs():
    random = np.random.default_rng(0)
    rating = random.integers(0, 5, (14, 1)) + random.integers(0, 3, (14, 4)).astype(float)
    rating[random.random(rating.shape) < 0.3] = GAP
    assert krippendorff_alpha(rating + 1000) == pytest.approx(slow_alpha(rating), abs=1e-9)
    found = krippendorff_statistic(rating)
    units = [int(name) for name in found.identities]
    slow = [
        slow_alpha(rating[np.repeat(units, weights.astype(int))])
        for weights in np.concatenate(list(resample_weights(len(units), 20, seed=2)))
    ]
    drawn = resampled(krippendorff_statistic(rating), resamples=20, seed=2)
    np.testing.assert_allclose(drawn, slow, atol=1e-9)
    assert found.coverage == np.mean(np.isfinite(rating).sum(axis=1) >= 2)


def test_alpha_without_variation_or_without_pairs_is_nan():
    assert math.isnan(krippendorff_alpha([[0.1, 0.1], [0.1, 0.1], [0.1, 0.1]]))
    assert math.isnan(krippendorff_alpha([[1, GAP], [GAP, 2]])) and math.isnan(krippendorff_alpha(np.empty((0, 3))))
    with pytest.raises(ValueError, match="expected"):
        krippendorff_alpha([1, 2])


def test_a_pair_is_the_same_above_four_fifths_of_its_votes():
    found = votes([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1], [GAP] * 5])
    assert found.same_U.tolist() == [False, True, False]
    assert found.agreement == pytest.approx(0.9) and found.coverage == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="0, 1 or nan"):
        votes([[2, 1]])
    assert attentive_raters([[1, 0], [1, 1]], [1, 1]).tolist() == [True, False]
