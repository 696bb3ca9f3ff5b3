"""Any table of the paper by its name, filled with measures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from nearid_ray.errors import UsageError
from nearid_ray.reporting.tables.layouts import by_scorer
from nearid_ray.reporting.tables.layouts_more import by_condition, by_method, by_source
from nearid_ray.reporting.tables.measured import Measured
from nearid_ray.reporting.tables.model import Table
from nearid_ray.reporting.tables.published import SOURCE
from nearid_ray.reporting.tables.rows import TITLES

_OURS = "Ours [95 % interval over identities] (published); best of each column in bold."


def lay_out(
    name: str, measured: Measured, *, rows: Mapping[str, str] | None = None, notes: Sequence[str] = ()
) -> Table:
    """A table of the paper filled with measures; what was not measured is said to be not run.

    Args:
        name: table1, table2, table3, or table5 to table10.
        measured: measures of one or more evaluations of the same data.
        rows: published row by scorer, where names alone would not tell (see `rows.row_of`).
        notes: sentences for the caption: which data, which backbone.

    Raises:
        UsageError: the name is none of these.
    """
    if name not in TITLES:
        raise UsageError(f"{name!r} is no table; expected one of {', '.join(TITLES)}")
    made_of = {"table2": by_method, "table5": by_source, "table7": by_condition}
    if name in made_of:
        return made_of[name](measured, rows or {}, caption(notes))
    return by_scorer(name, measured, rows or {}, caption(notes))


def caption(notes: Sequence[str]) -> tuple[str, ...]:
    """The caption's sentences: the data first, then how to read a cell."""
    return (*notes, _OURS, f"Published: {SOURCE}.")
