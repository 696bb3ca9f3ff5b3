"""From similarities to margins to success rates (Section "Metrics" of the NearID paper, arXiv 2604.01973).

An identity has views p_1 .. p_V and, from one engine, distractors n_1 .. n_V, where n_i shows another object in the
background of p_i. Every pair i < j gives two trials, one an anchor:

    margin(i, j) = s(p_i, p_j) - s(p_i, n_i)          anchor i
    margin(j, i) = s(p_i, p_j) - s(p_j, n_j)          anchor j

A trial succeeds when its margin is above zero (a tie fails). A trial with a missing or non-finite part is not valid
and counts nowhere. Similarities are higher for pictures that are more alike; all rates here are better when higher.

Axes: I identities, E engines, V views, M directed trials of an identity (V * (V - 1), pairs in order (0, 1), (0, 2),
.., (1, 2), .., the trial of anchor i before the trial of anchor j), N anything flat.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nearid_ray.errors import UsageError
from nearid_ray.evaluation.bootstrap import CONFIDENCE, bootstrap_rates
from nearid_ray.evaluation.counts import TrialCounts, count_matrix, count_trials, weighted_rates
from nearid_ray.evaluation.frames import columns_of, floats, like, names, refuse_doubles

__all__ = [
    "TrialCounts",
    "count_matrix",
    "count_trials",
    "directed_pairs",
    "margins",
    "ordering_rate",
    "pairwise_accuracy",
    "sample_success_rate",
    "summarize",
    "tuple_margins",
    "weighted_rates",
]

FloatArray = NDArray[np.float64]

POOLED = "all"
"""Name of the row that pools every engine (or whatever else was asked apart)."""
MEASURED_APART = ("scorer", "condition", "split")
"""Columns that are never pooled over: what they tell apart are other measurements, not more of one."""
VIEW_COLUMNS = ("anchor_view_index", "positive_view_index")


def directed_pairs(views: int) -> list[tuple[int, int]]:
    """The (anchor, other) pairs of an identity with so many views, in the order of axis M.

    >>> directed_pairs(3)
    [(0, 1), (1, 0), (0, 2), (2, 0), (1, 2), (2, 1)]
    """
    return [pair for i in range(views) for j in range(i + 1, views) for pair in ((i, j), (j, i))]


def margins(pair_similarity: ArrayLike, distractor_similarity: ArrayLike) -> FloatArray:
    """Similarity of two views minus similarity of the anchor and its distractor, element by element.

    Not-a-number where either part is missing (nan) or infinite: such a trial is not valid. Shapes broadcast.

    >>> margins([0.9, 0.5, np.nan, np.inf], [0.4, 0.5, 0.1, 0.2])
    array([0.5, 0. , nan, nan])
    """
    pair, distractor = np.broadcast_arrays(
        np.asarray(pair_similarity, np.float64), np.asarray(distractor_similarity, np.float64)
    )
    margin = np.full(pair.shape, np.nan)
    valid = np.isfinite(pair) & np.isfinite(distractor)
    margin[valid] = pair[valid] - distractor[valid]
    return margin


def tuple_margins(view_similarity_IVV: ArrayLike, distractor_similarity_IEV: ArrayLike) -> FloatArray:
    """All directed margins of identities with at most V views: shape (I, E, M).

    Args:
        view_similarity_IVV: s(p_i, p_j); read for i < j only. Views an identity does not have are nan.
        distractor_similarity_IEV: s(p_i, n_i) for each engine; nan where there is no distractor.

    Raises:
        ValueError: the shapes do not belong together.

    >>> view = np.array([[[1.0, 0.8], [0.8, 1.0]]])
    >>> distractor = np.array([[[0.5, 0.9], [0.8, np.nan]]])
    >>> tuple_margins(view, distractor).round(3)
    array([[[ 0.3, -0.1],
            [ 0. ,  nan]]])
    """
    view = np.asarray(view_similarity_IVV, np.float64)
    distractor = np.asarray(distractor_similarity_IEV, np.float64)
    if view.ndim != 3 or view.shape[1] != view.shape[2]:
        raise ValueError(f"view similarities have shape {view.shape}; expected (identities, views, views)")
    if distractor.ndim != 3 or distractor.shape[0] != view.shape[0] or distractor.shape[2] != view.shape[1]:
        raise ValueError(
            f"distractor similarities have shape {distractor.shape}; expected (identities, engines, views) "
            f"with {view.shape[0]} identities and {view.shape[1]} views"
        )
    pairs = np.array(directed_pairs(view.shape[1]), np.int64).reshape(-1, 2)
    anchor, other = pairs.T
    pair_IM = view[:, np.minimum(anchor, other), np.maximum(anchor, other)]
    return margins(pair_IM[:, None, :], distractor[:, :, anchor])


def pairwise_accuracy(margin_N: ArrayLike) -> float:
    """PA: share of the valid trials whose margin is above zero, in 0..1. Any shape.

    A tie is a failure; nan and infinite margins are left out; nan when no trial is valid.

    >>> pairwise_accuracy([0.3, -0.1, 0.0, np.nan, 0.2])
    0.5
    >>> pairwise_accuracy([])
    nan
    """
    margin = np.asarray(margin_N, np.float64)
    valid = np.isfinite(margin)
    return float(np.mean(margin[valid] > 0)) if valid.any() else float("nan")


def sample_success_rate(margin_N: ArrayLike, unit_N: ArrayLike) -> float:
    """SSR: share of the units whose valid trials all succeed, in 0..1.

    A unit is an identity, or an identity and engine where several engines are looked at together (then SSR is the
    support-weighted mean over engines). Units without a valid trial are left out; nan when none is left.

    Args:
        margin_N: directed margins. A tie is a failure; nan and infinite margins are left out.
        unit_N: the unit of each margin; anything numpy can sort.

    Raises:
        ValueError: the two differ in length.

    Identity a fails once, b has one valid trial, which succeeds, c has none, d ties.

    >>> sample_success_rate([0.3, -0.1, 0.2, np.nan, np.nan, 0.0], ["a", "a", "b", "b", "c", "d"])
    0.3333333333333333
    >>> sample_success_rate([], [])
    nan
    """
    counts = count_trials(margin_N, unit_N)
    return counts.ssr()


def ordering_rate(distractor_similarity_N: ArrayLike, random_similarity_N: ArrayLike) -> float:
    """Share of comparisons in which a distractor is more similar to its view than a random identity's view is.

    The second half of the wanted order s(anchor, positive) > s(anchor, distractor) > s(anchor, random identity). Each
    comparison has one anchor: element n of both arrays is measured from the same view. The arrays broadcast, so
    distractors (N, 1) meet random views (N, R). A tie fails; comparisons with a non-finite part are left out; nan
    when none is left.

    >>> ordering_rate([[0.8], [0.3]], [[0.1, 0.8], [0.2, np.nan]]).__round__(3)
    0.667
    >>> ordering_rate([], [])
    nan
    """
    return pairwise_accuracy(margins(distractor_similarity_N, random_similarity_N))


def summarize(
    records: Any,
    by: Sequence[str] = ("engine",),
    *,
    groups: Mapping[str, Sequence[str]] | None = None,
    resamples: int = 0,
    seed: int = 0,
    confidence: float = CONFIDENCE,
) -> Any:
    """SSR and PA of margin records: one row a group, then rows of groups of engines, then the pooled row.

    Rates are fractions, 0..1. Over engines both are means weighted by support (units: identity x engine), so the SSR
    of the pooled row is the share of units whose valid trials all succeed. Ties fail. A null, nan or infinite margin
    is no trial; `coverage`, the share of records that are trials, tells of them. Rates are nan where a group has no
    trial. Empty records give the pooled row alone.

    Args:
        records: a DataFrame or an Arrow table with at least engine, identity_id, margin, one row a directed trial
            (`schemas.MARGINS` has them). Where they also name the two views, no trial may stand twice: records of two
            benchmarks in one table are found by that.
        by: columns whose values make the groups. Values come out as strings; in pooled rows they are "all", except
            scorer, condition and split, over which nothing is pooled: with those in `by` there is a pooled row each.
        groups: name -> engines, more rows when "engine" is in `by` (evaluation.groups has the paper's). Members
            without records are left out (`num_engines` tells), groups without any member too.
        resamples: of identities, for intervals in ssr_low, ssr_high, pa_low, pa_high; 0 = none, 1000 is usual.
        seed, confidence: of these intervals.

    Returns:
        A table of the same kind: the columns of `by`, num_identities (with a trial), num_engines, num_units,
        num_trials, coverage, ssr, pa.

    Raises:
        UsageError: a column is missing; a trial stands twice; or there are several scorers, conditions or splits and
            `by` does not name the column.

    Two identities, two engines; flux solves a and fails one trial of b, qwen has one trial.

    >>> import pyarrow as pa
    >>> records = {"engine": ["flux"] * 4 + ["qwen"] * 2, "identity_id": list("aabbaa")}
    >>> records["margin"] = [0.2, 0.1, 0.3, 0.0, 0.4, None]
    >>> rows = summarize(pa.table(records)).to_pylist()
    >>> [(row["engine"], row["num_identities"], row["num_trials"], row["ssr"], row["pa"]) for row in rows]
    [('flux', 2, 4, 0.5, 0.75), ('qwen', 1, 1, 1.0, 1.0), ('all', 2, 5, 0.6666666666666666, 0.8333333333333334)]
    >>> [round(row["coverage"], 3) for row in rows]
    [1.0, 0.5, 0.833]
    """
    by = (by,) if isinstance(by, str) else tuple(by)
    columns = columns_of(records, ("engine", "identity_id", "margin", *by), "records")
    _refuse_mixtures(columns, by)
    margin, identity, engine = floats(columns["margin"]), names(columns["identity_id"]), names(columns["engine"])
    rows = []
    for values, chosen in _groups({name: names(columns[name]) for name in by}, engine, groups or {}):
        counts = count_trials(margin[chosen], identity[chosen], engine[chosen])
        row: dict[str, Any] = {
            **values,
            "num_identities": counts.identity_count(),
            "num_engines": int(counts.counted_IE.any(axis=0).sum()),
            "num_units": counts.support(),
            "num_trials": counts.trial_count(),
            "coverage": counts.trial_count() / chosen.sum() if chosen.any() else float("nan"),
            "ssr": counts.ssr(),
            "pa": counts.pa(),
        }
        if resamples:
            ssr, pa = bootstrap_rates(counts, resamples=resamples, seed=seed, confidence=confidence)
            row |= {"ssr_low": ssr.low, "ssr_high": ssr.high, "pa_low": pa.low, "pa_high": pa.high}
        rows.append(row)
    return like(records, {name: [row[name] for row in rows] for name in rows[0]})


def _groups(
    keys: Mapping[str, np.ndarray], engine: np.ndarray, groups: Mapping[str, Sequence[str]]
) -> Iterator[tuple[dict[str, str], NDArray[np.bool_]]]:
    """The rows of `summarize` in order: the values that name one, and which records are in it."""

    def where(wanted: Mapping[str, str]) -> NDArray[np.bool_]:
        chosen = np.ones(len(engine), bool)
        for name, value in wanted.items():
            chosen &= keys[name] == value
        return chosen

    def distinct(names_: Sequence[str]) -> list[dict[str, str]]:
        found = sorted(set(zip(*(keys[name].tolist() for name in names_), strict=True)))
        return [dict(zip(names_, values, strict=True)) for values in found]

    apart = [name for name in keys if name in MEASURED_APART]
    single = distinct(list(keys))
    for outer in (distinct(apart) if apart else []) or [dict.fromkeys(apart, "")]:
        if len(apart) < len(keys):
            for wanted in single:
                if outer.items() <= wanted.items():
                    yield wanted, where(wanted)
        pooled = {name: outer.get(name, POOLED) for name in keys}
        for group, members in groups.items() if "engine" in keys else ():
            chosen = where(outer) & np.isin(engine, list(members))
            if chosen.any():
                yield {**pooled, "engine": group}, chosen
        yield pooled, where(outer)


def _refuse_mixtures(columns: Mapping[str, np.ndarray], by: Sequence[str]) -> None:
    for name in MEASURED_APART:
        values = np.unique(names(columns[name])).tolist() if name in columns and name not in by else []
        if len(values) > 1:
            raise UsageError(
                f"records hold {len(values)} values of {name} ({', '.join(values[:5])}); filter one, or name it in by"
            )
    known = [name for name in ("identity_id", "engine", *MEASURED_APART) if name in columns]
    if all(name in columns for name in VIEW_COLUMNS):
        refuse_doubles({name: columns[name] for name in (*known, *VIEW_COLUMNS)}, "records")
