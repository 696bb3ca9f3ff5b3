"""Mind-the-Glitch as it is published: pairs, their inpainted copies, the oracle, and wrong input."""

import io
import json
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from nearid_ray.data.difference import object_mean_difference
from nearid_ray.data.images import decode_mask, decode_rgb
from nearid_ray.data.importers.mtg import (
    MtgDistractorsImporter,
    MtgDistractorsSettings,
    MtgImporter,
    MtgSettings,
    part_oracle,
)
from nearid_ray.data.ingest import ingest, ingest_task, plan_ingest
from nearid_ray.data.pipeline import RunSettings, run_shard
from nearid_ray.data.plan import store_settings
from nearid_ray.data.rejects import rejected_counts
from nearid_ray.data.store import Dataset, parquet_bytes
from nearid_ray.errors import UsageError
from schemas import TUPLES, validate
from tests.data.published import SIZE_PX, disc, encoded, mtg_dataset, mtg_row, scene

datasets = pytest.importorskip("datasets")


def saved(rows: dict[str, list[dict]], place: Path) -> Path:
    """The splits as `save_to_disk` writes them."""
    datasets.DatasetDict({split: mtg_dataset(found) for split, found in rows.items()}).save_to_disk(place)
    return place


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """Three, two and one pairs in train, validation and test."""
    rows = {"train": [mtg_row(0), mtg_row(1), mtg_row(2)], "validation": [mtg_row(3), mtg_row(4)], "test": [mtg_row(5)]}
    return saved(rows, tmp_path_factory.mktemp("mtg") / "saved")


def tuples_importer(source: Path, **settings) -> MtgImporter:
    return MtgImporter(MtgSettings(source=str(source), **{"size_px": SIZE_PX} | settings))


def distractors_importer(tuples: Dataset, source: Path) -> MtgDistractorsImporter:
    return MtgDistractorsImporter(MtgDistractorsSettings(tuples=tuples.location.uri, source=str(source)))


def ingested(importer, output: Path) -> Dataset:
    """The dataset, made shard by shard as a job makes it, by an importer that went through pickle."""
    dataset = Dataset(output)
    plan = plan_ingest(importer, dataset)
    task = ingest_task(pickle.loads(pickle.dumps(importer)))
    for shard in plan.shard_names:
        run_shard(task, dataset, shard, plan.members(shard))
    assert validate(dataset.arrow()) == []
    return dataset


@pytest.fixture(scope="module")
def tuples(source, tmp_path_factory) -> Dataset:
    return ingested(tuples_importer(source), tmp_path_factory.mktemp("out") / "tuples")


@pytest.fixture(scope="module")
def distractors(source, tuples, tmp_path_factory) -> Dataset:
    return ingested(distractors_importer(tuples, source), tmp_path_factory.mktemp("out") / "distractors")


def pixels(picture: dict) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(picture["bytes"])))


def test_pairs_become_identities_with_two_views_in_the_splits_of_the_source(tuples):
    rows = tuples.read().to_pylist()
    places = ("train-000000", "train-000001", "train-000002", "val-000000", "val-000001", "test-000000")
    assert [row["identity_id"] for row in rows] == [f"mtg:{place}" for place in places]
    assert [row["split"] for row in rows] == ["train"] * 3 + ["val"] * 2 + ["test"]
    assert json.loads(rows[4]["provenance"]) == {"mtg_split": "validation", "mtg_row": 1}
    for number, row in enumerate(rows):
        assert row["error"] == "" and len(row["views"]) == 2
        for image, view in enumerate(row["views"], 1):
            expected = mtg_row(number)
            assert view["mask_source"] == "column"
            assert np.array_equal(pixels(view["image"]), decode_rgb(expected[f"image_{image}_original"]))
            assert np.array_equal(pixels(view["mask"]), decode_mask(expected[f"image_{image}_object_mask"]))
            assert np.array_equal(pixels(view["part_mask"]), decode_mask(expected[f"image_{image}_part_mask"]))


def test_each_distractor_belongs_to_its_own_view_and_carries_the_oracle(tuples, distractors):
    views = {view["view_id"]: view for row in tuples.read().to_pylist() for view in row["views"]}
    rows = distractors.read().to_pylist()
    assert [(row["identity_id"], row["view_index"]) for row in rows] == [
        (identity, index) for identity in tuples.read()["identity_id"].to_pylist() for index in (0, 1)
    ]
    assert {(row["engine"], row["engine_family"]) for row in rows} == {("mtg-inpaint", "mtg")}
    assert {(row["source"], row["verdict"], row["error"]) for row in rows} == {("mtg", "accepted", "")}
    assert len({row["distractor_id"] for row in rows}) == 12
    for number, row in enumerate(rows):
        expected, image = mtg_row(number // 2), row["view_index"] + 1
        view = views[row["view_id"]]
        assert np.array_equal(pixels(row["image"]), decode_rgb(expected[f"image_{image}_inpainted"]))
        assert np.array_equal(pixels(row["mask"]), pixels(view["mask"]))
        assert np.array_equal(pixels(row["part_mask"]), decode_mask(expected[f"image_{image}_part_mask"]))
        part, whole = (decode_mask(expected[f"image_{image}_{kind}_mask"]) for kind in ("part", "object"))
        counted = [sum(1 for value in mask.ravel() if value > 0) for mask in (part, whole)]
        assert row["oracle"] == 1 - counted[0] / counted[1]
        assert row["background_max_difference"] == 0  # the part lies inside the object
        assert row["object_mean_difference"] == pytest.approx(
            object_mean_difference(pixels(view["image"]), pixels(row["image"]), pixels(row["mask"]))
        )
    assert validate(distractors.arrow(), references={"tuples": tuples.arrow()}) == []


def test_distractors_are_cut_by_the_crop_box_of_their_view(tmp_path):
    wide = np.concatenate([scene(1), scene(2), scene(3)], axis=1)
    painted = wide.copy()
    object_HW = np.zeros(wide.shape[:2], np.uint8)
    object_HW[14:34, 100:120] = 255
    part_HW = np.zeros_like(object_HW)
    part_HW[20:28, 104:112] = 255
    painted[part_HW > 0] = (255, 0, 255)
    row = mtg_row(0) | {
        "image_2_original": encoded(wide), "image_2_inpainted": encoded(painted),
        "image_2_object_mask": encoded(object_HW), "image_2_part_mask": encoded(part_HW),
    }  # fmt: skip
    source = saved({"test": [row]}, tmp_path / "source")
    tuples = ingested(tuples_importer(source, splits=("test",), size_px=24), tmp_path / "tuples")
    view = tuples.read().to_pylist()[0]["views"][1]
    left, top, right, bottom = json.loads(view["provenance"])["crop_box"]
    assert right - left == SIZE_PX and left >= 80
    found = ingested(distractors_importer(tuples, source), tmp_path / "distractors").read().to_pylist()[1]
    expected = Image.fromarray(painted).crop((left, top, right, bottom)).resize((24, 24), Image.Resampling.LANCZOS)
    assert np.array_equal(pixels(found["image"]), np.asarray(expected))
    assert pixels(found["part_mask"]).shape == (24, 24) and pixels(found["part_mask"])[12 - top // 2, (108 - left) // 2]
    assert found["oracle"] == 1 - 64 / 400  # on the source's pixels, not on the cut ones


def test_the_oracle_counts_pixels_and_is_not_clamped():
    whole, part = np.zeros((9, 7), np.uint8), np.zeros((9, 7), np.uint8)
    whole[:2, :5] = 1
    part[3:6] = 200
    assert part_oracle(part, whole) == 1 - 21 / 10
    assert part_oracle(whole, whole) == 0
    assert part_oracle(None, whole) is part_oracle(part, None) is None
    assert part_oracle(np.zeros_like(part), whole) is part_oracle(part, np.zeros_like(whole)) is None
    with pytest.raises(ValueError, match="expected one"):
        part_oracle(part, whole[:, :3])


def test_missing_and_empty_masks_give_no_oracle_and_no_error(tmp_path):
    empty = encoded(np.zeros((SIZE_PX, SIZE_PX), np.uint8))
    rows = [mtg_row(i) for i in range(3)]
    rows[0]["image_1_object_mask"] = None
    rows[1]["image_1_object_mask"] = empty
    rows[2] |= {"image_1_part_mask": None, "image_2_part_mask": empty}
    source = saved({"train": rows}, tmp_path / "source")
    tuples = ingested(tuples_importer(source, splits=("train",)), tmp_path / "tuples")
    views = [row["views"] for row in tuples.read().to_pylist()]
    assert [pair[0]["mask_source"] for pair in views] == ["none", "none", "column"]
    assert [view["error"] for pair in views for view in pair] == [""] * 6
    assert views[0][0]["mask"] is views[1][0]["mask"] is views[2][0]["part_mask"] is views[2][1]["part_mask"] is None
    found = ingested(distractors_importer(tuples, source), tmp_path / "distractors").read().to_pylist()
    assert [row["oracle"] is None for row in found] == [True, False, True, False, True, True]
    assert [row["error"] for row in found] == [""] * 6
    bare = found[0]
    assert bare["mask"] is None and bare["background_max_difference"] == -1 and bare["object_mean_difference"] is None
    assert bare["image"] is not None and bare["verdict"] == "accepted"


def test_ray_workers_open_the_source_again_and_make_the_same_rows(source, tuples, distractors, tmp_path, ray_session):
    for importer, made in ((tuples_importer(source), tuples), (distractors_importer(tuples, source), distractors)):
        output = Dataset(tmp_path / importer.source)
        summary = ingest(importer, output, plan_ingest(importer, output), RunSettings(workers=2))
        assert (summary.rows, summary.errors) == (len(made.read()), 0)
        assert output.read().equals(made.read())


def test_a_changed_background_is_measured_and_kept(tmp_path):
    row = mtg_row(0)
    noisy = decode_rgb(row["image_1_inpainted"])
    noisy[2, 3, 1] = (int(noisy[2, 3, 1]) + 7) % 256
    row["image_1_inpainted"] = encoded(noisy)
    row["image_2_inpainted"] = row["image_2_original"]
    source = saved({"train": [row]}, tmp_path / "source")
    tuples = ingested(tuples_importer(source, splits=("train",)), tmp_path / "tuples")
    found = ingested(distractors_importer(tuples, source), tmp_path / "distractors").read().to_pylist()
    assert [row["background_max_difference"] for row in found] == [7, 0]
    assert [row["verdict"] for row in found] == ["accepted", "unchanged"]
    assert [row["error"] for row in found] == ["", ""]


def test_a_missing_or_broken_picture_costs_its_own_rows_alone(tmp_path):
    rows = [mtg_row(i) for i in range(4)]
    rows[0]["image_1_original"] = None
    rows[1]["image_1_inpainted"] = None
    rows[1]["image_2_inpainted"] = rows[1]["image_2_inpainted"][:300]
    rows[2]["image_1_part_mask"] = b"no picture"
    rows[3] = dict.fromkeys(rows[3])
    source = saved({"train": rows}, tmp_path / "source")
    tuples = ingested(tuples_importer(source, splits=("train",)), tmp_path / "tuples")
    assert rejected_counts(tuples) == {"no-pictures": 1}
    views = [row["views"] for row in tuples.read().to_pylist()]
    assert "has no picture here" in views[0][0]["error"] and views[0][1]["error"] == ""
    assert views[2][0]["error"].startswith("image_1_part_mask: not a picture") and views[2][1]["error"] == ""
    distractors = ingested(distractors_importer(tuples, source), tmp_path / "distractors")
    assert rejected_counts(distractors) == {"view-error": 2, "no-picture": 1}
    errors = {(r["identity_id"][-1], r["view_index"]): r["error"] for r in distractors.read().to_pylist()}
    assert errors.pop(("1", 1)).startswith("the PNG picture is broken or cut off")
    assert set(errors) == {("0", 1), ("2", 1)} and set(errors.values()) == {""}


def test_an_inpainted_picture_of_another_shape_is_an_error_and_of_another_size_is_not(tmp_path):
    row = mtg_row(0)
    row["image_1_inpainted"] = encoded(scene(1)[:, :40])
    row["image_2_inpainted"] = encoded(scene(1, 2 * SIZE_PX))
    row["image_2_object_mask"] = encoded(disc(2 * SIZE_PX, 20, (50, 50)))
    row["image_2_part_mask"] = encoded(disc(2 * SIZE_PX, 10, (50, 50)))
    source = saved({"train": [row]}, tmp_path / "source")
    tuples = ingested(tuples_importer(source, splits=("train",)), tmp_path / "tuples")
    first, second = ingested(distractors_importer(tuples, source), tmp_path / "distractors").read().to_pylist()
    assert "has 40 x 48 pixels, the original 48 x 48" in first["error"]
    assert second["error"] == "" and second["size_px"] == SIZE_PX
    assert decode_mask(second["part_mask"]["bytes"]).shape == (SIZE_PX, SIZE_PX)


def subset(tuples: Dataset, keep: list[str], output: Path) -> Dataset:
    """A curated dataset: some identities, in another order, in a shard of another name."""
    by_id = {row["identity_id"]: row for row in tuples.read().to_pylist()}
    dataset = Dataset(output)
    store_settings(dataset, "tuples", {"curated": keep})
    table = pa.Table.from_pylist([by_id[name] for name in keep], schema=TUPLES.schema)
    dataset.shard("000-000007").write_bytes(parquet_bytes(table))
    return dataset


def test_a_curated_subset_finds_its_own_distractors(tuples, source, distractors, tmp_path):
    kept = subset(tuples, ["mtg:test-000000", "mtg:train-000002"], tmp_path / "curated")
    found = ingested(distractors_importer(kept, source), tmp_path / "out").read().to_pylist()
    whole = {row["distractor_id"]: row for row in distractors.read().to_pylist()}
    assert [row["identity_id"] for row in found] == ["mtg:test-000000"] * 2 + ["mtg:train-000002"] * 2
    assert found == [whole[row["distractor_id"]] for row in found]


def test_a_source_whose_rows_moved_is_found_out_by_its_pictures(tuples, tmp_path):
    rows = {"train": [mtg_row(1), mtg_row(0), mtg_row(2)], "validation": [mtg_row(3), mtg_row(4)], "test": [mtg_row(5)]}
    moved = saved(rows, tmp_path / "moved")
    found = ingested(distractors_importer(tuples, moved), tmp_path / "out").read().to_pylist()
    assert ["another original" in row["error"] for row in found] == [True] * 4 + [False] * 8
    short = saved(rows | {"train": [mtg_row(0)]}, tmp_path / "short")
    with pytest.raises(UsageError, match="split train has 1 rows; mtg:train-000001 was read from row 1"):
        distractors_importer(tuples, short).list_records()


def test_tuples_from_elsewhere_have_no_distractors_here(tuples, source, tmp_path):
    rows = [row | {"provenance": "{}"} for row in tuples.read().to_pylist()]
    other = Dataset(tmp_path / "other")
    store_settings(other, "tuples", {})
    other.shard("000-000000").write_bytes(parquet_bytes(pa.Table.from_pylist(rows, schema=TUPLES.schema)))
    with pytest.raises(UsageError, match=r"no view can have a distractor of Mind-the-Glitch \(other-source\)"):
        distractors_importer(other, source).list_records()
    with pytest.raises(UsageError, match="no dataset here"):
        distractors_importer(Dataset(tmp_path / "nowhere"), source).list_records()


def test_files_named_as_the_hub_names_them_give_the_same_rows(source, tuples, tmp_path):
    for split in ("train", "validation", "test"):
        part = datasets.load_from_disk(str(source))[split]
        (tmp_path / "hub" / "data").mkdir(parents=True, exist_ok=True)
        part.to_parquet(tmp_path / "hub" / "data" / f"{split}-00000-of-00001.parquet")
    found = ingested(tuples_importer(tmp_path / "hub"), tmp_path / "out")
    assert found.read().equals(tuples.read())


def test_a_source_without_splits_must_be_told_which_one_it_is(tmp_path):
    mtg_dataset([mtg_row(0)]).to_parquet(tmp_path / "rows.parquet")
    with pytest.raises(UsageError, match="has no splits: it gives the same rows for train and validation and test"):
        tuples_importer(tmp_path / "rows.parquet").list_records()
    records, _ = tuples_importer(tmp_path / "rows.parquet", splits=("test",)).list_records()
    assert [record["identity_id"] for record in records] == ["mtg:test-000000"]


def test_missing_columns_and_splits_are_refused(source, tmp_path):
    mtg_dataset([mtg_row(0)]).remove_columns("image_2_part_mask").to_parquet(tmp_path / "rows.parquet")
    with pytest.raises(UsageError, match="has no column image_2_part_mask"):
        tuples_importer(tmp_path / "rows.parquet", splits=("test",)).list_records()
    saved({"train": [mtg_row(0)]}, tmp_path / "train only")
    with pytest.raises(UsageError, match="has no split 'validation'; found the splits: train"):
        tuples_importer(tmp_path / "train only").list_records()


def test_wrong_settings_are_refused_with_what_was_expected():
    for wrong, words in (
        ({"source": ""}, "source is empty"),
        ({"splits": ("val",)}, "expected some of train, validation, test"),
        ({"splits": ()}, "expected some of"),
        ({"splits": ("test", "test")}, "each once"),
        ({"size_px": 8}, "size_px is 8"),
        ({"source_name": "M T G"}, "source_name"),
    ):
        with pytest.raises(ValueError, match=words):
            MtgSettings(**wrong)
    with pytest.raises(ValueError, match="tuples is empty"):
        MtgDistractorsSettings(tuples="")
