"""Tables in and out: metrics take a pandas DataFrame or an Arrow table and give back the same kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from nearid_ray.errors import UsageError

SHOWN = 5
"""Examples named in a message; the rest is counted."""


def columns_of(table: Any, required: Sequence[str], what: str) -> dict[str, np.ndarray]:
    """The columns of a DataFrame, an Arrow table or a mapping of arrays, by name, as numpy arrays.

    Raises:
        UsageError: it is none of these, or a required column is not there.

    >>> columns_of(pa.table({"engine": ["flux"], "margin": [None]}), ["engine"], "records")["engine"].tolist()
    ['flux']
    """
    if isinstance(table, pa.Table):
        found = {name: table[name].to_numpy(zero_copy_only=False) for name in table.column_names}
    elif isinstance(table, Mapping) or (hasattr(table, "columns") and hasattr(table, "to_numpy")):
        names = list(table) if isinstance(table, Mapping) else list(table.columns)
        found = {str(name): np.asarray(table[name]) for name in names}
    else:
        raise UsageError(f"{what} are of type {type(table).__name__}; expected a DataFrame or an Arrow table")
    missing = [name for name in required if name not in found]
    if missing:
        raise UsageError(f"{what} have no column {', '.join(missing)}; found {', '.join(found) or 'none'}")
    return found


def like(table: Any, columns: Mapping[str, Any]) -> Any:
    """The columns as a table of the same kind as `table`: Arrow for Arrow, else a DataFrame.

    >>> like(pa.table({}), {"ssr": [0.5]}).to_pydict()
    {'ssr': [0.5]}
    """
    made = pa.table(dict(columns))
    return made if isinstance(table, pa.Table) else made.to_pandas()


def floats(values: Any) -> NDArray[np.float64]:
    """Numbers as float64; what is missing (None, null) becomes nan.

    >>> floats([1, None, 2.5])
    array([1. , nan, 2.5])
    """
    array = np.asarray(values)
    if array.dtype == object:
        array = np.array([np.nan if value is None else value for value in array.reshape(-1)], dtype=np.float64)
    return array.astype(np.float64).reshape(-1)


def names(values: Any) -> np.ndarray:
    """Values as strings, so that they sort and group alike in every kind of table.

    >>> names([3, "a", None]).tolist()
    ['3', 'a', '']
    """
    if isinstance(values, np.ndarray) and values.dtype.kind == "U":
        return values.reshape(-1)
    array = np.asarray(values, dtype=object).reshape(-1)
    return np.array(["" if value is None or value != value else str(value) for value in array], dtype=str)


def refuse_doubles(key_columns: Mapping[str, np.ndarray], what: str) -> None:
    """Refuse records of which two have the same key.

    Raises:
        UsageError: with the number of doubles and an example.

    >>> refuse_doubles({"identity_id": np.array(["a", "b", "a"])}, "records")
    Traceback (most recent call last):
        ...
    nearid_ray.errors.UsageError: 1 of 3 records stand twice, e.g. identity_id a; records of two benchmarks or runs ...
    """
    columns = [names(column) for column in key_columns.values()]
    count = len(columns[0])
    code = np.zeros(count, np.int64)
    for column in columns:
        _, inverse = np.unique(column, return_inverse=True)
        # Renumbered at each step, so that many columns cannot overflow.
        _, code = np.unique(code * (int(inverse.max(initial=0)) + 1) + inverse, return_inverse=True)
    kept, first = np.unique(code, return_index=True)
    if len(kept) == count:
        return
    again = sorted(set(range(count)) - set(first.tolist()))
    example = ", ".join(f"{name} {column[again[0]]}" for name, column in zip(key_columns, columns, strict=True))
    raise UsageError(
        f"{len(again)} of {count} {what} stand twice, e.g. {example}; records of two benchmarks or runs must be "
        "measured apart: filter them first"
    )


def listed(keys: Sequence[str]) -> str:
    """A few of the keys, and how many more there are.

    >>> listed(["a", "b", "c", "d", "e", "f", "g"])
    'a, b, c, d, e and 2 more'
    """
    rest = len(keys) - SHOWN
    return ", ".join(keys[:SHOWN]) + (f" and {rest} more" if rest > 0 else "")
