"""What differs between two datasets of one table: settings, columns, and rows by key, down to the column."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from nearid_ray.data.light import flat_columns, schema_of
from nearid_ray.data.plan import differences
from nearid_ray.data.store import Dataset, refuse_pickles
from nearid_ray.errors import UsageError
from nearid_ray.identifiers import content_hash
from schemas import TABLES

_EXAMPLES = 5
_ROWS_AT_ONCE = 64

Key = tuple[Any, ...]


@dataclass
class Differences:
    """How a dataset differs from another one."""

    settings: list[str] = field(default_factory=list)
    columns: list[str] = field(default_factory=list)
    only_here: list[Key] = field(default_factory=list)
    only_there: list[Key] = field(default_factory=list)
    changed: dict[str, list[Key]] = field(default_factory=dict)
    """Keys of the rows whose content differs, by column."""
    same: int = 0
    """Rows that are the same in every column that both have."""
    notes: list[str] = field(default_factory=list)

    @property
    def any(self) -> bool:
        return bool(self.settings or self.columns or self.only_here or self.only_there or self.changed)

    def summary(self) -> dict[str, Any]:
        """For a table: counts with examples."""
        said: dict[str, Any] = {"settings": self.settings or "the same", "columns": self.columns or "the same"}
        said |= {"only_here": _quoted(self.only_here), "only_there": _quoted(self.only_there)}
        rows = {key for keys in self.changed.values() for key in keys}
        said |= {"rows_the_same": self.same, "rows_that_differ": len(rows)}
        said["differ_in"] = {name: _quoted(keys) for name, keys in self.changed.items()}
        return said | ({"notes": self.notes} if self.notes else {})


def compare(here: Dataset, there: Dataset) -> Differences:
    """Compare two datasets of the same table, shard by shard: every cell by its hash, pictures by their bytes.

    The order of rows and how they are cut into shards make no difference. Raises UsageError for different tables.
    """
    mine, other = here.settings() or {}, there.settings() or {}
    if mine.get("table") != other.get("table"):
        raise UsageError(
            f"{here.location.uri} holds {mine.get('table')!r}, {there.location.uri} holds {other.get('table')!r}; "
            "expected two datasets of one table"
        )
    table = TABLES.get(mine.get("table", ""))
    if table is None:
        raise UsageError(f"{here.location.uri} holds {mine.get('table')!r}, which is no table of the contract")
    found = Differences(settings=differences(other.get("content", {}), mine.get("content", {})))
    if mine.get("schema_version") != other.get("schema_version"):
        found.settings.append(f"schema_version: there {other.get('schema_version')}, now {mine.get('schema_version')}")
    if not here.shards() or not there.shards():
        found.notes.append("one of the two has no finished shard; no rows are compared")
        return found
    columns, found.columns = _columns(here, there)
    _compare_rows(found, _digests(here, table.key, columns, found), _digests(there, table.key, columns, found), columns)
    return found


def _columns(here: Dataset, there: Dataset) -> tuple[list[str], list[str]]:
    """(columns that both have, how the others differ)."""
    mine, other = (dict(flat_columns(schema_of(dataset))) for dataset in (here, there))
    said = [f"{name}: only here" for name in mine if name not in other]
    said += [f"{name}: only there" for name in other if name not in mine]
    said += [f"{n}: {mine[n]} here, {other[n]} there" for n in mine if n in other and not mine[n].equals(other[n])]
    return [name for name in mine if name in other], said


def _digests(
    dataset: Dataset, key: tuple[str, ...], columns: list[str], found: Differences
) -> dict[Key, NDArray[np.uint64]]:
    """Of every row a hash a column; some 8 bytes a cell are kept."""
    rows: dict[Key, NDArray[np.uint64]] = {}
    doubled = 0
    for table in _in_parts(dataset, sorted({name.split(".")[0] for name in columns})):
        cells = [[_hashed(value) for value in _cells(table, name)] for name in columns]
        digest_RC = np.array(cells, np.uint64).T
        for place, name in enumerate(zip(*(table[name].to_pylist() for name in key), strict=True)):
            doubled += name in rows
            rows.setdefault(name, digest_RC[place])
    if doubled:
        found.notes.append(f"{dataset.location.uri}: {doubled} row(s) have the key of another; the first one counts")
    return rows


def _in_parts(dataset: Dataset, names: list[str]) -> Iterator[pa.Table]:
    """All rows, a few at a time: pictures must not fill the memory."""
    for shard in dataset.shards():
        place = dataset.shard(shard)
        with place.filesystem.open_input_file(place.path) as stream:
            file = pq.ParquetFile(stream, page_checksum_verification=True)
            refuse_pickles(file.schema_arrow, place.uri)
            for batch in file.iter_batches(_ROWS_AT_ONCE, columns=names):
                yield pa.Table.from_batches([batch])


def _cells(table: pa.Table, name: str) -> Iterator[Any]:
    """The values of a column; of a field of a list of structs the list of its values."""
    top, _, inner = name.partition(".")
    values = table[top].to_pylist()
    if not inner:
        yield from values
    else:
        yield from ([entry and entry[inner] for entry in row] if row is not None else None for row in values)


def _hashed(value: Any) -> int:
    return int(content_hash(_as_bytes(value))[:16], 16)


def _as_bytes(value: Any) -> bytes:
    """Different values give different bytes; a picture is its encoded bytes, whatever its file is called."""
    if isinstance(value, dict) and value.keys() == {"bytes", "path"}:
        return b"P" + (value["bytes"] if value["bytes"] is not None else str(value["path"]).encode())
    if isinstance(value, list) and value and any(isinstance(entry, dict) for entry in value):
        return b"L" + b"".join(content_hash(_as_bytes(entry)).encode() for entry in value)
    return b"V" + repr(value).encode()


def _compare_rows(
    found: Differences, here: dict[Key, NDArray[np.uint64]], there: dict[Key, NDArray[np.uint64]], columns: list[str]
) -> None:
    found.only_here = sorted(here.keys() - there.keys(), key=str)
    found.only_there = sorted(there.keys() - here.keys(), key=str)
    for key in sorted(here.keys() & there.keys(), key=str):
        differing = np.flatnonzero(here[key] != there[key])
        found.same += len(differing) == 0
        for place in differing.tolist():
            found.changed.setdefault(columns[place], []).append(key)


def _quoted(keys: list[Key]) -> str:
    some = ", ".join("/".join(map(str, key)) for key in keys[:_EXAMPLES])
    return f"{len(keys)}: {some}{', ...' if len(keys) > _EXAMPLES else ''}" if keys else "0"
