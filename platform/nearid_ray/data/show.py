"""What is in a dataset, in figures. Nothing here writes."""

from collections import Counter
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs

from nearid_ray.data import s3
from nearid_ray.data.card import licence_of
from nearid_ray.data.light import flat_columns, iterate, schema_of
from nearid_ray.data.rejects import rejected_counts
from nearid_ray.data.store import Dataset, Location, locate
from nearid_ray.errors import UsageError
from schemas import IMAGE, SCHEMA_VERSION, TABLES

COUNTED = (
    "split", "object_kind", "category", "views.mask_source", "engine", "engine_revision", "verdict", "role", "masked",
    "draw", "scorer", "condition", "kind", "method", "rater", "aspect", "source",
)  # fmt: skip
"""Columns whose values are counted, where a dataset has them."""

_MOST_VALUES = 12
_MOST_ERRORS = 3
_DEPTH = 2
"""How deep datasets are looked for: a demo's folder holds an evaluation, which holds three datasets."""


def find_datasets(uri: str) -> list[Dataset]:
    """The dataset at a place, or those in its folders (an evaluation, a demo); UsageError where there is none."""
    place = locate(uri)
    if not place.exists():
        raise UsageError(f"{place.uri} does not exist; give the output folder of a job")
    found = _datasets_below(place, _DEPTH)
    if not found:
        raise UsageError(
            f"{place.uri} holds no dataset (no settings.json that names a table of the contract); give the output "
            "folder of a job that writes one"
        )
    return found


def describe(dataset: Dataset) -> dict[str, Any]:
    """Everything worth knowing of a dataset, JSON-like: table, version, rows, counts, errors, sizes, settings."""
    stored = _stored(dataset)
    if stored is None:
        return {"settings.json": "it is broken: jobs/validate.py says more", "bytes": _sizes(dataset)}
    version = stored.get("schema_version")
    said: dict[str, Any] = {
        "table": stored.get("table"),
        "schema_version": version if version == SCHEMA_VERSION else f"{version} (this program writes {SCHEMA_VERSION})",
        "licence": licence_of(dataset),
        "shards": _shards(dataset),
        "bytes": _sizes(dataset),
    }
    if dataset.shards():
        schema = schema_of(dataset)
        said |= _counts(dataset, schema)
        said["columns"] = [f"{name} {_type(kind)}" for name, kind in flat_columns(schema)]
    said["left_out"] = rejected_counts(dataset)
    said["content_digest"] = stored.get("content_digest")
    said["settings"] = stored.get("content", {})
    return {name: value for name, value in said.items() if value not in ({}, [])}


def _datasets_below(place: Location, depth: int) -> "list[Dataset]":
    dataset = Dataset(place)
    stored = _stored(dataset)
    if stored is None or stored.get("table") in TABLES:
        return [dataset]
    if depth == 0:
        return []
    selector = pafs.FileSelector(place.path, allow_not_found=True)
    with s3.in_words(place.uri):
        entries = place.filesystem.get_file_info(selector)
    folders = sorted(e.base_name for e in entries if e.type == pafs.FileType.Directory and e.base_name[0] != ".")
    return [found for name in folders for found in _datasets_below(place.child(name), depth - 1)]


def _stored(dataset: Dataset) -> dict[str, Any] | None:
    """settings.json; empty where there is none, None where it is broken."""
    try:
        stored = dataset.settings()
    except ValueError as error:
        if isinstance(error, UsageError):
            raise
        return None
    return {} if stored is None else stored if isinstance(stored, dict) else None


def _shards(dataset: Dataset) -> dict[str, Any]:
    done, plans = dataset.shards(), dataset.plans()
    if not plans:
        return {"done": len(done), "planned": "(no plan)"}
    planned = Counter(name for plan in plans for name in plan["shard"].to_pylist())
    missing = sorted(planned.keys() - set(done))
    said: dict[str, Any] = {"done": len(done), "planned": len(planned), "missing": len(missing)}
    if missing:
        said["rows_missing"] = sum(planned[name] for name in missing)
        said["first_missing"] = missing[0]
    return said


def _sizes(dataset: Dataset) -> dict[str, str]:
    """Bytes by folder; files beside the folders count as `other`."""
    root = dataset.location
    with s3.in_words(root.uri):
        entries = root.filesystem.get_file_info(pafs.FileSelector(root.path, recursive=True))
    sizes: Counter[str] = Counter()
    for entry in entries:
        if entry.type == pafs.FileType.File:
            folder, _, rest = entry.path.removeprefix(root.path).lstrip("/").partition("/")
            sizes[folder if rest else "other"] += entry.size
    total = sum(sizes.values())
    return {name: f"{size:,}" for name, size in [*sorted(sizes.items()), ("all", total)]}


def _counts(dataset: Dataset, schema: pa.Schema) -> dict[str, Any]:
    names = [name for name, _ in flat_columns(schema)]
    counted = [name for name in COUNTED if name in names]
    key = [name for name in _key(dataset) if name in names]
    counts: dict[str, Counter] = {name: Counter() for name in counted}
    lengths: dict[str, int] = {}
    rows = errors = 0
    examples: list[str] = []
    wanted = list(dict.fromkeys([*counted, *key, *(["error"] if "error" in names else [])]))
    inside = [name for name in names if name.endswith((".error", ".view_id"))]
    for _, table in iterate(dataset, [*wanted, *inside] or names[:1]):
        rows += table.num_rows
        for name in counted:
            counts[name].update({e["values"]: e["counts"] for e in values_of(table, name).value_counts().to_pylist()})
        for name in {name.split(".")[0] for name in inside}:
            lengths[name] = lengths.get(name, 0) + (pc.sum(pc.list_value_length(table[name])).as_py() or 0)
        if "error" in wanted:
            bad = table.filter(pc.not_equal(table["error"], "")).select([*key[:1], "error"])
            errors += bad.num_rows
            examples += [": ".join(map(str, row.values())) for row in bad.slice(0, _MOST_ERRORS).to_pylist()]
    said: dict[str, Any] = {"rows": rows} | lengths
    if "error" in wanted:
        said["rows_with_error"] = errors
        said["error_examples"] = examples[:_MOST_ERRORS]
    return said | {name: _top(counter) for name, counter in counts.items() if set(counter) - {""}}


def values_of(table: pa.Table, name: str) -> pa.ChunkedArray:
    """A column; with a dot in its name a field of the structs in a list column, flattened."""
    top, _, inner = name.partition(".")
    if not inner:
        return table[top]
    return pa.chunked_array([pc.struct_field(chunk.flatten(), inner) for chunk in table[top].chunks] or [[]])


def _key(dataset: Dataset) -> tuple[str, ...]:
    table = TABLES.get((dataset.settings() or {}).get("table", ""))
    return table.key if table else ()


def _top(counter: Counter) -> dict[str, int]:
    """The most frequent values, and how many more there are."""
    most = {("(empty)" if value == "" else str(value)): count for value, count in counter.most_common(_MOST_VALUES)}
    rest = len(counter) - len(most)
    return most | ({f"({rest} more values)": sum(counter.values()) - sum(most.values())} if rest > 0 else {})


def _type(kind: pa.DataType) -> str:
    return "image" if kind.equals(IMAGE) else str(kind)
