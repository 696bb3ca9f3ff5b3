"""Vectors of many pictures on disk, read by memory map: `vectors/SHARD.npy`, float32, one row a picture.

Axes: N pictures of a shard, P pictures asked for, D width.
"""

import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nearid_ray.data.store import Location
from nearid_ray.embedding.copies import Copies, copies_folder
from nearid_ray.errors import UsageError

FOLDER = "vectors"


def vectors_bytes(vector_ND: NDArray[np.float32]) -> bytes:
    """The file of a shard."""
    stream = io.BytesIO()
    np.save(stream, np.ascontiguousarray(vector_ND, np.float32))
    return stream.getvalue()


class Vectors:
    """The vectors of all shards, by the number that a picture has in the plan. Remote files are copied here first."""

    def __init__(self, dataset: Location, shards: Sequence[str], starts: NDArray[np.int64]) -> None:
        """`starts` holds the number of each shard's first picture, ascending."""
        self._folder, self._shards, self._starts = dataset.child(FOLDER), list(shards), starts
        self._opened: dict[int, NDArray[np.float32]] = {}
        self._copies: Copies | None = None
        self.width = 0

    def gather(self, item_P: NDArray[np.int64]) -> NDArray[np.float32]:
        """vector_PD of pictures; nan rows for -1 and for pictures without a vector."""
        shard_P = np.searchsorted(self._starts, item_P, side="right") - 1
        parts = [(shard, np.flatnonzero(shard_P == shard)) for shard in np.unique(shard_P[item_P >= 0]).tolist()]
        opened = [(self._open(shard), places, self._starts[shard]) for shard, places in parts]
        vector_PD = np.full((len(item_P), self.width), np.nan, np.float32)
        for vector_ND, places, start in opened:
            if vector_ND.shape[1]:  # else nothing of the shard could be embedded
                vector_PD[places] = vector_ND[item_P[places] - start]
        return vector_PD

    def _open(self, shard: int) -> NDArray[np.float32]:
        if shard not in self._opened:
            vector_ND = np.load(self._path(self._folder.child(f"{self._shards[shard]}.npy")), mmap_mode="r")
            width = vector_ND.shape[1]
            if width and self.width not in (0, width):
                raise UsageError(
                    f"{self._folder.uri}: {self._shards[shard]}.npy has vectors of {width} numbers, others have "
                    f"{self.width}; the scorer must give the same width for all pictures"
                )
            self.width = self.width or width
            self._opened[shard] = vector_ND
        return self._opened[shard]

    def _path(self, place: Location) -> str:
        if place.is_local:
            return place.path
        self._copies = self._copies or Copies(copies_folder())
        path = self._copies.fetch(place, place.filesystem.get_file_info(place.path))
        if path is None:
            raise UsageError(
                f"{copies_folder()} has no room for {place.uri}; allow more with NEARID_COPIES_GIB, or free some disk"
            )
        return str(path)
