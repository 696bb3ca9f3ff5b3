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


def oracle_agreement(
    own_similarity_N2: ArrayLike, crossed_similarity_N2: ArrayLike, oracle_N2: ArrayLike
) -> tuple[float, float]:
    """M-O and M-O_pair of samples with two views and a distractor each (Mind-the-Glitch); higher is better, to 1.

    M-O is the Fisher mean of four correlations over the samples: the similarities (1,1'), (2,2'), (1,2'), (2,1') with
    the oracle of their distractor 1' or 2'. M-O_pair is that of the first two. Samples with a gap are left out of the
    correlations they touch; a constant column counts as correlation 0; nan for fewer than two samples.

    Args:
        own_similarity_N2: s(1,1'), s(2,2').
        crossed_similarity_N2: s(1,2'), s(2,1').
        oracle_N2: oracles of 1' and 2': share of the object that stayed the same.

    >>> own, crossed = [[0.1, 0.2], [0.5, 0.4], [0.9, 0.9]], [[1, 0], [1, 0], [1, 0]]
    >>> oracle = [[0.0, 0.0], [0.5, 0.5], [1.0, 1.0]]
    >>> [round(value, 3) for value in oracle_agreement(own, crossed, oracle)]
    [0.901, 0.995]
    """
    own, crossed, oracle = (np.asarray(a, np.float64) for a in (own_similarity_N2, crossed_similarity_N2, oracle_N2))
    if not own.shape == crossed.shape == oracle.shape or own.ndim != 2 or own.shape[1] != 2:
        raise ValueError(f"shapes {own.shape}, {crossed.shape} and {oracle.shape}; expected (samples, 2) three times")
    of_pair = [pearson(own[:, side], oracle[:, side]) for side in (0, 1)]
    of_cross = [pearson(crossed[:, 0], oracle[:, 1]), pearson(crossed[:, 1], oracle[:, 0])]
    return fisher_mean([*of_pair, *of_cross]), fisher_mean(of_pair)


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
