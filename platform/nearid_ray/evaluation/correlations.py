"""Correlation of similarities with an oracle, with intervals over identities.

Axes: N pairs, I identities, B resamples.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nearid_ray.evaluation.bootstrap import CONFIDENCE, RESAMPLES, Interval, percentile_interval, resample_weights

# Beyond this the inverse hyperbolic tangent says more about rounding than about the data (NearID paper, M-O).
LARGEST_R = 0.999


def pearson(x_N: ArrayLike, y_N: ArrayLike) -> float:
    """Pearson's correlation, -1..1.

    Pairs with a non-finite part are left out; a constant column gives 0; fewer than two pairs give nan.

    >>> pearson([1, 2, 3, np.nan], [2.0, 4.0, 6.0, 1.0]).__round__(12)
    1.0
    >>> pearson([1, 2, 3], [5, 5, 5])
    0.0
    >>> pearson([1], [2])
    nan
    """
    x, y = np.asarray(x_N, np.float64).reshape(-1), np.asarray(y_N, np.float64).reshape(-1)
    if len(x) != len(y):
        raise ValueError(f"{len(x)} and {len(y)} values; expected as many of each")
    valid = np.isfinite(x) & np.isfinite(y)
    return float(_weighted_pearson(np.ones((1, 1)), _sums(x[valid], y[valid], np.zeros(int(valid.sum()), int), 1))[0])


def fisher_mean(r_N: ArrayLike) -> float:
    """Mean of correlations on Fisher's scale: tanh(mean(atanh r)), |r| clipped to 0.999; nan ones are left out.

    >>> fisher_mean([0.2, 0.8]).__round__(4)
    0.5721
    >>> fisher_mean([1.0]), fisher_mean([])
    (0.999, nan)
    """
    r = np.asarray(r_N, np.float64)
    r = r[np.isfinite(r)]
    if not len(r):
        return math.nan
    return float(np.tanh(np.mean(np.arctanh(np.clip(r, -LARGEST_R, LARGEST_R)))))


def bootstrap_pearson(
    x_N: ArrayLike,
    y_N: ArrayLike,
    identity_N: ArrayLike,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    confidence: float = CONFIDENCE,
) -> Interval:
    """Pearson's correlation with its percentile interval, identities (each with all its pairs) drawn anew."""
    x, y = np.asarray(x_N, np.float64).reshape(-1), np.asarray(y_N, np.float64).reshape(-1)
    identity = np.asarray(identity_N).reshape(-1)
    if not len(x) == len(y) == len(identity):
        raise ValueError(f"{len(x)} and {len(y)} values of {len(identity)} identities; expected as many of each")
    valid = np.isfinite(x) & np.isfinite(y)
    names, row_N = np.unique(identity[valid], return_inverse=True)
    value = pearson(x, y)
    if not len(names):
        return percentile_interval(value, [], confidence)
    sums_I6 = _sums(x[valid], y[valid], row_N, len(names))
    blocks = [_weighted_pearson(weight_BI, sums_I6) for weight_BI in resample_weights(len(names), resamples, seed)]
    return percentile_interval(value, np.concatenate(blocks), confidence)


def _sums(x: NDArray[np.float64], y: NDArray[np.float64], row: ArrayLike, rows: int) -> NDArray[np.float64]:
    """Per identity: number, sum x, y, xx, yy, xy, after taking out the overall mean (or squares would cancel)."""
    if len(x):
        x, y = x - x.mean(), y - y.mean()
    terms = (np.ones_like(x), x, y, x * x, y * y, x * y)
    return np.stack([np.bincount(np.asarray(row), term, minlength=rows) for term in terms], axis=1)


def _weighted_pearson(weight_BI: NDArray, sums_I6: NDArray[np.float64]) -> NDArray[np.float64]:
    n, x, y, xx, yy, xy = (weight_BI @ sums_I6).T
    with np.errstate(invalid="ignore", divide="ignore"):
        variance_x, variance_y = xx - x * x / n, yy - y * y / n
        covariance = xy - x * y / n
        # What rounding leaves of the variance of a constant column is no variance.
        constant = (variance_x <= 1e-12 * np.maximum(xx, 1e-300)) | (variance_y <= 1e-12 * np.maximum(yy, 1e-300))
        r = np.clip(covariance / np.sqrt(variance_x * variance_y), -1.0, 1.0)
    return np.where(n < 2, np.nan, np.where(constant, 0.0, r))
