"""Tables of how well a head generalises: engines it never saw, artefact controls, real photos. Not in the paper."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from nearid_ray.evaluation.measures import MTG, NEARID
from nearid_ray.reporting.tables.measured import Measured
from nearid_ray.reporting.tables.model import Cell, Column, Row, Table
from nearid_ray.reporting.tables.render import interval, number
from nearid_ray.reporting.tables.verdicts import direction

FROZEN = "frozen"
_CELL = "[95 % interval over identities]; best of each column in bold."


def left_out_table(
    measured: Measured, trained_on: Mapping[str, Collection[str]], engines: Sequence[str], notes: Sequence[str] = ()
) -> Table:
    """Heads by the engine they were trained without, down; SSR on each engine, across; unseen engines are marked.

    Args:
        measured: measures of the frozen backbone and all these heads.
        trained_on: engines that each head was trained on; the first head saw all that any saw.
        engines: the engines across, in order.
    """
    columns = tuple(Column(key=engine, header=engine, percent=True) for engine in engines)
    every = next(iter(trained_on.values()))
    rows = []
    for scorer in (FROZEN, *trained_on):
        seen = trained_on.get(scorer, ())
        cells = []
        for engine in engines:
            cell = measured.cell(scorer, NEARID, "ssr", name=engine)
            if not cell.known:
                cell = measured.cell(scorer, MTG, "ssr", name=engine)
            cells.append(replace(cell, marked=scorer != FROZEN and engine not in seen))
        without = [engine for engine in every if engine not in seen]
        label = FROZEN if scorer == FROZEN else f"without {', '.join(without)}" if without else "all training engines"
        rows.append(Row(key=scorer, label=label, cells=tuple(cells), ours_only=True))
    return Table(
        name="leave-one-engine-out",
        title="Trained without an engine, tested on each: SSR",
        corner="trained",
        columns=columns,
        rows=tuple(rows),
        notes=(*notes, f"{_CELL} ° the head was not trained on this engine."),
    )


def left_out_sentences(table: Table) -> list[str]:
    """For each engine that a head was trained without: its SSR there, beside the head's that saw it and frozen."""
    everything = table.rows[1].key
    said = []
    above = below = count = 0
    for row in table.rows[2:]:
        for column, cell in zip(table.columns, row.cells, strict=True):
            full = table.cell((everything, column.key))
            if not cell.marked or full.marked:
                continue
            frozen = table.cell((FROZEN, column.key))
            count += 1
            above += direction(frozen, cell) > 0
            below += direction(full, cell) < 0
            shown = [f"{number(one.value, column)} {interval(one, column)}" for one in (cell, full, frozen)]
            said.append(f"{column.key}: {shown[0]} without it, {shown[1]} with it, {shown[2]} frozen")
    said.append(
        f"Of {count} engines left out of training, {above} are told apart clearly better than by the frozen backbone, "
        f"and {below} clearly worse than by the head that saw them. In the paper (table 5) engines outside of "
        "training lie level with those inside."
    )
    return said


def control_table(measured: Measured, notes: Sequence[str] = ()) -> Table:
    """Scorers down, engines across: how many controls are more like their view than the engine's distractor is."""
    engines = [(name, kind) for kind in (NEARID, MTG) for name in measured.names(kind, "control_rate")]
    columns = tuple(Column(key=name, header=name, percent=True) for name, _ in engines)
    rows = tuple(
        Row(
            key=scorer,
            label=scorer,
            cells=tuple(measured.cell(scorer, kind, "control_rate", name=name) for name, kind in engines),
            ours_only=True,
        )
        for scorer in measured.scorers
    )
    return Table(
        name="control",
        title="Artefact control: the object painted anew is more like its view than another one by the same engine",
        corner="scorer",
        columns=columns,
        rows=rows,
        notes=(*notes, _CELL, "100 is best and 50 chance; a scorer of painted pixels alone would be near 50."),
    )


def control_sentences(table: Table) -> list[str]:
    """What each scorer's control rates mean."""
    said = []
    for row in table.rows:
        for column, cell in zip(table.columns, row.cells, strict=True):
            if not cell.known:
                continue
            half = Cell(value=0.5, low=0.5, high=0.5)
            words = {1: "goes by the object", -1: "prefers the other object", 0: "cannot be told from chance"}
            verdict = words[direction(half, cell)]
            said.append(f"{row.label}, {column.key}: {number(cell.value, column)} {interval(cell, column)}: {verdict}")
    return said


def photos_table(measured: Measured, notes: Sequence[str] = ()) -> Table:
    """Scorers down; SSR, PA, ordering and control rate across, on whole photos and on the foreground alone."""
    said = {"ssr": "SSR", "pa": "PA", "ordering": "ordering", "control_rate": "control"}
    conditions = {"full": "whole photo", "foreground": "foreground"}
    columns, cells = [], {scorer: list[Cell]() for scorer in measured.scorers}
    engines = measured.names(NEARID, "control_rate")
    for condition, over in conditions.items():
        for metric, header in said.items():
            columns.append(Column(key=f"{condition}_{metric}", header=header, over=over, percent=True))
            name = None if metric != "control_rate" else engines[0] if engines else ""
            for scorer, mine in cells.items():
                mine.append(measured.cell(scorer, NEARID, metric, name=name, condition=condition))
    return Table(
        name="photos",
        title="Frozen and trained on real photos, distractors cut from other objects of the category",
        corner="scorer",
        columns=tuple(columns),
        rows=tuple(Row(key=key, label=key, cells=tuple(mine), ours_only=True) for key, mine in cells.items()),
        notes=(*notes, _CELL),
    )


def photos_sentences(table: Table) -> list[str]:
    """Where each trained head differs from the frozen backbone."""
    said = []
    for row in table.rows:
        if row.key == FROZEN:
            continue
        words: dict[int, list[str]] = {1: [], 0: [], -1: []}
        for column, cell in zip(table.columns, row.cells, strict=True):
            frozen = table.cell((FROZEN, column.key))
            if cell.known and frozen.known:
                words[direction(frozen, cell)].append(f"{column.over} {column.header}")
        parts = [("better", 1), ("worse", -1), ("no clear difference", 0)]
        shown = [f"{word} in {', '.join(words[sign])}" for word, sign in parts if words[sign]]
        said.append(f"{row.label} against frozen: {'; '.join(shown) or 'nothing to compare'}.")
    return said
