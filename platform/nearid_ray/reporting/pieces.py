"""Pieces of HTML that several sections share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from nearid_ray.reporting.markup import Child, Markup, tag
from nearid_ray.reporting.style import STYLE


def fact_list(items: Iterable[tuple[str, str]]) -> Markup:
    """Names and what is said of them."""
    return tag("dl", [[tag("dt", name), tag("dd", value)] for name, value in items], class_="facts")


def table_of_lines(lines: Sequence[Sequence[str]], *, words: bool = False) -> Markup:
    """Lines of cells, the head first, as a table whose first column stays in sight; `words` stand on the left, numbers
    on the right. It scrolls in its own box where it is wider than the page."""
    head, *body = lines
    side = "text" if words else None
    heads = [tag("th", cell, class_="first" if place == 0 else side) for place, cell in enumerate(head)]
    rows = [
        tag("tr", tag("th", row[0], class_="first"), [tag("td", cell, class_=side) for cell in row[1:]]) for row in body
    ]
    return tag("div", tag("table", tag("thead", tag("tr", heads)), tag("tbody", rows)), class_="scroll", tabindex=0)


def document(title: str, body: Sequence[Child]) -> str:
    """A whole page in the report's style. It makes no request of any kind."""
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("link", rel="icon", href="data:,"),  # or browsers ask the server for one
        tag("title", title),
        tag("style", Markup(STYLE)),
    )
    return "<!doctype html>\n" + tag("html", head, tag("body", body), lang="en")


def framed_table(caption: str, head: Sequence[Markup], body: Sequence[Markup]) -> Markup:
    """A table that scrolls in its own box where it is wider than the page."""
    table = tag("table", tag("thead", head), tag("tbody", body), aria_label=caption)
    box = tag("div", table, class_="scroll", tabindex=0, role="region", aria_label=caption)
    # The caption stands outside the scrolling box, so that it wraps at the page's width and not at the table's.
    return tag("figure", tag("figcaption", caption), box)
