"""Small tables beside a job's other results: as a dataset of the contract, and as CSV for people."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from nearid_ray.data.card import write_card
from nearid_ray.data.plan import store_settings
from nearid_ray.data.store import Dataset, Location, parquet_bytes
from schemas import Table


def write_records(
    folder: Location, table: Table, rows: pa.Table, *, content: Mapping[str, Any], about: str, licence: str
) -> Dataset:
    """A dataset of one shard in `folder`/TABLE. It follows from other data: written whole, over an older one."""
    output = Dataset(folder.child(table.name))
    output.shard("000-000000").write_bytes(parquet_bytes(rows.cast(table.schema)))
    store_settings(output, table.name, dict(content))
    title = f"Records: {table.name.replace('_', ' ')}"
    write_card(output, title=title, about=about, licence=licence, facts={"rows": rows.num_rows})
    return output


def csv_bytes(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> bytes:
    """The rows as CSV in UTF-8; what is missing is empty.

    >>> csv_bytes([{"a": 1, "b": None}], ["a", "b"])
    b'a,b\\n1,\\n'
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow(["" if row[name] is None else row[name] for name in columns])
    return text.getvalue().encode()
