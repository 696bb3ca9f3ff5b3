"""Correlations of similarities with an oracle or with people, with intervals over identities.

All three kinds leave pairs with a non-finite part out (the statistics' `coverage` tells of them), count a constant
column as correlation 0, and are nan for fewer than two pairs.

Axes: N pairs, I identities, B resamples, G groups of equal values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nearid_ray.evaluation.bootstrap import (
    CONFIDENCE,
    RESAMPLES,
    Interval,
    Statistic,
    in_blocks,
    percentile_interval,
    resampled,
    share,
)

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

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
    return pearson_statistic(x_N, y_N).value()


def spearman(x_N: ArrayLike, y_N: ArrayLike) -> float:
    """Spearman's correlation, -1..1: Pearson's of the ranks, equal values sharing the mean of their ranks.

    Pairs with a non-finite part are left out; a constant column gives 0; fewer than two pairs give nan.

    >>> spearman([1, 2, 3, 4], [1, 4, 4, 900]).__round__(4)
    0.9487
    >>> spearman([1, 2, np.nan], [2, 1, 5]), spearman([1, 2], [3, 3])
    (-1.0, 0.0)
    """
    return spearman_statistic(x_N, y_N).value()


def kendall(x_N: ArrayLike, y_N: ArrayLike) -> float:
    """Kendall's tau-b, -1..1: (concordant - discordant) / sqrt(pairs untied in x * pairs untied in y).

    Pairs with a non-finite part are left out; a constant column gives 0; fewer than two pairs give nan.

    >>> kendall([1, 2, 3, 4], [1, 3, 2, 4]).__round__(4)
    0.6667
    >>> kendall([1, 2, 3], [5, 5, 5])
    0.0
    """
    from scipy.stats import kendalltau

    x, y, _ = _finite(x_N, y_N)
    if len(x) < 2:
        return math.nan
    if (x == x[0]).all() or (y == y[0]).all():
        return 0.0
    return float(kendalltau(x, y).statistic)


def fisher_mean(r_N: ArrayLike) -> float:
    """Mean of correlations on Fisher's scale: tanh(mean(atanh r)), |r| clipped to 0.999.

    nan if one of them is nan: what could not be measured is not averaged away (leave it out yourself, and say so).
    nan for no correlation at all.

    >>> fisher_mean([0.2, 0.8]).__round__(4)
    0.5721
    >>> fisher_mean([1.0]), fisher_mean([]), fisher_mean([0.5, float("nan")])
    (0.999, nan, nan)
    """
    r = np.asarray(r_N, np.float64).reshape(-1)
    return float(_fisher_mean(r[None, :])[0]) if len(r) else math.nan


def fisher_statistic(parts: Sequence[Statistic]) -> Statistic:
    """`fisher_mean` of correlations, resampled together: an identity is drawn for all of them.

    `coverage` is the mean of the parts'.

    >>> part = pearson_statistic([1, 2, 3], [1, 2, 4])
    >>> round(fisher_statistic([part, part]).value() - part.value(), 12)
    0.0
    """
    names = sorted({name for part in parts for name in part.identities})
    place = {name: column for column, name in enumerate(names)}
    columns = [np.array([place[name] for name in part.identities], np.int64) for part in parts]

    def of_weights(weight_BI: FloatArray) -> FloatArray:
        r = [part.of_weights(weight_BI[:, mine]) for part, mine in zip(parts, columns, strict=True)]
        return _fisher_mean(np.stack(r, axis=1))

    coverage = float(np.mean([part.coverage for part in parts])) if parts else math.nan
    return Statistic(identities=tuple(names), of_weights=of_weights, coverage=coverage)


def oracle_agreement(
    own_similarity_N2: ArrayLike, crossed_similarity_N2: ArrayLike, oracle_N2: ArrayLike
) -> tuple[float, float]:
    """M-O and M-O_pair of samples with two views and a distractor each (Mind-the-Glitch); higher is better, to 1.

    M-O is the Fisher mean of four correlations over the samples: the similarities (1,1'), (2,2'), (1,2'), (2,1') with
    the oracle of their distractor 1' or 2'. M-O_pair is that of the first two. Samples with a gap are left out of the
    correlations they touch; a constant column counts as correlation 0; nan where one has fewer than two samples.

    Args:
        own_similarity_N2: s(1,1'), s(2,2').
        crossed_similarity_N2: s(1,2'), s(2,1').
        oracle_N2: oracles of 1' and 2': share of the object that stayed the same.

    >>> own, crossed = [[0.1, 0.2], [0.5, 0.4], [0.9, 0.9]], [[1, 0], [1, 0], [1, 0]]
    >>> oracle = [[0.0, 0.0], [0.5, 0.5], [1.0, 1.0]]
    >>> [round(value, 3) for value in oracle_agreement(own, crossed, oracle)]
    [0.901, 0.995]
    """
    both, pair = oracle_statistics(own_similarity_N2, crossed_similarity_N2, oracle_N2)
    return both.value(), pair.value()


def oracle_statistics(
    own_similarity_N2: ArrayLike,
    crossed_similarity_N2: ArrayLike,
    oracle_N2: ArrayLike,
    identity_N: ArrayLike | None = None,
) -> tuple[Statistic, Statistic]:
    """`oracle_agreement` as statistics; each sample is an identity unless `identity_N` says otherwise."""
    own, crossed, oracle = (np.asarray(a, np.float64) for a in (own_similarity_N2, crossed_similarity_N2, oracle_N2))
    if not own.shape == crossed.shape == oracle.shape or own.ndim != 2 or own.shape[1] != 2:
        raise ValueError(f"shapes {own.shape}, {crossed.shape} and {oracle.shape}; expected (samples, 2) three times")
    of_pair = [pearson_statistic(own[:, side], oracle[:, side], identity_N) for side in (0, 1)]
    of_cross = [pearson_statistic(crossed[:, side], oracle[:, 1 - side], identity_N) for side in (0, 1)]
    return fisher_statistic([*of_pair, *of_cross]), fisher_statistic(of_pair)


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
    found = pearson_statistic(x_N, y_N, identity_N)
    return percentile_interval(found.value(), resampled(found, resamples=resamples, seed=seed), confidence)


def pearson_statistic(x_N: ArrayLike, y_N: ArrayLike, identity_N: ArrayLike | None = None) -> Statistic:
    """`pearson` with identities to resample; each pair is one unless `identity_N` says otherwise.

    Raises:
        ValueError: the arguments differ in length.
    """
    x, y, coverage, names, row_N = _grouped(x_N, y_N, identity_N)
    sums_I6 = _sums(x, y, row_N, len(names))
    return Statistic(identities=names, of_weights=lambda w: _weighted_pearson(w, sums_I6), coverage=coverage)


def spearman_statistic(x_N: ArrayLike, y_N: ArrayLike, identity_N: ArrayLike | None = None) -> Statistic:
    """`spearman` with identities to resample; ranks are those within each resample."""
    x, y, coverage, names, row_N = _grouped(x_N, y_N, identity_N)
    ranks = [_weighted_ranks(values) for values in (x, y)] if len(x) else []

    def of_weights(weight_BI: FloatArray) -> FloatArray:
        weight_BN = weight_BI[:, row_N]
        count_B = weight_BN.sum(axis=1)
        # Ranks 1 .. n have the mean (n + 1) / 2 whatever the ties.
        x_BN, y_BN = (rank(weight_BN) - (count_B[:, None] + 1) / 2 for rank in ranks)
        weighted_BN = weight_BN * x_BN
        xx, xy = np.einsum("bn,bn->b", weighted_BN, x_BN), np.einsum("bn,bn->b", weighted_BN, y_BN)
        yy = np.einsum("bn,bn,bn->b", weight_BN, y_BN, y_BN)
        return _quotient(count_B, xy, xx, yy)

    if not len(x):
        return Statistic(identities=(), of_weights=lambda w: np.full(len(w), np.nan), coverage=coverage)
    return Statistic(identities=names, of_weights=in_blocks(of_weights, 8 * len(x)), coverage=coverage)


def kendall_statistic(x_N: ArrayLike, y_N: ArrayLike, identity_N: ArrayLike | None = None) -> Statistic:
    """`kendall` with identities to resample.

    Takes time in the square of the pairs once (1 s for 10,000), then in the square of the identities a resample:
    the sums over pairs of pairs are taken for each two identities beforehand.
    """
    x, y, coverage, names, row_N = _grouped(x_N, y_N, identity_N)
    count, order = len(names), np.argsort(row_N, kind="stable")
    x, y, row_N = x[order], y[order], row_N[order]
    agree_II, x_II, y_II = (np.zeros((count, count)) for _ in range(3))
    starts = np.searchsorted(row_N, np.arange(count))
    step = max(1, 2_000_000 // max(1, len(x)))
    for start in range(0, len(x), step):
        part = slice(start, start + step)
        x_sign, y_sign = (np.sign(v[part, None] - v[None, :]).astype(np.float32) for v in (x, y))
        for total, sign in ((agree_II, x_sign * y_sign), (x_II, np.abs(x_sign)), (y_II, np.abs(y_sign))):
            np.add.at(total, row_N[part], np.add.reduceat(sign, starts, axis=1, dtype=np.float64))

    def of_weights(weight_BI: FloatArray) -> FloatArray:
        sums = [np.einsum("bi,bi->b", weight_BI @ matrix_II, weight_BI) for matrix_II in (agree_II, x_II, y_II)]
        number_B = weight_BI @ np.bincount(row_N, minlength=count)
        return _quotient(number_B, *sums)

    return Statistic(identities=names, of_weights=of_weights, coverage=coverage)


def _finite(x_N: ArrayLike, y_N: ArrayLike) -> tuple[FloatArray, FloatArray, NDArray[np.bool_]]:
    x, y = np.asarray(x_N, np.float64).reshape(-1), np.asarray(y_N, np.float64).reshape(-1)
    if len(x) != len(y):
        raise ValueError(f"{len(x)} and {len(y)} values; expected as many of each")
    valid = np.isfinite(x) & np.isfinite(y)
    return x[valid], y[valid], valid


def _grouped(
    x_N: ArrayLike, y_N: ArrayLike, identity_N: ArrayLike | None
) -> tuple[FloatArray, FloatArray, float, tuple[str, ...], IntArray]:
    """Finite pairs, their share, the names of the identities that have any, and the identity of each pair."""
    x, y, valid = _finite(x_N, y_N)
    if identity_N is None:
        # Zeros in front, so that names sort like numbers and parts with other gaps agree on which pair is which.
        identity = np.array([f"{n:09d}" for n in np.flatnonzero(valid)], dtype=str)
    else:
        identity = np.asarray(identity_N).reshape(-1)
        if len(identity) != len(valid):
            raise ValueError(f"{len(valid)} pairs of {len(identity)} identities; expected as many of each")
        identity = identity[valid]
    names, row_N = np.unique(identity, return_inverse=True)
    return x, y, share(valid), tuple(str(name) for name in names), row_N.astype(np.int64)


def _sums(x: FloatArray, y: FloatArray, row: ArrayLike, rows: int) -> FloatArray:
    """Per identity: number, sum x, y, xx, yy, xy, after taking out the overall mean (or squares would cancel)."""
    if len(x):
        x, y = x - x.mean(), y - y.mean()
    terms = (np.ones_like(x), x, y, x * x, y * y, x * y)
    return np.stack([np.bincount(np.asarray(row), term, minlength=rows) for term in terms], axis=1)


def _weighted_pearson(weight_BI: FloatArray, sums_I6: FloatArray) -> FloatArray:
    n, x, y, xx, yy, xy = (weight_BI @ sums_I6).T
    with np.errstate(invalid="ignore", divide="ignore"):
        variance_x, variance_y = xx - x * x / n, yy - y * y / n
        covariance = xy - x * y / n
        # What rounding leaves of the variance of a constant column is no variance.
        constant = (variance_x <= 1e-12 * np.maximum(xx, 1e-300)) | (variance_y <= 1e-12 * np.maximum(yy, 1e-300))
        r = np.clip(covariance / np.sqrt(variance_x * variance_y), -1.0, 1.0)
    return np.where(n < 2, np.nan, np.where(constant, 0.0, r))


def _quotient(count_B: FloatArray, xy: FloatArray, xx: FloatArray, yy: FloatArray) -> FloatArray:
    with np.errstate(invalid="ignore", divide="ignore"):
        r = np.clip(xy / np.sqrt(xx * yy), -1.0, 1.0)
    return np.where(count_B < 2, np.nan, np.where((xx <= 0) | (yy <= 0), 0.0, r))


def _weighted_ranks(value_N: FloatArray) -> Callable[[FloatArray], FloatArray]:
    """From how often each value is counted (B, N) to its rank among all copies; equal values share the mean rank."""
    order = np.argsort(value_N, kind="stable")
    new_N = np.diff(value_N[order], prepend=np.nan) != 0
    starts_G = np.flatnonzero(new_N)
    group_N = np.empty(len(value_N), np.int64)
    group_N[order] = np.cumsum(new_N) - 1

    def ranks(weight_BN: FloatArray) -> FloatArray:
        weight_BG = np.add.reduceat(weight_BN[:, order], starts_G, axis=1)
        rank_BG = np.cumsum(weight_BG, axis=1) - (weight_BG - 1) / 2
        return rank_BG[:, group_N]

    return ranks


def _fisher_mean(r_BK: FloatArray) -> FloatArray:
    if not r_BK.shape[1]:
        return np.full(len(r_BK), np.nan)
    return np.asarray(np.tanh(np.mean(np.arctanh(np.clip(r_BK, -LARGEST_R, LARGEST_R)), axis=1)))
