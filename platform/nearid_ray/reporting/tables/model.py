"""A table of results: cells with ours, its interval and the published number, in rows and columns with names."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

NOT_RUN = "not run"
NOT_MEASURABLE = "not measurable"

Address = tuple[str, str]
"""(key of a row, key of a column)."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One number of ours beside the published one."""

    value: float = math.nan
    """Ours; nan = none."""
    low: float = math.nan
    """Lower end of its interval; nan where there is none."""
    high: float = math.nan
    published: float = math.nan
    """The paper's; nan = it prints none."""
    spread: float = math.nan
    """Ours, with a plus-minus: what the number differs by among its own parts; nan = none."""
    published_spread: float = math.nan
    """The paper's plus-minus; nan = it prints none."""
    missing: str = NOT_RUN
    """Said in place of a number of ours that there is not."""
    coverage: float = 1.0
    """Share of what should have been measured that was."""
    marked: bool = False
    """Shown with the table's mark (`Table.mark`)."""
    against: Address | None = None
    """The cell that this one is compared with, for the verdict."""

    @property
    def known(self) -> bool:
        """Whether there is a number of ours."""
        return not math.isnan(self.value)

    @property
    def has_published(self) -> bool:
        """Whether the paper prints one."""
        return not math.isnan(self.published)


EMPTY = Cell(missing="")
"""A cell in which neither the paper nor we have anything to show."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """What a column holds."""

    key: str
    header: str
    over: str = ""
    """Heading that neighbouring columns share, e.g. the benchmark."""
    percent: bool = False
    """Whether fractions are shown as percent; otherwise three decimals."""
    signed: bool = False
    """Whether a plus is shown."""
    best: bool = True
    """Whether the highest number is bold."""
    resolution: float = 0.0
    """Published numbers that differ by less count as equal in a verdict: the paper gives no intervals, and this is
    about one standard error at the size of its test set."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row: its cells in the order of the table's columns."""

    key: str
    label: str
    cells: tuple[Cell, ...]
    ours_only: bool = False
    """Whether the paper's table has no such row."""
    never_best: bool = False
    """Whether its published numbers are left out when the best is looked for."""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What the paper's numbers say about two cells; ours may agree or not. The sign follows from the numbers."""

    first: Address
    second: Address
    says: str
    """E.g. `alpha 0 to 2: M-O`; `rises` or `falls` follows it."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table as it is shown."""

    name: str
    """E.g. table8; file names follow from it."""
    title: str
    corner: str
    """Heading of the column of labels."""
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    """Sentences of the caption: what data, which rows are whose."""
    claims: tuple[Claim, ...] = ()
    mark: str = "°"

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row.cells) != len(self.columns):
                raise ValueError(
                    f"{self.name}, row {row.key}: {len(row.cells)} cells, {len(self.columns)} columns; expected as many"
                )

    def cell(self, address: Address) -> Cell:
        """The cell of a row and a column; an empty one where the table has no such row or column."""
        for row in self.rows:
            if row.key == address[0]:
                for column, cell in zip(self.columns, row.cells, strict=True):
                    if column.key == address[1]:
                        return cell
        return EMPTY

    def label(self, row: str) -> str:
        """The label of a row; its key where there is none."""
        return next((entry.label for entry in self.rows if entry.key == row), row)

    def column(self, key: str) -> Column:
        """A column by its key; KeyError where there is none."""
        for column in self.columns:
            if column.key == key:
                return column
        raise KeyError(key)

    def cells(self) -> Iterator[tuple[Row, Column, Cell]]:
        """All cells, by row."""
        for row in self.rows:
            for column, cell in zip(self.columns, row.cells, strict=True):
                yield row, column, cell

    def best(self, *, published: bool) -> set[Address]:
        """Addresses of the highest number of each column, ours or published; ties all count, as printed."""
        found: set[Address] = set()
        for place, column in enumerate(self.columns):
            if not column.best:
                continue
            shown = [
                (row.key, round(number, 4 if column.percent else 3))
                for row in self.rows
                if not (published and row.never_best)
                for number in [row.cells[place].published if published else row.cells[place].value]
                if not math.isnan(number)
            ]
            if len(shown) > 1:
                top = max(number for _, number in shown)
                found |= {(key, column.key) for key, number in shown if number == top}
        return found

    def shared_coverage(self, column: str) -> float:
        """The coverage of all of a column's numbers, rounded down to percent; nan where they differ."""
        place = [one.key for one in self.columns].index(column)
        found = {math.floor(100 * row.cells[place].coverage) for row in self.rows if row.cells[place].known}
        return found.pop() / 100 if len(found) == 1 else math.nan

    @property
    def caption_notes(self) -> str:
        """The notes as one text, with a sentence on what could not be measured in whole columns."""
        shares: dict[float, list[str]] = {}
        for column in self.columns:
            share = self.shared_coverage(column.key)
            if share < 1:
                shares.setdefault(share, []).append(f"{column.over} {column.header}".strip())
        said = [f"{share:.0%} measured: {', '.join(names)}." for share, names in shares.items()]
        return " ".join([*self.notes, *said])

    @property
    def caption(self) -> str:
        """The title and the notes as one text."""
        return f"{self.title}. {self.caption_notes}".rstrip()
