"""Index files: which rows of a table belong to which split, as JSON lists of row numbers."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping

from nearid_ray.data.store import locate
from nearid_ray.errors import UsageError

_SHOWN = 10


def read_splits(files: Mapping[str, str], rows: int) -> dict[int, str]:
    """Split by row number. `files` maps a split to its index file, "" where it has none; the table has `rows` rows.

    A file is a JSON list of row numbers, or {"indices": [...]}. Raises UsageError, naming the numbers, for a file that
    is missing or unreadable, entries that are no row number, numbers given twice, and rows of two splits.
    """
    split_of: dict[int, str] = {}
    for split, file in files.items():
        if not file:
            continue
        indices = read_indices(file, rows)
        shared = [index for index in indices if index in split_of]
        if shared:
            others = sorted({split_of[index] for index in shared})
            raise UsageError(
                f"{file}: {len(shared)} row(s) of {split} are in {' and '.join(others)} too: {_shown(shared)}; a row "
                "belongs to one split"
            )
        split_of |= dict.fromkeys(indices, split)
    return split_of


def read_indices(file: str, rows: int) -> list[int]:
    """The row numbers of one index file, 0 to `rows` - 1. Raises UsageError as `read_splits` does."""
    place = locate(file)
    if not place.exists():
        raise UsageError(f"the index file {file} does not exist; expected a JSON list of row numbers")
    try:
        value = json.loads(place.read_bytes())
    except (ValueError, OSError, RecursionError) as error:
        raise UsageError(f"{file} cannot be read as JSON ({error}); expected a list of row numbers") from error
    if isinstance(value, dict) and "indices" in value:
        value = value["indices"]
    if not isinstance(value, list):
        keys = f" with the keys {_shown(value)}" if isinstance(value, dict) else ""
        raise UsageError(
            f"{file} holds {type(value).__name__}{keys}; expected a list of row numbers or {{'indices': [...]}}"
        )
    wrong = [repr(entry) for entry in value if type(entry) is not int]
    if wrong:
        raise UsageError(f"{file}: {len(wrong)} entry(ies) are no row number: {_shown(wrong)}")
    outside = [entry for entry in value if not 0 <= entry < rows]
    if outside:
        raise UsageError(
            f"{file}: {len(outside)} row number(s) out of range: {_shown(outside)}; the table has {rows} rows, "
            f"expected 0 to {rows - 1}"
        )
    double = [entry for entry, count in Counter(value).items() if count > 1]
    if double:
        raise UsageError(f"{file}: {len(double)} row number(s) stand there more than once: {_shown(double)}")
    return value


def _shown(values: Iterable[object]) -> str:
    values = list(values)
    more = f" and {len(values) - _SHOWN} more" if len(values) > _SHOWN else ""
    return ", ".join(map(str, values[:_SHOWN])) + more
