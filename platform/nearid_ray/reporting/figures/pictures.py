"""Tuples to look at, with similarities from the records: drawn by a hash, thumbnails small enough for a page."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from nearid_ray.data.images import decode_mask, decode_rgb, resize_mask, resize_rgb
from nearid_ray.data.light import iterate
from nearid_ray.data.sheet import outlined
from nearid_ray.data.store import Dataset, read_rows
from nearid_ray.identifiers import stable_hash
from nearid_ray.reporting.model import SheetPicture, SheetTuple

OBJECT_COLOUR, PART_COLOUR = (0, 170, 255), (255, 128, 0)
"""Outlines of the object and of the part that changed."""
_FEW_ENGINES = 2
_PAINTED = ["identity_id", "view_index", "engine", "image", "oracle", "error"]


def drawn_identities(identities: Sequence[str], count: int, *, purpose: str, seed: int) -> list[str]:
    """`count` of the identities, drawn by a hash: whoever runs it gets the same ones, and nobody chose them."""
    return sorted(set(identities), key=lambda name: (stable_hash(purpose, seed, name), name))[:count]


def sheet_tuples(
    tuples: Dataset,
    distractors: Dataset | None,
    similarities: pa.Table,
    engines: Sequence[str],
    identities: Sequence[str],
    *,
    thumbnail_px: int,
    contours: bool = False,
) -> list[SheetTuple]:
    """The identities' tuples, those with two usable views: the first view is the anchor.

    Args:
        engines: whose distractors are shown, in this order.
        contours: outline the object, and in distractors the part that changed.
    """
    full = similarities.filter(pc.field("condition") == "full")
    rows = {row["identity_id"]: row for row in rows_of(tuples, identities, ["identity_id", "category", "views"])}
    painted: list[dict[str, Any]] = []
    if distractors is not None and engines:
        columns = [*_PAINTED, "mask", "part_mask"] if contours else _PAINTED
        painted = rows_of(distractors, identities, columns, engines)
    scores = _Scores(full.filter(pc.field("identity_id").isin(list(identities))))
    sheet = []
    for identity in identities:
        usable = {i: v for i, v in enumerate(rows[identity]["views"]) if not v["error"]} if identity in rows else {}
        if len(usable) < 2:
            continue
        anchor = min(usable)
        mine = [p for p in painted if p["identity_id"] == identity]
        own = [p for p in mine if p["view_index"] == anchor]
        # Mind-the-Glitch compares a view with the other view's distractor too; of many engines that would be a crowd.
        if contours and len({p["engine"] for p in mine}) <= _FEW_ENGINES:
            crossed = (p for p in mine if p["view_index"] in usable and p["view_index"] != anchor)
            own += [p for p in crossed if scores.distractor(identity, anchor, p["engine"], p["view_index"])]

        def shown(row: Mapping[str, Any], label: str, found: Mapping[str, float | None]) -> SheetPicture:
            data = _contoured(row, thumbnail_px) if contours else thumbnail(row["image"]["bytes"], thumbnail_px)
            return SheetPicture(image=data, label=label, similarities=found, oracle=row.get("oracle"))

        sheet.append(
            SheetTuple(
                identity_id=identity,
                category=rows[identity]["category"],
                anchor=shown(usable[anchor], f"view {anchor}", {}),
                positives=[
                    shown(usable[other], f"view {other}", scores.positive(identity, anchor, other))
                    for other in sorted(usable)
                    if other != anchor
                ],
                distractors=[
                    shown(p, _label(p, anchor), scores.distractor(identity, anchor, p["engine"], p["view_index"]))
                    for p in sorted(own, key=lambda p: (p["view_index"] != anchor, engines.index(p["engine"])))
                ],
            )
        )
    return sheet


def rows_of(
    dataset: Dataset, identities: Sequence[str], columns: Sequence[str], engines: Sequence[str] | None = None
) -> list[dict[str, Any]]:
    """The rows of some identities (and engines) without an error; of the others no picture is read.

    A `where` on the whole dataset would read all its pictures: hundreds of gigabytes for the paper's distractors.
    """
    light = ["identity_id", "error", *(["engine"] if engines is not None else [])]
    found: list[dict[str, Any]] = []
    for shard, table in iterate(dataset, light):
        wanted = pc.is_in(table["identity_id"], pa.array(list(identities), pa.string()))
        wanted = pc.and_(wanted, pc.equal(table["error"], ""))
        if engines is not None:
            wanted = pc.and_(wanted, pc.is_in(table["engine"], pa.array(list(engines), pa.string())))
        if rows := np.flatnonzero(np.asarray(wanted)).tolist():
            found += read_rows(dataset.shard(shard), rows, columns).to_pylist()
    return found


class _Scores:
    """Similarities by pair: {scorer: similarity}."""

    def __init__(self, similarities: pa.Table) -> None:
        self._found: dict[tuple, dict[str, float | None]] = {}
        for row in similarities.filter(pc.field("kind") != "random").to_pylist():
            key = (row["identity_id"], row["view_index"], row["other_view_index"], row["engine"])
            self._found.setdefault(key, {})[row["scorer"]] = row["similarity"]

    def positive(self, identity: str, first: int, second: int) -> dict[str, float | None]:
        return self._found.get((identity, min(first, second), max(first, second), ""), {})

    def distractor(self, identity: str, view: int, engine: str, of_view: int) -> dict[str, float | None]:
        return self._found.get((identity, view, of_view, engine), {})


def _label(row: Mapping[str, Any], anchor: int) -> str:
    return row["engine"] if row["view_index"] == anchor else f"view {row['view_index']}: {row['engine']}"


def thumbnail(data: bytes, width_px: int) -> bytes:
    """The picture as it is where it is small already, else as a JPEG of this width."""
    image_HW3 = decode_rgb(data)
    height, width = image_HW3.shape[:2]
    if width <= width_px:
        return data
    small = resize_rgb(image_HW3, width_px, max(1, round(height * width_px / width)))
    return jpeg(small)


def jpeg(image_HW3: np.ndarray) -> bytes:
    """The picture (H, W, 3) as a JPEG."""
    sink = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image_HW3)).save(sink, "JPEG", quality=85)
    return sink.getvalue()


def _contoured(row: Mapping[str, Any], width_px: int) -> bytes:
    """The picture at the width it is shown in, with outlines drawn there: drawn before, resizing would blur them."""
    image_HW3 = decode_rgb(row["image"]["bytes"])
    height, width = image_HW3.shape[:2]
    size = (width_px, max(1, round(height * width_px / width)))
    shown_HW3 = resize_rgb(image_HW3, *size)
    for name, colour in (("mask", OBJECT_COLOUR), ("part_mask", PART_COLOUR)):
        entry = row.get(name)
        if entry is None or not entry["bytes"]:
            continue
        mask_HW = decode_mask(entry["bytes"])
        if mask_HW.shape == image_HW3.shape[:2]:
            shown_HW3 = outlined(shown_HW3, resize_mask(mask_HW, *size), colour)
    return jpeg(shown_HW3)
