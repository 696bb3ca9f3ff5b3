"""Charts as SVG text: horizontal bars with intervals, lines, and scatter plots."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from nearid_ray.evaluation.bootstrap import Interval
from nearid_ray.reporting.markup import DASH, Markup, tag
from nearid_ray.reporting.svg import FONT, INK, RULE, WASH, WIDTH, Frame, coordinate, dot, line, polyline, svg, text


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of a line chart; points with a non-finite y are left out."""

    name: str
    x: Sequence[float]
    y: Sequence[float]


@dataclass(frozen=True, kw_only=True)
class Dots:
    """Points of one colour in a scatter plot."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    hollow: bool = False


def bar_chart(
    groups: Mapping[str, Mapping[str, Interval]], colours: Mapping[str, str], *, label: str, axis: str
) -> Markup:
    """Horizontal bars of rates 0..1, shown as percent, with their intervals: {group: {series: interval}}.

    A group's name stands above its bars, so long names need no margin. A series without a value has no bar.
    """
    left, right, bar, gap = 8, 46, 14, 13
    heights = [FONT + 8 + bar * len(series) + gap for series in groups.values()]
    top, bottom = 6, 34
    height = top + sum(heights) + bottom
    plot = WIDTH - left - right

    def place(rate: float) -> float:
        return left + plot * min(max(rate, 0.0), 1.0)

    parts = []
    for tick in range(0, 101, 20):
        x = place(tick / 100)
        parts.append(line(x, top, x, height - bottom, RULE))
        parts.append(text(x, height - bottom + 15, str(tick), anchor="start" if tick == 0 else "middle"))
    parts.append(text(left + plot / 2, height - 5, axis))
    y = float(top)
    for (name, series), used in zip(groups.items(), heights, strict=True):
        parts.append(text(left, y + FONT + 1, name, anchor="start", weight="600"))
        row = y + FONT + 8
        for scorer, interval in series.items():
            parts += _bar(place, interval, row, bar - 2, colours[scorer], f"{name}, {scorer}")
            row += bar
        y += used
    return svg(parts, height, label)


def _bar(
    place: Callable[[float], float], interval: Interval, y: float, thickness: float, colour: str, name: str
) -> list[Markup]:
    middle = y + thickness / 2
    if not math.isfinite(interval.value):
        return [text(place(0) + 3, middle + 4, DASH, anchor="start")]
    start, end = place(0), place(interval.value)
    spoken = f"{name}: {100 * interval.value:.1f} %"
    parts = [
        tag("rect", tag("title", spoken), x=coordinate(start), y=coordinate(y),
            width=coordinate(max(end - start, 0.8)), height=thickness, fill=colour)
    ]  # fmt: skip
    label_from = end
    if math.isfinite(interval.low) and math.isfinite(interval.high):
        low, high = place(interval.low), place(interval.high)
        parts.append(line(low, middle, high, middle, "#ffffffb0", 3.6))
        parts.append(line(low, middle, high, middle, INK, 1.2))
        parts += [line(x, middle - 3, x, middle + 3, INK, 1.2) for x in (low, high)]
        label_from = max(end, high)
    parts.append(text(label_from + 4, middle + 4, f"{100 * interval.value:.1f}", anchor="start", size=11))
    return parts


def line_chart(
    lines: Sequence[Line], colours: Mapping[str, str], *, label: str, x_axis: str, y_axis: str, dots: bool = False
) -> Markup:
    """Lines over a common x. `dots` marks every point (where points are few)."""
    finite = {
        one.name: [(x, y) for x, y in zip(one.x, one.y, strict=True) if math.isfinite(x) and math.isfinite(y)]
        for one in lines
    }
    points = [point for kept in finite.values() for point in kept]
    frame = Frame.around([x for x, _ in points], [y for _, y in points], height=300)
    parts = frame.axes(x_axis, y_axis)
    for name, kept in finite.items():
        parts.append(polyline([(frame.x(x), frame.y(y)) for x, y in kept], colours[name], name=name))
        if dots:
            parts += [dot(frame.x(x), frame.y(y), colours[name], name=name, radius=3.4) for x, y in kept]
    return svg(parts, frame.height, label)


def scatter_chart(dots: Sequence[Dots], colours: Mapping[str, str], *, label: str) -> Markup:
    """Points without numbers at the axes (a projection has no units); equal scales on both axes."""
    xs = [x for group in dots for x in group.x]
    ys = [y for group in dots for y in group.y]
    span = max((max(v) - min(v) for v in (xs, ys) if v), default=1.0) or 1.0
    side, margin = 430.0, 15.0

    def place(value: float, values: list[float]) -> float:
        middle = (max(values) + min(values)) / 2
        return margin + side * (0.5 + 0.94 * (value - middle) / span)

    parts = [tag("rect", x=margin, y=margin, width=side, height=side, fill=WASH, stroke=RULE)]
    # Hollow ones first, so that they never hide the solid ones.
    for group in sorted(dots, key=lambda group: not group.hollow):
        colour = colours[group.name]
        for x, y in zip(group.x, group.y, strict=True):
            cx, cy = place(x, xs), margin * 2 + side - place(y, ys)
            what = tag("title", group.name + (", distractor" if group.hollow else ", view"))
            if group.hollow:
                west, east, north, south = map(coordinate, (cx - 4, cx + 4, cy - 4, cy + 4))
                d = f"M{west} {north}L{east} {south}M{west} {south}L{east} {north}"
                parts.append(tag("path", what, d=d, stroke=colour, stroke_width=1.5, fill="none", opacity=0.6))
            else:
                parts.append(dot(cx, cy, colour, name=f"{group.name}, view", radius=6))
    return svg(parts, side + 2 * margin, label)
