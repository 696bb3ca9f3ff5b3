"""Tables of pictures in any form: named columns become tuples, wrong names and contradictions are refused in words."""

import json
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nearid_ray.data.images import cut_rgb, decode_rgb
from nearid_ray.data.importers.table import TableImporter, TableSettings
from nearid_ray.data.ingest import ingest_task, plan_ingest
from nearid_ray.data.masking import MaskSettings
from nearid_ray.data.pipeline import run_shard
from nearid_ray.data.rejects import rejected_counts
from nearid_ray.data.store import Dataset
from nearid_ray.errors import UsageError
from schemas import validate
from tests.data.published import disc, encoded, put, scene

WIDE = {"identity": "name", "images": ("front", "back"), "masks": ("front_mask", "back_mask"), "category": "kind"}
LONG = {"identity": "object", "image": "file", "mask": "outline"}


def importer(source: object, **settings) -> TableImporter:
    masking = MaskSettings(mask_method=settings.pop("mask_method", "none"))
    return TableImporter(TableSettings(source=str(source), masking=masking, **{"size_px": 24} | settings))


def ingested(source: object, output: Path, **settings) -> list[dict]:
    made, place = importer(source, **settings), Dataset(output)
    plan = plan_ingest(made, place)
    task = pickle.loads(pickle.dumps(ingest_task(made)))
    task.setup()
    for shard in plan.pending:
        run_shard(task, place, shard, plan.members(shard))
    assert validate(place.read()) == []
    return place.read().to_pylist()


def refusal(source: object, **settings) -> str:
    with pytest.raises(UsageError) as caught:
        importer(source, **settings).list_records()
    return str(caught.value)


def wide(**changes) -> pa.Table:
    """Three objects with two pictures each as plain bytes and masks as structs; the last has one picture alone."""
    masks = [{"bytes": encoded(disc()), "path": "m.png"}] * 3
    columns = {
        "name": ["mug ü", "007", "car"],
        "kind": ["mug", None, "car"],
        "text": ["a red mug", "", "a car"],
        "part": ["train", "validation", "Test"],
        "front": pa.array([encoded(scene(row)) for row in range(3)], pa.large_binary()),
        "back": [encoded(scene(10)), encoded(scene(11), "JPEG"), None],
        "front_mask": masks,
        "back_mask": [masks[0], None, None],
        "number": [1, 2, 3],
    }
    return pa.table({name: values for name, values in (columns | changes).items() if values is not None})


@pytest.fixture
def wide_file(tmp_path: Path) -> Path:
    pq.write_table(wide(), tmp_path / "wide.parquet")
    return tmp_path / "wide.parquet"


@pytest.fixture
def long_file(tmp_path: Path) -> Path:
    """A CSV with one row a picture: 7 has two, in rows apart; mug has three, of which one has a mask."""
    lines = ["object,file,outline,where,kind,what"]
    for row, (name, mask) in enumerate((("7", ""), ("mug", "masks/m.png"), ("mug", ""), ("7", ""), ("mug", ""))):
        put(tmp_path / "pictures ü" / f"{row}.png", encoded(scene(row)))
        lines.append(f"{name},pictures ü/{row}.png,{mask},row {row},{'rigid' if name == '7' else ''},kind {name}")
    put(tmp_path / "masks" / "m.png", encoded(disc()))
    return put(tmp_path / "long.csv", "\n".join(lines))


def test_a_wide_table_of_bytes_becomes_tuples(wide_file, tmp_path):
    rows = ingested(wide_file, tmp_path / "out", **WIDE, description="text", split_column="part", min_views=1)
    assert [(r["identity_id"], r["category"], r["description"], r["split"], len(r["views"])) for r in rows] == [
        ("table:mug ü", "mug", "a red mug", "train", 2),
        ("table:007", "", "", "val", 2),
        ("table:car", "car", "a car", "test", 1),
    ]
    assert [[view["mask_source"] for view in row["views"]] for row in rows] == [
        ["column", "column"], ["column", "none"], ["column"],
    ]  # fmt: skip
    view = rows[1]["views"][0]
    provenance = json.loads(view["provenance"])
    assert (provenance["row"], provenance["column"]) == (1, "front")
    expected = cut_rgb(scene(1), tuple(provenance["crop_box"]), 24)
    assert np.array_equal(decode_rgb(view["image"]["bytes"]), expected)


def test_identities_with_too_few_pictures_are_left_out_and_counted(wide_file, tmp_path):
    assert len(ingested(wide_file, tmp_path / "out", **WIDE)) == 2
    assert rejected_counts(Dataset(tmp_path / "out")) == {"too-few-views": 1}
    assert "none of the 3 identity(ies) has 3 pictures" in refusal(wide_file, **WIDE, min_views=3)


def test_rows_are_named_by_their_number_where_no_column_names_them(wide_file):
    records, _ = importer(wide_file, images=("back", "front"), source_name="mine").list_records()
    assert [(record["identity_id"], record["views"]) for record in records] == [
        ("mine:0", [[0, 0], [0, 1]]),
        ("mine:1", [[1, 0], [1, 1]]),
    ]


def test_a_long_csv_of_paths_gathers_the_pictures_of_each_identity(long_file, tmp_path):
    rows = ingested(long_file, tmp_path / "out", **LONG, prompts=("where",), category="what", object_kind="kind")
    assert [(row["identity_id"], row["category"], row["object_kind"], row["split"]) for row in rows] == [
        ("table:7", "kind 7", "rigid", "test"),
        ("table:mug", "kind mug", "", "test"),
    ]
    assert [[view["prompt"] for view in row["views"]] for row in rows] == [["row 0", "row 3"],
                                                                           ["row 1", "row 2", "row 4"]]  # fmt: skip
    assert [view["mask_source"] for view in rows[1]["views"]] == ["file", "none", "none"]
    provenance = json.loads(rows[0]["views"][1]["provenance"])
    assert provenance["file"] == "pictures ü/3.png"
    assert np.array_equal(
        decode_rgb(rows[0]["views"][1]["image"]["bytes"]), cut_rgb(scene(3), tuple(provenance["crop_box"]), 24)
    )


def test_paths_may_be_relative_to_another_folder_and_lead_nowhere_else(long_file, tmp_path):
    moved = put(tmp_path / "tables" / "t.csv", long_file.read_bytes() + b"\n7,../secret.png,,,rigid,kind 7\n")
    put(tmp_path.parent / "secret.png", encoded(scene(1)))
    rows = ingested(moved, tmp_path / "out", **LONG, files=str(tmp_path))
    assert [view["error"][:25] for view in rows[0]["views"]] == ["", "", "../secret.png lies outsid"]
    assert {view["error"] for view in rows[1]["views"]} == {""}
    rows = ingested(moved, tmp_path / "out2", **LONG)
    assert all(f"is not in {tmp_path}/tables" in view["error"] for view in rows[1]["views"])


def test_wrong_names_are_refused_with_the_columns_there_are(wide_file, long_file):
    listed = "found the columns: name, kind, text, part, front, back, front_mask, back_mask, number"
    assert f"has no column side; {listed}" in refusal(wide_file, images=("front", "side"))
    assert f"has no column title, Kind; {listed}" in refusal(
        wide_file, images=("front",), identity="title", category="Kind"
    )
    assert "say which columns of" in refusal(wide_file) and listed in refusal(wide_file)
    assert "column(s) number (int64) hold neither pictures nor paths" in refusal(wide_file, images=("front", "number"))
    assert "has no column picture; found the columns: object, file" in refusal(
        long_file, identity="object", image="picture"
    )


def test_tables_that_contradict_themselves_are_refused_with_names(tmp_path, long_file):
    def table(**changes) -> Path:
        pq.write_table(wide(**changes), tmp_path / "t.parquet")
        return tmp_path / "t.parquet"

    said = refusal(table(name=["a", "b", "a"]), **WIDE)
    assert "1 name(s) stand in name more than once: a; give image instead of images" in said
    assert "2 row(s) have no name: 1, 2" in refusal(table(name=["a", None, " "]), **WIDE)
    assert "cannot be printed: 'a\\nb'" in refusal(table(name=["a\nb", "b", "c"]), **WIDE)
    said = refusal(table(part=["train", "dev", None]), **WIDE, split_column="part")
    assert "part holds '', 'dev'; expected train, val, validation" in said
    assert "text holds a car, a red mug; expected rigid or deformable" in refusal(table(), **WIDE, object_kind="text")
    text = long_file.read_text().replace("kind 7", "kind 8", 1)
    said = refusal(put(tmp_path / "c.csv", text), **LONG, category="what")
    assert "rows of 1 identity(ies) contradict each other: 7 (category: kind 8, kind 7)" in said
    pq.write_table(wide().slice(0, 0), tmp_path / "t.parquet")
    assert "has no rows" in refusal(tmp_path / "t.parquet", **WIDE)


def test_an_unreadable_picture_costs_its_view_alone(tmp_path):
    pq.write_table(wide(back=[b"?", b"", encoded(scene(1))[:50]]), tmp_path / "t.parquet")
    rows = ingested(tmp_path / "t.parquet", tmp_path / "out", **WIDE)
    errors = [[view["error"] for view in row["views"]] for row in rows]
    assert [first for first, _ in errors] == ["", "", ""]
    for (_, second), words in zip(errors, ("not a picture", "0 bytes", "cut off"), strict=True):
        assert words in second


def test_wrong_settings_are_refused_with_what_was_expected():
    for wrong, words in (
        ({"source": ""}, "source is empty"),
        ({"image": "a", "images": ("b",), "identity": "c"}, "image and images are both given"),
        ({"image": "a"}, "image is given without identity"),
        ({"images": ("a", "b"), "masks": ("m",)}, "masks names 1 column\\(s\\), images 2"),
        ({"images": ("a",), "mask": "m"}, "mask goes with image"),
        ({"images": ("a", "b"), "prompts": ("p",)}, "prompts names 1 column\\(s\\), the views have 2"),
        ({"images": ("a", "a")}, "images names a more than once"),
        ({"split": "all"}, "split is 'all'"),
        ({"min_views": 0}, "min_views is 0"),
        ({"size_px": 1}, "size_px is 1"),
        ({"source_name": "A b"}, "source_name"),
    ):
        with pytest.raises(ValueError, match=words):
            TableSettings(**{"source": "x"} | wrong)
