"""NearID's distractors as their authors publish them: a table an engine, aligned by row with the positives.

nimg1..3, and where there is one, id. Slot j is painted into the background of view j, with the view's mask.
"""

import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from nearid_ray.data.columns import Cell
from nearid_ray.data.images import cut_rgb, decode_mask, decode_rgb, resize_rgb
from nearid_ray.data.importers.importer import Record, Rejected, RowImporter, distractor_row_id
from nearid_ray.data.importers.nearid import numbered_pictures
from nearid_ray.data.importers.painted import Background, bare_row, list_backgrounds, measured_columns
from nearid_ray.data.sources import RowSource, open_rows
from nearid_ray.data.store import Dataset, read_rows
from nearid_ray.errors import UsageError
from schemas import DISTRACTORS

ENGINES = {
    "NearID-Flux": "flux-fill-512",
    "NearID-Flux_1024": "flux-fill-1024",
    "NearID-FluxC": "flux-canny-512",
    "NearID-FluxC_1024": "flux-canny-1024",
    "NearID-PowerPaint": "powerpaint-512",
    "NearID-Qwen": "qwen-image-512",
    "NearID-Qwen_1328": "qwen-image-1328",
    "NearID-SDXL": "sdxl-512",
    "NearID-SDXL_1024": "sdxl-1024",
}
"""The engine configuration of each published table, by the table's name (without its owner)."""

MAX_STRETCH = 0.05
"""How far width / height of a distractor may be from the view's: engines round sides to multiples of 8 or 16 px."""

_ENGINE_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")
_HUB_REVISION = re.compile(r"(?P<id>[\w.-]+/[\w.-]+)@(?P<revision>[\w./-]+)")
_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class NearidDistractorsSettings:
    """Which published distractors to read, and whose they are."""

    tuples: str
    """Tuples dataset that `ingest.py nearid` wrote, or a curated part of it."""
    sources: tuple[str, ...]
    """Tables of distractors: hub ids (OWNER/NAME or OWNER/NAME@REVISION), folders written by `save_to_disk`, or
    Parquet. The engine follows from a published name (NearID-Flux is flux-fill-512); for others write ENGINE=TABLE."""
    source_split: str = "train"
    """Split of the tables that is read."""

    def __post_init__(self) -> None:
        if not self.tuples:
            raise ValueError("tuples is empty; expected a dataset that `ingest.py nearid` wrote")
        if not self.source_split:
            raise ValueError("source_split is empty; expected the name of a split, e.g. train")
        engines = [engine_and_place(source)[0] for source in self.sources]
        if not engines:
            raise ValueError("sources is empty; expected at least one table, e.g. Aleksandar/NearID-Flux")
        double = [engine for engine, count in Counter(engines).items() if count > 1]
        if double:
            raise ValueError(f"sources names {', '.join(double)} more than once; expected one table an engine")


class NearidDistractorsImporter(RowImporter):
    """Reads published distractors for the views of a tuples dataset, found by the row and slot in their provenance.

    A distractor is brought to the size that its view came in (Lanczos, noted in engine_settings) and cut by the view's
    crop box. Its background is left as it is, and measured.
    """

    table = DISTRACTORS
    source = "nearid-distractors"
    title = "NearID distractors"
    about = (
        "NearID (arXiv 2604.01973): similar but different objects, painted by generators into the background of each "
        "view; cut to the view's square, otherwise as published."
    )
    licence = "unknown"

    def __init__(self, settings: NearidDistractorsSettings) -> None:
        self.settings = settings
        self._tuples = Dataset(settings.tuples)
        self._tables: dict[str, _Table] = {}
        self._size_px = 512
        for source in settings.sources:
            engine, place, revision = engine_and_place(source)
            rows = open_rows(place, revision=revision, split=settings.source_split)
            self._tables[engine] = _Table(engine, rows)

    def __reduce__(self) -> "tuple[type[NearidDistractorsImporter], tuple[NearidDistractorsSettings]]":
        return NearidDistractorsImporter, (self.settings,)

    def content(self) -> dict[str, Any]:
        return {"tuples": self._tuples.digest()}  # the tables are in the rows: more engines can be added

    def bytes_per_row(self) -> int:
        return int(1.5 * self._size_px**2)

    def list_records(self) -> tuple[list[Record], list[Rejected]]:
        """(records, rejected) by engine and the tables' order, one record a distractor; no picture is decoded.

        Rejected are views with an error, views without a distractor, distractors without a view, views equal to an
        earlier one of their identity, and identities that were not read from NearID. Raises UsageError where a table
        has not as many rows as the positives had, other ids, or other columns, and where nothing is left.
        """
        tuples = Dataset.open(self._tuples.location, "tuples")
        identities: list[_Identity] = []
        rejected: list[Rejected] = []
        for _, group in groupby(list_backgrounds(tuples), key=lambda view: view.identity_id):
            views = list(group)
            if type(views[0].identity_provenance.get("row")) is int and all("slot" in v.provenance for v in views):
                identities.append(_Identity.of(views))
                self._size_px = max([self._size_px if len(identities) > 1 else 0, *(v.size_px for v in views)]) or 512
            else:
                rejected.append(_left_out(views[0].identity_id, "other-source", "it was not read from NearID"))
        if not identities:
            raise UsageError(
                f"{tuples.location.uri}: no identity says which row of NearID it was read from; expected a dataset "
                "that `ingest.py nearid` wrote, or a curated part of it"
            )
        identities.sort(key=lambda identity: identity.row)  # a table's rows are then read in order
        records: list[Record] = []
        for table in self._tables.values():
            table.check_alignment(identities)
            for record, reason in table.records(identities):
                if reason is None:
                    records.append(record)
                else:
                    rejected.append(reason)
        if not records:
            reasons = ", ".join(sorted({entry["reason"] for entry in rejected}))
            raise UsageError(f"{tuples.location.uri}: no view has a distractor in the given tables ({reasons})")
        return records, rejected

    def rows(self, records: Sequence[Record]) -> Iterator[Record]:
        """One row of `distractors` a record; what cannot be read is said in its `error`."""
        identities = self._identities(records)
        pictures = self._pictures(records)
        for record in records:
            identity = identities[record["shard"], record["row"]]
            known = {name: identity[name] for name in ("identity_id", "category", "split", "source")}
            view = identity["views"][record["view_index"]]
            yield self._tables[record["engine"]].row(record | known, view, pictures[_picture_key(record)])

    def _identities(self, records: Sequence[Record]) -> dict[tuple[str, int], dict[str, Any]]:
        wanted: dict[str, set[int]] = {}
        for record in records:
            wanted.setdefault(record["shard"], set()).add(record["row"])
        found: dict[tuple[str, int], dict[str, Any]] = {}
        for shard, rows in wanted.items():
            ordered = sorted(rows)
            read = read_rows(self._tuples.shard(shard), ordered).to_pylist()
            found |= {(shard, row): identity for row, identity in zip(ordered, read, strict=True)}
        return found

    def _pictures(self, records: Sequence[Record]) -> dict[tuple[str, int, int], Cell | None]:
        """The cells by engine, row of the table and slot."""
        found: dict[tuple[str, int, int], Cell | None] = {}
        for engine in dict.fromkeys(record["engine"] for record in records):
            table = self._tables[engine]
            indices = sorted({record["table_row"] for record in records if record["engine"] == engine})
            read = table.rows.rows_or_errors(indices, list(table.columns.values()))
            for index, row in zip(indices, read, strict=True):
                for slot, column in table.columns.items():
                    found[engine, index, slot] = Cell(error=str(row)) if isinstance(row, ValueError) else row[column]
        return found


@dataclass(frozen=True)
class _Identity:
    """An identity of the tuples dataset and where its distractors are."""

    name: str
    row: int
    rows: int
    source_id: str | None
    views: tuple[tuple[int, int, str, str], ...]
    """(view_index, slot, view_id, error)."""
    place: tuple[str, int]

    @classmethod
    def of(cls, views: Sequence[Background]) -> "_Identity":
        said = views[0].identity_provenance
        return cls(
            name=views[0].identity_id,
            row=said["row"],
            rows=said.get("rows", -1),
            source_id=str(said["id"]) if "id" in said else None,
            views=tuple((v.view_index, v.provenance["slot"], v.view_id, v.error) for v in views),
            place=(views[0].shard, views[0].row),
        )


class _Table:
    """One engine's distractors."""

    def __init__(self, engine: str, rows: RowSource) -> None:
        self.engine, self.rows = engine, rows
        self.columns = numbered_pictures(rows, ("nimg",), "nimg1")
        self._fingerprint = rows.fingerprint()
        self._family = re.sub(r"-\d+$", "", engine)
        self._settings = {"published_as": os.path.basename(rows.uri.rstrip("/")).partition("@")[0]}

    def check_alignment(self, identities: Sequence[_Identity]) -> None:
        """UsageError where the table is not aligned with the positives that the identities were read from."""
        uri, found = self.rows.uri, len(self.rows)
        expected = sorted({identity.rows for identity in identities if identity.rows >= 0})
        if len(expected) > 1 or (expected and expected[0] != found):
            raise UsageError(
                f"{uri} has {found} rows, the positives had {' and '.join(map(str, expected))}; distractors belong to "
                "positives by their row, so both must have the same number"
            )
        if identities[-1].row >= found:
            raise UsageError(f"{uri} has {found} rows; {identities[-1].name} was read from row {identities[-1].row}")
        if "id" not in self.rows.columns:
            return
        ids = self.rows.light(["id"])["id"].to_pylist()
        differing = [
            f"row {identity.row}: {identity.source_id} there, {ids[identity.row]} here"
            for identity in identities
            if identity.source_id is not None and identity.source_id != str(ids[identity.row])
        ]
        if differing:
            raise UsageError(
                f"{uri}: {len(differing)} id(s) do not match the positives': {'; '.join(differing[:_SHOWN])}"
                f"{'; ...' if len(differing) > _SHOWN else ''}. Give the table that belongs to the same positives"
            )

    def records(self, identities: Sequence[_Identity]) -> Iterator[tuple[Record, Rejected | None]]:
        """(record, None) for each distractor to read, ({}, rejected) for what is left out."""
        present = self.rows.present(list(self.columns.values()))
        has = {slot: present[column].to_numpy() for slot, column in self.columns.items()}
        for identity in identities:
            seen: set[str] = set()
            for view_index, slot, view_id, error in identity.views:
                name = f"{identity.name}/{view_index}/{self.engine}"
                if error:
                    yield {}, _left_out(identity.name, "view-error", error, name)
                elif slot not in has or not has[slot][identity.row]:
                    detail = f"{self.rows.uri}: row {identity.row} has no distractor in slot {slot}"
                    yield {}, _left_out(identity.name, "missing-distractor", detail, name)
                elif view_id in seen:
                    yield {}, _left_out(identity.name, "same-view-twice", "an earlier view has the same pixels", name)
                else:
                    seen.add(view_id)
                    yield self._record(identity, view_index, slot, view_id), None
            slots = {slot for _, slot, _, _ in identity.views}
            for slot in has.keys() - slots:
                if has[slot][identity.row]:
                    detail = f"{self.rows.uri}: row {identity.row} has a distractor in slot {slot}, but no view"
                    yield {}, _left_out(identity.name, "missing-view", detail, f"{identity.name}/slot {slot}")

    def row(self, record: Record, view: dict[str, Any], picture: Cell | None) -> Record:
        """The row of `distractors` for one view and its distractor's cell."""
        settings = dict(self._settings)
        try:
            if view["view_id"] != record["view_id"]:
                raise ValueError("the view in the tuples dataset is not the one that was planned")
            if picture is None or picture.data is None:
                raise ValueError(picture.error if picture else "the table has no picture here")
            image_HW3 = decode_rgb(picture.data)
            height, width = view["source_height_px"], view["source_width_px"]
            if image_HW3.shape[:2] != (height, width):
                found = f"{image_HW3.shape[1]} x {image_HW3.shape[0]}"
                if abs(image_HW3.shape[1] * height / (image_HW3.shape[0] * width) - 1) > MAX_STRETCH:
                    raise ValueError(f"the distractor has {found} pixels, the view {width} x {height}: another shape")
                settings["resized"] = f"{found} to {width} x {height} px, Lanczos"
                image_HW3 = resize_rgb(image_HW3, width, height)
            crop = tuple(json.loads(view["provenance"])["crop_box"])
            mask_HW = decode_mask(view["mask"]["bytes"]) if view["mask"] else None
            fields = measured_columns(
                record["distractor_id"],
                decode_rgb(view["image"]["bytes"]),
                cut_rgb(image_HW3, crop, view["size_px"]),
                mask_HW,
            )
        except ValueError as error:
            fields = {"error": str(error)}
        bare = bare_row(record, engine=self.engine, family=self._family, settings=settings)
        return bare | fields | {"engine_revision": self.rows.revision}

    def _record(self, identity: _Identity, view_index: int, slot: int, view_id: str) -> Record:
        # Few and short: there are 316,505 of them in NearID, and the driver holds all.
        return {
            "distractor_id": distractor_row_id(identity.name, view_id, self.engine, NearidDistractorsImporter.source),
            "engine": self.engine,
            "view_index": view_index,
            "view_id": view_id,
            "shard": identity.place[0],
            "row": identity.place[1],
            "table_row": identity.row,
            "slot": slot,
            "table": self._fingerprint,
        }


def engine_and_place(source: str) -> tuple[str, str, str]:
    """(engine, table, revision on the hub or "") of an entry of `sources`. UsageError where no engine follows from it.

    >>> engine_and_place("Aleksandar/NearID-Qwen_1328@v1")
    ('qwen-image-1328', 'Aleksandar/NearID-Qwen_1328', 'v1')
    >>> engine_and_place("my-engine=tables/mine.parquet")
    ('my-engine', 'tables/mine.parquet', '')
    """
    engine, equals, place = source.partition("=")
    if not equals:
        engine, place = "", source
    revision = ""
    if (on_hub := _HUB_REVISION.fullmatch(place)) and not os.path.exists(place):
        place, revision = on_hub["id"], on_hub["revision"]
    name = os.path.basename(place.rstrip("/")).removesuffix(".parquet")
    engine = engine if equals else ENGINES.get(name, "")
    if not place or not _ENGINE_NAME.fullmatch(engine):
        known = ", ".join(f"{table} ({of})" for table, of in ENGINES.items())
        raise UsageError(
            f"{source!r} does not say which engine painted it; write ENGINE=TABLE with small letters, digits, - and . "
            f"in the engine's name, or give a table with a published name: {known}"
        )
    return engine, place, revision


def _picture_key(record: Record) -> tuple[str, int, int]:
    return record["engine"], record["table_row"], record["slot"]


def _left_out(identity_id: str, reason: str, detail: str, record_id: str = "") -> Rejected:
    return {"record_id": record_id or identity_id, "identity_id": identity_id, "reason": reason, "detail": detail}
