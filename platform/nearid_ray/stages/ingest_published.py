"""The ingest job's settings for published datasets: SynCD, Mind-the-Glitch, DreamBench++."""

from dataclasses import dataclass

from nearid_ray.data.importers.dreambench import DreambenchImporter, DreambenchSettings
from nearid_ray.data.importers.dreambench_generated import DreambenchGeneratedImporter, DreambenchGeneratedSettings
from nearid_ray.data.importers.dreambench_ratings import DreambenchRatingsImporter, DreambenchRatingsSettings
from nearid_ray.data.importers.importer import Importer
from nearid_ray.data.importers.mtg import MtgDistractorsImporter, MtgDistractorsSettings, MtgImporter, MtgSettings
from nearid_ray.data.importers.syncd import SyncdImporter, SyncdSettings
from nearid_ray.data.pipeline import RunSettings
from nearid_ray.tracking import TrackingSettings


@dataclass(frozen=True, kw_only=True)
class IngestSyncd:
    """Read SynCD: generated pictures of one object in several scenes."""

    output: str
    """Folder or s3://bucket/prefix to write the tuples dataset to."""
    source: SyncdSettings
    run: RunSettings = RunSettings()
    tracking: TrackingSettings = TrackingSettings()

    def importer(self) -> Importer:
        return SyncdImporter(self.source)


@dataclass(frozen=True, kw_only=True)
class IngestMtg:
    """Read Mind-the-Glitch: pairs of pictures of one object."""

    output: str
    """Folder or s3://bucket/prefix to write the tuples dataset to."""
    source: MtgSettings = MtgSettings()
    run: RunSettings = RunSettings()
    tracking: TrackingSettings = TrackingSettings()

    def importer(self) -> Importer:
        return MtgImporter(self.source)


@dataclass(frozen=True, kw_only=True)
class IngestMtgDistractors:
    """Read Mind-the-Glitch's inpainted pictures, the distractors of the pairs' pictures."""

    output: str
    """Folder or s3://bucket/prefix to write the distractors dataset to."""
    source: MtgDistractorsSettings
    run: RunSettings = RunSettings()
    tracking: TrackingSettings = TrackingSettings()

    def importer(self) -> Importer:
        return MtgDistractorsImporter(self.source)


@dataclass(frozen=True, kw_only=True)
class IngestDreambench:
    """Read DreamBench++'s reference pictures."""

    output: str
    """Folder or s3://bucket/prefix to write the tuples dataset to."""
    source: DreambenchSettings
    run: RunSettings = RunSettings()
    tracking: TrackingSettings = TrackingSettings()

    def importer(self) -> Importer:
        return DreambenchImporter(self.source)


@dataclass(frozen=True, kw_only=True)
class IngestDreambenchGenerated:
    """Read what personalised generators made of DreamBench++'s references."""

    output: str
    """Folder or s3://bucket/prefix to write the generated dataset to."""
    source: DreambenchGeneratedSettings
    run: RunSettings = RunSettings()
    tracking: TrackingSettings = TrackingSettings()

    def importer(self) -> Importer:
        return DreambenchGeneratedImporter(self.source)


@dataclass(frozen=True, kw_only=True)
class IngestDreambenchRatings:
    """Read what people and metrics said of DreamBench++'s generated pictures."""

    output: str
    """Folder or s3://bucket/prefix to write the ratings dataset to."""
    source: DreambenchRatingsSettings
    run: RunSettings = RunSettings()
    tracking: TrackingSettings = TrackingSettings()

    def importer(self) -> Importer:
        return DreambenchRatingsImporter(self.source)
