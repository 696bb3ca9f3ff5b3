"""From similarity to the probability of the same identity, and thresholds for a wished rate of false accepts.

A calibration is fitted on pairs of a validation split, never on those it is judged by, and is stored as plain numbers
(`to_json`). Its probabilities hold for the share of same pairs it was fitted with; say the share to expect where it
is another.

Axes: N pairs, I identities, K bins.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nearid_ray.errors import UsageError
from nearid_ray.evaluation.bootstrap import Statistic, ratio_statistic, share

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]
Kind = Literal["isotonic", "logistic"]

# Weak enough to leave the slope to the data, strong enough to keep it finite where a similarity separates all pairs.
_INVERSE_REGULARISATION = 1e3


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """A non-decreasing function from similarity to probability, as numbers that JSON can hold."""

    kind: Kind
    """isotonic: straight lines between points, flat outside; logistic: 1 / (1 + exp(-(slope s + intercept)))."""
    similarities: tuple[float, ...] = ()
    """isotonic: where the points are, ascending."""
    probabilities: tuple[float, ...] = ()
    """isotonic: the probability at each point, non-decreasing, 0..1."""
    slope: float = 0.0
    """logistic; 0 or more."""
    intercept: float = 0.0
    """logistic."""
    same_share: float
    """Share of same pairs among those it was fitted on; above 0, below 1."""
    num_pairs: int
    """Pairs it was fitted on."""
    coverage: float = 1.0
    """Share of the pairs given that had a finite similarity, 0..1."""

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"kind is {self.kind!r}; expected {' or '.join(get_args(Kind))}")
        if self.kind == "isotonic":
            points, values = np.array(self.similarities, np.float64), np.array(self.probabilities, np.float64)
            if not len(points) or len(points) != len(values):
                raise ValueError(
                    f"{len(points)} similarities and {len(values)} probabilities; expected as many, 1 or more"
                )
            rising = (np.diff(points) > 0).all() and (np.diff(values) >= 0).all()
            if not rising or not np.isfinite(points).all() or not ((values >= 0) & (values <= 1)).all():
                raise ValueError("similarities must rise and probabilities must not fall, within 0..1")
        elif not self.slope >= 0 or not math.isfinite(self.slope) or not math.isfinite(self.intercept):
            raise ValueError(f"slope {self.slope}, intercept {self.intercept}; expected finite ones, slope 0 or more")
        if not 0 < self.same_share < 1:
            raise ValueError(f"same_share is {self.same_share}; expected a number between 0 and 1")

    def probability(self, similarity_N: ArrayLike, *, same_share: float | None = None) -> FloatArray:
        """Probability that two images show the same identity; nan where the similarity is not finite. Any shape.

        Args:
            same_share: share of same pairs where it is used, if that is not the one it was fitted with: odds are
                multiplied by the ratio of the prior odds. Above 0, below 1.

        >>> found = Calibration(kind="logistic", slope=10.0, intercept=-5.0, same_share=0.5, num_pairs=100)
        >>> found.probability([0.5, 0.9, np.nan]).round(3).tolist()
        [0.5, 0.982, nan]
        >>> found.probability(0.5, same_share=0.01).round(4).item()
        0.01
        """
        similarity = np.asarray(similarity_N, np.float64)
        if self.kind == "isotonic":
            value = np.interp(similarity, self.similarities, self.probabilities)
        else:
            value = 1 / (1 + np.exp(-np.clip(self.slope * similarity + self.intercept, -700, 700)))
        if same_share is not None:
            if not 0 < same_share < 1:
                raise ValueError(f"same_share is {same_share}; expected a number between 0 and 1")
            ratio = same_share / (1 - same_share) * (1 - self.same_share) / self.same_share
            value = value * ratio / (value * ratio + 1 - value)
        return np.asarray(np.where(np.isfinite(similarity), value, np.nan))

    def to_json(self) -> dict[str, Any]:
        """Plain numbers, strings and lists; `from_json` gives the same calibration back."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Calibration:
        """The calibration that `to_json` wrote.

        Raises:
            UsageError: a field is unknown, missing or out of its range.

        >>> stored = {"kind": "isotonic", "similarities": [0.2, 0.8], "probabilities": [0, 1]}
        >>> Calibration.from_json({**stored, "same_share": 0.5, "num_pairs": 9}).probability(0.8).item()
        1.0
        """
        unknown = sorted(set(stored) - {field.name for field in fields(cls)})
        if unknown:
            raise UsageError(f"a calibration has no field {', '.join(unknown)}; was it written by a newer version?")
        try:
            values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in stored.items()}
            return cls(**values)
        except (TypeError, ValueError) as error:
            raise UsageError(f"this is no calibration: {error}") from error


def fit_calibration(similarity_N: ArrayLike, same_N: ArrayLike, *, kind: Kind = "isotonic") -> Calibration:
    """Fit on labelled pairs of a validation split (scikit-learn).

    isotonic follows any non-decreasing shape and wants some hundred pairs of each label; logistic has two numbers
    and does with few. Where higher similarity does not go with "same", both give the share of same pairs throughout.

    Args:
        similarity_N: non-finite ones are left out (`coverage` tells).
        same_N: whether the two images show the same identity.

    Raises:
        UsageError: same or different pairs are missing.

    >>> similarity, same = [0.1, 0.2, 0.6, 0.4, 0.8, 0.9], [False, False, False, True, True, True]
    >>> fit_calibration(similarity, same).probability([0.0, 0.5, 1.0]).tolist()
    [0.0, 0.5, 1.0]
    >>> fit_calibration(similarity, same, kind="logistic").probability(0.5).round(2).item()
    0.5
    """
    similarity, same, valid = _labelled(similarity_N, same_N)
    if not same.any() or same.all():
        raise UsageError(
            f"{int(same.sum())} same and {int((~same).sum())} different pairs with a finite similarity; expected some "
            "of both: calibrate on a split with views and distractors"
        )
    facts: dict[str, Any] = {"same_share": float(same.mean()), "num_pairs": len(same), "coverage": share(valid)}
    if kind == "logistic":
        slope, intercept = _logistic(similarity, same)
        return Calibration(kind=kind, slope=slope, intercept=intercept, **facts)
    from sklearn.isotonic import IsotonicRegression

    fitted = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip").fit(similarity, same.astype(np.float64))
    points, values = fitted.X_thresholds_.astype(np.float64), np.maximum.accumulate(fitted.y_thresholds_)
    return Calibration(kind=kind, similarities=tuple(points.tolist()), probabilities=tuple(map(float, values)), **facts)


@dataclass(frozen=True, kw_only=True)
class OperatingPoint:
    """A threshold and what it does to the pairs it was chosen on: accepted = similarity at or above it."""

    threshold: float
    false_accept_rate: float
    """Share of the different pairs that are accepted: at most the wished one."""
    true_accept_rate: float
    """Share of the same pairs that are accepted; nan without same pairs."""
    wished: float
    num_different: int
    """Different pairs. Rates below 1 / num_different cannot be told from 0."""
    coverage: float
    """Share of the pairs given that had a finite similarity."""


def threshold_at(similarity_N: ArrayLike, same_N: ArrayLike, false_accept_rate: float) -> OperatingPoint:
    """The lowest threshold whose rate of false accepts on these pairs is at most the wished one.

    It lies halfway between the highest similarity that must be refused and the next one seen above it, so that
    rounding does not decide; all of a tie are refused together. Non-finite similarities are left out.

    Args:
        false_accept_rate: 0..1. Rates below 1 / (different pairs) put the threshold above every different pair.

    Raises:
        ValueError: the wished rate is not in 0..1.
        UsageError: there are no different pairs.

    >>> similarity, same = [0.9, 0.7, 0.6, 0.4, 0.4, 0.1], [True, True, False, False, False, False]
    >>> found = threshold_at(similarity, same, 0.25)
    >>> round(found.threshold, 6), found.false_accept_rate, found.true_accept_rate
    (0.5, 0.25, 1.0)
    >>> round(threshold_at(similarity, same, 0.0).threshold, 6)
    0.65
    """
    if not 0 <= false_accept_rate <= 1:
        raise ValueError(f"false_accept_rate is {false_accept_rate}; expected 0 to 1")
    similarity, same, valid = _labelled(similarity_N, same_N)
    different = np.sort(similarity[~same])[::-1]
    if not len(different):
        raise UsageError("no different pairs with a finite similarity; a rate of false accepts needs some")
    # A rate such as 0.3 of 10 pairs must allow 3 whatever 0.3 * 10 rounds to.
    allowed = math.floor(false_accept_rate * len(different) + 1e-9)
    if allowed >= len(different):
        threshold = float(similarity.min())
    else:
        refused = float(different[allowed])
        above = similarity[similarity > refused]
        threshold = (refused + float(above.min())) / 2 if len(above) else math.inf
        if not refused < threshold < math.inf:
            threshold = float(np.nextafter(refused, np.inf))
    return OperatingPoint(
        threshold=threshold,
        false_accept_rate=float(np.mean(different >= threshold)),
        true_accept_rate=float(np.mean(similarity[same] >= threshold)) if same.any() else math.nan,
        wished=float(false_accept_rate),
        num_different=len(different),
        coverage=share(valid),
    )


def accept_statistics(
    similarity_N: ArrayLike, same_N: ArrayLike, threshold: float, identity_N: ArrayLike | None = None
) -> dict[str, Statistic]:
    """false_accept_rate and true_accept_rate of a fixed threshold on other pairs, with identities to resample.

    >>> found = accept_statistics([0.9, 0.7, 0.6, 0.4], [True, True, False, False], 0.65)
    >>> {name: statistic.value() for name, statistic in found.items()}
    {'false_accept_rate': 0.0, 'true_accept_rate': 1.0}
    """
    similarity, same, valid = _labelled(similarity_N, same_N)
    names, row = _identities(identity_N, valid)

    def rate(wanted: BoolArray) -> Statistic:
        accepted = np.bincount(row[wanted], similarity[wanted] >= threshold, len(names))
        return ratio_statistic(accepted, np.bincount(row[wanted], minlength=len(names)), names, share(valid))

    return {"false_accept_rate": rate(~same), "true_accept_rate": rate(same)}


@dataclass(frozen=True, kw_only=True)
class Reliability:
    """Predicted probabilities beside what happened, in bins of equal width; nan in empty bins."""

    edges: tuple[float, ...]
    """K + 1 borders, 0 to 1; a bin has its lower border, the last one both."""
    counts: tuple[int, ...]
    predicted: tuple[float, ...]
    """Mean probability of the pairs in each bin."""
    observed: tuple[float, ...]
    """Share of same pairs in each bin."""
    expected_error: float
    """Mean |predicted - observed| weighted by counts (ECE), 0..1; lower is better; nan without pairs."""
    brier: float
    """Mean squared difference of probability and label, 0..1; lower is better; nan without pairs."""
    coverage: float
    """Share of the pairs given that had a finite probability."""


def reliability(probability_N: ArrayLike, same_N: ArrayLike, *, bins: int = 10) -> Reliability:
    """The reliability curve of predicted probabilities.

    >>> found = reliability([0.1, 0.1, 0.9, 0.9], [False, False, True, False], bins=2)
    >>> found.counts, found.observed, round(found.expected_error, 6), round(found.brier, 6)
    ((2, 2), (0.0, 0.5), 0.25, 0.21)
    """
    probability, same, valid = _labelled(probability_N, same_N)
    count, predicted, observed = _bin_sums(probability, same, bins, np.zeros(len(same), np.int64), 1)[:, 0]
    found = reliability_statistics(probability, same, bins=bins)
    with np.errstate(invalid="ignore"):
        curve = predicted / count, observed / count
    return Reliability(
        edges=tuple(np.linspace(0, 1, bins + 1).tolist()),
        counts=tuple(count.astype(int).tolist()),
        predicted=tuple(curve[0].tolist()),
        observed=tuple(curve[1].tolist()),
        expected_error=found["expected_error"].value(),
        brier=found["brier"].value(),
        coverage=share(valid),
    )


def reliability_statistics(
    probability_N: ArrayLike, same_N: ArrayLike, identity_N: ArrayLike | None = None, *, bins: int = 10
) -> dict[str, Statistic]:
    """expected_error and brier of `reliability`, with identities to resample.

    Resampled expected errors lie above the estimate where bins hold few pairs: chance differences do not cancel.
    """
    probability, same, valid = _labelled(probability_N, same_N)
    names, row = _identities(identity_N, valid)
    count_IK, predicted_IK, observed_IK = _bin_sums(probability, same, bins, row, len(names))
    number_I = count_IK.sum(axis=1)

    def expected_error(weight_BI: FloatArray) -> FloatArray:
        with np.errstate(invalid="ignore"):
            return np.abs(weight_BI @ (predicted_IK - observed_IK)).sum(axis=1) / (weight_BI @ number_I)

    squared_I = np.bincount(row, (probability - same) ** 2, len(names))
    return {
        "expected_error": Statistic(identities=names, of_weights=expected_error, coverage=share(valid)),
        "brier": ratio_statistic(squared_I, number_I, names, share(valid)),
    }


def _logistic(similarity: FloatArray, same: BoolArray) -> tuple[float, float]:
    from sklearn.linear_model import LogisticRegression

    base = math.log(same.mean() / (1 - same.mean()))
    middle, spread = float(similarity.mean()), float(similarity.std())
    if spread <= 1e-12 * max(1.0, abs(middle)):
        return 0.0, base
    model = LogisticRegression(C=_INVERSE_REGULARISATION).fit(((similarity - middle) / spread)[:, None], same)
    slope = float(model.coef_[0, 0]) / spread
    return (slope, float(model.intercept_[0]) - slope * middle) if slope > 0 else (0.0, base)


def _labelled(value_N: ArrayLike, same_N: ArrayLike) -> tuple[FloatArray, BoolArray, BoolArray]:
    value, same = np.asarray(value_N, np.float64).reshape(-1), np.asarray(same_N, bool).reshape(-1)
    if len(value) != len(same):
        raise ValueError(f"{len(value)} values of {len(same)} labels; expected as many of each")
    valid = np.isfinite(value)
    return value[valid], same[valid], valid


def _identities(identity_N: ArrayLike | None, valid: BoolArray) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    identity = np.arange(len(valid)) if identity_N is None else np.asarray(identity_N).reshape(-1)
    if len(identity) != len(valid):
        raise ValueError(f"{len(valid)} pairs of {len(identity)} identities; expected as many of each")
    names, row = np.unique(identity[valid], return_inverse=True)
    return tuple(str(name) for name in names), row


def _bin_sums(probability: FloatArray, same: BoolArray, bins: int, row: NDArray[np.int64], rows: int) -> FloatArray:
    """Number, summed probability and number of same pairs by identity and bin, shape (3, I, K)."""
    if bins < 1:
        raise ValueError(f"{bins} bins; expected 1 or more")
    if ((probability < 0) | (probability > 1)).any():
        raise ValueError("probabilities must lie in 0..1; turn similarities into probabilities first")
    cell = row * bins + np.clip(np.searchsorted(np.linspace(0, 1, bins + 1), probability, "right") - 1, 0, bins - 1)
    terms = (np.ones_like(probability), probability, same.astype(np.float64))
    return np.stack([np.bincount(cell, term, rows * bins).reshape(rows, bins) for term in terms])
