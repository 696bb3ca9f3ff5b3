"""Figures 7 and 8: tuples to look at, each picture with every scorer's similarity to the anchor below it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from nearid_ray.reporting.figures.figure import Figure, Panel, colour_keys
from nearid_ray.reporting.markup import Markup, data_uri, join, number, tag
from nearid_ray.reporting.model import SheetPicture, SheetTuple
from nearid_ray.reporting.svg import (
    BOLD,
    COLOURS,
    INK,
    RULE,
    SMALL,
    SOFT,
    WIDTH,
    coordinate,
    picture,
    series_colours,
    shortened,
    svg,
    text,
)

WIN, LOSE = "#1e7a4c", "#b3372f"
_IN_A_ROW, _GAP, _LINE = 4, 10.0, 15.0
_SIDE = (WIDTH - _GAP * (_IN_A_ROW - 1)) / _IN_A_ROW
_EDGES = {"anchor": INK, "positive": COLOURS[0], "distractor": RULE}


def qualitative_figure(tuples: Sequence[SheetTuple], *, baseline: str = "", note: str = "") -> Figure:
    """Figure 7: anchor, positives and distractors with each scorer's similarity."""
    caption = (
        "Below every picture: its similarity to the anchor by each scorer. A distractor is won (✓) by a scorer when "
        "all of the anchor's positives are more similar to the anchor than the distractor is, and lost (✗) otherwise. "
        f"Dark edge: the anchor; blue: its identity's other views; light: distractors. {note}"
    )
    return _sheet("figure7-tuples", "Tuples", caption.strip(), tuples, baseline)


def part_figure(tuples: Sequence[SheetTuple], *, baseline: str = "", note: str = "") -> Figure:
    """Figure 8: distractors in which a part of the object changed, outlined, with the oracle."""
    caption = (
        "Distractors in which a part of the object changed: the object is outlined in blue, the part that changed in "
        "orange. Oracle: the share of the object that stayed the same. “View 1: ...” is in the background of "
        f"that view, not of the anchor. Similarities and marks as in the sheet of tuples. {note}"
    )
    return _sheet("figure8-parts", "Parts that changed", caption.strip(), tuples, baseline)


def won(picture: SheetPicture, item: SheetTuple, scorer: str) -> bool | None:
    """Whether all of the anchor's positives are more similar to it than a distractor is, to this scorer; None where
    a similarity is missing."""
    own = picture.similarities.get(scorer)
    others = [value for p in item.positives if (value := p.similarities.get(scorer)) is not None]
    if own is None or not math.isfinite(own) or not others:
        return None
    return all(value > own for value in others if math.isfinite(value))


def _sheet(name: str, title: str, caption: str, tuples: Sequence[SheetTuple], baseline: str) -> Figure:
    scorers = list(dict.fromkeys(scorer for item in tuples for p in _pictures(item) for scorer in p[1].similarities))
    scorers.sort(key=lambda scorer: scorer != baseline)
    colours = series_colours(scorers, baseline)
    panels = [_panel(item, scorers, colours) for item in tuples]
    legend = colour_keys(colours)
    return Figure(name=name, title=title, caption=caption, panels=panels, legend=legend, body=join(map(_html, tuples)))


def _pictures(item: SheetTuple) -> list[tuple[str, SheetPicture]]:
    return [
        ("anchor", item.anchor),
        *(("positive", picture) for picture in item.positives),
        *(("distractor", picture) for picture in item.distractors),
    ]


def _said(role: str, picture: SheetPicture) -> str:
    return f"{role}: {picture.label}" if picture.label and picture.label != role else role


def _panel(item: SheetTuple, scorers: Sequence[str], colours: Mapping[str, str]) -> Panel:
    shown = _pictures(item)
    heading = f"{item.identity_id} · {item.category}" if item.category else item.identity_id
    parts: list[Markup] = [text(0, 15, shortened(heading, WIDTH / BOLD), anchor="start", weight="600")]
    tops = [24.0]
    for n in range(0, len(shown), _IN_A_ROW):
        graded = any(one.oracle is not None for _, one in shown[n : n + _IN_A_ROW])
        tops.append(tops[-1] + _SIDE + _LINE * (1 + len(scorers) + graded) + 12)
    for n, (role, one) in enumerate(shown):
        x, y = (n % _IN_A_ROW) * (_SIDE + _GAP), tops[n // _IN_A_ROW]
        said = _said(role, one)
        parts.append(picture(x, y, _SIDE, one.image, name=f"{said} of {item.identity_id}", edge=_EDGES[role]))
        below = y + _SIDE + _LINE
        # The role is in the edge's colour; the label says which view or engine.
        label = shortened(one.label or role, _SIDE / BOLD, SMALL) if role != "anchor" else "anchor"
        parts.append(text(x, below - 2, label, anchor="start", size=SMALL, weight="600"))
        for k, scorer in enumerate(scorers):
            parts += _line(x, below + _LINE * (k + 1), role, one, item, scorer, colours[scorer])
        if one.oracle is not None:
            said = f"oracle {number(one.oracle, 3)}"
            parts.append(text(x, below + _LINE * (len(scorers) + 1) - 2, said, anchor="start", size=SMALL, colour=SOFT))
    height = tops[-1]
    label = f"Tuple {item.identity_id} with similarities"
    return Panel(svg=svg(parts, height, label), height=height)


def _line(x: float, y: float, role: str, one: SheetPicture, item: SheetTuple, scorer: str, colour: str) -> list[Markup]:
    if role == "anchor":
        return []
    parts = [tag("rect", x=coordinate(x), y=coordinate(y - 11), width=8, height=8, rx=1.5, fill=colour)]
    mark, ink = "", INK
    if role == "distractor" and (outcome := won(one, item, scorer)) is not None:
        mark, ink = (" ✓", WIN) if outcome else (" ✗", LOSE)
    said = number(one.similarities.get(scorer), 3) + mark
    parts.append(text(x + 14, y - 3, said, anchor="start", size=SMALL, colour=ink))
    return parts


def _html(item: SheetTuple) -> Markup:
    pictures = [_html_picture(role, one, item) for role, one in _pictures(item)]
    heading = tag("h3", item.identity_id, f" · {item.category}" if item.category else None)
    return tag("section", heading, tag("div", pictures, class_="pictures"), class_="tuple")


def _html_picture(role: str, one: SheetPicture, item: SheetTuple) -> Markup:
    said = _said(role, one)
    lines = []
    for scorer, similarity in one.similarities.items():
        mark, outcome = "", None
        if role == "distractor" and (is_won := won(one, item, scorer)) is not None:
            mark, outcome = (" ✓", "win") if is_won else (" ✗", "lose")
        lines.append([tag("dt", scorer), tag("dd", number(similarity, 3) + mark, class_=outcome)])
    if one.oracle is not None:
        lines.append([tag("dt", "oracle"), tag("dd", number(one.oracle, 3))])
    caption = tag("figcaption", tag("b", said), tag("dl", lines) if lines else None)
    alt = f"{said} of {item.identity_id}"
    return tag("figure", tag("img", src=data_uri(one.image), alt=alt, loading="lazy"), caption,
               class_=f"picture {role}")  # fmt: skip
