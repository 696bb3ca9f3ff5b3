"""The store: files appear whole or not at all, and rows are found without reading everything."""

import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nearid_ray.data.store import Dataset, locate, parquet_bytes, read_parquet, read_rows
from nearid_ray.errors import UsageError


def test_a_failing_write_leaves_nothing_and_the_old_file_whole(tmp_path, monkeypatch):
    place = locate(tmp_path / "folder" / "file")
    place.write_bytes(b"old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space left to write"):
        place.write_bytes(b"new")
    assert place.read_bytes() == b"old"
    assert os.listdir(tmp_path / "folder") == ["file"]


def test_names_are_sorted_and_leave_out_unfinished_files(tmp_path):
    for name in ("b.parquet", "a.parquet", ".c.parquet.1-2.tmp", "d.txt"):
        (tmp_path / name).write_bytes(b"")
    assert locate(tmp_path).names(".parquet") == ["a.parquet", "b.parquet"]
    assert locate(tmp_path / "none").names() == []


@pytest.mark.parametrize("uri", ["", "nosuch://bucket/x"])
def test_a_place_that_cannot_be_is_refused(uri):
    with pytest.raises(UsageError):
        locate(uri)


def test_file_uris_and_paths_mean_the_same_place(tmp_path):
    assert locate(f"file://{tmp_path}/x y").path == locate(tmp_path / "x y").path


def test_the_same_table_gives_the_same_bytes():
    table = pa.table({"a": list(range(1000)), "b": [str(i) for i in range(1000)]})
    assert parquet_bytes(table).to_pybytes() == parquet_bytes(pa.table(table.to_pydict())).to_pybytes()


def test_a_damaged_file_is_told_and_not_read_wrong(tmp_path):
    place = locate(tmp_path / "data" / "000-000000.parquet")
    noise = np.random.default_rng(0).bytes(100_000)
    whole = parquet_bytes(pa.table({"image": [noise], "error": [""]})).to_pybytes()
    flipped = bytearray(whole)
    flipped[50_000] ^= 1
    place.write_bytes(bytes(flipped))
    for read in (
        lambda: read_parquet(place),
        lambda: read_rows(place, [0]),
        lambda: Dataset(tmp_path).read(),
    ):
        with pytest.raises(UsageError, match=r"a file is damaged, its checksums are wrong"):
            read()
    place.write_bytes(whole)
    assert read_parquet(place)["image"].to_pylist() == [noise]


def test_rows_are_read_in_the_asked_order_across_row_groups(tmp_path):
    pq.write_table(pa.table({"a": list(range(100))}), tmp_path / "t.parquet", row_group_size=7)
    wanted = [93, 0, 6, 7, 50, 0]
    assert read_rows(locate(tmp_path / "t.parquet"), wanted)["a"].to_pylist() == wanted
    with pytest.raises(IndexError, match="has 100 rows"):
        read_rows(locate(tmp_path / "t.parquet"), [100])


def test_opening_says_what_is_missing(tmp_path):
    with pytest.raises(UsageError, match="no dataset here"):
        Dataset.open(tmp_path)
    (tmp_path / "settings.json").write_text('{"table": "tuples"}')
    with pytest.raises(UsageError, match="expected a dataset of 'distractors'"):
        Dataset.open(tmp_path, "distractors")
    with pytest.raises(UsageError, match="no finished shard"):
        Dataset.open(tmp_path, "tuples")
