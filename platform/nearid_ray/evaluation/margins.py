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

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


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
