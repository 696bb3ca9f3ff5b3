"""NearID's positives in the published layout: what becomes of them, and what wrong tables and index files cost."""

import json
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nearid_ray.data.images import cut_rgb, decode_mask, decode_rgb
from nearid_ray.data.importers.nearid import NearidImporter, NearidSettings
from nearid_ray.data.ingest import ingest_task, plan_ingest
from nearid_ray.data.masking import MaskSettings
from nearid_ray.data.pipeline import run_shard
from nearid_ray.data.rejects import rejected_counts
from nearid_ray.data.store import Dataset
from nearid_ray.errors import UsageError
from schemas import TUPLES, validate
from tests.data.published import encoded
from tests.data.published_nearid import GAPS, as_parquet, index_file, mask_of, positives, view_of

pytest.importorskip("datasets")


@pytest.fixture
def published(tmp_path: Path) -> Path:
    return as_parquet(positives(), tmp_path / "NearID")


def importer(source: Path, **settings) -> NearidImporter:
    masking = MaskSettings(mask_method=settings.pop("mask_method", "none"))
    return NearidImporter(NearidSettings(source=str(source), masking=masking, **{"size_px": 32} | settings))


def refusal(source: Path, **settings) -> str:
    with pytest.raises(UsageError) as caught:
        importer(source, **settings).list_records()
    return str(caught.value)


def ingested(source: Path, output: Path, **settings) -> list[dict]:
    """The rows of the whole importer, made without Ray."""
    made, place = importer(source, **settings), Dataset(output)
    plan = plan_ingest(made, place)
    task = pickle.loads(pickle.dumps(ingest_task(made)))  # as it reaches the workers
    task.setup()
    for shard in plan.pending:
        run_shard(task, place, shard, plan.members(shard))
    assert validate(place.read()) == []
    return place.read().to_pylist()


@pytest.mark.parametrize("spelling", ["img", "images"])
@pytest.mark.parametrize("form", ["parquet", "saved"])
def test_both_spellings_become_tuples_with_slots_and_row_numbers(tmp_path, spelling, form):
    table = positives(spelling=spelling)
    if form == "saved":
        table.save_to_disk(tmp_path / "in")
    else:
        as_parquet(table, tmp_path / "in")
    rows = ingested(tmp_path / "in", tmp_path / "out")
    assert [row["identity_id"] for row in rows] == [f"nearid:{1000 + 7 * row}" for row in range(6)]
    for number, row in enumerate(rows):
        slots = [slot for slot in (1, 2, 3) if (number, slot) not in GAPS]
        assert [json.loads(view["provenance"])["slot"] for view in row["views"]] == slots
        assert [view["prompt"] for view in row["views"]] == [f"prompt {number} {slot}" for slot in slots]
        provenance = json.loads(row["provenance"])
        assert provenance == {
            "table": str(tmp_path / "in"), "row": number, "rows": 6, "id": 1000 + 7 * number, "quality": 0.5 + number,
        }  # fmt: skip
        assert (row["category"], row["description"]) == ("mug" if number % 2 else "toy car", f"thing number {number}")
        assert (row["object_kind"], row["objaverse_id"], row["split"], row["error"]) == (
            "rigid", f"asset-{number}", "train", "",
        )  # fmt: skip
        for slot, view in zip(slots, row["views"], strict=True):
            crop = tuple(json.loads(view["provenance"])["crop_box"])
            expected = cut_rgb(view_of(number, slot), crop, 32)
            assert np.array_equal(decode_rgb(view["image"]["bytes"]), expected)
            assert (view["source_width_px"], view["source_height_px"], view["mask_source"]) == (56, 48, "column")
            mask_HW = decode_mask(view["mask"]["bytes"])
            assert mask_HW.mean() / 255 == pytest.approx(mask_of(number, slot).sum() / 255 / 48**2, abs=0.03)


def test_without_masks_in_the_table_the_masker_finds_them_or_leaves_none(tmp_path):
    as_parquet(positives(2, masks=False), tmp_path / "in")
    views = [view for row in ingested(tmp_path / "in", tmp_path / "none") for view in row["views"]]
    assert {(view["mask_source"], view["mask"]) for view in views} == {("none", None)}
    views = ingested(tmp_path / "in", tmp_path / "cut", mask_method="grabcut", size_px=48)[0]["views"]
    assert [view["mask_source"] for view in views] == ["grabcut"] * 3


def test_a_single_missing_mask_is_found_and_the_others_kept(tmp_path):
    table = positives(2)
    masks = table.with_format("arrow")[:]["masks1"].to_pylist()
    as_parquet(positives(2, masks1=[None, masks[1]]), tmp_path / "in")
    rows = ingested(tmp_path / "in", tmp_path / "out", mask_method="grabcut")
    assert [[view["mask_source"] for view in row["views"]] for row in rows] == [
        ["grabcut", "column", "column"],
        ["column", "column"],
    ]


def test_columns_besides_the_pictures_are_optional(tmp_path):
    gone = dict.fromkeys(("id", "category", "category_description", "n_images", "objaverse_id", "quality"))
    as_parquet(positives(2, **gone, prompts1=None, prompts2=None, prompts3=None), tmp_path / "in")
    rows = ingested(tmp_path / "in", tmp_path / "out")
    assert [row["identity_id"] for row in rows] == ["nearid:0", "nearid:1"]
    assert {row["category"] + row["description"] + row["object_kind"] for row in rows} == {""}


def test_index_files_give_the_splits_and_rows_in_none_are_counted(published, tmp_path):
    train, val = index_file(tmp_path / "train.json", [4, 0]), index_file(tmp_path / "val.json", {"indices": [2]})
    test = index_file(tmp_path / "test.json", [])
    rows = ingested(published, tmp_path / "out", train_index=str(train), val_index=str(val), test_index=str(test))
    splits = {json.loads(row["provenance"])["row"]: row["split"] for row in rows}
    assert splits == {0: "train", 4: "train", 2: "val"}
    assert rejected_counts(Dataset(tmp_path / "out")) == {"in-no-index": 3}


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([0, 1, 1, 3, 3], "2 row number(s) stand there more than once: 1, 3"),
        ([0, 6, -1], "2 row number(s) out of range: 6, -1; the table has 6 rows, expected 0 to 5"),
        ([0, 1.0, "2", True, None], "4 entry(ies) are no row number: 1.0, '2', True, None"),
        ({"rows": [1]}, "holds dict with the keys rows; expected a list of row numbers"),
        (7, "holds int; expected a list"),
        ("[0, 1", "cannot be read as JSON"),
        ("", "cannot be read as JSON"),
        ([[[0]]], "1 entry(ies) are no row number: [[0]]"),
    ],
)
def test_wrong_index_files_are_refused_with_the_numbers(published, tmp_path, value, words):
    file = index_file(tmp_path / "ü x.json", value)
    said = refusal(published, val_index=str(file))
    assert words in said and str(file) in said


def test_rows_of_two_splits_and_missing_or_empty_index_files_are_refused(published, tmp_path):
    train, test = index_file(tmp_path / "train.json", [0, 1, 2]), index_file(tmp_path / "test.json", [2, 3, 1])
    said = refusal(published, train_index=str(train), test_index=str(test))
    assert "test.json: 2 row(s) of test are in train too: 2, 1" in said
    assert "does not exist" in refusal(published, train_index=str(tmp_path / "none.json"))
    assert "name no row" in refusal(published, train_index=str(index_file(tmp_path / "e.json", [])))


def test_ids_must_be_there_once(tmp_path):
    as_parquet(positives(4, id=[1, 2, 1, 2]), tmp_path / "double")
    assert "2 id(s) stand there more than once: 1, 2" in refusal(tmp_path / "double")
    as_parquet(positives(3, id=[1, None, 2]), tmp_path / "missing")
    assert "1 row(s) have no id: 1" in refusal(tmp_path / "missing")


def test_tables_that_are_not_nearids_are_refused_with_their_columns(tmp_path, published):
    as_parquet(positives(2, spelling="picture"), tmp_path / "a")
    assert "has no column img1 or images1; found the columns: id, category" in refusal(tmp_path / "a")
    as_parquet(positives(2, img2=None), tmp_path / "b")
    assert "has no column img2; found the columns" in refusal(tmp_path / "b")
    as_parquet(positives(2).add_column("images1", ["x", "y"]), tmp_path / "c")
    assert "columns named img1 and images1; expected one of them" in refusal(tmp_path / "c")
    as_parquet(positives(2).remove_columns("img1").add_column("img1", ["x", "y"]), tmp_path / "d")
    assert "column(s) img1 (string) hold no pictures" in refusal(tmp_path / "d")
    as_parquet(positives(2).remove_columns("masks2").add_column("masks2", ["x", "y"]), tmp_path / "e")
    assert "column(s) masks2 hold no pictures; expected masks" in refusal(tmp_path / "e")
    positives(1).select([]).to_parquet(tmp_path / "empty.parquet")
    assert "has no rows" in refusal(tmp_path / "empty.parquet")
    assert "found the splits: train" in refusal(published, source_split="test")


def test_a_wrong_number_of_pictures_and_an_identity_without_any_are_errors_of_their_rows(tmp_path):
    none = [None] * 3
    table = positives(3, n_images=[3, 3, 0], **{f"img{s}": _pictures(3, s)[:2] + none[:1] for s in (1, 2, 3)})
    as_parquet(table, tmp_path / "in")
    rows = ingested(tmp_path / "in", tmp_path / "out")
    assert [row["error"] for row in rows] == [
        "",
        "n_images is 3, but 2 picture(s) are there",
        "none of img1, img2, img3 holds a picture",
    ]
    assert [len(row["views"]) for row in rows] == [3, 2, 0]


def test_a_broken_picture_or_mask_costs_its_view_alone(tmp_path):
    broken = {"bytes": encoded(view_of(0, 2))[:200], "path": None}
    small = {"bytes": encoded(np.full((8, 8), 255, np.uint8)), "path": None}
    gone = {"bytes": None, "path": "nowhere.png"}
    table = positives(2, img2=[broken, _pictures(2, 2)[1]], masks1=[small, None], img3=[gone, None])
    as_parquet(table, tmp_path / "in")
    first, second = ingested(tmp_path / "in", tmp_path / "out")
    errors = [view["error"] for view in first["views"]]
    assert "masks1 has 8 x 8 pixels" in errors[0] and "broken or cut off" in errors[1]
    assert "nowhere.png is not in" in errors[2]
    assert first["error"].startswith("3 of 3 views: ") and second["error"] == ""


def test_a_damaged_row_group_costs_its_own_identities(published, tmp_path):
    file = published / "data" / "train-00000-of-00001.parquet"
    group = pq.ParquetFile(file).metadata.row_group(1)
    chunk = next(c for c in map(group.column, range(group.num_columns)) if c.path_in_schema == "img2.bytes")
    data = bytearray(file.read_bytes())
    first = chunk.dictionary_page_offset or chunk.data_page_offset
    data[first : first + chunk.total_compressed_size] = bytes(chunk.total_compressed_size)
    file.write_bytes(data)
    rows = ingested(published, tmp_path / "out")
    assert [row["error"] != "" for row in rows] == [False, False, True, True, False, False]
    assert all("row group 1 cannot be read, the file is damaged" in row["error"] for row in rows[2:4])


def test_another_table_or_other_splits_in_the_same_output_are_refused(published, tmp_path):
    train = index_file(tmp_path / "train.json", [0, 1])
    ingested(published, tmp_path / "out", train_index=str(train))
    more = index_file(tmp_path / "more.json", [0, 1, 5])
    assert len(ingested(published, tmp_path / "out", train_index=str(more))) == 3  # rows are added
    with pytest.raises(UsageError, match="were read from other files or settings"):
        ingested(published, tmp_path / "out", test_index=str(index_file(tmp_path / "test.json", [0])))
    positives(5).to_parquet(published / "data" / "train-00000-of-00001.parquet")
    with pytest.raises(UsageError, match="table_fingerprint"):
        ingested(published, tmp_path / "out", train_index=str(train))


def test_wrong_settings_are_refused_with_what_was_expected():
    for wrong, words in (
        ({"source": ""}, "source is empty"),
        ({"source_split": ""}, "source_split is empty"),
        ({"size_px": 8}, "size_px is 8"),
        ({"split": "all"}, "split is 'all'"),
        ({"source_name": "Near ID"}, "source_name"),
    ):
        with pytest.raises(ValueError, match=words):
            NearidSettings(**wrong)


def test_rows_keep_the_contract(published, tmp_path):
    rows = ingested(published, tmp_path / "out")
    assert validate(pa.Table.from_pylist(rows, schema=TUPLES.schema)) == []


def _pictures(rows: int, slot: int) -> list:
    return positives(rows).with_format("arrow")[:][f"img{slot}"].to_pylist()
