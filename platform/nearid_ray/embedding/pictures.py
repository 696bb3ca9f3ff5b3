"""The pictures and masks of work rows, and what of them goes into the model.

Axes: H height, W width, S the model's image side, 3 colour channels.
"""

from collections.abc import Iterable, Mapping
from typing import Any, BinaryIO, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from nearid_ray.data.images import decode_mask, decode_rgb
from nearid_ray.data.store import Dataset, parquet_file, read_rows
from nearid_ray.embedding.augment import AugmentSettings, augment, draw_seed
from nearid_ray.embedding.copies import Copies, name_of
from nearid_ray.errors import UsageError
from nearid_ray.models.backbone import PixelSettings

PLACES = ("input_kind", "input_shard", "input_row", "mask_kind", "mask_shard", "mask_row", "view_index")
"""Columns of a work row that say where its picture and mask lie."""


class PictureSource(Protocol):
    """Finds the picture and the mask of a work row; ValueError where they cannot be read."""

    def image(self, item: Mapping[str, Any]) -> NDArray[np.uint8]: ...

    def mask(self, item: Mapping[str, Any], shape: tuple[int, int]) -> NDArray[np.uint8]: ...


def model_picture(
    pictures: PictureSource, item: Mapping[str, Any], pixels: PixelSettings, settings: AugmentSettings
) -> NDArray[np.uint8]:
    """The picture (S, S, 3) of a work row as the model sees it: masked, augmented, resized; ValueError if broken."""
    image = pictures.image(item)
    mask = pictures.mask(item, image.shape[:2]) if item["masked"] else None
    seed = draw_seed(item["image_id"], masked=item["masked"], draw=item["draw"], settings=settings)
    return pixels.resized(augment(image, mask, settings, masked=item["masked"], seed=seed))


class Pictures:
    """Pictures and masks of some items. The last of each is kept decoded: items of a picture stand side by side."""

    def __init__(self, inputs: dict[str, str], items: list[dict[str, Any]]) -> None:
        rows: dict[tuple[str, str, str], dict[int, None]] = {}
        for item in items:
            rows.setdefault(("image", item["input_kind"], item["input_shard"]), {})[item["input_row"]] = None
            if item["masked"]:
                rows.setdefault(("mask", item["mask_kind"], item["mask_shard"]), {})[item["mask_row"]] = None
        self._columns = {key: _Column(inputs[key[1]], *key, list(wanted)) for key, wanted in rows.items()}
        self._last_image: tuple[Any, NDArray[np.uint8]] | None = None
        self._last_mask: tuple[Any, NDArray[np.uint8]] | None = None

    def image(self, item: Mapping[str, Any]) -> NDArray[np.uint8]:
        """ValueError where it cannot be read."""
        place = (item["input_kind"], item["input_shard"], item["input_row"], item["view_index"])
        if self._last_image is None or self._last_image[0] != place:
            self._last_image = (place, decode_rgb(self._columns["image", *place[:2]].read(*place[2:])))
        return self._last_image[1]

    def mask(self, item: Mapping[str, Any], shape: tuple[int, int]) -> NDArray[np.uint8]:
        """ValueError where it cannot be read, is empty or has another shape than its picture."""
        place = (item["mask_kind"], item["mask_shard"], item["mask_row"], item["view_index"])
        if self._last_mask is None or self._last_mask[0] != place:
            self._last_mask = (place, decode_mask(self._columns["mask", *place[:2]].read(*place[2:])))
        return _fitting(self._last_mask[1], shape)


class MappedPictures:
    """Pictures and masks of whole datasets, for reading in any order from any thread.

    Parquet files must be unpacked to read one row. The shards are therefore laid out on this machine's disk once, as
    Arrow files that are mapped into memory; the pictures in them stay encoded.
    """

    def __init__(self, inputs: Mapping[str, str], copies: Copies) -> None:
        """`inputs` are URIs of datasets by kind: tuples, distractors."""
        self._inputs, self._copies = {kind: Dataset(uri) for kind, uri in inputs.items()}, copies
        self._tables: dict[tuple[str, str], pa.Table] = {}

    def open(self, shards: Iterable[tuple[str, str]]) -> None:
        """Lay out shards, named by kind and name.

        Raises:
            UsageError: the disk, or its share for copies, has no room.
        """
        for kind, shard in shards:
            if (kind, shard) not in self._tables:
                self._tables[kind, shard] = self._opened(kind, shard)

    def image(self, item: Mapping[str, Any]) -> NDArray[np.uint8]:
        table = self._tables[item["input_kind"], item["input_shard"]]
        return decode_rgb(_encoded(table, "image", item["input_kind"], item["input_row"], item["view_index"]))

    def mask(self, item: Mapping[str, Any], shape: tuple[int, int]) -> NDArray[np.uint8]:
        table = self._tables[item["mask_kind"], item["mask_shard"]]
        mask = decode_mask(_encoded(table, "mask", item["mask_kind"], item["mask_row"], item["view_index"]))
        return _fitting(mask, shape)

    def _opened(self, kind: str, shard: str) -> pa.Table:
        place = self._inputs[kind].shard(shard)
        found = place.filesystem.get_file_info(place.path)

        def write(stream: BinaryIO) -> None:
            with parquet_file(place) as file:
                prefix = "views.list.element." if kind == "tuples" else ""
                columns = [f"{prefix}image", f"{prefix}mask"]
                with pa.ipc.new_file(stream, file.read_row_group(0, columns=columns).schema) as writer:
                    for group in range(file.num_row_groups):
                        writer.write_table(file.read_row_group(group, columns=columns))

        path = self._copies.provide(name_of(place, found, ".pictures.arrow"), 2 * found.size, write)
        if path is None:
            raise UsageError(
                f"{self._copies.folder} has no room for the pictures of {place.uri}; allow more with "
                "NEARID_COPIES_GIB, or free some of the disk"
            )
        with pa.memory_map(str(path)) as source:
            return pa.ipc.open_file(source).read_all()


class _Column:
    """Encoded pictures of one column of an input shard."""

    def __init__(self, uri: str, name: str, kind: str, shard: str, rows: list[int]) -> None:
        self._name, self._kind = name, kind
        column = f"views.list.element.{name}" if kind == "tuples" else name
        self._table = read_rows(Dataset(uri).shard(shard), rows, [column]).combine_chunks()
        self._place = {row: place for place, row in enumerate(rows)}

    def read(self, row: int, view_index: int) -> bytes:
        return _encoded(self._table, self._name, self._kind, self._place[row], view_index)


def _encoded(table: pa.Table, name: str, kind: str, row: int, view_index: int) -> bytes:
    """A picture of a shard's table as it was encoded."""
    if kind == "tuples":
        entry = table["views"][row].values[view_index][name]
    else:
        entry = table[name][row]
    data = entry["bytes"].as_py() if entry.is_valid else None
    if not data:
        raise ValueError(f"its {name} is missing")
    return data


def _fitting(mask: NDArray[np.uint8], shape: tuple[int, int]) -> NDArray[np.uint8]:
    if mask.shape != shape:
        raise ValueError(f"the mask has shape {mask.shape}, the picture {shape}; expected the same")
    if not mask.any():
        raise ValueError("the mask is empty: no pixel belongs to the object")
    return mask
