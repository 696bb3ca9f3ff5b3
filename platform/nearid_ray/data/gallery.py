"""A sheet of some pictures of a dataset: views with their mask's outline, distractors, generated pictures."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from nearid_ray.data.engine_sheet import engine_sheet
from nearid_ray.data.images import decode_mask, decode_rgb
from nearid_ray.data.light import picture_columns, schema_of
from nearid_ray.data.sheet import contact_sheet, outlined
from nearid_ray.data.store import Dataset, read_rows
from nearid_ray.errors import UsageError

Cells = tuple[list[np.ndarray | None], list[str]]
"""A row of the sheet: pictures and their captions."""

_MOST_ROWS = 200
_IN_A_LINE = 6


def sheet(dataset: Dataset, rows: int, tuples: Dataset | None = None, identities: Sequence[str] = ()) -> np.ndarray:
    """Some rows of the dataset, evenly spread over it, as one uint8 (H, W, 3) picture.

    Tuples: a row's views with the mask outlined. Distractors: with its mask outlined, and without; where their `tuples`
    are given, one identity a row with what each engine made of it (`engine_sheet`). Other tables with pictures: the
    picture alone, several a row. UsageError where the dataset has no picture or `rows` is out of 1 to 200.
    """
    if not 1 <= rows <= _MOST_ROWS:
        raise UsageError(f"{rows} rows are asked for; expected 1 to {_MOST_ROWS} for a sheet")
    table = (dataset.settings() or {}).get("table")
    if not dataset.shards() or not picture_columns(schema_of(dataset)):
        raise UsageError(f"{dataset.location.uri}: a dataset of {table!r} holds no pictures to show")
    places = spread(dataset, rows)
    if not places:
        raise UsageError(f"{dataset.location.uri}: the dataset has no rows to show")
    if table == "distractors" and tuples is not None:
        return engine_sheet(tuples, dataset, identities, rows=rows)
    if table == "distractors":
        made = [_distractor(dataset, place) for place in places]
    elif table == "tuples":
        made = [_views(dataset, place) for place in places]
    else:
        made = _in_lines([_plain(dataset, place) for place in places])
    return contact_sheet([pictures for pictures, _ in made], [captions for _, captions in made])


def spread(dataset: Dataset, count: int) -> list[tuple[str, int]]:
    """(shard, row) of at most `count` rows, evenly spread over all."""
    sizes = []
    for name in dataset.shards():
        place = dataset.shard(name)
        sizes.append((name, pq.read_metadata(place.path, filesystem=place.filesystem).num_rows))
    total = sum(size for _, size in sizes)
    wanted, found, start = {i * total // count for i in range(min(count, total))}, [], 0
    if total <= count:
        wanted = set(range(total))
    for name, size in sizes:
        found += [(name, row) for row in range(size) if start + row in wanted]
        start += size
    return found


def _views(dataset: Dataset, place: tuple[str, int]) -> Cells:
    row = read_rows(dataset.shard(place[0]), [place[1]]).to_pylist()[0]
    pictures, captions = [], []
    for index, view in enumerate(row["views"]):
        pictures.append(_outlined(view["image"], view["mask"]))
        area = "no mask" if view["mask_area"] is None else f"{view['mask_source']} {view['mask_area']:.0%}"
        captions.append(view["error"] or f"{index} {_name(row)}\n{area}")
    return (pictures, captions) if pictures else ([None], [row["error"] or f"{row['identity_id']}: no views"])


def _distractor(dataset: Dataset, place: tuple[str, int]) -> Cells:
    row = read_rows(dataset.shard(place[0]), [place[1]]).to_pylist()[0]
    pictures = [_outlined(row["image"], row["mask"]), _outlined(row["image"], None)]
    return pictures, [row["error"] or f"{row['engine']} {row['verdict']}", row["distractor_id"]]


def _plain(dataset: Dataset, place: tuple[str, int]) -> Cells:
    row = read_rows(dataset.shard(place[0]), [place[1]]).to_pylist()[0]
    pictures = [_outlined(row[name], None) for name in picture_columns(schema_of(dataset)) if "." not in name]
    said = " ".join(str(row[name]) for name in ("method", "prompt_index", "prompt") if row.get(name) is not None)
    return pictures, [row.get("error") or f"{_name(row)}\n{said}"] * len(pictures)


def _name(row: dict[str, Any]) -> str:
    """The identity without its source: captions are cut off at their end."""
    identity = str(row.get("identity_id", ""))
    return identity.partition(":")[2] or identity


def _in_lines(cells: list[Cells]) -> list[Cells]:
    """Rows of one picture or two as fewer, longer ones."""
    pictures = [picture for some, _ in cells for picture in some]
    captions = [caption for _, some in cells for caption in some]
    starts = range(0, len(pictures), _IN_A_LINE)
    return [(pictures[i : i + _IN_A_LINE], captions[i : i + _IN_A_LINE]) for i in starts]


def _outlined(image: dict | None, mask: dict | None) -> np.ndarray | None:
    """The picture, with the mask's outline where there is one; None where it cannot be decoded."""
    try:
        if image is None or image["bytes"] is None:
            return None
        image_HW3 = decode_rgb(image["bytes"])
        if mask is None or mask["bytes"] is None:
            return image_HW3
        mask_HW = decode_mask(mask["bytes"])
        return outlined(image_HW3, mask_HW) if mask_HW.shape == image_HW3.shape[:2] else image_HW3
    except ValueError:
        return None
