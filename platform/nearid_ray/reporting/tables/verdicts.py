"""Whether our numbers move as the paper's do. Never whether they are equal: other data gives other numbers.

The rules, all of them:

- Two numbers of ours differ where the interval of their difference leaves 0 out. It is made of the two intervals
  (MOVER, Zou and Donner 2008: the distances to the nearer ends, added in quadrature), as for independent samples. Ours
  are mostly of the same pictures, for which this is too wide: it errs towards `unclear`.
- Two published numbers differ where they are further apart than the column's `resolution`; otherwise they are `flat`.
- A cell (or claim) `agrees` where both differ in the same direction, `disagrees` where in opposite ones, and is
  `unclear` where ours do not differ.
- The order of a column's rows agrees where at least three quarters of the pairs of rows that differ both here and in
  the paper stand in the paper's order, disagrees where at most a quarter do, and is mixed in between. Fewer than three
  such pairs are no order.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

from nearid_ray.reporting.tables.model import NOT_RUN, Cell, Column, Row, Table
from nearid_ray.reporting.tables.render import interval, number, published_number

Word = Literal["agrees", "disagrees", "mixed", "unclear", "flat in the paper", "not run", "reference", "not published"]

SAME_ORDER, OTHER_ORDER = 0.75, 0.25
"""Shares of pairs in the paper's order from which, and up to which, an order agrees and disagrees."""


FEWEST_PAIRS = 3
"""An order of fewer pairs is no order."""


@dataclass(frozen=True, kw_only=True)
class CellVerdict:
    """A cell's verdict: does it differ from the cell it is compared with as it does in the paper?"""

    row: Row
    column: Column
    cell: Cell
    word: Word


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A statement about the trend, and the verdict on it."""

    says: str
    word: Word
    numbers: str = ""
    """What it rests on."""


def direction(first: Cell, second: Cell) -> int:
    """1 where our second number is above the first, -1 where below, 0 where their intervals cannot tell (or are not
    there)."""
    gap = second.value - first.value
    if any(math.isnan(part) for part in (gap, first.low, first.high, second.low, second.high)):
        return 0
    below = gap - math.hypot(second.value - second.low, first.high - first.value)
    above = gap + math.hypot(second.high - second.value, first.value - first.low)
    return 1 if below > 0 else -1 if above < 0 else 0


def published_direction(first: Cell, second: Cell, resolution: float) -> int:
    """The same of the published numbers, which differ where they are further apart than `resolution`."""
    gap = second.published - first.published
    if math.isnan(gap) or abs(gap) <= resolution:
        return 0
    return 1 if gap > 0 else -1


def compare(first: Cell, second: Cell, resolution: float) -> Word:
    """Whether ours differ as the published ones do."""
    if not (first.has_published and second.has_published):
        return "not published"
    if not (first.known and second.known):
        return "not run"
    theirs = published_direction(first, second, resolution)
    if not theirs:
        return "flat in the paper"
    ours = direction(first, second)
    return "unclear" if not ours else "agrees" if ours == theirs else "disagrees"


def judge_cells(table: Table) -> list[CellVerdict]:
    """A verdict for each cell that the paper has a number for."""
    found = []
    for row, column, cell in table.cells():
        if not cell.has_published:
            continue
        if cell.against is None:
            word: Word = "reference" if cell.known else "not run"
        else:
            word = compare(table.cell(cell.against), cell, column.resolution)
        found.append(CellVerdict(row=row, column=column, cell=cell, word=word))
    return found


def judge_order(table: Table) -> list[Finding]:
    """A verdict for each column on the order of its rows, where two rows differ both here and in the paper."""
    found = []
    for place, column in enumerate(table.columns):
        signs = []
        for one, other in combinations((row.cells[place] for row in table.rows), 2):
            ours, theirs = direction(one, other), published_direction(one, other, column.resolution)
            if ours and theirs:
                signs.append(ours == theirs)
        if len(signs) < FEWEST_PAIRS:
            continue
        share = sum(signs) / len(signs)
        word: Word = "agrees" if share >= SAME_ORDER else "disagrees" if share <= OTHER_ORDER else "mixed"
        name = f"{column.over} {column.header}".strip()
        numbers = f"{sum(signs)} of {len(signs)} pairs that differ stand as in the paper"
        found.append(Finding(says=f"order of rows by {name}", word=word, numbers=numbers))
    return found


def judge_claims(table: Table) -> list[Finding]:
    """A verdict on each of the table's claims."""
    found = []
    for claim in table.claims:
        first, second = table.cell(claim.first), table.cell(claim.second)
        column = table.column(claim.second[1])
        theirs = published_direction(first, second, column.resolution)
        moves = {1: "rises", -1: "falls", 0: "stays"}[theirs]
        paper = f"{published_number(first.published, column)} to {published_number(second.published, column)}"
        numbers = f"{paper} in the paper, {_shown(first, column)} to {_shown(second, column)} here"
        word = compare(first, second, column.resolution)
        found.append(Finding(says=f"{claim.says} {moves}", word=word, numbers=numbers))
    return found


def closing_sentence(findings: Iterable[Finding]) -> str:
    """Where the trend of the paper is seen, where not, and what cannot be told."""
    by_word: dict[str, list[str]] = {}
    for finding in findings:
        by_word.setdefault(finding.word, []).append(finding.says)
    said = {
        "agrees": "Agrees with the paper's trend",
        "disagrees": "Disagrees with it",
        "mixed": "Partly agrees",
        "unclear": "Our intervals cannot tell",
        "flat in the paper": "The paper itself shows no clear difference",
        "not run": "Not run",
    }
    parts = [f"{start}: {'; '.join(by_word[word])}." for word, start in said.items() if word in by_word]
    return "\n".join(parts) if parts else "Nothing here can be compared with the paper."


def verdict_rows(verdicts: Iterable[CellVerdict]) -> list[list[str]]:
    """`row | column | ours | published | interval | verdict`, with a line of headings; what was not run is left to
    the table."""
    lines = [["row", "measure", "ours", "published", "interval", "verdict"]]
    for one in verdicts:
        if one.cell.known:
            lines.append(
                [
                    one.row.label,
                    f"{one.column.over} {one.column.header}".strip(),
                    number(one.cell.value, one.column),
                    published_number(one.cell.published, one.column),
                    interval(one.cell, one.column) or "none",
                    one.word,
                ]
            )
    return lines


def _shown(cell: Cell, column: Column) -> str:
    return number(cell.value, column) if cell.known else cell.missing or NOT_RUN
