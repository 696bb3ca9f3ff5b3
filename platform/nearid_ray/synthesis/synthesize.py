"""Synthesis on shards: decode views, let the engine paint, paste the background back, check, encode."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nearid_ray.data.card import licence_of, write_card
from nearid_ray.data.difference import background_max_difference, object_mean_difference, verdict
from nearid_ray.data.images import decode_mask, decode_rgb, encode_png, resize_mask, resize_rgb
from nearid_ray.data.pipeline import RunSettings, RunSummary, ShardResult, run_plan
from nearid_ray.data.plan import Plan, make_plan
from nearid_ray.data.rejects import write_rejected
from nearid_ray.data.store import Dataset, read_rows
from nearid_ray.errors import UsageError
from nearid_ray.synthesis.catalog import make_engines
from nearid_ray.synthesis.compose import compose
from nearid_ray.synthesis.engine import Engine, EngineRequest, EngineResult
from nearid_ray.synthesis.plan import ViewPlace, list_views, plan_synthesis
from schemas import DISTRACTORS, SPLITS

_PIXELS_PER_SHARD = 16 * 512 * 512
"""A shard of model-free rows holds about this many pixels; it takes seconds, which is what a kill may cost."""


@dataclass(frozen=True, kw_only=True)
class SynthesisSettings:
    """Which distractors to make."""

    engines: tuple[str, ...] = ("toybox",)
    """Engine configurations: a name, a family (toybox) or FAMILY:GROUP (toybox:train)."""
    run_seed: int = 0
    """Seed of the run; another one gives another picture for every row."""
    splits: tuple[str, ...] = SPLITS
    """Splits to make distractors for."""
    eval_only_groups: tuple[str, ...] = ("unseen", "part")
    """Engine groups made for val and test alone: they never train."""
    feather_px: float = 0.0
    """Width of the soft edge inside the painted region, in canonical pixels; outside of it nothing changes ever."""
    min_object_difference: float = 2.0
    """A distractor whose object differs less from the view (mean of 0 to 255) gets the verdict `unchanged`."""
    rows_per_shard: int = 0
    """Rows a shard; 0 chooses by the size of the pictures."""
    engine_batch: int = 8
    """Rows given to an engine at once; halved when the GPU's memory is too small."""

    def __post_init__(self) -> None:
        if not self.engines:
            raise ValueError("engines is empty; expected at least one engine, e.g. exemplar")
        unknown = sorted(set(self.splits) - set(SPLITS))
        if unknown or not self.splits:
            raise ValueError(f"splits holds {unknown or 'nothing'}; expected some of {', '.join(SPLITS)}")
        groups = {"train", "unseen", "part"}
        if set(self.eval_only_groups) - groups:
            raise ValueError(
                f"eval_only_groups is {self.eval_only_groups}; expected some of {', '.join(sorted(groups))}"
            )
        for name, low in (("feather_px", 0), ("min_object_difference", 0), ("rows_per_shard", 0), ("engine_batch", 1)):
            if getattr(self, name) < low:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least {low}")

    def content(self) -> dict[str, Any]:
        """What decides the pixels of every row; the engines' own settings are in each row."""
        return {
            "run_seed": self.run_seed,
            "feather_px": self.feather_px,
            "min_object_difference": self.min_object_difference,
        }


class _Prepared(NamedTuple):
    """A row's pictures, or why there are none."""

    request: EngineRequest | None
    error: str


class _Painted(NamedTuple):
    request: EngineRequest | None
    result: EngineResult | None
    error: str


@dataclass
class SynthesisTask:
    """Paint the rows of a shard. A shard holds one engine's rows."""

    tuples_uri: str
    settings: SynthesisSettings
    uses_model: bool = False
    _loaded: Engine | None = field(default=None, repr=False)

    def setup(self) -> None:
        pass  # the engine is known with the first shard

    def prepare(self, work: pa.Table) -> tuple[str, list[_Prepared]]:
        reader = _Reader(Dataset(self.tuples_uri), work)
        return work["engine"][0].as_py(), [reader.request(row) for row in work.to_pylist()]

    def compute(self, prepared: tuple[str, list[_Prepared]]) -> list[_Painted]:
        name, rows = prepared
        if self._loaded is None or self._loaded.name != name:
            self._loaded = make_engines([name])[0]
            self._loaded.load()
        requests = [row.request for row in rows if row.request is not None]
        results = iter(generate(self._loaded, requests, self.settings.engine_batch))
        return [_painted(row, next(results) if row.request is not None else None) for row in rows]

    def finish(self, work: pa.Table, computed: list[_Painted]) -> ShardResult:
        engine = make_engines([work["engine"][0].as_py()])[0]
        rows = [_output_row(row, painted, engine, self.settings) for row, painted in
                zip(work.to_pylist(), computed, strict=True)]  # fmt: skip
        return ShardResult(pa.Table.from_pylist(rows, schema=DISTRACTORS.schema))


def generate(engine: Engine, requests: Sequence[EngineRequest], batch: int) -> list[EngineResult | Exception]:
    """One result a request. A batch too large for the GPU's memory is halved, and stays so for the rest.

    An exception of the engine for a whole batch marks its rows one by one: each is tried alone once.
    """
    results: list[EngineResult | Exception] = []
    while len(results) < len(requests):
        part = list(requests[len(results) : len(results) + batch])
        try:
            results += engine.generate(part)
        except Exception as error:
            if _out_of_memory(error) and len(part) > 1:
                batch = max(1, len(part) // 2)
            elif len(part) > 1:
                results += [_alone(engine, request) for request in part]
            else:
                results.append(error)
    return results


def plan_distractors(
    tuples: Dataset, output: Dataset, settings: SynthesisSettings, embeddings: Dataset | None = None
) -> Plan:
    """Plan the distractors that `output` misses. Raises UsageError before anything is written.

    With `embeddings` of the same tuples, donors are the nearest identities.
    """
    engines = make_engines(settings.engines)
    views = list(list_views(tuples))
    work, rejected = plan_synthesis(
        views,
        engines,
        run_seed=settings.run_seed,
        feather_px=settings.feather_px,
        eval_only_groups=settings.eval_only_groups,
        splits=settings.splits,
        embeddings=mean_embeddings(embeddings) if embeddings else None,
    )
    if not work.num_rows:
        reasons = ", ".join(sorted({r["reason"] for r in rejected})) or "no view in the chosen splits"
        raise UsageError(f"{tuples.location.uri}: no distractor can be made ({reasons})")
    plan = make_plan(
        output,
        work,
        table=DISTRACTORS.name,
        content={"tuples": tuples.digest(), **settings.content()},
        rows_per_shard=settings.rows_per_shard or _rows_per_shard(views),
        break_on=("engine",),
    )
    write_rejected(output, "synthesize", rejected)
    return plan


def synthesize(
    tuples: Dataset, output: Dataset, plan: Plan, settings: SynthesisSettings, run: RunSettings
) -> RunSummary:
    """Make the planned distractors; needs a Ray session where shards are pending."""
    task = SynthesisTask(tuples.location.uri, settings)
    summary = run_plan(task, output, plan, run, title="synthesize")
    _write_card(output, summary, licence_of(tuples))
    return summary


def mean_embeddings(embeddings: Dataset) -> dict[str, np.ndarray]:
    """identity_id -> mean of its full views' embeddings, unit length."""
    rows = embeddings.read(
        columns=["identity_id", "embedding"],
        where=(pc.field("role") == "view") & (pc.field("condition") == "full") & (pc.field("error") == ""),
    )
    sums: dict[str, np.ndarray] = {}
    for identity, vector in zip(rows["identity_id"].to_pylist(), rows["embedding"].to_pylist(), strict=True):
        sums[identity] = sums.get(identity, 0.0) + np.asarray(vector, np.float64)
    return {identity: total / np.linalg.norm(total) for identity, total in sums.items()}


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

    def request(self, row: dict[str, Any]) -> _Prepared:
        identity = self._rows[row["input_shard"], row["input_row"]]
        view = identity["views"][row["view_index"]]
        if view["view_id"] != row["view_id"]:
            return _Prepared(None, "the view in the tuples dataset is not the one that was planned")
        try:
            view_HW3, mask_HW = self._pictures(row["input_shard"], row["input_row"], row["view_index"])
            donor_HW3 = donor_mask_HW = None
            if row["donor_shard"]:
                donor_HW3, donor_mask_HW = self._pictures(row["donor_shard"], row["donor_row"], row["donor_view_index"])
        except ValueError as error:
            return _Prepared(None, str(error))
        request = EngineRequest(
            view_HW3=view_HW3,
            mask_HW=mask_HW,
            seed=row["seed"],
            prompt=row["prompt"],
            negative_prompt=row["negative_prompt"],
            category=row["category"],
            description=identity["description"],
            view_provenance=json.loads(view["provenance"]),
            identity_provenance=json.loads(identity["provenance"]),
            donor_HW3=donor_HW3,
            donor_mask_HW=donor_mask_HW,
        )
        return _Prepared(request, "")

    def _pictures(self, shard: str, row: int, index: int) -> tuple[np.ndarray, np.ndarray]:
        key = (shard, row, index)
        if key not in self._decoded:
            view = self._rows[shard, row]["views"][index]
            image_HW3, mask_HW = decode_rgb(view["image"]["bytes"]), decode_mask(view["mask"]["bytes"])
            if image_HW3.shape[:2] != mask_HW.shape:
                raise ValueError(f"the mask is {mask_HW.shape[::-1]} px, the view {image_HW3.shape[1::-1]} px")
            self._decoded[key] = (image_HW3, mask_HW)
        return self._decoded[key]


def _painted(row: _Prepared, result: EngineResult | Exception | None) -> _Painted:
    if isinstance(result, Exception):
        return _Painted(row.request, None, f"{type(result).__name__}: {result}")
    return _Painted(row.request, result, row.error)


def _output_row(row: dict[str, Any], painted: _Painted, engine: Engine, settings: SynthesisSettings) -> dict[str, Any]:
    kept = ("identity_id", "view_index", "view_id", "engine", "settings_hash", "attempt", "seed", "prompt",
            "negative_prompt", "donor_identity_id", "donor_view_index", "donor_view_id", "category", "split",
            "source")  # fmt: skip
    common = {name: row[name] for name in kept} | {
        "distractor_id": row["row_id"],
        "engine_family": engine.family,
        "engine_revision": engine.revision,
        "engine_settings": json.dumps(engine.settings, sort_keys=True),
        "run_seed": settings.run_seed,
        "image": None,
        "mask": None,
        "part_mask": None,
        "size_px": 0,
        "background_max_difference": -1,
        "object_mean_difference": None,
        "verdict": "none",
        "oracle": None,
        "error": painted.error,
    }
    if painted.request is None or painted.result is None:
        return common
    return common | _picture_fields(row["row_id"], painted.request.view_HW3, painted.result, settings)


def _picture_fields(
    name: str, view_HW3: np.ndarray, result: EngineResult, settings: SynthesisSettings
) -> dict[str, Any]:
    height, width = view_HW3.shape[:2]
    mask_HW = resize_mask(result.mask_HW, width, height)
    image_HW3 = compose(view_HW3, resize_rgb(result.image_HW3, width, height), mask_HW, settings.feather_px)
    leak = background_max_difference(view_HW3, image_HW3, mask_HW)
    if leak:
        return {"error": f"the background differs by up to {leak} outside the mask", "background_max_difference": leak}
    part_HW = result.part_mask_HW
    difference = object_mean_difference(view_HW3, image_HW3, mask_HW)
    return {
        "image": {"bytes": encode_png(image_HW3), "path": f"{name}.png"},
        "mask": {"bytes": encode_png(mask_HW), "path": f"{name}-mask.png"},
        "part_mask": None if part_HW is None else {"bytes": encode_png(part_HW), "path": f"{name}-part.png"},
        "size_px": height,
        "background_max_difference": leak,
        "object_mean_difference": difference,
        "verdict": verdict(view_HW3, image_HW3, mask_HW, min_difference=settings.min_object_difference),
        "oracle": result.oracle,
    }


def _alone(engine: Engine, request: EngineRequest) -> EngineResult | Exception:
    try:
        return engine.generate([request])[0]
    except Exception as error:
        return error


def _out_of_memory(error: Exception) -> bool:
    return type(error).__name__ == "OutOfMemoryError"  # torch.cuda.OutOfMemoryError, without importing torch here


def _rows_per_shard(views: Sequence[ViewPlace]) -> int:
    largest = max((view.size_px for view in views), default=512) or 512
    return max(1, min(512, _PIXELS_PER_SHARD // largest**2))


def _write_card(output: Dataset, summary: RunSummary, licence: str) -> None:
    rows = output.read(columns=["engine", "verdict", "error"])
    engines = rows["engine"].value_counts().to_pylist()
    verdicts = rows["verdict"].value_counts().to_pylist()
    write_card(
        output,
        title="Near-identity distractors",
        about="Each row is a similar but different instance painted into the exact background of a view: outside its "
        "mask every pixel equals the view.",
        licence=licence,
        facts={
            "distractors": summary.rows,
            "with an error": summary.errors,
            **{f"engine {e['values']}": e["counts"] for e in sorted(engines, key=lambda e: e["values"])},
            **{f"verdict {v['values']}": v["counts"] for v in sorted(verdicts, key=lambda v: v["values"])},
        },
    )
