"""The tables of the paper that have one row a scorer: 1, 3, 6, 8, 9 and 10."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from nearid_ray.evaluation.measures import MTG, NEARID
from nearid_ray.reporting.tables.measured import Measured
from nearid_ray.reporting.tables.model import Cell, Claim, Column, Row, Table
from nearid_ray.reporting.tables.published import COLLAPSED, published_value
from nearid_ray.reporting.tables.rows import DREAMBENCH, LABELS, TITLES, scorers_of


@dataclass(frozen=True)
class _Measured:
    """Where the numbers of a column come from."""

    benchmark: str
    metric: str


_COLUMNS: Mapping[str, tuple[Column, _Measured]] = {
    column.key: (column, source)
    for column, source in (
        (
            Column(key="nearid_ssr", header="SSR", over="NearID", percent=True, resolution=0.005),
            _Measured(NEARID, "ssr"),
        ),
        (
            Column(key="nearid_pa", header="PA", over="NearID", percent=True, resolution=0.005),
            _Measured(NEARID, "pa"),
        ),
        (
            Column(key="ordering", header="ordering", over="NearID", percent=True),
            _Measured(NEARID, "ordering"),
        ),
        (Column(key="mtg_mo", header="M-O", over="MTG", resolution=0.05), _Measured(MTG, "m_o")),
        (Column(key="mtg_mo_pair", header="M-O pair", over="MTG", resolution=0.05), _Measured(MTG, "m_o_pair")),
        (Column(key="mtg_ssr", header="SSR", over="MTG", percent=True, resolution=0.05), _Measured(MTG, "ssr")),
        (Column(key="mtg_pa", header="PA", over="MTG", percent=True, resolution=0.05), _Measured(MTG, "pa")),
        (
            Column(key="dbpp_mh", header="M-H", over="DreamBench++", resolution=0.02),
            _Measured(DREAMBENCH, "m_h"),
        ),
    )
}
"""Columns that the tables share. Resolutions: see `Column.resolution`; 3,500 units of NearID, 100 samples of MTG."""
DELTA = Column(key="delta_mh", header="Δ M-H", over="DreamBench++", signed=True, best=False, resolution=0.02)

_ALL = ("nearid_ssr", "nearid_pa", "mtg_mo", "mtg_mo_pair", "mtg_ssr", "mtg_pa", "dbpp_mh")
_ABLATION = ("nearid_ssr", "nearid_pa", "ordering", "mtg_mo", "mtg_mo_pair", "mtg_ssr", "mtg_pa", "dbpp_mh")

_ORDERING_NOTE = (
    "Ordering: how often a distractor ranks above a random identity, which the ranking term is for; the paper has no "
    "such column."
)
_COLLAPSED_NOTE = "† collapsed, says the paper."


@dataclass(frozen=True, kw_only=True)
class _Layout:
    """A table with one row a scorer."""

    corner: str
    columns: tuple[str, ...]
    reference: str
    """The row that others are compared with."""
    claims: tuple[tuple[str, str, str], ...]
    """(first row, second row, column) that are compared."""
    notes: tuple[str, ...] = ()


_LAYOUTS: Mapping[str, _Layout] = {
    "table1": _Layout(
        corner="scorer",
        columns=_ALL,
        reference="siglip2-so400m",
        claims=(
            ("siglip2-so400m", "nearid", "nearid_ssr"),
            ("siglip2-so400m", "nearid", "mtg_mo"),
            ("siglip2-so400m", "nearid", "mtg_ssr"),
            ("siglip2-so400m", "nearid", "dbpp_mh"),
            ("vsm", "nearid", "mtg_mo"),
            ("qwen3-vl-30b", "nearid", "nearid_ssr"),
        ),
    ),
    "table3": _Layout(
        corner="objective",
        columns=_ABLATION,
        reference="frozen",
        claims=(
            ("frozen", "nearid", "nearid_ssr"),
            ("frozen", "nearid", "mtg_mo"),
            ("infonce", "nearid", "nearid_ssr"),
            ("infonce", "nearid", "mtg_mo"),
            ("infonce", "infonce-distractors", "nearid_ssr"),
            ("infonce-distractors", "nearid", "mtg_mo"),
            ("infonce-distractors", "nearid", "mtg_ssr"),
            ("infonce-distractors", "nearid", "dbpp_mh"),
            ("infonce-oracle", "nearid", "mtg_mo"),
            ("infonce-distractors-oracle", "nearid", "mtg_mo"),
            ("siglip-rank", "nearid", "nearid_ssr"),
            ("circle-rank", "nearid", "mtg_mo"),
            ("nearid", "nearid-cohesion", "mtg_mo"),
        ),
        notes=(_COLLAPSED_NOTE, _ORDERING_NOTE),
    ),
    "table6": _Layout(
        corner="training data",
        columns=tuple(name for name in _ALL if name != "dbpp_mh"),
        reference="frozen",
        claims=(
            ("nearid-only", "nearid+mtg", "mtg_mo"),
            ("nearid-only", "nearid+mtg", "mtg_ssr"),
            ("mtg-only", "nearid+mtg", "nearid_ssr"),
            ("nearid-only", "single-engine", "nearid_ssr"),
            ("nearid-only", "single-engine", "mtg_mo"),
        ),
    ),
    "table8": _Layout(
        corner="α",
        columns=_ABLATION,
        reference="0",
        claims=(*(("0", "2", column) for column in _ALL), ("0", "0.5", "mtg_mo")),
        notes=(_ORDERING_NOTE,),
    ),
    "table9": _Layout(
        corner="β",
        columns=_ABLATION,
        reference="0",
        claims=tuple(("0", "0.3", column) for column in _ALL),
        notes=(_ORDERING_NOTE,),
    ),
    "table10": _Layout(
        corner="objective",
        columns=("nearid_ssr", "nearid_pa", "mtg_mo", "mtg_mo_pair", "dbpp_mh"),
        reference="infonce",
        claims=(
            ("infonce", "infonce-distractors", "nearid_ssr"),
            ("infonce", "infonce-distractors", "mtg_mo_pair"),
            ("infonce", "infonce-distractors", "dbpp_mh"),
            ("infonce", "infonce-oracle", "nearid_ssr"),
            ("infonce-oracle", "nearid", "mtg_mo"),
            ("infonce", "nearid", "nearid_ssr"),
            ("infonce", "nearid", "mtg_mo"),
            ("infonce", "nearid", "dbpp_mh"),
        ),
        notes=(_COLLAPSED_NOTE,),
    ),
}


def by_scorer(name: str, measured: Measured, given: Mapping[str, str], notes: tuple[str, ...]) -> Table:
    """Tables 1, 3, 6, 8, 9 and 10: one row a scorer."""
    layout = _LAYOUTS[name]
    scorers = scorers_of(name, measured.scorers, given)
    labels = LABELS[name]
    columns = tuple(_COLUMNS[key][0] for key in layout.columns)
    made = []
    for key in (*labels, *(row for row in scorers if row not in labels)):
        cells = []
        for column in columns:
            source = _COLUMNS[column.key][1]
            cells.append(
                measured.cell(
                    scorers.get(key, ""),
                    source.benchmark,
                    source.metric,
                    published=published_value(name, key, column.key),
                    against=None if key == layout.reference else (layout.reference, column.key),
                )
            )
        made.append(
            Row(
                key=key,
                label=labels.get(key, _other_label(name, scorers.get(key, key))),
                cells=tuple(cells),
                ours_only=key not in labels,
                never_best=key in COLLAPSED,
            )
        )
    table = Table(
        name=name,
        title=TITLES[name],
        corner=layout.corner,
        columns=columns,
        rows=tuple(made),
        notes=(*notes, *layout.notes),
        claims=_claims(layout, labels),
    )
    return with_delta(table) if name == "table10" else table


def with_delta(table: Table, reference: str = "infonce") -> Table:
    """Table 10 with the change of M-H against InfoNCE, a column without intervals."""
    base = table.cell((reference, "dbpp_mh"))
    rows = []
    for row in table.rows:
        mine = table.cell((row.key, "dbpp_mh"))
        delta = Cell(
            value=mine.value - base.value,
            published=published_value(table.name, row.key, DELTA.key),
            against=(reference, DELTA.key) if row.key != reference else None,
        )
        rows.append(Row(**{**vars(row), "cells": (*row.cells, delta)}))
    return Table(**{**vars(table), "columns": (*table.columns, DELTA), "rows": tuple(rows)})


def _claims(layout: _Layout, labels: Mapping[str, str]) -> tuple[Claim, ...]:
    made = []
    for first, second, column in layout.claims:
        head = _COLUMNS[column][0]
        says = f"{_plain(labels[first])} → {_plain(labels[second])}: {head.over} {head.header}"
        made.append(Claim(first=(first, column), second=(second, column), says=says))
    return tuple(made)


def _plain(label: str) -> str:
    return label.removesuffix(" †")


def _other_label(name: str, scorer: str) -> str:
    """Label of a scorer that the paper's table has no row for."""
    if name in ("table8", "table9"):
        parts = scorer.replace("=", "-").split("-")
        value = parts[-1] if not math.isnan(_number(parts[-1])) else scorer
        return f"{'α' if name == 'table8' else 'β'} = {value} (ours only)"
    return f"{scorer} (ours only)"


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
