"""HTML and SVG out of function calls: whatever is not markup already is escaped, so no text can break the page."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable

DASH = "\N{EN DASH}"
"""Stands where there is no number."""

VOID_TAGS = frozenset({"img", "meta", "link", "br", "hr"})


class Markup(str):
    """Text that is HTML already and is not escaped again."""

    __slots__ = ()


Child = str | int | float | None | Iterable["Child"]


def tag(name: str, /, *children: Child, **attributes: str | int | float | bool | None) -> Markup:
    """An element. Children that are not `Markup` are escaped; iterables are joined; None is nothing.

    Attributes: a trailing underscore is dropped (`class_`), other underscores become hyphens; None and False leave
    the attribute out, True gives its name alone.

    >>> tag("p", "a < b", tag("b", 1), class_="note", hidden=False)
    '<p class="note">a &lt; b<b>1</b></p>'
    """
    words = [name]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        attribute = key.rstrip("_").replace("_", "-")
        words.append(attribute if value is True else f'{attribute}="{html.escape(str(value), quote=True)}"')
    if name in VOID_TAGS:
        return Markup(f"<{' '.join(words)}>")
    return Markup(f"<{' '.join(words)}>{join(children)}</{name}>")


def join(children: Child) -> Markup:
    """Children as one piece of markup.

    >>> join(["<", Markup("<br>"), None, 2])
    '&lt;<br>2'
    """
    if children is None:
        return Markup("")
    if isinstance(children, Markup):
        return children
    if isinstance(children, str):
        return Markup(html.escape(children))
    if isinstance(children, (int, float)):
        return Markup(str(children))
    return Markup("".join(join(child) for child in children))


def data_uri(data: bytes) -> str:
    """An encoded PNG, JPEG or WebP picture as a data URI.

    Raises:
        ValueError: the bytes are none of these.
    """
    if data.startswith(b"\x89PNG"):
        kind = "png"
    elif data.startswith(b"\xff\xd8"):
        kind = "jpeg"
    elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        kind = "webp"
    else:
        raise ValueError(f"the picture starts with {data[:8]!r}; expected PNG, JPEG or WebP")
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def number(value: float | None, digits: int = 1) -> str:
    """A number for people; an en dash where there is none.

    >>> number(12.345), number(float("nan")) == DASH, number(-0.04)
    ('12.3', True, '0.0')
    """
    if value is None or value != value:
        return DASH
    text = f"{value:.{digits}f}"
    return text.lstrip("-") if float(text) == 0 else text.replace("-", "\N{MINUS SIGN}")


def percent(value: float | None, digits: int = 1) -> str:
    """A rate of 0..1 in percent, without the sign.

    >>> percent(0.875)
    '87.5'
    """
    return number(None if value is None else 100 * value, digits)
