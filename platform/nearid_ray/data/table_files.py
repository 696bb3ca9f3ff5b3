"""Parquet files in the order of their names as one table, of which only what is asked for is read."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from nearid_ray.data import s3
from nearid_ray.data.columns import has_picture
from nearid_ray.data.store import Location, refuse_pickles
from nearid_ray.errors import StoreError, UsageError
from nearid_ray.identifiers import content_hash, stable_hash

_BATCH_BYTES = 8 << 20
"""About so much is decoded at a time: row groups in the wild hold gigabytes."""

_BUFFER_BYTES = 4 << 20
"""Read ahead in a column of a row group; without a limit pyarrow reads the column's whole chunk."""

_SPLIT_FILE = re.compile(r"(?P<split>[A-Za-z]\w*)-\d{5}-of-\d{5}(-[0-9a-f]+)?\.parquet")


class DamagedError(ValueError):
    """A part of a table's file cannot be read: its bytes are not what they were."""


@dataclass(frozen=True)
class _File:
    place: Location
    metadata: pq.FileMetaData
    first_row: int


class ParquetFiles:
    """Parquet files with the same columns.

    Raises UsageError for a file that is no Parquet or has other columns than the first. Reading raises DamagedError
    where what is read is damaged.
    """

    def __init__(self, uri: str, places: Sequence[Location]) -> None:
        self.uri = uri
        self._files: list[_File] = []
        first = 0
        for number, place in enumerate(places):
            metadata, schema = _open_metadata(place)
            if number == 0:
                self.schema = schema
            elif not schema.equals(self.schema):
                raise UsageError(
                    f"{place.uri} has other columns than {places[0].uri}: {_shown(schema)} instead of "
                    f"{_shown(self.schema)}"
                )
            self._files.append(_File(place, metadata, first))
            first += metadata.num_rows
        self.num_rows = first

    def fingerprint(self) -> str:
        """Follows from what the files' footers say: names, sizes, statistics and places of all column chunks."""
        parts = []
        for file in self._files:
            footer = pa.BufferOutputStream()
            file.metadata.write_metadata_file(footer)
            parts += [file.place.path.rpartition("/")[2], content_hash(footer.getvalue().to_pybytes())]
        return stable_hash(*parts)

    def read(self, columns: Sequence[str]) -> pa.Table:
        """The columns of all rows."""
        parts = []
        for file in self._files:
            with _reading(file.place, "the columns " + ", ".join(columns)):
                parts.append(self._open(file).read(columns=list(columns)).select(list(columns)))
        return pa.concat_tables(parts)

    def present(self, columns: Sequence[str]) -> pa.Table:
        """Booleans: which cells of the picture columns have a picture. Pictures are read only where neither the
        statistics nor the column of paths say it."""
        found: dict[str, list[np.ndarray]] = {name: [] for name in columns}
        for file in self._files:
            parquet = self._open(file)
            for group in range(file.metadata.num_row_groups):
                for name in columns:
                    with _reading(file.place, f"column {name}, row group {group},"):
                        found[name].append(self._group_present(parquet, group, name))
        empty = np.zeros(0, bool)
        return pa.table({name: np.concatenate([empty, *parts]) for name, parts in found.items()})

    def take(self, indices: Sequence[int], columns: Sequence[str]) -> pa.Table:
        """The rows at sorted, unique indices; of other rows, no more than a batch and a page of the file is held."""
        wanted = np.asarray(indices, np.int64)
        parts: list[pa.Table] = []
        for file in self._files:
            inside = wanted[(wanted >= file.first_row) & (wanted < file.first_row + file.metadata.num_rows)]
            if len(inside):
                parts += self._take_from(file, inside - file.first_row, columns)
        kept = pa.schema([self.schema.field(name) for name in columns])
        return pa.concat_tables(parts) if parts else kept.empty_table()

    def _take_from(self, file: _File, rows: np.ndarray, columns: Sequence[str]) -> Iterator[pa.Table]:
        parquet, start = self._open(file), 0
        for group in range(file.metadata.num_row_groups):
            size = file.metadata.row_group(group).num_rows
            inside = rows[(rows >= start) & (rows < start + size)] - start
            start += size
            if len(inside):
                with _reading(file.place, f"row group {group}"):
                    yield from self._take_from_group(parquet, group, inside, columns)

    def _take_from_group(
        self, parquet: pq.ParquetFile, group: int, rows: np.ndarray, columns: Sequence[str]
    ) -> Iterator[pa.Table]:
        at = 0
        for batch in self._batches(parquet, group, columns):
            here = rows[(rows >= at) & (rows < at + batch.num_rows)] - at
            at += batch.num_rows
            if len(here):
                # A copy: a view would keep the whole batch.
                yield pa.Table.from_batches([batch.take(pa.array(here))]).select(list(columns))
            if at > rows[-1]:
                break

    def _batches(self, parquet: pq.ParquetFile, group: int, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        described = parquet.metadata.row_group(group)
        row_bytes = max(1, described.total_byte_size // max(described.num_rows, 1))
        size = max(1, _BATCH_BYTES // row_bytes)
        return parquet.iter_batches(batch_size=size, row_groups=[group], columns=list(columns), use_threads=False)

    def _group_present(self, parquet: pq.ParquetFile, group: int, name: str) -> np.ndarray:
        described = parquet.metadata.row_group(group)
        rows = described.num_rows
        leaves = {described.column(i).path_in_schema: described.column(i) for i in range(described.num_columns)}
        chunk = leaves.get(f"{name}.bytes") or leaves.get(name)
        statistics = chunk.statistics if chunk is not None else None
        nulls = statistics.null_count if statistics is not None and statistics.has_null_count else None
        if nulls == 0:
            return np.ones(rows, bool)
        if nulls is not None and f"{name}.path" in leaves:
            light = parquet.read_row_group(group, columns=[f"{name}.path"])[name]
            if light.null_count == nulls:  # a null picture is a null struct, and no bytes are missing beside them
                return pc.is_valid(light).to_numpy()
        batches = self._batches(parquet, group, [name])
        return np.concatenate([has_picture(pa.chunked_array([batch[name]])).to_numpy() for batch in batches])

    def _open(self, file: _File) -> pq.ParquetFile:
        with s3.in_words(file.place.uri):
            stream = file.place.filesystem.open_input_file(file.place.path)
        return pq.ParquetFile(
            stream,
            metadata=file.metadata,
            buffer_size=_BUFFER_BYTES,
            pre_buffer=False,
            page_checksum_verification=True,
        )


def parquet_files(folder: Location, split: str) -> list[Location]:
    """The Parquet files of a folder that belong to a split, sorted by name: in `data/`, in the folder itself, or in a
    folder of the split's name; none where the folder has no Parquet file.

    Files named as hubs do (`train-00000-of-00003.parquet`) belong to the split they name; of others, all belong to
    every split. Raises UsageError where the split is not among those that the names tell.
    """
    for place in (folder.child("data"), folder):
        names = place.names(".parquet")
        if names:
            return [place.child(name) for name in _of_split(names, split, place)]
    place = folder.child(split)
    return [place.child(name) for name in place.names(".parquet")]


def _of_split(names: list[str], split: str, place: Location) -> list[str]:
    matches = [_SPLIT_FILE.fullmatch(name) for name in names]
    splits = [match["split"] if match else None for match in matches]
    if None in splits:
        return names
    kept = [name for name, of in zip(names, splits, strict=True) if of == split]
    if not kept:
        known = ", ".join(sorted({of for of in splits if of}))
        raise UsageError(f"{place.uri} has no files of the split {split!r}; found the splits: {known}")
    return kept


@contextmanager
def _reading(place: Location, what: str) -> Iterator[None]:
    """Tell damage of the file from trouble with the place where it lies."""
    try:
        with s3.in_words(place.uri):
            yield
    except StoreError:
        raise
    except (OSError, pa.ArrowInvalid) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise DamagedError(f"{place.uri}: {what} cannot be read, the file is damaged ({error})") from error


def _open_metadata(place: Location) -> tuple[pq.FileMetaData, pa.Schema]:
    try:
        with s3.in_words(place.uri), place.filesystem.open_input_file(place.path) as stream:
            file = pq.ParquetFile(stream)
            refuse_pickles(file.schema_arrow, place.uri)
            return file.metadata, file.schema_arrow
    except pa.ArrowInvalid as error:
        raise UsageError(f"{place.uri} is no whole Parquet file ({error}); copy or write it again") from error
    except FileNotFoundError as error:
        raise UsageError(f"{place.uri} does not exist") from error


def _shown(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} ({field.type})" for field in schema)
