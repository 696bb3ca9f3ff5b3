"""A figure: drawn panels with a legend and a caption, as one file that stands alone or as a section of the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from nearid_ray.reporting.markup import Markup, tag
from nearid_ray.reporting.svg import BOLD, INK, SOFT, WIDTH, coordinate, line, text, text_width, wrapped

FONTS = "'Source Sans 3','Segoe UI',Roboto,'Helvetica Neue',Arial,'DejaVu Sans',sans-serif"
_GAP, _MARGIN = 24.0, 20.0
_TITLE, _TEXT, _LEGEND = 20, 14, 13
DASH_PATTERN = "5 4"
"""Of dashed lines."""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One drawing of a figure."""

    svg: Markup
    """An `svg` element with a viewBox as large as the panel."""
    height: float
    width: float = WIDTH
    caption: str = ""
    """What this panel shows, in a line or two."""


@dataclass(frozen=True, kw_only=True)
class Key:
    """How a series looks, for the legend."""

    colour: str
    dashed: bool = False
    hollow: bool = False


@dataclass(frozen=True, kw_only=True)
class Figure:
    """Panels under one title, legend and caption."""

    name: str
    """Name of its file, without ending."""
    title: str
    caption: str
    panels: Sequence[Panel]
    legend: Mapping[str, Key] = field(default_factory=dict)
    columns: int = 2
    """Panels beside each other in the file; the page has as many as fit."""
    body: Markup = Markup("")
    """What the page shows instead of the panels, where text on a page reads better than a drawing."""


def colour_keys(colours: Mapping[str, str]) -> dict[str, Key]:
    """The legend of filled series."""
    return {name: Key(colour=colour) for name, colour in colours.items()}


def standalone(figure: Figure) -> str:
    """The figure as an SVG file of its own: title, legend, panels with their captions, caption. Nothing is fetched.

    The same figure gives the same bytes.
    """
    columns = max(1, min(figure.columns, len(figure.panels)))
    rows = [figure.panels[n : n + columns] for n in range(0, len(figure.panels), columns)]
    inner = max((sum(p.width for p in row) + _GAP * (len(row) - 1) for row in rows), default=WIDTH)
    parts: list[Markup] = []
    y = _MARGIN
    for said in wrapped(figure.title, inner / BOLD, _TITLE):
        y += _TITLE + 4
        parts.append(text(_MARGIN, y - 4, said, anchor="start", weight="600", size=_TITLE))
    y = _legend(parts, figure.legend, inner, y + 4) + 6
    for row in rows:
        x, bottom = _MARGIN, y
        for panel in row:
            parts.append(
                tag("svg", panel.svg, x=coordinate(x), y=coordinate(y), width=coordinate(panel.width),
                    height=coordinate(panel.height))
            )  # fmt: skip
            end = _lines(parts, wrapped(panel.caption, panel.width, _LEGEND), x, y + panel.height + 4, _LEGEND)
            x, bottom = x + panel.width + _GAP, max(bottom, end)
        y = bottom + 16
    y = _lines(parts, wrapped(figure.caption, inner, _TEXT), _MARGIN, y, _TEXT)
    width, height = inner + 2 * _MARGIN, y + _MARGIN
    ground = tag("rect", width=coordinate(width), height=coordinate(height), fill="#fff")
    return tag(
        "svg", tag("title", figure.title), tag("desc", figure.caption), ground, parts,
        xmlns="http://www.w3.org/2000/svg", viewBox=f"0 0 {coordinate(width)} {coordinate(height)}",
        width=coordinate(width), height=coordinate(height), font_family=FONTS, font_size=_LEGEND, fill=INK,
    ) + "\n"  # fmt: skip


def section(figure: Figure) -> list[Markup]:
    """The figure as a section of the page."""
    shown: list[Markup] = [figure.body] if figure.body else []
    if not figure.body:
        drawn = [tag("figure", panel.svg, tag("figcaption", panel.caption or figure.title)) for panel in figure.panels]
        shown = [tag("div", drawn, class_="figures")]
    # A body says in words what the legend says in colours.
    legend = Markup("") if figure.body else html_legend(figure.legend)
    return [tag("h2", figure.title), tag("p", figure.caption), legend, *shown]


def html_legend(legend: Mapping[str, Key]) -> Markup:
    """The legend as a list; nothing where it is empty."""
    if not legend:
        return Markup("")
    entries = [
        tag("li", tag("i", class_="dashed" if key.dashed else "hollow" if key.hollow else None, style=_look(key)), name)
        for name, key in legend.items()
    ]
    return tag("ul", entries, class_="legend")


def _look(key: Key) -> str:
    return f"border-color:{key.colour}" if key.dashed or key.hollow else f"background:{key.colour}"


def _legend(parts: list[Markup], legend: Mapping[str, Key], width: float, y: float) -> float:
    x, row = _MARGIN, 20.0
    for name, key in legend.items():
        taken = 22 + text_width(name, _LEGEND) + 16
        if x > _MARGIN and x + taken > _MARGIN + width:
            x, y = _MARGIN, y + row
        if key.dashed:
            parts.append(line(x, y + 9, x + 16, y + 9, key.colour, 2, dash=DASH_PATTERN))
        else:
            fill = "#fff" if key.hollow else key.colour
            parts.append(tag("rect", x=coordinate(x + 2), y=coordinate(y + 3), width=12, height=12, rx=2, fill=fill,
                             stroke=key.colour, stroke_width=1.6))  # fmt: skip
        parts.append(text(x + 22, y + 14, name, anchor="start", size=_LEGEND))
        x += taken
    return y + row if legend else y


def _lines(parts: list[Markup], said: Sequence[str], x: float, y: float, size: int) -> float:
    for one in said:
        y += size + 5
        parts.append(text(x, y - 4, one, anchor="start", size=size, colour=SOFT))
    return y
