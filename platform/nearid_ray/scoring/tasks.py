"""The shards of a score job: pictures through the scorer, then pairs of their vectors.

Axes: N pictures of a shard, B pictures of a batch, P pairs of a part, D embedding width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import torch
from numpy.typing import NDArray

from nearid_ray.data.images import decode_rgb
from nearid_ray.data.pipeline import ShardResult
from nearid_ray.data.store import Dataset, locate, read_parquet
from nearid_ray.errors import UsageError
from nearid_ray.models.pixels import PixelSettings
from nearid_ray.scoring.calibrated import ConditionCalibration
from nearid_ray.scoring.embedders import Embedder, FunctionFailed
from nearid_ray.scoring.pictures import check_aspect, read_encoded
from nearid_ray.scoring.scorer import cosines, load
from nearid_ray.scoring.vectors import FOLDER, Vectors, vectors_bytes
from schemas import SCORED_IMAGES, SCORES

_READERS = 16
"""Remote pictures read at a time by a worker."""
_BLOCK_NUMBERS = 4_000_000
"""Pairs are multiplied in blocks of about this many numbers a side."""
NOT_FINITE = "the scorer gives no finite embedding of it"


@dataclass
class Read:
    """Pictures of a shard: at the model's size, or as they were encoded for a function; None with an error."""

    images: list[NDArray[np.uint8] | bytes | None]
    errors: list[str]


@dataclass
class Embedded:
    """Unit vectors; nan with an error."""

    vector_ND: NDArray[np.float32]
    errors: list[str]


@dataclass
class ImagesTask:
    """A shard of distinct pictures through the scorer. A work row's `row_id` is the path."""

    spec: str
    options: Mapping[str, Any]
    """Of `scorer.load`, device and calibration apart."""
    fingerprint: str
    batch_size: int
    threads: int
    pixels: PixelSettings | None
    """The model's preprocessor; None for a function, which sees whole pictures."""
    uses_model: bool = True
    _embedder: Embedder | None = field(default=None, repr=False)

    def setup(self) -> None:
        """Load the scorer; UsageError when it is not the one the plan was made with."""
        torch.set_num_threads(self.threads)
        cv2.setNumThreads(self.threads)
        gpu = torch.cuda.is_available() and (not ray.is_initialized() or bool(ray.get_gpu_ids()))
        scorer = load(self.spec, device="cuda" if gpu else "cpu", calibration="none", **self.options)
        if scorer.fingerprint != self.fingerprint:
            raise UsageError(
                f"the scorer {self.spec} of this worker has the fingerprint {scorer.fingerprint}, that of the driver "
                f"{self.fingerprint}; give a path that all nodes share, or a hub id with a revision"
            )
        self._embedder = scorer.embedder

    def prepare(self, work: pa.Table) -> Read:
        """Read, decode and shrink the pictures."""
        paths = work["row_id"].to_pylist()
        if any("://" in path for path in paths):
            with ThreadPoolExecutor(_READERS) as readers:
                found = list(readers.map(self._picture, paths))
        else:
            found = list(map(self._picture, paths))
        return Read([image for image, _ in found], [error for _, error in found])

    def compute(self, prepared: Read) -> Embedded:
        """The pictures without error through the scorer, `batch_size` at a time."""
        errors = list(prepared.errors)
        good = [place for place, error in enumerate(errors) if not error]
        vector_ND: NDArray[np.float32] = np.zeros((len(errors), 0), np.float32)
        for start in range(0, len(good), self.batch_size):
            places = good[start : start + self.batch_size]
            vectors = self._embedded([prepared.images[place] for place in places], places, errors)
            if not vector_ND.shape[1] and vectors.shape[1]:
                vector_ND = np.full((len(errors), vectors.shape[1]), np.nan, np.float32)
            if vectors.shape[1] not in (0, vector_ND.shape[1]):
                raise UsageError(
                    f"the scorer {self.spec} gave {vector_ND.shape[1]} numbers a picture, then {vectors.shape[1]}; "
                    "expected the same for all"
                )
            if vectors.shape[1]:
                vector_ND[places] = vectors
        if vector_ND.shape[1]:
            for place in np.flatnonzero(np.isnan(vector_ND).any(axis=1)).tolist():
                errors[place] = errors[place] or NOT_FINITE
        return Embedded(vector_ND, errors)

    def finish(self, work: pa.Table, computed: Embedded) -> ShardResult:
        """The shard's rows, and its file of vectors."""
        shard = work["shard"][0].as_py()
        columns = {
            "image": work["row_id"],
            "shard": pa.array([shard] * work.num_rows, pa.string()),
            "row": pa.array(np.arange(work.num_rows)),
            "error": pa.array(computed.errors, pa.string()),
        }
        rows = pa.table([columns[name] for name in SCORED_IMAGES.schema.names], schema=SCORED_IMAGES.schema)
        return ShardResult(rows, {f"{FOLDER}/{shard}.npy": vectors_bytes(computed.vector_ND)})

    def _picture(self, path: str) -> tuple[NDArray[np.uint8] | bytes | None, str]:
        try:
            data = read_encoded(path)
            image = decode_rgb(data)
            check_aspect(image)
            return (data if self.pixels is None else self.pixels.resized(image)), ""
        except ValueError as error:
            return None, str(error)

    def _embedded(self, images: Sequence[Any], places: list[int], errors: list[str]) -> NDArray[np.float32]:
        """Vectors of a batch; where a function fails, each picture is tried alone, so that one spoils no other."""
        if self._embedder is None:
            raise RuntimeError("the task has no scorer yet; call setup first")
        arrays = [decode_rgb(image) if isinstance(image, bytes) else image for image in images]
        try:
            return self._embedder.embed(arrays)
        except FunctionFailed as error:
            if len(arrays) == 1:
                errors[places[0]] = str(error)
                return np.zeros((1, 0), np.float32)
        alone = [self._embedded([image], [place], errors) for image, place in zip(arrays, places, strict=True)]
        width = max(vector.shape[1] for vector in alone)
        return np.concatenate([v if v.shape[1] else np.full((1, width), np.nan, np.float32) for v in alone])


@dataclass
class PairsTask:
    """A part of the list of pairs: cosines of the vectors, and what a calibration makes of them. A work row's `row_id`
    names the part; `rows` are its pairs."""

    parts: str
    """Folder of the parts: the list's columns with `row`, `a_item` and `b_item`, the pictures' numbers."""
    images: str
    shards: tuple[str, ...]
    starts: NDArray[np.int64]
    calibrated: ConditionCalibration | None = None
    threshold: float | None = None
    same_share: float = 0.5
    uses_model: bool = False
    _vectors: Vectors | None = field(default=None, repr=False)
    _bad_items: NDArray[np.int64] | None = field(default=None, repr=False)
    _reasons: pa.Array | None = field(default=None, repr=False)

    def setup(self) -> None:
        """Open the vectors; find the pictures that have none."""
        images = Dataset(self.images)
        self._vectors = Vectors(images.location, self.shards, self.starts)
        bad = images.read(["shard", "row", "error"], where=pc.field("error") != "")
        first = pa.array(self.starts).take(pc.index_in(bad["shard"], pa.array(self.shards)).combine_chunks())
        item = np.asarray(pc.add(bad["row"].combine_chunks(), first))
        order = np.argsort(item)
        self._bad_items, self._reasons = item[order], bad["error"].combine_chunks().take(pa.array(order))

    def prepare(self, work: pa.Table) -> pa.Table:
        names = work["row_id"].to_pylist()
        return pa.concat_tables([read_parquet(locate(self.parts).child(f"{name}.parquet")) for name in names])

    def compute(self, prepared: pa.Table) -> pa.Table:
        """The rows as `schemas.SCORES` has them, then the list's other columns."""
        if self._vectors is None:
            raise RuntimeError("the task has no vectors yet; call setup first")
        items = {side: _items(prepared[f"{side}_item"]) for side in ("a", "b")}
        similarity_P = self._similarity(self._vectors, items["a"], items["b"])
        error = self._errors(prepared, items)
        missing = np.asarray(pc.not_equal(error, ""))
        columns: dict[str, Any] = {name: prepared[name] for name in prepared.column_names if not name.endswith("_item")}
        columns |= {
            "similarity": pa.array(similarity_P, pa.float64(), mask=missing),
            "probability": pa.nulls(len(prepared), pa.float64()),
            "same": pa.nulls(len(prepared), pa.bool_()),
            "error": error,
        }
        if self.calibrated is not None:
            probability = self.calibrated.calibration.probability(similarity_P, same_share=self.same_share)
            columns["probability"] = pa.array(probability, pa.float64(), mask=missing)
        if self.threshold is not None:
            columns["same"] = pa.array(similarity_P >= self.threshold, pa.bool_(), mask=missing)
        further = [f for f in prepared.schema if f.name not in SCORES.schema.names and f.name in columns]
        schema = SCORES.schema_with(further)
        return pa.table([columns[name] for name in schema.names], schema=schema)

    def finish(self, work: pa.Table, computed: pa.Table) -> ShardResult:
        return ShardResult(computed)

    def _similarity(
        self, vectors: Vectors, first_P: NDArray[np.int64], second_P: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        similarity_P = np.full(len(first_P), np.nan)
        block = max(1, _BLOCK_NUMBERS // max(vectors.width, 1024))
        for start in range(0, len(first_P), block):
            part = slice(start, start + block)
            first_PD, second_PD = vectors.gather(first_P[part]), vectors.gather(second_P[part])
            if first_PD.shape == second_PD.shape:  # else one side has no vector at all
                similarity_P[part] = cosines(first_PD, second_PD)
        return similarity_P

    def _errors(self, prepared: pa.Table, items: Mapping[str, NDArray[np.int64]]) -> pa.Array:
        """What is wrong with each pair: `a: REASON`, both where both are bad."""
        said = {}
        for side, item_P in items.items():
            assert self._bad_items is not None and self._reasons is not None
            place_P = np.minimum(np.searchsorted(self._bad_items, item_P), max(len(self._bad_items) - 1, 0))
            bad_P = self._bad_items[place_P] == item_P if len(self._bad_items) else np.zeros(len(item_P), bool)
            reason = self._reasons.take(pa.array(place_P, mask=~bad_P))
            reason = pc.if_else(pa.array(item_P < 0), "no picture is named", reason)
            path = pc.coalesce(prepared[side].combine_chunks(), pa.scalar(""))
            named = pc.if_else(pc.equal(path, ""), side, pc.binary_join_element_wise(f"{side} (", path, ")", ""))
            told = pc.binary_join_element_wise(named, reason, ": ")
            said[side] = pc.coalesce(told, pa.scalar(""))
        between = pc.if_else(pc.and_(pc.not_equal(said["a"], ""), pc.not_equal(said["b"], "")), "; ", "")
        return pc.binary_join_element_wise(said["a"], between, said["b"], "")


def _items(column: pa.ChunkedArray) -> NDArray[np.int64]:
    return np.asarray(pc.fill_null(column, -1).combine_chunks().to_numpy(zero_copy_only=False), np.int64)
