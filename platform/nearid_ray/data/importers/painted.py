"""Distractors that others painted: the views they belong to, and rows of the `distractors` table with what is measured.

Axes: H height, W width, 3 colour channels; pictures are at the view's canonical size.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nearid_ray.data.difference import background_max_difference, object_mean_difference, verdict
from nearid_ray.data.images import decode_mask, decode_rgb, encode_png
from nearid_ray.data.importers.importer import Record
from nearid_ray.data.light import iterate
from nearid_ray.data.store import Dataset, read_rows
from nearid_ray.identifiers import settings_digest

_COLUMNS = [
    "identity_id", "category", "split", "source", "provenance",
    "views.view_id", "views.provenance", "views.error", "views.size_px",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Background:
    """A view that a distractor can belong to: what it is, and where it lies in the tuples dataset."""

    identity_id: str
    view_index: int
    view_id: str
    category: str
    split: str
    source: str
    size_px: int
    error: str
    provenance: dict[str, Any]
    """What the source said of the view."""
    identity_provenance: dict[str, Any]
    shard: str
    row: int

    def record(self) -> Record:
        """What a distractor's row takes over from it, and where to find it again."""
        return {
            "identity_id": self.identity_id,
            "view_index": self.view_index,
            "view_id": self.view_id,
            "category": self.category,
            "split": self.split,
            "source": self.source,
            "shard": self.shard,
            "row": self.row,
        }


def list_backgrounds(tuples: Dataset) -> Iterator[Background]:
    """Every view of a tuples dataset, in order, without reading a picture."""
    for shard, identities in iterate(tuples, _COLUMNS):
        for row, identity in enumerate(identities.to_pylist()):
            known = {name: identity[name] for name in ("identity_id", "category", "split", "source")}
            provenance = json.loads(identity["provenance"])
            for index, view in enumerate(identity["views"]):
                yield Background(
                    **known,
                    identity_provenance=provenance,
                    view_index=index,
                    view_id=view["view_id"],
                    size_px=view["size_px"],
                    error=view["error"],
                    provenance=json.loads(view["provenance"]),
                    shard=shard,
                    row=row,
                )


class BackgroundReader:
    """Reads the views of some records (`Background.record`); each identity's row once."""

    def __init__(self, tuples: Dataset, records: Sequence[Record]) -> None:
        self._rows: dict[tuple[str, int], dict[str, Any]] = {}
        wanted: dict[str, set[int]] = {}
        for record in records:
            wanted.setdefault(record["shard"], set()).add(record["row"])
        for shard, rows in wanted.items():
            ordered = sorted(rows)
            found = read_rows(tuples.shard(shard), ordered, ["views"]).to_pylist()
            self._rows |= {(shard, row): identity for row, identity in zip(ordered, found, strict=True)}

    def view(self, record: Record) -> tuple[np.ndarray, np.ndarray | None]:
        """(picture (H, W, 3), mask (H, W) or None). ValueError where the view is not the one that was planned."""
        view = self._rows[record["shard"], record["row"]]["views"][record["view_index"]]
        if view["view_id"] != record["view_id"]:
            raise ValueError("the view in the tuples dataset is not the one that was planned")
        mask = view["mask"]
        return decode_rgb(view["image"]["bytes"]), None if mask is None else decode_mask(mask["bytes"])


def bare_row(record: Record, *, engine: str, family: str, settings: dict[str, Any]) -> dict[str, Any]:
    """A row of `distractors` without a picture, of an engine that is known by name and `settings` (JSON-like) alone.

    `record` has what `Background.record` gives, and `distractor_id`.
    """
    kept = ("distractor_id", "identity_id", "view_index", "view_id", "category", "split", "source")
    return {name: record[name] for name in kept} | {
        "engine": engine,
        "engine_family": family,
        "control": False,
        "engine_revision": "",
        "engine_settings": json.dumps(settings, sort_keys=True),
        "settings_hash": settings_digest({"family": family, "engine": engine, "settings": settings}),
        "run_seed": 0,
        "attempt": 0,
        "seed": 0,
        "prompt": "",
        "negative_prompt": "",
        "donor_identity_id": "",
        "donor_view_index": -1,
        "donor_view_id": "",
        "image": None,
        "mask": None,
        "part_mask": None,
        "size_px": 0,
        "background_max_difference": -1,
        "object_mean_difference": None,
        "object_deviation": None,
        "saturated_share": None,
        "object_similarity": None,
        "flagged": None,
        "verdict": "none",
        "oracle": None,
        "error": "",
    }


def measured_columns(
    name: str,
    view_HW3: np.ndarray,
    image_HW3: np.ndarray,
    mask_HW: np.ndarray | None,
    part_HW: np.ndarray | None = None,
) -> dict[str, Any]:
    """The columns with pictures and what is measured between the view and the distractor; all of one size.

    Without a mask nothing can be measured, and the verdict is `accepted`.
    """
    fields: dict[str, Any] = {
        "image": {"bytes": encode_png(image_HW3), "path": f"{name}.png"},
        "part_mask": None if part_HW is None else {"bytes": encode_png(part_HW), "path": f"{name}-part.png"},
        "size_px": image_HW3.shape[0],
        "verdict": "accepted",
    }
    if mask_HW is None:
        return fields
    return fields | {
        "mask": {"bytes": encode_png(mask_HW), "path": f"{name}-mask.png"},
        "background_max_difference": background_max_difference(view_HW3, image_HW3, mask_HW),
        "object_mean_difference": object_mean_difference(view_HW3, image_HW3, mask_HW),
        "verdict": verdict(view_HW3, image_HW3, mask_HW),
    }
