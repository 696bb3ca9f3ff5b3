"""What a sweep's trials pay for what they gain: two measures against each other, one point a trial."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from nearid_ray.reporting.figures.figure import Figure, Key, Panel
from nearid_ray.reporting.markup import Markup
from nearid_ray.reporting.svg import (
    COLOURS,
    INK,
    SMALL,
    Frame,
    dot,
    free_labels,
    line,
    polyline,
    series_colours,
    svg,
    text,
)

HEIGHT = 340.0


@dataclass(frozen=True, kw_only=True)
class TradeoffPoint:
    """One trial."""

    name: str
    x: float
    """E.g. SSR, a share 0..1; points without a finite x and y are counted in the caption and not drawn."""
    y: float
    """E.g. M-O or the ordering rate."""
    x_low: float = math.nan
    x_high: float = math.nan
    y_low: float = math.nan
    y_high: float = math.nan
    group: str = ""
    """Points of one group have one colour, e.g. the objective; empty: no groups."""
    chosen: bool = False
    """Named first and drawn with a ring, e.g. the best trial or the default."""
    published: bool = False
    """Somebody else's number: drawn hollow and grey."""


def tradeoff_figure(
    points: Sequence[TradeoffPoint],
    *,
    x_axis: str = "SSR, %",
    y_axis: str = "M-O",
    x_percent: bool = True,
    y_percent: bool = False,
    title: str = "What the trials gain and what they pay",
    caption: str = "",
) -> Figure:
    """Two measures (higher is better on both) against each other, one point a trial.

    The dashed line joins the trials that no other trial beats in both measures. Names stand where they have room, the
    chosen and the unbeaten first; all show under a mouse.

    Args:
        x_percent, y_percent: the values are shares 0..1, shown in percent.
    """
    across, up = (100.0 if x_percent else 1.0), (100.0 if y_percent else 1.0)
    drawn = [point for point in points if math.isfinite(point.x) and math.isfinite(point.y)]
    front = pareto_front([(p.x, p.y) for p in drawn if not p.published])
    unbeaten = [[p for p in drawn if not p.published][n] for n in front]
    frame = Frame.around(
        [across * v for p in drawn for v in (p.x, p.x_low, p.x_high) if math.isfinite(v)],
        [up * v for p in drawn for v in (p.y, p.y_low, p.y_high) if math.isfinite(v)],
        height=HEIGHT,
    )
    groups = list(dict.fromkeys(p.group for p in drawn if not p.published))
    colours = series_colours(groups)
    parts = frame.axes(x_axis, y_axis)

    def place(point: TradeoffPoint) -> tuple[float, float]:
        return frame.x(across * point.x), frame.y(up * point.y)

    if len(unbeaten) > 1:
        parts.append(polyline(map(place, unbeaten), INK, name="not beaten in both", width=1, dash="4 4"))
    for point in drawn:
        parts += _point(point, frame, across, up, "#8b929c" if point.published else colours[point.group])
    named = [p for p in drawn if len(drawn) <= 12 or p.chosen or p.published or p in unbeaten]
    ranked = sorted(named, key=lambda p: (not p.chosen, p not in unbeaten, p.published, p.name))
    within = (frame.left + 2, frame.top, 460 - frame.right + 14, frame.height - frame.bottom - 2)
    for found in free_labels([(*place(p), p.name) for p in ranked], within=within):
        if found:
            x, y, anchor, name = found
            parts.append(text(x, y, name, anchor=anchor, size=SMALL, halo=True))
    lost = len(points) - len(drawn)
    said = caption or (
        "One point a trial; higher is better on both axes. Thin lines: intervals. Dashed: trials that no other beats "
        "in both."
    )
    said += f" {lost} of {len(points)} trials have no value on an axis and are not drawn." if lost else ""
    legend = {name: Key(colour=colours[name]) for name in groups if name}
    legend |= {"published": Key(colour="#8b929c", hollow=True)} if any(p.published for p in drawn) else {}
    label = f"{y_axis} against {x_axis} of {len(drawn)} trials"
    panel = Panel(svg=svg(parts, HEIGHT, label), height=HEIGHT, caption=f"{y_axis} against {x_axis}.")
    return Figure(name="tradeoff", title=title, caption=said, panels=[panel], legend=legend)


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Places of the points that no other one beats: none is as good in both and better in one. By rising x.

    >>> pareto_front([(1, 5), (2, 4), (2, 3), (3, 1), (0, 5)])
    [0, 1, 3]
    """
    order = sorted(range(len(points)), key=lambda n: (-points[n][0], -points[n][1]))
    front, best = [], -math.inf
    for n in order:
        if points[n][1] > best:
            front.append(n)
            best = points[n][1]
    return front[::-1]


def _point(point: TradeoffPoint, frame: Frame, across: float, up: float, colour: str) -> list[Markup]:
    x, y = frame.x(across * point.x), frame.y(up * point.y)
    parts = []
    if math.isfinite(point.x_low) and math.isfinite(point.x_high):
        parts.append(line(frame.x(across * point.x_low), y, frame.x(across * point.x_high), y, colour, 1))
    if math.isfinite(point.y_low) and math.isfinite(point.y_high):
        parts.append(line(x, frame.y(up * point.y_low), x, frame.y(up * point.y_high), colour, 1))
    if point.chosen:
        parts.append(dot(x, y, COLOURS[4], name=point.name, radius=8, hollow=True))
    name = f"{point.name}: {across * point.x:.4g}, {up * point.y:.4g}"
    parts.append(dot(x, y, colour, name=name, radius=4.5, hollow=point.published))
    return parts
