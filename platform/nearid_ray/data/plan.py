"""Plan, then run: the work list, cut into shards whose members and file names it fixes.

A work list is a table with a unique `row_id`, one row an output. A plan adds the column `shard`. Plans are immutable: a
later run adds a further plan file with the rows that no earlier plan has. A shard is done when its file is there.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nearid_ray.data.store import Dataset, parquet_bytes
from nearid_ray.errors import UsageError
from nearid_ray.identifiers import settings_digest
from nearid_ray.settings import dump_json
from schemas import SCHEMA_VERSION


@dataclass(frozen=True)
class Plan:
    """All planned rows (with their `shard`), and the names of the shards whose file is missing.

    `chosen` names the shards that a run may make; None means all.
    """

    rows: pa.Table
    pending: tuple[str, ...]
    chosen: frozenset[str] | None = None

    @property
    def shard_names(self) -> list[str]:
        return sorted(self.rows["shard"].unique().to_pylist())

    def members(self, shard: str) -> pa.Table:
        """The work rows of one shard, in their order."""
        start, rows = self._places[shard]
        return self.rows.slice(start, rows)

    def is_chosen(self, shard: str) -> bool:
        """Whether a run may make this shard."""
        return self.chosen is None or shard in self.chosen

    @cached_property
    def _places(self) -> dict[str, tuple[int, int]]:
        """Shard -> (first row, rows): a shard's rows stand together."""
        runs = pc.run_end_encode(self.rows["shard"].combine_chunks())
        ends = runs.run_ends.to_pylist()
        starts = [0, *ends[:-1]]
        return {name: (a, b - a) for name, a, b in zip(runs.values.to_pylist(), starts, ends, strict=True)}


def cut(work: pa.Table, rows_per_shard: int, generation: int, break_on: Sequence[str] = ()) -> pa.Table:
    """`work` with the column `shard`: consecutive rows, at most `rows_per_shard` a shard.

    A shard never spans two different values of the columns `break_on`. Names are `GENERATION-NUMBER`.
    """
    if rows_per_shard < 1:
        raise UsageError(f"rows_per_shard is {rows_per_shard}; expected at least 1")
    if not break_on:  # without an object a row: work lists have millions
        number_N = np.arange(work.num_rows) // rows_per_shard
        named = [f"{generation:03d}-{number:06d}" for number in range(-(-work.num_rows // rows_per_shard))]
        return work.append_column("shard", pa.array(named, pa.string()).take(pa.array(number_N)))
    keys = list(zip(*(work[name].to_pylist() for name in break_on), strict=True))
    names, number, filled = [], -1, rows_per_shard
    for position in range(work.num_rows):
        if filled == rows_per_shard or (position and keys[position] != keys[position - 1]):
            number, filled = number + 1, 0
        names.append(f"{generation:03d}-{number:06d}")
        filled += 1
    return work.append_column("shard", pa.array(names, pa.string()))


def make_plan(
    output: Dataset,
    work: pa.Table,
    *,
    table: str,
    content: dict[str, Any],
    rows_per_shard: int,
    break_on: Sequence[str] = (),
) -> Plan:
    """Plan the rows of `work` into `output`, on top of what is planned there.

    `content` holds the settings that decide what the rows are; they are stored with the output, and an output that
    exists with others is refused. Rows planned earlier keep their shards, also those that `work` no longer asks for.
    Writes settings.json and, when there are new rows, one plan file.
    """
    ids = work["row_id"]
    if len(ids) != len(ids.unique()):
        counts = ids.value_counts()
        twice = [entry["values"] for entry in counts.to_pylist() if entry["counts"] > 1]
        raise UsageError(f"the plan has {len(twice)} row id(s) more than once, e.g. {', '.join(twice[:3])}")
    _check_content(output, table, content)
    earlier = output.plans()
    known = pa.concat_tables(earlier)["row_id"].unique() if earlier else pa.array([], pa.string())
    new = work.filter(pc.invert(pc.is_in(ids, value_set=pc.cast(known, pa.string()))))
    parts = list(earlier)
    if new.num_rows:
        planned = cut(new, rows_per_shard, len(earlier), break_on)
        parts.append(planned)
    if not parts:
        raise UsageError(f"{output.location.uri}: nothing to do, the work list is empty")
    if output.settings() is None:
        store_settings(output, table, content)
    if new.num_rows:
        output.location.child("plan", f"{len(earlier):03d}.parquet").write_bytes(parquet_bytes(parts[-1]))
    rows = pa.concat_tables(parts)
    done = set(output.shards())
    return Plan(rows, tuple(name for name in sorted(rows["shard"].unique().to_pylist()) if name not in done))


def refuse_changed(output: Dataset, column: str, now: dict[str, str], said: str) -> None:
    """A row that is planned already is not made again, so what it is made of, `column` of the plan, must be as it was.

    `now` holds it by row id. Raises UsageError, with `said` of what has changed.
    """
    if output.settings() is None:
        return
    changed = [
        row["row_id"]
        for plan in output.plans()
        if column in plan.column_names
        for row in plan.select(["row_id", column]).to_pylist()
        if now.get(row["row_id"], row[column]) != row[column]
    ]
    if changed:
        raise UsageError(
            f"{output.location.uri}: {len(changed)} {said}, e.g. {', '.join(changed[:3])}. Give another output, or "
            "remove the folder to start again."
        )


def forget_plan(output: Dataset) -> None:
    """Take back a plan of which nothing has been made yet, so that a refused run leaves no trace."""
    place = output.location
    if output.settings() is None or output.shards() or place.child("summary.json").exists():
        return
    for folder, names in (
        ("plan", None),
        ("", ("settings.json", "rejected.parquet", "backbone.json", "head.safetensors", "blank.arrow")),
    ):
        inside = place.child(folder) if folder else place
        for name in inside.names() if names is None else names:
            inside.child(name).delete()
    place.remove_empty("plan")


def _check_content(output: Dataset, table: str, content: dict[str, Any]) -> None:
    stored = output.settings()
    where = output.location.uri
    if stored is None:
        if output.location.names() or output.shards():
            raise UsageError(f"{where} is not empty and holds no dataset of this program; give a new or empty folder")
        return
    if stored.get("table") != table:
        raise UsageError(f"{where} holds {stored.get('table')!r}, this job writes {table!r}; give another output")
    if stored.get("schema_version") != SCHEMA_VERSION:
        raise UsageError(
            f"{where} has schema version {stored.get('schema_version')}, this program writes {SCHEMA_VERSION}"
        )
    differing = differences(stored["content"], content)
    if differing:
        raise UsageError(
            f"{where} exists with other settings:\n  "
            + "\n  ".join(differing)
            + "\nGive another output, or remove the folder to start again."
        )


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """`name: old -> new` for every value in which two JSON-like dictionaries differ."""
    lines = []
    for name in sorted(old.keys() | new.keys()):
        before, after = old.get(name), new.get(name)
        if isinstance(before, dict) and isinstance(after, dict):
            lines += differences(before, after, f"{prefix}{name}.")
        elif before != after:
            lines.append(f"{prefix}{name}: there {before!r}, now {after!r}")
    return lines


def store_settings(output: Dataset, table: str, content: dict[str, Any]) -> None:
    """Write settings.json: which table the dataset holds and the settings that decide its content."""
    stored = {
        "table": table,
        "schema_version": SCHEMA_VERSION,
        "content_digest": settings_digest(content),
        "content": content,
    }
    output.location.child("settings.json").write_bytes(dump_json(stored))
