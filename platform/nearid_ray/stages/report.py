"""The report job: one self-contained page from what the other jobs wrote."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nearid_ray import job
from nearid_ray.reporting.load import ReportInputs, ReportSettings, load_report
from nearid_ray.reporting.report import write_report
from nearid_ray.settings import to_dict
from nearid_ray.tracking import TrackingSettings


@dataclass(frozen=True, kw_only=True)
class Report:
    """Write one self-contained HTML page: tables, bars, curves, projections, tuples with their similarities."""

    output: str
    """Folder or s3://bucket/prefix for report.html, metrics.csv and table.md."""
    inputs: ReportInputs
    page: ReportSettings = ReportSettings()
    break_lock: bool = False
    """Take over an output whose other writer, on another machine, has certainly ended."""
    tracking: TrackingSettings = TrackingSettings()


@job.owning_output("report")
def run_report(settings: Report, *, facts: Mapping[str, str] | None = None, commands: Sequence[str] = ()) -> job.Job:
    """Read the folders and write the page."""
    output = job.output_of(settings.output, settings.tracking)
    data = load_report(settings.inputs, settings.page, facts=facts, commands=commands)
    with job.running("report", output, to_dict(settings), tracking=settings.tracking, needs_ray=False) as running:
        place = write_report(data, output)
        running.summary["page"] = place.uri
        if place.is_local:
            running.tracker.file(place.path)
    return running
