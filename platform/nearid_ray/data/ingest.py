"""Ingest: from a source to a dataset. One record, one row."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from nearid_ray.data.card import write_card
from nearid_ray.data.importers.importer import Importer, PictureImporter, RowImporter
from nearid_ray.data.masking import Masker, make_masker
from nearid_ray.data.pipeline import RunSettings, RunSummary, ShardResult, ShardTask, run_plan
from nearid_ray.data.plan import Plan, make_plan, refuse_changed
from nearid_ray.data.rejects import write_rejected
from nearid_ray.data.store import Dataset, Location, locate
from nearid_ray.data.views import DecodedView, RawIdentity, decode_view, find_masks, identity_row, view_row
from nearid_ray.errors import UsageError
from schemas import TUPLES

_BYTES_PER_SHARD = 24 << 20
"""Aim for shards of this size, so that a kill costs little and row groups stay small."""

_IDENTITIES_TO_MASK = 4
"""Identities in a shard where masks are looked for, which takes seconds each: small folders then use all cores."""


@dataclass(frozen=True)
class RowsTask:
    """A shard of rows that the importer makes itself."""

    importer: RowImporter
    uses_model: bool = False

    def setup(self) -> None:
        pass

    def prepare(self, work: pa.Table) -> list[dict[str, Any]]:
        return list(self.importer.rows(_records(work)))

    def compute(self, prepared: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return prepared

    def finish(self, work: pa.Table, computed: list[dict[str, Any]]) -> ShardResult:
        return ShardResult(pa.Table.from_pylist(computed, schema=self.importer.table.schema))


class PicturesTask:
    """A shard of identities: fetched and decoded, masks found by the masker, brought to the canonical square."""

    def __init__(self, importer: PictureImporter) -> None:
        self._importer = importer
        self._masker: Masker = make_masker(importer.masking)

    @property
    def uses_model(self) -> bool:
        return self._masker.uses_model

    def setup(self) -> None:
        self._masker.load()

    def prepare(self, work: pa.Table) -> list[tuple[RawIdentity, list[DecodedView]]]:
        identities = self._importer.fetch(_records(work))
        return [(identity, [decode_view(view) for view in identity.views]) for identity in identities]

    def compute(
        self, prepared: list[tuple[RawIdentity, list[DecodedView]]]
    ) -> list[tuple[RawIdentity, list[DecodedView]]]:
        find_masks([view for _, views in prepared for view in views], self._masker)
        return prepared

    def finish(self, work: pa.Table, computed: list[tuple[RawIdentity, list[DecodedView]]]) -> ShardResult:
        importer = self._importer
        rows = [
            identity_row(identity, importer.source, [view_row(view, importer.size_px) for view in views])
            for identity, views in computed
        ]
        return ShardResult(pa.Table.from_pylist(rows, schema=TUPLES.schema))


def plan_ingest(importer: Importer, output: Dataset) -> Plan:
    """List the source and plan what `output` misses. Raises UsageError before anything is written."""
    records, rejected = importer.list_records()
    content = importer.content()
    if "root" in content:
        _refuse_inside(output.location, locate(content["root"]))
    key = importer.table.key[0]
    _refuse_doubles([record[key] for record in records])
    texts = {record[key]: _as_text(record) for record in records}
    refuse_changed(output, "record", texts, "row(s) there were read from other files or settings")
    work = pa.table(
        {
            "row_id": pa.array([record[key] for record in records], pa.string()),
            "record": pa.array([_as_text(record) for record in records], pa.string()),
        }
    )
    plan = make_plan(
        output,
        work,
        table=importer.table.name,
        content={"source": importer.source, **content, **_masking(importer)},
        rows_per_shard=_rows_per_shard(importer),
    )
    write_rejected(output, "ingest", rejected)
    return plan


def ingest(importer: Importer, output: Dataset, plan: Plan, run: RunSettings) -> RunSummary:
    """Make the planned rows; needs a Ray session where shards are pending."""
    summary = run_plan(ingest_task(importer), output, plan, run, title="ingest")
    write_card(
        output,
        title=importer.title,
        about=importer.about,
        licence=importer.licence,
        facts={"rows": summary.rows, "rows with an error": summary.errors, **importer.facts()},
    )
    return summary


def ingest_task(importer: Importer) -> ShardTask:
    """What is done with one shard of the importer's records; it also runs without Ray (`pipeline.run_shard`)."""
    if isinstance(importer, PictureImporter):
        return PicturesTask(importer)
    if isinstance(importer, RowImporter):
        return RowsTask(importer)
    raise TypeError(f"{type(importer).__name__} is neither a PictureImporter nor a RowImporter")


def _masking(importer: Importer) -> dict[str, Any]:
    """What decides the masks that are looked for; how fast they are looked for does not."""
    return {"masking": make_masker(importer.masking).describe()} if isinstance(importer, PictureImporter) else {}


def _rows_per_shard(importer: Importer) -> int:
    rows = max(1, min(512, _BYTES_PER_SHARD // importer.bytes_per_row()))
    finds_masks = isinstance(importer, PictureImporter) and importer.masking.mask_method != "none"
    return min(rows, _IDENTITIES_TO_MASK) if finds_masks else rows


def _records(work: pa.Table) -> list[dict[str, Any]]:
    return [json.loads(record) for record in work["record"].to_pylist()]


def _as_text(record: dict[str, Any]) -> str:
    return json.dumps(record, sort_keys=True)


def _refuse_inside(output: Location, root: Location) -> None:
    """What is written below the source's folder would be read as a part of the source the next time."""
    if output.is_local != root.is_local:
        return
    above, below = ((os.path.realpath(p.path) if p.is_local else p.path) for p in (root, output))
    if f"{below}/".startswith(f"{above}/"):
        raise UsageError(f"the output {output.uri} lies in the folder that is read, {root.uri}; give one outside of it")


def _refuse_doubles(ids: Sequence[str]) -> None:
    seen: set[str] = set()
    doubled = sorted({row for row in ids if row in seen or seen.add(row)})  # type: ignore[func-returns-value]
    if doubled:
        raise UsageError(f"{len(doubled)} id(s) stand more than once: {', '.join(doubled[:5])}; rename them")
