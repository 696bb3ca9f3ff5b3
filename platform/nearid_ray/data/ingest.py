"""Ingest: from a source to the `tuples` dataset. One work row and one output row an identity."""

import json
from dataclasses import dataclass
from typing import Any, Protocol

import pyarrow as pa

from nearid_ray.data.card import write_card
from nearid_ray.data.pipeline import RunSettings, RunSummary, ShardResult, run_plan
from nearid_ray.data.plan import Plan, make_plan
from nearid_ray.data.rejects import write_rejected
from nearid_ray.data.store import Dataset
from nearid_ray.errors import UsageError
from schemas import TUPLES

_BYTES_PER_SHARD = 24 << 20
"""Aim for shards of this size, so that a kill costs little and row groups stay small."""


class Importer(Protocol):
    """A source of identities. `list` is cheap and complete; `read` does the work for one identity."""

    source: str
    title: str
    about: str
    licence: str

    def content(self) -> dict[str, Any]:
        """Settings that decide what a row is (JSON-like)."""

    def bytes_per_identity(self) -> int:
        """A rough size of one row, from which the size of shards follows."""

    def list(self) -> "tuple[list[dict[str, Any]], list[dict[str, str]]]":
        """(records, rejected). A record is a JSON-like dictionary with `identity_id`, `split` and what `read` needs;
        a rejected one has `record_id`, `identity_id`, `reason` and `detail`. Raises UsageError where there is nothing
        to read."""

    def read(self, record: dict[str, Any]) -> dict[str, Any]:
        """One row of the `tuples` table. What fails is said in the row's `error`; nothing is raised for bad data."""


@dataclass(frozen=True)
class IngestTask:
    """A shard of identities through an importer."""

    importer: Importer
    uses_model: bool = False

    def setup(self) -> None:
        pass

    def prepare(self, work: pa.Table) -> list[dict[str, Any]]:
        return [self._read(json.loads(record)) for record in work["record"].to_pylist()]

    def compute(self, prepared: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return prepared

    def finish(self, work: pa.Table, computed: list[dict[str, Any]]) -> ShardResult:
        return ShardResult(pa.Table.from_pylist(computed, schema=TUPLES.schema))

    def _read(self, record: dict[str, Any]) -> dict[str, Any]:
        try:
            return self.importer.read(record)
        except (OSError, ValueError) as error:
            return {
                "identity_id": record["identity_id"],
                "views": [],
                "category": record.get("category", ""),
                "description": "",
                "split": record["split"],
                "source": self.importer.source,
                "provenance": "{}",
                "error": f"{type(error).__name__}: {error}",
            }


def plan_ingest(importer: Importer, output: Dataset) -> Plan:
    """List the source and plan what `output` misses. Raises UsageError before anything is written."""
    records, rejected = importer.list()
    _refuse_doubles(records)
    _refuse_changed(output, records)
    work = pa.table(
        {
            "row_id": pa.array([r["identity_id"] for r in records], pa.string()),
            "split": pa.array([r["split"] for r in records], pa.string()),
            "record": pa.array([json.dumps(r, sort_keys=True) for r in records], pa.string()),
        }
    )
    plan = make_plan(
        output,
        work,
        table=TUPLES.name,
        content={"source": importer.source, **importer.content()},
        rows_per_shard=max(1, min(512, _BYTES_PER_SHARD // importer.bytes_per_identity())),
    )
    write_rejected(output, "ingest", rejected)
    return plan


def ingest(importer: Importer, output: Dataset, plan: Plan, run: RunSettings) -> RunSummary:
    """Make the planned identities; needs a Ray session where shards are pending."""
    summary = run_plan(IngestTask(importer), output, plan, run, title="ingest")
    write_card(
        output,
        title=importer.title,
        about=importer.about,
        licence=importer.licence,
        facts={"identities": summary.rows, "identities with an error": summary.errors},
    )
    return summary


def _refuse_changed(output: Dataset, records: list[dict[str, Any]]) -> None:
    """An identity that is planned already must be the same now: its row is not made again."""
    if output.settings() is None:
        return
    now = {record["identity_id"]: json.dumps(record, sort_keys=True) for record in records}
    changed = [
        row["row_id"]
        for plan in output.plans()
        if "record" in plan.column_names
        for row in plan.select(["row_id", "record"]).to_pylist()
        if now.get(row["row_id"], row["record"]) != row["record"]
    ]
    if changed:
        raise UsageError(
            f"{output.location.uri}: {len(changed)} identity(s) there were read from other files or settings, e.g. "
            f"{', '.join(changed[:3])}. Give another output, or remove the folder to start again."
        )


def _refuse_doubles(records: list[dict[str, Any]]) -> None:
    ids = [record["identity_id"] for record in records]
    doubled = sorted({i for i in ids if ids.count(i) > 1}) if len(set(ids)) != len(ids) else []
    if doubled:
        raise UsageError(f"{len(doubled)} identity id(s) stand more than once: {', '.join(doubled[:5])}; rename them")
