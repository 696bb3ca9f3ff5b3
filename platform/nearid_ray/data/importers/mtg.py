"""Mind-the-Glitch: pairs of pictures of one object, of each a copy with a part of the object painted anew.

Columns: image_{1,2}_original, image_{1,2}_inpainted, image_{1,2}_object_mask, image_{1,2}_part_mask. The originals are
the two views of an identity, the inpainted ones the distractors of these views.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nearid_ray.data.columns import Cell
from nearid_ray.data.images import cut_mask, cut_rgb, decode_mask, decode_rgb, encode_png, resize_rgb
from nearid_ray.data.importers.importer import (
    PictureImporter,
    Record,
    Rejected,
    RowImporter,
    distractor_row_id,
)
from nearid_ray.data.importers.mask_files import fitted_mask
from nearid_ray.data.importers.painted import BackgroundReader, bare_row, list_backgrounds, measured_columns
from nearid_ray.data.masking import MaskSettings
from nearid_ray.data.sources import RowSource, open_rows
from nearid_ray.data.store import Dataset
from nearid_ray.data.views import RawIdentity, RawView
from nearid_ray.errors import StoreError, UsageError
from nearid_ray.identifiers import content_hash
from schemas import DISTRACTORS

SPLITS = {"train": "train", "validation": "val", "test": "test"}
"""Our name of a split by the source's."""

ENGINE = "mtg-inpaint"
FAMILY = "mtg"

_IMAGES = (1, 2)
_HUB_ID = "abdo-eldesokey/mtg-dataset"


def part_oracle(part_HW: np.ndarray | None, object_HW: np.ndarray | None) -> float | None:
    """1 - |part| / |object|, counted in pixels that are not zero: the share of the object that stayed the same.

    It is not clamped: a part larger than the object gives less than 0. None where a mask is missing or
    empty. ValueError where the masks have different sizes.

    >>> part_oracle(np.array([[0, 9, 0]]), np.array([[1, 1, 255]]))
    0.6666666666666667
    """
    if part_HW is None or object_HW is None or not part_HW.any() or not object_HW.any():
        return None
    if part_HW.shape != object_HW.shape:
        raise ValueError(f"the part mask has shape {part_HW.shape}, the object mask {object_HW.shape}; expected one")
    return 1 - float(np.count_nonzero(part_HW) / np.count_nonzero(object_HW))


@dataclass(frozen=True, kw_only=True)
class MtgSettings:
    """Where Mind-the-Glitch lies and what becomes of it."""

    source: str = _HUB_ID
    """Hub id, folder written by `save_to_disk`, or Parquet (file, folder or pattern; disk or S3)."""
    revision: str = ""
    """Revision of a hub dataset; by default its newest."""
    splits: tuple[str, ...] = tuple(SPLITS)
    """Splits of the source to read: train, validation, test."""
    masking: MaskSettings = field(default_factory=lambda: MaskSettings(mask_method="none"))
    """What happens to pictures without an object mask."""
    size_px: int = 512
    """Side of the canonical square in pixels, 16 to 4096."""
    source_name: str = "mtg"
    """First part of every identity_id: small letters, digits, - and _."""

    def __post_init__(self) -> None:
        if not self.source:
            raise ValueError(f"source is empty; expected a hub id ({_HUB_ID}), a folder or Parquet")
        unknown = sorted(set(self.splits) - set(SPLITS))
        if unknown or not self.splits or len(set(self.splits)) != len(self.splits):
            raise ValueError(f"splits is {self.splits}; expected some of {', '.join(SPLITS)}, each once")
        if not 16 <= self.size_px <= 4096:
            raise ValueError(f"size_px is {self.size_px}; expected 16 to 4096")
        if not re.fullmatch(r"[a-z0-9_-]+", self.source_name):
            raise ValueError(f"source_name is {self.source_name!r}; expected small letters, digits, - and _")


class MtgImporter(PictureImporter):
    """Reads the pairs of originals as identities `mtg:SPLIT-ROW` with two views, in order.

    Provenance keeps the split and row, by which the distractors find their view, also in a curated subset. An empty
    mask counts as none. A column `category` is taken over where there is one.
    """

    title = "Mind-the-Glitch tuples"
    about = (
        "Mind-the-Glitch: two pictures of one object, with masks of the object and of the part that is painted anew in "
        "its distractor."
    )
    licence = "unknown"

    def __init__(self, settings: MtgSettings) -> None:
        self.settings = settings
        self.source = settings.source_name
        self.size_px = settings.size_px
        self.masking = settings.masking
        self._splits = _Splits(settings.source, settings.revision)

    def content(self) -> dict[str, Any]:
        s = self.settings
        return {"table": self._splits[s.splits[0]].uri, "size_px": s.size_px}

    def list_records(self) -> tuple[list[Record], list[Rejected]]:
        """(records, rejected) without reading a picture. Rejected are rows with neither original.

        Raises UsageError for a source that cannot be opened, missing columns, and one without splits of which several
        are asked for.
        """
        self._splits.check_distinct(self.settings.splits)
        records: list[Record] = []
        rejected: list[Rejected] = []
        for split in self.settings.splits:
            rows = self._splits[split]
            rows.require(*_columns("original", "object_mask", "part_mask"))
            has = rows.present(_columns("original")).to_pydict()
            categories = rows.light(["category"])["category"].to_pylist() if "category" in rows.columns else []
            state = rows.fingerprint()
            for row in range(len(rows)):
                identity_id = f"{self.source}:{SPLITS[split]}-{row:06d}"
                record = {"identity_id": identity_id, "split": SPLITS[split], "from": split, "row": row, "table": state}
                if any(values[row] for values in has.values()):
                    records.append(record | {"category": str(categories[row] or "") if categories else ""})
                else:
                    detail = f"row {row} of split {split} has neither original"
                    left_out = {"record_id": identity_id, "identity_id": identity_id}
                    rejected.append(left_out | {"reason": "no-pictures", "detail": detail})
        if not records:
            raise UsageError(f"{self.settings.source}: no row of the split(s) {', '.join(self.settings.splits)}")
        return records, rejected

    def fetch(self, records: Sequence[Record]) -> Iterator[RawIdentity]:
        """The pairs with their pictures' bytes."""
        found = self._splits.rows(records, _columns("original", "object_mask", "part_mask"))
        for record, row in zip(records, found, strict=True):
            yield RawIdentity(
                identity_id=record["identity_id"],
                split=record["split"],
                views=[_view(record["identity_id"], number, row) for number in _IMAGES],
                category=record["category"],
                provenance={"mtg_split": record["from"], "mtg_row": record["row"]},
            )


@dataclass(frozen=True, kw_only=True)
class MtgDistractorsSettings:
    """Whose distractors to read, and where they are."""

    tuples: str
    """Tuples dataset made from the same source by `ingest.py mtg`, or a curated subset of it."""
    source: str = _HUB_ID
    """Hub id, folder written by `save_to_disk`, or Parquet (file, folder or pattern; disk or S3)."""
    revision: str = ""
    """Revision of a hub dataset; by default its newest."""

    def __post_init__(self) -> None:
        if not self.tuples:
            raise ValueError("tuples is empty; expected a dataset made by `ingest.py mtg`")
        if not self.source:
            raise ValueError(f"source is empty; expected a hub id ({_HUB_ID}), a folder or Parquet")


class MtgDistractorsImporter(RowImporter):
    """Reads the inpainted pictures as distractors (engine mtg-inpaint) of the views of a tuples dataset.

    The picture and the part mask are cut by the view's own crop box. The mask is the view's object mask, outside of
    which the background is measured: it may differ, as the source has it. The oracle is `part_oracle` of the source's
    masks. A row of the source whose original is not the picture that the view was made of gives an error.
    """

    table = DISTRACTORS
    title = "Mind-the-Glitch distractors"
    about = "Mind-the-Glitch: the two pictures of each object with a part of it painted anew."
    licence = "unknown"

    def __init__(self, settings: MtgDistractorsSettings) -> None:
        self.settings = settings
        self.source = "mtg-distractors"
        self._tuples = Dataset(settings.tuples)
        self._splits = _Splits(settings.source, settings.revision)
        self._size_px = 512
        self._uri = settings.source

    def __reduce__(self) -> "tuple[type[MtgDistractorsImporter], tuple[MtgDistractorsSettings]]":
        return MtgDistractorsImporter, (self.settings,)

    def content(self) -> dict[str, Any]:
        return {"table": self._uri, "tuples": self._tuples.digest()}

    def bytes_per_row(self) -> int:
        return int(1.5 * self._size_px**2)

    def list_records(self) -> tuple[list[Record], list[Rejected]]:
        """(records, rejected), one a view, without reading a picture.

        Rejected are views with an error, views equal to another of their identity, identities from elsewhere, and views
        without an inpainted picture. Raises UsageError where no view is left, and for rows that the source lacks.
        """
        Dataset.open(self._tuples.location, "tuples")
        records: list[Record] = []
        rejected: list[Rejected] = []
        seen: set[str] = set()
        has: dict[str, dict[str, list[bool]]] = {}
        states: dict[str, str] = {}
        for view in list_backgrounds(self._tuples):
            left_out = {"record_id": f"{view.identity_id}/{view.view_index}", "identity_id": view.identity_id}
            split, row = view.identity_provenance.get("mtg_split"), view.identity_provenance.get("mtg_row", 0)
            number = view.provenance.get("mtg_image")
            if split not in SPLITS or number not in _IMAGES:
                rejected.append(left_out | {"reason": "other-source", "detail": "not read from Mind-the-Glitch"})
                continue
            if split not in has:
                rows = self._splits[split]
                rows.require(*_columns("original", "inpainted", "object_mask", "part_mask"))
                has[split] = rows.present(_columns("inpainted")).to_pydict()
                states[split] = rows.fingerprint()
                self._uri = rows.uri
            present = has[split][f"image_{number}_inpainted"]
            if row >= len(present):
                raise UsageError(
                    f"{self.settings.source}: split {split} has {len(present)} rows; {view.identity_id} was read from "
                    f"row {row}. Give the source that {self.settings.tuples} was made from"
                )
            distractor_id = distractor_row_id(view.identity_id, view.view_id, ENGINE, self.source)
            if view.error:
                rejected.append(left_out | {"reason": "view-error", "detail": view.error})
            elif not present[row]:
                rejected.append(left_out | {"reason": "no-picture", "detail": f"row {row} of split {split} has none"})
            elif distractor_id in seen:
                rejected.append(left_out | {"reason": "same-view-twice", "detail": "an earlier view is the same"})
            else:
                seen.add(distractor_id)
                self._size_px = max(self._size_px, view.size_px) if records else view.size_px
                records.append(view.record() | {
                    "distractor_id": distractor_id,
                    "from": split,
                    "source_row": row,
                    "table": states[split],
                    "image": number,
                    "crop_box": view.provenance.get("crop_box"),
                    "sha256": view.provenance.get("sha256"),
                })  # fmt: skip
        if not records:
            reasons = ", ".join(sorted({left_out["reason"] for left_out in rejected})) or "it is empty"
            raise UsageError(f"{self.settings.tuples}: no view can have a distractor of Mind-the-Glitch ({reasons})")
        return records, rejected

    def rows(self, records: Sequence[Record]) -> Iterator[Record]:
        """One row of `distractors` a record; what cannot be read is said in its `error`."""
        views = BackgroundReader(self._tuples, records)
        asked = [record | {"row": record["source_row"]} for record in records]
        found = self._splits.rows(asked, _columns("original", "inpainted", "object_mask", "part_mask"))
        for record, row in zip(records, found, strict=True):
            bare = bare_row(record, engine=ENGINE, family=FAMILY, settings={})
            try:
                yield bare | self._fields(record, row, views)
            except (StoreError, UsageError):
                raise  # the store fails, not this picture
            except (OSError, ValueError) as error:
                yield bare | {"error": str(error)}

    def _fields(self, record: Record, row: dict[str, Cell | None], views: BackgroundReader) -> dict[str, Any]:
        number = record["image"]
        original = _bytes(row, f"image_{number}_original")
        if original is None or content_hash(original) != record["sha256"]:
            raise ValueError(
                f"row {record['source_row']} of split {record['from']} holds another original than the view was made "
                "of; give the source that the tuples were made from"
            )
        inpainted = _bytes(row, f"image_{number}_inpainted")
        if inpainted is None:
            raise ValueError("the source has no inpainted picture here")
        view_HW3, mask_HW = views.view(record)
        original_HW3, image_HW3 = decode_rgb(original), decode_rgb(inpainted)
        height, width = original_HW3.shape[:2]
        if image_HW3.shape[0] * width != image_HW3.shape[1] * height:
            raise ValueError(
                f"the inpainted picture has {image_HW3.shape[1]} x {image_HW3.shape[0]} pixels, the original {width} x "
                f"{height}; expected the same shape"
            )
        object_HW, part_HW = (_mask(row, f"image_{number}_{kind}_mask") for kind in ("object", "part"))
        size, crop = view_HW3.shape[0], tuple(record["crop_box"])
        cut_part_HW = None if part_HW is None else cut_mask(fitted_mask(part_HW, original), crop, size)
        cut_HW3 = cut_rgb(resize_rgb(image_HW3, width, height), crop, size)
        return measured_columns(record["distractor_id"], view_HW3, cut_HW3, mask_HW, cut_part_HW) | {
            "oracle": part_oracle(part_HW, object_HW)
        }


class _Splits:
    """The source's splits, each opened when it is first asked for, also on the workers."""

    def __init__(self, source: str, revision: str) -> None:
        self._source, self._revision = source, revision
        self._open: dict[str, RowSource] = {}

    def __reduce__(self) -> "tuple[type[_Splits], tuple[str, str]]":
        return _Splits, (self._source, self._revision)

    def __getitem__(self, split: str) -> RowSource:
        if split not in self._open:
            self._open[split] = open_rows(self._source, revision=self._revision, split=split)
        return self._open[split]

    def check_distinct(self, splits: Sequence[str]) -> None:
        """UsageError where the source gives the same rows for several splits: it has none."""
        prints = [self[split].fingerprint() for split in splits]
        if len(set(prints)) < len(prints):
            raise UsageError(
                f"{self._source} has no splits: it gives the same rows for {' and '.join(splits)}. Name the one that "
                "its rows are, e.g. --splits test"
            )

    def rows(self, records: Sequence[Record], columns: Sequence[str]) -> list[dict[str, Any]]:
        """The rows of records with `from` (split) and `row`, in order; each split is read once."""
        found: dict[tuple[str, int], dict[str, Any]] = {}
        for split in dict.fromkeys(record["from"] for record in records):
            indices = sorted({record["row"] for record in records if record["from"] == split})
            read = self[split].rows(indices, columns)
            found |= {(split, index): row for index, row in zip(indices, read, strict=True)}
        return [found[record["from"], record["row"]] for record in records]


def _columns(*kinds: str) -> list[str]:
    return [f"image_{number}_{kind}" for kind in kinds for number in _IMAGES]


def _view(identity_id: str, number: int, row: dict[str, Cell | None]) -> RawView:
    name = f"{identity_id.partition(':')[2]}-{number}"
    known: dict[str, Any] = {"name": name, "provenance": {"mtg_image": number}}
    try:
        image = _bytes(row, f"image_{number}_original")
        if image is None:
            return RawView(**known)
        known["image"] = image
        for kind, target in (("object", "mask"), ("part", "part_mask")):
            mask_HW = _mask(row, f"image_{number}_{kind}_mask")
            if mask_HW is not None:
                known[target] = encode_png(fitted_mask(mask_HW, image))
    except (OSError, ValueError) as error:
        return RawView(**known, error=str(error))
    has_mask = "mask" in known
    return RawView(**known, mask_name="the object mask", mask_source="column" if has_mask else "none")


def _mask(row: dict[str, Cell | None], column: str) -> np.ndarray | None:
    """The mask in a cell; None where there is none or it is empty. ValueError, naming the column, if unreadable."""
    data = _bytes(row, column)
    if data is None:
        return None
    try:
        mask_HW = decode_mask(data)
    except ValueError as error:
        raise ValueError(f"{column}: {error}") from error
    return mask_HW if mask_HW.any() else None


def _bytes(row: dict[str, Cell | None], column: str) -> bytes | None:
    cell = row[column]
    if cell is not None and cell.error:
        raise ValueError(f"{column}: {cell.error}")
    return None if cell is None else cell.data
