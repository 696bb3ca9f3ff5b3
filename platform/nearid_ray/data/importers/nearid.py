"""NearID's positives as its authors publish them: a table with one row an identity and a column a view.

img1..3 (or images1..3), where there are any masks1..3; id, category, category_description, n_images, objaverse_id,
prompts1..3, quality. A missing view is null. Slots are counted from 1, as in the names of the columns.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from nearid_ray.data.importers.importer import PictureImporter, Record, Rejected
from nearid_ray.data.importers.index_files import read_splits
from nearid_ray.data.masking import MaskSettings
from nearid_ray.data.sources import RowSource, open_rows
from nearid_ray.data.views import RawIdentity, RawView
from nearid_ray.errors import UsageError

HUB_ID = "Aleksandar/NearID"

_IMAGE_SPELLINGS = ("img", "images")
_TEXTS = ("category", "category_description", "objaverse_id")
_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class NearidSettings:
    """Where NearID's positives are and what becomes of them."""

    source: str = HUB_ID
    """Hub id, folder written by `save_to_disk`, or Parquet: a file, a folder, or a pattern like FOLDER/*.parquet."""
    revision: str = ""
    """Branch, tag or commit on the hub; empty for the main branch."""
    source_split: str = "train"
    """Split of the source that is read; NearID publishes all identities as `train`."""
    train_index: str = ""
    """JSON file with the row numbers of the train split: a list, or {"indices": [...]}."""
    val_index: str = ""
    """JSON file with the row numbers of the val split."""
    test_index: str = ""
    """JSON file with the row numbers of the test split. Rows that are in no index file are left out."""
    split: Literal["train", "val", "test"] = "train"
    """The split of all identities where no index file is given."""
    masking: MaskSettings = field(default_factory=MaskSettings)
    """What happens to views without a mask in the table."""
    size_px: int = 512
    """Side of the canonical square in pixels, 16 to 4096."""
    source_name: str = "nearid"
    """First part of every identity_id: small letters, digits, - and _."""

    def __post_init__(self) -> None:
        if not self.source:
            raise ValueError(f"source is empty; expected a hub id such as {HUB_ID}, or a path")
        if not self.source_split:
            raise ValueError("source_split is empty; expected the name of a split, e.g. train")
        if not 16 <= self.size_px <= 4096:
            raise ValueError(f"size_px is {self.size_px}; expected 16 to 4096")
        if self.split not in ("train", "val", "test"):
            raise ValueError(f"split is {self.split!r}; expected train, val or test")
        if not re.fullmatch(r"[a-z0-9_-]+", self.source_name):
            raise ValueError(f"source_name is {self.source_name!r}; expected small letters, digits, - and _")

    @property
    def index_files(self) -> dict[str, str]:
        """The index file of each split, or ""."""
        return {"train": self.train_index, "val": self.val_index, "test": self.test_index}


class NearidImporter(PictureImporter):
    """Reads NearID's positives. A view that is missing is a gap: the tuple has fewer views.

    What the distractors are found by is kept: an identity's provenance has `row` (its number in the table), `rows` (of
    the table) and `id`, a view's has `slot`.
    """

    title = "NearID tuples"
    about = (
        "NearID (arXiv 2604.01973): generated pictures of one rigid object in two or three scenes, one row an object, "
        "each picture cut to a square around the object's mask."
    )
    licence = "unknown"

    def __init__(self, settings: NearidSettings) -> None:
        self.settings = settings
        self.source = settings.source_name
        self.size_px = settings.size_px
        self.masking = settings.masking
        self._rows = open_rows(settings.source, revision=settings.revision, split=settings.source_split)
        self._images = numbered_pictures(self._rows, _IMAGE_SPELLINGS, "img1 or images1")
        self._masks = numbered(self._rows.columns, "masks")
        wrong = [name for name in self._masks.values() if name not in self._rows.picture_columns]
        if wrong:
            raise UsageError(f"{self._rows.uri}: column(s) {', '.join(wrong)} hold no pictures; expected masks")
        self._prompts = numbered(self._rows.columns, "prompts")
        known = ("id", *_TEXTS, "n_images", "quality")
        self._others = [name for name in known if name in self._rows.columns]
        self._facts: dict[str, Any] = {}

    def content(self) -> dict[str, Any]:
        s = self.settings
        splits = {"split": s.split} if not any(s.index_files.values()) else {"split": "by index files"}
        return {
            "table": self._rows.uri,
            "table_fingerprint": self._rows.fingerprint(),
            "size_px": s.size_px,
            **splits,
        }

    def facts(self) -> dict[str, Any]:
        return self._facts

    def list_records(self) -> tuple[list[Record], list[Rejected]]:
        """(records, rejected), in the table's order; no picture is decoded.

        A record has `identity_id`, `row`, `slots` (those with a picture) and `split`. Rejected are rows in no index
        file. Raises UsageError for an empty table, ids that are missing or stand there twice, and wrong index files.
        """
        rows = len(self._rows)
        if not rows:
            raise UsageError(f"{self._rows.uri} has no rows")
        names = self._names()
        split_of = self._splits(rows)
        present = self._rows.present(list(self._images.values())).to_pydict()
        records: list[Record] = []
        rejected: list[Rejected] = []
        for row, name in enumerate(names):
            identity_id = f"{self.source}:{name}"
            if row not in split_of:
                detail = f"row {row} is in no index file"
                rejected.append(
                    {"record_id": f"row {row}", "identity_id": identity_id, "reason": "in-no-index", "detail": detail}
                )
                continue
            slots = [slot for slot, column in self._images.items() if present[column][row]]
            records.append({"identity_id": identity_id, "row": row, "slots": slots, "split": split_of[row]})
        if not records:
            raise UsageError("the index files name no row; nothing to read")
        self._facts = {
            f"identities_with_{views}_views": count
            for views, count in sorted(Counter(len(record["slots"]) for record in records).items())
        }
        return records, rejected

    def fetch(self, records: Sequence[Record]) -> Iterator[RawIdentity]:
        columns = [*self._images.values(), *self._masks.values(), *self._prompts.values(), *self._others]
        rows = self._rows.rows_or_errors([record["row"] for record in records], columns)
        for record, row in zip(records, rows, strict=True):
            if isinstance(row, ValueError):
                yield RawIdentity(identity_id=record["identity_id"], split=record["split"], error=str(row))
            else:
                yield self._identity(record, row)

    def _names(self) -> list[str]:
        """The identities' names: their id, or where the table has none, the row number."""
        if "id" not in self._rows.columns:
            return [str(row) for row in range(len(self._rows))]
        ids = self._rows.light(["id"])["id"].to_pylist()
        missing = [row for row, value in enumerate(ids) if value is None or value == ""]
        if missing:
            raise UsageError(f"{self._rows.uri}: {len(missing)} row(s) have no id: {_shown(missing)}")
        names = [str(value) for value in ids]
        double = [name for name, count in Counter(names).items() if count > 1]
        if double:
            raise UsageError(f"{self._rows.uri}: {len(double)} id(s) stand there more than once: {_shown(double)}")
        return names

    def _splits(self, rows: int) -> dict[int, str]:
        files = self.settings.index_files
        return read_splits(files, rows) if any(files.values()) else dict.fromkeys(range(rows), self.settings.split)

    def _identity(self, record: Record, row: Mapping[str, Any]) -> RawIdentity:
        texts = {name: str(row.get(name) or "") for name in _TEXTS}
        said = row.get("n_images")
        found = len(record["slots"])
        error = f"n_images is {said}, but {found} picture(s) are there" if said is not None and said != found else ""
        if not found:
            error = f"none of {', '.join(self._images.values())} holds a picture"
        provenance = {"table": self._rows.uri, "row": record["row"], "rows": len(self._rows)}
        provenance |= {name: _plain(row[name]) for name in ("id", "quality") if row.get(name) is not None}
        return RawIdentity(
            identity_id=record["identity_id"],
            split=record["split"],
            views=[self._view(record, row, slot) for slot in record["slots"]],
            category=texts["category"],
            description=texts["category_description"],
            object_kind="rigid" if texts["objaverse_id"] else "",
            objaverse_id=texts["objaverse_id"],
            provenance=provenance,
            error=error,
        )

    def _view(self, record: Record, row: Mapping[str, Any], slot: int) -> RawView:
        image, mask_column = row[self._images[slot]], self._masks.get(slot, "")
        mask = row[mask_column] if mask_column else None
        errors = [image.error, f"{mask_column}: {mask.error}" if mask is not None and mask.error else ""]
        return RawView(
            name=f"{record['identity_id'].partition(':')[2]}/{self._images[slot]}.png",
            image=image.data,
            mask=mask.data if mask is not None else None,
            mask_name=mask_column,
            mask_source="column" if mask is not None else "none",
            prompt=str(row.get(self._prompts.get(slot, "")) or ""),
            provenance={"slot": slot},
            error="; ".join(filter(None, errors)),
        )


def numbered(columns: Sequence[str], spelling: str) -> dict[int, str]:
    """Slot -> column, for the columns named `spelling` and a number from 1 on, by slot.

    >>> numbered(["id", "img2", "img1", "img0", "image"], "img")
    {1: 'img1', 2: 'img2'}
    """
    found = {int(name.removeprefix(spelling)): name for name in columns if re.fullmatch(f"{spelling}[1-9][0-9]?", name)}
    return dict(sorted(found.items()))


def numbered_pictures(rows: RowSource, spellings: Sequence[str], expected: str) -> dict[int, str]:
    """Slot -> picture column, by the one spelling that the table uses.

    Raises UsageError where it has no such columns, those of two spellings, gaps in the numbers, or no pictures in them.
    """
    found = {spelling: numbered(rows.columns, spelling) for spelling in spellings}
    used = [spelling for spelling, columns in found.items() if columns]
    listed = f"found the columns: {', '.join(rows.columns)}"
    if not used:
        raise UsageError(f"{rows.uri} has no column {expected}; {listed}")
    if len(used) > 1:
        raise UsageError(f"{rows.uri} has columns named {' and '.join(f'{u}1' for u in used)}; expected one of them")
    columns = found[used[0]]
    missing = [f"{used[0]}{slot}" for slot in range(1, max(columns)) if slot not in columns]
    if missing:
        raise UsageError(f"{rows.uri} has no column {', '.join(missing)}; {listed}")
    wrong = [
        f"{name} ({rows.schema.field(name).type})" for name in columns.values() if name not in rows.picture_columns
    ]
    if wrong:
        raise UsageError(f"{rows.uri}: column(s) {', '.join(wrong)} hold no pictures; expected encoded pictures")
    return columns


def _plain(value: Any) -> Any:
    """The value as JSON can keep it."""
    keeps = isinstance(value, str | int | list | dict) or (isinstance(value, float) and math.isfinite(value))
    return value if keeps else str(value)


def _shown(values: Sequence[object]) -> str:
    more = f" and {len(values) - _SHOWN} more" if len(values) > _SHOWN else ""
    return ", ".join(map(str, values[:_SHOWN])) + more
