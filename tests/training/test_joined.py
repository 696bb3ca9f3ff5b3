"""A mix of token caches is one cache: rows of each, repeats of one source, never two copies in a batch."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.torch

from nearid_ray.data.store import locate
from nearid_ray.embedding.cache import BACKBONE_FILE, HEAD_FILE, TOKENS_FOLDER, TokenCache
from nearid_ray.embedding.shards import tokens_bytes
from nearid_ray.errors import UsageError
from nearid_ray.training.items import item_table
from nearid_ray.training.joined import JoinedCache
from nearid_ray.training.selection import Selection, SelectionSettings
from nearid_ray.training.sources import open_caches


def write(folder: Path, memory: Any, **backbone: Any) -> str:
    """A cache in memory as one on disk."""
    place, count = locate(folder), len(memory.index)
    index = memory.index.set_column(memory.index.column_names.index("row"), "row", pa.array(range(count), pa.int64()))
    (folder / "data").mkdir(parents=True)
    oracle = pa.array([0.5] * count) if "oracle" not in index.column_names else index["oracle"]
    pq.write_table(index.append_column("oracle", oracle), folder / "data" / "0.parquet")
    place.child(TOKENS_FOLDER, "0.arrow").write_bytes(tokens_bytes(memory.tokens_NTD))
    said = {**memory.backbone, "tokens": memory.tokens, "width": memory.width, **backbone}
    place.child(BACKBONE_FILE).write_bytes(json.dumps(said).encode())
    place.child(HEAD_FILE).write_bytes(safetensors.torch.save(memory.head_state()))
    settings = {"table": "tokens_index", "content": {}, "content_digest": folder.name}
    place.child("settings.json").write_bytes(json.dumps(settings).encode())
    return str(folder)


@pytest.fixture
def memories(make_index: Callable[..., pa.Table], make_cache: Callable[..., Any]) -> list[Any]:
    nearid = make_index({f"nearid:{i}": 2 + i % 2 for i in range(20)}, engines=["fill", "paint"])
    mtg = make_index({f"mtg:{i}": 2 for i in range(6)}, engines=["mtg-inpaint"], draws=[1])
    return [make_cache(nearid, seed=1), make_cache(mtg, seed=2)]


@pytest.fixture
def uris(memories: list[Any], tmp_path: Path) -> list[str]:
    return [write(tmp_path / name, memory) for name, memory in zip(("nearid", "mtg"), memories, strict=True)]


def test_rows_of_each_cache_are_read_from_their_cache(memories: list[Any], uris: list[str]) -> None:
    joined = open_caches(uris)
    assert isinstance(joined, JoinedCache) and joined.index.num_rows == sum(len(m.index) for m in memories)
    everything = np.concatenate([memory.tokens_NTD for memory in memories])
    rows = np.random.default_rng(0).permutation(len(everything))[:60]
    out = joined.gather(rows, np.empty((60, joined.tokens, joined.width), np.float16))
    assert np.array_equal(out, everything[rows])
    assert joined.disk_bytes == everything.nbytes


def test_a_repeated_source_meets_itself_in_no_batch_and_is_drawn_anew_each_time(uris: list[str]) -> None:
    items = item_table(open_caches(uris).index, split="train")
    selection = Selection(items, SelectionSettings(repeats={"mtg": 4}))
    batches = selection.epoch(0, 8)
    assert sum(map(len, batches)) == 20 + 4 * 6 and len(batches[-1]) == 44 % 8
    chosen: dict[str, list[tuple[int, ...]]] = {}
    for batch in batches:
        assert len(set(batch.identity_B.tolist())) == len(batch)
        rows_BS = selection.choose(batch, 0).rows_BS()
        for identity, rows in zip(batch.identity_B.tolist(), rows_BS.tolist(), strict=True):
            chosen.setdefault(items.identities[identity], []).append(tuple(rows))
    assert {name: len(rows) for name, rows in chosen.items()} == {
        name: 4 if name.startswith("mtg") else 1 for name in items.identities
    }
    assert all(len(set(rows)) > 1 for name, rows in chosen.items() if name.startswith("mtg"))
    engines = open_caches(uris).index["engine"].to_pylist()
    for name, samples in chosen.items():
        used = {engines[row] for rows in samples for row in rows if row >= 0} - {""}
        assert used <= ({"mtg-inpaint"} if name.startswith("mtg") else {"fill", "paint"})


def test_training_can_take_some_of_the_sources(uris: list[str]) -> None:
    index = open_caches(uris).index
    assert {name.split(":")[0] for name in item_table(index, split="train", sources=["mtg"]).identities} == {"mtg"}
    with pytest.raises(UsageError, match=r"\['syncd'\] not found; split 'train' .* of \['mtg', 'nearid'\]"):
        item_table(index, split="train", sources=["syncd"])


def test_the_fingerprint_follows_from_all_caches(uris: list[str], memories: list[Any], tmp_path: Path) -> None:
    other = write(tmp_path / "other", memories[1])
    names = [open_caches(chosen).fingerprint for chosen in (uris, [uris[0], other], uris[:1])]
    assert len(set(names)) == 3 and open_caches(uris).fingerprint == names[0]


def test_caches_that_do_not_belong_together_are_refused(uris: list[str], memories: list[Any], tmp_path: Path) -> None:
    stranger = write(tmp_path / "stranger", memories[1], fingerprint="f00")
    with pytest.raises(UsageError, match="different backbones:\n  fingerprint: there 'memory', now 'f00'"):
        open_caches([uris[0], stranger])
    again = write(tmp_path / "again", memories[0])
    with pytest.raises(UsageError, match=r"both hold the identity nearid:\d"):
        open_caches([uris[0], again])
    with pytest.raises(UsageError, match="each once"):
        open_caches([uris[0], uris[0]])
    assert isinstance(open_caches(uris[:1]), TokenCache)
