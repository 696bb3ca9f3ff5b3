"""A table of pairs of pictures, CSV or Parquet, read a piece at a time.

What a pair is compared by are the columns `a` and `b`: paths (relative ones count from a folder that is given), or
s3:// places. All other columns are kept as they are; those of a CSV stay text, so that no number is rounded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from nearid_ray.data import s3
from nearid_ray.data.store import Location, locate, refuse_pickles
from nearid_ray.errors import StoreError, UsageError
from schemas import SCORES

SIDES = ("a", "b")
_ROWS_AT_ONCE = 65_536
_BLOCK_BYTES = 8 << 20
_PIECE_BYTES = 8 << 20


@dataclass(frozen=True)
class PairsFile:
    """A file of pairs that was found good as far as its head tells."""

    place: Location
    schema: pa.Schema
    """Of what `batches` yields."""
    delimiter: str
    root: str
    """What relative paths count from."""

    @classmethod
    def open(cls, uri: str, *, root: str = "", delimiter: str = ",") -> PairsFile:
        """
        Args:
            uri: a .csv or .parquet file, local or on S3.
            root: folder that relative paths count from; by default that of the file.
            delimiter: between the values of a line of CSV.

        Raises:
            UsageError: there is no such file, it is empty or of another kind, it lacks a or b, or has a column that
                the scores have too.
        """
        if len(delimiter) != 1:
            raise UsageError(f"delimiter is {delimiter!r}; expected one character, e.g. ';'")
        place = locate(uri)
        found = place.filesystem.get_file_info(place.path)
        if not found.is_file:
            said = "is a folder" if place.exists() else "does not exist"
            raise UsageError(f"{uri} {said}; expected a CSV or Parquet file with the columns a and b")
        if not found.size:
            raise UsageError(f"{uri} is empty (0 bytes); expected a CSV or Parquet file with the columns a and b")
        base = locate(root).uri if root else place.uri.rpartition("/")[0] or "/"
        names = cls._names(place, delimiter)
        _check_names(uri, names, delimiter)
        if _is_parquet(place):
            schema = _parquet_schema(place)
        else:
            schema = pa.schema([(name, pa.string()) for name in names])
        return cls(place, schema, delimiter, base)

    @property
    def others(self) -> list[str]:
        """Names of the columns that are kept."""
        return [name for name in self.schema.names if name not in SIDES]

    def digest(self) -> str:
        """Name of the file's content and of what its paths count from."""
        digest = hashlib.sha256(f"{self.root}\0{self.delimiter}\0".encode())
        with self._reading(), self.place.filesystem.open_input_stream(self.place.path) as stream:
            while piece := stream.read(_PIECE_BYTES):
                digest.update(piece)
        return digest.hexdigest()[:16]

    def batches(self) -> Iterator[pa.Table]:
        """The rows in order, some ten thousands at a time; `a` and `b` are text, empty where nothing stands there.

        Raises:
            UsageError: a line has another number of values than the head, or the file is damaged.
        """
        with self._reading():
            for batch in self._parquet() if _is_parquet(self.place) else self._csv():
                table = pa.Table.from_batches([batch]).select(self.schema.names)
                for side in SIDES:
                    text = pc.fill_null(pc.cast(table[side], pa.string()), "")
                    table = table.set_column(table.column_names.index(side), side, text)
                yield table

    def resolved(self, side: pa.ChunkedArray) -> pa.ChunkedArray:
        """Paths as they are opened: null where nothing stands there."""
        absolute = pc.or_(pc.match_substring_regex(side, "^(/|~)"), pc.match_substring(side, "://"))
        path = pc.if_else(absolute, side, pc.binary_join_element_wise(self.root.rstrip("/"), side, "/"))
        return pc.if_else(pc.equal(pc.utf8_trim_whitespace(side), ""), pa.scalar(None, pa.string()), path)

    @staticmethod
    def _names(place: Location, delimiter: str) -> list[str]:
        if _is_parquet(place):
            return _parquet_schema(place).names
        with _telling(place), place.filesystem.open_input_stream(place.path) as stream:
            options = pacsv.ReadOptions(block_size=_BLOCK_BYTES, use_threads=False)
            parse = pacsv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
            return pacsv.open_csv(stream, read_options=options, parse_options=parse).schema.names

    def _csv(self) -> Iterator[pa.RecordBatch]:
        text = dict.fromkeys(self.schema.names, pa.string())
        with self.place.filesystem.open_input_stream(self.place.path) as stream:
            reader = pacsv.open_csv(
                stream,
                read_options=pacsv.ReadOptions(block_size=_BLOCK_BYTES, use_threads=False),
                parse_options=pacsv.ParseOptions(delimiter=self.delimiter, newlines_in_values=True),
                convert_options=pacsv.ConvertOptions(column_types=text, strings_can_be_null=False),
            )
            yield from reader

    def _parquet(self) -> Iterator[pa.RecordBatch]:
        with self.place.filesystem.open_input_file(self.place.path) as stream:
            file = pq.ParquetFile(stream, pre_buffer=False, buffer_size=_BLOCK_BYTES)
            yield from file.iter_batches(batch_size=_ROWS_AT_ONCE, columns=self.schema.names, use_threads=False)

    @contextmanager
    def _reading(self) -> Iterator[None]:
        with _telling(self.place):
            yield


def _is_parquet(place: Location) -> bool:
    return place.path.lower().endswith((".parquet", ".pq"))


def _parquet_schema(place: Location) -> pa.Schema:
    with _telling(place), place.filesystem.open_input_file(place.path) as stream:
        schema = pq.ParquetFile(stream).schema_arrow
    refuse_pickles(schema, place.uri)
    return schema.remove_metadata()


def _check_names(uri: str, names: list[str], delimiter: str) -> None:
    missing = [name for name in SIDES if name not in names]
    if missing:
        hint = ""
        other = next((mark for mark in ";\t|" if mark != delimiter and any(mark in name for name in names)), None)
        if other is not None:
            hint = f" Its values seem to be parted by {other!r}: give --delimiter {other!r}."
        raise UsageError(
            f"{uri} has no column {' and no column '.join(missing)}; found {', '.join(names) or 'none'}; expected a "
            f"and b, the paths of the pictures to compare.{hint}"
        )
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UsageError(f"{uri} has the column {twice[0]} more than once; give every column a name of its own")
    taken = [name for name in names if name in SCORES.schema.names and name not in SIDES]
    if taken:
        raise UsageError(f"{uri} has a column {taken[0]}, which the scores will have too; give yours another name")


@contextmanager
def _telling(place: Location) -> Iterator[None]:
    """What goes wrong in a file, in words."""
    try:
        with s3.in_words(place.uri):
            yield
    except StoreError:
        raise
    except (pa.ArrowInvalid, UnicodeDecodeError) as error:
        kind = "Parquet" if _is_parquet(place) else "CSV"
        raise UsageError(f"{place.uri} cannot be read as {kind}: {str(error).splitlines()[0]}") from error
