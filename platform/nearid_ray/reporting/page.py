"""The report as files: one HTML page that needs nothing else, the metrics as CSV, the main table as Markdown."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import fields

from nearid_ray.evaluation.summary import MetricsRow, row_to_dict
from nearid_ray.reporting import benchmarks, sections
from nearid_ray.reporting.figures.figure import section
from nearid_ray.reporting.markup import DASH, Child, percent, tag
from nearid_ray.reporting.model import ReportData
from nearid_ray.reporting.pieces import document
from nearid_ray.text_tables import markdown_escape, markdown_table


def page(data: ReportData) -> str:
    """The whole page. It makes no request of any kind; the same data gives the same bytes."""
    body: list[Child] = [
        benchmarks.benchmarks(data),
        sections.results(data),
        benchmarks.controls(data),
        sections.training(data),
        *(section(figure) for figure in data.figures),
        sections.engines(data),
        sections.run_facts(data),
    ]
    said = "Numbers as files beside this page: metrics.csv, measures.csv, table.md."
    said += " Figures as files: folder figures." if data.figures else ""
    footer = tag("footer", said)
    return document(data.title, [sections.top(data), tag("main", body), footer])


def metrics_csv(rows: Sequence[MetricsRow]) -> str:
    """All metrics, one row a scorer, condition and engine or group; empty where there is no number."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(MetricsRow)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(row_to_dict(row) for row in rows)
    return text.getvalue()


def metrics_markdown(data: ReportData) -> str:
    """SSR with its interval and PA in percent, one table a condition, as GitHub draws it."""
    scorers = sections.scorers_of(data)
    parts = []
    for condition in sections.conditions_of(data):
        rows = [row for row in data.rows if row.condition == condition]
        cells = {(row.name, row.scorer): row for row in rows}
        lines = [
            f"{condition}: SSR ({100 * data.confidence:g} % interval) / PA, percent",
            "",
        ]
        table = [["engine", "identities", *map(markdown_escape, scorers)]]
        for name in dict.fromkeys(row.name for row in rows):
            found = [row for row in rows if row.name == name]
            shown = f"**{markdown_escape(name)}**" if found[0].is_group else markdown_escape(name)
            values = [_rates(cells.get((name, scorer))) for scorer in scorers]
            table.append([shown, str(max(row.identities for row in found)), *values])
        parts.append("\n".join([*lines, markdown_table(table, right=range(1, len(scorers) + 2))]))
    return "\n\n".join(parts) + "\n"


def _rates(row: MetricsRow | None) -> str:
    if row is None or row.ssr != row.ssr:
        return DASH
    return f"{percent(row.ssr)} ({percent(row.ssr_low)} to {percent(row.ssr_high)}) / {percent(row.pa)}"
