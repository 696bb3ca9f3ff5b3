"""Photo folders on disk: what is listed, what is refused, and what one bad file costs."""

import io
import json
import os
import unicodedata
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from nearid_ray.data.images import decode_mask, decode_rgb, encode_png
from nearid_ray.data.importers.photos import PhotosImporter, PhotosSettings
from nearid_ray.data.ingest import ingest_task, plan_ingest
from nearid_ray.data.masking import MaskSettings
from nearid_ray.data.store import Dataset, locate
from nearid_ray.errors import UsageError
from nearid_ray.identifiers import content_hash
from schemas import TUPLES, validate


def picture(seed: int, height: int = 40, width: int = 60) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def mask(height: int = 40, width: int = 60) -> np.ndarray:
    drawn = np.zeros((height, width), np.uint8)
    drawn[10:30, 25:45] = 255
    return drawn


def put(place: Path, array: np.ndarray, **options) -> Path:
    place.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(place, **options)
    return place


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two identities: a red mug with mask files inside its folder, and one with spaces and accents, masks beside."""
    folder = tmp_path / "photos"
    for i, name in enumerate(("1.png", "2.JPG")):
        put(folder / "mug" / name, picture(i))
        put(folder / "mug" / "masks" / f"{Path(name).stem}.png", mask())
    for i, name in enumerate(("a b.webp", "ü.jpeg")):
        put(folder / "Blaue Schüssel" / name, picture(10 + i))
        put(folder / "masks" / "Blaue Schüssel" / f"{Path(name).stem}.png", mask())
    (folder / "mug" / "notes.txt").write_text("no photo")
    (folder / ".hidden").mkdir()
    return folder


def importer(root: Path, **settings) -> PhotosImporter:
    masking = MaskSettings(mask_method=settings.pop("mask_method", "none"))
    return PhotosImporter(PhotosSettings(root=str(root), masking=masking, **{"size_px": 32} | settings))


def refusal(root: Path, **settings) -> str:
    with pytest.raises(UsageError) as caught:
        importer(root, **settings).list_records()
    return str(caught.value)


def rows_of(it: PhotosImporter, records: list[dict]) -> list[dict]:
    """What a shard of these records becomes; records as the work list keeps them."""
    work = pa.table({"record": [json.dumps(record) for record in records]})
    task = ingest_task(it)
    return task.finish(work, task.compute(task.prepare(work))).table.to_pylist()


def read_one(root: Path, name: str, **settings) -> dict:
    it = importer(root, **settings)
    return rows_of(it, [r for r in it.list_records()[0] if r["identity_id"] == f"photos:{name}"])[0]


def test_records_are_sorted_and_name_photos_with_their_masks(root):
    records, rejected = importer(root).list_records()
    assert rejected == []
    assert records == [
        {
            "identity_id": "photos:Blaue Schüssel",
            "category": "",
            "split": "test",
            "files": ["Blaue Schüssel/a b.webp", "Blaue Schüssel/ü.jpeg"],
            "masks": ["masks/Blaue Schüssel/a b.png", "masks/Blaue Schüssel/ü.png"],
        },
        {
            "identity_id": "photos:mug",
            "category": "",
            "split": "test",
            "files": ["mug/1.png", "mug/2.JPG"],
            "masks": ["mug/masks/1.png", "mug/masks/2.png"],
        },
    ]


def test_listing_opens_no_photo(root):
    for file in root.rglob("*.*"):
        if file.is_file():
            file.write_bytes(b"not a picture")
    assert len(importer(root).list_records()[0]) == 2


def test_rows_keep_the_contract_and_say_where_they_come_from(root):
    it = importer(root)
    rows = rows_of(it, it.list_records()[0])
    assert validate(pa.Table.from_pylist(rows, schema=TUPLES.schema)) == []
    view = rows[1]["views"][0]
    assert rows[1]["error"] == view["error"] == ""
    square = decode_rgb(view["image"]["bytes"])
    assert square.shape == (32, 32, 3) and decode_mask(view["mask"]["bytes"]).shape == (32, 32)
    assert view["view_id"] == content_hash(view["image"]["bytes"])
    assert (view["source_width_px"], view["source_height_px"]) == (60, 40)
    assert (view["mask_source"], view["mask_pieces"], view["mask_touches_border"]) == ("file", 1, False)
    assert view["mask_area"] == pytest.approx(0.25, abs=0.02)
    provenance = json.loads(view["provenance"])
    left, top, right, bottom = provenance["crop_box"]
    assert (right - left, bottom - top) == (40, 40)
    assert provenance["sha256"] == content_hash((root / "mug" / "1.png").read_bytes())
    assert provenance["file"] == "mug/1.png"
    expected = Image.fromarray(picture(0)).crop((left, top, right, bottom)).resize((32, 32), Image.Resampling.LANCZOS)
    assert np.array_equal(square, np.asarray(expected))


def test_the_same_photos_give_the_same_rows(root):
    assert read_one(root, "mug") == read_one(root, "mug")
    assert read_one(root, "mug", mask_method="grabcut") == read_one(root, "mug", mask_method="grabcut")


def test_photos_without_a_mask_file_get_one_by_grabcut_or_none(root):
    photo = np.full((60, 60, 3), (60, 120, 60), np.uint8) + picture(3, 60, 60) // 16
    photo[18:44, 20:42] = (220, 60, 40)
    for name in ("1.png", "2.png"):
        put(root / "box" / name, photo)
    view = read_one(root, "box", mask_method="grabcut")["views"][0]
    assert view["mask_source"] == "grabcut" and view["error"] == ""
    assert decode_mask(view["mask"]["bytes"])[16, 16] == 255
    view = read_one(root, "box")["views"][0]
    assert view["mask_source"] == "none" and view["error"] == ""
    assert view["image"] is not None and view["mask"] is None and view["mask_area"] is None


def test_a_bad_file_costs_its_view_alone(root):
    put(root / "mug" / "3.png", picture(3))
    put(root / "mug" / "masks" / "3.png", np.zeros((40, 60), np.uint8))
    put(root / "mug" / "4.png", picture(4))
    put(root / "mug" / "masks" / "4.png", mask(60, 40))
    (root / "mug" / "5.png").write_bytes(b"")
    cut = (root / "mug" / "1.png").read_bytes()[:500]
    (root / "mug" / "6.png").write_bytes(cut)
    put(root / "mug" / "7.png", picture(7))
    (root / "mug" / "masks" / "7.png").write_bytes(b"?")
    row = read_one(root, "mug")
    reasons = [view["error"] for view in row["views"]]
    assert reasons[:2] == ["", ""]
    for reason, words in zip(reasons[2:], ("mask is empty", "40 x 60 pixels", "0 bytes", "cut off", "mask mug/masks/7"),
                             strict=True):  # fmt: skip
        assert words in reason
    for view in row["views"][2:]:
        assert view["image"] is None and view["mask"] is None and view["view_id"] == "" and view["size_px"] == 0
        assert json.loads(view["provenance"])["file"].startswith("mug/")
    assert row["error"].startswith("5 of 7 views: 3.png: ")
    assert validate(pa.Table.from_pylist([row], schema=TUPLES.schema)) == []


def test_a_photo_that_vanishes_after_listing_is_an_error_of_its_view(root):
    it = importer(root)
    record = it.list_records()[0][1]
    (root / "mug" / "1.png").unlink()
    (row,) = rows_of(it, [record])
    assert "1.png" in row["error"] and row["views"][1]["error"] == ""


def test_masks_are_compared_with_the_upright_photo(root):
    exif = Image.Exif()
    exif[0x0112] = 6
    put(root / "mug" / "3.jpg", picture(3, 60, 40), exif=exif)
    put(root / "mug" / "masks" / "3.png", mask(40, 60))
    view = read_one(root, "mug")["views"][2]
    assert view["error"] == ""
    assert (view["source_width_px"], view["source_height_px"]) == (60, 40)


@pytest.mark.parametrize("header", ["subject_name,class\n", "", "\ufeffa,b\r\n"])
def test_categories_come_from_the_first_two_columns(root, tmp_path, header):
    table = tmp_path / "c.csv"
    table.write_text(header + "mug,cup,ignored\n\n", encoding="utf-8")
    it = importer(root, categories=str(table))
    assert {r["identity_id"]: r["category"] for r in it.list_records()[0]} == {
        "photos:mug": "cup",
        "photos:Blaue Schüssel": "",
    }
    assert it.without_category == 1


def test_a_header_may_say_which_column_is_the_category(root, tmp_path):
    table = tmp_path / "c.csv"
    table.write_text("id,photo,Class\nmug,0.jpg,cup\n")
    it = importer(root, categories=str(table))
    assert {r["category"] for r in it.list_records()[0]} == {"cup", ""}


def test_wrong_tables_of_categories_are_refused(root, tmp_path):
    table = tmp_path / "c.csv"
    assert "is no file" in refusal(root, categories=str(table))
    assert "expected a CSV file" in refusal(root, categories=str(root))
    for text, words in (
        ("id,c\nmug,cup\nvase,vase\nbowl,bowl\n", "names 2 identity(ies) without a folder: bowl, vase"),
        ("id,c\nmug,cup\nmug,glass\n", "two categories for one identity: mug (cup, glass)"),
        ("id,c\n", "gives no identity a category"),
        ("id\nmug\n", "line(s) 2 have too few columns"),
    ):
        table.write_text(text)
        said = refusal(root, categories=str(table))
        assert words in said and said.startswith(f"{table}")
    table.write_bytes("id,c\nmug,t\xe4sse\n".encode("latin-1"))
    assert "UTF-8" in refusal(root, categories=str(table))
    table.write_text("id,c\nmug,cup\nmug,cup\n")
    importer(root, categories=str(table)).list_records()


def test_missing_and_empty_folders_are_refused(root, tmp_path):
    assert "does not exist" in refusal(tmp_path / "nowhere")
    assert "is a file" in refusal(root / "mug" / "1.png")
    (tmp_path / "empty").mkdir()
    assert "is empty" in refusal(tmp_path / "empty")
    assert "holds 2 photo(s) but no folders" in refusal(root / "mug")
    (tmp_path / "empty" / "mug").mkdir()
    assert "looked for .jpg, .jpeg, .png, .webp" in refusal(tmp_path / "empty")


def test_identities_with_too_few_photos_are_refused_by_name_or_left_out(root):
    put(root / "lonely" / "1.png", picture(1))
    (root / "nothing").mkdir()
    assert "1 identity(ies) have fewer than 2 photos: lonely" in refusal(root)
    records, rejected = importer(root, drop_small=True).list_records()
    assert [r["identity_id"] for r in records] == ["photos:Blaue Schüssel", "photos:mug"]
    assert [(r["identity_id"], r["reason"]) for r in rejected] == [
        ("photos:nothing", "no-photos"),
        ("photos:lonely", "too-few-views"),
    ]
    assert len(importer(root, min_views=1).list_records()[0]) == 3
    assert "fewer than 5 photos" in refusal(root, min_views=5, drop_small=True)


def test_names_that_differ_by_case_or_composition_alone_are_refused(root):
    if (root / "MUG").exists():
        pytest.skip("this file system cannot hold such names side by side")
    put(root / "MUG" / "1.png", picture(1))
    assert "duplicate identity ids: 'MUG' and 'mug'" in refusal(root)
    (root / "MUG" / "1.png").unlink()
    (root / "MUG").rmdir()
    put(root / unicodedata.normalize("NFD", "Blaue Schüssel") / "1.png", picture(1))
    assert "duplicate identity ids" in refusal(root)


def test_links_out_of_the_folder_are_refused_and_links_inside_are_followed(root, tmp_path):
    os.symlink(root / "mug" / "1.png", root / "mug" / "9.png")
    assert len(importer(root).list_records()[0][1]["files"]) == 3
    outside = put(tmp_path / "secret.png", picture(1))
    os.symlink(outside, root / "mug" / "8.png")
    assert "8.png is a link that leads out of" in refusal(root)
    (root / "mug" / "8.png").unlink()
    os.symlink(tmp_path, root / "elsewhere")
    assert "elsewhere is a link that leads out of" in refusal(root)


def test_masks_without_a_photo_are_counted_and_shared_ones_refused(root):
    put(root / "mug" / "masks" / "77.png", mask())
    rejected = importer(root).list_records()[1]
    assert [(r["record_id"], r["reason"]) for r in rejected] == [("mug/masks/77.png", "mask-without-photo")]
    put(root / "mug" / "1.jpg", picture(1))
    assert "mask(s) 1 belong to several photos" in refusal(root)


def test_pictures_that_are_not_read_are_listed_as_left_out(root):
    for place in ("mug/5.HEIC", "mug/scan.tiff", "mug/more/6.jpg", "loose.png"):
        (root / place).parent.mkdir(exist_ok=True)
        (root / place).write_bytes(b"?")
    records, rejected = importer(root).list_records()
    assert [len(record["files"]) for record in records] == [2, 2]
    assert sorted((r["record_id"], r["reason"]) for r in rejected) == [
        ("loose.png", "photo-elsewhere"),
        ("mug/5.HEIC", "unread-format"),
        ("mug/more/6.jpg", "photo-elsewhere"),
        ("mug/scan.tiff", "unread-format"),
    ]


def test_an_output_in_the_folder_that_is_read_is_refused(root, tmp_path):
    os.symlink(root, tmp_path / "same")
    for inside in (root, root / "runs" / "tuples", tmp_path / "same" / "tuples"):
        with pytest.raises(UsageError, match="lies in the folder that is read"):
            plan_ingest(importer(root), Dataset(locate(inside)))
    assert not (root / "runs").exists()
    plan_ingest(importer(root), Dataset(locate(tmp_path / "photos-tuples")))


def test_max_views_takes_the_first_by_name(root):
    for i in (3, 4):
        put(root / "mug" / f"{i}.png", picture(i))
    assert importer(root, max_views=3).list_records()[0][1]["files"] == ["mug/1.png", "mug/2.JPG", "mug/3.png"]


def test_random_splits_follow_the_name_and_the_seed_alone(tmp_path):
    for i in range(60):
        for j in range(2):
            place = tmp_path / f"id{i:02d}" / f"{j}.png"
            place.parent.mkdir(exist_ok=True)
            place.write_bytes(b"")

    def splits(**settings):
        records, _ = importer(tmp_path, split="random", val_share=0.3, test_share=0.3, **settings).list_records()
        return {r["identity_id"]: r["split"] for r in records}

    drawn = splits()
    counts = [list(drawn.values()).count(split) for split in ("train", "val", "test")]
    assert sum(counts) == 60 and min(counts) >= 8
    assert drawn != splits(split_seed=1)
    (tmp_path / "id00" / "0.png").unlink()
    (tmp_path / "id00" / "1.png").unlink()
    (tmp_path / "id00").rmdir()
    assert splits() == {k: v for k, v in drawn.items() if k != "photos:id00"}


def test_wrong_settings_are_refused_with_what_was_expected():
    for wrong, words in (
        ({"root": ""}, "root is empty"),
        ({"size_px": 8}, "size_px is 8; expected 16 to 4096"),
        ({"min_views": 0}, "min_views is 0"),
        ({"max_views": 1}, "max_views is 1"),
        ({"split": "all"}, "split is 'all'"),
        ({"val_share": 0.9}, "at most 1 together"),
        ({"source_name": "My Photos"}, "source_name"),
        ({"masks": "a/b"}, "name of a folder"),
    ):
        with pytest.raises(ValueError, match=words):
            PhotosSettings(**{"root": "x"} | wrong)
    with pytest.raises(ValueError, match="mask_method is 'magic'"):
        MaskSettings(mask_method="magic")


def test_every_written_picture_is_png(root):
    for view in read_one(root, "Blaue Schüssel")["views"]:
        for column in ("image", "mask"):
            assert Image.open(io.BytesIO(view[column]["bytes"])).format == "PNG"
            assert view[column]["path"].endswith(".png")
        assert view["image"]["bytes"] == encode_png(decode_rgb(view["image"]["bytes"]))
