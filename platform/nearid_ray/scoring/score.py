"""Score a list of pairs: each distinct picture is embedded once, then the pairs are joined with their vectors.

OUTPUT/images/   one row a distinct picture, and the vectors (made on Ray, the scorer's work)
OUTPUT/pairs/    the list in parts, with the numbers of its pictures
OUTPUT/scores/   one row a pair (made on Ray)

The driver streams the list and holds the distinct paths alone, as Arrow text.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
from numpy.typing import NDArray

from nearid_ray import cluster
from nearid_ray.data import s3
from nearid_ray.data.card import UNKNOWN_LICENCE, write_card
from nearid_ray.data.pipeline import RunSettings, RunSummary, run_plan, shards_to_make
from nearid_ray.data.plan import Plan, make_plan
from nearid_ray.data.store import Dataset, Location, parquet_bytes, read_parquet
from nearid_ray.errors import UsageError
from nearid_ray.identifiers import content_hash
from nearid_ray.scoring.calibrated import StoredCalibration
from nearid_ray.scoring.embedders import FunctionEmbedder, ModelEmbedder
from nearid_ray.scoring.pair_files import SIDES, PairsFile
from nearid_ray.scoring.scorer import Scorer, everywhere, load
from nearid_ray.scoring.tasks import ImagesTask, PairsTask
from schemas import SCORED_IMAGES, SCORES

CSV_FILE = "scores.csv"
_PAIRS_PER_PART = 65_536
_MERGE_AT_LEAST = 200_000
_CONDITION = "full"
_NOTHING_NEW = pa.table({"row_id": pa.array([], pa.string())})


@dataclass(frozen=True, kw_only=True)
class ScoreSettings:
    """How pairs are scored."""

    root: str = ""
    """Folder or s3:// place that relative paths count from; by default the folder of the list."""
    delimiter: str = ","
    """What parts the values of a line of CSV: one character."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision the backbone computes in; auto: bfloat16 where the workers have GPUs, else float32."""
    batch_size: int = 64
    """Pictures in one pass through the scorer, at least 1."""
    backbone: str | None = None
    """Where a trained head's backbone lies now, if not where its card says."""
    revision: str | None = None
    """Branch, tag or commit of a model on the hub."""
    image_px: int | None = None
    """Side, in pixels, at which DINOv2 and DINOv3 read pictures; by default that of the model's preprocessor."""
    calibration: str = "auto"
    """auto: the one beside the scorer's weights, where there is one; none; or a calibration.json or its folder."""
    false_accept_rate: float = 0.01
    """The column `same` holds at the calibration's threshold for this rate."""
    same_share: float = 0.5
    """Share of same pairs to expect in the list, above 0 and below 1; the column `probability` follows it."""
    images_per_shard: int = 512
    """Pictures a shard: what a kill costs at most, for each worker; at least 1."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "images_per_shard"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected 1 or more")
        if not 0 < self.false_accept_rate <= 1:
            raise ValueError(f"false_accept_rate is {self.false_accept_rate}; expected a number above 0, at most 1")
        if not 0 < self.same_share < 1:
            raise ValueError(f"same_share is {self.same_share}; expected a number above 0 and below 1")


@dataclass(frozen=True)
class PlannedScores:
    """What `plan_scores` found good."""

    scorer: Scorer
    images: Dataset
    image_plan: Plan
    image_task: ImagesTask
    scores: Dataset
    pair_plan: Plan
    pair_task: PairsTask

    def needs_ray(self, run: RunSettings) -> bool:
        """Whether anything is left to make."""
        both = ((self.images, self.image_plan), (self.scores, self.pair_plan))
        return any(shards_to_make(output, plan, run) for output, plan in both)

    def run(self, run: RunSettings) -> tuple[RunSummary, RunSummary]:
        """Make what is missing of pictures, then of pairs; needs a Ray session where anything is."""
        images = run_plan(self.image_task, self.images, self.image_plan, run, title="embed pictures")
        pairs = run_plan(self.pair_task, self.scores, self.pair_plan, replace(run, gpus_per_worker=0), title="pairs")
        about = f"What {self.scorer.name} (fingerprint {self.scorer.fingerprint}) says of the pictures of a list."
        write_card(
            self.images,
            title=f"Pictures embedded by {self.scorer.name}",
            about=about + " Their unit vectors lie in `vectors/`.",
            licence=UNKNOWN_LICENCE,
            facts={"pictures": images.rows, "with an error": images.errors},
        )
        write_card(
            self.scores,
            title=f"Scores of {self.scorer.name}",
            about=about,
            licence=UNKNOWN_LICENCE,
            facts={"pairs": pairs.rows, "with an error": pairs.errors},
        )
        return images, pairs


def plan_scores(pairs: str, spec: str, output: Location, settings: ScoreSettings, run: RunSettings) -> PlannedScores:
    """Plan the scores of a list of pairs that `output` misses.

    Needs a Ray session for a new output alone, to see what the workers compute on.

    Args:
        pairs: a CSV or Parquet file with columns a and b.
        spec: the scorer, as `nearid_ray.load` takes it.

    Raises:
        UsageError: before any picture is read, where list or scorer cannot be used, or the output holds the scores of
            another list or scorer.
    """
    file = PairsFile.open(pairs, root=settings.root, delimiter=settings.delimiter)
    images, scores = Dataset(output.child("images")), Dataset(output.child("scores"))
    options: dict[str, Any] = {
        "dtype": _precision(images, settings, run),
        "backbone": settings.backbone,
        "revision": settings.revision,
        "image_px": settings.image_px,
    }
    scorer = load(everywhere(spec), device="cpu", calibration=settings.calibration, name=None, **options)
    if isinstance(scorer.embedder, FunctionEmbedder):
        scorer.embedder.embed([np.full((64, 64, 3), 128, np.uint8)] * 2)  # so that one that cannot work is told of now
    calibration = _checked_calibration(scorer)
    threshold = None if calibration is None else calibration.of(_CONDITION).threshold(settings.false_accept_rate)
    image_content = {"scorer": scorer.fingerprint, "dtype": options["dtype"]}
    pair_content = {
        **image_content,
        "pairs": file.digest(),
        "calibration": None if calibration is None else content_hash(calibration.to_bytes()),
        "threshold": threshold,
        "same_share": settings.same_share,
    }
    image_plan, pair_plan = _plans(file, output.child("pairs"), images, scores, image_content, pair_content, settings)
    shards, starts = _starts(image_plan)
    embedder = scorer.embedder
    image_task = ImagesTask(
        spec=embedder.spec,
        options=options,
        fingerprint=scorer.fingerprint,
        batch_size=settings.batch_size,
        threads=max(1, int(run.cpus_per_worker)),
        pixels=embedder.backbone.pixels if isinstance(embedder, ModelEmbedder) else None,
    )
    pair_task = PairsTask(
        parts=output.child("pairs").uri,
        images=images.location.uri,
        shards=shards,
        starts=starts,
        calibrated=None if calibration is None else calibration.of(_CONDITION),
        threshold=threshold,
        same_share=settings.same_share,
    )
    return PlannedScores(scorer, images, image_plan, image_task, scores, pair_plan, pair_task)


def write_csv(scores: Dataset, place: Location) -> None:
    """All scores as one CSV file that appears whole, a shard in memory at a time.

    Raises:
        UsageError: a column that was kept cannot stand in a CSV (lists, structs).
    """
    check_csv(scores.arrow().schema)
    with _appearing(place) as stream:
        writer = None
        for shard in scores.shards():
            table = read_parquet(scores.shard(shard))
            writer = writer or pacsv.CSVWriter(stream, table.schema)
            writer.write_table(table)
        if writer is not None:
            writer.close()


def check_csv(schema: pa.Schema) -> None:
    """Raises UsageError where a column's values have no form in a CSV."""
    nested = [f.name for f in schema if pa.types.is_nested(f.type) or pa.types.is_binary(f.type)]
    if nested:
        raise UsageError(f"column {nested[0]} of the pairs holds {schema.field(nested[0]).type}, which no CSV can hold")


def _plans(
    file: PairsFile,
    parts: Location,
    images: Dataset,
    scores: Dataset,
    image_content: dict[str, Any],
    pair_content: dict[str, Any],
    settings: ScoreSettings,
) -> tuple[Plan, Plan]:
    """The plans of pictures and parts. That of the parts is written last: where it stands, all is indexed."""
    image_options: dict[str, Any] = {
        "table": SCORED_IMAGES.name,
        "content": image_content,
        "rows_per_shard": settings.images_per_shard,
    }
    pair_options: dict[str, Any] = {"table": SCORES.name, "content": pair_content, "rows_per_shard": 1}
    if scores.settings() is not None:
        pair_plan = make_plan(scores, _NOTHING_NEW, **pair_options)
        return make_plan(images, _NOTHING_NEW, **image_options), pair_plan
    paths = distinct_paths(file)
    if not len(paths):
        raise UsageError(f"{file.place.uri} names no picture: it has no rows, or a and b are empty throughout")
    image_plan = make_plan(images, pa.table({"row_id": paths}), **image_options)
    work = write_parts(file, parts, image_plan.rows["row_id"])
    return image_plan, make_plan(scores, work, **pair_options)


def distinct_paths(file: PairsFile) -> pa.Array:
    """Every picture's path once, in the order in which they first stand in the list."""
    kept: pa.Array = pa.array([], pa.string())
    waiting: list[pa.Array] = []
    for batch in file.batches():
        both = pa.chunked_array([c for side in SIDES for c in file.resolved(batch[side]).chunks], pa.string())
        waiting.append(both.unique().drop_null())
        if sum(map(len, waiting)) > max(len(kept), _MERGE_AT_LEAST):
            kept, waiting = pa.chunked_array([kept, *waiting]).unique(), []
    return pa.chunked_array([kept, *waiting]).unique()


def write_parts(file: PairsFile, place: Location, paths: pa.ChunkedArray) -> pa.Table:
    """Write the list in parts, with the number of each picture among `paths`; the work list of the pairs."""
    names, rows = [], []
    known = paths.combine_chunks()
    for number, part in enumerate(_regrouped(file.batches(), _PAIRS_PER_PART)):
        first = number * _PAIRS_PER_PART
        columns: dict[str, Any] = {"row": pa.array(np.arange(first, first + len(part)))}
        columns |= {name: part[name] for name in part.column_names}
        columns |= {f"{side}_item": pc.index_in(file.resolved(part[side]), known) for side in SIDES}
        names.append(f"{number:06d}")
        rows.append(len(part))
        place.child(f"{names[-1]}.parquet").write_bytes(parquet_bytes(pa.table(columns)))
    return pa.table({"row_id": pa.array(names, pa.string()), "rows": pa.array(rows, pa.int64())})


def _regrouped(batches: Iterator[pa.Table], rows: int) -> Iterator[pa.Table]:
    waiting: list[pa.Table] = []
    for batch in batches:
        waiting.append(batch)
        while sum(map(len, waiting)) >= rows:
            whole = pa.concat_tables(waiting)
            yield whole.slice(0, rows)
            waiting = [whole.slice(rows)]
    if sum(map(len, waiting)):
        yield pa.concat_tables(waiting)


def _starts(plan: Plan) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """(shards, number of each one's first picture): a shard's rows stand together."""
    runs = pc.run_end_encode(plan.rows["shard"].combine_chunks())
    starts = np.concatenate([[0], np.asarray(runs.run_ends)[:-1]]).astype(np.int64)
    return tuple(runs.values.to_pylist()), starts


def _precision(images: Dataset, settings: ScoreSettings, run: RunSettings) -> str:
    """What the backbone computes in; with `auto` an output that exists keeps its own."""
    stored = (images.settings() or {}).get("content", {}).get("dtype")
    if settings.dtype != "auto" or stored is not None:
        return settings.dtype if settings.dtype != "auto" else str(stored)
    gpus = cluster.resources()[1] >= 1 if run.gpus_per_worker is None else run.gpus_per_worker > 0
    return "bfloat16" if gpus else "float32"


def _checked_calibration(scorer: Scorer) -> StoredCalibration | None:
    if scorer.calibration is not None:
        scorer.calibration.check(scorer.fingerprint, f"the scorer {scorer.name}")
    return scorer.calibration


@contextlib.contextmanager
def _appearing(place: Location) -> Iterator[Any]:
    """A file to write to, which is there when the block has ended well."""
    if not place.is_local:
        with s3.in_words(place.uri), place.filesystem.open_output_stream(place.path) as stream:
            yield stream
        return
    path = Path(place.path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "wb") as stream:
            yield stream
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
