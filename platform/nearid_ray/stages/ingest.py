"""The ingest job: from a source to a tuples dataset."""

from dataclasses import dataclass
from typing import Protocol

from nearid_ray import job
from nearid_ray.data.importers.importer import Importer
from nearid_ray.data.importers.photos import PhotosImporter, PhotosSettings
from nearid_ray.data.importers.toybox import ToyboxImporter, ToyboxSettings
from nearid_ray.data.ingest import ingest, plan_ingest
from nearid_ray.data.mask_report import list_masks, mask_facts
from nearid_ray.data.pipeline import RunSettings, shards_to_make
from nearid_ray.data.store import Dataset
from nearid_ray.settings import to_dict
from nearid_ray.stages.ingest_published import (
    IngestDreambench,
    IngestDreambenchGenerated,
    IngestDreambenchRatings,
    IngestMtg,
    IngestMtgDistractors,
    IngestSyncd,
)
from nearid_ray.stages.ingest_tables import IngestNearid, IngestNearidDistractors, IngestTable
from nearid_ray.tracking import TrackingSettings
from schemas import TUPLES


@dataclass(frozen=True, kw_only=True)
class IngestToybox:
    """Render toy identities: procedural toy data that runs anywhere."""

    output: str
    """Folder or s3://bucket/prefix to write the tuples dataset to."""
    source: ToyboxSettings = ToyboxSettings()
    run: RunSettings = RunSettings()
    tracking: TrackingSettings = TrackingSettings()

    def importer(self) -> Importer:
        return ToyboxImporter(self.source)


@dataclass(frozen=True, kw_only=True)
class IngestPhotos:
    """Read folders of photos, one folder an identity."""

    output: str
    """Folder or s3://bucket/prefix to write the tuples dataset to."""
    source: PhotosSettings
    run: RunSettings = RunSettings()
    tracking: TrackingSettings = TrackingSettings()

    def importer(self) -> Importer:
        return PhotosImporter(self.source)


class IngestSettings(Protocol):
    """What the settings of every source have; each names its importer."""

    @property
    def output(self) -> str: ...

    @property
    def run(self) -> RunSettings: ...

    @property
    def tracking(self) -> TrackingSettings: ...

    def importer(self) -> Importer: ...


SOURCES: dict[str, type[IngestSettings]] = {
    "toybox": IngestToybox,
    "photos": IngestPhotos,
    "syncd": IngestSyncd,
    "mtg": IngestMtg,
    "mtg-distractors": IngestMtgDistractors,
    "dreambench": IngestDreambench,
    "dreambench-generated": IngestDreambenchGenerated,
    "dreambench-ratings": IngestDreambenchRatings,
    "nearid": IngestNearid,
    "nearid-distractors": IngestNearidDistractors,
    "table": IngestTable,
}
"""Settings of the job by the name of the source."""


@job.owning_output("ingest")
def run_ingest(settings: IngestSettings) -> job.Job:
    """List the source, plan, and make what is missing."""
    importer = settings.importer()
    output = Dataset(job.output_of(settings.output, settings.tracking))
    plan = plan_ingest(importer, output)
    todo = shards_to_make(output, plan, settings.run)
    with job.running(
        "ingest", output.location, to_dict(settings), tracking=settings.tracking, needs_ray=bool(todo)
    ) as running:
        job.report_run(running, output, ingest(importer, output, plan, settings.run))
        running.summary |= importer.facts()
        if importer.table is TUPLES:
            facts = mask_facts(list_masks(output))
            told = ("views", "views_without_mask", "mask_source", "masks_doubtful")
            running.summary |= {name: facts[name] for name in told if name in facts}
            if facts["mask_source"].keys() - {"exact", "column", "file", "rendered"}:
                print("\nMasks were found automatically: look at them first (jobs/show.py OUTPUT --sheet FILE.png).")
    return running
