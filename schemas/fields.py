"""Building blocks of the data contract: described fields, the image type, tables with keys and references."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field

import pyarrow as pa

SCHEMA_VERSION = "2"
"""Version of the whole contract. A change that old readers cannot bear raises it."""

IMAGE = pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())])
"""The Hugging Face Image feature: encoded bytes and the name they came from. `large_binary` would load as a dict."""

SPLITS = ("train", "val", "test")


def described(name: str, kind: pa.DataType, text: str, *, nullable: bool = False) -> pa.Field:
    """A field with its description, and whether it must have a value, in the metadata."""
    required = "no" if nullable else "yes"
    return pa.field(name, kind, nullable=nullable, metadata={"description": text, "required": required})


def loose(field: pa.Field) -> pa.Field:
    """The field as Arrow must see it inside lists: `datasets` finds the pictures there only where all is nullable."""
    return field.with_nullable(True)


def is_required(field: pa.Field) -> bool:
    """Whether the contract allows no null, whatever Arrow says."""
    return (field.metadata or {}).get(b"required") == b"yes"


def image(name: str, text: str) -> pa.Field:
    """A nullable image column; null where the row's `error` says why there is none."""
    return described(name, IMAGE, text, nullable=True)


def error_field(text: str = "") -> pa.Field:
    """The `error` column that every written table carries."""
    said = "Empty when the row is fine; otherwise what went wrong, in words for a person."
    return described("error", pa.string(), f"{said} {text}".strip())


@dataclass(frozen=True, kw_only=True)
class Reference:
    """Values of `columns` must exist among `target_columns` of table `target`."""

    columns: tuple[str, ...]
    target: str
    target_columns: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Table:
    """One table of the contract.

    `key` names the columns that identify a row; `allowed` lists the values a column may take (`views.x` reaches into
    the structs of the list `views`); `references` point to other tables. `further_columns`: whether a dataset may have
    columns of its own besides.
    """

    name: str
    purpose: str
    fields: tuple[pa.Field, ...]
    key: tuple[str, ...]
    allowed: dict[str, tuple[str, ...]] = field(default_factory=dict)
    references: tuple[Reference, ...] = ()
    further_columns: bool = False

    @property
    def schema(self) -> pa.Schema:
        """The Arrow schema, with the table's name, the contract's version and the Hugging Face features."""
        return self.schema_with(())

    def schema_with(self, further: Sequence[pa.Field]) -> pa.Schema:
        """The schema of a dataset that has further columns after those of the contract."""
        schema = pa.schema([*self.fields, *further])
        metadata = {
            "nearid_table": self.name,
            "nearid_schema_version": SCHEMA_VERSION,
            "huggingface": _features(schema),
        }
        return schema.with_metadata(metadata)


def _features(schema: pa.Schema) -> str:
    """The `huggingface` metadata that makes `datasets` show pictures."""
    return json.dumps({"info": {"features": {f.name: _feature(f.type) for f in schema}}})


def _feature(kind: pa.DataType) -> dict:
    if kind.equals(IMAGE):
        return {"_type": "Image"}
    if pa.types.is_struct(kind):
        return {kind.field(i).name: _feature(kind.field(i).type) for i in range(kind.num_fields)}
    if pa.types.is_list(kind):
        return {"_type": "List", "feature": _feature(kind.value_type)}
    names = {pa.float32(): "float32", pa.float64(): "float64", pa.bool_(): "bool"}
    return {"_type": "Value", "dtype": names.get(kind, str(kind))}
