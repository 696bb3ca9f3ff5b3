"""Figure 3, right: which scorer has which property, read off the measures."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from nearid_ray.evaluation.measures import MTG, NEARID, Measure, find
from nearid_ray.reporting.figures.figure import Figure, Panel
from nearid_ray.reporting.markup import DASH, Markup, number, tag
from nearid_ray.reporting.pieces import framed_table
from nearid_ray.reporting.svg import (
    BASELINE_COLOUR,
    BOLD,
    COLOURS,
    FONT,
    INK,
    RULE,
    SMALL,
    SOFT,
    coordinate,
    line,
    shortened,
    svg,
    text,
    text_width,
)
from nearid_ray.reporting.whole import whole

Verdict = Literal["yes", "no", "open", ""]
"""Above the threshold; below; the interval holds it; not measured."""


@dataclass(frozen=True, kw_only=True)
class Property:
    """A question that a measure answers."""

    said: str
    benchmark: str
    metric: str
    threshold: float
    condition: str = "full"
    percent: bool = True


PROPERTIES = (
    Property(said="Tells an object from a near-identical one", benchmark=NEARID, metric="ssr", threshold=0.5),
    Property(said="… also when the background is blacked out", benchmark=NEARID, metric="ssr", threshold=0.5,
             condition="foreground"),
    Property(said="Keeps near-identical above unrelated", benchmark=NEARID, metric="ordering", threshold=0.9),
    Property(said="Sees that a part has changed", benchmark=MTG, metric="ssr", threshold=0.25),
    Property(said="Follows how much has changed", benchmark=MTG, metric="m_o", threshold=0.3, percent=False),
    Property(said="Agrees with people", benchmark="dreambench-plus", metric="m_h", threshold=0.5, percent=False),
    Property(said="Is not fooled by repainting", benchmark=NEARID, metric="control_rate", threshold=0.5),
)  # fmt: skip
_ROW, _COLUMN, _HEAD = 34.0, 62.0, 24.0
_WIDEST_COLUMN, _LONGEST = 120.0, 150.0
_SLANT = math.radians(35)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a measure says of a property."""

    verdict: Verdict
    value: float


def answer(asked: Property, measures: Iterable[Measure], scorer: str) -> Answer:
    """Whether a scorer has a property: its interval lies above the threshold (without an interval, its value does).

    Of several groups the headline's measure counts; without groups, the lowest of all engines.
    """
    rows = find(measures, benchmark=asked.benchmark, metric=asked.metric, condition=asked.condition, scorer=scorer)
    groups = [one for one in rows if one.is_group]
    top = whole(groups)
    known = [one for one in rows if math.isfinite(one.value)]
    mine = [one for one in known if one.name == top and one.is_group] if top else known
    if not mine:
        return Answer(verdict="", value=math.nan)
    one = min(mine, key=lambda m: m.value)
    low = one.low if math.isfinite(one.low) else one.value
    high = one.high if math.isfinite(one.high) else one.value
    verdict: Verdict = "yes" if low > asked.threshold else "no" if high <= asked.threshold else "open"
    return Answer(verdict=verdict, value=one.value)


def property_figure(
    measures: Sequence[Measure], scorers: Sequence[str], properties: Sequence[Property] = PROPERTIES
) -> Figure:
    """A matrix of scorers and properties. Properties that nothing measures are left out, and named."""
    found = {asked: {scorer: answer(asked, measures, scorer) for scorer in scorers} for asked in properties}
    shown = {asked: row for asked, row in found.items() if any(a.verdict for a in row.values())}
    lost = [asked for asked in properties if asked not in shown]
    thresholds = "; ".join(f"“{p.said.removeprefix('… ')}”: {_measure_name(p)} above {_threshold(p)}" for p in shown)
    caption = (
        "Full circle: the measure's whole interval lies above a threshold; empty: below; half: the interval holds it; "
        f"a dash: not measured. The thresholds are ours, to make properties out of numbers. {thresholds}."
    )
    if lost:
        caption += f" Not measured here: {', '.join(_measure_name(p) for p in lost)}."
    svg_, width, height = _matrix(shown, scorers)
    panel = Panel(svg=svg_, width=width, height=height, caption="Properties by scorer.")
    return Figure(
        name="figure3-properties", title="What the scorers can do", caption=caption, panels=[panel], columns=1,
        body=_html(shown, scorers),
    )  # fmt: skip


def _matrix(rows: Mapping[Property, Mapping[str, Answer]], scorers: Sequence[str]) -> tuple[Markup, float, float]:
    left = max([text_width(asked.said, FONT) for asked in rows] + [120.0]) + 8
    longest = min(_LONGEST, max((BOLD * text_width(name, SMALL) for name in scorers), default=0.0))
    slanted = longest + 16 > _WIDEST_COLUMN
    column = _COLUMN if slanted else max(_COLUMN, longest + 16)
    top = _HEAD + (longest * math.sin(_SLANT) if slanted else 0.0)
    # The last slanted name leans out to the right.
    width = left + column * len(scorers) + (max(0.0, longest * math.cos(_SLANT) - column / 2) if slanted else 0.0)
    height = top + _ROW * len(rows) + 6
    parts: list[Markup] = []
    for n, scorer in enumerate(scorers):
        x, y, name = left + column * (n + 0.5), top - 10, shortened(scorer, longest / BOLD, SMALL)
        lean = f"rotate({-math.degrees(_SLANT):.0f} {coordinate(x)} {coordinate(y)})" if slanted else None
        said = text(x, y, name, size=SMALL, weight="600", anchor="start" if slanted else None, rotate=lean)
        parts.append(tag("g", tag("title", scorer), said))
    for r, (asked, row) in enumerate(rows.items()):
        y = top + _ROW * r
        parts.append(line(0, y, width, y, RULE))
        parts.append(text(0, y + _ROW / 2 + 4, asked.said, anchor="start"))
        for n, scorer in enumerate(scorers):
            parts += _cell(left + column * (n + 0.5), y, asked, row[scorer], scorer)
    return svg(parts, height, f"Properties of {', '.join(scorers)}", width=width), width, height


def _html(rows: Mapping[Property, Mapping[str, Answer]], scorers: Sequence[str]) -> Markup:
    """The matrix as a table: it scrolls in its box where a drawing would shrink."""
    names = ["Property", *scorers]
    head = [tag("tr", [tag("th", s, scope="col", class_="text" if not n else None) for n, s in enumerate(names)])]
    body = []
    for asked, row in rows.items():
        cells = [tag("td", f"{_MARKS[row[s].verdict]} {_beside(asked, row[s])}".strip()) for s in scorers]
        body.append(tag("tr", tag("th", asked.said, scope="row", class_="text"), cells))
    return framed_table("Properties by scorer: ● yes, ○ no, ◐ undecided.", head, body)


def _beside(asked: Property, found: Answer) -> str:
    return _shown(asked, found.value) if found.verdict else ""


_MARKS = {"yes": "●", "no": "○", "open": "◐", "": DASH}


def _cell(x: float, y: float, asked: Property, found: Answer, scorer: str) -> list[Markup]:
    middle = y + 12
    if not found.verdict:
        return [text(x, y + _ROW / 2 + 4, DASH, colour=SOFT)]
    colour = COLOURS[0] if found.verdict != "no" else BASELINE_COLOUR
    said = {"yes": "yes", "no": "no", "open": "undecided"}[found.verdict]
    name = tag("title", f"{asked.said}, {scorer}: {said}")
    fill = colour if found.verdict == "yes" else "#fff"
    parts = [
        tag("circle", name, cx=coordinate(x), cy=coordinate(middle), r=7, fill=fill, stroke=colour, stroke_width=1.8)
    ]
    if found.verdict == "open":
        half = f"M{coordinate(x)} {coordinate(middle - 7)}A7 7 0 0 0 {coordinate(x)} {coordinate(middle + 7)}Z"
        parts.append(tag("path", d=half, fill=colour))
    parts.append(text(x, y + _ROW - 4, _shown(asked, found.value), size=SMALL, colour=INK))
    return parts


def _shown(asked: Property, value: float) -> str:
    return f"{number(100 * value)} %" if asked.percent else number(value, 2)


def _threshold(asked: Property) -> str:
    return f"{100 * asked.threshold:g} %" if asked.percent else f"{asked.threshold:g}"


def _measure_name(asked: Property) -> str:
    names = {"ssr": "SSR", "m_o": "M-O", "m_h": "M-H", "ordering": "ordering rate", "control_rate": "control rate"}
    where = ", part-level" if asked.benchmark == MTG and asked.metric != "m_o" else ""
    seen = ", foreground" if asked.condition == "foreground" else ""
    return f"{names.get(asked.metric, asked.metric)}{where}{seen}"
