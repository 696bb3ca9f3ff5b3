"""Pieces of SVG drawings: lines, text, axes, and labels that keep out of each other's way.

Drawn by hand because charts must be small, sharp at every size, the same bytes for the same numbers, and readable on a
phone: all are about 460 units wide, so that 12-unit letters stay legible when a chart is 350 pixels wide.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from nearid_ray.reporting.markup import Markup, data_uri, tag

WIDTH = 460
FONT = 13
SMALL = 11
BASELINE_COLOUR = "#8b929c"
# Told apart also by people who see red and green alike, and dark enough on white.
COLOURS = (
    "#1f5f99", "#d2761b", "#2d8a66", "#8a5aa8", "#b6405a", "#5c7f1d", "#3b3f8f", "#a06a2c", "#118a9e", "#c2549d",
    "#6d4c2f", "#4c9be0",
)  # fmt: skip
INK, SOFT, RULE, WASH = "#27303a", "#56616d", "#dfe3e8", "#fbfcfd"

BOLD = 1.12
"""How much wider bold letters are."""
_NARROW, _WIDE = frozenset("fijltrI.,:;'|!()[]-/ "), frozenset("mwMW@%")


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


def text_width(text: str, size: float = FONT) -> float:
    """About how wide a text is, in units: rather too much, as nobody knows which font a browser has.

    >>> text_width("il") < text_width("mw")
    True
    """
    widths = (0.4 if c in _NARROW else 0.95 if c in _WIDE else 0.72 if c.isupper() else 0.64 for c in text)
    return size * sum(widths)


def wrapped(text: str, width: float, size: float = FONT) -> list[str]:
    """The text in lines of at most this width; a longer word stands alone.

    >>> wrapped("one two three", 60)
    ['one two', 'three']
    """
    lines: list[str] = []
    for word in text.split():
        if lines and text_width(f"{lines[-1]} {word}", size) <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def shortened(text: str, width: float, size: float = FONT) -> str:
    """The text, its end cut off where it is wider.

    >>> shortened("toybox:000123", 60)
    'toybox…'
    """
    if text_width(text, size) <= width:
        return text
    while text and text_width(text + "…", size) > width:
        text = text[:-1]
    return text.rstrip(" :") + "…"


def svg(parts: Iterable[Markup], height: float, label: str, *, width: float = WIDTH) -> Markup:
    """A drawing; `label` is what it is called to people who do not see it."""
    return tag(
        "svg", list(parts), viewBox=f"0 0 {coordinate(width)} {coordinate(height)}", role="img",
        aria_label=label, font_family="inherit", font_size=FONT, fill=INK,
    )  # fmt: skip


def line(
    x1: float, y1: float, x2: float, y2: float, colour: str, width: float = 1, *, dash: str | None = None
) -> Markup:
    """A straight line."""
    return tag("line", x1=coordinate(x1), y1=coordinate(y1), x2=coordinate(x2), y2=coordinate(y2), stroke=colour,
               stroke_width=width, stroke_dasharray=dash)  # fmt: skip


def text(
    x: float, y: float, said: str, *, anchor: str | None = None, weight: str | None = None, size: float | None = None,
    rotate: str | None = None, colour: str | None = None, halo: bool = False,
) -> Markup:  # fmt: skip
    """A line of text with its baseline at y; `anchor` is start, middle (default) or end; `halo` parts it from lines."""
    return tag("text", said, x=coordinate(x), y=coordinate(y), text_anchor=anchor or "middle", font_weight=weight,
               font_size=size, transform=rotate, fill=colour, stroke="#fff" if halo else None,
               stroke_width=3 if halo else None, paint_order="stroke" if halo else None)  # fmt: skip


def polyline(
    points: Iterable[tuple[float, float]], colour: str, *, name: str, width: float = 1.8, dash: str | None = None
) -> Markup:
    """An open line through the points; `name` shows under a mouse."""
    joined = " ".join(f"{coordinate(x)},{coordinate(y)}" for x, y in points)
    return tag("polyline", tag("title", name), points=joined, fill="none", stroke=colour, stroke_width=width,
               stroke_linejoin="round", stroke_dasharray=dash)  # fmt: skip


def polygon(
    points: Iterable[tuple[float, float]], colour: str, *, name: str, opacity: float, outline: float = 0
) -> Markup:
    """A filled shape, see-through."""
    joined = " ".join(f"{coordinate(x)},{coordinate(y)}" for x, y in points)
    return tag("polygon", tag("title", name), points=joined, fill=colour, fill_opacity=opacity,
               stroke=colour if outline else None, stroke_width=outline or None, stroke_linejoin="round")  # fmt: skip


def picture(x: float, y: float, side: float, data: bytes, *, name: str, edge: str = RULE) -> Markup:
    """An encoded picture fitted into a square with an edge; `name` shows under a mouse.

    Raises:
        ValueError: the bytes are no PNG, JPEG or WebP.
    """
    at = {"x": coordinate(x), "y": coordinate(y), "width": coordinate(side), "height": coordinate(side)}
    shown = tag("image", tag("title", name), href=data_uri(data), **at)
    return Markup(shown + tag("rect", fill="none", stroke=edge, stroke_width=2, **at))


def dot(x: float, y: float, colour: str, *, name: str, radius: float = 4, hollow: bool = False) -> Markup:
    """A point; `name` shows under a mouse."""
    return tag("circle", tag("title", name), cx=coordinate(x), cy=coordinate(y), r=radius,
               fill="#fff" if hollow else colour, stroke=colour if hollow else "#fff",
               stroke_width=1.6 if hollow else 0.8)  # fmt: skip


def coordinate(value: float) -> str:
    """A number of units, to a hundredth."""
    return f"{value:.2f}".rstrip("0").rstrip(".")


@dataclass(frozen=True, kw_only=True)
class Frame:
    """The area of a chart with its axes."""

    x_ticks: Sequence[float]
    y_ticks: Sequence[float]
    height: float
    right: float = 20
    top: float = 10
    bottom: float = 40
    x_names: Mapping[float, str] = field(default_factory=dict)
    """What stands at a tick instead of its number."""

    @property
    def left(self) -> float:
        """Room for the numbers of the upright axis and its name."""
        return max(46.0, 28 + max((text_width(f"{tick:g}") for tick in self.y_ticks), default=0.0))

    @classmethod
    def around(cls, xs: Sequence[float], ys: Sequence[float], height: float) -> Frame:
        """A frame with ticks that hold all numbers."""
        return cls(
            x_ticks=nice_ticks(min(xs, default=0.0), max(xs, default=1.0)),
            y_ticks=nice_ticks(min(ys, default=0.0), max(ys, default=1.0)),
            height=height,
        )

    def x(self, value: float) -> float:
        """Where a value lies across."""
        low, high = self.x_ticks[0], self.x_ticks[-1]
        return self.left + (WIDTH - self.left - self.right) * (value - low) / (high - low)

    def y(self, value: float) -> float:
        """Where a value lies down."""
        low, high = self.y_ticks[0], self.y_ticks[-1]
        return self.height - self.bottom - (self.height - self.top - self.bottom) * (value - low) / (high - low)

    def axes(self, x_axis: str, y_axis: str) -> list[Markup]:
        """Rules, ticks, numbers and the names of the axes."""
        floor, right = self.height - self.bottom, WIDTH - self.right
        parts = []
        for tick in self.y_ticks:
            parts.append(line(self.left, self.y(tick), right, self.y(tick), RULE))
            parts.append(text(self.left - 6, self.y(tick) + 4, f"{tick:g}", anchor="end"))
        for tick in self.x_ticks:
            parts.append(line(self.x(tick), floor, self.x(tick), floor + 4, INK))
            last = tick == self.x_ticks[-1]
            said = self.x_names.get(tick, f"{tick:g}")
            parts.append(text(self.x(tick), floor + 17, said, anchor="end" if last else None))
        parts.append(line(self.left, floor, right, floor, INK))
        parts.append(text((self.left + right) / 2, self.height - 4, x_axis))
        middle = (self.top + floor) / 2
        parts.append(text(12, middle, y_axis, rotate=f"rotate(-90 12 {coordinate(middle)})"))
        return parts


Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""


def overlap(first: Box, second: Box) -> bool:
    """Whether two boxes have area in common."""
    return first[0] < second[2] and second[0] < first[2] and first[1] < second[3] and second[1] < first[3]


def free_labels(
    labels: Sequence[tuple[float, float, str]], *, within: Box, taken: Sequence[Box] = (), size: float = SMALL
) -> list[tuple[float, float, str, str] | None]:
    """Where names of points can stand without covering each other, the points or what is `taken`.

    Args:
        labels: (x, y, name) of each point, the most important first.

    Returns:
        (x, y, anchor, name) for `text`, or None for a name that finds no room.
    """
    points = [(x - 5.0, y - 5.0, x + 5.0, y + 5.0) for x, y, _ in labels]
    boxes: list[Box] = [*taken]
    found: list[tuple[float, float, str, str] | None] = []
    for own, (x, y, name) in enumerate(labels):
        width, chosen = text_width(name, size), None
        others = [box for n, box in enumerate(points) if n != own]
        for dx, dy, anchor in _AROUND:
            place = (x + dx, y + dy)
            left = place[0] - {"start": 0.0, "middle": width / 2, "end": width}[anchor]
            box = (left, place[1] - size * 0.8, left + width, place[1] + size * 0.25)
            inside = within[0] <= box[0] and within[1] <= box[1] and box[2] <= within[2] and box[3] <= within[3]
            if inside and not any(overlap(box, other) for other in (*boxes, *others)):
                boxes.append(box)
                chosen = (*place, anchor, name)
                break
        found.append(chosen)
    return found


_AROUND = (
    (8, 4, "start"), (-8, 4, "end"), (0, -9, "middle"), (0, 16, "middle"), (7, -7, "start"), (-7, -7, "end"),
    (7, 14, "start"), (-7, 14, "end"), (0, -21, "middle"), (0, 28, "middle"),
)  # fmt: skip
