"""Embed: tokens (or pooled embeddings) of views and distractors by a frozen backbone, on Ray. One work row an item.

Axes: N items of a shard, S the backbone's image side in pixels, T tokens, D token width.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import cv2
import numpy as np
import pyarrow as pa
import ray
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from nearid_ray import cluster
from nearid_ray.data.card import licence_of, write_card
from nearid_ray.data.light import check_complete
from nearid_ray.data.pipeline import RunSettings, RunSummary, ShardResult, run_plan
from nearid_ray.data.plan import Plan, make_plan
from nearid_ray.data.rejects import write_rejected
from nearid_ray.data.store import Dataset
from nearid_ray.embedding.augment import AugmentSettings
from nearid_ray.embedding.cache import BACKBONE_FILE, BLANK_FILE, HEAD_FILE, POOLING_FILE, TOKENS_FOLDER
from nearid_ray.embedding.pictures import PLACES, Pictures, model_picture
from nearid_ray.embedding.plan import EmbedSettings, plan_embed, pooled_settings
from nearid_ray.embedding.shards import Stored, item_bytes, tokens_bytes
from nearid_ray.errors import UsageError
from nearid_ray.models.backbone import Backbone, PixelSettings, Precision, load_backbone, resolve_dtype
from nearid_ray.settings import dump_json
from schemas import EMBEDDINGS, TOKENS_INDEX

What = Literal["tokens", "pooled"]

FROZEN = "frozen"
"""The scorer that is the backbone's own pooling."""

_READ = (*PLACES, "image_id", "masked", "draw")
"""What `prepare` needs of a work row."""
_ROWS_PER_SHARD = 512
_BYTES_PER_SHARD = 256 << 20
_GREY = 128
"""Value of the pixels of a blank picture."""


@dataclass
class Prepared:
    """Items of a shard before and after the model."""

    image_NSS3: NDArray[np.uint8]
    """Pictures at the model's size; zeros where there is an error."""
    errors: list[str]
    """What is wrong with each item; empty where nothing is."""


@dataclass
class Embedded:
    """What the model says of the items; zeros where there is an error."""

    value_N: NDArray[Any]
    """float16 (N, T, D) tokens, or float32 (N, D) unit vectors."""
    errors: list[str]


@dataclass
class EmbedTask:
    """A shard of items through the backbone."""

    what: What
    inputs: dict[str, str]
    """URIs of the input datasets by kind: tuples, distractors."""
    spec: str
    revision: str | None
    fingerprint: str
    dtype: Precision
    batch_size: int
    threads: int
    pixels: PixelSettings
    augment: AugmentSettings
    stored: Stored = "float16"
    image_px: int | None = None
    """Side asked for; None: that of the preprocessor."""
    trust_remote_code: bool = False
    uses_model: bool = True
    _backbone: Backbone | None = field(default=None, repr=False)
    _pooling: nn.Module | None = field(default=None, repr=False)

    def setup(self) -> None:
        """Load the backbone; UsageError when it is not the one the plan was made with."""
        torch.set_num_threads(self.threads)
        cv2.setNumThreads(self.threads)
        backbone = load_backbone(
            self.spec,
            revision=self.revision,
            dtype=self.dtype,
            device=_device(),
            image_px=self.image_px,
            trust_remote_code=self.trust_remote_code,
        )
        if backbone.fingerprint != self.fingerprint:
            raise UsageError(
                f"the backbone {self.spec} of this worker has the fingerprint {backbone.fingerprint}, that of the "
                f"driver {self.fingerprint}; give a path that all nodes share, or a hub id with a revision"
            )
        self._backbone = backbone
        self._pooling = backbone.pooling().to(backbone.device).eval() if self.what == "pooled" else None

    def prepare(self, work: pa.Table) -> Prepared:
        """Pictures of the items, read, decoded and augmented; each picture is decoded once."""
        side = self.pixels.image_px
        image_NSS3 = np.zeros((work.num_rows, side, side, 3), np.uint8)
        errors = [""] * work.num_rows
        items = work.select(_READ).to_pylist()
        pictures = Pictures(self.inputs, items)
        for place, item in enumerate(items):
            try:
                image_NSS3[place] = model_picture(pictures, item, self.pixels, self.augment)
            except ValueError as error:
                errors[place] = str(error)
        return Prepared(image_NSS3, errors)

    def compute(self, prepared: Prepared) -> Embedded:
        """The items without error through the backbone, `batch_size` at a time."""
        backbone = self._loaded()
        errors = list(prepared.errors)
        good = [place for place, error in enumerate(errors) if not error]
        shape = (backbone.tokens, backbone.width) if self.what == "tokens" else (backbone.pooled_width,)
        value_N = np.zeros((len(errors), *shape), np.float16 if self.what == "tokens" else np.float32)
        for start in range(0, len(good), self.batch_size):
            places = good[start : start + self.batch_size]
            values = self._embedded(torch.from_numpy(prepared.image_NSS3[places]).to(backbone.device))
            finite = torch.isfinite(values).flatten(1).all(dim=1).tolist()
            value_N[places] = values.cpu().numpy()
            for place, fine in zip(places, finite, strict=True):
                if not fine:
                    value_N[place], errors[place] = 0, "the backbone gave numbers that are not finite"
        return Embedded(value_N, errors)

    def finish(self, work: pa.Table, computed: Embedded) -> ShardResult:
        """The shard's rows, and its token file."""
        if self.what == "pooled":
            return ShardResult(_embedding_rows(work, computed))
        shard = work["shard"][0].as_py()
        rows = _index_rows(work, computed.errors, shard)
        return ShardResult(rows, {f"{TOKENS_FOLDER}/{shard}.arrow": tokens_bytes(computed.value_N, self.stored)})

    def _embedded(self, image_BSS3: Tensor) -> Tensor:
        tokens_BTD = self._loaded().tokens_of(self.pixels.normalised(image_BSS3))
        if self._pooling is None:
            return tokens_BTD.to(torch.float16)
        with torch.inference_mode():
            return functional.normalize(self._pooling(tokens_BTD.float()), dim=1)

    def _loaded(self) -> Backbone:
        if self._backbone is None:
            raise RuntimeError("the task has no model yet; call setup first")
        return self._backbone


@dataclass(frozen=True)
class PlannedEmbedding:
    """A planned embedding: what `plan_embedding` found good. `run` makes what is missing."""

    task: EmbedTask
    plan: Plan
    output: Dataset
    backbone: Backbone
    items_by_split: dict[str, int]
    left_out: int
    inputs: tuple[Dataset, ...]

    def run(self, settings: RunSettings) -> RunSummary:
        """Make the pending shards; needs a Ray session where there are any."""
        summary = run_plan(self.task, self.output, self.plan, settings, title="embed")
        _write_card(self, summary)
        return summary


def plan_embedding(
    what: What, tuples: str, distractors: str | None, output: Dataset, settings: EmbedSettings, run: RunSettings
) -> PlannedEmbedding:
    """Plan the token cache, or with `what="pooled"` the embeddings, that `output` misses.

    Needs a Ray session for a new output alone, to see what the workers compute on.

    Args:
        what: `tokens` (read them with `TokenCache.open`), or `pooled`: unit embeddings by the backbone's own pooling
            (scorer "frozen") of the clean images, condition "full" and with `settings.masked` also "foreground".
        tuples, distractors: URIs of finished datasets; without distractors only views are embedded.
        output: where it goes.
        settings: what is embedded. The backbone's fingerprint, the precision, the augmentation and the settings of the
            inputs are fixed with the first run; draws, splits, engines and batch size may grow or change later.
        run: how it will be run.

    Raises:
        UsageError: before anything is written, where a dataset or the backbone is not there, they do not belong
            together, or the output exists with other settings.
    """
    if what == "pooled":
        settings = pooled_settings(settings)
    inputs = {"tuples": Dataset.open(tuples, "tuples")}
    if distractors is not None:
        inputs["distractors"] = Dataset.open(distractors, "distractors")
    for dataset in inputs.values():
        check_complete(dataset)
    table = TOKENS_INDEX.name if what == "tokens" else EMBEDDINGS.name
    _check_table(output, table)
    work, rejected = plan_embed(inputs["tuples"], inputs.get("distractors"), settings)
    dtype = _precision(output, settings, run)
    backbone = load_backbone(
        settings.backbone,
        revision=settings.revision,
        dtype=dtype,
        image_px=settings.image_px,
        trust_remote_code=settings.trust_remote_code,
    )
    if what == "tokens":
        backbone.check_tokens("the token cache")
    _check_backbone(output, backbone)
    shape = (backbone.tokens, backbone.width)
    row_bytes = item_bytes(*shape, settings.stored) if what == "tokens" else 4 * backbone.pooled_width
    plan = make_plan(
        output,
        work,
        table=table,
        content=_content(what, backbone, dtype, settings, inputs),
        rows_per_shard=max(1, min(_ROWS_PER_SHARD, _BYTES_PER_SHARD // row_bytes)),
    )
    _write_backbone(output, backbone, what)
    write_rejected(output, "embed", rejected)
    task = EmbedTask(
        what=what,
        inputs={kind: dataset.location.uri for kind, dataset in inputs.items()},
        spec=backbone.spec,
        revision=backbone.revision or settings.revision,
        fingerprint=backbone.fingerprint,
        dtype=dtype,
        batch_size=settings.batch_size,
        threads=max(1, int(run.cpus_per_worker)),
        pixels=backbone.pixels,
        augment=settings.augment,
        stored=settings.stored,
        image_px=settings.image_px,
        trust_remote_code=settings.trust_remote_code,
    )
    return PlannedEmbedding(
        task, plan, output, backbone, Counter(work["split"].to_pylist()), len(rejected), tuple(inputs.values())
    )


def _precision(output: Dataset, settings: EmbedSettings, run: RunSettings) -> Precision:
    """What the backbone computes in; with `auto` an output that exists keeps its own."""
    stored = (output.settings() or {}).get("content", {}).get("dtype")
    if settings.dtype == "auto" and stored is not None:
        return stored
    return resolve_dtype(settings.dtype, "cuda" if _will_use_gpus(run) else "cpu")


def _content(
    what: What, backbone: Backbone, dtype: str, settings: EmbedSettings, inputs: dict[str, Dataset]
) -> dict[str, Any]:
    """What decides the values of a row. Which rows there are is the plan's business."""
    digests = {kind: dataset.digest() for kind, dataset in inputs.items()}
    content = {"what": what, "backbone_fingerprint": backbone.fingerprint, "dtype": dtype, "inputs": digests}
    content["distractor_mask"] = settings.distractor_mask
    if what == "tokens":
        content["augment"] = asdict(settings.augment)
        if settings.stored != "float16":
            content["stored"] = settings.stored
    return content


def _check_table(output: Dataset, table: str) -> None:
    """Said before the precision is asked for: only a new output, or one of this table, can answer."""
    there = (output.settings() or {"table": table}).get("table")
    if there != table:
        raise UsageError(
            f"{output.location.uri} holds {there!r}, this job writes {table!r}; give a folder that is new or empty"
        )


def _check_backbone(output: Dataset, backbone: Backbone) -> None:
    """Name the backbones; the plan's own refusal could only show two fingerprints."""
    there = output.read_json(BACKBONE_FILE)
    if there is not None and there["fingerprint"] != backbone.fingerprint:
        raise UsageError(
            f"{output.location.uri} holds what the backbone {there['spec']} (fingerprint {there['fingerprint']}) says; "
            f"asked for was {backbone.spec} (fingerprint {backbone.fingerprint}). Give another output."
        )


def _write_backbone(output: Dataset, backbone: Backbone, what: What) -> None:
    from safetensors.torch import save

    output.location.child(BACKBONE_FILE).write_bytes(dump_json(backbone.describe()))
    if backbone.grid == (0, 0):
        return
    output.location.child(HEAD_FILE).write_bytes(save(backbone.head_state()))
    if not backbone.has_own_head:
        output.location.child(POOLING_FILE).write_bytes(save(backbone.pooling_state()))
    blank = output.location.child(BLANK_FILE)
    if what == "tokens" and not blank.exists():
        tokens_1TD = backbone.tokens_of(backbone.preprocess([np.full((8, 8, 3), _GREY, np.uint8)]))
        blank.write_bytes(tokens_bytes(tokens_1TD.to(torch.float16).cpu().numpy()))


def _write_card(planned: PlannedEmbedding, summary: RunSummary) -> None:
    what, backbone = planned.task.what, planned.backbone
    name = backbone.spec.rstrip("/").rpartition("/")[2] if backbone.spec.startswith("/") else backbone.spec
    about = (
        "What a frozen backbone says of every view and distractor: its tokens after the last layer norm, float16, in "
        "`tokens/*.arrow`; the rows here are their index."
        if what == "tokens"
        else "Unit embeddings of every view and distractor by a frozen backbone with its own pooling."
    )
    splits = sorted(planned.items_by_split.items())
    facts = {
        "backbone": name,
        "revision": backbone.revision or "(a folder)",
        "shape of an item": f"{backbone.tokens} x {backbone.width}" if what == "tokens" else str(backbone.pooled_width),
        **({"embedding": backbone.describe()["embedding"]} if backbone.grid == (0, 0) else {}),
        "items": summary.rows,
        "items with an error": summary.errors,
        "left out": planned.left_out,
        "items asked for by split": ", ".join(f"{split} {count}" for split, count in splits),
    }
    title = "Token cache" if what == "tokens" else "Embeddings"
    write_card(
        planned.output, title=f"{title} of {name}", about=about, licence=licence_of(*planned.inputs), facts=facts
    )


def _will_use_gpus(run: RunSettings) -> bool:
    if run.gpus_per_worker is not None:
        return run.gpus_per_worker > 0
    return cluster.resources()[1] >= 1


def _device() -> str:
    """The GPU that Ray gave to this worker, else the CPU, also where the machine has GPUs given to others."""
    if not torch.cuda.is_available():
        return "cpu"
    return "cuda" if not ray.is_initialized() or ray.get_gpu_ids() else "cpu"


def _common(work: pa.Table) -> Iterator[tuple[str, Any]]:
    for name in ("image_id", "role", "identity_id", "view_index", "engine", "category", "split", "oracle"):
        yield name, work[name]


def _index_rows(work: pa.Table, errors: list[str], shard: str) -> pa.Table:
    columns = dict(_common(work)) | {
        "item_id": work["row_id"],
        "masked": work["masked"],
        "draw": work["draw"],
        "shard": pa.array([shard] * work.num_rows),
        "row": pa.array(range(work.num_rows), pa.int64()),
        "error": pa.array(errors, pa.string()),
    }
    schema = TOKENS_INDEX.schema
    return pa.table([columns[name] for name in schema.names], schema=schema)


def _embedding_rows(work: pa.Table, computed: Embedded) -> pa.Table:
    values: list[NDArray[Any] | None] = [
        None if error else vector for vector, error in zip(computed.value_N, computed.errors, strict=True)
    ]
    conditions = ["foreground" if masked else "full" for masked in work["masked"].to_pylist()]
    columns = dict(_common(work)) | {
        "scorer": pa.array([FROZEN] * work.num_rows),
        "condition": pa.array(conditions, pa.string()),
        "embedding": pa.array(values, pa.list_(pa.float32())),
        "error": pa.array(computed.errors, pa.string()),
    }
    schema = EMBEDDINGS.schema
    return pa.table([columns[name] for name in schema.names], schema=schema)
