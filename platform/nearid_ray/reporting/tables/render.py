"""A table as Markdown, LaTeX (booktabs), CSV, and plain lines for a terminal."""

from __future__ import annotations

import csv
import io
import math
from itertools import groupby

from nearid_ray.reporting.tables.model import Cell, Column, Table
from nearid_ray.text_tables import markdown_escape, markdown_table

_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "°": r"$^\circ$",
    "†": r"$^\dagger$",
    "α": r"$\alpha$",
    "β": r"$\beta$",
    "Δ": r"$\Delta$",
    "→": r"$\to$",
    "·": r"$\cdot$",
    "±": r"$\pm$",
    "−": "-",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
}


def latex_escape(text: str) -> str:
    r"""Text that LaTeX prints as it is.

    >>> print(latex_escape("50 % of a_b & c^2 {x} \\"))
    50 \% of a\_b \& c\textasciicircum{}2 \{x\} \textbackslash{}
    """
    return "".join(_LATEX.get(letter, letter) for letter in text)


def number(value: float, column: Column) -> str:
    """One of our numbers as shown: percent with one decimal, others with three; empty for nan.

    >>> number(0.99174, Column(key="", header="", percent=True)), number(0.4651, Column(key="", header=""))
    ('99.2', '0.465')
    """
    if math.isnan(value):
        return ""
    sign = "+" if column.signed else ""
    return f"{100 * value:{sign}.1f}" if column.percent else f"{value:{sign}.3f}"


def published_number(value: float, column: Column) -> str:
    """A published number with the decimals it was printed with, at least one for percent.

    >>> percent = Column(key="", header="", percent=True)
    >>> published_number(0.9917, percent), published_number(0.35, percent)
    ('99.17', '35.0')
    """
    if math.isnan(value):
        return ""
    if not column.percent:
        return number(value, column)
    text = f"{100 * value:.2f}"
    return text.removesuffix("0")


def plus_minus(value: float) -> str:
    """A spread as shown, after the number it belongs to; empty for nan.

    >>> plus_minus(0.0071), plus_minus(float("nan"))
    (' ±0.007', '')
    """
    return "" if math.isnan(value) else f" ±{value:.3f}"


def interval(cell: Cell, column: Column) -> str:
    """`[low, high]` as shown; empty where there is none."""
    if math.isnan(cell.low) or math.isnan(cell.high):
        return ""
    return f"[{number(cell.low, column)}, {number(cell.high, column)}]"


def to_markdown(table: Table) -> str:
    """The caption and the table; ours, [interval], (published); the best of ours and of the paper's in bold."""
    ours, theirs = table.best(published=False), table.best(published=True)
    heads = [f"{column.over} {column.header}".strip() for column in table.columns]
    lines = [
        f"**{markdown_escape(table.title)}.** {markdown_escape(table.caption_notes)}".rstrip(),
        "",
    ]
    rows = [[markdown_escape(table.corner), *map(markdown_escape, heads)]]
    for row in table.rows:
        cells = [markdown_escape(row.label)]
        for column, cell in zip(table.columns, row.cells, strict=True):
            address = (row.key, column.key)
            cells.append(" ".join(_parts(table, cell, column, address in ours, address in theirs, "**{}**")))
        rows.append(cells)
    return "\n".join([*lines, markdown_table(rows, right=range(1, len(heads) + 1))]) + "\n"


def to_latex(table: Table) -> str:
    """A `table` environment for booktabs; ours, the interval small, the published number in parentheses."""
    ours, theirs = table.best(published=False), table.best(published=True)
    lines = [
        r"\begin{table}[t]",
        r"\centering",
        rf"\caption{{{latex_escape(table.caption)}}}",
        rf"\label{{tab:{table.name}}}",
        rf"\begin{{tabular}}{{l{'r' * len(table.columns)}}}",
        r"\toprule",
        *_spanners(table),
        " & ".join(latex_escape(head) for head in [table.corner, *(c.header for c in table.columns)]) + r" \\",
        r"\midrule",
    ]
    for row in table.rows:
        cells = [latex_escape(row.label)]
        for column, cell in zip(table.columns, row.cells, strict=True):
            address = (row.key, column.key)
            parts = _parts(table, cell, column, address in ours, address in theirs, r"\textbf{{{}}}")
            shown = [
                "".join(_LATEX[letter] if letter in ("%", "±", table.mark) else letter for letter in p) for p in parts
            ]
            cells.append(" ".join(rf"{{\tiny {part}}}" if part.startswith("[") else part for part in shown))
        lines.append(" & ".join(cells) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}", r"\end{table}"]
    return "\n".join(lines) + "\n"


def to_csv(table: Table) -> str:
    """One line a row; for each column its number, interval and published number, and, in a table that has them, the
    spreads of both. Rates are fractions."""
    text = io.StringIO()
    out = csv.writer(text, lineterminator="\n")
    has_spreads = not all(math.isnan(cell.spread) and math.isnan(cell.published_spread) for *_, cell in table.cells())
    parts = ("", "_low", "_high", "_published", *(("_spread", "_published_spread") if has_spreads else ()))
    out.writerow(["row", "label", *(column.key + part for column in table.columns for part in parts)])
    for row in table.rows:
        values = [
            (cell.value, cell.low, cell.high, cell.published, cell.spread, cell.published_spread)[: len(parts)]
            for cell in row.cells
        ]
        numbers = ["" if math.isnan(value) else f"{value:.6g}" for cell in values for value in cell]
        out.writerow([row.key, row.label, *numbers])
    return text.getvalue()


def _parts(table: Table, cell: Cell, column: Column, best: bool, best_published: bool, bold: str) -> list[str]:
    """Ours (or why not), its interval, the published number; those that are there."""
    mark = table.mark if cell.marked else ""
    shown = number(cell.value, column) + mark + plus_minus(cell.spread) if cell.known else cell.missing
    found = [bold.format(shown) if best else shown, interval(cell, column) if cell.known else ""]
    if cell.known and cell.coverage < 1 and math.isnan(table.shared_coverage(column.key)):
        found.append(f"{math.floor(100 * cell.coverage)} % measured")
    if cell.has_published:
        theirs = published_number(cell.published, column) + plus_minus(cell.published_spread)
        found.append(f"({bold.format(theirs)})" if best_published else f"({theirs})")
    return [part for part in found if part]


def _spanners(table: Table) -> list[str]:
    """The line of shared headings and its rules, where any column has one."""
    if not any(column.over for column in table.columns):
        return []
    heads, rules, first = [""], [], 2
    for over, members in groupby(table.columns, key=lambda column: column.over):
        count = len(list(members))
        heads.append(rf"\multicolumn{{{count}}}{{c}}{{{latex_escape(over)}}}")
        if over:
            rules.append(rf"\cmidrule(lr){{{first}-{first + count - 1}}}")
        first += count
    return [" & ".join(heads) + r" \\", " ".join(rules)]
