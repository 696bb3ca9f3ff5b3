"""Tables as text: columns for a terminal, and Markdown. A table is its lines of cells, the head first; rates of 0..1
stand in percent."""

import re
from collections.abc import Collection, Sequence

_MARKS = re.compile(r"[\\|*<`]|(?<!\w)_|_(?!\w)")
"""Inside a word an underscore is only itself."""


def aligned(lines: Sequence[Sequence[str]], *, right: Collection[int] = (), indent: str = "") -> str:
    """Cells in columns two spaces apart, for a terminal.

    Args:
        lines: as many cells in each, one line or more.
        right: places of the columns that end at one edge, as numbers do; the others begin at one.
        indent: what each line begins with.

    >>> print(aligned([["", "ssr"], ["frozen", "9.5"]], right=[1]))
            ssr
    frozen  9.5
    """
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rows = (
        [cell.rjust(width) if place in right else cell.ljust(width) for place, (cell, width) in enumerate(cells)]
        for cells in (zip(line, widths, strict=True) for line in lines)
    )
    return "\n".join((indent + "  ".join(row)).rstrip() for row in rows)


def percent(share: float | None, digits: int = 1) -> str:
    """A share of 1 in percent, without the sign; a hyphen where there is none.

    >>> percent(0.875), percent(0.875, 0), percent(float("nan")), percent(None)
    ('87.5', '88', '-', '-')
    """
    return "-" if share is None or share != share else f"{100 * share:.{digits}f}"


def markdown_table(lines: Sequence[Sequence[str]], *, right: Collection[int] = ()) -> str:
    """The table as GitHub draws it; cells are Markdown already (see `markdown_escape`).

    >>> print(markdown_table([["scorer", "ssr"], ["frozen", "9.5"]], right=[1]))
    | scorer | ssr |
    | --- | ---: |
    | frozen | 9.5 |
    """
    head, *body = lines
    rule = ["---:" if place in right else "---" for place in range(len(head))]
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, rule, *body])


def markdown_escape(text: str) -> str:
    r"""Text on one line that does not end a cell of a Markdown table or start emphasis.

    >>> print(markdown_escape("a|b *c* d_e _f_"))
    a\|b \*c\* d_e \_f\_
    """
    return _MARKS.sub(r"\\\g<0>", text.replace("\n", " "))
