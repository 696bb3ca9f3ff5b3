"""Any table of pictures: Parquet, CSV, a saved dataset or one from a hub, with its columns named by the person.

Wide: one row an identity, a column a view (`images`). Long: one row a picture (`image`), with a column that names the
identity. Pictures and masks are encoded in the table, or paths of files relative to it.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pyarrow as pa

from nearid_ray.data.columns import Cell
from nearid_ray.data.importers.importer import PictureImporter, Record, Rejected
from nearid_ray.data.masking import MaskSettings
from nearid_ray.data.sources import open_rows
from nearid_ray.data.views import RawIdentity, RawView
from nearid_ray.errors import UsageError

_SPLITS = {"train": "train", "val": "val", "validation": "val", "valid": "val", "test": "test"}
_TEXTS = ("category", "description", "object_kind", "objaverse_id")
_KINDS = ("rigid", "deformable", "")
_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class TableSettings:
    """Where the table is and what its columns mean."""

    source: str
    """Parquet (file, folder, or a pattern like FOLDER/*.parquet), CSV, folder written by `save_to_disk`, or hub id."""
    revision: str = ""
    """Branch, tag or commit on the hub; empty for the main branch."""
    source_split: str = "train"
    """Split of the source that is read, where it has several."""
    files: str = ""
    """Folder that paths of pictures are relative to; by default the table's own."""
    identity: str = ""
    """Column that names the identity. Needed with `image`; with `images` the row number names it otherwise."""
    images: tuple[str, ...] = ()
    """One row an identity: the columns of its views, in order."""
    image: str = ""
    """One row a picture: the column of the picture."""
    masks: tuple[str, ...] = ()
    """With `images`: the columns of their masks, one for each, in the same order."""
    mask: str = ""
    """With `image`: the column of its mask."""
    category: str = ""
    """Column of the category; without one every category is unknown, and no identity finds a donor."""
    description: str = ""
    """Column of a text on the object."""
    object_kind: str = ""
    """Column that says rigid or deformable."""
    objaverse_id: str = ""
    """Column of the 3D asset that the object was rendered from."""
    prompts: tuple[str, ...] = ()
    """Columns of the texts that the views were generated from: one for each of `images`, or one with `image`."""
    split_column: str = ""
    """Column of the split: train, val (or validation) or test."""
    split: Literal["train", "val", "test"] = "test"
    """The split of all identities where there is no split_column."""
    min_views: int = 2
    """Identities with fewer pictures are left out and counted; 1 or more."""
    masking: MaskSettings = field(default_factory=MaskSettings)
    """What happens to pictures without a mask."""
    size_px: int = 512
    """Side of the canonical square in pixels, 16 to 4096."""
    source_name: str = "table"
    """First part of every identity_id: small letters, digits, - and _."""

    def __post_init__(self) -> None:
        if not self.source:
            raise ValueError("source is empty; expected a Parquet or CSV file, a saved dataset or a hub id")
        if self.image and self.images:
            raise ValueError(
                "image and images are both given; expected images (one row an identity) or image (one row a picture)"
            )
        if self.image and not self.identity:
            raise ValueError("image is given without identity; expected the column that names a picture's identity")
        if self.masks and len(self.masks) != len(self.images):
            raise ValueError(
                f"masks names {len(self.masks)} column(s), images {len(self.images)}; expected one for each"
            )
        if self.mask and not self.image:
            raise ValueError("mask goes with image (one row a picture); expected masks with images")
        if self.prompts and len(self.prompts) != len(self.picture_columns):
            raise ValueError(
                f"prompts names {len(self.prompts)} column(s), the views have {len(self.picture_columns)}; expected "
                "one for each"
            )
        double = [name for name, count in Counter(self.images).items() if count > 1]
        if double:
            raise ValueError(f"images names {', '.join(double)} more than once")
        if self.split not in ("train", "val", "test"):
            raise ValueError(f"split is {self.split!r}; expected train, val or test")
        if self.min_views < 1:
            raise ValueError(f"min_views is {self.min_views}; expected 1 or more")
        if not 16 <= self.size_px <= 4096:
            raise ValueError(f"size_px is {self.size_px}; expected 16 to 4096")
        if not re.fullmatch(r"[a-z0-9_-]+", self.source_name):
            raise ValueError(f"source_name is {self.source_name!r}; expected small letters, digits, - and _")

    @property
    def picture_columns(self) -> tuple[str, ...]:
        """The columns of the views, in order."""
        return self.images or ((self.image,) if self.image else ())

    @property
    def mask_columns(self) -> tuple[str, ...]:
        """The columns of their masks, in the same order; empty where there are none."""
        return self.masks or ((self.mask,) if self.mask else ())

    @property
    def text_columns(self) -> dict[str, str]:
        """Our name of a text -> the table's column."""
        return {name: getattr(self, name) for name in _TEXTS if getattr(self, name)}


class TableImporter(PictureImporter):
    """Reads identities from a table. A bad picture costs its view alone."""

    title = "Tuples from a table of pictures"
    about = "Pictures of objects, one row an identity, each picture cut to a square around the object's mask."
    licence = "unknown"

    def __init__(self, settings: TableSettings) -> None:
        self.settings = settings
        self.source = settings.source_name
        self.size_px = settings.size_px
        self.masking = settings.masking
        self._rows = open_rows(
            settings.source, revision=settings.revision, split=settings.source_split, files=settings.files
        )
        if not settings.picture_columns:
            raise UsageError(
                f"say which columns of {self._rows.uri} hold pictures: images (one row an identity, a column a view) "
                f"or image and identity (one row a picture); found the columns: {', '.join(self._rows.columns)}"
            )
        others = (settings.identity, settings.split_column, *settings.text_columns.values(), *settings.prompts)
        pictures = (*settings.picture_columns, *settings.mask_columns)
        self._rows.require(*pictures, *filter(None, others))
        wrong = [f"{name} ({self._kind(name)})" for name in pictures if not self._holds_pictures(name)]
        if wrong:
            raise UsageError(f"{self._rows.uri}: column(s) {', '.join(wrong)} hold neither pictures nor paths of files")
        self._without_category = 0

    def content(self) -> dict[str, Any]:
        s = self.settings
        return {
            "table": self._rows.uri,
            "table_fingerprint": self._rows.fingerprint(),
            "files": s.files,
            "pictures": list(s.picture_columns),
            "masks": list(s.mask_columns),
            "prompts": list(s.prompts),
            "texts": s.text_columns,
            "size_px": s.size_px,
        }

    def facts(self) -> dict[str, Any]:
        return {"identities_without_category": self._without_category}

    def list_records(self) -> tuple[list[Record], list[Rejected]]:
        """(records, rejected) in the order in which the identities first stand in the table; no picture is decoded.

        A record has `identity_id`, `split`, the texts, and `views`: [row, place of the column] of each picture that is
        there. Rejected are identities with too few pictures. Raises UsageError for an empty table, rows that name no
        identity, names that stand there twice (wide), unknown splits, and rows of one identity that contradict each
        other (long).
        """
        if not len(self._rows):
            raise UsageError(f"{self._rows.uri} has no rows")
        names = self._names()
        texts = {name: self._texts(column) for name, column in self.settings.text_columns.items()}
        texts["split"] = self._splits(len(names))
        present = [self._present(column) for column in self.settings.picture_columns]
        identities: dict[str, Record] = {}
        contradicting: list[str] = []
        for row, name in enumerate(names):
            known = {what: values[row] for what, values in texts.items()}
            record = identities.setdefault(name, {"identity_id": f"{self.source}:{name}", **known, "views": []})
            contradicting += [
                f"{name} ({what}: {record[what]}, {said})" for what, said in known.items() if record[what] != said
            ]
            record["views"] += [[row, place] for place, has in enumerate(present) if has[row]]
        if contradicting:
            raise UsageError(
                f"{self._rows.uri}: rows of {len(contradicting)} identity(ies) contradict each other: "
                f"{_shown(contradicting)}"
            )
        least = self.settings.min_views
        records = [record for record in identities.values() if len(record["views"]) >= least]
        rejected = [
            {
                "record_id": record["identity_id"],
                "identity_id": record["identity_id"],
                "reason": "too-few-views",
                "detail": f"{len(record['views'])} picture(s), expected at least {least}",
            }
            for record in identities.values()
            if len(record["views"]) < least
        ]
        if not records:
            raise UsageError(
                f"{self._rows.uri}: none of the {len(rejected)} identity(ies) has {least} pictures; set --min-views 1, "
                "or look whether the right columns are named"
            )
        self._without_category = sum(not record.get("category") for record in records)
        return records, rejected

    def fetch(self, records: Sequence[Record]) -> Iterator[RawIdentity]:
        s = self.settings
        columns = list(dict.fromkeys([*s.picture_columns, *s.mask_columns, *s.prompts]))
        rows = sorted({row for record in records for row, _ in record["views"]})
        found = dict(zip(rows, self._rows.rows_or_errors(rows, columns), strict=True))
        for record in records:
            yield RawIdentity(
                identity_id=record["identity_id"],
                split=record["split"],
                views=[self._view(record, found[row], row, place) for row, place in record["views"]],
                provenance={"table": self._rows.uri, "row": record["views"][0][0]},
                **{name: record.get(name, "") for name in _TEXTS},
            )

    def _view(self, record: Record, values: dict[str, Any] | ValueError, row: int, place: int) -> RawView:
        s = self.settings
        column = s.picture_columns[place]
        if isinstance(values, ValueError):
            return RawView(name=f"row {row}, {column}", provenance={"row": row, "column": column}, error=str(values))
        mask_column = s.mask_columns[place] if s.mask_columns else ""
        image = self._cell(values[column]) or Cell(error="the table has no picture here")
        mask = self._cell(values[mask_column]) if mask_column else None
        provenance: dict[str, Any] = {"row": row, "column": column}
        provenance |= {"file": image.path} if image.path else {}
        return RawView(
            name=image.path or f"{record['identity_id'].partition(':')[2]}/{row}-{column}.png",
            image=image.data,
            mask=mask.data if mask else None,
            mask_name=f"the mask in {mask_column}",
            mask_source=("file" if isinstance(values[mask_column], str) else "column") if mask else "none",
            prompt=str(values[s.prompts[place]] or "") if s.prompts else "",
            provenance=provenance,
            error="; ".join(filter(None, (image.error, f"{mask_column}: {mask.error}" if mask and mask.error else ""))),
        )

    def _cell(self, value: Any) -> Cell | None:
        if not isinstance(value, str):
            return value
        return self._rows.picture(value.strip()) if value.strip() else None

    def _names(self) -> list[str]:
        s = self.settings
        if not s.identity:
            return [str(row) for row in range(len(self._rows))]
        names = [name.strip() for name in self._texts(s.identity)]
        missing = [row for row, name in enumerate(names) if not name]
        if missing:
            raise UsageError(f"{self._rows.uri}: {len(missing)} row(s) have no {s.identity}: {_shown(missing)}")
        unprintable = [repr(name) for name in names if not name.isprintable()]
        if unprintable:
            raise UsageError(f"{self._rows.uri}: name(s) in {s.identity} cannot be printed: {_shown(unprintable)}")
        double = [name for name, count in Counter(names).items() if count > 1]
        if double and not s.image:
            raise UsageError(
                f"{self._rows.uri}: {len(double)} name(s) stand in {s.identity} more than once: {_shown(double)}; give "
                "image instead of images where a row is one picture"
            )
        return names

    def _texts(self, column: str) -> list[str]:
        values = self._rows.light([column])[column].to_pylist()
        texts = ["" if value is None else str(value) for value in values]
        if column == self.settings.object_kind:
            wrong = sorted(set(texts) - set(_KINDS))
            if wrong:
                raise UsageError(f"{self._rows.uri}: {column} holds {_shown(wrong)}; expected rigid or deformable")
        return texts

    def _splits(self, rows: int) -> list[str]:
        s = self.settings
        if not s.split_column:
            return [s.split] * rows
        said = self._texts(s.split_column)
        unknown = sorted({repr(value) for value in said if value.strip().lower() not in _SPLITS})
        if unknown:
            raise UsageError(
                f"{self._rows.uri}: {s.split_column} holds {_shown(unknown)}; expected {', '.join(_SPLITS)} everywhere"
            )
        return [_SPLITS[value.strip().lower()] for value in said]

    def _present(self, column: str) -> list[bool]:
        if column in self._rows.picture_columns:
            return self._rows.present([column])[column].to_pylist()
        return [bool(value and value.strip()) for value in self._rows.light([column])[column].to_pylist()]

    def _holds_pictures(self, column: str) -> bool:
        return column in self._rows.picture_columns or _is_text(self._kind(column))

    def _kind(self, column: str) -> pa.DataType:
        return self._rows.schema.field(column).type


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _shown(values: Sequence[object]) -> str:
    more = f" and {len(values) - _SHOWN} more" if len(values) > _SHOWN else ""
    return ", ".join(map(str, values[:_SHOWN])) + more
