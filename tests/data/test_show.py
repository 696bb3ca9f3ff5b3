"""show: figures that are right, differences down to the column, sheets; and nothing is ever written."""

import runpy
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import schemas
from nearid_ray.data.compare import compare
from nearid_ray.data.gallery import sheet, spread
from nearid_ray.data.images import decode_rgb, encode_png
from nearid_ray.data.plan import make_plan
from nearid_ray.data.rejects import write_rejected
from nearid_ray.data.show import describe, find_datasets
from nearid_ray.data.store import Dataset, parquet_bytes
from nearid_ray.errors import UsageError
from tests.data.test_card import painted, toys

JOBS = Path(__file__).resolve().parents[2] / "jobs"


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A small toybox with distractors."""
    root = tmp_path_factory.mktemp("made")
    painted(toys(root / "tuples", train=5, test=3), root / "distractors")
    return root


def state(folder: Path) -> dict[Path, tuple[int, int]]:
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in folder.rglob("*")}


def rewritten(source: Path, target: Path, change) -> Dataset:
    """A copy of a dataset whose rows went through `change`, in one shard."""
    rows = change(Dataset(source).read().to_pylist())
    output, stored = Dataset(target), Dataset(source).settings() or {}
    table = schemas.TABLES[stored["table"]]
    work = pa.table({"row_id": [str(row[table.key[0]]) for row in rows]})
    plan = make_plan(output, work, table=table.name, content=stored["content"], rows_per_shard=len(rows))
    output.shard(plan.pending[0]).write_bytes(parquet_bytes(pa.Table.from_pylist(rows, schema=table.schema)))
    return output


def test_the_figures_of_a_tuples_dataset_are_those_of_its_rows(made):
    said, rows = describe(Dataset(made / "tuples")), Dataset(made / "tuples").read().to_pylist()
    assert (said["table"], said["schema_version"], said["licence"]) == ("tuples", schemas.SCHEMA_VERSION, "cc-by-4.0")
    assert (said["rows"], said["rows_with_error"]) == (8, 0)
    assert said["views"] == sum(len(row["views"]) for row in rows) == said["views.mask_source"]["exact"]
    assert said["split"] == {"train": 5, "test": 3}
    assert sum(said["category"].values()) == 8
    assert said["shards"] == {"done": 1, "planned": 1, "missing": 0}
    assert said["bytes"]["data"] == f"{sum(f.stat().st_size for f in (made / 'tuples' / 'data').iterdir()):,}"
    assert "views.image image" in said["columns"]
    assert said["settings"]["source"] == "toybox"


def test_errors_come_with_examples_what_was_left_out_with_reasons_and_missing_shards_with_rows(made, tmp_path):
    def break_two(rows: list[dict]) -> list[dict]:
        for row in rows[:2]:
            row["error"] = "cut off"
        return rows

    broken = rewritten(made / "distractors", tmp_path / "d", break_two)
    record = {"record_id": "x", "identity_id": "x", "detail": ""}
    write_rejected(broken, "s", [record | {"reason": "no-mask"}, record | {"reason": "no-mask", "record_id": "y"}])
    make_plan(broken, pa.table({"row_id": ["a", "b", "c"]}), table="distractors",
              content=(broken.settings() or {})["content"], rows_per_shard=2)  # fmt: skip
    said = describe(broken)
    assert said["rows_with_error"] == 2
    assert said["error_examples"] == [f"{row['distractor_id']}: cut off" for row in broken.read().to_pylist()[:2]]
    assert said["left_out"] == {"no-mask": 2}
    assert said["shards"] | {"first_missing": ""} == {
        "done": 1, "planned": 3, "missing": 2, "rows_missing": 3, "first_missing": "",
    }  # fmt: skip
    assert set(said["engine"]) == {"toybox-redraw", "toybox-decal"}
    assert sum(said["verdict"].values()) == said["rows"]


@pytest.mark.parametrize("name", schemas.TABLES)
def test_every_table_of_the_contract_can_be_shown_and_compared(name, tmp_path):
    table = schemas.TABLES[name]
    values: dict = {"views": []} if name == "tuples" else {}
    for field in table.fields:
        some = "x" if pa.types.is_string(field.type) else pa.types.is_boolean(field.type) or 1
        values.setdefault(field.name, None if field.nullable else table.allowed.get(field.name, (some,))[0])
    output = Dataset(tmp_path)
    plan = make_plan(output, pa.table({"row_id": ["x"]}), table=name, content={}, rows_per_shard=1)
    output.shard(plan.pending[0]).write_bytes(parquet_bytes(pa.Table.from_pylist([values], schema=table.schema)))
    assert describe(output)["rows"] == 1
    assert not compare(output, output).any


def test_a_folder_of_datasets_is_found_and_a_wrong_place_refused(made, tmp_path):
    assert [dataset.location.path for dataset in find_datasets(str(made))] == [
        str(made / "distractors"), str(made / "tuples"),
    ]  # fmt: skip
    with pytest.raises(UsageError, match="does not exist"):
        find_datasets(str(tmp_path / "nothing"))
    with pytest.raises(UsageError, match="holds no dataset"):
        find_datasets(str(tmp_path))


def test_equal_datasets_do_not_differ_however_they_are_cut_and_ordered(made, tmp_path):
    other = rewritten(made / "distractors", tmp_path / "d", lambda rows: rows[::-1])
    found = compare(other, Dataset(made / "distractors"))
    assert not found.any
    assert found.same == len(Dataset(made / "distractors").read(["error"]))


def test_differences_are_named_by_row_and_column_pictures_by_their_bytes(made, tmp_path):
    blank = encode_png(np.zeros((64, 64, 3), np.uint8))

    def change(rows: list[dict]) -> list[dict]:
        rows[0]["views"][0]["image"]["bytes"] = blank
        rows[1]["split"] = "val"
        rows[2]["views"][1]["mask_area"] += 0.5
        rows[2]["views"][1]["image"]["path"] = "another name"
        rows[4]["identity_id"] = "x:new"
        return rows

    names = Dataset(made / "tuples").read(["identity_id"])["identity_id"].to_pylist()
    found = compare(rewritten(made / "tuples", tmp_path / "t", change), Dataset(made / "tuples"))
    assert found.changed == {"views.image": [(names[0],)], "split": [(names[1],)], "views.mask_area": [(names[2],)]}
    assert (found.only_here, found.only_there, found.same) == ([("x:new",)], [(names[4],)], 4)
    assert found.settings == []
    assert found.any


def test_settings_columns_and_doubled_keys_that_differ_are_named(made, tmp_path):
    mine = rewritten(made / "tuples", tmp_path / "t", lambda rows: [*rows, rows[0]] if False else rows)
    (tmp_path / "t" / "settings.json").write_text(
        (tmp_path / "t" / "settings.json").read_text().replace('"size_px": 64', '"size_px": 32')
    )
    path = tmp_path / "t" / "data" / f"{mine.shards()[0]}.parquet"
    table = pq.read_table(path)
    pq.write_table(pa.concat_tables([table, table.slice(0, 1)]).drop_columns(["category"]), path)
    found = compare(mine, Dataset(made / "tuples"))
    assert found.settings == ["size_px: there 64, now 32"]
    assert found.columns == ["category: only there"]
    assert found.same == 8
    assert "1 row(s) have the key of another" in found.notes[0]
    with pytest.raises(UsageError, match="expected two datasets of one table"):
        compare(mine, Dataset(made / "distractors"))


def test_rows_of_a_sheet_are_spread_over_the_dataset(made):
    all_rows = spread(Dataset(made / "distractors"), 10_000)
    assert len(all_rows) == len(Dataset(made / "distractors").read(["error"]))
    some = spread(Dataset(made / "distractors"), 4)
    assert len(some) == 4
    assert all_rows.index(some[-1]) >= len(all_rows) // 2


def test_sheets_show_views_and_distractors_beside_their_view(made):
    tuples, distractors = Dataset(made / "tuples"), Dataset(made / "distractors")
    three = max(len(row) for row in tuples.read(["views"])["views"].to_pylist())
    assert sheet(tuples, 8).shape[1] == 6 + three * 166
    assert sheet(distractors, 2).shape[1] == 6 + 2 * 166
    held_out = distractors.read(["identity_id", "split"]).to_pylist()[-1]
    assert held_out["split"] == "test"  # has distractors of both engines
    beside = sheet(distractors, 1, tuples, [held_out["identity_id"]])
    assert sheet(distractors, 2, tuples).shape == (6 + 2 * (166 + 32), 6 + 4 * 166, 3)
    assert beside.shape == (6 + 166 + 32, 6 + 4 * 166, 3)  # view, mask, two engines
    # The view and its distractor are equal outside the mask and differ inside, also when scaled for the sheet.
    view, mask, *made_HW3 = (beside[6:166, 6 + 166 * i : 166 + 166 * i].astype(int) for i in range(4))
    for distractor in made_HW3:
        differs = np.abs(view - distractor).max(axis=2) > 8
        assert 0 < differs.mean() < 0.6
        assert (mask[differs] > 0).mean() > 0.5
    with pytest.raises(UsageError, match="expected 1 to 200"):
        sheet(tuples, 0)


def test_generated_pictures_stand_side_by_side_and_tables_without_pictures_are_refused(tmp_path):
    encoded = encode_png(np.full((20, 30, 3), 200, np.uint8))
    row = {f.name: "x" if pa.types.is_string(f.type) else 1 for f in schemas.GENERATED.fields} | {"error": ""}
    rows = [row | {"generated_id": str(i), "image": {"bytes": encoded, "path": ""}} for i in range(8)]
    for table, some in (("generated", rows), ("rejected", [dict.fromkeys(schemas.REJECTED.schema.names, "x")])):
        output = Dataset(tmp_path / table)
        plan = make_plan(output, pa.table({"row_id": ["x"]}), table=table, content={}, rows_per_shard=1)
        data = pa.Table.from_pylist(some, schema=schemas.TABLES[table].schema)
        output.shard(plan.pending[0]).write_bytes(parquet_bytes(data))
    assert sheet(Dataset(tmp_path / "generated"), 8).shape[:2] == (6 + 2 * 198, 6 + 6 * 166)
    with pytest.raises(UsageError, match="holds no pictures to show"):
        sheet(Dataset(tmp_path / "rejected"), 8)


def show(monkeypatch, capfd, *argv: object) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["show.py", *map(str, argv)])
    monkeypatch.syspath_prepend(str(JOBS))
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(JOBS / "show.py"), run_name="__main__")
    out, err = capfd.readouterr()
    return int(ended.value.code or 0), out, err


def test_the_job_prints_writes_its_sheet_elsewhere_and_leaves_the_datasets_alone(made, tmp_path, monkeypatch, capfd):
    before = state(made)
    code, out, _ = show(monkeypatch, capfd, made)
    assert code == 0
    assert f"\n{made}/distractors\n" in out
    assert f"\n{made}/tuples\n" in out
    picture = tmp_path / "a sheet.png"
    distractors, tuples = made / "distractors", made / "tuples"
    assert show(monkeypatch, capfd, distractors, "--sheet", picture, "--rows", 2, "--tuples", tuples)[0] == 0
    assert decode_rgb(picture.read_bytes()).shape[1] == 6 + 4 * 166
    one = Dataset(distractors).read(["identity_id"])["identity_id"][0].as_py()
    options = ("--sheet", picture, "--tuples", tuples, "--identities")
    assert show(monkeypatch, capfd, distractors, *options, one)[0] == 0
    assert decode_rgb(picture.read_bytes()).shape[0] == 6 + 166 + 32
    code, _, err = show(monkeypatch, capfd, distractors, *options, "toybox:nobody")
    assert code == 2 and "has no distractors of toybox:nobody" in err
    assert show(monkeypatch, capfd, made, "--against", made)[0] == 0
    other = rewritten(tuples, tmp_path / "t", lambda rows: rows[1:])
    code, out, _ = show(monkeypatch, capfd, tuples, "--against", other.location.path)
    assert code == 1
    assert "only_here  " in out
    assert state(made) == before


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("{made}/nothing",), "does not exist"),
        (("{made}/tuples", "--sheet", "{made}/tuples/x.png"), "lies in the dataset"),
        (("{made}", "--sheet", "{made}/x.png"), "a sheet shows one"),
        (("{made}/tuples", "--sheet", "x.jpg"), "expected the name of a .png file"),
        (("{made}/tuples", "--tuples", "{made}/tuples"), "tuples is given without sheet"),
        (("{made}/tuples", "--against", "{made}/distractors"), "expected two datasets of one table"),
        (("{made}", "--against", "{made}/tuples"), "expected the same ones"),
        ((), "DATASET"),
    ],
)
def test_wrong_input_is_one_message_and_writes_nothing(made, monkeypatch, capfd, argv, said):
    before = state(made)
    code, out, err = show(monkeypatch, capfd, *(part.format(made=made) for part in argv))
    assert code == 2
    assert said in " ".join((out + err).replace("│", " ").split())
    assert "Traceback" not in err
    assert state(made) == before
