"""What a stage left out of its plan: one file beside the data, rewritten by every run."""

from collections import Counter
from collections.abc import Sequence

import pyarrow as pa

from nearid_ray.data.store import Dataset, parquet_bytes, read_parquet
from schemas import REJECTED

_FILE = "rejected.parquet"


def write_rejected(output: Dataset, stage: str, rejected: Sequence[dict[str, str]]) -> None:
    """Write the records of this run; each has `record_id`, `identity_id`, `reason`, `detail`."""
    rows = [{"stage": stage, **record} for record in rejected]
    place, data = output.location.child(_FILE), parquet_bytes(pa.Table.from_pylist(rows, schema=REJECTED.schema))
    if not place.exists() or place.read_bytes() != data.to_pybytes():
        place.write_bytes(data)


def rejected_counts(output: Dataset) -> dict[str, int]:
    """How many records were left out, by reason, most frequent first."""
    place = output.location.child(_FILE)
    if not place.exists():
        return {}
    return dict(Counter(read_parquet(place, columns=["reason"])["reason"].to_pylist()).most_common())
