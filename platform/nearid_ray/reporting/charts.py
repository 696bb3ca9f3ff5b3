"""Charts as SVG text: horizontal bars with intervals, lines, and scatter plots.

Drawn by hand because they must be small, sharp at every size, the same bytes for the same numbers, and readable on a
phone: all are about 460 units wide, so that 12-unit letters stay legible when a chart is 350 pixels wide.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from nearid_ray.evaluation.bootstrap import Interval
from nearid_ray.reporting.markup import DASH, Markup, tag

WIDTH = 460
FONT = 13
BASELINE_COLOUR = "#8b929c"
# Told apart also by people who see red and green alike, and dark enough on white.
COLOURS = ("#1f5f99", "#d2761b", "#2d8a66", "#8a5aa8", "#b6405a", "#5c7f1d", "#3b3f8f", "#a06a2c")
INK, RULE = "#27303a", "#dfe3e8"


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


def series_colours(names: Sequence[str], baseline: str | None = None) -> dict[str, str]:
    """A colour for each name; the baseline is grey."""
    others = [name for name in names if name != baseline]
    colours = {name: COLOURS[n % len(COLOURS)] for n, name in enumerate(others)}
    return {name: colours.get(name, BASELINE_COLOUR) for name in names}


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers from at most `low` to at least `high`, about `count` of them.

    >>> nice_ticks(0.0, 97.0)
    [0.0, 20.0, 40.0, 60.0, 80.0, 100.0]
    """
    if not (math.isfinite(low) and math.isfinite(high)):
        return [0.0, 1.0]
    span = (high - low) or abs(high) or 1.0
    raw = span / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(step * power for step in (1, 2, 2.5, 5, 10) if step * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    last = max(last, first + 1)
    return [round(n * step, 12) for n in range(first, last + 1)]


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
        parts.append(_line(x, top, x, height - bottom, RULE))
        parts.append(_text(x, height - bottom + 15, str(tick), anchor="start" if tick == 0 else "middle"))
    parts.append(_text(left + plot / 2, height - 5, axis))
    y = float(top)
    for (name, series), used in zip(groups.items(), heights, strict=True):
        parts.append(_text(left, y + FONT + 1, name, anchor="start", weight="600"))
        row = y + FONT + 8
        for scorer, interval in series.items():
            parts += _bar(place, interval, row, bar - 2, colours[scorer], f"{name}, {scorer}")
            row += bar
        y += used
    return _svg(parts, height, label)


def _bar(
    place: Callable[[float], float], interval: Interval, y: float, thickness: float, colour: str, name: str
) -> list[Markup]:
    middle = y + thickness / 2
    if not math.isfinite(interval.value):
        return [_text(place(0) + 3, middle + 4, DASH, anchor="start")]
    start, end = place(0), place(interval.value)
    spoken = f"{name}: {100 * interval.value:.1f} %"
    parts = [
        tag("rect", tag("title", spoken), x=_n(start), y=_n(y), width=_n(max(end - start, 0.8)), height=thickness,
            fill=colour)
    ]  # fmt: skip
    label_from = end
    if math.isfinite(interval.low) and math.isfinite(interval.high):
        low, high = place(interval.low), place(interval.high)
        parts.append(_line(low, middle, high, middle, "#ffffffb0", 3.6))
        parts.append(_line(low, middle, high, middle, INK, 1.2))
        parts += [_line(x, middle - 3, x, middle + 3, INK, 1.2) for x in (low, high)]
        label_from = max(end, high)
    parts.append(_text(label_from + 4, middle + 4, f"{100 * interval.value:.1f}", anchor="start", size=11))
    return parts


def line_chart(
    lines: Sequence[Line], colours: Mapping[str, str], *, label: str, x_axis: str, y_axis: str, dots: bool = False
) -> Markup:
    """Lines over a common x. `dots` marks every point (where points are few)."""
    finite = [
        Line(name=line.name, x=[p[0] for p in kept], y=[p[1] for p in kept])
        for line in lines
        if (kept := [(x, y) for x, y in zip(line.x, line.y, strict=True) if math.isfinite(x) and math.isfinite(y)])
    ]
    frame = _Frame.around([x for line in finite for x in line.x], [y for line in finite for y in line.y], height=300)
    parts = frame.axes(x_axis, y_axis)
    for line in finite:
        colour = colours[line.name]
        points = " ".join(f"{_n(frame.x(x))},{_n(frame.y(y))}" for x, y in zip(line.x, line.y, strict=True))
        parts.append(
            tag("polyline", tag("title", line.name), points=points, fill="none", stroke=colour, stroke_width=1.8,
                stroke_linejoin="round")
        )  # fmt: skip
        if dots:
            parts += [
                tag("circle", cx=_n(frame.x(x)), cy=_n(frame.y(y)), r=2.8, fill=colour)
                for x, y in zip(line.x, line.y, strict=True)
            ]
    return _svg(parts, frame.height, label)


def scatter_chart(dots: Sequence[Dots], colours: Mapping[str, str], *, label: str) -> Markup:
    """Points without numbers at the axes (a projection has no units); equal scales on both axes."""
    xs = [x for group in dots for x in group.x]
    ys = [y for group in dots for y in group.y]
    span = max((max(v) - min(v) for v in (xs, ys) if v), default=1.0) or 1.0
    side, margin = 430.0, 15.0

    def place(value: float, values: list[float]) -> float:
        middle = (max(values) + min(values)) / 2
        return margin + side * (0.5 + 0.94 * (value - middle) / span)

    parts = [tag("rect", x=margin, y=margin, width=side, height=side, fill="#fbfcfd", stroke=RULE)]
    # Hollow ones first, so that they never hide the solid ones.
    for group in sorted(dots, key=lambda group: not group.hollow):
        colour = colours[group.name]
        for x, y in zip(group.x, group.y, strict=True):
            cx, cy = place(x, xs), margin * 2 + side - place(y, ys)
            what = tag("title", group.name + (", distractor" if group.hollow else ", view"))
            if group.hollow:
                west, east, north, south = _n(cx - 4), _n(cx + 4), _n(cy - 4), _n(cy + 4)
                d = f"M{west} {north}L{east} {south}M{west} {south}L{east} {north}"
                parts.append(tag("path", what, d=d, stroke=colour, stroke_width=1.5, fill="none", opacity=0.6))
            else:
                parts.append(tag("circle", what, cx=_n(cx), cy=_n(cy), r=6, fill=colour, stroke="#fff"))
    return _svg(parts, side + 2 * margin, label)


@dataclass(frozen=True, kw_only=True)
class _Frame:
    x_ticks: list[float]
    y_ticks: list[float]
    height: float
    left: float = 46
    right: float = 20
    top: float = 10
    bottom: float = 40

    @classmethod
    def around(cls, xs: Sequence[float], ys: Sequence[float], height: float) -> _Frame:
        return cls(
            x_ticks=nice_ticks(min(xs, default=0.0), max(xs, default=1.0)),
            y_ticks=nice_ticks(min(ys, default=0.0), max(ys, default=1.0)),
            height=height,
        )

    def x(self, value: float) -> float:
        low, high = self.x_ticks[0], self.x_ticks[-1]
        return self.left + (WIDTH - self.left - self.right) * (value - low) / (high - low)

    def y(self, value: float) -> float:
        low, high = self.y_ticks[0], self.y_ticks[-1]
        return self.height - self.bottom - (self.height - self.top - self.bottom) * (value - low) / (high - low)

    def axes(self, x_axis: str, y_axis: str) -> list[Markup]:
        floor, right = self.height - self.bottom, WIDTH - self.right
        parts = []
        for tick in self.y_ticks:
            parts.append(_line(self.left, self.y(tick), right, self.y(tick), RULE))
            parts.append(_text(self.left - 6, self.y(tick) + 4, f"{tick:g}", anchor="end"))
        for tick in self.x_ticks:
            parts.append(_line(self.x(tick), floor, self.x(tick), floor + 4, INK))
            parts.append(
                _text(self.x(tick), floor + 17, f"{tick:g}", anchor="end" if tick == self.x_ticks[-1] else None)
            )
        parts.append(_line(self.left, floor, right, floor, INK))
        parts.append(_text((self.left + right) / 2, self.height - 4, x_axis))
        middle = (self.top + floor) / 2
        parts.append(_text(12, middle, y_axis, rotate=f"rotate(-90 12 {_n(middle)})"))
        return parts


def _svg(parts: Sequence[Markup], height: float, label: str) -> Markup:
    return tag(
        "svg", parts, viewBox=f"0 0 {WIDTH} {_n(height)}", role="img",
        aria_label=label, font_family="inherit", font_size=FONT, fill=INK,
    )  # fmt: skip


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, width: float = 1) -> Markup:
    return tag("line", x1=_n(x1), y1=_n(y1), x2=_n(x2), y2=_n(y2), stroke=colour, stroke_width=width)


def _text(
    x: float, y: float, text: str, *, anchor: str | None = None, weight: str | None = None, size: int | None = None,
    rotate: str | None = None,
) -> Markup:  # fmt: skip
    return tag("text", text, x=_n(x), y=_n(y), text_anchor=anchor or "middle", font_weight=weight, font_size=size,
               transform=rotate)  # fmt: skip


def _n(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")
