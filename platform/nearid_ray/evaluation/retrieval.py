"""Ranking by similarity: verification of pairs and retrieval from a gallery, with intervals over identities.

Average precision is the mean, over the pairs that are the same, of the precision among all pairs at least as similar
(scikit-learn's definition: no interpolation, ties rank together). ROC-AUC is the share of (same, different)
comparisons that the same pair wins, a tie counting one half. nDCG has relevance 0 or 1 and discount 1 / log2(rank + 1);
tied items share the mean discount of their ranks. All are 0..1, higher is better.

Axes: N pairs, Q queries, G gallery items, I identities, B resamples, M distinct similarities of same pairs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nearid_ray.evaluation.bootstrap import Statistic, in_blocks, mean_statistic, share

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

# Counts of negatives are multiplied in blocks of about this many numbers (64 MB).
_BLOCK_NUMBERS = 8_000_000


def average_precision(similarity_N: ArrayLike, same_N: ArrayLike) -> float:
    """Average precision of pairs ranked by similarity.

    Pairs with a non-finite similarity are left out; nan where no pair is the same.

    >>> average_precision([0.9, 0.8, 0.7, np.nan], [True, False, True, True]).__round__(4)
    0.8333
    >>> average_precision([0.5, 0.5], [True, False]), average_precision([0.5], [False])
    (0.5, nan)
    """
    from sklearn.metrics import average_precision_score

    similarity, same, _ = _finite_pairs(similarity_N, same_N)
    return float(average_precision_score(same, similarity)) if same.any() else math.nan


def roc_auc(similarity_N: ArrayLike, same_N: ArrayLike) -> float:
    """Area under the ROC curve of pairs by similarity.

    Pairs with a non-finite similarity are left out; nan where all pairs are the same, or none. 0.5 for constant scores.

    >>> roc_auc([0.9, 0.8, 0.7, np.nan], [True, False, True, True]), roc_auc([0.5] * 3, [True, False, False])
    (0.5, 0.5)
    >>> roc_auc([0.5, 0.6], [True, True])
    nan
    """
    from sklearn.metrics import roc_auc_score

    similarity, same, _ = _finite_pairs(similarity_N, same_N)
    return float(roc_auc_score(same, similarity)) if same.any() and not same.all() else math.nan


def verification_statistics(
    similarity_N: ArrayLike, same_N: ArrayLike, identity_N: ArrayLike | None = None
) -> dict[str, Statistic]:
    """average_precision and roc_auc of pairs, with identities to resample.

    Args:
        similarity_N: non-finite ones are left out and lower `coverage`.
        same_N: whether the two show the same identity.
        identity_N: what is drawn with each pair, e.g. the identity of its first image; each pair alone when left out.

    Raises:
        ValueError: the arguments differ in length.

    >>> found = verification_statistics([0.9, 0.8, 0.7], [True, False, True], ["a", "a", "b"])
    >>> [round(statistic.value(), 4) for statistic in found.values()]
    [0.8333, 0.5]
    """
    similarity, same, valid = _finite_pairs(similarity_N, same_N)
    identity = np.arange(len(valid)) if identity_N is None else np.asarray(identity_N).reshape(-1)
    if len(identity) != len(valid):
        raise ValueError(f"{len(valid)} pairs of {len(identity)} identities; expected as many of each")
    names, row_N = np.unique(identity[valid], return_inverse=True)
    ranking = _Ranking(similarity, same, row_N, len(names))
    of_rows = {"average_precision": ranking.average_precision, "roc_auc": ranking.roc_auc}
    return {
        name: Statistic(
            identities=tuple(str(one) for one in names),
            of_weights=in_blocks(of_weights, 6 * ranking.levels + len(names)),
            coverage=share(valid),
        )
        for name, of_weights in of_rows.items()
    }


@dataclass(frozen=True, kw_only=True)
class QueryScores:
    """Measures of each query; nan for a query without a gallery item that is the same (roc_auc: or different)."""

    average_precision_Q: FloatArray
    roc_auc_Q: FloatArray
    ndcg_Q: FloatArray
    coverage: float
    """Share of the allowed pairs with a finite similarity; the others are not in any ranking."""


def query_scores(similarity_QG: ArrayLike, same_QG: ArrayLike, allowed_QG: ArrayLike | None = None) -> QueryScores:
    """Average precision, ROC-AUC and nDCG of each query's ranking of the gallery.

    Args:
        similarity_QG: non-finite ones are left out of the query's ranking and lower `coverage`.
        same_QG: whether the gallery item shows the query's identity.
        allowed_QG: pairs that count; leave out what a query must not find, such as its own picture. All by default.

    Raises:
        ValueError: the shapes differ.

    >>> found = query_scores([[0.9, 0.8, 0.7], [0.1, 0.2, 0.2]], [[1, 0, 1], [0, 0, 1]])
    >>> found.average_precision_Q.round(4).tolist(), found.roc_auc_Q.tolist(), found.ndcg_Q.round(4).tolist()
    ([0.8333, 0.5], [0.5, 0.75], [0.9197, 0.8155])
    """
    similarity, same, finite, allowed = _matrices(similarity_QG, same_QG, allowed_QG)
    width = similarity.shape[1]
    gain_R = np.concatenate([[0.0], np.cumsum(1 / np.log2(np.arange(width) + 2))])
    """Discounts of the first R ranks, summed."""

    # What does not count ranks below everything, so that counts from the top leave it out.
    sorted_QG = np.sort(np.where(finite, similarity, -np.inf), axis=1)
    found = np.full((3, len(similarity)), np.nan)
    for query in range(len(similarity)):
        wanted = np.sort(similarity[query, finite[query] & same[query]])
        if not len(wanted):
            continue
        at_least = width - np.searchsorted(sorted_QG[query], wanted, side="left")
        above = width - np.searchsorted(sorted_QG[query], wanted, side="right")
        same_at_least = len(wanted) - np.searchsorted(wanted, wanted, side="left")
        same_above = len(wanted) - np.searchsorted(wanted, wanted, side="right")
        found[0, query] = np.mean(same_at_least / at_least)
        found[2, query] = np.sum((gain_R[at_least] - gain_R[above]) / (at_least - above)) / gain_R[len(wanted)]
        different = int(finite[query].sum()) - len(wanted)
        if different:
            beaten_by = ((at_least - same_at_least) + (above - same_above)) / 2
            found[1, query] = 1 - np.mean(beaten_by) / different
    coverage = share(finite[allowed])
    return QueryScores(average_precision_Q=found[0], roc_auc_Q=found[1], ndcg_Q=found[2], coverage=coverage)


def retrieval_statistics(
    similarity_QG: ArrayLike,
    same_QG: ArrayLike,
    identity_Q: ArrayLike | None = None,
    allowed_QG: ArrayLike | None = None,
) -> dict[str, Statistic]:
    """Retrieval measures with the queries' identities to resample; the gallery stays as it is.

    map, roc_auc, ndcg: means over the queries that have something to find. pooled_ap, pooled_roc_auc: of all
    (query, gallery item) pairs in one ranking, which also asks that similarities mean the same for every query.
    `coverage`: share of the allowed pairs with a finite similarity.

    Args:
        similarity_QG, same_QG, allowed_QG: as `query_scores` takes them.
        identity_Q: identity of each query; each query is one when left out.

    >>> found = retrieval_statistics([[0.9, 0.8, 0.7], [0.1, 0.2, 0.2]], [[1, 0, 1], [0, 0, 1]])
    >>> {name: round(statistic.value(), 4) for name, statistic in found.items()}  # doctest: +NORMALIZE_WHITESPACE
    {'map': 0.6667, 'roc_auc': 0.625, 'ndcg': 0.8676, 'pooled_ap': 0.7556, 'pooled_roc_auc': 0.7222}
    """
    similarity, same, finite, allowed = _matrices(similarity_QG, same_QG, allowed_QG)
    identity = np.arange(len(similarity)) if identity_Q is None else np.asarray(identity_Q).reshape(-1)
    if len(identity) != len(similarity):
        raise ValueError(f"{len(similarity)} queries of {len(identity)} identities; expected as many of each")
    scores = query_scores(similarity, same, allowed)
    values = {"map": scores.average_precision_Q, "roc_auc": scores.roc_auc_Q, "ndcg": scores.ndcg_Q}
    found = {name: mean_statistic(value_Q, identity) for name, value_Q in values.items()}
    pooled = verification_statistics(
        similarity[finite], same[finite], np.broadcast_to(identity[:, None], finite.shape)[finite]
    )
    found |= {"pooled_ap": pooled["average_precision"], "pooled_roc_auc": pooled["roc_auc"]}
    return {
        name: Statistic(identities=one.identities, of_weights=one.of_weights, coverage=scores.coverage)
        for name, one in found.items()
    }


class _Ranking:
    """Weighted average precision and ROC-AUC for many weights at once.

    Only the distinct similarities of pairs that are the same matter: level m is the m-th of them from the top. The
    pairs that are different are counted by identity between the levels, so a resample is a matrix product.
    """

    def __init__(self, similarity: FloatArray, same: BoolArray, row_N: NDArray[np.int64], identities: int) -> None:
        level_M = -np.unique(-similarity[same])
        self.levels, self._identities = len(level_M), identities
        self._same = (np.searchsorted(-level_M, -similarity[same]), row_N[same])
        # The first level that a different pair is at least as similar as: from there on it is a false accept.
        other = similarity[~same]
        slot = np.searchsorted(-level_M, -other)
        self._different = (slot, row_N[~same])
        inside = slot < self.levels
        tied = inside.copy()
        tied[inside] = level_M[slot[inside]] == other[inside]
        self._tied = (slot[tied], row_N[~same][tied])
        self._total_I = np.bincount(row_N[~same], minlength=identities).astype(np.float64)

    def average_precision(self, weight_BI: FloatArray) -> FloatArray:
        same_BM = self._weighted(weight_BI, self._same)
        accepted_BM = np.cumsum(same_BM, axis=1)
        false_BM = np.cumsum(self._weighted(weight_BI, self._different), axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            precision_BM = np.where(same_BM > 0, accepted_BM / (accepted_BM + false_BM), 0.0)
            return (same_BM * precision_BM).sum(axis=1) / same_BM.sum(axis=1)

    def roc_auc(self, weight_BI: FloatArray) -> FloatArray:
        same_BM = self._weighted(weight_BI, self._same)
        ahead_BM = np.cumsum(self._weighted(weight_BI, self._different), axis=1)
        if len(self._tied[0]):
            ahead_BM -= self._weighted(weight_BI, self._tied) / 2
        total_B = weight_BI @ self._total_I
        with np.errstate(invalid="ignore", divide="ignore"):
            return 1 - (same_BM * ahead_BM).sum(axis=1) / (same_BM.sum(axis=1) * total_B)

    def _weighted(self, weight_BI: FloatArray, pairs: tuple[NDArray[np.int64], NDArray[np.int64]]) -> FloatArray:
        """Weight of the pairs at each level, shape (B, M); pairs below the last level are left out."""
        level, row = pairs
        order = np.argsort(level, kind="stable")
        level, row = level[order], row[order]
        weighted_BM = np.empty((len(weight_BI), self.levels))
        step = max(1, _BLOCK_NUMBERS // max(1, self._identities))
        for start in range(0, self.levels, step):
            size = min(step, self.levels - start)
            part = slice(*np.searchsorted(level, (start, start + size)))
            cell = (level[part] - start) * self._identities + row[part]
            count_MI = np.bincount(cell, minlength=size * self._identities).reshape(size, self._identities)
            weighted_BM[:, start : start + size] = weight_BI @ count_MI.T.astype(np.float64)
        return weighted_BM


def _finite_pairs(similarity_N: ArrayLike, same_N: ArrayLike) -> tuple[FloatArray, BoolArray, BoolArray]:
    similarity, same = np.asarray(similarity_N, np.float64).reshape(-1), np.asarray(same_N, bool).reshape(-1)
    if len(similarity) != len(same):
        raise ValueError(f"{len(similarity)} similarities of {len(same)} labels; expected as many of each")
    valid = np.isfinite(similarity)
    return similarity[valid], same[valid], valid


def _matrices(
    similarity_QG: ArrayLike, same_QG: ArrayLike, allowed_QG: ArrayLike | None
) -> tuple[FloatArray, BoolArray, BoolArray, BoolArray]:
    """Similarity, same, which pairs are in the rankings, and which should be."""
    similarity, same = np.asarray(similarity_QG, np.float64), np.asarray(same_QG, bool)
    allowed = np.ones(same.shape, bool) if allowed_QG is None else np.asarray(allowed_QG, bool)
    if similarity.ndim != 2 or not similarity.shape == same.shape == allowed.shape:
        raise ValueError(f"shapes {similarity.shape}, {same.shape} and {allowed.shape}; expected (queries, gallery)")
    return similarity, same, np.isfinite(similarity) & allowed, allowed
