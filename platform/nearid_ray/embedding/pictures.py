"""Reading the pictures and masks of work rows.

Axes: H height, W width, 3 colour channels.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nearid_ray.data.images import decode_mask, decode_rgb
from nearid_ray.data.store import Dataset, read_rows


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
        mask = self._last_mask[1]
        if mask.shape != shape:
            raise ValueError(f"the mask has shape {mask.shape}, the picture {shape}; expected the same")
        if not mask.any():
            raise ValueError("the mask is empty: no pixel belongs to the object")
        return mask


class _Column:
    """Encoded pictures of one column of an input shard."""

    def __init__(self, uri: str, name: str, kind: str, shard: str, rows: list[int]) -> None:
        self._name, self._of_views = name, kind == "tuples"
        column = f"views.list.element.{name}" if self._of_views else name
        table = read_rows(Dataset(uri).shard(shard), rows, [column])
        self._values = table.column(0).combine_chunks()
        self._place = {row: place for place, row in enumerate(rows)}

    def read(self, row: int, view_index: int) -> bytes:
        entry = self._values[self._place[row]]
        if self._of_views:
            entry = entry.values[view_index][self._name]
        data = entry["bytes"].as_py() if entry.is_valid else None
        if not data:
            raise ValueError(f"its {self._name} is missing")
        return data
