"""Plans: shards are fixed once, later rows add shards, other settings are refused."""

import pyarrow as pa
import pytest

from nearid_ray.data.plan import cut, differences, make_plan
from nearid_ray.data.store import Dataset, parquet_bytes
from nearid_ray.errors import UsageError


def _work(*ids: str, **columns: list) -> pa.Table:
    return pa.table({"row_id": pa.array(ids, pa.string()), **columns})


def _plan(output: Dataset, work: pa.Table, content: dict | None = None):
    return make_plan(output, work, table="rows", content=content or {"seed": 1}, rows_per_shard=2)


def test_shards_are_full_and_never_span_a_break():
    work = _work(*"abcdef", engine=["x", "x", "x", "y", "y", "y"])
    shards = cut(work, 2, 0, ["engine"])["shard"].to_pylist()
    assert [name[-1] for name in shards] == ["0", "0", "1", "2", "2", "3"]


def test_new_rows_add_shards_and_old_ones_keep_theirs(tmp_path):
    output = Dataset(tmp_path)
    first = _plan(output, _work("a", "b", "c"))
    output.shard("000-000000").write_bytes(parquet_bytes(_work("a", "b")))
    second = _plan(output, _work("d", "c", "b", "a", "e"))
    members = {shard: second.members(shard)["row_id"].to_pylist() for shard in second.shard_names}
    assert members == {"000-000000": ["a", "b"], "000-000001": ["c"], "001-000000": ["d", "e"]}
    assert first.pending == ("000-000000", "000-000001")
    assert second.pending == ("000-000001", "001-000000")


def test_planning_again_writes_nothing_new(tmp_path):
    output = Dataset(tmp_path)
    _plan(output, _work("a", "b", "c"))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    _plan(output, _work("a", "b", "c"))
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_other_settings_another_table_and_foreign_folders_are_refused_and_nothing_is_written(tmp_path):
    output = Dataset(tmp_path / "out")
    _plan(output, _work("a"), {"seed": 1, "engine": {"steps": 30}})
    with pytest.raises(UsageError, match=r"engine\.steps: there 30, now 31"):
        _plan(output, _work("b"), {"seed": 1, "engine": {"steps": 31}})
    with pytest.raises(UsageError, match="holds 'rows', this job writes 'others'"):
        make_plan(output, _work("b"), table="others", content={"seed": 1}, rows_per_shard=2)
    assert output.plans()[0]["row_id"].to_pylist() == ["a"]
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "holiday.jpg").write_bytes(b"")
    with pytest.raises(UsageError, match="is not empty"):
        _plan(Dataset(tmp_path / "photos"), _work("a"))
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["holiday.jpg"]


def test_doubled_ids_and_empty_work_are_refused(tmp_path):
    with pytest.raises(UsageError, match="1 row id"):
        _plan(Dataset(tmp_path), _work("a", "a", "b"))
    with pytest.raises(UsageError, match="nothing to do"):
        _plan(Dataset(tmp_path), _work())
    assert list(tmp_path.iterdir()) == []


def test_differences_name_nested_values():
    assert differences({"a": 1, "b": {"c": 2}}, {"b": {"c": 3}}) == ["a: there 1, now None", "b.c: there 2, now 3"]
