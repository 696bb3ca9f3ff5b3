"""Figure 9: how a scorer's similarities are spread, against how much of the object truly stayed the same."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nearid_ray.reporting.figures.figure import DASH_PATTERN, Figure, Key, Panel, colour_keys
from nearid_ray.reporting.markup import Markup
from nearid_ray.reporting.svg import INK, Frame, dot, nice_ticks, polyline, series_colours, svg

_HEIGHT = 320.0
_MOST_STEPS = 400
"""Steps drawn of one curve: more than a screen can show."""
_BINS = 10

ORACLE = "oracle"


def ecdf_figure(scores: Mapping[str, tuple[ArrayLike, ArrayLike]], *, baseline: str = "") -> Figure:
    """Cumulative distributions of similarity and oracle, and the mean similarity by oracle.

    Args:
        scores: scorer -> (similarity, oracle) of its pairs of a view and a distractor with an oracle; pairs in which
            one is not finite are left out.
    """
    kept = {scorer: _finite(*pair) for scorer, pair in scores.items()}
    kept = {scorer: pair for scorer, pair in kept.items() if len(pair[0])}
    oracle_N = max((pair[1] for pair in kept.values()), key=len, default=np.empty(0))
    colours = series_colours(list(kept), baseline)
    said = ", ".join(f"{name} {kolmogorov_smirnov(pair[0], pair[1]):.2f}" for name, pair in kept.items())
    panels = [
        Panel(svg=_ecdfs(kept, oracle_N, colours), height=_HEIGHT, caption="Share of the pairs at or below a value."),
        Panel(svg=_by_oracle(kept, colours), height=_HEIGHT,
              caption=f"Mean similarity of pairs with about the same oracle ({_BINS} bins of as many pairs)."),
    ]  # fmt: skip
    caption = (
        f"Pairs of a view and a distractor in which a part of the object changed ({len(oracle_N)}); the oracle is the "
        "share of the object that stayed the same. A score that says how much has stayed follows the dashed curve and "
        "rises with the oracle; a steep curve far to the right says nearly the same of all pairs. Largest vertical "
        f"distance to the oracle's curve: {said or 'nothing measured'}."
    )
    legend = {ORACLE: Key(colour=INK, dashed=True), **colour_keys(colours)}
    return Figure(name="figure9-ecdf", title="Scores against the oracle", caption=caption, panels=panels, legend=legend)


def ecdf(value_N: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The different finite values, ascending, and the share of all that are at or below each.

    >>> [part.tolist() for part in ecdf([3.0, 1.0, 1.0, float("nan"), 2.0])]
    [[1.0, 2.0, 3.0], [0.5, 0.75, 1.0]]
    """
    value = np.asarray(value_N, np.float64).reshape(-1)
    value, count = np.unique(value[np.isfinite(value)], return_counts=True)
    return value, np.cumsum(count) / max(1, count.sum())


def kolmogorov_smirnov(first_N: ArrayLike, second_N: ArrayLike) -> float:
    """Largest distance of two cumulative distributions, 0..1; nan where one is empty.

    >>> kolmogorov_smirnov([1, 2], [1, 3])
    0.5
    """
    (x, f), (y, g) = ecdf(first_N), ecdf(second_N)
    if not len(x) or not len(y):
        return math.nan
    at = np.union1d(x, y)
    first, second = (np.concatenate([[0.0], share])[np.searchsorted(values, at, "right")]
                     for values, share in ((x, f), (y, g)))  # fmt: skip
    return float(np.abs(first - second).max())


def means_by_oracle(
    similarity_N: ArrayLike, oracle_N: ArrayLike, bins: int = _BINS
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(mean oracle, mean similarity) of bins of about as many pairs each, by rising oracle; pairs of one oracle stay
    together.

    >>> [part.tolist() for part in means_by_oracle([0.1, 0.3, 0.5, 0.9], [0.0, 0.2, 0.8, 1.0], bins=2)]
    [[0.1, 0.9], [0.2, 0.7]]
    """
    similarity, oracle = _finite(similarity_N, oracle_N)
    if not len(oracle):
        return np.empty(0), np.empty(0)
    edges = np.unique(np.quantile(oracle, np.linspace(0, 1, bins + 1)))
    place = np.clip(np.searchsorted(edges, oracle, "right") - 1, 0, max(0, len(edges) - 2))
    count = np.bincount(place)
    used = count > 0
    return (np.bincount(place, oracle)[used] / count[used], np.bincount(place, similarity)[used] / count[used])


def _ecdfs(
    scores: Mapping[str, tuple[NDArray[np.float64], NDArray[np.float64]]],
    oracle_N: NDArray[np.float64],
    colours: Mapping[str, str],
) -> Markup:
    curves = {scorer: ecdf(pair[0]) for scorer, pair in scores.items()}
    lowest = min([0.0, *(float(x[0]) for x, _ in curves.values())])
    frame = Frame(x_ticks=nice_ticks(lowest, 1.0), y_ticks=[0, 0.25, 0.5, 0.75, 1], height=_HEIGHT)
    parts = frame.axes("similarity or oracle", "share of pairs")
    parts += [_steps(frame, *curve, colours[scorer], name=scorer) for scorer, curve in curves.items()]
    if len(oracle_N):
        parts.append(_steps(frame, *ecdf(oracle_N), INK, name=ORACLE, dash=DASH_PATTERN))
    return svg(parts, _HEIGHT, f"Cumulative distributions of the similarities of {', '.join(scores)} and of the oracle")


def _by_oracle(
    scores: Mapping[str, tuple[NDArray[np.float64], NDArray[np.float64]]], colours: Mapping[str, str]
) -> Markup:
    curves = {scorer: means_by_oracle(*pair) for scorer, pair in scores.items()}
    values = [float(v) for _, mean in curves.values() for v in mean]
    across = [float(v) for at, _ in curves.values() for v in at]
    frame = Frame(
        x_ticks=nice_ticks(min(across, default=0.0), max(across, default=1.0)),
        y_ticks=nice_ticks(min(values, default=0.0), max(values, default=1.0)),
        height=_HEIGHT,
    )  # fmt: skip
    parts = frame.axes("oracle: share of the object that stayed", "mean similarity")
    for scorer, (at, mean) in curves.items():
        points = [(frame.x(float(x)), frame.y(float(y))) for x, y in zip(at, mean, strict=True)]
        parts.append(polyline(points, colours[scorer], name=scorer))
        parts += [dot(x, y, colours[scorer], name=scorer, radius=3.2) for x, y in points]
    return svg(parts, _HEIGHT, f"Mean similarity by oracle of {', '.join(scores)}")


def _steps(
    frame: Frame, value_N: NDArray[np.float64], share_N: NDArray[np.float64], colour: str, *, name: str,
    dash: str | None = None,
) -> Markup:  # fmt: skip
    """A staircase from 0 to 1 over the whole width."""
    if len(value_N) > _MOST_STEPS:
        kept = np.unique(np.linspace(0, len(value_N) - 1, _MOST_STEPS).astype(int))
        value_N, share_N = value_N[kept], share_N[kept]
    low, high = frame.x_ticks[0], frame.x_ticks[-1]
    points, before = [(frame.x(low), frame.y(0.0))], 0.0
    for value, share in zip(value_N.tolist(), share_N.tolist(), strict=True):
        x = frame.x(min(max(value, low), high))
        points += [(x, frame.y(before)), (x, frame.y(share))]
        before = share
    points.append((frame.x(high), frame.y(before)))
    return polyline(points, colour, name=name, dash=dash, width=2 if dash else 1.8)


def _finite(similarity_N: ArrayLike, oracle_N: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    similarity, oracle = (np.asarray(values, np.float64).reshape(-1) for values in (similarity_N, oracle_N))
    if len(similarity) != len(oracle):
        raise ValueError(f"{len(similarity)} similarities and {len(oracle)} oracles; expected one of each a pair")
    usable = np.isfinite(similarity) & np.isfinite(oracle)
    return similarity[usable], oracle[usable]
