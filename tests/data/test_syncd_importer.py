"""SynCD as it is published: what is listed, what becomes of masks and scores, and what wrong input costs."""

import json
import os
import unicodedata
from pathlib import Path

import cv2
import numpy as np
import pytest

from nearid_ray.data.images import decode_mask, decode_rgb
from nearid_ray.data.importers.syncd import SyncdImporter, SyncdSettings
from nearid_ray.data.importers.syncd_metadata import common_description, deformable_category
from nearid_ray.data.ingest import ingest_task, plan_ingest
from nearid_ray.data.masking import MaskSettings
from nearid_ray.data.masks import dilate_mask, rendered_mask
from nearid_ray.data.pipeline import run_shard
from nearid_ray.data.store import Dataset
from nearid_ray.errors import UsageError
from schemas import validate
from tests.data.published import SIZE_PX, disc, encoded, put, rendered, scene, syncd_record, write_syncd


def importer(root: Path, **settings) -> SyncdImporter:
    options = {"size_px": 32, "masking": MaskSettings(mask_method="none")} | settings
    return SyncdImporter(SyncdSettings(root=str(root), **options))


def rows_of(it: SyncdImporter, output: Path) -> dict[str, dict]:
    """All rows, by identity, made shard by shard as a job makes them."""
    dataset = Dataset(output)
    plan = plan_ingest(it, dataset)
    for shard in plan.shard_names:
        run_shard(ingest_task(it), dataset, shard, plan.members(shard))
    assert validate(dataset.arrow()) == []
    return {row["identity_id"]: row for row in dataset.read().to_pylist()}


def refusal(root: Path, **settings) -> str:
    with pytest.raises(UsageError) as caught:
        importer(root, **settings).list_records()
    return str(caught.value)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A rigid object with scores and three views, one without and two views, and a deformable one."""
    records = [
        syncd_record("0_0", scores=True),
        syncd_record("1_0", views=2),
        syncd_record("guinea pig_0_12_0", kind="deformable"),
    ]
    return write_syncd(tmp_path / "syncd with space", records)


def test_a_published_folder_becomes_rows_of_the_contract(root, tmp_path):
    it = importer(root)
    rows = rows_of(it, tmp_path / "out")
    assert list(rows) == ["syncd:0_0_0", "syncd:1_0_0", "syncd:guinea pig_0_12_0_0"]
    rigid, pair, deformable = rows.values()
    assert [row["error"] for row in rows.values()] == ["", "", ""]
    assert [len(row["views"]) for row in rows.values()] == [3, 2, 3]
    assert [row["object_kind"] for row in rows.values()] == ["rigid", "rigid", "deformable"]
    assert [row["objaverse_id"] for row in rows.values()] == ["asset0_0", "asset1_0", ""]
    assert [row["category"] for row in rows.values()] == ["", "", "guinea pig"]
    assert {row["split"] for row in rows.values()} == {"train"} and {row["source"] for row in rows.values()} == {
        "syncd"
    }
    assert [view["prompt"] for view in rigid["views"]] == syncd_record("0_0")["prompts"]
    assert [view["mask_source"] for view in rigid["views"] + deformable["views"]] == ["rendered"] * 3 + ["file"] * 3
    assert json.loads(pair["views"][1]["provenance"])["original_file"] == "renders/asset1_0/00001.png"
    assert json.loads(pair["views"][1]["provenance"])["mask_file"] == "masks/1_0_1.jpg"
    assert it.facts() == {
        "rigid": 2, "deformable": 1, "views": 8, "missing_pictures": 0, "views_without_mask_file": 0,
    }  # fmt: skip


def test_scores_are_kept_where_curation_looks_for_them(root, tmp_path):
    rows = rows_of(importer(root), tmp_path / "out")
    scored = rows["syncd:0_0_0"]
    assert [json.loads(view["provenance"])["aesthetics"] for view in scored["views"]] == [5.5, 6.5, 7.5]
    assert json.loads(scored["provenance"])["dino_scores"] == syncd_record("0_0", scores=True)["dino_scores"]
    bare = rows["syncd:1_0_0"]
    assert "dino_scores" not in json.loads(bare["provenance"])
    assert not any("aesthetics" in json.loads(view["provenance"]) for view in bare["views"])


def test_the_rendered_mask_is_the_object_without_noise_holes_and_specks():
    object_HW = disc(128, 40, (66, 60))
    drawn = rendered(object_HW)
    drawn[10:14, 110:114] = 200  # a speck that closing and opening may keep: it is a piece of its own
    noisy = decode_rgb(encoded(drawn, "JPEG", quality=60))
    assert ((noisy.max(axis=2) > 0) & (object_HW == 0)).sum() > 300  # what taking every non-zero pixel would add
    found = rendered_mask(noisy)
    assert set(np.unique(found)) == {0, 255}
    assert not (dilate_mask(object_HW, 4) < found).any() and not (found < object_HW).any()
    assert cv2.connectedComponents(found)[0] == 2
    assert found[62:65, 60:68].all()  # the dark stripe inside belongs to the object


def test_the_rendered_mask_agrees_with_explicit_loops():
    rng = np.random.default_rng(5)
    image_HW3 = np.zeros((24, 20, 3), np.uint8)
    image_HW3[4:18, 5:15] = rng.integers(40, 200, (14, 10, 3))
    image_HW3[0:3, 17:20] = 255
    assert np.array_equal(rendered_mask(image_HW3), slow_rendered_mask(image_HW3))
    grey_HW = cv2.cvtColor(image_HW3, cv2.COLOR_RGB2GRAY)
    assert np.array_equal(rendered_mask(grey_HW), rendered_mask(image_HW3))
    assert not rendered_mask(np.full((20, 20, 3), 9, np.uint8)).any()


def slow_rendered_mask(image_HW3: np.ndarray) -> np.ndarray:
    """Blur, threshold, close, open and fill the largest piece, pixel by pixel."""
    grey = np.rint(image_HW3 @ np.array([0.299, 0.587, 0.114]))
    height, width = grey.shape
    weights = np.outer([1, 4, 6, 4, 1], [1, 4, 6, 4, 1]) / 256

    def around(values, y, x, outside):
        for dy in range(-2, 3):
            for dx in range(-2, 3):
                inside = 0 <= y + dy < height and 0 <= x + dx < width
                yield dy, dx, values[y + dy, x + dx] if inside else outside

    bright = np.zeros((height, width), bool)
    mirrored = np.pad(grey, 2, mode="reflect")
    for y in range(height):
        for x in range(width):
            total = sum(weights[i, j] * mirrored[y + i, x + j] for i in range(5) for j in range(5))
            bright[y, x] = round(total) > 10

    def pass_over(values, pick, outside):
        picked = [[pick(v for _, _, v in around(values, y, x, outside)) for x in range(width)] for y in range(height)]
        return np.array(picked)

    closed = pass_over(pass_over(bright, any, False), all, True)
    opened = pass_over(pass_over(closed, all, True), any, False)
    pieces: list[set[tuple[int, int]]] = []
    left = {(y, x) for y in range(height) for x in range(width) if opened[y, x]}
    while left:
        piece, edge = set(), [left.pop()]
        while edge:
            y, x = edge.pop()
            piece.add((y, x))
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= near
            edge += near
        pieces.append(piece)
    largest = max(pieces, key=len)
    outside, edge = set(), [(y, x) for y in range(-1, height + 1) for x in (-1, width)]
    while edge:
        y, x = edge.pop()
        outside.add((y, x))
        for near in ((y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)):
            room = -1 <= near[0] <= height and -1 <= near[1] <= width
            if room and near not in largest and near not in outside:
                edge.append(near)
    return np.array([[0 if (y, x) in outside else 255 for x in range(width)] for y in range(height)], np.uint8)


def test_masks_of_deformable_objects_are_taken_as_they_are_and_brought_to_the_pictures_size(root, tmp_path):
    def area(output, **settings):
        row = rows_of(importer(root, **settings), tmp_path / output)["syncd:guinea pig_0_12_0_0"]
        assert decode_mask(row["views"][0]["mask"]["bytes"]).shape == (32, 32)
        return row["views"][0]["mask_area"]

    assert 0.3 < area("half", mask_above=127) < area("all") < 1


def test_pictures_without_a_mask_file_follow_the_mask_settings(root, tmp_path):
    os.remove(root / "masks" / "1_0_1.jpg")
    it = importer(root)
    views = rows_of(it, tmp_path / "out")["syncd:1_0_0"]["views"]
    assert [view["mask_source"] for view in views] == ["rendered", "none"]
    assert [view["error"] for view in views] == ["", ""]
    assert it.facts()["views_without_mask_file"] == 1


def test_a_missing_or_broken_file_costs_its_view_alone_and_is_named(root, tmp_path):
    os.remove(root / "0_0_1.jpg")
    put(root / "0_0_2.jpg", b"")
    put(root / "masks" / "1_0_0.jpg", encoded(scene(1), "JPEG")[:700])
    put(root / "masks" / "1_0_1.jpg", encoded(np.zeros((SIZE_PX, SIZE_PX), np.uint8), "JPEG"))
    put(root / "masks" / "guinea pig_0_12_0_1.jpg", encoded(disc(40, 9, (20, 20))[:20], "JPEG"))
    it = importer(root)
    rows = rows_of(it, tmp_path / "out")
    errors = {row["identity_id"]: [view["error"] for view in row["views"]] for row in rows.values()}
    assert errors["syncd:0_0_0"][0] == ""
    assert errors["syncd:0_0_0"][1] == "the metadata names 0_0_1.jpg, and there is no such file"
    assert "empty (0 bytes)" in errors["syncd:0_0_0"][2]
    assert errors["syncd:1_0_0"][0].startswith("mask masks/1_0_0.jpg: the JPEG picture is broken or cut off")
    assert "the mask is empty" in errors["syncd:1_0_0"][1]
    assert errors["syncd:guinea pig_0_12_0_0"][0] == errors["syncd:guinea pig_0_12_0_0"][2] == ""
    assert "has 40 x 20 pixels, the upright picture has 48 x 48" in errors["syncd:guinea pig_0_12_0_0"][1]
    assert it.facts()["missing_pictures"] == 1


def test_what_cannot_be_read_at_all_is_rejected_with_its_reason(root):
    for place in range(2):
        os.remove(root / f"1_0_{place}.jpg")
    put(root / "stray.jpg", encoded(scene(1), "JPEG"))
    records, rejected = importer(root, kind="rigid").list_records()
    assert [record["identity_id"] for record in records] == ["syncd:0_0_0"]
    assert {(r["record_id"], r["reason"]) for r in rejected} == {
        ("syncd:1_0_0", "no-pictures"),
        ("syncd:guinea pig_0_12_0_0", "other-kind"),
        ("stray.jpg", "picture-without-record"),
    }
    detail = next(r["detail"] for r in rejected if r["reason"] == "no-pictures")
    assert detail == "metadata.json, record 2: no 1_0_0.jpg, no 1_0_1.jpg"


def test_a_record_with_and_without_scores_is_one_and_the_scores_win(root):
    put(root / "metadata_with_scores.json", json.dumps([syncd_record("1_0", views=2, scores=True)]))
    records, rejected = importer(root).list_records()
    assert len(records) == 3 and rejected == []
    by_id = {record["identity_id"]: record for record in records}
    assert by_id["syncd:1_0_0"]["aesthetics"] == (5.5, 6.5)
    assert by_id["syncd:1_0_0"]["provenance"]["metadata"] == "metadata_with_scores.json"


def test_the_same_objaverse_id_may_occur_twice(tmp_path):
    root = write_syncd(tmp_path, [syncd_record(stem, objaverse_id="asset") for stem in ("0_0", "1_0")])
    records, _ = importer(root).list_records()
    assert [record["identity_id"] for record in records] == ["syncd:0_0_0", "syncd:1_0_0"]
    assert [record["objaverse_id"] for record in records] == ["asset", "asset"]


def test_folders_side_by_side_are_told_apart(tmp_path):
    write_syncd(tmp_path / "rigid", [syncd_record("0_0")])
    write_syncd(tmp_path / "weich ö", [syncd_record("0_0", kind="deformable")])
    rows = rows_of(importer(tmp_path), tmp_path.with_name("out"))
    assert list(rows) == ["syncd:rigid/0_0_0", "syncd:weich ö/0_0_0"]
    assert [row["error"] for row in rows.values()] == ["", ""]


def test_file_names_with_folders_and_decomposed_letters_are_found(tmp_path):
    write_syncd(tmp_path, [syncd_record("käse_0_0_0", kind="deformable")])
    record = syncd_record(unicodedata.normalize("NFD", "käse_0_0_0"), kind="deformable")
    record["filenames"] = [f"elsewhere/run 7/{name}" for name in record["filenames"]]
    put(tmp_path / "metadata.json", json.dumps([record]))
    records, rejected = importer(tmp_path).list_records()
    assert rejected == [] and records[0]["files"] == [f"käse_0_0_0_{place}.jpg" for place in range(3)]
    assert records[0]["identity_id"] == "syncd:käse_0_0_0_0"


def test_the_description_is_the_records_own_else_the_caption_else_what_the_prompts_share(tmp_path):
    own = syncd_record("0_0", category_description="a red enamel mug")
    write_syncd(tmp_path / "data", [own, syncd_record("1_0"), syncd_record("2_0")])
    table = put(tmp_path / "captions.csv", 'asset0_0,unused\nasset1_0,"a mug, chipped"\nunknown,x\n')
    records, _ = importer(tmp_path / "data", captions=str(table)).list_records()
    assert [record["description"] for record in records] == ["a red enamel mug", "a mug, chipped", "a red mug"]


def test_the_shared_beginning_of_prompts_stops_where_a_scene_begins():
    assert common_description(["A white bottle, on stones", "a white bottle is here"]) == "A white bottle"
    assert common_description(["a cup of tea with a spoon", "a cup of tea with a biscuit"]) == "a cup of tea"
    assert common_description(["a vase in a hall"]) == "a vase"
    assert common_description(["on a shelf", "on a shelf"]) == common_description([]) == ""
    assert deformable_category("cat_1_2_0_1.jpg") == "cat" and deformable_category("12_0_1.jpg") == ""


def test_wrong_metadata_is_refused_naming_file_record_and_key(root):
    def said(content) -> str:
        put(root / "metadata.json", content if isinstance(content, bytes | str) else json.dumps(content))
        return refusal(root)

    good = syncd_record("0_0", scores=True)
    assert "metadata.json cannot be read as JSON" in said('[{"filenames": [')
    assert "metadata.json cannot be read as JSON" in said(b"\xff\xfe\x00")
    assert "metadata.json cannot be read as JSON" in said(b"")
    assert "metadata.json holds a dict; expected a list of records" in said({"a": 1})
    assert "metadata.json, record 1 is a str; expected an object" in said(["0_0_0.jpg"])
    for key in ("filenames", "prompts", "category", "objaverse_id"):
        lacking = {name: value for name, value in good.items() if name != key}
        assert f"metadata.json, record 2 has no key '{key}'" in said([syncd_record("1_0"), lacking])
    for change, words in (
        ({"filenames": "0_0_0.jpg"}, "filenames is '0_0_0.jpg'; expected a list of texts"),
        ({"filenames": [], "prompts": []}, "expected one file name or more"),
        ({"prompts": ["one"]}, "1 prompts for 3 filenames"),
        ({"category": "liquid"}, "category is 'liquid'; expected rigid or deformable"),
        ({"objaverse_id": 7}, "objaverse_id is 7; expected text"),
        ({"aesthetics_scores": [5.0]}, "aesthetics_scores is a list"),
        ({"aesthetics_scores": {"0_0_1": "high"}}, "aesthetics_scores['0_0_1'] is 'high'; expected a number"),
        ({"dino_scores": [[0, 1], [0, 0]]}, "dino_scores is no 3 x 3 list of lists"),
    ):
        assert words in said([good | change]) and "record 1" in said([good | change])
    assert "record 2: the picture 0_0_1.jpg stands in metadata.json, record 1 too" in said(
        [good, syncd_record("1_0", filenames=["0_0_1.jpg", "b.jpg", "c.jpg"])]
    )
    assert "record 2: its pictures stand in metadata.json, record 1 too" in said([good, good])


def test_scores_that_are_no_number_count_as_missing(root, tmp_path):
    record = syncd_record("0_0", scores=True)
    record["aesthetics_scores"]["0_0_1"] = float("nan")
    record["dino_scores"][0][2] = float("nan")
    put(root / "metadata.json", json.dumps([record]))
    row = rows_of(importer(root), tmp_path / "out")["syncd:0_0_0"]
    assert [json.loads(view["provenance"]).get("aesthetics") for view in row["views"]] == [5.5, None, 7.5]
    assert json.loads(row["provenance"])["dino_scores"][0][2] is None


def test_folders_that_cannot_be_syncd_are_refused(root, tmp_path):
    assert "does not exist" in refusal(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "no metadata*.json" in refusal(tmp_path / "empty")
    put(tmp_path / "bare" / "metadata.json", json.dumps([syncd_record("0_0")]))
    assert "nothing to read (1 no-pictures)" in refusal(tmp_path / "bare")
    os.symlink(tmp_path / "bare" / "metadata.json", root / "metadata_2.json")
    assert "metadata_2.json is a link that leads out of" in refusal(root)


def test_wrong_tables_of_captions_are_refused(root, tmp_path):
    assert "is no file" in refusal(root, captions=str(tmp_path / "no.csv"))
    assert "cannot be read" in refusal(root, captions=str(root))
    table = put(tmp_path / "c.csv", "a,text\nb\n")
    assert "line 2 has one column" in refusal(root, captions=str(table))
    put(table, "a,text\na,other\n")
    assert "two texts for a (line 2)" in refusal(root, captions=str(table))
    put(table, "a,t\xe4xt\n".encode("latin-1"))
    assert "UTF-8" in refusal(root, captions=str(table))


def test_wrong_settings_are_refused_with_what_was_expected():
    for wrong, words in (
        ({"root": ""}, "root is empty"),
        ({"kind": "soft"}, "kind is 'soft'"),
        ({"mask_above": 255}, "mask_above is 255"),
        ({"size_px": 8}, "size_px is 8"),
        ({"split": "all"}, "split is 'all'"),
        ({"source_name": "Syn CD"}, "source_name"),
    ):
        with pytest.raises(ValueError, match=words):
            SyncdSettings(**{"root": "x"} | wrong)
