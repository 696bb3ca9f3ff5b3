#!/usr/bin/env python3
"""Bring a source of identities into a tuples dataset.

python jobs/ingest.py toybox --output runs/toy/tuples --train-identities 200 --test-identities 50
python jobs/ingest.py photos --root PHOTOS --categories PHOTOS/subjects.csv --output runs/photos/tuples
"""

from collections.abc import Sequence
from dataclasses import dataclass

import _paths  # noqa: F401  (first: makes the package importable)

from nearid_ray import job
from nearid_ray.cluster import output_location
from nearid_ray.data.importers.photos import PhotosImporter, PhotosSettings
from nearid_ray.data.importers.toybox import ToyboxImporter, ToyboxSettings
from nearid_ray.data.ingest import ingest, plan_ingest
from nearid_ray.data.pipeline import RunSettings, shards_to_make
from nearid_ray.data.store import Dataset
from nearid_ray.errors import UsageError
from nearid_ray.settings import parse, to_dict
from nearid_ray.tracking import TrackingSettings


@dataclass(frozen=True, kw_only=True)
class IngestToybox:
    """Render toy identities."""

    output: str
    """Folder or s3://bucket/prefix to write the tuples dataset to."""
    source: ToyboxSettings = ToyboxSettings()
    run: RunSettings = RunSettings()
    tracking: TrackingSettings = TrackingSettings()


@dataclass(frozen=True, kw_only=True)
class IngestPhotos:
    """Read folders of photos, one folder an identity."""

    output: str
    """Folder or s3://bucket/prefix to write the tuples dataset to."""
    source: PhotosSettings
    run: RunSettings = RunSettings()
    tracking: TrackingSettings = TrackingSettings()


SOURCES = {"toybox": (IngestToybox, ToyboxImporter), "photos": (IngestPhotos, PhotosImporter)}


def run(argv: Sequence[str]) -> int:
    """The job: `ingest.py SOURCE [OPTIONS]`."""
    if not argv or argv[0] not in SOURCES:
        if argv and argv[0] in ("-h", "--help"):
            print(f"{__doc__}\nsources: {', '.join(SOURCES)}; `jobs/ingest.py SOURCE --help` shows a source's options")
            return job.OK
        given = f"{argv[0]!r} is no source" if argv else "no source was given"
        raise UsageError(f"{given}; expected `jobs/ingest.py SOURCE ...` with SOURCE one of: {', '.join(SOURCES)}")
    name, rest = argv[0], argv[1:]
    settings_class, importer_class = SOURCES[name]
    settings = parse(settings_class, rest, prog=f"jobs/ingest.py {name}", description=settings_class.__doc__ or "")
    importer = importer_class(settings.source)
    output = Dataset(output_location(settings.output))
    plan = plan_ingest(importer, output)
    todo = shards_to_make(output, plan, settings.run)
    with job.running(
        "ingest", output.location, to_dict(settings), tracking=settings.tracking, needs_ray=bool(todo)
    ) as it:
        job.report_run(it, output, ingest(importer, output, plan, settings.run))
    return job.exit_code(it)


if __name__ == "__main__":
    job.main(run)
