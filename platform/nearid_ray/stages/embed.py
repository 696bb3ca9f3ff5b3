"""The embed job: a frozen backbone's tokens of every picture, or pooled embeddings."""

from dataclasses import dataclass
from typing import Literal

from nearid_ray import job
from nearid_ray.cluster import output_location
from nearid_ray.data.pipeline import RunSettings
from nearid_ray.data.store import Dataset
from nearid_ray.embedding.extract import embed, embed_pooled
from nearid_ray.embedding.plan import EmbedSettings
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
    embedding: EmbedSettings = EmbedSettings()
    run: RunSettings = RunSettings()
    tracking: TrackingSettings = TrackingSettings()


def run_embed(settings: Embed) -> job.Job:
    """Plan, and make what is missing."""
    output = Dataset(output_location(settings.output))
    make = embed if settings.what == "tokens" else embed_pooled
    inputs = {"tuples": settings.tuples, "distractors": settings.distractors}
    with job.running("embed", output.location, to_dict(settings), tracking=settings.tracking, inputs=inputs) as running:
        made = make(settings.tuples, settings.distractors or None, output, settings.embedding, settings.run)
        job.report_run(running, output, made)
    return running
