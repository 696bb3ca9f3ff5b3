"""The token cache on disk: what is gathered is what was written; what is stale, broken or incomplete is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nearid_ray.data.plan import make_plan
from nearid_ray.data.store import Dataset, parquet_bytes
from nearid_ray.embedding.cache import TokenCache
from nearid_ray.embedding.shards import map_tokens, tokens_bytes
from nearid_ray.errors import UsageError
from schemas import TOKENS_INDEX

TOKENS, WIDTH = 3, 4
CONTENT: dict[str, Any] = {"what": "tokens", "backbone_fingerprint": "aaaa", "augment": {"flip_p": 0.5}}


def index_row(number: int, shard: str, row: int) -> dict[str, Any]:
    return {
        "item_id": f"item {number}",
        "image_id": f"image {number}",
        "role": "view",
        "identity_id": "test:1",
        "view_index": number,
        "engine": "",
        "category": "mug",
        "split": "train",
        "oracle": None,
        "masked": False,
        "draw": 0,
        "shard": shard,
        "row": row,
        "error": "cannot be read" if number == 4 else "",
    }


@pytest.fixture
def written(tmp_path: Path) -> tuple[Dataset, np.ndarray]:
    """A cache of 7 items in 3 shards, and its tokens."""
    tokens_NTD = np.random.default_rng(0).normal(size=(7, TOKENS, WIDTH)).astype(np.float16)
    dataset = Dataset(tmp_path / "cache")
    work = pa.table({"row_id": [f"item {n}" for n in range(7)], "number": pa.array(range(7), pa.int64())})
    plan = make_plan(dataset, work, table="tokens_index", content=CONTENT, rows_per_shard=3)
    for shard in plan.pending:
        numbers = plan.members(shard)["number"].to_pylist()
        rows = [index_row(number, shard, row) for row, number in enumerate(numbers)]
        dataset.location.child("tokens", f"{shard}.arrow").write_bytes(tokens_bytes(tokens_NTD[numbers]))
        dataset.shard(shard).write_bytes(parquet_bytes(pa.Table.from_pylist(rows, schema=TOKENS_INDEX.schema)))
    backbone = {"spec": "some/model", "fingerprint": "aaaa", "tokens": TOKENS, "width": WIDTH}
    dataset.location.child("backbone.json").write_bytes(json.dumps(backbone).encode())
    return dataset, tokens_NTD


def test_gathered_tokens_are_those_written_in_any_order(written: tuple[Dataset, np.ndarray]) -> None:
    dataset, tokens_NTD = written
    cache = TokenCache.open(dataset.location.uri)
    assert (len(cache), cache.tokens, cache.width) == (7, TOKENS, WIDTH)
    assert cache.index["item_id"].to_pylist() == [f"item {n}" for n in range(7)]
    rows = np.array([6, 0, 3, 3, 5])
    out = np.full((5, TOKENS, WIDTH), 9, np.float16)
    assert cache.gather(rows, out) is out
    assert np.array_equal(out, tokens_NTD[rows])
    assert cache.gather(np.array([], np.int64), out[:0]).shape == (0, TOKENS, WIDTH)


def test_a_view_is_read_only_and_not_a_copy(written: tuple[Dataset, np.ndarray]) -> None:
    dataset, tokens_NTD = written
    cache = TokenCache.open(dataset.location.uri)
    assert np.array_equal(cache.view(5), tokens_NTD[5])
    assert not cache.view(5).flags.writeable
    assert np.shares_memory(cache.view(5), cache.view(5))
    with pytest.raises(ValueError, match="read-only"):
        cache.view(5)[0, 0] = 1


def test_rows_with_an_error_cannot_be_gathered(written: tuple[Dataset, np.ndarray]) -> None:
    cache = TokenCache.open(written[0].location.uri)
    with pytest.raises(ValueError, match="index row 4 has no tokens: cannot be read"):
        cache.gather(np.array([1, 4]), np.empty((2, TOKENS, WIDTH), np.float16))


def test_wrong_buffers_and_rows_are_refused(written: tuple[Dataset, np.ndarray]) -> None:
    cache = TokenCache.open(written[0].location.uri)
    with pytest.raises(ValueError, match="out has shape"):
        cache.gather(np.array([1]), np.empty((2, TOKENS, WIDTH), np.float16))
    with pytest.raises(ValueError, match="float32"):
        cache.gather(np.array([1]), np.empty((1, TOKENS, WIDTH), np.float32))
    for row in (-1, 7):
        with pytest.raises(IndexError, match="the cache has 7 rows"):
            cache.gather(np.array([row]), np.empty((1, TOKENS, WIDTH), np.float16))


def test_token_files_are_whole_aligned_and_reproducible(tmp_path: Path) -> None:
    tokens_NTD = np.arange(24, dtype=np.float16).reshape(2, 3, 4)
    data = tokens_bytes(tokens_NTD)
    assert data.equals(tokens_bytes(tokens_NTD))
    (tmp_path / "a.arrow").write_bytes(data)
    mapped = map_tokens(tmp_path / "a.arrow", 2, 3, 4)
    assert np.array_equal(mapped, tokens_NTD)
    assert mapped.ctypes.data % 8 == 0
    plain = pa.ipc.open_file(str(tmp_path / "a.arrow")).read_all()
    assert plain["tokens"].type == pa.list_(pa.float16(), 12)


@pytest.mark.parametrize("kept", [0, 100, -100])
def test_a_token_file_that_is_cut_off_is_named(written: tuple[Dataset, np.ndarray], kept: int) -> None:
    path = Path(written[0].location.child("tokens", "000-000001.arrow").path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(UsageError, match=r"000-000001\.arrow is broken or cut off"):
        TokenCache.open(written[0].location.uri)


def test_a_missing_token_file_is_named(written: tuple[Dataset, np.ndarray]) -> None:
    Path(written[0].location.child("tokens", "000-000002.arrow").path).unlink()
    with pytest.raises(UsageError, match=r"000-000002\.arrow is missing; run embed again"):
        TokenCache.open(written[0].location.uri)


def test_a_token_file_with_other_rows_than_its_index_is_named(written: tuple[Dataset, np.ndarray]) -> None:
    dataset, tokens_NTD = written
    dataset.location.child("tokens", "000-000000.arrow").write_bytes(tokens_bytes(tokens_NTD[:2]))
    with pytest.raises(UsageError, match=r"000-000000\.arrow holds 24 numbers .* expected 3 items"):
        TokenCache.open(dataset.location.uri)


def test_a_file_that_is_no_token_file_is_named(written: tuple[Dataset, np.ndarray]) -> None:
    Path(written[0].location.child("tokens", "000-000000.arrow").path).write_bytes(b"hello" * 1000)
    with pytest.raises(UsageError, match=r"000-000000\.arrow is broken"):
        TokenCache.open(written[0].location.uri)


def test_an_incomplete_cache_is_refused(written: tuple[Dataset, np.ndarray]) -> None:
    written[0].shard("000-000001").delete()
    with pytest.raises(UsageError, match=r"not complete: 1 .* missing, e\.g\. 000-000001; run embed again"):
        TokenCache.open(written[0].location.uri)


def test_a_stale_cache_is_refused_saying_what_differs(written: tuple[Dataset, np.ndarray]) -> None:
    uri = written[0].location.uri
    cache = TokenCache.open(uri)
    assert TokenCache.open(uri, fingerprint=cache.fingerprint, content=CONTENT, backbone="aaaa").content == CONTENT
    with pytest.raises(UsageError, match=r"it was made with other settings or from other data; .* expected 1234"):
        TokenCache.open(uri, fingerprint="1234")
    with pytest.raises(UsageError, match=r"augment\.flip_p: there 0\.5, now 0\.1"):
        TokenCache.open(uri, content=CONTENT | {"augment": {"flip_p": 0.1}})
    with pytest.raises(UsageError, match=r"tokens of the backbone some/model \(fingerprint aaaa\); expected .* bbbb"):
        TokenCache.open(uri, backbone="bbbb")


def test_a_cache_that_has_grown_is_another_one(written: tuple[Dataset, np.ndarray]) -> None:
    dataset, tokens_NTD = written
    before = TokenCache.open(dataset.location.uri).fingerprint
    work = pa.table({"row_id": ["item 7"], "number": pa.array([7], pa.int64())})
    (shard,) = make_plan(dataset, work, table="tokens_index", content=CONTENT, rows_per_shard=3).pending
    dataset.location.child("tokens", f"{shard}.arrow").write_bytes(tokens_bytes(tokens_NTD[:1]))
    rows = pa.Table.from_pylist([index_row(7, shard, 0)], schema=TOKENS_INDEX.schema)
    dataset.shard(shard).write_bytes(parquet_bytes(rows))
    assert len(TokenCache.open(dataset.location.uri)) == 8
    with pytest.raises(UsageError, match=r"it holds other items \(now 8\)"):
        TokenCache.open(dataset.location.uri, fingerprint=before)


def test_a_folder_that_is_no_cache_is_refused(
    tmp_path: Path, rows_of: Callable[..., Any], write: Callable[..., Dataset]
) -> None:
    with pytest.raises(UsageError, match="no dataset here"):
        TokenCache.open(tmp_path)
    write(tmp_path / "tuples", "tuples", rows_of(["train"]))
    with pytest.raises(UsageError, match="holds 'tuples'; expected a dataset of 'tokens_index'"):
        TokenCache.open(tmp_path / "tuples")


def test_a_remote_cache_is_copied_once_and_read_from_disk(
    written: tuple[Dataset, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, tokens_NTD = written
    # A file system that only says of itself that it is not local.
    monkeypatch.setattr("nearid_ray.data.store.Location.is_local", property(lambda p: not p.uri.startswith("file://")))
    uri = f"file://{dataset.location.path}"
    cache = TokenCache.open(uri, local_dir=tmp_path / "local")
    assert cache.uri == uri
    out = cache.gather(np.array([2, 6]), np.empty((2, TOKENS, WIDTH), np.float16))
    assert np.array_equal(out, tokens_NTD[[2, 6]])
    copies = sorted((tmp_path / "local").rglob("*.arrow"))
    before = [path.stat().st_ino for path in copies]
    TokenCache.open(uri, local_dir=tmp_path / "local")
    assert len(copies) == 3
    assert [path.stat().st_ino for path in copies] == before
    table = pq.read_table(dataset.shard("000-000000").path)
    dataset.shard("000-000000").write_bytes(parquet_bytes(table.slice(0, 3)))
    assert len(TokenCache.open(uri, local_dir=tmp_path / "local")) == 7
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    assert len(TokenCache.open(uri)) == 7
    assert len(list((tmp_path / "home").rglob("*.arrow"))) == 3
