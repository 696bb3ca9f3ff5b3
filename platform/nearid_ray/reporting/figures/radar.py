"""Figure 4: how well scorers agree with people, by category, and what they gain over the baseline."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from nearid_ray.reporting.figures.figure import DASH_PATTERN, Figure, Key, Panel, colour_keys
from nearid_ray.reporting.markup import DASH, Markup, tag
from nearid_ray.reporting.svg import (
    FONT,
    INK,
    RULE,
    SMALL,
    WASH,
    WIDTH,
    coordinate,
    dot,
    line,
    nice_ticks,
    polygon,
    polyline,
    series_colours,
    svg,
    text,
)

PUBLISHED_GAINS = {"animal": 0.105, "human": 0.065, "style": -0.092}
"""The paper's NearID minus SigLIP2 by category of DreamBench++ (figure 4; the object's is not stated there)."""

PEOPLE = "people: one group of raters with the other"
_RADIUS, _HEIGHT = 150.0, 380.0


def radar_figure(
    values: Mapping[str, Mapping[str, float]], *, baseline: str = "", people: Mapping[str, float] | None = None
) -> Figure:
    """Alignment with people by category: a radar of all scorers, and bars of the difference to the baseline.

    Args:
        values: scorer -> category -> correlation with people's ratings, -1..1; nan where it was not measured.
        people: how the two groups of raters agree with each other, by category; drawn dashed.
    """
    categories = list(dict.fromkeys(c for of_scorer in values.values() for c in of_scorer))
    colours = series_colours(list(values), baseline)
    label = f"Alignment with people by category for {', '.join(values)}"
    panels = [
        Panel(svg=radar_chart(categories, values, colours, people=people or {}, label=label), height=_HEIGHT,
              caption="One spoke a category; rings: M-H, from 0 in the centre."),
    ]  # fmt: skip
    others = [scorer for scorer in values if scorer != baseline]
    if baseline in values and others:
        gains = {
            category: {s: values[s].get(category, math.nan) - values[baseline].get(category, math.nan) for s in others}
            for category in categories
        }
        published = {c: PUBLISHED_GAINS[c] for c in categories if c in PUBLISHED_GAINS}
        chart, height = gain_chart(gains, colours, published, label=f"Difference to {baseline} by category")
        said = f"Difference to {baseline}."
        said += " Diamonds: the paper's NearID minus SigLIP2." if published else ""
        panels.append(Panel(svg=chart, height=height, caption=said))
    caption = (
        "M-H: how a scorer's similarity of generated picture and reference goes with people's ratings (mean of the two "
        "groups of raters, Fisher-z mean over the methods); 1 is perfect, 0 is chance."
    )
    return Figure(
        name="figure4-radar", title="Agreement with people by category", caption=caption, panels=panels,
        legend={**colour_keys(colours), **({PEOPLE: Key(colour=INK, dashed=True)} if people else {})},
    )  # fmt: skip


def radar_chart(
    categories: Sequence[str], values: Mapping[str, Mapping[str, float]], colours: Mapping[str, str],
    *, people: Mapping[str, float] | None = None, label: str,
) -> Markup:  # fmt: skip
    """A polygon a scorer over one spoke a category; numbers below zero lie in the centre. Two categories or one: the
    polygon is a line or a point, and the numbers stand at the spokes' ends all the same."""
    numbers = [v for row in (*values.values(), people or {}) for v in row.values() if math.isfinite(v)]
    rings = nice_ticks(0.0, max([*numbers, 0.2]), 4)
    centre = (WIDTH / 2, _HEIGHT / 2)

    def place(n: int, value: float) -> tuple[float, float]:
        angle = 2 * math.pi * n / max(1, len(categories)) - math.pi / 2
        reach = _RADIUS * max(0.0, value) / rings[-1]
        return centre[0] + reach * math.cos(angle), centre[1] + reach * math.sin(angle)

    parts: list[Markup] = []
    for ring in rings[1:]:
        corners = " ".join(",".join(map(coordinate, place(n, ring))) for n in range(len(categories)))
        parts.append(tag("polygon", points=corners, fill="none", stroke=RULE))
    for n, category in enumerate(categories):
        x, y = place(n, rings[-1])
        parts.append(line(*centre, x, y, RULE))
        parts.append(_spoke_name(category, x, y, centre))
    for scorer, of_scorer in values.items():
        known = [(n, of_scorer.get(c, math.nan)) for n, c in enumerate(categories)]
        points = [place(n, v) for n, v in known if math.isfinite(v)]
        if points:
            said = ", ".join(f"{c} {of_scorer[c]:.3f}" for n, c in enumerate(categories) if math.isfinite(known[n][1]))
            parts.append(polygon(points, colours[scorer], name=f"{scorer}: {said}", opacity=0.07, outline=2))
            parts += [dot(x, y, colours[scorer], name=f"{scorer}: {said}", radius=3.2) for x, y in points]
    raters = [
        place(n, people[c]) for n, c in enumerate(categories) if people and math.isfinite(people.get(c, math.nan))
    ]
    if raters:
        parts.append(polyline([*raters, raters[0]], INK, name=PEOPLE, width=1.4, dash=DASH_PATTERN))
    for ring in rings[1:]:
        x, y = place(0, ring)
        parts.append(text(x + 4, y + 11, f"{ring:g}", anchor="start", size=SMALL, halo=True))
    return svg(parts, _HEIGHT, label)


def gain_chart(
    gains: Mapping[str, Mapping[str, float]], colours: Mapping[str, str], published: Mapping[str, float], *, label: str
) -> tuple[Markup, float]:
    """Bars to both sides of zero: {category: {scorer: difference}}, with published ones as diamonds; (svg, height)."""
    numbers = [v for row in gains.values() for v in row.values() if math.isfinite(v)] + list(published.values())
    reach = max([abs(v) for v in numbers] + [0.05])
    ticks = nice_ticks(-reach, reach, 4)
    left, right, bar, gap, top, bottom = 14.0, 14.0, 13.0, 14.0, 6.0, 38.0
    heights = [FONT + 8 + bar * len(row) + gap for row in gains.values()]
    height = top + sum(heights) + bottom

    def place(value: float) -> float:
        return left + (WIDTH - left - right) * (value - ticks[0]) / (ticks[-1] - ticks[0])

    parts = []
    for tick in ticks:
        parts.append(line(place(tick), top, place(tick), height - bottom, INK if tick == 0 else RULE))
        anchor = "start" if tick == ticks[0] else "end" if tick == ticks[-1] else None
        parts.append(text(place(tick), height - bottom + 15, _signed(tick), anchor=anchor))
    parts.append(text(WIDTH / 2, height - 5, "difference of M-H"))
    y = top
    for (category, row), used in zip(gains.items(), heights, strict=True):
        parts.append(text(left, y + FONT + 1, category, anchor="start", weight="600", halo=True))
        start = y + FONT + 8
        for n, (scorer, value) in enumerate(row.items()):
            parts += _gain(place, value, start + n * bar, bar - 2, colours[scorer], f"{category}, {scorer}")
        if category in published and row:
            parts.append(_diamond(place(published[category]), start + bar * len(row) / 2 - 1, published[category]))
        y += used
    return svg(parts, height, label), height


def _signed(value: float) -> str:
    return f"{value:+g}".replace("-", "\N{MINUS SIGN}") if value else "0"


def _gain(place, value: float, y: float, thickness: float, colour: str, name: str) -> list[Markup]:  # type: ignore[no-untyped-def]
    zero = place(0.0)
    if not math.isfinite(value):
        return [text(zero + 4, y + thickness / 2 + 4, DASH, anchor="start", size=SMALL)]
    end = place(value)
    bar = tag("rect", tag("title", f"{name}: {value:+.3f}"), x=coordinate(min(zero, end)), y=coordinate(y),
              width=coordinate(max(abs(end - zero), 0.8)), height=thickness, fill=colour)  # fmt: skip
    # Beside the bar's foot, on the side where there is none: at its end a label could leave the picture.
    side = (-4, "end") if value >= 0 else (4, "start")
    said = f"{value:+.3f}".replace("-", "\N{MINUS SIGN}")
    return [bar, text(zero + side[0], y + thickness / 2 + 4, said, anchor=side[1], size=SMALL, halo=True)]


def _diamond(x: float, y: float, value: float) -> Markup:
    points = " ".join(f"{coordinate(x + dx)},{coordinate(y + dy)}" for dx, dy in ((0, -7), (6, 0), (0, 7), (-6, 0)))
    return tag(
        "polygon", tag("title", f"published: {value:+.3f}"), points=points, fill=WASH, stroke=INK, stroke_width=1.5
    )


def _spoke_name(name: str, x: float, y: float, centre: tuple[float, float]) -> Markup:
    across, down = x - centre[0], y - centre[1]
    anchor = "middle" if abs(across) < 20 else "start" if across > 0 else "end"
    push = 0 if anchor == "middle" else 6 if anchor == "start" else -6
    return text(x + push, y + (-8 if down < -20 else 18 if down > 20 else 4), name, anchor=anchor, weight="600")
