"""What a similarity reacts to: changes of identity, or of everything else (ID-Sim, sensitivity analysis).

For each object a grid of pictures combines strengths of an identity edit with levels of one other factor (background,
lighting, viewpoint). Similarity to the object's original picture is fitted as

    similarity = b0 + b1 * factor + b2 * identity          (least squares)

and -b1, -b2 are the sensitivities: how much similarity is lost a unit of each.

Axes: N pictures, O objects, B resamples.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nearid_ray.evaluation.bootstrap import (
    CONFIDENCE,
    RESAMPLES,
    Measured,
    Statistic,
    mean_statistic,
    percentile_interval,
    resampled,
)

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Fit:
    """Sensitivities of one object; nan where its pictures cannot tell them apart."""

    intercept: float
    factor: float
    """-b1: similarity lost for one unit of the factor."""
    identity: float
    """-b2: similarity lost for one unit of identity strength."""
    r_squared: float
    """Share of the variance explained, 0..1; nan where all similarities are equal."""


def fit(similarity_N: ArrayLike, factor_N: ArrayLike, identity_N: ArrayLike) -> Fit:
    """Least squares over the pictures of one object.

    Pictures with a non-finite number are left out. All nan for fewer than three pictures, or where factor and
    identity do not vary independently. Constant similarities give sensitivities 0 and no R^2.

    Args:
        similarity_N: similarity to the object's original picture; higher = more alike.
        factor_N: level of the factor; for kinds without an order 0 = the original's, 1 = another.
        identity_N: strength of the identity edit.

    >>> found = fit([0.9, 0.8, 0.5, 0.4], [0, 1, 0, 1], [0.0, 0.0, 1.0, 1.0])
    >>> round(found.factor, 6), round(found.identity, 6), round(found.r_squared, 6)
    (0.1, 0.4, 1.0)
    """
    columns = [np.asarray(values, np.float64).reshape(-1) for values in (similarity_N, factor_N, identity_N)]
    if len({len(column) for column in columns}) != 1:
        raise ValueError(f"{' and '.join(str(len(c)) for c in columns)} values; expected as many of each")
    valid = np.all([np.isfinite(column) for column in columns], axis=0)
    similarity, factor, identity = (column[valid] for column in columns)
    design_N3 = np.stack([np.ones_like(factor), factor, identity], axis=1)
    if len(similarity) < 3 or np.linalg.matrix_rank(design_N3) < 3:
        return Fit(intercept=np.nan, factor=np.nan, identity=np.nan, r_squared=np.nan)
    b, *_ = np.linalg.lstsq(design_N3, similarity, rcond=None)
    total = float(np.sum((similarity - similarity.mean()) ** 2))
    if total <= 1e-24 * max(1.0, float(np.sum(similarity**2))):
        return Fit(intercept=float(similarity.mean()), factor=0.0, identity=0.0, r_squared=np.nan)
    residual = float(np.sum((similarity - design_N3 @ b) ** 2))
    return Fit(intercept=float(b[0]), factor=float(-b[1]), identity=float(-b[2]), r_squared=1 - residual / total)


@dataclass(frozen=True, kw_only=True)
class Resampled(Measured):
    """A mean over objects, its interval, and the spread of its resamples; coverage: share of objects with a value."""

    mean: float
    """Mean of the resamples."""
    deviation: float
    """Standard deviation of the resamples."""


def sensitivity(
    similarity_N: ArrayLike,
    factor_N: ArrayLike,
    identity_N: ArrayLike,
    object_N: ArrayLike,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    confidence: float = CONFIDENCE,
) -> dict[str, Resampled]:
    """Means over objects of factor and identity sensitivity and of R^2, under "factor", "identity", "r_squared".

    Args:
        object_N: the object of each picture; objects are what is resampled.

    Raises:
        ValueError: the arguments differ in length.

    >>> found = sensitivity([0.9, 0.8, 0.5, 0.4] * 2, [0, 1, 0, 1] * 2, [0, 0, 1, 1] * 2, list("aaaabbbb"))
    >>> round(found["identity"].value, 6), round(found["identity"].deviation, 6), found["identity"].coverage
    (0.4, 0.0, 1.0)
    """
    made = {}
    for name, statistic in sensitivity_statistics(similarity_N, factor_N, identity_N, object_N).items():
        values_B = resampled(statistic, resamples=resamples, seed=seed)
        ends = percentile_interval(statistic.value(), values_B, confidence)
        made[name] = Resampled(
            value=ends.value,
            low=ends.low,
            high=ends.high,
            mean=float(values_B.mean()) if len(values_B) else np.nan,
            deviation=float(values_B.std()) if len(values_B) else np.nan,
            coverage=statistic.coverage,
        )
    return made


def sensitivity_statistics(
    similarity_N: ArrayLike, factor_N: ArrayLike, identity_N: ArrayLike, object_N: ArrayLike
) -> dict[str, Statistic]:
    """The means of `sensitivity` as statistics, to compare two scorers on the same objects."""
    columns = [np.asarray(values, np.float64).reshape(-1) for values in (similarity_N, factor_N, identity_N)]
    objects = np.asarray(object_N).reshape(-1)
    if any(len(column) != len(objects) for column in columns):
        raise ValueError(f"{' and '.join(str(len(c)) for c in (*columns, objects))} values; expected as many of each")
    names = np.unique(objects)
    fits = [fit(*(column[objects == name] for column in columns)) for name in names]
    return {
        name: mean_statistic([getattr(one, name) for one in fits], names)
        for name in ("factor", "identity", "r_squared")
    }
