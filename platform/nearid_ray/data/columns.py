"""Columns that hold pictures, as tables in the wild keep them: which they are, where they are null, one cell."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One picture of a table: its encoded bytes, or why they cannot be had."""

    data: bytes | None = None
    """Encoded picture; None where `error` says why."""
    path: str = ""
    """The name it has in the source, where it has one."""
    error: str = ""


def is_picture(kind: pa.DataType) -> bool:
    """Whether a column of this type holds encoded pictures: the Image feature's struct, or plain binary."""
    if pa.types.is_struct(kind):
        inner = kind.field("bytes").type if kind.get_field_index("bytes") >= 0 else None
        return inner is not None and (_is_binary(inner) or pa.types.is_null(inner))
    return _is_binary(kind)


def has_picture(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Booleans: whether a cell of a picture column has bytes or at least a path."""
    if not pa.types.is_struct(column.type):
        return pc.is_valid(column)
    found = pc.is_valid(pc.struct_field(column, "bytes"))
    if column.type.get_field_index("path") >= 0:
        path = pc.struct_field(column, "path")
        found = pc.or_(found, pc.fill_null(pc.not_equal(path, ""), False))
    return pc.and_(pc.is_valid(column), found)


def picture_cell(value: Any, read: Callable[[str], Cell]) -> Cell | None:
    """A cell of a picture column as Arrow gives it; None for none. With a path alone, `read` brings the file."""
    if value is None:
        return None
    data, path = (value["bytes"], value.get("path") or "") if isinstance(value, dict) else (value, "")
    if data is not None:
        return Cell(data=data, path=path)
    return read(path) if path else None


def class_names(schema: pa.Schema, column: str) -> list[str] | None:
    """The names of a column of class labels, which `datasets` stores as numbers; None for other columns."""
    try:
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
        feature = features[column]
        return list(feature["names"]) if feature["_type"] == "ClassLabel" else None
    except (KeyError, TypeError, ValueError):
        return None


def _is_binary(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind)
