"""Check a table or a written dataset against the contract and name every violation."""

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from schemas.fields import SCHEMA_VERSION, Table, is_required
from schemas.tables import TABLES

_EXAMPLES = 3
"""How many offending rows a violation quotes."""


@dataclass(frozen=True)
class Violation:
    """One thing wrong: which column (empty for the table as a whole) and what, with examples."""

    column: str
    message: str

    def __str__(self) -> str:
        return f"{self.column}: {self.message}" if self.column else self.message


def validate(
    data: "pa.Table | pads.Dataset | str | Path",
    table: Table | str | None = None,
    *,
    references: "Mapping[str, pa.Table | pads.Dataset | str | Path] | None" = None,
) -> list[Violation]:
    """Name every way in which `data` breaks the contract; an empty list means none.

    `data` is a table, a `pyarrow.dataset`, or a folder (a path or `s3://bucket/prefix`) with `data/*.parquet`, which
    is read in batches and without its pictures. `table` is the contract's table, by default the one that the data's
    metadata names. `references` gives the datasets that this one points to, by table name; references to tables not
    given are not checked. FileNotFoundError where a folder holds no such files.
    """
    source = _open(data)
    if table is None:
        name = (source.schema.metadata or {}).get(b"nearid_table", b"").decode()
        if name not in TABLES:
            known = ", ".join(sorted(TABLES))
            return [
                Violation("", f"the metadata names no table of the contract (found {name!r}); expected one of: {known}")
            ]
        table = TABLES[name]
    elif isinstance(table, str):
        table = TABLES[table]
    found = [v for schema, where in _schemas(source) for v in _schema_violations(schema, table, where)]
    if not any(v.column for v in found):
        found += _row_violations(source, table)
        found += _reference_violations(source, table, references or {})
    return found


def _open(data: "pa.Table | pads.Dataset | str | Path") -> pads.Dataset:
    if isinstance(data, pa.Table):
        return pads.dataset(data)
    if isinstance(data, pads.Dataset):
        return data
    text = str(data)
    if "://" in text:
        filesystem, root = pafs.FileSystem.from_uri(quote(text, safe="/:?&=@%+,~"))
    else:
        filesystem, root = pafs.LocalFileSystem(), os.path.abspath(text)
    entries = filesystem.get_file_info(pafs.FileSelector(f"{root.rstrip('/')}/data", allow_not_found=True))
    files = sorted(e.path for e in entries if e.base_name.endswith(".parquet") and not e.base_name.startswith("."))
    if not files:
        raise FileNotFoundError(f"{text} holds no data/*.parquet: expected the folder of a written dataset")
    return pads.dataset(files, filesystem=filesystem, format="parquet")


def _schemas(source: pads.Dataset) -> list[tuple[pa.Schema, str]]:
    """Every different schema of the files, with the first file's name that has it; empty for the first of all."""
    if not isinstance(source, pads.FileSystemDataset):
        return [(source.schema, "")]
    found: list[tuple[pa.Schema, str]] = []
    for fragment in source.get_fragments():
        schema = fragment.physical_schema
        if not any(schema.equals(other, check_metadata=True) for other, _ in found):
            found.append((schema, os.path.basename(fragment.path) if found else ""))
    return found


def _batches(source: pads.Dataset, names: Iterable[str]) -> Iterator[pa.RecordBatch]:
    """The columns `names` in batches; of a list column only the named fields are read where that can be done."""
    tops = sorted({name.split(".")[0] for name in names})
    if not isinstance(source, pads.FileSystemDataset):
        yield from source.to_batches(columns=tops)
        return
    # A scanner would read whole lists, pictures and all; the Parquet reader can leave fields out.
    wanted = [name.replace(".", ".list.element.") for name in names if "." in name]
    wanted += [name for name in tops if not any(other.startswith(f"{name}.") for other in wanted)]
    for fragment in source.get_fragments():
        with fragment.open() as stream:
            file = pq.ParquetFile(stream, page_checksum_verification=True)
            known = set(file.schema_arrow.names)
            yield from file.iter_batches(columns=[name for name in wanted if name.split(".")[0] in known])


def _schema_violations(schema: pa.Schema, table: Table, file: str) -> Iterator[Violation]:
    for violation in _differences(schema, table.schema, table.further_columns):
        yield Violation(violation.column, f"{violation.message} (in {file})") if file else violation


def _differences(schema: pa.Schema, expected: pa.Schema, further_columns: bool) -> Iterator[Violation]:
    version = (schema.metadata or {}).get(b"nearid_schema_version", b"").decode() or None
    if version != SCHEMA_VERSION:
        yield Violation("", f"schema version {version!r}, expected {SCHEMA_VERSION!r}")
    for name in expected.names:
        places = schema.get_all_field_indices(name)
        if not places:
            yield Violation(name, f"missing column of type {expected.field(name).type}")
        elif len(places) > 1:
            yield Violation(name, f"the column stands {len(places)} times")
        elif not _same_type(schema.field(places[0]).type, expected.field(name).type):
            yield Violation(name, f"type {schema.field(places[0]).type}, expected {expected.field(name).type}")
    for name in schema.names:
        if name not in expected.names and not further_columns:
            yield Violation(name, "unknown column")


def _same_type(found: pa.DataType, expected: pa.DataType) -> bool:
    """Equal up to nullability and metadata of nested fields, which Parquet readers rewrite."""
    if pa.types.is_struct(found) and pa.types.is_struct(expected):
        pairs = [(found.field(i), expected.field(i)) for i in range(min(found.num_fields, expected.num_fields))]
        return found.num_fields == expected.num_fields and all(
            f.name == e.name and _same_type(f.type, e.type) for f, e in pairs
        )
    if pa.types.is_list(found) and pa.types.is_list(expected):
        return _same_type(found.value_type, expected.value_type)
    return found.equals(expected)


def _row_violations(source: pads.Dataset, table: Table) -> list[Violation]:
    nulls: dict[str, int] = {}
    odd: dict[str, dict[str, int]] = {}
    seen: set[tuple] = set()
    doubled: list[tuple] = []
    required = [name for f in table.fields for name in _required(f)]
    for batch in _batches(source, dict.fromkeys((*required, *table.key, *table.allowed))):
        for name in required:
            nulls[name] = nulls.get(name, 0) + _values(batch, name).null_count
        for name, allowed in table.allowed.items():
            values = _values(batch, name)
            bad = values.filter(pc.invert(pc.is_in(values, value_set=pa.array(allowed, values.type))))
            for entry in bad.value_counts().to_pylist():
                counts = odd.setdefault(name, {})
                counts[str(entry["values"])] = counts.get(str(entry["values"]), 0) + entry["counts"]
        for key in zip(*(batch.column(name).to_pylist() for name in table.key), strict=True):
            doubled.append(key) if key in seen else seen.add(key)
    found = [Violation(name, f"{count} null(s) in a column that allows none") for name, count in nulls.items() if count]
    for name, counts in odd.items():
        quoted = ", ".join(f"{value!r} ({count})" for value, count in list(counts.items())[:_EXAMPLES])
        found.append(Violation(name, f"value(s) outside {', '.join(table.allowed[name])}: {quoted}"))
    if doubled:
        found.append(Violation(", ".join(table.key), f"{len(doubled)} duplicate key(s), e.g. {_quote(doubled)}"))
    return found


def _required(field: pa.Field) -> Iterator[str]:
    """Names that allow no null: the column, and with a dot the fields of structs in a list column."""
    if is_required(field):
        yield field.name
    if pa.types.is_list(field.type) and pa.types.is_struct(field.type.value_type):
        inner = field.type.value_type
        yield from (
            f"{field.name}.{inner.field(i).name}" for i in range(inner.num_fields) if is_required(inner.field(i))
        )


def _reference_violations(
    source: pads.Dataset, table: Table, references: "Mapping[str, pa.Table | pads.Dataset | str | Path]"
) -> Iterator[Violation]:
    for reference in table.references:
        if reference.target not in references:
            continue
        known = _keys(_open(references[reference.target]), reference.target_columns)
        lost = sorted(_keys(source, reference.columns) - known)
        if lost:
            columns = ", ".join(reference.columns)
            yield Violation(columns, f"{len(lost)} value(s) do not exist in {reference.target}, e.g. {_quote(lost)}")


def _keys(source: pads.Dataset, columns: tuple[str, ...]) -> set[tuple]:
    keys: set[tuple] = set()
    for batch in _batches(source, columns):
        keys.update(zip(*(_values(batch, name).to_pylist() for name in columns), strict=True))
    return keys


def _values(batch: pa.RecordBatch, name: str) -> pa.Array:
    """A column, or with a dot in `name` a field of the structs in a list column, flattened."""
    column, _, inner = name.partition(".")
    values = batch.column(column)
    return pc.struct_field(values.flatten(), inner) if inner else values


def _quote(keys: Iterable[tuple]) -> str:
    shown = [" / ".join(str(part) for part in key) for key in list(keys)[:_EXAMPLES]]
    return "; ".join(shown)
