"""The ingest job's settings for sources that are tables."""

from dataclasses import dataclass

from nearid_ray.data.importers.importer import Importer
from nearid_ray.data.importers.nearid import NearidImporter, NearidSettings
from nearid_ray.data.importers.nearid_distractors import NearidDistractorsImporter, NearidDistractorsSettings
from nearid_ray.data.importers.table import TableImporter, TableSettings
from nearid_ray.data.pipeline import RunSettings
from nearid_ray.tracking import TrackingSettings


@dataclass(frozen=True, kw_only=True)
class IngestNearid:
    """Read NearID's positives: a table with one row an identity."""

    output: str
    """Folder or s3://bucket/prefix to write the tuples dataset to."""
    source: NearidSettings = NearidSettings()
    run: RunSettings = RunSettings()
    tracking: TrackingSettings = TrackingSettings()

    def importer(self) -> Importer:
        return NearidImporter(self.source)


@dataclass(frozen=True, kw_only=True)
class IngestNearidDistractors:
    """Read NearID's published distractors for the views of a tuples dataset."""

    output: str
    """Folder or s3://bucket/prefix to write the distractors dataset to."""
    source: NearidDistractorsSettings
    run: RunSettings = RunSettings()
    tracking: TrackingSettings = TrackingSettings()

    def importer(self) -> Importer:
        return NearidDistractorsImporter(self.source)


@dataclass(frozen=True, kw_only=True)
class IngestTable:
    """Read any table of pictures: one row an identity (`--images a b c`) or one row a picture (`--image`)."""

    output: str
    """Folder or s3://bucket/prefix to write the tuples dataset to."""
    source: TableSettings
    run: RunSettings = RunSettings()
    tracking: TrackingSettings = TrackingSettings()

    def importer(self) -> Importer:
        return TableImporter(self.source)
