"""Calibration, reliability and thresholds against scikit-learn and loops; what is stored comes back the same."""

import json
import math

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss

from nearid_ray.errors import UsageError
from nearid_ray.evaluation.bootstrap import resample_weights, resampled
from nearid_ray.evaluation.calibration import (
    Calibration,
    accept_statistics,
    fit_calibration,
    reliability,
    reliability_statistics,
    threshold_at,
)


def pairs(seed: int, number: int = 300, steepness: float = 8.0):
    """Pairs whose true probability of being the same is known: logistic in the similarity."""
    random = np.random.default_rng(seed)
    similarity = np.round(random.uniform(-0.2, 1.0, number), 2)
    truth = 1 / (1 + np.exp(-steepness * (similarity - 0.5)))
    return similarity, random.random(number) < truth, random.integers(0, 20, number), truth


@pytest.mark.parametrize("kind", ["isotonic", "logistic"])
def test_a_calibration_survives_json_and_finds_the_true_probability(kind):
    similarity, same, _, _ = pairs(0, 20_000)
    found = fit_calibration(similarity, same, kind=kind)
    assert Calibration.from_json(json.loads(json.dumps(found.to_json()))) == found
    grid = np.linspace(-0.2, 1.0, 13)
    np.testing.assert_allclose(found.probability(grid), 1 / (1 + np.exp(-8 * (grid - 0.5))), atol=0.05)
    assert (np.diff(found.probability(np.linspace(-2, 2, 500))) >= 0).all()


def test_isotonic_and_logistic_equal_scikit_learn():
    similarity, same, _, _ = pairs(1)
    grid = np.linspace(-1, 1.5, 80)
    isotonic = IsotonicRegression(out_of_bounds="clip").fit(similarity, same)
    np.testing.assert_allclose(fit_calibration(similarity, same).probability(grid), isotonic.predict(grid), atol=1e-12)
    logistic = LogisticRegression(C=1e6, tol=1e-8).fit(similarity[:, None], same)
    ours = fit_calibration(similarity, same, kind="logistic")
    np.testing.assert_allclose(ours.probability(grid), logistic.predict_proba(grid[:, None])[:, 1], atol=1e-3)


@pytest.mark.parametrize("kind", ["isotonic", "logistic"])
def test_similarities_that_say_nothing_give_the_share_of_same_pairs(kind):
    same = np.arange(40) % 4 == 0
    constant = fit_calibration(np.full(40, 0.7), same, kind=kind)
    np.testing.assert_allclose(constant.probability([0.0, 0.7, 1.0]), 0.25)
    inverse = fit_calibration(np.where(same, 0.1, 0.9), same, kind=kind)
    np.testing.assert_allclose(inverse.probability([0.0, 0.5, 1.0]), 0.25)


def test_separated_pairs_give_finite_numbers():
    found = fit_calibration([0.1, 0.2, 0.8, 0.9], [False, False, True, True], kind="logistic")
    assert math.isfinite(found.slope)
    low, high = found.probability([0.1, 0.9])
    assert low < 0.05 and high > 0.95
    assert found.probability([-1e9, 1e9]).tolist() == pytest.approx([0, 1])


def test_another_share_of_same_pairs_moves_the_odds():
    similarity, same, _, _ = pairs(2)
    found = fit_calibration(similarity, same, kind="logistic")
    moved = found.probability(0.4, same_share=0.01)
    odds = found.probability(0.4) / (1 - found.probability(0.4))
    odds *= (0.01 / 0.99) / (found.same_share / (1 - found.same_share))
    assert moved == pytest.approx(odds / (1 + odds))
    np.testing.assert_allclose(found.probability(0.4, same_share=found.same_share), found.probability(0.4))
    with pytest.raises(ValueError, match="same_share is 0"):
        found.probability(0.4, same_share=0)


def test_gaps_are_left_out_and_told_and_stay_gaps():
    similarity, same, _, _ = pairs(3)
    gapped = np.concatenate([similarity, [np.nan, np.inf]])
    found = fit_calibration(gapped, [*same, True, False])
    assert found.coverage == pytest.approx(300 / 302) and found.num_pairs == 300
    assert found.similarities == fit_calibration(similarity, same).similarities
    assert np.isnan(found.probability([np.nan, np.inf])).all()


def test_what_cannot_be_a_calibration_is_refused():
    with pytest.raises(UsageError, match="2 same and 0 different"):
        fit_calibration([0.1, 0.2], [True, True])
    with pytest.raises(ValueError, match="2 values of 1 labels"):
        fit_calibration([0.1, 0.2], [True])
    good = fit_calibration([0.1, 0.9], [False, True]).to_json()
    for change in ({"kind": "magic"}, {"probabilities": [0.9, 0.1]}, {"probabilities": [0, 2]}, {"similarities": [1]}):
        with pytest.raises(UsageError, match="this is no calibration"):
            Calibration.from_json({**good, **change})
    with pytest.raises(UsageError, match="no field temperature"):
        Calibration.from_json({**good, "temperature": 1})
    with pytest.raises(UsageError, match="num_pairs"):
        Calibration.from_json({name: value for name, value in good.items() if name != "num_pairs"})


@pytest.mark.parametrize("wished", [0.0, 0.003, 0.01, 0.1, 0.3, 0.999, 1.0])
def test_the_threshold_is_the_lowest_that_keeps_the_wished_rate(wished):
    similarity, same, _, _ = pairs(4)
    found = threshold_at(similarity, same, wished)
    assert found.false_accept_rate == np.mean(similarity[~same] >= found.threshold) <= wished
    assert found.true_accept_rate == np.mean(similarity[same] >= found.threshold)
    lower = similarity[~same][similarity[~same] < found.threshold]
    if len(lower):
        assert np.mean(similarity[~same] >= lower.max()) > wished


def test_a_threshold_on_ties_at_the_top_refuses_them_all():
    found = threshold_at([0.9, 0.9, 0.9, 0.1], [True, False, False, False], 0.5)
    assert found.threshold > 0.9 and found.false_accept_rate == 0 and found.true_accept_rate == 0
    assert math.isnan(threshold_at([0.5], [False], 1.0).true_accept_rate)
    with pytest.raises(UsageError, match="no different pairs"):
        threshold_at([0.5], [True], 0.1)
    with pytest.raises(ValueError, match="0 to 1"):
        threshold_at([0.5], [False], 1.5)


def test_reliability_equals_scikit_learn_and_gaps_are_told():
    _, same, _, truth = pairs(5)
    found = reliability(np.append(truth, np.nan), [*same, True], bins=10)
    observed, predicted = calibration_curve(same, truth, n_bins=10)
    filled = np.array(found.counts) > 0
    np.testing.assert_allclose(np.array(found.observed)[filled], observed)
    np.testing.assert_allclose(np.array(found.predicted)[filled], predicted)
    assert found.brier == pytest.approx(brier_score_loss(same, truth))
    error = sum(abs(p - o) * n for p, o, n in zip(found.predicted, found.observed, found.counts, strict=True) if n)
    assert found.expected_error == pytest.approx(error / 300)
    assert found.coverage == pytest.approx(300 / 301) and sum(found.counts) == 300
    assert math.isnan(reliability([], []).brier)
    with pytest.raises(ValueError, match=r"0\.\.1"):
        reliability([1.5], [True])


def test_resamples_equal_copied_pairs():
    similarity, same, identity, truth = pairs(6)
    point = threshold_at(similarity, same, 0.1).threshold
    ours = {
        **reliability_statistics(truth, same, identity),
        **accept_statistics(similarity, same, point, identity),
    }
    slow = []
    for weights in np.concatenate(list(resample_weights(20, 15, seed=3))):
        names = ours["brier"].identities
        drawn = np.concatenate(
            [np.flatnonzero(identity == int(n)).repeat(int(w)) for n, w in zip(names, weights, strict=True)]
        )
        curve = reliability(truth[drawn], same[drawn])
        accepted, labels = similarity[drawn] >= point, same[drawn]
        slow.append((curve.expected_error, curve.brier, accepted[~labels].mean(), accepted[labels].mean()))
    for name, column in zip(
        ("expected_error", "brier", "false_accept_rate", "true_accept_rate"), np.transpose(slow), strict=True
    ):
        np.testing.assert_allclose(resampled(ours[name], resamples=15, seed=3), column, atol=1e-12)
