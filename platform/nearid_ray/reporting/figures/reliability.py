"""How far the probabilities of a calibration can be believed: what was said against what was so."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from nearid_ray.evaluation.calibration import Calibration, Reliability
from nearid_ray.reporting.figures.figure import Figure, Panel, colour_keys
from nearid_ray.reporting.markup import Markup, tag
from nearid_ray.reporting.svg import SOFT, Frame, coordinate, dot, line, nice_ticks, polyline, series_colours, svg

_HEIGHT = 320.0
_Z = 1.959964


def reliability_figure(curves: Mapping[str, tuple[Calibration, Reliability]], *, note: str = "") -> Figure:
    """Reliability curves and the calibrations themselves, by scorer.

    The curve should be measured on pairs that the calibration was not fitted on.
    """
    colours = series_colours(list(curves))
    said = "; ".join(
        f"{name}: expected error {curve.expected_error:.3f}, Brier score {curve.brier:.3f}, {sum(curve.counts)} pairs"
        for name, (_, curve) in curves.items()
    )
    panels = [
        Panel(svg=_curves({name: curve for name, (_, curve) in curves.items()}, colours), height=_HEIGHT,
              caption="Share of pairs of the same identity among those that were given a probability. Lines: 95 % "
              "(Wilson). The bars at the foot: share of the pairs in each bin."),
        Panel(svg=_functions({name: one for name, (one, _) in curves.items()}, colours), height=_HEIGHT,
              caption="Probability of the same identity by similarity."),
    ]  # fmt: skip
    caption = f"On the diagonal a probability means what it says. {said}. {note}".strip()
    return Figure(name="reliability", title="Can the probabilities be believed?", caption=caption, panels=panels,
                  legend=colour_keys(colours))  # fmt: skip


def wilson(share: float, count: int) -> tuple[float, float]:
    """The 95 % interval of a share by Wilson's score; nan without a count.

    >>> [round(end, 3) for end in wilson(0.5, 10)]
    [0.237, 0.763]
    """
    if not count or not math.isfinite(share):
        return math.nan, math.nan
    squared = _Z**2 / count
    middle = (share + squared / 2) / (1 + squared)
    half = _Z * math.sqrt(share * (1 - share) / count + squared / (4 * count)) / (1 + squared)
    return middle - half, middle + half


def _curves(curves: Mapping[str, Reliability], colours: Mapping[str, str]) -> Markup:
    ticks = [0, 0.2, 0.4, 0.6, 0.8, 1]
    frame = Frame(x_ticks=ticks, y_ticks=ticks, height=_HEIGHT)
    parts = frame.axes("probability given", "share that was the same")
    parts.append(line(frame.x(0), frame.y(0), frame.x(1), frame.y(1), SOFT, 1, dash="4 4"))
    for n, (name, curve) in enumerate(curves.items()):
        parts += _histogram(frame, curve, colours[name], n, len(curves))
        used = [k for k, count in enumerate(curve.counts) if count]
        points = [(frame.x(curve.predicted[k]), frame.y(curve.observed[k])) for k in used]
        for (x, y), k in zip(points, used, strict=True):
            low, high = wilson(curve.observed[k], curve.counts[k])
            parts.append(line(x, frame.y(low), x, frame.y(high), colours[name], 1.2))
            parts.append(
                dot(x, y, colours[name], name=f"{name}: {curve.counts[k]} pairs, {curve.observed[k]:.3f} same")
            )
        parts.append(polyline(points, colours[name], name=name, width=1.4))
    return svg(parts, _HEIGHT, f"Reliability of the probabilities of {', '.join(curves)}")


def _histogram(frame: Frame, curve: Reliability, colour: str, place: int, places: int) -> list[Markup]:
    """How the pairs are spread over the bins, as bars of at most 40 units at the foot."""
    total, floor, parts = max(1, sum(curve.counts)), frame.y(0), []
    for k, count in enumerate(curve.counts):
        left, right = frame.x(curve.edges[k]), frame.x(curve.edges[k + 1])
        width = (right - left - 2) / places
        tall = 40 * count / total
        if tall:
            parts.append(
                tag("rect", x=coordinate(left + 1 + place * width), y=coordinate(floor - tall), width=coordinate(width),
                    height=coordinate(tall), fill=colour, fill_opacity=0.25)
            )  # fmt: skip
    return parts


def _functions(calibrations: Mapping[str, Calibration], colours: Mapping[str, str]) -> Markup:
    lows = [min(one.similarities) for one in calibrations.values() if one.similarities]
    frame = Frame(x_ticks=nice_ticks(min([0.0, *lows]), 1.0), y_ticks=[0, 0.2, 0.4, 0.6, 0.8, 1], height=_HEIGHT)
    parts = frame.axes("similarity", "probability of the same identity")
    at = np.linspace(frame.x_ticks[0], frame.x_ticks[-1], 201)
    for name, one in calibrations.items():
        points = zip(at.tolist(), one.probability(at).tolist(), strict=True)
        parts.append(polyline([(frame.x(x), frame.y(y)) for x, y in points], colours[name], name=name))
    return svg(parts, _HEIGHT, f"Probability by similarity of {', '.join(calibrations)}")
