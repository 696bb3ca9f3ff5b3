"""The masks job: a tuples dataset with masks for the views that have none."""

import os
import sys
from dataclasses import dataclass, replace
from typing import Literal

from nearid_ray import job
from nearid_ray.data.images import encode_png
from nearid_ray.data.mask_report import sheet_of
from nearid_ray.data.pipeline import RunSettings, shards_to_make
from nearid_ray.data.remask import RemaskSettings, plan_remask, remask, remask_facts
from nearid_ray.data.store import Dataset, Location, locate
from nearid_ray.errors import UsageError
from nearid_ray.settings import to_dict
from nearid_ray.submitted import in_submitted_job
from nearid_ray.tracking import TrackingSettings

SHEET = "masks.png"
"""Name of the sheet in the output where no other place is given."""


@dataclass(frozen=True, kw_only=True)
class Masks:
    """Find masks for the views of a tuples dataset, and write the dataset with them."""

    tuples: str
    """The tuples dataset whose views need masks."""
    output: str
    """Folder or s3://bucket/prefix to write the tuples dataset with masks to."""
    remask: RemaskSettings = RemaskSettings()
    sheet: str = ""
    """PNG file for the sheet of views with their masks outlined; by default masks.png in the output."""
    sheet_order: Literal["suspicious", "random"] = "suspicious"
    """Which views the sheet shows: those whose masks look wrong by their figures, or some at random."""
    sheet_views: int = 48
    """Views on the sheet, 1 to 400."""
    run: RunSettings = RunSettings()
    tracking: TrackingSettings = TrackingSettings()

    def __post_init__(self) -> None:
        if self.sheet and not self.sheet.lower().endswith(".png"):
            raise ValueError(f"sheet is {self.sheet!r}; expected the name of a PNG file, e.g. masks.png")
        if self.sheet_order not in ("suspicious", "random"):
            raise ValueError(f"sheet_order is {self.sheet_order!r}; expected suspicious or random")
        if not 1 <= self.sheet_views <= 400:
            raise ValueError(f"sheet_views is {self.sheet_views}; expected 1 to 400")


@job.owning_output("masks")
def run_masks(settings: Masks) -> job.Job:
    """Plan, make what is missing, and draw the sheet."""
    tuples = Dataset.open(settings.tuples, "tuples")
    output = Dataset(job.output_of(settings.output, settings.tracking))
    sheet = _sheet_place(settings.sheet, output)
    plan, task = plan_remask(tuples, output, settings.remask)
    todo = shards_to_make(output, plan, settings.run)
    with job.running(
        "masks",
        output.location,
        to_dict(settings),
        tracking=settings.tracking,
        inputs={"tuples": settings.tuples},
        needs_ray=bool(todo),
    ) as running:
        # Errors of rows came with the tuples; what this job can fail at is finding masks.
        own_limit = replace(settings.run, max_error_share=1.0)
        job.report_run(running, output, remask(tuples, output, plan, task, own_limit))
        facts = remask_facts(tuples, output, settings.remask)
        running.summary |= facts
        _report_masks(running, facts, settings)
        sheet.write_bytes(encode_png(sheet_of(output, settings.sheet_order, settings.sheet_views)))
        running.summary["sheet"] = sheet.uri
    return running


def _report_masks(running: job.Job, facts: dict, settings: Masks) -> None:
    asked = facts["masks_looked_for"]
    missed = asked - facts["masks_found"]
    if not asked:
        print(
            "no mask was looked for: every view with a picture has one already, or mask_method is none", file=sys.stderr
        )
    if facts["views_without_picture"]:
        print(
            f"{facts['views_without_picture']} view(s) have no picture, only an error: nothing can be done for them "
            "here. Where ingest found no mask, ingest again with another --mask-method.",
            file=sys.stderr,
        )
    limit = settings.run.max_error_share
    if asked and missed / asked > limit:
        running.failed = True
        print(
            f"no object was found in {missed} of {asked} views, above the limit of {limit:.1%} "
            "(--max-error-share). They stay as they were; `mask_error` in their provenance says why.",
            file=sys.stderr,
        )


def _sheet_place(sheet: str, output: Dataset) -> Location:
    if not sheet:
        return output.location.child(SHEET)
    if in_submitted_job() and "://" not in sheet and not os.path.isabs(os.path.expanduser(sheet)):
        raise UsageError(
            f"sheet {sheet} is a relative path; a submitted job runs in Ray's package cache, where files are lost. "
            "Give an absolute path or s3://bucket/name.png."
        )
    return locate(sheet)
