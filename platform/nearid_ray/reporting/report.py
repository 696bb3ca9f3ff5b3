"""Write a report: the page, its numbers as files beside it, and its figures as files in a folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from nearid_ray.data.store import Location
from nearid_ray.errors import UsageError
from nearid_ray.evaluation.measures import MEASURES_FILE, to_csv
from nearid_ray.reporting.figures.make import MadeFigures, draw_figures, write_figures
from nearid_ray.reporting.inputs import Opened, ReportInputs
from nearid_ray.reporting.load import load_report
from nearid_ray.reporting.model import ReportData, ReportSettings
from nearid_ray.reporting.page import metrics_csv, metrics_markdown, page

PAGE_FILE, METRICS_FILE, TABLE_FILE, FIGURES_FOLDER = "report.html", "metrics.csv", "table.md", "figures"


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A report that is not written yet."""

    data: ReportData | None
    """None where figures alone are asked for."""
    figures: MadeFigures


@dataclass(frozen=True, kw_only=True)
class Written:
    """Where a report lies."""

    page: Location | None
    """None where figures alone were asked for."""
    figures: MadeFigures
    files: list[Location] = field(default_factory=list)
    """Numbers beside the page."""


def prepare(
    inputs: ReportInputs,
    settings: ReportSettings,
    *,
    figures: Sequence[str] = (),
    figures_only: bool = False,
    facts: Mapping[str, str] | None = None,
    commands: Sequence[str] = (),
) -> Prepared:
    """Read the folders and draw; nothing is written.

    Args:
        figures: names of figures, see `figures.make.FIGURES`; all that the inputs allow when empty.
        figures_only: the figures and no page.

    Raises:
        UsageError: an input folder does not hold what it should or belongs to another evaluation, or of the figures
            that were named none can be drawn.
    """
    opened = Opened(inputs)
    drawn = draw_figures(opened, settings, figures)
    if figures and not drawn.figures:
        raise UsageError("no figure can be drawn. " + " ".join(f"{n}: {why}." for n, why in drawn.missing.items()))
    data = None
    if not figures_only:
        data = load_report(opened, settings, drawn=drawn, facts=facts, commands=commands)
    return Prepared(data=data, figures=drawn)


def write_prepared(prepared: Prepared, output: Location) -> Written:
    """Write figures/NAME.svg and, with the page, report.html, metrics.csv, measures.csv and table.md."""
    figures = write_figures(prepared.figures, output.child(FIGURES_FOLDER))
    if prepared.data is None:
        return Written(page=None, figures=figures)
    place = write_report(prepared.data, output)
    files = [output.child(name) for name in (METRICS_FILE, MEASURES_FILE, TABLE_FILE)]
    return Written(page=place, figures=figures, files=files)


def write_report(data: ReportData, output: Location) -> Location:
    """Write report.html, metrics.csv, measures.csv and table.md into `output`; returns the page's place."""
    output.child(METRICS_FILE).write_bytes(metrics_csv(data.rows).encode())
    output.child(MEASURES_FILE).write_bytes(to_csv(data.measures).encode())
    output.child(TABLE_FILE).write_bytes(metrics_markdown(data).encode())
    output.child(PAGE_FILE).write_bytes(page(data).encode())
    return output.child(PAGE_FILE)


def report(
    inputs: ReportInputs,
    output: Location,
    settings: ReportSettings | None = None,
    *,
    facts: Mapping[str, str] | None = None,
    commands: Sequence[str] = (),
) -> Written:
    """Make the report of an evaluation and of what led to it, with all figures that the inputs allow.

    Raises:
        UsageError: an input folder does not hold what it should, or belongs to another evaluation.
    """
    return write_prepared(prepare(inputs, settings or ReportSettings(), facts=facts, commands=commands), output)
