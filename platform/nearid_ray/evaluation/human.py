"""Agreement of a metric with people (M-H, DreamBench++): correlations with two groups' ratings, joined by key.

Ratings are flat {"<collection>-<prompt>": rating}; a metric's keys may end in "_<image>". Pictures of one collection
(reference) depend on each other, so collections are what is resampled.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nearid_ray.errors import UsageError
from nearid_ray.evaluation.bootstrap import CONFIDENCE, Statistic, interval
from nearid_ray.evaluation.correlations import fisher_mean as _fisher_mean
from nearid_ray.evaluation.correlations import fisher_statistic, pearson_statistic
from nearid_ray.evaluation.frames import floats, listed

Scores = Mapping[str, float | None]

_IMAGE = re.compile(r"_\d+$")
MEAN_ROW = "fisher_mean"
"""Name, in place of a method, of the row that averages the methods."""


@dataclass(frozen=True, kw_only=True)
class Alignment:
    """How a metric agrees with people. Unpacks and indexes like the pair (r, half_difference)."""

    r: float
    """Mean of the two groups' Pearson correlations with the metric, -1..1."""
    half_difference: float
    """Half the absolute difference of the two."""
    r_group1: float
    r_group2: float
    num_keys: int
    """Rated keys with a finite score and a finite rating of at least one group."""
    coverage: float
    """Share of the (key, group) ratings asked for that have both a finite rating and a finite score, 0..1."""
    only_metric: tuple[str, ...] = ()
    """Keys that nobody rated."""
    only_ratings: tuple[str, ...] = ()
    """Keys of either group that the metric does not have."""
    not_finite: tuple[str, ...] = ()
    """Rated keys that the metric has without a finite score."""

    def __iter__(self) -> Iterator[float]:
        return iter((self.r, self.half_difference))

    def __getitem__(self, position: int) -> float:
        return (self.r, self.half_difference)[position]


def fisher_mean(rs: ArrayLike) -> float:
    """Mean of correlations on Fisher's scale: tanh(mean(atanh r)), |r| clipped to 0.999.

    nan if one is nan or there is none: a method that was not measured is not averaged away.

    NearID's values for the seven methods of DreamBench++ (table 2 of the paper).

    >>> round(fisher_mean([0.675, 0.655, 0.546, 0.382, 0.768, 0.306, 0.316]), 3)
    0.545
    """
    return _fisher_mean(rs)


def standard_error(rs: ArrayLike) -> float:
    """Standard error of the mean of the methods' r, the +- of the mean row of the paper's table 2.

    Sample standard deviation / sqrt(number); nan for fewer than two values or where one is nan.

    >>> round(standard_error([0.675, 0.655, 0.546, 0.382, 0.768, 0.306, 0.316]), 3)
    0.071
    """
    r = np.asarray(rs, np.float64).reshape(-1)
    return float(r.std(ddof=1) / math.sqrt(len(r))) if len(r) > 1 else math.nan


def alignment(metric: Scores, group1: Scores, group2: Scores) -> Alignment:
    """Mean of Pearson(group 1, metric) and Pearson(group 2, metric), and half their difference.

    Joined by key, never by order. Keys that do not match are listed in the result and left out, as are missing and
    non-finite scores and ratings; `coverage` falls below 1 for them. A constant metric gives r = 0; fewer than two
    pairs in either group (or nothing at all) give nan.

    Args:
        metric: scores by key; higher = more alike. A key may have "_<image>" behind the ratings' key.
        group1, group2: ratings by key.

    Raises:
        UsageError: not one key of the metric is rated, or two keys of the metric stand for one rating.

    >>> one, two = {"1-0": 0, "1-1": 2, "2-0": 4}, {"1-0": 1, "1-1": 2, "2-0": 2, "2-1": 4}
    >>> found = alignment({"2-0_0": 0.9, "1-1_0": 0.5, "1-0_0": 0.1, "9-9_0": 0.3}, one, two)
    >>> r, half = found
    >>> round(r, 4), round(half, 4), found.only_metric, found.only_ratings, round(found.coverage, 4)
    (0.933, 0.067, ('9-9_0',), ('2-1',), 0.8571)
    """
    joined = _join(metric, group1, group2)
    r1, r2 = (part.value() for part in _parts(joined))
    return Alignment(
        r=(r1 + r2) / 2,
        half_difference=abs(r1 - r2) / 2,
        r_group1=r1,
        r_group2=r2,
        num_keys=int((np.isfinite(joined.score) & np.isfinite(joined.rating).any(axis=0)).sum()),
        coverage=_coverage(joined, len(group1) + len(group2)),
        only_metric=joined.only_metric,
        only_ratings=joined.only_ratings,
        not_finite=tuple(key for key, score in zip(joined.keys, joined.score, strict=True) if not math.isfinite(score)),
    )


def alignment_statistic(metric: Scores, group1: Scores, group2: Scores) -> Statistic:
    """The r of `alignment` with collections to resample; both groups' ratings of a collection are drawn together."""
    joined = _join(metric, group1, group2)
    parts = _parts(joined)
    names = sorted({name for part in parts for name in part.identities})
    columns = [np.searchsorted(names, part.identities) for part in parts]

    def of_weights(weight_BI: NDArray[np.float64]) -> NDArray[np.float64]:
        first, second = (p.of_weights(weight_BI[:, mine]) for p, mine in zip(parts, columns, strict=True))
        return (first + second) / 2

    coverage = _coverage(joined, len(group1) + len(group2))
    return Statistic(identities=tuple(names), of_weights=of_weights, coverage=coverage)


def between_groups(group1: Scores, group2: Scores) -> Statistic:
    """Pearson's correlation of the two groups' ratings (H-H), with collections to resample.

    >>> round(between_groups({"1-0": 0, "1-1": 2, "2-0": 4}, {"2-0": 2, "1-0": 1, "1-1": 2}).value(), 4)
    0.866
    """
    keys = sorted(set(group1) & set(group2))
    if not keys:
        raise UsageError(
            f"no key is rated by both groups; the first has e.g. {listed(sorted(group1))}, the second "
            f"{listed(sorted(group2))}"
        )
    first, second = (floats([group[key] for key in keys]) for group in (group1, group2))
    made = pearson_statistic(first, second, [collection_of(key) for key in keys])
    share = made.coverage * len(keys) / len(set(group1) | set(group2))
    return Statistic(identities=made.identities, of_weights=made.of_weights, coverage=share)


def by_method(
    metric: Mapping[str, Scores],
    group1: Mapping[str, Scores],
    group2: Mapping[str, Scores],
    *,
    categories: Mapping[str, str] | None = None,
    resamples: int = 0,
    seed: int = 0,
    confidence: float = CONFIDENCE,
) -> list[dict[str, Any]]:
    """`alignment` of each method, then its Fisher mean over the methods; with categories the same for each of them.

    Args:
        metric, group1, group2: by method; all three know the same methods.
        categories: collection -> category (animal, human, object, style). Rows with category "all" come first, then
            those of each category, which hold the keys of its collections alone.
        resamples: of collections, for intervals in low and high; 0 = none, 1000 is usual. In the mean's row a
            collection is drawn for all methods together.
        seed, confidence: of these intervals.

    Returns:
        Rows of method, category, r, half_difference, r_group1, r_group2, num_keys, coverage. In the row of the mean
        half_difference is the standard error over the methods, and r is nan if a method has none.

    Raises:
        UsageError: the methods differ, or a collection has no category.

    >>> people = {"a": {"1-0": 0, "1-1": 2, "2-0": 4}, "b": {"1-0": 4, "1-1": 2, "2-0": 1}}
    >>> rows = by_method({m: {"1-0": 0.1, "1-1": 0.2, "2-0": 0.4} for m in "ab"}, people, people)
    >>> [(row["method"], round(row["r"], 3)) for row in rows]
    [('a', 0.982), ('b', -0.929), ('fisher_mean', 0.337)]
    """
    methods = list(metric)
    for name, ratings in (("group 1", group1), ("group 2", group2)):
        if set(ratings) != set(methods):
            odd = sorted(set(ratings) ^ set(methods))
            raise UsageError(f"methods differ between the metric and {name}: {listed(odd)} are in one of them only")
    rows = []
    rated = {collection_of(key) for ratings in (*group1.values(), *group2.values()) for key in ratings}
    known = sorted({categories[name] for name in rated if name in categories}) if categories else []
    for category in ("all", *known):

        def part(scores: Scores, wanted: str = category) -> Scores:
            return scores if wanted == "all" or categories is None else _of_category(scores, categories, wanted)

        tables = {name: [part(table[name]) for table in (metric, group1, group2)] for name in methods}
        found = {name: alignment(*three) for name, three in tables.items()}
        statistics = {name: alignment_statistic(*three) for name, three in tables.items()} if resamples else {}
        for name, one in found.items():
            values = {key: getattr(one, key) for key in ("r", "half_difference", "r_group1", "r_group2")}
            rows.append(
                {"method": name, "category": category, **values, "num_keys": one.num_keys, "coverage": one.coverage}
            )
        rows.append(_mean_row(category, list(found.values())))
        if resamples:
            drawn = [*statistics.values(), fisher_statistic(list(statistics.values()))]
            for row, statistic in zip(rows[-len(drawn) :], drawn, strict=True):
                ends = interval(statistic, resamples=resamples, seed=seed, confidence=confidence)
                row |= {"low": ends.low, "high": ends.high}
    return rows


def methods_statistic(
    metric: Mapping[str, Scores], group1: Mapping[str, Scores], group2: Mapping[str, Scores]
) -> Statistic:
    """M-H, the Fisher mean of the methods' r, with collections to resample: for the difference of two metrics."""
    return fisher_statistic([alignment_statistic(metric[name], group1[name], group2[name]) for name in metric])


def collection_of(key: str) -> str:
    """The collection (reference) of a rating's key.

    >>> collection_of("17-3")
    '17'
    """
    return key.rsplit("-", 1)[0]


def _mean_row(category: str, found: Sequence[Alignment]) -> dict[str, Any]:
    return {
        "method": MEAN_ROW,
        "category": category,
        "r": fisher_mean([one.r for one in found]),
        "half_difference": standard_error([one.r for one in found]),
        "r_group1": fisher_mean([one.r_group1 for one in found]),
        "r_group2": fisher_mean([one.r_group2 for one in found]),
        "num_keys": sum(one.num_keys for one in found),
        "coverage": float(np.mean([one.coverage for one in found])) if found else math.nan,
    }


@dataclass(frozen=True, kw_only=True)
class _Joined:
    keys: list[str]
    """Rating keys that the metric has."""
    score: NDArray[np.float64]
    rating: NDArray[np.float64]
    """Shape (2, keys); nan where a group did not rate."""
    only_metric: tuple[str, ...]
    only_ratings: tuple[str, ...]


def _join(metric: Scores, group1: Scores, group2: Scores) -> _Joined:
    rated = set(group1) | set(group2)
    matched: dict[str, str] = {}
    unrated, doubles = [], []
    for own in metric:
        key = own if own in rated else _IMAGE.sub("", own)
        if key not in rated:
            unrated.append(own)
        elif key in matched:
            doubles.append(f"{matched[key]} and {own}")
        else:
            matched[key] = own
    if doubles:
        raise UsageError(f"{len(doubles)} ratings have two scores: {listed(doubles)}; give one image a rating")
    if metric and rated and not matched:
        raise UsageError(
            f"none of the metric's {len(metric)} keys is rated: the metric has e.g. {listed(sorted(metric))}; the "
            f"ratings have e.g. {listed(sorted(rated))}"
        )
    keys = sorted(matched)
    return _Joined(
        keys=keys,
        score=floats([metric[matched[key]] for key in keys]),
        rating=np.stack([floats([group.get(key) for key in keys]) for group in (group1, group2)]),
        only_metric=tuple(sorted(unrated)),
        only_ratings=tuple(sorted(rated - set(keys))),
    )


def _parts(joined: _Joined) -> list[Statistic]:
    collections = [collection_of(key) for key in joined.keys]
    return [pearson_statistic(joined.score, rating, collections) for rating in joined.rating]


def _coverage(joined: _Joined, asked: int) -> float:
    return float((np.isfinite(joined.rating) & np.isfinite(joined.score)).sum() / asked) if asked else math.nan


def _of_category(scores: Scores, categories: Mapping[str, str], wanted: str) -> Scores:
    unknown = sorted({collection_of(key) for key in scores} - set(categories))
    if unknown:
        raise UsageError(f"{len(unknown)} collections have no category: {listed(unknown)}")
    return {key: score for key, score in scores.items() if categories[collection_of(key)] == wanted}
