"""A comparison as text for the terminal, Markdown, CSV and a page of its own."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence

from nearid_ray.comparing.compare import Cell, Comparison, apart
from nearid_ray.evaluation.bootstrap import Difference
from nearid_ray.evaluation.measures import Measure
from nearid_ray.reporting.charts import Line, line_chart
from nearid_ray.reporting.markup import DASH, Child, Markup, tag
from nearid_ray.reporting.pieces import document, table_of_lines
from nearid_ray.reporting.svg import series_colours
from nearid_ray.text_tables import aligned, markdown_escape, markdown_table

_CURVES = 8
"""Metrics whose curves are drawn, those that most runs have first."""
_RATES = ("ssr", "pa", "ordering", "control_rate")
LEGEND = (
    "value (interval); against the first column: + better, - worse, = no difference that the interval shows "
    "(identities drawn in pairs), and where there are no paired records > or < where the intervals do not overlap; "
    "* not everything could be measured"
)


def text(found: Comparison, *, engines: bool = True) -> str:
    """For the terminal; without `engines`, of benchmarks that have groups the groups alone."""
    parts = [_block("runs", _runs(found))]
    parts.append(
        _block("settings that differ", _settings(found)) if found.settings else "\nThe settings are the same in all."
    )
    for title, lines in _tables(found, engines=engines):
        parts.append(_block(title, lines))
    if found.rows:
        parts.append(f"\n{LEGEND}")
    if found.metrics:
        parts.append(_block("last values", _metrics(found)))
    parts += [f"note: {note}" for note in dict.fromkeys(found.notes)]
    return "\n".join(parts)


def markdown(found: Comparison) -> str:
    """The same as Markdown."""
    parts = ["# Runs compared", _markdown_table(_runs(found)), "## Settings that differ"]
    parts.append(_markdown_table(_settings(found)) if found.settings else "None.")
    parts += [f"## {title}\n\n{_markdown_table(lines)}" for title, lines in _tables(found)]
    if found.rows:
        parts.append(LEGEND)
    if found.metrics:
        parts.append(f"## Last values\n\n{_markdown_table(_metrics(found))}")
    parts += [f"Note: {note}" for note in dict.fromkeys(found.notes)]
    return "\n\n".join(parts) + "\n"


def csv_rows(found: Comparison) -> str:
    """One row a cell: benchmark, condition, name, metric, column, value, low, high, difference, its interval."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    head = ("benchmark", "condition", "name", "metric", "column", "value", "low", "high")
    writer.writerow([*head, "difference", "difference_low", "difference_high", "share_above_zero"])
    for cell in found.rows:
        for column in found.columns:
            one = found.cells.get((cell, column.label))
            if one is None:
                continue
            by = found.differences.get((cell, column.label))
            gain = [by.value, by.low, by.high, by.share_above_zero] if by else [""] * 4
            values = [
                "" if isinstance(v, float) and math.isnan(v) else v for v in (one.value, one.low, one.high, *gain)
            ]
            writer.writerow([*cell, column.label, *values])
    return out.getvalue()


def page(found: Comparison) -> str:
    """The same as a page that needs nothing else, with the curves of what was logged step by step."""
    body: list[Child] = [tag("h2", "Runs"), table_of_lines(_runs(found), words=True), tag("h2", "Settings that differ")]
    body.append(table_of_lines(_settings(found), words=True) if found.settings else tag("p", "None."))
    for title, lines in _tables(found):
        body += [tag("h2", title), table_of_lines(lines)]
    if found.rows:
        body.append(tag("p", LEGEND, class_="lead"))
    if found.metrics:
        body += [tag("h2", "Last values"), table_of_lines(_metrics(found))]
    body += _curves(found)
    body += [tag("p", f"Note: {note}") for note in dict.fromkeys(found.notes)]
    return document("Runs compared", [tag("header", tag("h1", "Runs compared")), tag("main", body)])


def verdict(one: Measure, first: Measure | None, by: Difference | None) -> str:
    """+, -, = by the paired difference; >, < by intervals that do not overlap; nothing where neither says anything."""
    if by is not None and not math.isnan(by.low):
        return "+" if by.low > 0 else "-" if by.high < 0 else "="
    if first is None or first is one or apart(one, first) is not True:
        return ""
    return ">" if one.value > first.value else "<"


def _runs(found: Comparison) -> list[list[str]]:
    lines = [["run", "job", "status", "id", "output"]]
    return lines + [[run.name, run.job, run.status.lower(), run.run_id[:8], run.output] for run in found.runs]


def _settings(found: Comparison) -> list[list[str]]:
    lines = [["setting", *(run.name for run in found.runs)]]
    return lines + [
        [name, *(DASH if value is None else value for value in values)] for name, values in found.settings.items()
    ]


def _tables(found: Comparison, *, engines: bool = True) -> list[tuple[str, list[list[str]]]]:
    """(title, lines) for each benchmark and condition."""
    tables = []
    pooled = {cell for (cell, _), one in found.cells.items() if one.is_group}
    for benchmark, condition in dict.fromkeys((cell[0], cell[1]) for cell in found.rows):
        rows = [cell for cell in found.rows if cell[:2] == (benchmark, condition)]
        if not engines and pooled & set(rows):
            rows = [cell for cell in rows if cell in pooled]
        labels = [c.label for c in found.columns if any((cell, c.label) in found.cells for cell in rows)]
        lines = [["", *labels]]
        for cell in rows:
            first = found.cells.get((cell, labels[0]))
            shown = [_shown(found, cell, label, first) for label in labels]
            lines.append([f"{cell[2]} {cell[3]}", *shown])
        tables.append((f"{benchmark}, {condition}", lines))
    return tables


def _shown(found: Comparison, cell: Cell, label: str, first: Measure | None) -> str:
    one = found.cells.get((cell, label))
    if one is None:
        return DASH
    scale, digits = (100, 1) if cell[3] in _RATES else (1, 3)
    said = _number(one.value, scale, digits)
    if not math.isnan(one.low):
        said += f" ({_number(one.low, scale, digits)} to {_number(one.high, scale, digits)})"
    by = found.differences.get((cell, label))
    mark = verdict(one, first, by)
    return f"{said}{'' if one.coverage >= 1 else '*'} {mark}".rstrip()


def _number(value: float, scale: float, digits: int) -> str:
    return DASH if math.isnan(value) else f"{scale * value:.{digits}f}"


def _metrics(found: Comparison) -> list[list[str]]:
    lines = [["metric", *(run.name for run in found.runs)]]
    return lines + [
        [name, *(DASH if value is None else f"{value:.6g}" for value in values)]
        for name, values in found.metrics.items()
    ]


def _curves(found: Comparison) -> list[Markup]:
    counts: dict[str, int] = {}
    for run in found.runs:
        for name in run.curves:
            counts[name] = counts.get(name, 0) + 1
    if not counts:
        return []
    names = [_named(run.name, run.run_id, found) for run in found.runs]
    colours = series_colours(names)
    parts = [tag("h2", "Curves")]
    for metric in sorted(counts, key=lambda name: (-counts[name], name))[:_CURVES]:
        lines = [
            Line(name=name, x=[step for step, _ in points], y=[value for _, value in points])
            for name, run in zip(names, found.runs, strict=True)
            if (points := run.curves.get(metric))
        ]
        keys = [
            tag("span", tag("i", style=f"background:{colours[line.name]}"), line.name, class_="key") for line in lines
        ]
        chart = line_chart(lines, colours, label=metric, x_axis="step", y_axis=metric)
        parts += [tag("h3", metric), tag("p", keys, class_="keys"), chart]
    left = len(counts) - _CURVES
    return parts + ([tag("p", f"{left} further metrics have curves; see MLflow.")] if left > 0 else [])


def _named(name: str, run_id: str, found: Comparison) -> str:
    return name if sum(run.name == name for run in found.runs) == 1 else f"{name} {run_id[:8]}"


def _block(title: str, lines: Sequence[Sequence[str]]) -> str:
    return f"\n{title}\n{aligned(lines, indent='  ')}"


def _markdown_table(lines: Sequence[Sequence[str]]) -> str:
    return markdown_table([[markdown_escape(cell) for cell in line] for line in lines])
