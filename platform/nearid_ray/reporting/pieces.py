"""Pieces of HTML that several sections share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from nearid_ray.reporting.markup import Markup, tag


def fact_list(items: Iterable[tuple[str, str]]) -> Markup:
    """Names and what is said of them."""
    return tag("dl", [[tag("dt", name), tag("dd", value)] for name, value in items], class_="facts")


def framed_table(caption: str, head: Sequence[Markup], body: Sequence[Markup]) -> Markup:
    """A table that scrolls in its own box where it is wider than the page."""
    table = tag("table", tag("thead", head), tag("tbody", body), aria_label=caption)
    box = tag("div", table, class_="scroll", tabindex=0, role="region", aria_label=caption)
    # The caption stands outside the scrolling box, so that it wraps at the page's width and not at the table's.
    return tag("figure", tag("figcaption", caption), box)
