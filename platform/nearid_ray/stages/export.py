"""The export job: datasets back in the layout in which NearID is published."""

from dataclasses import dataclass

from nearid_ray import job
from nearid_ray.data.export import ExportSettings, export, plan_export
from nearid_ray.data.store import Dataset
from nearid_ray.settings import to_dict
from nearid_ray.tracking import TrackingSettings


@dataclass(frozen=True, kw_only=True)
class Export:
    """Write tuples and distractors in the layout in which NearID is published on the hub."""

    tuples: str
    """The tuples dataset to export."""
    output: str
    """Folder or s3://bucket/prefix to write positives/, distractors/ENGINE/ and splits/ to."""
    distractors: tuple[str, ...] = ()
    """Distractors datasets of these tuples."""
    export: ExportSettings = ExportSettings()
    break_lock: bool = False
    """Go on although another job's lock lies in the output; only where that job has surely ended."""
    tracking: TrackingSettings = TrackingSettings()


@job.owning_output("export")
def run_export(settings: Export) -> job.Job:
    """Plan, and write what is missing."""
    tuples = Dataset.open(settings.tuples, "tuples")
    distractors = [Dataset.open(place, "distractors") for place in settings.distractors]
    output = job.output_of(settings.output, settings.tracking)
    plan = plan_export(tuples, distractors, output, settings.export)
    inputs = {"tuples": settings.tuples} | {f"distractors_{i}": d for i, d in enumerate(settings.distractors)}
    with job.running(
        "export", output, to_dict(settings), tracking=settings.tracking, inputs=inputs, needs_ray=False
    ) as running:
        running.summary |= vars(export(tuples, distractors, output, plan))
    return running
