"""Tables of pictures that others made, row by row: `open_rows` reads all of them the same way.

A source is a hub id (`owner/name`), a folder that `Dataset.save_to_disk` wrote, Parquet (a file, a folder, `*.parquet`)
or CSV; Parquet and CSV lie on disk or S3. Pictures stay encoded; nothing is held but what was asked for.
"""

import fnmatch
import io
import os
import posixpath
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.fs as pafs

from nearid_ray.data import s3
from nearid_ray.data.columns import Cell, class_names, has_picture, is_picture, picture_cell
from nearid_ray.data.store import Location, locate, read_given
from nearid_ray.data.table_files import DamagedError, ParquetFiles, parquet_files
from nearid_ray.errors import StoreError, UsageError
from nearid_ray.identifiers import content_hash, stable_hash

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]*[\w-]")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_EXPECTED = (
    "expected a hub id (owner/name), a folder written by `save_to_disk`, Parquet (a file, a folder with *.parquet or "
    "data/*.parquet, a pattern like folder/*.parquet) or a CSV file"
)


@dataclass(frozen=True, kw_only=True)
class _Origin:
    """How a source was asked for; it is opened again by the same words on the workers."""

    source: str
    revision: str
    split: str
    files: str


class RowSource(ABC):
    """A table that someone else made. Pickled as the words it was opened with, and opened again from them."""

    uri: str
    """What messages call it."""
    schema: pa.Schema

    def __init__(self, origin: _Origin, uri: str, schema: pa.Schema, files: Location | None) -> None:
        self._origin, self.uri, self.schema = origin, uri, schema
        self._files = locate(origin.files) if origin.files else files
        doubled = sorted({name for name in schema.names if schema.names.count(name) > 1})
        if doubled:
            raise UsageError(f"{uri}: column(s) {', '.join(doubled)} stand there more than once; rename them")

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return _reopen, (self._origin,)

    @property
    def revision(self) -> str:
        """The commit on the hub, or the revision that was asked for; "" for files."""
        return self._origin.revision

    @property
    def columns(self) -> list[str]:
        """Names of all columns, in the source's order."""
        return list(self.schema.names)

    @property
    def picture_columns(self) -> list[str]:
        """Names of the columns that hold encoded pictures (the Image feature, or plain binary)."""
        return [field.name for field in self.schema if is_picture(field.type)]

    def require(self, *names: str) -> None:
        """UsageError where one of the columns is missing; it lists those there are."""
        missing = [name for name in names if name not in self.columns]
        if missing:
            raise UsageError(
                f"{self.uri} has no column {', '.join(missing)}; found the columns: {', '.join(self.columns)}"
            )

    def light(self, columns: Sequence[str]) -> pa.Table:
        """The named columns of all rows; class labels as their names. UsageError for columns with pictures."""
        self.require(*columns)
        heavy = [name for name in columns if name in self.picture_columns]
        if heavy:
            raise UsageError(f"{self.uri}: column(s) {', '.join(heavy)} hold pictures; expected text or numbers")
        table = self._light(columns)
        for place, name in enumerate(columns):
            names = class_names(self.schema, name)
            if names:
                values = [names[v] if v is not None and v >= 0 else None for v in table[name].to_pylist()]
                table = table.set_column(place, name, pa.array(values, pa.string()))
        return table

    def present(self, columns: Sequence[str]) -> pa.Table:
        """For the named picture columns, true where a row has a picture; the pictures are not read where the file says
        enough without them."""
        self.require(*columns)
        return self._present(columns)

    def rows(self, indices: Sequence[int], columns: Sequence[str]) -> list[dict[str, Any]]:
        """The rows at `indices`, in that order. Pictures come as `Cell` or None (no picture), other values as Python
        ones, class labels as their names.

        Raises IndexError for a row that is not there, DamagedError where the file is damaged, OSError where its place
        cannot be reached.
        """
        self.require(*columns)
        wrong = [index for index in indices if not 0 <= index < len(self)]
        if wrong:
            raise IndexError(f"{self.uri} has {len(self)} rows; row {wrong[0]} was asked for")
        table = self._take(sorted(set(indices)), columns)
        values = {name: self._values(name, table[name]) for name in columns}
        place_of = {index: place for place, index in enumerate(sorted(set(indices)))}
        return [{name: values[name][place_of[index]] for name in columns} for index in indices]

    def rows_or_errors(self, indices: Sequence[int], columns: Sequence[str]) -> list[dict[str, Any] | DamagedError]:
        """As `rows`, but a row that lies in a damaged part of the file is an error and costs no other row."""
        try:
            return list(self.rows(indices, columns))
        except DamagedError:
            return [self._row_or_error(index, columns) for index in indices]

    def _row_or_error(self, index: int, columns: Sequence[str]) -> dict[str, Any] | DamagedError:
        try:
            return self.rows([index], columns)[0]
        except DamagedError as error:
            return error

    def picture(self, path: str) -> Cell:
        """The picture file at `path`, relative to the source; what is wrong is said in the cell, never raised."""
        if self._files is None:
            return Cell(path=path, error=f"{path}: the source has no folder of files")
        return _read_file(self._files, path)

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def fingerprint(self) -> str:
        """Changes with the source's content, as far as that can be told without reading all of it."""

    @abstractmethod
    def _light(self, columns: Sequence[str]) -> pa.Table: ...

    @abstractmethod
    def _present(self, columns: Sequence[str]) -> pa.Table: ...

    @abstractmethod
    def _take(self, indices: Sequence[int], columns: Sequence[str]) -> pa.Table:
        """The rows at the given sorted, unique indices."""

    def _values(self, name: str, column: pa.ChunkedArray) -> list[Any]:
        kind = self.schema.field(name).type
        values = column.to_pylist()
        if is_picture(kind):
            return [picture_cell(value, self.picture) for value in values]
        names = class_names(self.schema, name)
        return [names[v] if v is not None and v >= 0 else None for v in values] if names else values


class ParquetRows(RowSource):
    """One or more Parquet files with the same columns, in the order of their names."""

    def __init__(self, origin: _Origin, uri: str, files: ParquetFiles, base: Location) -> None:
        super().__init__(origin, uri, files.schema, base)
        self._parquet = files

    def __len__(self) -> int:
        return self._parquet.num_rows

    def fingerprint(self) -> str:
        return self._parquet.fingerprint()

    def _light(self, columns: Sequence[str]) -> pa.Table:
        return self._parquet.read(columns)

    def _present(self, columns: Sequence[str]) -> pa.Table:
        return self._parquet.present(columns)

    def _take(self, indices: Sequence[int], columns: Sequence[str]) -> pa.Table:
        return self._parquet.take(indices, columns)


class DatasetsRows(RowSource):
    """A dataset that the `datasets` library opens: from the hub, or a folder of `save_to_disk`; memory-mapped."""

    def __init__(self, origin: _Origin, uri: str, dataset: Any, base: Location | None) -> None:
        super().__init__(origin, uri, dataset.features.arrow_schema, base)
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def fingerprint(self) -> str:
        files = [entry["filename"] for entry in self._dataset.cache_files]
        sizes = [f"{os.path.basename(file)}:{os.path.getsize(file)}" for file in files]
        return stable_hash(self._origin.revision, len(self), content_hash(str(self.schema).encode()), *sizes)

    def _light(self, columns: Sequence[str]) -> pa.Table:
        return self._arrow(columns)[:]

    def _present(self, columns: Sequence[str]) -> pa.Table:
        found = self._arrow(columns)[:]  # mapped: only what says which rows are null is looked at
        return pa.table({name: has_picture(found[name]) for name in columns})

    def _take(self, indices: Sequence[int], columns: Sequence[str]) -> pa.Table:
        return self._arrow(columns)[list(indices)]

    def _arrow(self, columns: Sequence[str]) -> Any:
        return self._dataset.select_columns(list(columns)).with_format("arrow")


class CsvRows(RowSource):
    """A CSV file, held whole: it has no pictures, at most their paths. All values are text."""

    def __init__(self, origin: _Origin, uri: str, data: bytes, base: Location) -> None:
        self._table = _read_csv(uri, data)
        self._hash = content_hash(data)
        super().__init__(origin, uri, self._table.schema, base)

    def __len__(self) -> int:
        return self._table.num_rows

    def fingerprint(self) -> str:
        return self._hash

    def _light(self, columns: Sequence[str]) -> pa.Table:
        return self._table.select(list(columns))

    def _present(self, columns: Sequence[str]) -> pa.Table:
        return pa.table({name: pc.not_equal(self._table[name], "") for name in columns})

    def _take(self, indices: Sequence[int], columns: Sequence[str]) -> pa.Table:
        return self._table.select(list(columns)).take(pa.array(indices, pa.int64()))


def open_rows(source: str, *, revision: str = "", split: str = "train", files: str = "") -> RowSource:
    """Open a table to read rows from.

    What exists at the path wins over a hub id of the same spelling. `revision` is for the hub alone. `split` picks one
    where the source has several (a hub dataset, a saved DatasetDict, Parquet files named
    `train-00000-of-00003.parquet`, folders named after splits). `files` is the folder that paths of pictures are
    relative to; by default the source's own.

    Raises UsageError, saying what was found and what expected, where there is no such source or it cannot be opened.
    """
    place = locate(source)
    kind = _kind(place)
    is_pattern = any(letter in posixpath.basename(place.path) for letter in "*?[")
    # A worker may have another working directory.
    here = place.uri if is_pattern or kind != pafs.FileType.NotFound else source
    origin = _Origin(source=here, revision=revision, split=split, files=locate(files).uri if files else "")
    if kind == pafs.FileType.File:
        return _from_file(origin, place)
    if kind == pafs.FileType.Directory:
        return _from_folder(origin, place)
    if is_pattern:
        return _from_pattern(origin, place)
    if _HUB_ID.fullmatch(source) and not source.endswith((".parquet", ".csv", ".tsv")):
        return _from_hub(origin)
    raise UsageError(f"{source} does not exist; {_EXPECTED}")


def _reopen(origin: _Origin) -> RowSource:
    return open_rows(origin.source, revision=origin.revision, split=origin.split, files=origin.files)


def _from_file(origin: _Origin, place: Location) -> RowSource:
    folder = _parent(place)
    if place.path.lower().endswith((".csv", ".tsv")):
        return CsvRows(origin, place.uri, read_given(place.uri, "table", "a CSV file"), folder)
    if place.path.lower().endswith(".arrow"):
        raise UsageError(f"{place.uri} is one file of a saved dataset; give its folder, {folder.uri}")
    return ParquetRows(origin, place.uri, ParquetFiles(place.uri, [place]), folder)


def _from_folder(origin: _Origin, place: Location) -> RowSource:
    if place.child("dataset_dict.json").exists() or place.child("state.json").exists():
        return _from_disk(origin, place)
    found = parquet_files(place, origin.split)
    if found:
        return ParquetRows(origin, place.uri, ParquetFiles(place.uri, found), place)
    tables = place.names(".csv")
    advice = f"; give one of its tables, e.g. {place.uri}/{tables[0]}" if tables else ""
    raise UsageError(f"{place.uri} holds no Parquet files and no saved dataset{advice}; {_EXPECTED}")


def _from_pattern(origin: _Origin, place: Location) -> RowSource:
    folder, pattern = _parent(place), posixpath.basename(place.path)
    names = [name for name in folder.names() if fnmatch.fnmatchcase(name, pattern)]
    if not names:
        raise UsageError(f"no file in {folder.uri} fits {pattern}; {_EXPECTED}")
    return ParquetRows(origin, place.uri, ParquetFiles(place.uri, [folder.child(name) for name in names]), folder)


def _datasets(what: str) -> Any:
    """The library, imported where it is needed: it is slow to import, and not everybody has it."""
    try:
        import datasets
    except ImportError as error:
        raise UsageError(f"{what} is read by the package `datasets`, which is not installed ({error})") from error
    return datasets


def _from_disk(origin: _Origin, place: Location) -> RowSource:
    if not place.is_local:
        raise UsageError(
            f"{place.uri} was written by `save_to_disk`, which can be read from a local disk alone; copy the folder to "
            "a disk, or write Parquet with `to_parquet` instead"
        )
    datasets = _datasets(place.uri)
    try:
        loaded = datasets.load_from_disk(place.path)
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowInvalid) as error:
        raise UsageError(f"{place.uri}: the saved dataset cannot be opened ({error}); save it again") from error
    if isinstance(loaded, datasets.DatasetDict):
        if origin.split not in loaded:
            raise UsageError(f"{place.uri} has no split {origin.split!r}; found the splits: {', '.join(loaded)}")
        loaded = loaded[origin.split]
    return DatasetsRows(origin, place.uri, loaded, place)


def _from_hub(origin: _Origin) -> RowSource:
    datasets = _datasets(f"{origin.source} is no path that exists; as a hub id it")
    name, revision = origin.source, origin.revision
    asked = f"{name} at revision {revision}" if revision else name
    try:
        builder = datasets.load_dataset_builder(name, revision=revision or None)
        commit = builder.hash if _COMMIT.fullmatch(builder.hash or "") else ""
        # Without the hub, `datasets` takes the newest that is in its cache, whatever revision was asked for.
        if revision and type(builder).__module__.endswith("cache.cache") and not commit.startswith(revision):
            raise ConnectionError(f"in the cache is commit {commit or 'unknown'}")
        builder.download_and_prepare()
        dataset = builder.as_dataset(split=origin.split)
    except ConnectionError as error:
        raise UsageError(
            f"{asked}: there is no file or folder of that name here, and the hub cannot be reached ({error}). Check "
            "the network and HF_HUB_OFFLINE, or give a local copy of the dataset"
        ) from error
    except ValueError as error:  # an unknown split
        raise UsageError(f"{asked}, split {origin.split!r}, cannot be read: {error}") from error
    except OSError as error:  # also DatasetNotFoundError: no such dataset or revision, a private or a gated one
        raise UsageError(
            f"{asked} cannot be read from the hub: {error} For a private or gated dataset ask for access on its page "
            "and log in with `hf auth login`, or give a local copy"
        ) from error
    found = f"{name}@{commit or revision}" if commit or revision else name
    # Workers read the very commit, also where the hub has a newer one by then.
    return DatasetsRows(replace(origin, revision=commit or revision), found, dataset, None)


def _read_csv(uri: str, data: bytes) -> pa.Table:
    options = {"parse_options": pacsv.ParseOptions(delimiter="\t" if uri.lower().endswith(".tsv") else ",",
                                                   newlines_in_values=True)}  # fmt: skip
    try:
        names = pacsv.open_csv(io.BytesIO(data), **options).schema.names
        as_text = pacsv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()))  # ids keep their leading zeros
        return pacsv.read_csv(io.BytesIO(data), convert_options=as_text, **options)
    except pa.ArrowInvalid as error:
        raise UsageError(f"{uri} cannot be read as CSV ({error}); save it as UTF-8 with a header line") from error


def _read_file(folder: Location, path: str) -> Cell:
    place = folder.child(path)
    within = posixpath.normpath(place.path).startswith(folder.path.rstrip("/") + "/")
    if folder.is_local:
        within = within and Path(place.path).resolve().is_relative_to(Path(folder.path).resolve())
    if not within:
        return Cell(path=path, error=f"{path} lies outside of {folder.uri}; nothing is read from there")
    try:
        return Cell(data=place.read_bytes(), path=path)
    except FileNotFoundError:
        return Cell(path=path, error=f"{path} is not in {folder.uri}")
    except StoreError:
        raise  # the server is down: nothing is wrong with the picture
    except (OSError, UsageError) as error:
        return Cell(path=path, error=str(error))


def _kind(place: Location) -> pafs.FileType:
    with s3.in_words(place.uri):
        kind = place.filesystem.get_file_info(place.path).type
    if kind == pafs.FileType.NotFound and not place.is_local:
        place.exists()  # says where the bucket itself is missing
    return kind


def _parent(place: Location) -> Location:
    return Location(posixpath.dirname(place.uri) or "/", place.filesystem, posixpath.dirname(place.path) or "/")
