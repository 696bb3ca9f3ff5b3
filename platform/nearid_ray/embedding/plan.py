"""What is to be embedded: the work list of items, one row an item (picture, masked or not, draw)."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import pyarrow as pa

from nearid_ray.data.store import Dataset, read_parquet
from nearid_ray.embedding.augment import AugmentSettings
from nearid_ray.embedding.shards import Stored
from nearid_ray.errors import UsageError
from nearid_ray.identifiers import stable_hash
from schemas import SPLITS
from schemas.distractors import CONTROL_SUFFIX

_VIEW = "views.list.element"
_TUPLE_COLUMNS = ("identity_id", "category", "split", f"{_VIEW}.view_id", f"{_VIEW}.error", f"{_VIEW}.mask.path")
"""Which masks are null is known from their path, so that no picture is read."""
_DISTRACTOR_COLUMNS = (
    "distractor_id",
    "identity_id",
    "view_index",
    "view_id",
    "engine",
    "category",
    "split",
    "oracle",
    "verdict",
    "control",
    "error",
    "mask.path",
)

PICTURE_FIELDS = (
    ("image_id", pa.string()),
    ("role", pa.string()),
    ("identity_id", pa.string()),
    ("view_index", pa.int32()),
    ("engine", pa.string()),
    ("category", pa.string()),
    ("split", pa.string()),
    ("oracle", pa.float64()),
)
"""What names and describes a picture, in every work list of pictures."""

WORK_SCHEMA = pa.schema(
    [
        ("row_id", pa.string()),
        *PICTURE_FIELDS,
        ("masked", pa.bool_()),
        ("draw", pa.int32()),
        ("input_kind", pa.string()),
        ("input_shard", pa.string()),
        ("input_row", pa.int64()),
        ("mask_kind", pa.string()),
        ("mask_shard", pa.string()),
        ("mask_row", pa.int64()),
    ]
)
"""A work row: who the item is, and where its picture and its mask lie (a kind is "tuples" or "distractors"). What lies
in tuples is that of the row's view `view_index`."""


@dataclass(frozen=True, kw_only=True)
class EmbedSettings:
    """What is embedded, and by which backbone."""

    backbone: str = "toybox-siglip2"
    """toybox-siglip2 (shipped), a folder in transformers' layout, or a hub id: a model of SigLIP, SigLIP 2 (at a fixed
    resolution), CLIP, DINOv2 or DINOv3 (ViT), or a NearID release; for pooled embeddings any image model."""
    revision: str | None = None
    """Branch, tag or commit of a backbone on the hub."""
    image_px: int | None = None
    """Side, in pixels, at which DINOv2 and DINOv3 read pictures; by default that of the model's preprocessor."""
    trust_remote_code: bool = False
    """Run Python code that a backbone of an unknown kind brings along. It can do anything to this machine: read it
    first."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision the backbone computes in; auto: bfloat16 where the hardware has it, else float32."""
    batch_size: int = 64
    """Images in one pass through the backbone, at least 1."""
    draws: int = 1
    """Augmented draws V of every image of the augmented splits, 0 or more; with 0 these splits get the clean image."""
    augmented_splits: tuple[str, ...] = ("train",)
    """Splits that get the draws 1..V."""
    clean_splits: tuple[str, ...] = ("val", "test")
    """Splits that get draw 0, the clean image."""
    masked: bool = True
    """Embed every item once more with its background blacked out."""
    distractor_mask: Literal["view", "painted"] = "view"
    """What is kept of a distractor whose background is blacked out: the mask of the view it was painted into, as in the
    paper, or the whole painted region. The region can be wider than the object and then shows a rim of background that
    only distractors have."""
    engines: tuple[str, ...] = ()
    """Engines whose distractors are embedded; all when empty."""
    train_engines: tuple[str, ...] = ()
    """Of these, the engines embedded for the split train; all when empty."""
    controls: bool = False
    """Embed artefact controls too (engines that end in -control): for val and test alone, they are no distractors."""
    stored: Stored = "float16"
    """How tokens lie on disk: float16, or int8 with one scale a token, which takes half the room and rounds each number
    to 1/127 of the token's largest."""
    augment: AugmentSettings = field(default_factory=AugmentSettings)
    """How the draws are made."""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size is {self.batch_size}; expected at least 1")
        if self.draws < 0:
            raise ValueError(f"draws is {self.draws}; expected 0 or more")
        if self.distractor_mask not in ("view", "painted"):
            raise ValueError(f"distractor_mask is {self.distractor_mask!r}; expected 'view' or 'painted'")
        if self.stored not in ("float16", "int8"):
            raise ValueError(f"stored is {self.stored!r}; expected 'float16' or 'int8'")
        for name in ("augmented_splits", "clean_splits"):
            unknown = sorted(set(getattr(self, name)) - set(SPLITS))
            if unknown:
                raise ValueError(f"{name} names {', '.join(unknown)}; expected some of {', '.join(SPLITS)}")

    def draws_of(self, split: str) -> list[int]:
        """Numbers of the draws that images of a split get; empty when the split is not embedded."""
        augmented = list(range(1, self.draws + 1)) if split in self.augmented_splits else []
        clean = split in self.clean_splits or (split in self.augmented_splits and not augmented)
        return [0, *augmented] if clean else augmented

    def wants(self, engine: str, split: str) -> bool:
        """Whether distractors of an engine are embedded for a split."""
        if self.engines and engine not in self.engines:
            return False
        return split != "train" or not self.train_engines or engine in self.train_engines


def pooled_settings(settings: EmbedSettings) -> EmbedSettings:
    """The same, for pooled embeddings: every wanted split once, clean."""
    splits = tuple(split for split in SPLITS if settings.draws_of(split))
    values = {name: getattr(settings, name) for name in asdict(settings)}
    return EmbedSettings(**values | {"draws": 0, "augmented_splits": (), "clean_splits": splits})


def item_id(
    image_id: str, role: str, engine: str, identity_id: str, view_index: int, *, masked: bool, draw: int
) -> str:
    """Name of a cached item."""
    return stable_hash(image_id, role, engine, identity_id, view_index, int(masked), draw)


@dataclass(frozen=True, kw_only=True)
class _Picture:
    """A picture of an input dataset, before it is known whether it is embedded."""

    image_id: str
    role: str
    identity_id: str
    view_index: int
    engine: str
    category: str
    split: str
    oracle: float | None
    has_mask: bool
    problem: tuple[str, str] | None
    """(reason, detail) why it cannot be embedded."""
    input_kind: str
    input_shard: str
    input_row: int
    mask_kind: str
    mask_shard: str
    mask_row: int

    @property
    def record_id(self) -> str:
        parts = [self.identity_id, str(self.view_index)]
        return "/".join([*parts, self.engine, self.image_id] if self.engine else parts)


def plan_embed(
    tuples: Dataset, distractors: Dataset | None, settings: EmbedSettings
) -> tuple[pa.Table, list[dict[str, str]]]:
    """(work list, rejected records) for the pictures of two datasets.

    The items of one picture stand side by side, pictures in the order in which they lie in their shards, views first.
    A picture with an error, a distractor whose verdict is not `accepted`, a control in the split train and a masked
    item without a mask are left out and rejected with their reason; what the settings do not ask for is left out
    without a word, as are pictures of the same object that are no artefact controls.

    Raises:
        UsageError: an engine is asked for that no distractor has, the distractors were made from other tuples, all of
            them are left out, or nothing is left to embed.
    """
    pictures = list(_views(tuples))
    if distractors is not None:
        others = list(_distractors(distractors, {(p.identity_id, p.view_index): p for p in pictures}, settings))
        _check_engines(settings, {p.engine for p in others}, distractors)
        _check_same_tuples(others, tuples, distractors)
        others = [p for p in others if settings.wants(p.engine, p.split) and settings.draws_of(p.split)]
        _check_any_usable(others, distractors)
        pictures += others
    elif settings.engines or settings.train_engines:
        raise UsageError("engines are named, but no distractors dataset is given")
    columns: dict[str, list[Any]] = {name: [] for name in WORK_SCHEMA.names}
    rejected: list[dict[str, str]] = []
    for picture in pictures:
        draws = settings.draws_of(picture.split)
        if not draws:
            continue
        if picture.problem:
            rejected.append(_rejection(picture, *picture.problem))
            continue
        if settings.masked and not picture.has_mask:
            detail = "without a mask its background cannot be blacked out"
            rejected.append(_rejection(picture, "no-mask", detail, "/masked"))
        for masked in (False, True) if settings.masked and picture.has_mask else (False,):
            for draw in draws:
                _append(columns, picture, masked, draw)
    if not columns["row_id"]:
        raise UsageError(
            f"{tuples.location.uri}: nothing to embed: {len(pictures)} pictures, {len(rejected)} of them left out, "
            f"augmented_splits {list(settings.augmented_splits)}, clean_splits {list(settings.clean_splits)}"
        )
    return pa.table(columns, schema=WORK_SCHEMA), rejected


def _views(tuples: Dataset) -> Iterator[_Picture]:
    for shard, table in _metadata(tuples, _TUPLE_COLUMNS):
        rows = zip(*(table[name].to_pylist() for name in ("identity_id", "category", "split", "views")), strict=True)
        for row, (identity_id, category, split, views) in enumerate(rows):
            for view_index, view in enumerate(views):
                yield _Picture(
                    image_id=view["view_id"],
                    role="view",
                    identity_id=identity_id,
                    view_index=view_index,
                    engine="",
                    category=category,
                    split=split,
                    oracle=None,
                    has_mask=view["mask"] is not None,
                    problem=("view-error", view["error"]) if view["error"] else None,
                    input_kind="tuples",
                    input_shard=shard,
                    input_row=row,
                    mask_kind="tuples",
                    mask_shard=shard,
                    mask_row=row,
                )


def _distractors(
    distractors: Dataset, views: dict[tuple[str, int], _Picture], settings: EmbedSettings
) -> Iterator[_Picture]:
    for shard, table in _metadata(distractors, _DISTRACTOR_COLUMNS):
        for row, entry in enumerate(table.to_pylist()):
            if entry.get("control") and not (settings.controls and entry["engine"].endswith(CONTROL_SUFFIX)):
                continue
            view = views.get((entry["identity_id"], entry["view_index"]))
            masked_by = view if settings.distractor_mask == "view" else None
            yield _Picture(
                image_id=entry["distractor_id"],
                role="distractor",
                identity_id=entry["identity_id"],
                view_index=entry["view_index"],
                engine=entry["engine"],
                category=entry["category"],
                split=entry["split"],
                oracle=entry["oracle"],
                has_mask=masked_by.has_mask if masked_by else entry["mask"] is not None,
                problem=_problem(entry, view),
                input_kind="distractors",
                input_shard=shard,
                input_row=row,
                mask_kind="tuples" if masked_by else "distractors",
                mask_shard=masked_by.mask_shard if masked_by else shard,
                mask_row=masked_by.mask_row if masked_by else row,
            )


def _problem(entry: dict[str, Any], view: _Picture | None) -> tuple[str, str] | None:
    if view is None or view.image_id != entry["view_id"]:
        return "no-view", "the tuples do not hold the view it was painted into"
    if entry["error"]:
        return "distractor-error", entry["error"]
    if entry["verdict"] != "accepted":
        return "distractor-not-accepted", f"its verdict is {entry['verdict']}"
    if entry.get("control") and entry["split"] == "train":
        return "control-in-train", "it shows the same object, which nothing may be trained to push away"
    return None


def _metadata(dataset: Dataset, columns: Sequence[str]) -> Iterator[tuple[str, pa.Table]]:
    """(shard, its rows without pictures), in the order of the shards."""
    for shard in dataset.shards():
        yield shard, read_parquet(dataset.shard(shard), columns)


def _append(columns: dict[str, list[Any]], picture: _Picture, masked: bool, draw: int) -> None:
    name = item_id(
        picture.image_id,
        picture.role,
        picture.engine,
        picture.identity_id,
        picture.view_index,
        masked=masked,
        draw=draw,
    )
    own = {"row_id": name, "masked": masked, "draw": draw}
    for column, values in columns.items():
        values.append(own[column] if column in own else getattr(picture, column))


def _rejection(picture: _Picture, reason: str, detail: str, suffix: str = "") -> dict[str, str]:
    return {
        "record_id": picture.record_id + suffix,
        "identity_id": picture.identity_id,
        "reason": reason,
        "detail": detail,
    }


def _check_engines(settings: EmbedSettings, found: set[str], distractors: Dataset) -> None:
    for name in ("engines", "train_engines"):
        unknown = sorted(set(getattr(settings, name)) - found)
        if unknown:
            raise UsageError(
                f"{name} names {', '.join(unknown)}; {distractors.location.uri} has distractors of "
                f"{', '.join(sorted(found))}"
            )


def _check_same_tuples(others: list[_Picture], tuples: Dataset, distractors: Dataset) -> None:
    if others and all(p.problem and p.problem[0] == "no-view" for p in others):
        raise UsageError(
            f"the distractors in {distractors.location.uri} were made from other tuples than {tuples.location.uri}: "
            "none of their views is there. Give the tuples that were given to synthesize."
        )


def _check_any_usable(others: list[_Picture], distractors: Dataset) -> None:
    if others and all(p.problem for p in others):
        reasons = Counter(f"{p.problem[0]}, {p.problem[1]}" for p in others if p.problem).most_common(3)
        raise UsageError(
            f"none of the {len(others):,} distractors in {distractors.location.uri} that are asked for can be embedded "
            f"({'; '.join(f'{count:,}: {reason}' for reason, count in reasons)}). Look at them with jobs/show.py, or "
            "give no --distractors to embed the views alone."
        )
