"""The sensitivity fit against scipy, and its resamples against loops."""

import math

import numpy as np
import pytest
from scipy import stats
from sklearn.linear_model import LinearRegression

from nearid_ray.evaluation.bootstrap import difference, resample_weights
from nearid_ray.evaluation.sensitivity import fit, sensitivity, sensitivity_statistics


def grid(seed: int = 0, objects: int = 8):
    """(similarity, factor, identity, object): objects lose 0.1 a factor and 0.5 an identity, more or less."""
    random = np.random.default_rng(seed)
    factor, identity = (a.reshape(-1) for a in np.meshgrid(np.arange(5) / 4, np.linspace(0.4, 1.0, 4)))
    parts = []
    for name in range(objects):
        similarity = 1 - random.normal(0.1, 0.03) * factor - random.normal(0.5, 0.1) * identity
        similarity += 0.02 * random.normal(size=len(factor))
        parts.append(np.stack([similarity, factor, identity, np.full(len(factor), name)]))
    return np.concatenate(parts, axis=1)


def test_fit_equals_linear_regression_and_leaves_gaps_out():
    similarity, factor, identity, _ = grid(0, objects=1)
    design = np.stack([factor, identity], axis=1)
    model = LinearRegression().fit(design, similarity)
    found = fit([*similarity, math.nan], [*factor, 0.5], [*identity, 0.5])
    assert (found.factor, found.identity) == pytest.approx(tuple(-model.coef_), abs=1e-12)
    assert found.r_squared == pytest.approx(model.score(design, similarity), abs=1e-12)
    one = stats.linregress(identity, similarity)
    assert found.identity == pytest.approx(-one.slope, abs=1e-9), "a balanced grid fits each alone"


def test_means_over_objects_with_their_resamples():
    similarity, factor, identity, name = grid(1)
    found = sensitivity(similarity, factor, identity, name, resamples=200, seed=2)
    fits = [fit(similarity[name == n], factor[name == n], identity[name == n]) for n in range(8)]
    weights = np.concatenate(list(resample_weights(8, 200, seed=2)))
    for key in ("factor", "identity", "r_squared"):
        values = np.array([getattr(one, key) for one in fits])
        drawn = weights @ values / 8
        assert found[key].value == pytest.approx(values.mean())
        assert (found[key].mean, found[key].deviation) == pytest.approx((drawn.mean(), drawn.std()))
        assert (found[key].low, found[key].high) == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])))
    assert found["identity"].low > found["factor"].high > 0


def test_objects_that_cannot_be_fitted_are_told_and_constant_scores_lose_nothing():
    similarity, factor, identity, name = grid(2)
    factor = np.where(name == 3, 0.5, factor)
    found = sensitivity(similarity, factor, identity, name, resamples=20)
    assert found["factor"].coverage == 7 / 8
    constant = fit(np.full(len(factor), 0.7), *grid(2)[1:3])
    assert (constant.factor, constant.identity) == (0, 0) and math.isnan(constant.r_squared)
    assert math.isnan(fit([1, 2], [0, 1], [0, 1]).factor)
    assert math.isnan(sensitivity([], [], [], [])["factor"].value)
    with pytest.raises(ValueError, match="2 and 1 and 1"):
        fit([1, 2], [1], [1])


def test_two_scorers_are_compared_on_the_same_objects():
    similarity, factor, identity, name = grid(3)
    weak = sensitivity_statistics(similarity, factor, identity, name)["identity"]
    strong = sensitivity_statistics(similarity - identity, factor, identity, name)["identity"]
    found = difference(weak, strong, resamples=50)
    assert found.value == pytest.approx(1.0) and found.share_above_zero == 1.0
