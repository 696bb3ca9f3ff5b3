"""Token files: one Arrow IPC file a shard, whose memory map is the array itself.

A file holds one record batch, uncompressed. Stored as float16 it has the column `tokens`, a fixed-size list of T * D
float16 numbers an item. Stored as int8 the numbers are eight bits and the column `scale` holds T float32 numbers an
item: a token is its eight-bit numbers times its scale, which is its largest absolute value divided by 127. The schema's
metadata have the shape and a checksum of every item.

Axes: N items, T tokens, D token width.
"""

import zlib
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from nearid_ray.data.store import Location
from nearid_ray.errors import UsageError

Stored = Literal["float16", "int8"]
STORED: tuple[Stored, ...] = get_args(Stored)

AGAIN = "run embed again with the same settings; it makes what is missing"
VERIFY = "Run embed again with the same settings and --verify; it makes damaged shards again"
_LARGEST = 127
"""Largest eight-bit number used; -128 would have no counterpart."""


class NoChecksums(UsageError):
    """A token file of an earlier version, whose items cannot be compared with what was written."""


class TokenShard(Protocol):
    """The items of one token file."""

    def copy(self, row: int, out_TD: NDArray[np.float16]) -> None:
        """Write the tokens of one item into `out_TD`."""
        ...


def item_bytes(tokens: int, width: int, stored: Stored) -> int:
    """What an item takes on disk."""
    return 2 * tokens * width if stored == "float16" else tokens * (width + 4)


def tokens_bytes(tokens_NTD: NDArray[np.float16], stored: Stored = "float16") -> pa.Buffer:
    """A shard's token file; the same tokens give the same bytes."""
    items, tokens, width = tokens_NTD.shape
    parts: list[NDArray[Any]] = list(quantised(tokens_NTD)) if stored == "int8" else [tokens_NTD]
    columns = {name: _column(part) for name, part in zip(("tokens", "scale"), parts, strict=False)}
    sums = [_checksum([part[item] for part in parts]) for item in range(items)]
    metadata = {"tokens": str(tokens), "width": str(width), "crc32": "".join(f"{value:08x}" for value in sums)}
    schema = pa.schema([pa.field(name, c.type, nullable=False) for name, c in columns.items()], metadata=metadata)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, schema) as writer:
        writer.write_batch(
            pa.record_batch(list(columns.values()), schema=schema), custom_metadata={"items": str(items)}
        )
    return sink.getvalue()


def quantised(tokens_NTD: NDArray[np.float16]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """(number_NTD, scale_NT) of tokens: eight bits a number, one scale a token.

    >>> number, scale = quantised(np.array([[[127.0, -63.25, 0.0], [0.0, 0.0, 0.0]]], np.float16))
    >>> number.tolist(), scale.tolist()
    ([[[127, -63, 0], [0, 0, 0]]], [[1.0, 0.0]])
    """
    wide_NTD = tokens_NTD.astype(np.float32)
    scale_NT = np.abs(wide_NTD).max(axis=2, initial=0.0) / np.float32(_LARGEST)
    safe_NT = np.where(scale_NT > 0, scale_NT, np.float32(1))
    return np.rint(wide_NTD / safe_NT[..., None]).astype(np.int8), scale_NT


class MappedShard:
    """A token file on this machine's disk, mapped into memory."""

    def __init__(self, path: str | Path, items: int, tokens: int, width: int) -> None:
        """Raises UsageError, naming the file, when it is missing, cut off, no token file, or of another shape."""
        self.path = str(path)
        try:
            with pa.memory_map(self.path) as source:
                reader = pa.ipc.open_file(source)
                batch = reader.get_batch(0)
            values = batch.column("tokens").flatten().to_numpy(zero_copy_only=True)
            scale = batch.column("scale").flatten().to_numpy(zero_copy_only=True) if batch.num_columns > 1 else None
        except FileNotFoundError as error:
            raise UsageError(f"the token file {path} is missing; {AGAIN}") from error
        except (OSError, pa.ArrowException, KeyError, ValueError, IndexError) as error:
            said = f"the token file {path} is broken or cut off ({error})"
            raise UsageError(f"{said}. {VERIFY}") from error
        stored = np.float16 if scale is None else np.int8
        if values.dtype != stored or values.size != items * tokens * width or batch.num_rows != items:
            raise UsageError(
                f"the token file {path} holds {values.size} numbers of {values.dtype}; expected {items} items of "
                f"{tokens} x {width} {np.dtype(stored)}. {VERIFY}"
            )
        self.values_NTD: NDArray[Any] = values.reshape(items, tokens, width)
        self.scale_NT: NDArray[np.float32] | None = None if scale is None else scale.reshape(items, tokens)
        self._sums = (reader.schema.metadata or {}).get(b"crc32", b"").decode()

    def copy(self, row: int, out_TD: NDArray[np.float16]) -> None:
        widened(self.values_NTD[row], None if self.scale_NT is None else self.scale_NT[row], out_TD)

    def damaged(self) -> list[int]:
        """Rows whose bytes are not those that were written.

        Raises:
            NoChecksums: an earlier version wrote the file.
        """
        if len(self._sums) != 8 * len(self.values_NTD):
            raise NoChecksums(f"the token file {self.path} has no checksums: an earlier version wrote it")
        parts = [self.values_NTD] if self.scale_NT is None else [self.values_NTD, self.scale_NT]
        return [
            row
            for row in range(len(self.values_NTD))
            if f"{_checksum([part[row] for part in parts]):08x}" != self._sums[8 * row : 8 * row + 8]
        ]


class RangedShard:
    """A token file elsewhere, of which single items are read."""

    def __init__(self, place: Location, size: int, scratch: Path, items: int, tokens: int, width: int) -> None:
        """Reads the file's ends to find where the items lie.

        Args:
            place: the file.
            size: its size in bytes.
            scratch: a path on this machine's disk that may be used for the moment.
            items, tokens, width: the shape it must have.

        Raises:
            UsageError: it is no token file of this shape.
        """
        self._file = place.filesystem.open_input_file(place.path)
        try:
            with open(scratch, "wb") as stream:  # a file with a hole: the ends say where in it the items would be
                for start, end in {(0, min(_END_BYTES, size)), (max(0, size - _END_BYTES), size)}:
                    stream.seek(start)
                    stream.write(self._file.read_at(end - start, start))
                stream.truncate(size)
            shard = MappedShard(scratch, items, tokens, width)
            with pa.memory_map(str(scratch)) as source:
                batch = pa.ipc.open_file(source).get_batch(0)
                source.seek(0)
                base = source.read_buffer(1).address
                self._starts = [column.flatten().buffers()[1].address - base for column in batch.columns]
        finally:
            scratch.unlink(missing_ok=True)
        self._shape, self._int8 = (tokens, width), shard.scale_NT is not None

    def copy(self, row: int, out_TD: NDArray[np.float16]) -> None:
        tokens, width = self._shape
        if not self._int8:
            data = self._file.read_at(2 * tokens * width, self._starts[0] + row * 2 * tokens * width)
            out_TD[...] = np.frombuffer(data, np.float16).reshape(tokens, width)
            return
        numbers = self._file.read_at(tokens * width, self._starts[0] + row * tokens * width)
        scales = self._file.read_at(4 * tokens, self._starts[1] + row * 4 * tokens)
        widened(np.frombuffer(numbers, np.int8).reshape(tokens, width), np.frombuffer(scales, np.float32), out_TD)


_END_BYTES = 1 << 20
"""More than a token file's header or footer takes."""


def map_tokens(path: str | Path, items: int, tokens: int, width: int) -> NDArray[np.float16]:
    """A float16 token file as a read-only array (items, tokens, width) over its memory map; see `MappedShard`."""
    return MappedShard(path, items, tokens, width).values_NTD


def widened(values_TD: NDArray[Any], scale_T: NDArray[np.float32] | None, out_TD: NDArray[np.float16]) -> None:
    """Stored numbers as float16 tokens, written into `out_TD`."""
    if scale_T is None:
        out_TD[...] = values_TD
    else:
        np.multiply(values_TD, scale_T[:, None], out=out_TD, dtype=np.float32, casting="unsafe")


def _column(values: NDArray[Any]) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(values).reshape(-1)), values[0].size)


def _checksum(parts: list[NDArray[Any]]) -> int:
    value = 0
    for part in parts:
        value = zlib.crc32(np.ascontiguousarray(part).view(np.uint8).data, value)
    return value
