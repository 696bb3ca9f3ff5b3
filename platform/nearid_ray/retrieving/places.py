"""Where pictures lie: those of datasets and those of files, in one table; and reading some of them.

A place names a picture by the columns of `schemas.EMBEDDINGS` and says where its bytes are: a row of a dataset's shard
(a view inside a row of tuples), or a file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa

from nearid_ray.data.light import check_complete, iterate
from nearid_ray.data.store import Dataset, locate, read_rows
from nearid_ray.embedding.plan import PICTURE_FIELDS
from nearid_ray.errors import UsageError
from nearid_ray.identifiers import content_hash
from nearid_ray.scoring.pictures import read_encoded

PLACE_SCHEMA = pa.schema(
    [
        *PICTURE_FIELDS,
        ("input_kind", pa.string()),
        ("input_uri", pa.string()),
        ("input_shard", pa.string()),
        ("input_row", pa.int64()),
        ("has_mask", pa.bool_()),
        ("problem", pa.string()),
    ]
)
"""`input_kind` is tuples, distractors, generated or file; `problem` says why a picture cannot be had, or is empty."""

KEY = ("image_id", "role", "identity_id", "view_index", "engine")
"""What names a picture."""

_VIEW = "views"
_READERS = 8
Row = dict[str, Any]
Encoded = tuple[bytes | None, bytes | None]
"""A picture and its mask, encoded; None where there is none."""


def places_of(dataset: Dataset) -> pa.Table:
    """The pictures of a finished dataset of tuples, distractors or generated pictures. No picture is read.

    Raises:
        UsageError: it is a dataset of another kind, or unfinished.
    """
    table = (dataset.settings() or {}).get("table")
    listing = {"tuples": _views, "distractors": _distractors, "generated": _generated}.get(str(table))
    if listing is None:
        raise UsageError(
            f"{dataset.location.uri} holds {table!r}; expected a dataset with pictures: tuples, distractors or "
            "generated"
        )
    check_complete(dataset)
    common = {"input_kind": str(table), "input_uri": dataset.location.uri}
    return pa.Table.from_pylist([row | common for row in listing(dataset)], schema=PLACE_SCHEMA)


def places_of_files(files: Sequence[str], identities: Mapping[str, str] | None = None) -> pa.Table:
    """Files as places: read once, to name them by their content. A file that cannot be read is a place with a problem.

    Args:
        identities: identity_id by file, where it is known.
    """

    def place(file: str) -> Row:
        where = locate(file)
        try:
            name, problem = content_hash(read_encoded(where.uri)), ""
        except ValueError as error:
            name, problem = content_hash(where.uri.encode()), str(error)
        return {
            "image_id": name,
            "role": "picture",
            "identity_id": (identities or {}).get(file, ""),
            "view_index": -1,
            "engine": "",
            "category": "",
            "split": "test",
            "oracle": None,
            "input_kind": "file",
            "input_uri": where.uri,
            "input_shard": "",
            "input_row": 0,
            "has_mask": False,
            "problem": problem,
        }

    with ThreadPoolExecutor(_READERS) as threads:
        return pa.Table.from_pylist(list(threads.map(place, files)), schema=PLACE_SCHEMA)


def read_places(places: Sequence[Mapping[str, Any]]) -> list[Encoded]:
    """The encoded pictures of some places, and their masks where `has_mask` says so; of a shard only those rows.

    A picture that is missing is None, and why is not said here: the place's `problem` does.
    """
    found: list[Encoded] = [(None, None)] * len(places)
    by_shard: dict[tuple[str, str, str], list[int]] = {}
    for number, place in enumerate(places):
        if not place["problem"]:
            by_shard.setdefault((place["input_kind"], place["input_uri"], place["input_shard"]), []).append(number)
    for (kind, uri, shard), numbers in by_shard.items():
        if kind == "file":
            data = locate(uri).read_bytes()
            for number in numbers:
                found[number] = (data, None)
            continue
        rows = sorted({places[number]["input_row"] for number in numbers})
        prefix = f"{_VIEW}.list.element." if kind == "tuples" else ""
        masks = kind != "generated" and any(places[number]["has_mask"] for number in numbers)
        columns = [f"{prefix}{name}" for name in (("image", "mask") if masks else ("image",))]
        table = read_rows(Dataset(uri).shard(shard), rows, columns).to_pylist()
        row_of = dict(zip(rows, table, strict=True))
        for number in numbers:
            place, row = places[number], row_of[places[number]["input_row"]]
            cell = row[_VIEW][place["view_index"]] if kind == "tuples" else row
            found[number] = (_bytes(cell["image"]), _bytes(cell.get("mask")) if place["has_mask"] else None)
    return found


def _views(tuples: Dataset) -> Iterator[Row]:
    columns = ["identity_id", "category", "split", f"{_VIEW}.view_id", f"{_VIEW}.error", f"{_VIEW}.mask_area"]
    for shard, table in iterate(tuples, columns):
        for number, row in enumerate(table.to_pylist()):
            for index, view in enumerate(row[_VIEW]):
                yield {
                    "image_id": view["view_id"] or f"{row['identity_id']}#{index}",
                    "role": "view",
                    "identity_id": row["identity_id"],
                    "view_index": index,
                    "engine": "",
                    "category": row["category"],
                    "split": row["split"],
                    "oracle": None,
                    "input_shard": shard,
                    "input_row": number,
                    "has_mask": view["mask_area"] is not None,
                    "problem": view["error"],
                }


def _distractors(distractors: Dataset) -> Iterator[Row]:
    columns = [
        "distractor_id", "identity_id", "view_index", "engine", "category", "split", "oracle", "verdict", "error",
    ]  # fmt: skip
    for shard, table in iterate(distractors, columns):
        for number, row in enumerate(table.to_pylist()):
            if row["verdict"] == "accepted":
                kept = {name: row[name] for name in columns[1:7]}
                yield kept | {
                    "image_id": row["distractor_id"],
                    "role": "distractor",
                    "input_shard": shard,
                    "input_row": number,
                    "has_mask": True,
                    "problem": row["error"],
                }


def _generated(generated: Dataset) -> Iterator[Row]:
    for shard, table in iterate(generated, ["generated_id", "identity_id", "method", "category", "error"]):
        for number, row in enumerate(table.to_pylist()):
            yield {
                "image_id": row["generated_id"],
                "role": "generated",
                "identity_id": row["identity_id"],
                "view_index": -1,
                "engine": row["method"],
                "category": row["category"],
                "split": "test",
                "oracle": None,
                "input_shard": shard,
                "input_row": number,
                "has_mask": False,
                "problem": row["error"],
            }


def _bytes(cell: Mapping[str, Any] | None) -> bytes | None:
    return cell["bytes"] if cell else None
