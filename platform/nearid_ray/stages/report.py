"""The report job: one self-contained page and its figures as files, from what the other jobs wrote."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nearid_ray import job
from nearid_ray.reporting.inputs import ReportInputs
from nearid_ray.reporting.model import ReportSettings
from nearid_ray.reporting.report import FIGURES_FOLDER, prepare, write_prepared
from nearid_ray.settings import to_dict
from nearid_ray.stages.outputs import refuse_others
from nearid_ray.tracking import TrackingSettings


@dataclass(frozen=True, kw_only=True)
class Report:
    """Write one self-contained HTML page of tables and figures, and each figure as an SVG file of its own."""

    output: str
    """Folder or s3://bucket/prefix for report.html, metrics.csv, measures.csv, table.md and figures/."""
    inputs: ReportInputs
    page: ReportSettings = ReportSettings()
    figures: tuple[str, ...] = ()
    """Figures to draw: figure3, figure4, figure5, figure7, figure8, figure9, alpha, beta, reliability; empty: all that
    the inputs allow."""
    figures_only: bool = False
    """Write the figures and no page."""
    break_lock: bool = False
    """Take over an output whose other writer, on another machine, has certainly ended."""
    tracking: TrackingSettings = TrackingSettings()


@job.owning_output("report")
def run_report(settings: Report, *, facts: Mapping[str, str] | None = None, commands: Sequence[str] = ()) -> job.Job:
    """Read the folders, draw the figures and write the page."""
    output = job.output_of(settings.output, settings.tracking)
    refuse_others(output, "report")
    prepared = prepare(
        settings.inputs,
        settings.page,
        figures=settings.figures,
        figures_only=settings.figures_only,
        facts=facts,
        commands=commands,
    )
    with job.running("report", output, to_dict(settings), tracking=settings.tracking, needs_ray=False) as running:
        written = write_prepared(prepared, output)
        figures = written.figures
        if written.page is not None:
            running.summary["page"] = written.page.uri
        running.summary["figures"] = list(figures.files)
        running.details["not_drawn"] = figures.missing
        if settings.figures:
            print("".join(f"{name} was not drawn: {why}\n" for name, why in figures.missing.items()), end="")
        for place in (*written.files, *([written.page] if written.page else [])):
            running.tracker.text(place.read_bytes().decode(), place.path.rpartition("/")[2])
        for place in figures.files.values():
            running.tracker.text(place.read_bytes().decode(), f"{FIGURES_FOLDER}/{place.path.rpartition('/')[2]}")
    return running
