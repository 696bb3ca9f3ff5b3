"""Datasets by URI, local or S3, through pyarrow's file systems.

A dataset is a folder: `data/*.parquet` (one file a shard), `plan/*.parquet` (the work lists), `settings.json`,
`README.md` (card), `summary.json`, and what else a stage needs (`tokens/`). Every file appears whole or not at all.
"""

import contextlib
import errno
import json
import os
import posixpath
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from nearid_ray.data import s3
from nearid_ray.errors import StoreError, UsageError

NO_SPACE = "no space left to write"
"""How the message of a full disk begins."""

_FULL = (errno.ENOSPC, errno.EDQUOT)

_ROW_GROUP_BYTES = 64 << 20
"""Row groups stay far below the 1 GB at which dataset viewers give up, and small enough to read one at a time."""


@dataclass(frozen=True)
class Location:
    """A place in a file system: `uri` as a person writes it, `filesystem` and `path` as pyarrow wants them."""

    uri: str
    filesystem: pafs.FileSystem
    path: str

    @property
    def is_local(self) -> bool:
        return isinstance(self.filesystem, pafs.LocalFileSystem)

    def child(self, *parts: str) -> "Location":
        """The place `parts` below this one."""
        return Location(posixpath.join(self.uri, *parts), self.filesystem, posixpath.join(self.path, *parts))

    def exists(self) -> bool:
        """Whether there is a file or folder; UsageError where the bucket itself is missing or cannot be reached."""
        with s3.in_words(self.uri):
            found = self.filesystem.get_file_info(self.path).type != pafs.FileType.NotFound
            if not found and s3.is_s3(self.uri):
                s3.check_bucket(self.filesystem, self.path)
        return found

    def names(self, suffix: str = "") -> list[str]:
        """Sorted names of the files directly below that end in `suffix`; empty when there is no such folder."""
        selector = pafs.FileSelector(self.path, allow_not_found=True)
        with s3.in_words(self.uri):
            entries = self.filesystem.get_file_info(selector)
        names = [e.base_name for e in entries if e.type == pafs.FileType.File]
        return sorted(n for n in names if n.endswith(suffix) and not n.startswith("."))

    def read_bytes(self) -> bytes:
        with s3.in_words(self.uri), self.filesystem.open_input_file(self.path) as stream:
            return stream.read()

    def write_bytes(self, data: bytes | pa.Buffer) -> None:
        """Make the file appear whole: temporary name, fsync and rename on disk; one completed upload on S3."""
        if self.is_local:
            _write_local(Path(self.path), data)
        else:
            with s3.in_words(self.uri):
                s3.upload(self.filesystem, self.path, data)

    def write_new(self, data: bytes) -> bool:
        """Make the file only where there is none; whether it was made.

        Raises:
            s3.NotExclusiveError: the S3 server knows no such request.
        """
        if self.is_local:
            return _create_local(Path(self.path), data)
        return s3.create(self.uri, self.path, data)

    def remove_empty(self, *children: str) -> None:
        """On disk: remove the named folders and then this one, as far as they are empty. S3 has no folders."""
        if self.is_local:
            for folder in (*(self.child(name).path for name in children), self.path):
                with contextlib.suppress(OSError):
                    os.rmdir(folder)

    def delete(self) -> None:
        """Remove the file; nothing happens when there is none."""
        if self.is_local:
            Path(self.path).unlink(missing_ok=True)
        else:
            s3.delete(self.uri, self.path)


def locate(uri: str | Path) -> Location:
    """The place a URI or path means: a local path, `file:///...`, or `s3://bucket/prefix`.

    S3 endpoint and credentials come from the usual AWS variables and profiles (AWS_ENDPOINT_URL for other servers).
    """
    text = str(uri)
    if not text.strip():
        raise UsageError("an empty path was given; expected a local path or s3://bucket/prefix")
    if "://" not in text:
        path = os.path.abspath(os.path.expanduser(text))
        return Location(path, pafs.LocalFileSystem(), path)
    scheme = text.partition("://")[0].lower()
    if scheme not in ("file", "s3"):
        raise UsageError(f"{text}: {scheme}:// is not supported; expected a local path or s3://bucket/prefix")
    try:
        if s3.is_s3(text):
            s3.check_uri(text)
            with s3.in_words(text):
                filesystem, path = s3.connect(text)
        else:
            filesystem, path = pafs.FileSystem.from_uri(quote(text, safe="/:?&=@%+,~"))
    except StoreError:
        raise
    except (pa.ArrowInvalid, OSError) as error:
        raise UsageError(
            f"{text}: not a place this program can reach ({error}); use a path or s3://bucket/prefix"
        ) from error
    return Location(text.rstrip("/"), filesystem, path.rstrip("/"))


def read_given(uri: str, what: str, expected: str) -> bytes:
    """A whole file that a person named; UsageError, with `what` it is for, where there is none or it cannot be read."""
    place = locate(uri)
    if not place.exists():
        raise UsageError(f"{what} {uri} is no file; expected {expected}")
    try:
        return place.read_bytes()
    except StoreError:
        raise
    except OSError as error:
        said = error.strerror or str(error)
        raise UsageError(f"{what} {uri} cannot be read ({said}); expected {expected}") from error


def _write_local(path: Path, data: bytes | pa.Buffer) -> None:
    _make_folder(path.parent)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    with _writing(path, temporary):
        with open(temporary, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)


def _create_local(path: Path, data: bytes) -> bool:
    _make_folder(path.parent)
    try:
        with _writing(path):
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    except FileExistsError:
        return False
    with _writing(path, path), open(file, "wb") as stream:
        stream.write(data)
    return True


@contextlib.contextmanager
def _writing(path: Path, unfinished: Path | None = None) -> Iterator[None]:
    """Errors in words; what is unfinished goes."""
    try:
        yield
    except BaseException as error:
        if unfinished is not None:
            unfinished.unlink(missing_ok=True)
        if isinstance(error, OSError):
            _raise_in_words(path, error)
        raise


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if error.errno in _FULL:
            _raise_in_words(path, error)
        raise UsageError(
            f"{path}: this folder cannot be made ({error.strerror}); give an output that can be written"
        ) from error


def _raise_in_words(path: Path, error: OSError) -> None:
    if error.errno in _FULL:
        raise StoreError(error.errno, f"{NO_SPACE} {path}; free some and run the same command again") from error
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG):
        raise UsageError(f"{path} cannot be written ({error.strerror}); give another output") from error


def parquet_bytes(table: pa.Table) -> pa.Buffer:
    """The table as a Parquet file; the same table gives the same bytes."""
    sink = pa.BufferOutputStream()
    rows_per_group = max(1, int(table.num_rows * _ROW_GROUP_BYTES / max(table.nbytes, 1)))
    # Pictures gain nothing by compression, and lose 0.07 of some 25 ms a picture: not worth a case of its own.
    options: dict[str, Any] = {"compression": "zstd", "compression_level": 1, "write_page_checksum": True}
    pq.write_table(table, sink, row_group_size=rows_per_group, **options)
    return sink.getvalue()


class Dataset:
    """A dataset folder at a URI; reading needs nothing but the folder."""

    def __init__(self, uri: "str | Path | Location") -> None:
        self.location = uri if isinstance(uri, Location) else locate(uri)

    def __repr__(self) -> str:
        return f"Dataset({self.location.uri!r})"

    @classmethod
    def open(cls, uri: "str | Path | Location", table: str | None = None) -> "Dataset":
        """An existing dataset; UsageError when there is none, it holds no shard yet, or it holds another table."""
        dataset = cls(uri)
        where = dataset.location.uri
        if not dataset.location.is_local:
            s3.check_reachable()
        settings = dataset.settings()
        if settings is None:
            why = "no settings.json" if dataset.location.exists() else "there is no such folder"
            raise UsageError(f"{where}: no dataset here ({why}); give the output folder of a finished job")
        if table is not None and settings.get("table") != table:
            raise UsageError(f"{where} holds {settings.get('table')!r}; expected a dataset of {table!r}")
        if not dataset.shards():
            raise UsageError(f"{where}: the dataset has no finished shard yet; run the job that writes it first")
        return dataset

    def settings(self) -> dict[str, Any] | None:
        """What settings.json says, or None where there is no such file."""
        return self.read_json("settings.json")

    def digest(self) -> str:
        """Name of the settings that decide the dataset's content."""
        settings = self.settings()
        if settings is None:
            raise UsageError(f"{self.location.uri}: no dataset here (no settings.json)")
        return settings["content_digest"]

    def read_json(self, name: str) -> dict[str, Any] | None:
        place = self.location.child(name)
        return json.loads(place.read_bytes()) if place.exists() else None

    def shard(self, name: str) -> Location:
        return self.location.child("data", f"{name}.parquet")

    def shards(self) -> list[str]:
        """Names of the finished shards, sorted."""
        return [name.removesuffix(".parquet") for name in self.location.child("data").names(".parquet")]

    def missing_shards(self) -> list[str]:
        """Names of shards that a plan has and that are not finished."""
        done = set(self.shards())
        planned = {name for table in self.plans() for name in table["shard"].unique().to_pylist()}
        return sorted(planned - done)

    def plans(self) -> list[pa.Table]:
        """The work lists in the order in which they were made."""
        folder = self.location.child("plan")
        return [read_parquet(folder.child(name)) for name in folder.names(".parquet")]

    def arrow(self) -> pads.Dataset:
        """All finished shards as one pyarrow dataset."""
        paths = [self.shard(name).path for name in self.shards()]
        found = pads.dataset(paths, filesystem=self.location.filesystem, format=_CHECKED)
        refuse_pickles(found.schema, self.location.uri)
        return found

    def read(self, columns: Sequence[str] | None = None, where: pc.Expression | None = None) -> pa.Table:
        """Rows of all finished shards in the order of the shards' names."""
        with _reading(self.location):
            return self.arrow().to_table(columns=list(columns) if columns else None, filter=where)

    def count_errors(self) -> tuple[int, int]:
        """(rows, rows with a non-empty `error`)."""
        errors = self.read(["error"])["error"]
        return len(errors), pc.sum(pc.not_equal(errors, "")).as_py() or 0


_CHECKED = pads.ParquetFileFormat(
    default_fragment_scan_options=pads.ParquetFragmentScanOptions(page_checksum_verification=True)
)


@contextlib.contextmanager
def _reading(place: Location) -> Iterator[None]:
    """What goes wrong with Parquet files, in words."""
    try:
        with s3.in_words(place.uri):
            yield
    except OSError as error:
        if "CRC checksum" not in str(error):
            raise
        raise UsageError(
            f"{place.uri}: a file is damaged, its checksums are wrong ({error}); find it with jobs/validate.py, remove "
            "it, and run the job again that wrote it"
        ) from error


_PICKLED = b"ray.data.arrow_pickled_object"
"""Ray registers an Arrow type of this name whose values run whatever code their bytes name when they are looked at."""


def refuse_pickles(schema: pa.Schema, uri: str) -> None:
    """Raises UsageError where a column, or a part of one, holds pickled Python objects."""
    if bad := [field.name for field in schema if _is_pickled(field)]:
        raise UsageError(
            f"{uri}: column {', '.join(bad)} holds pickled Python objects, which can run any code when they are read; "
            "write it again with plain Arrow types"
        )


def _is_pickled(field: pa.Field) -> bool:
    kind = field.type
    if (field.metadata or {}).get(b"ARROW:extension:name") == _PICKLED:
        return True
    if isinstance(kind, pa.BaseExtensionType):
        return kind.extension_name == _PICKLED.decode() or _is_pickled(pa.field("", kind.storage_type))
    if pa.types.is_dictionary(kind):
        return _is_pickled(pa.field("", kind.value_type))
    return any(_is_pickled(kind.field(place)) for place in range(kind.num_fields))


@contextlib.contextmanager
def parquet_file(place: Location) -> Iterator[pq.ParquetFile]:
    """An open Parquet file whose pages are checked; UsageError where a column would run code."""
    with _reading(place), place.filesystem.open_input_file(place.path) as stream:
        file = pq.ParquetFile(stream, page_checksum_verification=True)
        refuse_pickles(file.schema_arrow, place.uri)
        yield file


def read_parquet(place: Location, columns: Sequence[str] | None = None) -> pa.Table:
    """One Parquet file, whole."""
    with parquet_file(place) as file:
        return file.read(columns=list(columns) if columns else None)


def read_rows(place: Location, rows: Sequence[int], columns: Sequence[str] | None = None) -> pa.Table:
    """The given rows of one Parquet file, in the given order; only their row groups are read."""
    with parquet_file(place) as file:
        starts, groups, position = [0], [], 0
        for group in range(file.num_row_groups):
            starts.append(starts[-1] + file.metadata.row_group(group).num_rows)
        if max(rows) >= starts[-1]:
            raise IndexError(f"{place.uri} has {starts[-1]} rows; row {max(rows)} was asked for")
        offsets = {}
        for group in range(file.num_row_groups):
            if any(starts[group] <= row < starts[group + 1] for row in rows):
                groups.append(group)
                offsets[group] = position - starts[group]
                position += starts[group + 1] - starts[group]
        table = file.read_row_groups(groups, columns=list(columns) if columns else None)
    group_of = {row: next(g for g in groups if starts[g] <= row < starts[g + 1]) for row in rows}
    return table.take(pa.array([row + offsets[group_of[row]] for row in rows], pa.int64()))
