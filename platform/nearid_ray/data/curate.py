"""Curation: a tuples dataset from another one, with fewer identities and views, and splits of given sizes.

Rows are copied; no picture is decoded. The rules are in `curate_rules.py`.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from nearid_ray.data.card import licence_of, write_card
from nearid_ray.data.curate_rules import (
    Curated,
    CurateSettings,
    LightIdentity,
    LightView,
    Rejected,
    choose,
    hashed_views,
)
from nearid_ray.data.duplicates import find_duplicates
from nearid_ray.data.images import decode_rgb, encode_png
from nearid_ray.data.light import check_complete, iterate
from nearid_ray.data.pipeline import RunSettings, RunSummary, ShardResult, run_plan
from nearid_ray.data.plan import Plan, make_plan
from nearid_ray.data.rejects import write_rejected
from nearid_ray.data.sheet import contact_sheet
from nearid_ray.data.store import Dataset, parquet_bytes, read_rows
from nearid_ray.errors import UsageError
from schemas import SPLITS, TUPLES

PAIRS_FILE = "near_duplicates.parquet"
PAIRS_SHEET = "near_duplicates.png"

_COLUMNS = (
    "identity_id", "description", "object_kind", "objaverse_id", "split", "provenance", "error",
    "views.view_id", "views.perceptual_hash", "views.provenance", "views.error",
)  # fmt: skip
_WORK = pa.schema(
    [
        *(pa.field(name, pa.string()) for name in ("row_id", "split", "view_indices", "fingerprint", "input_shard")),
        pa.field("input_row", pa.int64()),
    ]
)
_BYTES_PER_SHARD = 24 << 20
"""Aim for shards of this size, as ingest does."""
_SHEET_PAIRS = 12
_SIDES = ("first", "second")


@dataclass(frozen=True)
class CurateTask:
    """A shard of rows copied from the input: the chosen views, the drawn split."""

    tuples_uri: str
    uses_model: bool = False

    def setup(self) -> None:
        pass

    def prepare(self, work: pa.Table) -> list[dict[str, Any]]:
        """The input's rows in the order of the work rows; those of one input shard are read together."""
        tuples, places = Dataset(self.tuples_uri), work.select(["input_shard", "input_row"]).to_pylist()
        wanted: dict[str, list[int]] = {}
        for place, row in enumerate(places):
            wanted.setdefault(row["input_shard"], []).append(place)
        rows: list[dict[str, Any]] = [{}] * len(places)
        for shard, members in wanted.items():
            found = read_rows(tuples.shard(shard), [places[place]["input_row"] for place in members])
            for place, row in zip(members, found.to_pylist(), strict=True):
                rows[place] = row
        return rows

    def compute(self, prepared: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return prepared

    def finish(self, work: pa.Table, computed: list[dict[str, Any]]) -> ShardResult:
        rows = [_copied(row, planned) for row, planned in zip(computed, work.to_pylist(), strict=True)]
        return ShardResult(pa.Table.from_pylist(rows, schema=TUPLES.schema))


@dataclass(frozen=True)
class Curation:
    """A planned curation."""

    tuples: Dataset
    output: Dataset
    settings: CurateSettings
    plan: Plan
    curated: list[Curated]
    """What stays, all of it planned."""
    pairs: pa.Table
    """Near-duplicates among what stays, closest first."""
    pairs_complete: bool

    def run(self, run: RunSettings) -> RunSummary:
        """Copy the planned rows that are missing; needs a Ray session where there are any."""
        summary = run_plan(CurateTask(self.tuples.location.uri), self.output, self.plan, run, title="curate")
        self._write_pairs()
        write_card(
            self.output,
            title="Curated tuples",
            about="Identities and views chosen from another dataset, with disjoint splits drawn by identity; the rows "
            "are copies. `rejected.parquet` says what was left out and why.",
            licence=licence_of(self.tuples),
            facts={
                f"{split} {name}": value for split, values in self.summary().items() for name, value in values.items()
            },
        )
        return summary

    def summary(self) -> dict[str, dict[str, Any]]:
        """As the paper counts: identities, views, and the shares with two and with three views, a split and in all."""
        counts: dict[str, list[int]] = {split: [] for split in (*SPLITS, "all")}
        for one in self.curated:
            counts[one.split].append(len(one.view_indices))
            counts["all"].append(len(one.view_indices))
        return {name: _counted(views) for name, views in counts.items() if views}

    def pair_counts(self) -> dict[str, Any]:
        """How many pairs of views look the same, how many of them across splits, and how many identities that are."""
        if self.settings.near_duplicates == "off":
            return {}
        names = {n for side in _SIDES for n in self.pairs[f"{side}_identity_id"].to_pylist()}
        across = sum(self.pairs["across_splits"].to_pylist())
        counts: dict[str, Any] = {"pairs": self.pairs.num_rows, "identities": len(names), "across_splits": across}
        return counts if self.pairs_complete else counts | {"note": "at least; the search was ended"}

    def _write_pairs(self) -> None:
        place = self.output.location
        if not self.pairs.num_rows:
            place.child(PAIRS_FILE).delete()
            place.child(PAIRS_SHEET).delete()
            return
        data = parquet_bytes(self.pairs)
        if place.child(PAIRS_FILE).exists() and place.child(PAIRS_FILE).read_bytes() == data.to_pybytes():
            return
        place.child(PAIRS_SHEET).write_bytes(encode_png(self._sheet()))
        place.child(PAIRS_FILE).write_bytes(data)

    def _sheet(self) -> np.ndarray:
        """The closest pairs side by side, those across splits first."""
        by_split = self.pairs.sort_by([("across_splits", "descending"), ("distance", "ascending")])
        places = {one.identity.identity_id: one.identity for one in self.curated}
        pictures, captions = [], []
        for row in by_split.slice(0, _SHEET_PAIRS).to_pylist():
            names = [[row[f"{side}_{name}"] for name in ("split", "identity_id", "view_index")] for side in _SIDES]
            pictures.append([_picture(self.tuples, places[identity], index) for _, identity, index in names])
            said = [f"{split} {identity}/{index}" for split, identity, index in names]
            captions.append([said[0], f"{row['distance']} bits: {said[1]}"])
        return contact_sheet(pictures, captions, cell_px=240)


def plan_curation(tuples: Dataset, output: Dataset, settings: CurateSettings) -> Curation:
    """Choose and plan what `output` misses. Raises UsageError before anything is written.

    An output that exists keeps its rows and their splits: identities that the input has got since are added to the
    split that takes the rest, or left out where none does.
    """
    check_complete(tuples)
    content = {"tuples": tuples.digest(), **settings.content()}
    identities = {identity.identity_id: identity for identity in light_identities(tuples)}
    earlier = _earlier(output, content)
    curated, rejected = choose(identities.values(), settings, {name: row["split"] for name, row in earlier.items()})
    if not curated:
        raise UsageError(f"{tuples.location.uri}: no identity stays ({_reasons(rejected)}); relax the rules")
    _refuse_changed(output, identities, curated, earlier)
    pairs, complete = pa.table({}), True
    if settings.near_duplicates != "off":
        hashed = hashed_views((one.identity, one.view_indices, one.split) for one in curated)
        pairs, complete = find_duplicates(hashed, settings.hash_distance)
    plan = make_plan(
        output,
        pa.Table.from_pylist([_work_row(one) for one in curated], schema=_WORK),
        table=TUPLES.name,
        content=content,
        rows_per_shard=_rows_per_shard(tuples, len(identities)),
    )
    write_rejected(output, "curate", rejected)
    return Curation(tuples, output, settings, _read_where_it_lies_now(plan, identities), curated, pairs, complete)


def light_identities(tuples: Dataset) -> Iterator[LightIdentity]:
    """Every identity of a tuples dataset, without reading a picture."""
    for shard, table in iterate(tuples, _COLUMNS):
        for place, row in enumerate(table.to_pylist()):
            yield LightIdentity(
                identity_id=row["identity_id"],
                description=row["description"],
                object_kind=row["object_kind"],
                objaverse_id=row["objaverse_id"],
                split=row["split"],
                provenance=row["provenance"],
                error=row["error"],
                views=tuple(LightView(**view) for view in row["views"] or ()),
                shard=shard,
                row=place,
            )


def _work_row(one: Curated) -> dict[str, Any]:
    return {
        "row_id": one.identity.identity_id,
        "split": one.split,
        "view_indices": json.dumps(one.view_indices),
        "fingerprint": one.identity.fingerprint(),
        "input_shard": one.identity.shard,
        "input_row": one.identity.row,
    }


def _copied(row: dict[str, Any], planned: dict[str, Any]) -> dict[str, Any]:
    views = row["views"]
    seen = LightIdentity("", "", "", "", "", "", "", tuple(
        LightView(view["view_id"], "", "", view["error"]) for view in views), "", 0)  # fmt: skip
    if row["identity_id"] != planned["row_id"] or seen.fingerprint() != planned["fingerprint"]:
        said = "the input no longer holds this identity where it was when the curation was planned"
        return row | {"identity_id": planned["row_id"], "views": [], "split": planned["split"], "error": said}
    kept = [views[index] for index in json.loads(planned["view_indices"])]
    return row | {"views": kept, "split": planned["split"], "error": ""}


def _earlier(output: Dataset, content: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """identity -> work row of what earlier runs planned into the output; empty where `make_plan` will refuse it."""
    stored = output.settings() or {}
    if stored.get("table") != TUPLES.name or stored.get("content") != content:
        return {}
    return {row["row_id"]: row for plan in output.plans() for row in plan.to_pylist()}


def _refuse_changed(
    output: Dataset,
    identities: dict[str, LightIdentity],
    curated: Sequence[Curated],
    earlier: dict[str, dict[str, Any]],
) -> None:
    stays = {one.identity.identity_id for one in curated}
    changed = [
        name
        for name, row in earlier.items()
        if name in identities and (name not in stays or identities[name].fingerprint() != row["fingerprint"])
    ]
    if changed:
        raise UsageError(
            f"{output.location.uri}: {len(changed)} identities there are not what the input says of them now, e.g. "
            f"{', '.join(sorted(changed)[:3])}. Give another output, or remove the folder to start again."
        )


def _read_where_it_lies_now(plan: Plan, identities: dict[str, LightIdentity]) -> Plan:
    """The plan with the places of the rows as they are, also for rows that an earlier run saw in other shards."""
    rows = plan.rows.to_pylist()
    for row in rows:
        found = identities.get(row["row_id"])
        if found is not None:
            row |= {"input_shard": found.shard, "input_row": found.row}
    return Plan(pa.Table.from_pylist(rows, schema=plan.rows.schema), plan.pending)


def _rows_per_shard(tuples: Dataset, rows: int) -> int:
    place = tuples.location.child("data")
    sizes = [
        info.size for info in place.filesystem.get_file_info([tuples.shard(name).path for name in tuples.shards()])
    ]
    return max(1, min(512, int(_BYTES_PER_SHARD * rows / max(1, sum(sizes)))))


def _counted(views: Sequence[int]) -> dict[str, Any]:
    return {
        "identities": len(views),
        "views": sum(views),
        "two_views": f"{views.count(2) / len(views):.1%}",
        "three_views": f"{views.count(3) / len(views):.1%}",
    }


def _picture(tuples: Dataset, identity: LightIdentity, index: int) -> np.ndarray | None:
    row = read_rows(tuples.shard(identity.shard), [identity.row], ["views.list.element.image"]).to_pylist()[0]
    picture = row["views"][index]["image"]
    return decode_rgb(picture["bytes"]) if picture else None


def _reasons(rejected: Sequence[Rejected]) -> str:
    counts: dict[str, int] = {}
    for record in rejected:
        counts[record["reason"]] = counts.get(record["reason"], 0) + 1
    return ", ".join(f"{reason} {count}" for reason, count in sorted(counts.items()))
