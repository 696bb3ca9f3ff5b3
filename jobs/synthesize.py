#!/usr/bin/env python3
"""Make near-identity distractors for every view of a tuples dataset.

python jobs/synthesize.py --tuples runs/toy/tuples --output runs/toy/distractors --engines toybox
python jobs/synthesize.py --tuples runs/photos/tuples --output runs/photos/distractors --engines exemplar
"""

from collections.abc import Sequence
from dataclasses import dataclass

import _paths  # noqa: F401  (first: makes the package importable)

from nearid_ray import job
from nearid_ray.cluster import output_location
from nearid_ray.data.pipeline import RunSettings, shards_to_make
from nearid_ray.data.store import Dataset
from nearid_ray.settings import parse, to_dict
from nearid_ray.synthesis.synthesize import SynthesisSettings, plan_distractors, synthesize
from nearid_ray.tracking import TrackingSettings


@dataclass(frozen=True, kw_only=True)
class Synthesize:
    """Make near-identity distractors for every view of a tuples dataset."""

    tuples: str
    """The tuples dataset that ingest wrote."""
    output: str
    """Folder or s3://bucket/prefix to write the distractors dataset to."""
    embeddings: str = ""
    """An embeddings dataset of the same tuples: donors (exemplar) are then the nearest identities, not the next."""
    synthesis: SynthesisSettings = SynthesisSettings()
    run: RunSettings = RunSettings()
    tracking: TrackingSettings = TrackingSettings()


def run(argv: Sequence[str]) -> int:
    """The job."""
    settings = parse(Synthesize, argv, prog="jobs/synthesize.py", description=__doc__ or "")
    tuples = Dataset.open(settings.tuples, "tuples")
    embeddings = Dataset.open(settings.embeddings, "embeddings") if settings.embeddings else None
    output = Dataset(output_location(settings.output))
    plan = plan_distractors(tuples, output, settings.synthesis, embeddings)
    inputs = {"tuples": settings.tuples, "embeddings": settings.embeddings}
    todo = shards_to_make(output, plan, settings.run)
    with job.running(
        "synthesize",
        output.location,
        to_dict(settings),
        tracking=settings.tracking,
        inputs=inputs,
        needs_ray=bool(todo),
    ) as it:
        job.report_run(it, output, synthesize(tuples, output, plan, settings.synthesis, settings.run))
    return job.exit_code(it)


if __name__ == "__main__":
    job.main(run)
