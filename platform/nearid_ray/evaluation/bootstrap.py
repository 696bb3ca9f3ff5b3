"""Percentile intervals of success rates, by resampling identities.

Views, engines and trials of one identity depend on each other, so the identity is what is drawn: a resample takes as
many identities as there are, with replacement, each with all its trials. How often each one is drawn is a
multinomial count, and SSR and PA are ratios of sums over identities, so all resamples are one matrix product.

Axes: B resamples, I identities, E engines.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nearid_ray.evaluation.margins import TrialCounts, weighted_rates

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


def bootstrap_rates(
    counts: TrialCounts, *, resamples: int = RESAMPLES, seed: int = 0, confidence: float = CONFIDENCE
) -> tuple[Interval, Interval]:
    """Intervals of SSR and PA (means over the counted engines weighted by support).

    Identities without a valid trial are not drawn. Empty counts give nan.

    >>> from nearid_ray.evaluation.margins import count_trials
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
) -> tuple[Interval, Interval]:
    """Intervals of SSR(second) - SSR(first) and of PA likewise, both scorers measured on the same drawn identities.

    Identities are matched by name; one that only one scorer could measure is drawn for both and counts for that one.

    >>> from nearid_ray.evaluation.margins import count_trials
    >>> worse, better = count_trials([-1.0, 1.0], ["a", "b"]), count_trials([1.0, 1.0], ["a", "b"])
    >>> bootstrap_difference(worse, better)[0].value
    0.5
    """
    names = sorted(set(_counted(first).identities) | set(_counted(second).identities))
    both = [first.aligned(names), second.aligned(names)]
    (first_ssr_B, first_pa_B), (second_ssr_B, second_pa_B) = _resampled_rates(both, resamples, seed)
    return (
        percentile_interval(second.ssr() - first.ssr(), second_ssr_B - first_ssr_B, confidence),
        percentile_interval(second.pa() - first.pa(), second_pa_B - first_pa_B, confidence),
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
