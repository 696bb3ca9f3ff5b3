"""Percentile intervals of any measure, by resampling identities.

Views, engines and trials of one identity depend on each other, so the identity is what is drawn: a resample takes as
many identities as there are, with replacement, each with all its trials. How often each one is drawn is a
multinomial count, so a measure that can be computed with weights on identities (a `Statistic`) is computed for all
resamples at once; SSR and PA are ratios of sums over identities, and all their resamples are one matrix product.

Axes: B resamples, I identities, E engines.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nearid_ray.evaluation.counts import TrialCounts, weighted_rates

RESAMPLES = 1000
CONFIDENCE = 0.95
# Weights are drawn in blocks of about this many numbers (64 MB), so that large benchmarks need no large matrix.
BLOCK_NUMBERS = 8_000_000


@dataclass(frozen=True, kw_only=True)
class Interval:
    """An estimate and the ends of its interval; all nan where there is nothing to estimate from."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Measured(Interval):
    """An estimate with its interval, and how much of the material it rests on."""

    coverage: float
    """Share of the wanted comparisons that had finite scores, 0..1; nan where none were wanted."""


@dataclass(frozen=True, kw_only=True)
class Difference(Interval):
    """How much larger a measure is for a second scorer than for a first, resampled in pairs."""

    share_above_zero: float
    """Share of the resamples in which the second is larger (ties are not); nan where there are none."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Statistic:
    """A measure as a function of how often each identity is counted; modules of metrics build them.

    >>> height = np.array([1.0, 3.0])
    >>> mean = Statistic(identities=("a", "b"), of_weights=lambda w: (w @ height) / w.sum(axis=1))
    >>> mean.value(), mean.of_weights(np.array([[2.0, 0.0], [0.0, 2.0]])).tolist()
    (2.0, [1.0, 3.0])
    """

    identities: tuple[str, ...]
    """Names of axis I: what is resampled."""
    of_weights: Callable[[NDArray[np.float64]], NDArray[np.float64]]
    """From weights (B, I), whole numbers from 0, to values (B,); nan where there is no value."""
    coverage: float = 1.0
    """Share of the wanted comparisons that had finite scores, 0..1."""

    def value(self) -> float:
        """The measure with every identity counted once; nan without identities."""
        return float(self.of_weights(np.ones((1, len(self.identities))))[0]) if self.identities else math.nan


def percentile_interval(value: float, resampled_B: ArrayLike, confidence: float = CONFIDENCE) -> Interval:
    """The central share `confidence` of the resampled values; resamples without a value (nan) are left out.

    >>> percentile_interval(0.5, [0.0, 0.25, 0.5, 0.75, 1.0, float("nan")], confidence=0.5)
    Interval(value=0.5, low=0.25, high=0.75)
    >>> percentile_interval(float("nan"), [])
    Interval(value=nan, low=nan, high=nan)
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}; expected a number between 0 and 1")
    resampled = np.asarray(resampled_B, np.float64)
    resampled = resampled[np.isfinite(resampled)]
    if not len(resampled) or not math.isfinite(value):
        return Interval(value=value, low=math.nan, high=math.nan)
    low, high = np.quantile(resampled, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(value=value, low=float(low), high=float(high))


def resample_weights(identity_count: int, resamples: int = RESAMPLES, seed: int = 0) -> Iterable[NDArray[np.float64]]:
    """How often each identity is drawn in each resample: blocks of shape (b, I), in all `resamples` rows.

    The same count and seed give the same draws, so scorers measured on the same identities are resampled alike.
    """
    if resamples < 1:
        raise ValueError(f"{resamples} resamples; expected at least 1")
    if identity_count * resamples <= BLOCK_NUMBERS:
        return _kept_weights(identity_count, resamples, seed)
    return _drawn_weights(identity_count, resamples, seed)


@lru_cache(maxsize=2)
def _kept_weights(identity_count: int, resamples: int, seed: int) -> tuple[NDArray[np.float64], ...]:
    """Most calls ask for the same draws: every scorer, condition and engine is measured on the same identities."""
    blocks = tuple(_drawn_weights(identity_count, resamples, seed))
    for block in blocks:
        block.flags.writeable = False
    return blocks


def _drawn_weights(identity_count: int, resamples: int, seed: int) -> Iterator[NDArray[np.float64]]:
    generator = np.random.default_rng(seed)
    rows = max(1, BLOCK_NUMBERS // max(1, identity_count))
    for start in range(0, resamples, rows):
        size = min(rows, resamples - start)
        drawn = generator.multinomial(identity_count, np.full(identity_count, 1 / identity_count), size=size)
        yield drawn.astype(np.float64)


def interval(
    statistic: Statistic, *, resamples: int = RESAMPLES, seed: int = 0, confidence: float = CONFIDENCE
) -> Measured:
    """The statistic with its percentile interval; resamples without a value are left out of the interval.

    >>> height = np.array([1.0, 3.0])
    >>> mean = Statistic(identities=("a", "b"), of_weights=lambda w: (w @ height) / w.sum(axis=1), coverage=0.5)
    >>> interval(mean, resamples=200)
    Measured(value=2.0, low=1.0, high=3.0, coverage=0.5)
    """
    found = percentile_interval(statistic.value(), resampled(statistic, resamples=resamples, seed=seed), confidence)
    return Measured(value=found.value, low=found.low, high=found.high, coverage=statistic.coverage)


def difference(
    first: Statistic,
    second: Statistic,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    confidence: float = CONFIDENCE,
) -> Difference:
    """second - first, both measured on the same drawn identities (matched by name; the union of both is drawn).

    >>> def mean(*heights):
    ...     return Statistic(identities=("a", "b"), of_weights=lambda w: (w @ np.array(heights)) / w.sum(axis=1))
    >>> difference(mean(1.0, 3.0), mean(2.0, 3.5), resamples=200)
    Difference(value=0.75, low=0.5, high=1.0, share_above_zero=1.0)
    """
    drawn = sorted(set(first.identities) | set(second.identities))
    first_B, second_B = (resampled(one, among=drawn, resamples=resamples, seed=seed) for one in (first, second))
    return _difference(second.value() - first.value(), second_B - first_B, confidence)


def resampled(
    statistic: Statistic, *, among: Sequence[str] | None = None, resamples: int = RESAMPLES, seed: int = 0
) -> NDArray[np.float64]:
    """The values of the resamples, shape (B,); empty without identities.

    Args:
        among: identities that are drawn; the statistic's own when left out. Must hold all of them.
    """
    drawn = list(statistic.identities) if among is None else list(among)
    if not drawn or not statistic.identities:
        return np.empty(0) if not drawn else np.full(resamples, np.nan)
    place = {name: column for column, name in enumerate(drawn)}
    columns = np.array([place[name] for name in statistic.identities], np.int64)
    same = np.array_equal(columns, np.arange(len(drawn)))
    blocks = resample_weights(len(drawn), resamples, seed)
    return np.concatenate([statistic.of_weights(block if same else block[:, columns]) for block in blocks])


def _difference(value: float, difference_B: NDArray[np.float64], confidence: float) -> Difference:
    found = percentile_interval(value, difference_B, confidence)
    finite = difference_B[np.isfinite(difference_B)]
    above = float(np.mean(finite > 0)) if len(finite) else math.nan
    return Difference(value=found.value, low=found.low, high=found.high, share_above_zero=above)


def rate_statistics(counts: TrialCounts, coverage: float = 1.0) -> dict[str, Statistic]:
    """SSR and PA over all engines of the counts, as statistics named "ssr" and "pa".

    Identities without a valid trial are left out, so they are not drawn.

    >>> from nearid_ray.evaluation.counts import count_trials
    >>> {name: rate.value() for name, rate in rate_statistics(count_trials([1, -1, 1], list("aab"))).items()}
    {'ssr': 0.5, 'pa': 0.6666666666666666}
    """
    counted = _counted(counts)

    def of(which: int) -> Statistic:
        return Statistic(
            identities=counted.identities,
            of_weights=lambda weight_BI: weighted_rates(weight_BI, counted)[which],
            coverage=coverage,
        )

    return {"ssr": of(0), "pa": of(1)}


def ratio_statistic(
    part_I: ArrayLike, whole_I: ArrayLike, identities: Sequence[str], coverage: float = 1.0
) -> Statistic:
    """sum(part) / sum(whole) over identities: every plain mean and share is one; nan where the whole is 0.

    >>> ratio_statistic([1, 2], [2, 2], ["a", "b"]).value()
    0.75
    """
    both_I2 = np.stack([np.asarray(part_I, np.float64), np.asarray(whole_I, np.float64)], axis=1)

    def of_weights(weight_BI: NDArray[np.float64]) -> NDArray[np.float64]:
        part_B, whole_B = (weight_BI @ both_I2).T
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(whole_B > 0, part_B / whole_B, np.nan)

    return Statistic(identities=tuple(identities), of_weights=of_weights, coverage=coverage)


def mean_statistic(value_N: ArrayLike, identity_N: ArrayLike) -> Statistic:
    """The mean of finite values; `coverage` is their share.

    >>> mean = mean_statistic([1.0, 2.0, np.nan, 6.0], ["a", "a", "b", "c"])
    >>> mean.value(), mean.identities, mean.coverage
    (3.0, ('a', 'c'), 0.75)
    """
    value, identity = np.asarray(value_N, np.float64).reshape(-1), np.asarray(identity_N).reshape(-1)
    if len(value) != len(identity):
        raise ValueError(f"{len(value)} values of {len(identity)} identities; expected as many of each")
    valid = np.isfinite(value)
    names, row = np.unique(identity[valid].astype(str), return_inverse=True)
    part, whole = np.bincount(row, value[valid], len(names)), np.bincount(row, minlength=len(names))
    return ratio_statistic(part, whole, names.tolist(), share(valid))


def share(valid: ArrayLike) -> float:
    """Share of what is true; nan of nothing.

    >>> share([True, False]), share([])
    (0.5, nan)
    """
    found = np.asarray(valid, bool)
    return float(found.mean()) if found.size else math.nan


def in_blocks(
    of_weights: Callable[[NDArray[np.float64]], NDArray[np.float64]], numbers_a_row: int
) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    """The same function, given few rows of weights at a time where each needs so many numbers of memory."""
    rows = max(1, BLOCK_NUMBERS // (8 * max(1, numbers_a_row)))

    def blocked(weight_BI: NDArray[np.float64]) -> NDArray[np.float64]:
        starts = range(0, len(weight_BI), rows)
        return np.concatenate([of_weights(weight_BI[start : start + rows]) for start in starts])

    return blocked


def intervals(
    statistics: Mapping[str, Statistic],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    confidence: float = CONFIDENCE,
) -> dict[str, Measured]:
    """`interval` of each statistic, by name."""
    return {
        name: interval(one, resamples=resamples, seed=seed, confidence=confidence) for name, one in statistics.items()
    }


def bootstrap_rates(
    counts: TrialCounts, *, resamples: int = RESAMPLES, seed: int = 0, confidence: float = CONFIDENCE
) -> tuple[Interval, Interval]:
    """Intervals of SSR and PA (means over the counted engines weighted by support).

    Identities without a valid trial are not drawn. Empty counts give nan.

    >>> from nearid_ray.evaluation.counts import count_trials
    >>> ssr, pa = bootstrap_rates(count_trials([1.0] * 6, list("aabbcc")))
    >>> ssr, pa == ssr
    (Interval(value=1.0, low=1.0, high=1.0), True)
    """
    counted = _counted(counts)
    ssr_B, pa_B = _resampled_rates([counted], resamples, seed)[0]
    return percentile_interval(counts.ssr(), ssr_B, confidence), percentile_interval(counts.pa(), pa_B, confidence)


def bootstrap_difference(
    first: TrialCounts,
    second: TrialCounts,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    confidence: float = CONFIDENCE,
) -> tuple[Difference, Difference]:
    """Intervals of SSR(second) - SSR(first) and of PA likewise, both scorers measured on the same drawn identities.

    Identities are matched by name; one that only one scorer could measure is drawn for both and counts for that one.

    >>> from nearid_ray.evaluation.counts import count_trials
    >>> worse, better = count_trials([-1.0, 1.0], ["a", "b"]), count_trials([1.0, 1.0], ["a", "b"])
    >>> bootstrap_difference(worse, better)[0].value
    0.5
    """
    names = sorted(set(_counted(first).identities) | set(_counted(second).identities))
    both = [first.aligned(names), second.aligned(names)]
    (first_ssr_B, first_pa_B), (second_ssr_B, second_pa_B) = _resampled_rates(both, resamples, seed)
    return (
        _difference(second.ssr() - first.ssr(), second_ssr_B - first_ssr_B, confidence),
        _difference(second.pa() - first.pa(), second_pa_B - first_pa_B, confidence),
    )


def _counted(counts: TrialCounts) -> TrialCounts:
    kept_I = np.asarray(counts.counted_IE.any(axis=1))
    return counts.aligned([counts.identities[row] for row in np.flatnonzero(kept_I)])


def _resampled_rates(
    scorers: list[TrialCounts], resamples: int, seed: int
) -> list[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    identity_count = len(scorers[0].identities)
    if not identity_count:
        return [(np.empty(0), np.empty(0)) for _ in scorers]
    blocks = [
        [weighted_rates(weight_BI, counts) for counts in scorers]
        for weight_BI in resample_weights(identity_count, resamples, seed)
    ]
    return [
        (np.concatenate([block[k][0] for block in blocks]), np.concatenate([block[k][1] for block in blocks]))
        for k in range(len(scorers))
    ]
