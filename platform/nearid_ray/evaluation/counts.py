"""Valid and successful trials counted by identity and engine: all that success rates and their intervals need.

Axes: I identities, E engines, M directed trials of an identity, B rows of weights, N anything flat.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class TrialCounts:
    """Valid and successful trials of each identity and engine: all that SSR, PA and their intervals need."""

    identities: tuple[str, ...]
    """Names of axis I."""
    engines: tuple[str, ...]
    """Names of axis E."""
    valid_IE: IntArray
    """Number of valid trials."""
    success_IE: IntArray
    """Number of valid trials with a margin above zero."""

    @property
    def counted_IE(self) -> NDArray[np.bool_]:
        """Units (identity, engine) with at least one valid trial."""
        return self.valid_IE > 0

    @property
    def solved_IE(self) -> NDArray[np.bool_]:
        """Units whose valid trials all succeed."""
        return self.counted_IE & (self.success_IE == self.valid_IE)

    def support(self) -> int:
        """Number of units (identity, engine) with at least one valid trial."""
        return int(self.counted_IE.sum())

    def identity_count(self) -> int:
        """Number of identities with at least one valid trial at any engine."""
        return int(self.counted_IE.any(axis=1).sum())

    def trial_count(self) -> int:
        """Number of valid trials."""
        return int(self.valid_IE.sum())

    def ssr(self) -> float:
        """SSR over all units, which is the mean of the engines' SSR weighted by their support; nan when empty."""
        return weighted_rates(np.ones(len(self.identities)), self)[0].item()

    def pa(self) -> float:
        """The mean of the engines' PA weighted by their support in units; nan when empty."""
        return weighted_rates(np.ones(len(self.identities)), self)[1].item()

    def of_engines(self, engines: Sequence[str]) -> TrialCounts:
        """The same counts with these engines alone, in this order.

        Raises:
            ValueError: an engine that was not counted.
        """
        unknown = sorted(set(engines) - set(self.engines))
        if unknown:
            raise ValueError(f"unknown engines {unknown}; counted were {list(self.engines)}")
        columns = [self.engines.index(engine) for engine in engines]
        return TrialCounts(
            identities=self.identities,
            engines=tuple(engines),
            valid_IE=self.valid_IE[:, columns],
            success_IE=self.success_IE[:, columns],
        )

    def aligned(self, identities: Sequence[str]) -> TrialCounts:
        """The same counts with rows for exactly these identities; those never counted get zeros."""
        position = {name: row for row, name in enumerate(self.identities)}
        rows = np.array([position.get(name, -1) for name in identities], np.int64)
        known = rows >= 0
        valid = np.zeros((len(rows), len(self.engines)), np.int64)
        success = np.zeros_like(valid)
        valid[known], success[known] = self.valid_IE[rows[known]], self.success_IE[rows[known]]
        return TrialCounts(identities=tuple(identities), engines=self.engines, valid_IE=valid, success_IE=success)


def units_of_both(first: TrialCounts, second: TrialCounts) -> tuple[TrialCounts, TrialCounts]:
    """The counts of two scorers, each with the units alone that both could measure, on the same axes.

    A difference of two scorers is taken on these, or one that was asked less would be compared on easier or harder
    identities.

    >>> one = count_trials([1.0, 1.0], ["a", "b"], ["x", "x"])
    >>> two = count_trials([1.0, -1.0], ["b", "c"], ["x", "x"])
    >>> [(counts.identities, counts.valid_IE.tolist()) for counts in units_of_both(one, two)]
    [(('b',), [[1]]), (('b',), [[1]])]
    """
    engines = [engine for engine in first.engines if engine in second.engines]
    identities = sorted(set(first.identities) & set(second.identities))
    both = [counts.of_engines(engines).aligned(identities) for counts in (first, second)]
    shared_IE = both[0].counted_IE & both[1].counted_IE
    kept_I = np.asarray(shared_IE.any(axis=1))
    first, second = (
        TrialCounts(
            identities=tuple(name for name, kept in zip(identities, kept_I, strict=True) if kept),
            engines=tuple(engines),
            valid_IE=(counts.valid_IE * shared_IE)[kept_I],
            success_IE=(counts.success_IE * shared_IE)[kept_I],
        )
        for counts in both
    )
    return first, second


def count_trials(margin_N: ArrayLike, identity_N: ArrayLike, engine_N: ArrayLike | None = None) -> TrialCounts:
    """Count valid and successful trials of each identity and engine.

    Args:
        margin_N: directed margins; nan and infinite ones are not valid.
        identity_N: identity of each margin.
        engine_N: engine of each margin; one nameless engine when left out.

    Raises:
        ValueError: the arguments differ in length.

    Both axes come out sorted, so that equal inputs in another order give equal counts.

    >>> counts = count_trials([0.3, -0.1, 0.2], ["b", "b", "a"], ["flux", "flux", "qwen"])
    >>> counts.identities, counts.engines, counts.valid_IE.tolist(), counts.success_IE.tolist()
    (('a', 'b'), ('flux', 'qwen'), [[0, 1], [2, 0]], [[0, 1], [1, 0]])
    >>> counts.ssr(), counts.pa()
    (0.5, 0.75)
    """
    margin = np.asarray(margin_N, np.float64).reshape(-1)
    identity = np.asarray(identity_N).reshape(-1)
    engine = np.full(len(identity), "") if engine_N is None else np.asarray(engine_N).reshape(-1)
    if not len(margin) == len(identity) == len(engine):
        raise ValueError(
            f"{len(margin)} margins, {len(identity)} identities and {len(engine)} engines; expected as many of each"
        )
    identities, row_N = np.unique(identity, return_inverse=True)
    engines, column_N = np.unique(engine, return_inverse=True)
    shape = (len(identities), len(engines))
    cell_N = row_N * shape[1] + column_N
    valid_N = np.isfinite(margin)
    success_N = valid_N & (np.where(valid_N, margin, 0.0) > 0)
    return TrialCounts(
        identities=tuple(str(name) for name in identities),
        engines=tuple(str(name) for name in engines),
        valid_IE=np.bincount(cell_N[valid_N], minlength=shape[0] * shape[1]).reshape(shape).astype(np.int64),
        success_IE=np.bincount(cell_N[success_N], minlength=shape[0] * shape[1]).reshape(shape).astype(np.int64),
    )


def count_matrix(margin_IEM: ArrayLike, identities: Sequence[str], engines: Sequence[str]) -> TrialCounts:
    """Trial counts of margins that already stand in a matrix (`tuple_margins`).

    >>> count_matrix([[[0.3, -0.1], [0.2, np.nan]]], ["a"], ["flux", "qwen"]).success_IE.tolist()
    [[1, 1]]
    """
    margin = np.asarray(margin_IEM, np.float64)
    if margin.shape[:2] != (len(identities), len(engines)):
        raise ValueError(f"margins of shape {margin.shape} for {len(identities)} identities, {len(engines)} engines")
    valid = np.isfinite(margin)
    return TrialCounts(
        identities=tuple(identities),
        engines=tuple(engines),
        valid_IE=valid.sum(axis=2, dtype=np.int64),
        success_IE=(valid & (np.where(valid, margin, 0.0) > 0)).sum(axis=2, dtype=np.int64),
    )


def weighted_rates(weight_BI: ArrayLike, counts: TrialCounts) -> tuple[FloatArray, FloatArray]:
    """SSR and PA over engines with each identity counted `weight` times: arrays of shape (B,), or () for one row.

    Both are means over engines weighted by support, the number of units (identity, engine) with a valid trial. For
    SSR this equals solved units / units. An engine without support is left out; nan where nothing is left.

    Args:
        weight_BI: how often each identity is counted; several rows at once for resampling.
    """
    weight = np.asarray(weight_BI, np.float64)
    support_BE = weight @ counts.counted_IE
    solved_BE = weight @ counts.solved_IE
    with np.errstate(invalid="ignore", divide="ignore"):
        engine_pa_BE = (weight @ counts.success_IE) / (weight @ counts.valid_IE)
        support_B = support_BE.sum(axis=-1)
        ssr_B = solved_BE.sum(axis=-1) / support_B
        pa_B = (np.nan_to_num(engine_pa_BE) * support_BE).sum(axis=-1) / support_B
    return np.asarray(ssr_B), np.asarray(pa_B)
