"""The synthesize job: near-identity distractors for every view of a tuples dataset."""

from contextlib import nullcontext
from dataclasses import dataclass

from nearid_ray import job
from nearid_ray.cluster import ray_session, resources
from nearid_ray.data.pipeline import RunSettings, shards_to_make
from nearid_ray.data.plan import forget_plan
from nearid_ray.data.store import Dataset
from nearid_ray.errors import UsageError
from nearid_ray.settings import to_dict
from nearid_ray.synthesis.estimate import estimate
from nearid_ray.synthesis.settings import Selection, SynthesisSettings
from nearid_ray.synthesis.synthesize import asks_for_gpus, outcome, plan_distractors, selected, synthesize
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
    selection: Selection = Selection()
    run: RunSettings = RunSettings()
    tracking: TrackingSettings = TrackingSettings()


@job.owning_output("synthesize")
def run_synthesize(settings: Synthesize) -> job.Job:
    """Plan, and make what is missing."""
    tuples = Dataset.open(settings.tuples, "tuples")
    embeddings = Dataset.open(settings.embeddings, "embeddings") if settings.embeddings else None
    output = Dataset(job.output_of(settings.output, settings.tracking))
    # The precision of an output's first model depends on what the cluster's workers compute on.
    needs_cluster = asks_for_gpus(output, settings.synthesis) and settings.run.gpus_per_worker != 0
    with ray_session() if needs_cluster else nullcontext():
        gpus = resources()[1] if needs_cluster else 0.0
        plan = plan_distractors(tuples, output, settings.synthesis, embeddings, gpus=gpus)
        try:
            plan = selected(plan, settings.selection)
        except UsageError:
            forget_plan(output)
            raise
        todo = shards_to_make(output, plan, settings.run)
        if todo:
            job.print_table("plan", estimate(output, plan, todo))
        with job.running(
            "synthesize",
            output.location,
            to_dict(settings),
            tracking=settings.tracking,
            inputs={"tuples": settings.tuples, "embeddings": settings.embeddings},
            needs_ray=bool(todo),
        ) as running:
            job.report_run(running, output, synthesize(tuples, output, plan, settings.synthesis, settings.run))
            running.summary |= outcome(output)
    return running
