"""Write a report: the page, and its numbers as files beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from nearid_ray.data.store import Location
from nearid_ray.reporting.load import ReportInputs, ReportSettings, load_report
from nearid_ray.reporting.model import ReportData
from nearid_ray.reporting.page import markdown_table, metrics_csv, page

PAGE_FILE, METRICS_FILE, TABLE_FILE = "report.html", "metrics.csv", "table.md"


def write_report(data: ReportData, output: Location) -> Location:
    """Write report.html, metrics.csv and table.md into `output`; returns the page's place."""
    output.child(METRICS_FILE).write_bytes(metrics_csv(data.rows).encode())
    output.child(TABLE_FILE).write_bytes(markdown_table(data).encode())
    output.child(PAGE_FILE).write_bytes(page(data).encode())
    return output.child(PAGE_FILE)


def report(
    inputs: ReportInputs,
    output: Location,
    settings: ReportSettings | None = None,
    *,
    facts: Mapping[str, str] | None = None,
    commands: Sequence[str] = (),
) -> Location:
    """Make the report of an evaluation and of what led to it; returns the page's place.

    Raises:
        UsageError: an input folder does not hold what it should.
    """
    return write_report(load_report(inputs, settings or ReportSettings(), facts=facts, commands=commands), output)
