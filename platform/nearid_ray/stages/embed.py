"""The embed job: a frozen backbone's tokens of every picture, or pooled embeddings."""

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

from nearid_ray import job
from nearid_ray.cluster import ray_session
from nearid_ray.data.pipeline import RunSettings, shards_to_make
from nearid_ray.data.store import Dataset
from nearid_ray.embedding.extract import plan_embedding
from nearid_ray.embedding.plan import EmbedSettings
from nearid_ray.embedding.report import described_embedding, forget_damaged, forget_missing
from nearid_ray.settings import to_dict
from nearid_ray.tracking import TrackingSettings


@dataclass(frozen=True, kw_only=True)
class Embed:
    """Compute a frozen backbone's tokens of every view and distractor once."""

    tuples: str
    """The tuples dataset that ingest wrote."""
    output: str
    """Folder or s3://bucket/prefix to write to."""
    distractors: str = ""
    """The distractors dataset that synthesize wrote; empty embeds the views alone."""
    what: Literal["tokens", "pooled"] = "tokens"
    """tokens: the cache that train and evaluate read. pooled: unit embeddings by the backbone's own head."""
    dry_run: bool = False
    """Print what would be made and how much disk it takes, and write nothing."""
    verify: bool = False
    """First compare the token files that are there with their checksums; shards that fail are made again."""
    embedding: EmbedSettings = EmbedSettings()
    run: RunSettings = RunSettings()
    tracking: TrackingSettings = TrackingSettings()


def plan_embed_job(settings: Embed) -> dict[str, Any]:
    """What `run_embed` would make, by name; writes nothing."""
    return described_embedding(settings.tuples, settings.distractors or None, settings.embedding)


@job.owning_output("embed")
def run_embed(settings: Embed) -> job.Job:
    """Plan, and make what is missing."""
    output = Dataset(job.output_of(settings.output, settings.tracking))
    inputs = {"tuples": settings.tuples, "distractors": settings.distractors}
    damaged = forget_damaged(output) if settings.verify and output.settings() else forget_missing(output)
    # A new output's precision depends on what the cluster's workers compute on.
    with nullcontext() if output.settings() else ray_session():
        planned = plan_embedding(
            settings.what, settings.tuples, settings.distractors or None, output, settings.embedding, settings.run
        )
        todo = shards_to_make(output, planned.plan, settings.run)
        with job.running(
            "embed",
            output.location,
            to_dict(settings),
            tracking=settings.tracking,
            inputs=inputs,
            needs_ray=bool(todo),
        ) as running:
            job.report_run(running, output, planned.run(settings.run))
            if settings.verify:
                running.summary["damaged_shards"] = damaged
    return running
