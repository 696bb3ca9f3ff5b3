"""Sheets to look at: queries with their neighbours, clusters with their members."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from nearid_ray.data.images import decode_rgb
from nearid_ray.data.sheet import contact_sheet
from nearid_ray.retrieving.places import KEY, read_places

SAME, OTHER, UNKNOWN = (34, 139, 70), (200, 40, 40), (150, 150, 150)
"""Frames: the same identity, another one, not known."""

CELL_PX = 128
_FRAME_PX = 5
Id = tuple[Any, ...]


class PictureFinder:
    """Pictures by what names them, read when they are asked for."""

    def __init__(self, places: Sequence[pa.Table]) -> None:
        self._places: dict[Id, dict[str, Any]] = {}
        for table in places:
            for row in table.to_pylist():
                self._places.setdefault(key_of(row), row)

    def __bool__(self) -> bool:
        return bool(self._places)

    def read(self, wanted: Sequence[Id]) -> dict[Id, np.ndarray]:
        """The pictures (H, W, 3) that are there and can be decoded."""
        places = [self._places[name] | {"has_mask": False} for name in dict.fromkeys(wanted) if name in self._places]
        found = {}
        for place, (data, _) in zip(places, read_places(places), strict=True):
            try:
                if data is not None:
                    found[key_of(place)] = decode_rgb(data)
            except ValueError:
                continue
        return found


def key_of(row: Mapping[str, Any]) -> Id:
    """What names a picture, from a row that has the columns of `KEY`."""
    return tuple(row[name] for name in KEY)


def framed(picture_HW3: np.ndarray | None, colour: tuple[int, int, int], cell_px: int = CELL_PX) -> np.ndarray:
    """A picture fitted into a square cell with a coloured frame; a grey square where there is none."""
    inner = cell_px - 2 * _FRAME_PX
    cell = Image.new("RGB", (cell_px, cell_px), colour)
    if picture_HW3 is None:
        cell.paste((225, 225, 225), (_FRAME_PX, _FRAME_PX, cell_px - _FRAME_PX, cell_px - _FRAME_PX))
        return np.array(cell)
    image = Image.fromarray(picture_HW3)
    scale = inner / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    image = image.resize(size, Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST)
    cell.paste((255, 255, 255), (_FRAME_PX, _FRAME_PX, cell_px - _FRAME_PX, cell_px - _FRAME_PX))
    cell.paste(image, ((cell_px - image.width) // 2, (cell_px - image.height) // 2))
    return np.array(cell)


def neighbour_sheet(
    queries: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]], pictures: PictureFinder
) -> np.ndarray:
    """One line a query: its picture, then its neighbours with similarity and identity, (H, W, 3).

    Frames are green for the same identity, red for another, grey where it is not known.

    Args:
        queries: `name`, `shown` and the columns of `KEY`.
        rows: records of `schemas.NEIGHBOURS`, of these queries, of one scorer and condition.
    """
    of_query: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        of_query.setdefault((row["query"], row["query_image_id"]), []).append(row)
    mine = [of_query.get((query["name"], query["image_id"]), []) for query in queries]
    found = pictures.read([*map(key_of, queries), *(key_of(row) for some in mine for row in some)])
    cells, captions = [], []
    for query, some in zip(queries, mine, strict=True):
        colours = [UNKNOWN if row["same"] is None else SAME if row["same"] else OTHER for row in some]
        shown = (framed(found.get(key_of(row)), colour) for row, colour in zip(some, colours, strict=True))
        cells.append([framed(found.get(key_of(query)), (0, 0, 0)), *shown])
        captions.append(
            [
                f"query\n{'/'.join(query['name'].split('/')[-2:])}",
                *(f"{r['similarity']:.3f}\n{described(r)}" for r in some),
            ]
        )
    return contact_sheet(cells, captions, cell_px=CELL_PX)


def cluster_sheet(clusters: Sequence[Sequence[Mapping[str, Any]]], pictures: PictureFinder) -> np.ndarray:
    """One line a cluster: its members, (H, W, 3).

    Frames are green where a member shows the identity that most of the cluster's members show, red where it shows
    another, grey where that is not known.

    Args:
        clusters: members of each, with the columns of `KEY`, `similarity`, and `right`: True, False or None.
    """
    found = pictures.read([key_of(row) for members in clusters for row in members])
    colours = {None: UNKNOWN, True: SAME, False: OTHER}
    cells = [[framed(found.get(key_of(row)), colours[row["right"]]) for row in members] for members in clusters]
    captions = [
        [f"cluster {row['cluster']}, {row['similarity']:.3f}\n{described(row)}" for row in members]
        for members in clusters
    ]
    return contact_sheet(cells, captions, cell_px=CELL_PX)


def described(row: Mapping[str, Any]) -> str:
    """A gallery picture's identity and view, and below them the engine that made it."""
    where = f" {row['view_index']}" if row["view_index"] >= 0 else ""
    return f"{short(row['identity_id'])}{where}\n{row['engine']}".strip()


def short(name: str) -> str:
    """A file's last part, an identity without its source: captions are cut off at their end.

    >>> short("/photos/mug/1.jpg"), short("toybox:mug-12")
    ('1.jpg', 'mug-12')
    """
    name = name.rstrip("/").rsplit("/", 1)[-1]
    return name.partition(":")[2] or name


def spread(count: int, most: int) -> list[int]:
    """At most `most` of `count` places, evenly spread.

    >>> spread(5, 3), spread(2, 3)
    ([0, 1, 3], [0, 1])
    """
    return list(range(count)) if count <= most else [i * count // most for i in range(most)]
