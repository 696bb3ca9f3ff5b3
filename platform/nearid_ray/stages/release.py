"""The release job: a trained head with its backbone as a checkpoint that transformers loads."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from nearid_ray import job
from nearid_ray.cluster import ending_in_order
from nearid_ray.data.store import locate
from nearid_ray.errors import UsageError
from nearid_ray.models.backbone import load_backbone
from nearid_ray.models.checkpoint import CALIBRATION_FILE, load_head
from nearid_ray.models.release import FILES, export
from nearid_ray.models.release_card import CardText
from nearid_ray.scoring.calibrated import read_calibration
from nearid_ray.scoring.embedders import ModelEmbedder
from nearid_ray.settings import to_dict
from nearid_ray.tracking import TrackingSettings, tracked


@dataclass(frozen=True, kw_only=True)
class Release:
    """Write a trained head with its backbone in the released format, ready for AutoModel and for a hub."""

    head: str
    """Folder of a head that training wrote, e.g. runs/train/heads/NAME/best, local or on S3."""
    output: str
    """Folder or s3://bucket/prefix for the checkpoint; new, or empty."""
    backbone: str | None = None
    """Where the head's backbone lies now, folder or hub id; by default where it lay when the head was trained."""
    revision: str | None = None
    """Branch, tag or commit of a backbone on the hub."""
    metrics: str | None = None
    """metrics.json of an evaluation, the evaluation's folder, or a JSON file {name: number}, for the model card."""
    card: CardText = CardText()
    tracking: TrackingSettings = TrackingSettings()


def run_release(settings: Release) -> job.Job:
    """Write the checkpoint. The folder holds it and nothing else, so that it can be handed on as it is."""
    output = job.output_of(settings.output, settings.tracking)
    metrics = _metrics(settings.metrics) if settings.metrics else None
    head, card = load_head(settings.head)
    backbone = load_backbone(settings.backbone or card.backbone, revision=settings.revision)
    if locate(settings.head).child(CALIBRATION_FILE).exists():
        own = ModelEmbedder(backbone, head, settings.head).fingerprint
        read_calibration(settings.head).check(own, f"the head {settings.head}")
    inputs = {"head": settings.head} | ({"metrics": settings.metrics} if settings.metrics else {})
    with (
        ending_in_order(),
        tracked("release", output, settings.tracking, to_dict(settings), inputs) as tracker,
    ):
        done = job.Job(tracker)
        text = settings.card if settings.card.scorer else replace(settings.card, scorer=_scorer(settings.head, metrics))
        place = export(settings.head, backbone, output, card=text, metrics=metrics)
        done.summary |= {"backbone": backbone.spec, "width": backbone.width, "files": list(FILES), "output": place.uri}
        tracker.text(place.child("README.md").read_bytes().decode(), "README.md")
        job.print_table("release", done.summary)
    return done


def _scorer(head: str, metrics: Mapping[str, Any] | None) -> str:
    """The name under which training kept the head, .../NAME/best, where the metrics know it; else nothing."""
    name = head.rstrip("/").split("/")[-2:][0]
    rows = (metrics or {}).get("rows")
    return name if isinstance(rows, list) and any(row.get("scorer") == name for row in rows) else ""


def _metrics(uri: str) -> dict[str, Any]:
    place = locate(uri)
    inside = place.child("metrics.json")
    if inside.exists():
        place = inside
    try:
        data = json.loads(place.read_bytes())
    except (OSError, ValueError) as error:
        raise UsageError(
            f"metrics: {uri} cannot be read ({error}); give metrics.json of an evaluation, its folder, or a JSON file"
        ) from error
    if not isinstance(data, dict):
        raise UsageError(
            f"metrics: {uri} holds no JSON object; give metrics.json of an evaluation, or {{name: number}}"
        )
    return data
