"""Small datasets of views, distractors and generated pictures on disk."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from nearid_ray.data.images import encode_png
from nearid_ray.data.plan import make_plan
from nearid_ray.data.store import Dataset, parquet_bytes
from schemas import GENERATED
from tests.embedding.conftest import distractor_rows, noise, tuple_rows, write_dataset

Rows = list[dict[str, Any]]


@pytest.fixture(scope="session")
def make_data() -> Callable[..., tuple[Dataset, Dataset]]:
    """`make_data(folder, change=None)`: tuples (4 of test, 1 of train; 3 views) and distractors of two engines, of
    which `recolor` has an oracle. `change(tuple rows, distractor rows)` may spoil them first."""

    def make(folder: Path, change: Callable[[Rows, Rows], Any] | None = None) -> tuple[Dataset, Dataset]:
        rows = tuple_rows(["test", "train", "test", "test", "test"], views=3)
        others = distractor_rows(rows)
        if change is not None:
            change(rows, others)
        tuples = write_dataset(folder / "tuples", "tuples", rows, rows_per_shard=2)
        return tuples, write_dataset(folder / "distractors", "distractors", others, rows_per_shard=7)

    return make


@pytest.fixture(scope="session")
def make_generated() -> Callable[..., Dataset]:
    """`make_generated(folder, identities)`: two methods, two prompts and two pictures of each identity."""

    def make(folder: Path, identities: list[str]) -> Dataset:
        rows = [
            {
                "generated_id": f"{identity}/{method}/{prompt}/{image}",
                "identity_id": identity,
                "method": method,
                "prompt_index": prompt,
                "prompt": "on a beach",
                "image_index": image,
                "category": "mug",
                "image": {"bytes": encode_png(noise(hash_of(identity, method, prompt, image))), "path": "g.png"},
                "width_px": 32,
                "height_px": 32,
                "source": "test",
                "error": "",
            }
            for identity in identities
            for method in ("dreamer", "painter")
            for prompt in range(2)
            for image in range(2)
        ]
        dataset = Dataset(folder)
        ids = pa.array([row["generated_id"] for row in rows], pa.string())
        work = pa.table({"row_id": ids, "place": pa.array(range(len(rows)), pa.int64())})
        plan = make_plan(dataset, work, table="generated", content={"source": "test"}, rows_per_shard=5)
        for shard in plan.pending:
            members = [rows[place] for place in plan.members(shard)["place"].to_pylist()]
            table = pa.Table.from_pylist(members, schema=GENERATED.schema)
            dataset.shard(shard).write_bytes(parquet_bytes(table))
        return dataset

    return make


def hash_of(*parts: object) -> int:
    from nearid_ray.identifiers import seed_of

    return seed_of(*map(str, parts)) % 100_000
