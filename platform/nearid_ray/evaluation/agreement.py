"""How far raters agree: Krippendorff's alpha on an interval scale, and labels by votes.

Axes: U rated units, R raters, I identities, B resamples.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nearid_ray.evaluation.bootstrap import Statistic

FloatArray = NDArray[np.float64]

SAME_ABOVE = 0.8
"""A pair counts as the same where a larger share of its votes says so (ID-Sim, human labels)."""


def krippendorff_alpha(rating_UR: ArrayLike) -> float:
    """Krippendorff's alpha for ratings on an interval scale: 1 = full agreement, 0 = as by chance, below 0 = worse.

    alpha = 1 - observed / expected disagreement, both mean squared differences: of ratings of one unit, each unit
    weighing as many ratings as it has, and of any two ratings. Missing ratings are nan; units with fewer than two
    ratings are left out. nan where nothing is left, or where all ratings are equal (nothing to disagree about).

    >>> krippendorff_alpha([[1, 1], [2, 2], [3, 4]]).__round__(4)
    0.878
    >>> krippendorff_alpha([[1, 2, np.nan], [2, 1, np.nan], [np.nan, np.nan, 5]]).__round__(4)
    -0.5
    >>> krippendorff_alpha([[2, 2], [2, 2]])
    nan
    """
    return krippendorff_statistic(rating_UR).value()


def krippendorff_statistic(rating_UR: ArrayLike, identity_U: ArrayLike | None = None) -> Statistic:
    """`krippendorff_alpha` with identities to resample; each unit is one unless `identity_U` says otherwise.

    `coverage` is the share of units with at least two ratings.

    Raises:
        ValueError: the ratings are no matrix, or the identities are not one a unit.
    """
    rating = np.asarray(rating_UR, np.float64)
    if rating.ndim != 2:
        raise ValueError(f"ratings have shape {rating.shape}; expected (units, raters)")
    identity = np.arange(len(rating)) if identity_U is None else np.asarray(identity_U).reshape(-1)
    if len(identity) != len(rating):
        raise ValueError(f"{len(rating)} units of {len(identity)} identities; expected as many of each")
    finite = np.isfinite(rating)
    kept = finite.sum(axis=1) >= 2
    finite, rating, identity = finite[kept], rating[kept], identity[kept]
    middle = rating[finite].mean() if finite.any() else 0.0
    value_UR = np.where(finite, rating - middle, 0.0)
    count_U, sum_U, square_U = finite.sum(axis=1), value_UR.sum(axis=1), (value_UR**2).sum(axis=1)
    # Sum of (a - b)^2 over the ordered pairs of m values: 2 (m * sum of squares - square of the sum).
    within_U = 2 * (count_U * square_U - sum_U**2) / (count_U - 1)
    names, row_U = np.unique(identity, return_inverse=True)
    sums_I4 = np.stack(
        [np.bincount(row_U, term, minlength=len(names)) for term in (count_U, sum_U, square_U, within_U)], axis=1
    )

    def of_weights(weight_BI: FloatArray) -> FloatArray:
        count, total, square, within = (weight_BI @ sums_I4).T
        with np.errstate(invalid="ignore", divide="ignore"):
            spread = count * square - total**2
            expected = 2 * spread / (count * (count - 1))
            alpha = 1 - (within / count) / expected
        # What rounding leaves of the spread of equal ratings is no spread.
        return np.where(spread > 1e-12 * np.maximum(count * square, 1e-300), alpha, np.nan)

    coverage = float(kept.mean()) if len(kept) else float("nan")
    return Statistic(identities=tuple(str(name) for name in names), of_weights=of_weights, coverage=coverage)


@dataclass(frozen=True, kw_only=True)
class Votes:
    """Labels of pairs by the votes of people."""

    share_U: FloatArray
    """Share of the votes that say "same"; nan for pairs without a vote."""
    same_U: NDArray[np.bool_]
    """Whether a pair counts as the same; not for pairs without a vote."""
    agreement: float
    """Mean of max(p, 1 - p), p that share: 1 = all pairs unanimous, 0.5 = all split. nan without votes."""
    coverage: float
    """Share of the pairs with a vote; nan for no pairs."""


def votes(vote_UR: ArrayLike, *, same_above: float = SAME_ABOVE) -> Votes:
    """Labels from votes "same" (1) or "different" (0); nan where a rater did not vote (ID-Sim, human labels).

    >>> found = votes([[1, 1, 1], [1, 1, 0], [0, 0, np.nan]])
    >>> found.same_U.tolist(), round(found.agreement, 4)
    ([True, False, False], 0.8889)

    Raises:
        ValueError: a vote is neither 0 nor 1.
    """
    vote = np.asarray(vote_UR, np.float64)
    finite = np.isfinite(vote)
    if vote.ndim != 2 or not np.isin(vote[finite], (0.0, 1.0)).all():
        raise ValueError(f"votes of shape {vote.shape}; expected (pairs, raters) of 0, 1 or nan")
    counts_U = finite.sum(axis=1)
    with np.errstate(invalid="ignore"):
        share_U = np.where(finite, vote, 0.0).sum(axis=1) / counts_U
    voted = counts_U > 0
    agreement = float(np.maximum(share_U[voted], 1 - share_U[voted]).mean()) if voted.any() else float("nan")
    coverage = float(voted.mean()) if len(voted) else float("nan")
    return Votes(share_U=share_U, same_U=share_U > same_above, agreement=agreement, coverage=coverage)


def attentive_raters(sentinel_SR: ArrayLike, expected_S: ArrayLike) -> NDArray[np.bool_]:
    """Which raters answered every sentinel pair as expected; a sentinel not answered counts as missed.

    >>> attentive_raters([[1, 1, 0], [0, np.nan, 0]], [1, 0]).tolist()
    [True, False, False]
    """
    sentinel, expected = np.asarray(sentinel_SR, np.float64), np.asarray(expected_S, np.float64).reshape(-1)
    if sentinel.ndim != 2 or len(sentinel) != len(expected):
        raise ValueError(
            f"answers of shape {sentinel.shape} to {len(expected)} sentinels; expected (sentinels, raters)"
        )
    return np.asarray((sentinel == expected[:, None]).all(axis=0))
