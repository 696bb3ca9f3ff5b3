"""Synthesis on shards: decode views, let the engine paint, encode. The objects here travel to the workers."""

import copy
import json
import time
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from nearid_ray.data.images import decode_mask, decode_rgb, encode_png
from nearid_ray.data.pipeline import ShardResult
from nearid_ray.data.store import Dataset, read_rows
from nearid_ray.gpu_batches import free_memory
from nearid_ray.identifiers import seed_of
from nearid_ray.synthesis.engine import SAME_OBJECT, Engine, EngineRequest
from nearid_ray.synthesis.gate import Embed, load_embed
from nearid_ray.synthesis.paint import Batches, Painted, Painter, Row
from nearid_ray.synthesis.settings import SynthesisSettings
from schemas import DISTRACTORS

_KEPT = (
    "identity_id", "view_index", "view_id", "engine", "settings_hash", "prompt", "negative_prompt",
    "donor_identity_id", "donor_view_index", "donor_view_id", "category", "split", "source",
)  # fmt: skip


class _Prepared(NamedTuple):
    settings_hash: str
    rows: list[Row]


class _Computed(NamedTuple):
    rows: list[Painted]
    log: dict[str, Any]


@dataclass
class SynthesisTask:
    """Paint the rows of a shard. A shard holds rows of one engine, found by its settings' hash."""

    tuples_uri: str
    settings: SynthesisSettings
    engines: dict[str, Engine]
    """Settings hash -> that engine, checked and not loaded."""
    uses_model: bool = False
    _batches: Batches | None = field(default=None, repr=False)
    _hash: str = ""
    _embed: Embed | None = field(default=None, repr=False)

    def setup(self) -> None:
        """Load the gate's backbone; which engine is needed is known with the first shard."""
        self._embed = load_embed(self.settings.gate)

    def prepare(self, work: pa.Table) -> _Prepared:
        reader = _Reader(Dataset(self.tuples_uri), work)
        return _Prepared(work["settings_hash"][0].as_py(), [reader.row(row) for row in work.to_pylist()])

    def compute(self, prepared: _Prepared) -> _Computed:
        began = time.perf_counter()
        batches = self._engine(prepared.settings_hash)
        loaded = time.perf_counter()
        painter = Painter(
            batches=batches, gate=self.settings.gate, feather_px=self.settings.feather_px, embed=self._embed
        )
        rows = painter.paint(prepared.rows)
        log = {
            "engine": batches.engine.name,
            "settings_hash": prepared.settings_hash,
            "load_s": loaded - began,
            "paint_s": time.perf_counter() - loaded,
            "attempts": sum(row.attempt + 1 for row in rows),
        }
        return _Computed(rows, log)

    def finish(self, work: pa.Table, computed: _Computed) -> ShardResult:
        engine = self.engines[work["settings_hash"][0].as_py()]
        rows = [_output_row(row, painted, engine, self.settings) for row, painted in
                zip(work.to_pylist(), computed.rows, strict=True)]  # fmt: skip
        return ShardResult(pa.Table.from_pylist(rows, schema=DISTRACTORS.schema), log=computed.log)

    def _engine(self, settings_hash: str) -> Batches:
        """The loaded engine. The one before is let go first: two do not fit a GPU."""
        if self._batches is None or self._hash != settings_hash:
            self._batches = None
            free_memory()
            engine = copy.copy(self.engines[settings_hash])  # what it loads goes with the copy
            engine.load()
            self._batches, self._hash = Batches(engine), settings_hash
        return self._batches


class _Reader:
    """Reads and decodes each view that a shard needs once."""

    def __init__(self, tuples: Dataset, work: pa.Table) -> None:
        self._rows: dict[tuple[str, int], dict[str, Any]] = {}
        self._decoded: dict[tuple[str, int, int], tuple[np.ndarray, np.ndarray]] = {}
        wanted: dict[str, set[int]] = {}
        for shard, row in zip(work["input_shard"].to_pylist(), work["input_row"].to_pylist(), strict=True):
            wanted.setdefault(shard, set()).add(row)
        for shard, row in zip(work["donor_shard"].to_pylist(), work["donor_row"].to_pylist(), strict=True):
            if shard:
                wanted.setdefault(shard, set()).add(row)
        for shard, rows in wanted.items():
            ordered = sorted(rows)
            for row, identity in zip(ordered, read_rows(tuples.shard(shard), ordered).to_pylist(), strict=True):
                self._rows[shard, row] = identity

    def row(self, work: dict[str, Any]) -> Row:
        """A work row with its pictures, or with the reason why there are none."""
        try:
            return Row(row_id=work["row_id"], batch=work["batch"], request=self._request(work))
        except ValueError as error:
            return Row(row_id=work["row_id"], batch=work["batch"], request=None, error=str(error))

    def _request(self, work: dict[str, Any]) -> EngineRequest:
        identity = self._rows[work["input_shard"], work["input_row"]]
        view = identity["views"][work["view_index"]]
        if view["view_id"] != work["view_id"]:
            raise ValueError("the view in the tuples dataset is not the one that was planned")
        view_HW3, mask_HW = self._pictures(work["input_shard"], work["input_row"], work["view_index"])
        donor_HW3 = donor_mask_HW = None
        if work["donor_shard"]:
            donor_HW3, donor_mask_HW = self._pictures(work["donor_shard"], work["donor_row"], work["donor_view_index"])
        return EngineRequest(
            view_HW3=view_HW3,
            mask_HW=mask_HW,
            seed=work["seed"],
            prompt=work["prompt"],
            negative_prompt=work["negative_prompt"],
            category=work["category"],
            description=identity["description"],
            view_provenance=json.loads(view["provenance"]),
            identity_provenance=json.loads(identity["provenance"]),
            donor_HW3=donor_HW3,
            donor_mask_HW=donor_mask_HW,
        )

    def _pictures(self, shard: str, row: int, index: int) -> tuple[np.ndarray, np.ndarray]:
        key = (shard, row, index)
        if key not in self._decoded:
            view = self._rows[shard, row]["views"][index]
            image_HW3, mask_HW = decode_rgb(view["image"]["bytes"]), decode_mask(view["mask"]["bytes"])
            if image_HW3.shape[:2] != mask_HW.shape:
                raise ValueError(f"the mask is {mask_HW.shape[::-1]} px, the view {image_HW3.shape[1::-1]} px")
            self._decoded[key] = (image_HW3, mask_HW)
        return self._decoded[key]


def _output_row(row: dict[str, Any], painted: Painted, engine: Engine, settings: SynthesisSettings) -> dict[str, Any]:
    made, seen = painted.image_HW3, painted.measured
    name = row["row_id"]
    return {column: row[column] for column in _KEPT} | {
        "distractor_id": name,
        "engine_family": engine.family,
        "control": engine.group in SAME_OBJECT,
        "engine_revision": engine.revision,
        "engine_settings": json.dumps(engine.settings, sort_keys=True),
        "run_seed": settings.run_seed,
        "attempt": painted.attempt,
        "seed": seed_of(name, painted.attempt),
        "image": _png(made, f"{name}.png"),
        "mask": _png(painted.mask_HW, f"{name}-mask.png"),
        "part_mask": _png(painted.part_mask_HW, f"{name}-part.png"),
        "size_px": 0 if made is None else made.shape[0],
        "background_max_difference": painted.leak,
        "object_mean_difference": seen.object_mean_difference if seen else None,
        "object_deviation": seen.object_deviation if seen else None,
        "saturated_share": seen.saturated_share if seen else None,
        "object_similarity": seen.object_similarity if seen else None,
        "flagged": seen.flagged if seen else None,
        "verdict": painted.verdict,
        "oracle": painted.oracle,
        "error": painted.error,
    }


def _png(array: np.ndarray | None, name: str) -> dict[str, Any] | None:
    return None if array is None else {"bytes": encode_png(array), "path": name}
