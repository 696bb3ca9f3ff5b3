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
from nearid_ray.embedding.report import forget_damaged, forget_missing
from nearid_ray.embedding.shards import MappedShard, Stored, map_tokens, tokens_bytes
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
    return write_cache(tmp_path / "cache")


def write_cache(folder: Path, stored: Stored = "float16") -> tuple[Dataset, np.ndarray]:
    tokens_NTD = np.random.default_rng(0).normal(size=(7, TOKENS, WIDTH)).astype(np.float16)
    dataset = Dataset(folder)
    work = pa.table({"row_id": [f"item {n}" for n in range(7)], "number": pa.array(range(7), pa.int64())})
    plan = make_plan(dataset, work, table="tokens_index", content=CONTENT, rows_per_shard=3)
    for shard in plan.pending:
        numbers = plan.members(shard)["number"].to_pylist()
        rows = [index_row(number, shard, row) for row, number in enumerate(numbers)]
        dataset.location.child("tokens", f"{shard}.arrow").write_bytes(tokens_bytes(tokens_NTD[numbers], stored))
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
    with pytest.raises(
        UsageError, match=r"not complete: 1 .* missing, e\.g\. 000-000001; run the job that writes it again"
    ):
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


def flip_bit(path: Path, tokens_NTD: np.ndarray, item: int) -> None:
    """Change one bit of one item's tokens."""
    data = bytearray(path.read_bytes())
    data[data.index(tokens_NTD[item].tobytes()) + 5] ^= 0x10
    path.write_bytes(data)


def test_a_flipped_bit_is_found_and_named(written: tuple[Dataset, np.ndarray]) -> None:
    dataset, tokens_NTD = written
    TokenCache.open(dataset.location.uri, verify=True)
    flip_bit(Path(dataset.location.child("tokens", "000-000001.arrow").path), tokens_NTD, 5)
    assert TokenCache.open(dataset.location.uri).damaged() == [5]
    said = r"1 item\(s\) are damaged \(e\.g\. item 5\), in tokens/000-000001\.arrow\. Run embed .* --verify"
    with pytest.raises(UsageError, match=said):
        TokenCache.open(dataset.location.uri, verify=True)


def test_damaged_cut_off_and_missing_shards_are_unmarked_so_that_they_are_made_again(
    written: tuple[Dataset, np.ndarray],
) -> None:
    dataset, tokens_NTD = written
    assert forget_damaged(dataset) == [] and dataset.missing_shards() == []
    flip_bit(Path(dataset.location.child("tokens", "000-000001.arrow").path), tokens_NTD, 4)
    dataset.location.child("tokens", "000-000002.arrow").delete()
    assert forget_damaged(dataset) == ["000-000001", "000-000002"] == dataset.missing_shards()


def test_shards_without_their_token_file_are_unmarked_and_other_datasets_left_alone(
    written: tuple[Dataset, np.ndarray],
) -> None:
    dataset, _ = written
    assert forget_missing(dataset) == [] == dataset.missing_shards()
    dataset.location.child("tokens", "000-000002.arrow").delete()
    settings = json.loads(dataset.location.child("settings.json").read_bytes())
    dataset.location.child("settings.json").write_bytes(json.dumps(settings | {"table": "embeddings"}).encode())
    assert forget_missing(dataset) == [] == dataset.missing_shards()
    with pytest.raises(UsageError, match="no token cache to verify"):
        forget_damaged(dataset)
    dataset.location.child("settings.json").write_bytes(json.dumps(settings).encode())
    assert forget_missing(dataset) == ["000-000002"] == dataset.missing_shards()


@pytest.mark.parametrize("name", ["backbone.json", "head.safetensors", "data/000-000001.parquet"])
def test_a_broken_file_is_named(written: tuple[Dataset, np.ndarray], name: str) -> None:
    dataset, _ = written
    dataset.location.child(*name.split("/")).write_bytes(b"{")
    with pytest.raises(UsageError, match=f"(?s)broken.*{name.rpartition('/')[2]}|{name}.*broken"):
        TokenCache.open(dataset.location.uri).head_state()


def test_a_token_file_without_checksums_is_read_but_not_verified(written: tuple[Dataset, np.ndarray]) -> None:
    dataset, tokens_NTD = written
    place = dataset.location.child("tokens", "000-000000.arrow")
    table = pa.ipc.open_file(pa.BufferReader(place.read_bytes())).read_all().replace_schema_metadata()
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    place.write_bytes(sink.getvalue())
    cache = TokenCache.open(dataset.location.uri)
    assert np.array_equal(cache.view(1), tokens_NTD[1])
    with pytest.raises(UsageError, match="has no checksums: an earlier version wrote it"):
        cache.verify()


@pytest.mark.parametrize("threads", [1, 3])
def test_int8_tokens_are_within_half_a_step_of_their_tokens_scale(tmp_path: Path, threads: int) -> None:
    dataset, tokens_NTD = write_cache(tmp_path / "int8", "int8")
    settings = json.loads(dataset.location.child("settings.json").read_bytes())
    settings["content"]["stored"] = "int8"
    dataset.location.child("settings.json").write_bytes(json.dumps(settings).encode())
    cache = TokenCache.open(dataset.location.uri, verify=True, threads=threads)
    rows = np.array([6, 0, 3, 5])
    out = cache.gather(rows, np.empty((4, TOKENS, WIDTH), np.float16))
    step = np.abs(tokens_NTD[rows]).max(axis=2, keepdims=True).astype(np.float64) / 127
    error = np.abs(out.astype(np.float64) - tokens_NTD[rows])
    assert (error <= 0.51 * step + 1e-3).all() and error.max() > 0
    assert cache.disk_bytes == 7 * TOKENS * (WIDTH + 4)
    with pytest.raises(ValueError, match="use gather"):
        cache.view(0)


def test_files_of_tokens_that_are_all_zero_survive_int8(tmp_path: Path) -> None:
    (tmp_path / "a.arrow").write_bytes(tokens_bytes(np.zeros((2, 3, 4), np.float16), "int8"))
    shard, out = MappedShard(tmp_path / "a.arrow", 2, 3, 4), np.ones((3, 4), np.float16)
    shard.copy(1, out)
    assert not out.any()


@pytest.mark.parametrize("stored", ["float16", "int8"])
def test_items_of_a_remote_cache_without_room_for_copies_are_read_one_by_one(
    tmp_path: Path, stored: Stored, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, _ = write_cache(tmp_path / "cache", stored)
    rows, out = np.array([6, 0, 3, 5]), np.empty((4, TOKENS, WIDTH), np.float16)
    here = TokenCache.open(dataset.location.uri).gather(rows, out.copy())
    monkeypatch.setattr("nearid_ray.data.store.Location.is_local", property(lambda p: not p.uri.startswith("file://")))
    size = Path(dataset.location.child("tokens", "000-000000.arrow").path).stat().st_size
    for limit in (0, int(1.5 * size), 10 * size):
        local = tmp_path / str(limit)
        cache = TokenCache.open(f"file://{dataset.location.path}", local_dir=local, limit_bytes=limit)
        assert np.array_equal(cache.gather(rows, out), here)
        assert len(list(local.glob("*.arrow"))) == min(limit // size, 3) and not list(local.glob("*.ends"))
        if limit == 0:
            with pytest.raises(UsageError, match="not all token files are on this machine's disk"):
                cache.verify()


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
