"""Check a shard of a dataset: whether it can be read whole, and whether pictures and columns say the same.

Nothing is written. Each check is named by the kind of its findings:

unreadable       the file, or a page of it by its checksum, is broken
plan-rows        the shard holds other rows than its plan says
picture          a picture cannot be decoded, or a row without an error has none
size             a picture has another size than its row says
content-hash     view_id is not the hash of the view's bytes
perceptual-hash  the column is not what the picture gives
mask             a mask cannot be decoded, is empty, or has another size than its picture
mask-columns     area, pieces or border are not what the mask gives
background       a distractor differs from its view outside its mask
row              columns of a row contradict each other
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from nearid_ray.data.difference import background_max_difference
from nearid_ray.data.findings import Findings
from nearid_ray.data.images import decode_mask, decode_rgb
from nearid_ray.data.light import iterate
from nearid_ray.data.masks import mask_quality
from nearid_ray.data.perceptual import perceptual_hash
from nearid_ray.data.store import Dataset, read_rows, refuse_pickles
from nearid_ray.identifiers import content_hash
from schemas import TABLES

_ROWS_AT_ONCE = 32
_IMAGE = "views.list.element.image"
_UNIT = 1e-3
"""How far the length of a unit vector in float32 may be from 1."""

Row = dict[str, Any]


@dataclass(frozen=True)
class ViewPlace:
    """Where a view lies."""

    uri: str
    shard: str
    row: int
    index: int


@dataclass(frozen=True)
class ShardJob:
    """A shard to check."""

    uri: str
    table: str
    shard: str
    planned_rows: int | None = None
    """Rows that the plan gives it; None where the dataset has no plan."""
    planned_ids: Sequence[str] = ()
    """Their keys in order, where the plan's row ids are the table's keys."""


def view_places(tuples: Sequence[Dataset]) -> dict[str, ViewPlace]:
    """Where each view of some tuples datasets lies, by view_id."""
    places: dict[str, ViewPlace] = {}
    for dataset in tuples:
        for shard, table in iterate(dataset, ["views.view_id"]):
            for row, views in enumerate(table["views"].to_pylist()):
                for index, view in enumerate(views or ()):
                    places.setdefault(view["view_id"], ViewPlace(dataset.location.uri, shard, row, index))
    return places


class ShardChecker:
    """Checks shards, one after the other; `views` lets it compare distractors with their views."""

    def __init__(self, views: Mapping[str, ViewPlace]) -> None:
        self._views = views

    def check(self, job: ShardJob) -> Findings:
        """Read the shard, with its page checksums, and look at every row."""
        found = Findings()
        where, ids = f"data/{job.shard}.parquet", []
        look = _LOOKS.get(job.table)
        key = TABLES[job.table].key[0]
        try:
            for batch in _batches(Dataset(job.uri).shard(job.shard)):
                rows = batch.to_pylist()
                backgrounds = _Backgrounds(self._views, rows) if job.table == "distractors" else None
                for row in rows:
                    found.checked["rows"] += 1
                    ids.append(row.get(key))
                    if error := row.get("error"):
                        found.add("row-with-error", f"{where} {row.get(key)}: {error}")
                    if look is not None:
                        _look(look, _Row(row, f"{where} {row.get(key)}", found, backgrounds))
        except (OSError, pa.ArrowException) as error:
            found.add("unreadable", f"{where}, after {len(ids)} rows: {' '.join(str(error).split())}")
            return found
        if job.planned_rows is not None and len(ids) != job.planned_rows:
            found.add("plan-rows", f"{where} has {len(ids)} rows; its plan has {job.planned_rows}")
        elif job.planned_ids and ids != list(job.planned_ids):
            place = next(i for i, (a, b) in enumerate(zip(ids, job.planned_ids, strict=True)) if a != b)
            found.add("plan-rows", f"{where} row {place} is {ids[place]}; its plan has {job.planned_ids[place]}")
        return found


def _look(look: "Callable[[_Row], None]", row: "_Row") -> None:
    try:
        look(row)
    except (KeyError, TypeError, AttributeError) as error:  # columns that are missing, or null against the contract
        row.add("row", f"it cannot be looked into: {type(error).__name__} {error}")


def _batches(place: Any) -> Iterator[pa.RecordBatch]:
    with place.filesystem.open_input_file(place.path) as stream:
        file = pq.ParquetFile(stream, page_checksum_verification=True)
        refuse_pickles(file.schema_arrow, place.uri)
        yield from file.iter_batches(_ROWS_AT_ONCE)


@dataclass
class _Row:
    """A row being checked, and how its findings are called."""

    values: Row
    where: str
    found: Findings
    backgrounds: "_Backgrounds | None" = None
    suffix: str = ""

    def add(self, kind: str, said: str) -> None:
        self.found.add(kind, f"{self.where}{self.suffix}: {said}")

    def json(self, name: str) -> None:
        try:
            json.loads(self.values.get(name) or "{}")
        except ValueError:
            self.add("row", f"{name} is not JSON")

    def picture(self, name: str) -> np.ndarray | None:
        """The decoded picture; a finding where there is none though the row has no error."""
        encoded = (self.values.get(name) or {}).get("bytes")
        if encoded is None:
            if not self.values["error"]:
                self.add("picture", f"{name} is missing and the row has no error")
            return None
        self.found.checked["pictures"] += 1
        try:
            return decode_rgb(encoded)
        except ValueError as error:
            self.add("picture", f"{name}: {error}")
            return None

    def mask(self, name: str, image_HW3: np.ndarray | None, *, may_be_empty: bool = False) -> np.ndarray | None:
        encoded = (self.values.get(name) or {}).get("bytes")
        if encoded is None:
            return None
        self.found.checked["masks"] += 1
        try:
            mask_HW = decode_mask(encoded)
        except ValueError as error:
            self.add("mask", f"{name}: {error}")
            return None
        if image_HW3 is not None and mask_HW.shape != image_HW3.shape[:2]:
            self.add("mask", f"{name} is {_size(mask_HW)} px, its picture {_size(image_HW3)} px")
            return None
        if not mask_HW.any() and not may_be_empty:
            self.add("mask", f"{name} is empty")
        return mask_HW

    def square(self, image_HW3: np.ndarray) -> None:
        side = self.values["size_px"]
        if image_HW3.shape[:2] != (side, side):
            self.add("size", f"the picture is {_size(image_HW3)} px, size_px is {side}")


def _look_at_identity(row: _Row) -> None:
    views = row.values["views"] or []
    row.json("provenance")
    if any(view["error"] for view in views) and not row.values["error"]:
        row.add("row", "a view has an error and the row has none")
    for index, view in enumerate(views):
        _look_at_view(_Row(view, row.where, row.found, suffix=f"/{index}"))


def _look_at_view(view: _Row) -> None:
    values = view.values
    view.json("provenance")
    encoded = (values["image"] or {}).get("bytes")
    if encoded is not None and values["view_id"] != content_hash(encoded):
        view.add("content-hash", f"view_id {values['view_id']} is not the hash of the picture")
    image_HW3 = view.picture("image")
    if image_HW3 is not None:
        view.square(image_HW3)
        if values["perceptual_hash"] != perceptual_hash(image_HW3):
            view.add(
                "perceptual-hash", f"{values['perceptual_hash']!r}; the picture has {perceptual_hash(image_HW3)!r}"
            )
    mask_HW = view.mask("mask", image_HW3)
    view.mask("part_mask", image_HW3, may_be_empty=True)
    said = (values["mask_area"], values["mask_pieces"], values["mask_touches_border"])
    if mask_HW is None:
        if values["mask"] is None and any(value is not None for value in said):
            view.add("mask-columns", f"area, pieces, border are {said} without a mask")
        return
    area, pieces, border = mask_quality(mask_HW)
    if None in said or not math.isclose(said[0], area, abs_tol=1e-5) or said[1:] != (pieces, border):
        view.add("mask-columns", f"area, pieces, border are {said}; the mask has {(round(area, 6), pieces, border)}")


def _look_at_distractor(row: _Row) -> None:
    values = row.values
    image_HW3 = row.picture("image")
    mask_HW = row.mask("mask", image_HW3)
    row.mask("part_mask", image_HW3, may_be_empty=True)
    if values["error"] and values["verdict"] != "none":
        row.add("row", f"the verdict is {values['verdict']} though the row has an error")
    if image_HW3 is None:
        return
    row.square(image_HW3)
    # 0 says that the background is exactly the view's; other values are measurements of imported distractors.
    if mask_HW is None or values["background_max_difference"] != 0 or row.backgrounds is None:
        return
    view_HW3 = row.backgrounds.view(values["view_id"])
    if view_HW3 is None:
        return
    row.found.checked["backgrounds"] += 1
    if view_HW3.shape != image_HW3.shape:
        row.add("background", f"the picture is {_size(image_HW3)} px, its view {_size(view_HW3)} px")
    elif leak := background_max_difference(view_HW3, image_HW3, mask_HW):
        row.add("background", f"differs from its view by up to {leak} outside the mask; the row says 0")


def _look_at_generated(row: _Row) -> None:
    image_HW3 = row.picture("image")
    said = (row.values["width_px"], row.values["height_px"])
    if image_HW3 is not None and image_HW3.shape[1::-1] != said:
        row.add("size", f"the picture is {_size(image_HW3)} px, the row says {said[0]} x {said[1]}")


def _look_at_embedding(row: _Row) -> None:
    vector = row.values["embedding"]
    if vector is None:
        if not row.values["error"]:
            row.add("row", "there is neither an embedding nor an error")
    elif not abs(math.sqrt(sum(value * value for value in vector)) - 1) <= _UNIT:
        row.add("row", "the embedding is no unit vector")


def _look_at_margin(row: _Row) -> None:
    values = row.values
    parts = [values["positive_similarity"], values["distractor_similarity"]]
    valid = all(part is not None and math.isfinite(part) for part in parts)
    if values["valid"] != valid:
        row.add("row", f"valid is {values['valid']}, the similarities are {parts[0]} and {parts[1]}")
    elif valid and not math.isclose(values["margin"] or 0.0, parts[0] - parts[1], abs_tol=1e-9):
        row.add("row", f"the margin is {values['margin']}, the similarities differ by {parts[0] - parts[1]}")
    if values["success"] != (values["valid"] and (values["margin"] or 0.0) > 0):
        row.add("row", f"success is {values['success']} with a margin of {values['margin']}")


_LOOKS: dict[str, Callable[[_Row], None]] = {
    "tuples": _look_at_identity,
    "distractors": _look_at_distractor,
    "generated": _look_at_generated,
    "embeddings": _look_at_embedding,
    "margins": _look_at_margin,
}


class _Backgrounds:
    """The views of some distractors; those of one shard are read together, the last one is kept decoded."""

    def __init__(self, places: Mapping[str, ViewPlace], rows: Sequence[Row]) -> None:
        self._encoded: dict[str, bytes | None] = {}
        self._last: tuple[str, np.ndarray | None] = ("", None)
        wanted: dict[tuple[str, str], dict[str, ViewPlace]] = {}
        for row in rows:
            place = places.get(row.get("view_id") or "")
            if place is not None:
                wanted.setdefault((place.uri, place.shard), {})[row["view_id"]] = place
        for (uri, shard), found in wanted.items():
            try:
                column = read_rows(Dataset(uri).shard(shard), [p.row for p in found.values()], [_IMAGE])["views"]
            except (OSError, IndexError, pa.ArrowException):
                continue  # said where that dataset is checked
            for (view_id, place), views in zip(found.items(), column.to_pylist(), strict=True):
                self._encoded[view_id] = (views[place.index]["image"] or {}).get("bytes")

    def view(self, view_id: str) -> np.ndarray | None:
        """None where it is not there or cannot be decoded, which is said of its own dataset."""
        if self._last[0] != view_id:
            encoded = self._encoded.get(view_id)
            try:
                self._last = (view_id, None if encoded is None else decode_rgb(encoded))
            except ValueError:
                self._last = (view_id, None)
        return self._last[1]


def _size(array: np.ndarray) -> str:
    return f"{array.shape[1]} x {array.shape[0]}"
