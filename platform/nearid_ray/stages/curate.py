"""The curate job: identities and views that are good enough, in disjoint splits of given sizes."""

from dataclasses import dataclass

from nearid_ray import job
from nearid_ray.data.curate import plan_curation
from nearid_ray.data.curate_rules import CurateSettings
from nearid_ray.data.pipeline import RunSettings, shards_to_make
from nearid_ray.data.store import Dataset
from nearid_ray.settings import to_dict
from nearid_ray.tracking import TrackingSettings


@dataclass(frozen=True, kw_only=True)
class Curate:
    """Choose identities and views of a tuples dataset and draw its splits; every one left out is kept with its reason.

    Do it before synthesize: views that are left out change the places of those behind them.
    """

    tuples: str
    """The tuples dataset that ingest wrote."""
    output: str
    """Folder or s3://bucket/prefix to write the curated tuples dataset to."""
    curation: CurateSettings = CurateSettings()
    run: RunSettings = RunSettings()
    tracking: TrackingSettings = TrackingSettings()


@job.owning_output("curate")
def run_curate(settings: Curate) -> job.Job:
    """Choose, plan, and copy what is missing."""
    tuples = Dataset.open(settings.tuples, "tuples")
    output = Dataset(job.output_of(settings.output, settings.tracking))
    curation = plan_curation(tuples, output, settings.curation)
    todo = shards_to_make(output, curation.plan, settings.run)
    with job.running(
        "curate",
        output.location,
        to_dict(settings),
        tracking=settings.tracking,
        inputs={"tuples": settings.tuples},
        needs_ray=bool(todo),
    ) as running:
        job.report_run(running, output, curation.run(settings.run))
        running.summary["splits"] = curation.summary()
        running.summary["near_duplicates"] = curation.pair_counts()
    return running
