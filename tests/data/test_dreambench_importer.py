"""DreamBench++ as it is published: references, generated pictures and ratings, joined by key; and wrong input."""

import io
import json
import os
import pickle
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nearid_ray.data.images import decode_rgb
from nearid_ray.data.importers.dreambench import (
    DreambenchImporter,
    DreambenchSettings,
    category_of,
    collection_id,
    read_categories,
)
from nearid_ray.data.importers.dreambench_generated import (
    DreambenchGeneratedImporter,
    DreambenchGeneratedSettings,
    method_of,
)
from nearid_ray.data.importers.dreambench_ratings import (
    DreambenchRatingsImporter,
    DreambenchRatingsSettings,
    parse_key,
)
from nearid_ray.data.ingest import ingest_task, plan_ingest
from nearid_ray.data.pipeline import run_shard
from nearid_ray.data.rejects import rejected_counts
from nearid_ray.data.store import Dataset
from nearid_ray.errors import UsageError
from schemas import validate
from tests.data.published import (
    METHODS,
    REFERENCES,
    SIZE_PX,
    encoded,
    put,
    rating,
    scene,
    write_human_ratings,
    write_metric,
    write_references,
    write_samples,
)

IDS = sorted(f"dreambench:{name}" for name in REFERENCES)


def ingested(importer, output: Path) -> Dataset:
    """The dataset, made shard by shard as a job makes it, by an importer that went through pickle."""
    dataset = Dataset(output)
    plan = plan_ingest(importer, dataset)
    task = ingest_task(pickle.loads(pickle.dumps(importer)))
    for shard in plan.shard_names:
        run_shard(task, dataset, shard, plan.members(shard))
    assert validate(dataset.arrow()) == []
    return dataset


def references(root: Path, **settings) -> DreambenchImporter:
    return DreambenchImporter(DreambenchSettings(root=str(root), **{"size_px": SIZE_PX} | settings))


def samples(root: Path, **settings) -> DreambenchGeneratedImporter:
    return DreambenchGeneratedImporter(DreambenchGeneratedSettings(root=str(root), **settings))


def ratings(**settings) -> DreambenchRatingsImporter:
    return DreambenchRatingsImporter(DreambenchRatingsSettings(**settings))


def refusal(importer) -> str:
    with pytest.raises(UsageError) as caught:
        importer.list_records()
    return str(caught.value)


def test_references_become_identities_with_one_view_named_by_collection_id(tmp_path):
    it = references(write_references(tmp_path / "data with space"))
    rows = ingested(it, tmp_path / "out").read().to_pylist()
    assert [row["identity_id"] for row in rows] == IDS
    assert [row["category"] for row in rows] == ["animal", "human", "object", "style"]
    assert [row["description"] for row in rows] == ["Kitten", "samurai", "T-shirt", "Ukiyo-e Größe"]
    assert {(row["split"], row["source"], row["error"]) for row in rows} == {("test", "dreambench", "")}
    assert json.loads(rows[2]["provenance"])["prompts"] == [f"T-shirt in scene {i}" for i in range(9)]
    for number, row in enumerate(rows):
        (view,) = row["views"]
        assert view["mask"] is None and view["mask_source"] == "none"
        found = np.asarray(Image.open(io.BytesIO(view["image"]["bytes"])))
        assert np.array_equal(found, decode_rgb(encoded(scene(200 + number), "JPEG", quality=95)))
    assert it.facts() == {
        "references_animal": 1, "references_human": 1, "references_object": 1, "references_style": 1,
    }  # fmt: skip


def test_collection_ids_and_categories_follow_the_published_rule():
    assert collection_id("human", "06", "Pixelated Warrior") == "live_subject_human_06_pixelated_warrior"
    assert collection_id("style", "09", "low-poly geometric") == "style_09_low-poly_geometric"
    assert collection_id("object", "1", unicodedata.normalize("NFD", "Größe")) == "object_1_größe"
    assert [category_of(name, {}) for name in REFERENCES] == ["animal", "human", "object", "style"]
    assert category_of("object_03_t-shirt", {"object_03_t-shirt": "style"}) == "style"
    assert category_of("my_own_cup", {}) == category_of("objects_1_x", {}) == ""


def test_references_may_be_named_by_file_or_by_folder(tmp_path):
    for name in REFERENCES:
        put(tmp_path / "flat" / f"{name}.jpg", encoded(scene(1), "JPEG"))
    records, _ = references(tmp_path / "flat", images=".", names_from="file").list_records()
    assert [record["identity_id"] for record in records] == IDS
    assert [record["category"] for record in records] == ["animal", "human", "object", "style"]
    write_samples(tmp_path / "samples")
    place = tmp_path / "samples" / "emu2"
    records, rejected = references(place, images="src_image", names_from="folder").list_records()
    assert [record["identity_id"] for record in records] == IDS
    assert {record["file"].rpartition("/")[2] for record in records} == {"0_0.jpg"}
    assert [left_out["reason"] for left_out in rejected] == ["further-picture"] * 8


def test_categories_may_come_from_a_table(tmp_path):
    for name in ("cup", "cat"):
        put(tmp_path / "flat" / f"{name}.jpg", encoded(scene(1), "JPEG"))
    for file, text in (("t.json", '{"cup": "object"}'), ("t.csv", "cup,object\n")):
        table = put(tmp_path / file, text)
        it = references(tmp_path / "flat", images=".", names_from="file", categories=str(table))
        assert [record["category"] for record in it.list_records()[0]] == ["", "object"]
        assert it.facts() == {"references_object": 1, "references_without_category": 1}
    for text, words in (("[1]", "cannot be read"), ("{", "cannot be read"), ('{"cup": "mug"}', "cup: 'mug'; expected")):
        with pytest.raises(UsageError, match=words):
            read_categories(str(put(tmp_path / "t.json", text)))
    with pytest.raises(UsageError, match="is no file"):
        read_categories(str(tmp_path / "nowhere.csv"))


def test_references_that_lack_something_are_left_out_with_the_reason(tmp_path):
    root = write_references(tmp_path / "data")
    os.remove(root / "captions/live_subject/animal/00.txt")
    put(root / "captions/object/03.txt", "\n")
    os.remove(root / "images/style/10.jpg")
    put(root / "images/food/01.jpg", encoded(scene(1), "JPEG"))
    put(root / "captions/food/01.txt", "soup\n")
    records, rejected = references(root).list_records()
    assert [record["collection_id"] for record in records] == ["live_subject_human_12_samurai"]
    assert {(left_out["record_id"], left_out["reason"]) for left_out in rejected} == {
        ("images/live_subject/animal/00.jpg", "no-captions"),
        ("images/object/03.jpg", "no-subject"),
        ("images/food/01.jpg", "no-category"),
        ("captions/style/10.txt", "captions-without-picture"),
    }


def test_a_broken_reference_costs_its_own_row(tmp_path):
    root = write_references(tmp_path / "data")
    put(root / "images/object/03.jpg", b"")
    rows = ingested(references(root), tmp_path / "out").read().to_pylist()
    assert [bool(row["error"]) for row in rows] == [False, False, True, False]
    assert "empty (0 bytes)" in rows[2]["views"][0]["error"]


def test_wrong_folders_of_references_are_refused(tmp_path):
    assert "does not exist" in refusal(references(tmp_path / "nowhere"))
    root = write_references(tmp_path / "data")
    assert "no picture below pictures" in refusal(references(root, images="pictures"))
    assert "none of 4 pictures is a reference (no-captions)" in refusal(references(root, captions="texts"))
    put(root / "captions/object/03.txt", "Größe".encode("latin-1"))
    assert "captions/object/03.txt cannot be read as text in UTF-8" in refusal(references(root))
    outside = put(tmp_path / "secret.jpg", b"x")
    os.symlink(outside, root / "images" / "object" / "99.jpg")
    assert "99.jpg is a link that leads out of" in refusal(references(root))


def test_generated_pictures_keep_their_bytes_method_prompt_and_place(tmp_path):
    root = write_samples(tmp_path / "samples")
    it = samples(root)
    rows = ingested(it, tmp_path / "out").read().to_pylist()
    assert len(rows) == 2 * 4 * 3
    assert {(row["method"], row["identity_id"], row["prompt_index"], row["image_index"]) for row in rows} == {
        (method, name, prompt, 0) for method in METHODS for name in IDS for prompt in range(3)
    }
    for row in rows:
        name = row["identity_id"].partition(":")[2]
        file = root / row["method"] / "tgt_image" / name / f"{row['prompt_index']}_0.jpg"
        assert row["image"]["bytes"] == file.read_bytes()
        assert (row["width_px"], row["height_px"], row["error"]) == (SIZE_PX, SIZE_PX, "")
        assert row["prompt"] == f"{name} in scene {row['prompt_index']}"
        assert row["category"] == category_of(name, {})
    assert it.facts() == {"pictures_of": {"dreambooth_sd": 12, "emu2": 12}, "without_text": 0, "without_category": 0}


def test_the_dataset_of_generated_pictures_opens_with_datasets(tmp_path):
    datasets = pytest.importorskip("datasets")
    out = ingested(samples(write_samples(tmp_path / "samples")), tmp_path / "out").location.path
    files = [str(file) for file in sorted(Path(out, "data").glob("*.parquet"))]
    opened = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path / "cache"))
    assert opened[0]["image"].size == (SIZE_PX, SIZE_PX)


def test_folders_named_with_a_runs_settings_are_the_plain_method(tmp_path):
    for folder, method in (
        ("textual_inversion_sd_gs7_5_step100_seed42_torch_float16", "textual_inversion_sd"),
        ("emu2_gs3_step50_seed42_torch_bfloat16", "emu2"),
        ("ip_adapter_plus_vit_h_sdxl_scale0_6_gs7_5_step100_seed42_torch_float16", "ip_adapter_plus_vit_h_sdxl"),
        ("IP-Adapter ViT-G SDXL", "ip_adapter_vit_g_sdxl"),
        ("dreambooth_lora_sdxl", "dreambooth_lora_sdxl"),
    ):
        assert method_of(folder) == method
    root = write_samples(tmp_path / "samples", ("emu2_gs3_step50_seed42_torch_bfloat16", "blip_diffusion"))
    records, _ = samples(root, methods=("Emu2",)).list_records()
    assert {record["method"] for record in records} == {"emu2"} and len(records) == 12
    assert "has no method dreambooth_sd; it has blip_diffusion, emu2" in refusal(samples(root, methods=METHODS))
    write_samples(root, ("emu2",))
    assert "several folders are the method emu2" in refusal(samples(root))


def test_generated_files_of_other_names_and_references_are_left_out_with_the_reason(tmp_path):
    tuples = ingested(references(write_references(tmp_path / "data")), tmp_path / "tuples")
    root = write_samples(tmp_path / "samples")
    put(root / "emu2/tgt_image/object_03_t-shirt/grid.jpg", b"")
    put(root / "emu2/tgt_image/object_99_vase/0_0.jpg", b"")
    os.remove(root / "emu2/text/object_03_t-shirt/1_0.txt")
    it = samples(root, tuples=tuples.location.uri)
    dataset = ingested(it, tmp_path / "out")
    assert rejected_counts(dataset) == {"unknown-name": 1, "no-reference": 1}
    assert it.facts()["without_text"] == 1
    assert validate(dataset.arrow(), references={"tuples": tuples.arrow()}) == []


def test_a_broken_generated_picture_or_text_is_a_row_with_an_error(tmp_path):
    root = write_samples(tmp_path / "samples", ("emu2",))
    folder = root / "emu2" / "tgt_image" / "object_03_t-shirt"
    put(folder / "0_0.jpg", (folder / "0_0.jpg").read_bytes()[:700])
    put(folder / "1_0.jpg", b"")
    put(root / "emu2/text/object_03_t-shirt/2_0.txt", "größe".encode("latin-1"))
    rows = ingested(samples(root), tmp_path / "out").read().to_pylist()
    errors = [row["error"] for row in rows if row["identity_id"] == "dreambench:object_03_t-shirt"]
    assert "broken or cut off" in errors[0] and "0 bytes" in errors[1] and "is no text in UTF-8" in errors[2]
    bad = [row for row in rows if row["error"]]
    assert len(bad) == 3 and all(row["image"] is None and row["width_px"] == 0 for row in bad)


def test_wrong_folders_of_samples_are_refused(tmp_path):
    assert "does not exist" in refusal(samples(tmp_path / "nowhere"))
    (tmp_path / "samples").mkdir()
    assert "no METHOD/tgt_image folder" in refusal(samples(tmp_path / "samples"))
    put(tmp_path / "samples/emu2/tgt_image/cup/grid.jpg", b"")
    assert "no generated picture to read (unknown-name)" in refusal(samples(tmp_path / "samples"))


def test_ratings_are_joined_by_key_whatever_the_order_of_the_files(tmp_path):
    generated = ingested(samples(write_samples(tmp_path / "samples")), tmp_path / "generated")
    human, dino = write_human_ratings(tmp_path / "merged_data"), write_metric(tmp_path / "data_dino_rating")
    clip = write_metric(tmp_path / "data clipt")
    it = ratings(
        human=str(human), metrics=(f"dino={dino}", f"clipt:prompt={clip}"), generated=generated.location.uri
    )  # fmt: skip
    dataset = ingested(it, tmp_path / "out")
    assert rejected_counts(dataset) == {}
    rows = dataset.read().to_pylist()
    assert len(rows) == 2 * 2 * 2 * 12 + 2 * 2 * 12
    for row in rows:
        name = row["identity_id"].partition(":")[2]
        assert row["error"] == "" and row["category"] == category_of(name, {})
        if row["rater_kind"] == "human":
            assert row["score"] == rating(int(row["rater"][-1]), name, row["prompt_index"])
            assert row["image_index"] == -1
        else:
            assert row["score"] == 50.0 + row["prompt_index"] and row["image_index"] == 0
    assert it.facts() == {
        "ratings_by": {
            "clipt/prompt": 24, "dino/concept": 24, "group1/concept": 24, "group1/prompt": 24, "group2/concept": 24,
            "group2/prompt": 24,
        },
        "methods": 2, "without_score": 0, "without_category": 0,
    }  # fmt: skip


def test_keys_are_taken_apart_from_the_right():
    assert parse_key("object_03_t-shirt-7") == ("object_03_t-shirt", 7, -1)
    assert parse_key("style_10_ukiyo-e_größe-12_3") == ("style_10_ukiyo-e_größe", 12, 3)
    assert parse_key("live_subject_animal_34_cat") is parse_key("cat-") is parse_key("-3") is parse_key("cat-x") is None


def test_ratings_that_match_no_picture_are_listed_and_counted(tmp_path):
    generated = ingested(samples(write_samples(tmp_path / "samples", prompts=2)), tmp_path / "generated")
    human = write_human_ratings(tmp_path / "merged_data")
    put(human / "group1" / "emu2-cp.json", json.dumps({"object_03_t-shirt-0": 1, "object_99_vase-0": 2, "nokey": 3}))
    put(human / "group1" / "emu2.json", "{}")
    put(human / "readme.txt", "x")
    it = ratings(human=str(human), generated=generated.location.uri)
    dataset = ingested(it, tmp_path / "out")
    assert rejected_counts(dataset) == {"no-sample": 7 * 4 + 1, "unknown-file": 2, "unknown-key": 1}
    assert len(dataset.read()) == 7 * 8 + 1
    left_out = {entry["reason"]: entry for entry in it.list_records()[1]}
    assert left_out["unknown-key"]["record_id"].endswith("group1/emu2-cp.json: nokey")


def test_scores_that_cannot_be_are_rows_with_an_error_and_gaps_are_not(tmp_path):
    given = [4, 5, -1, "3", None, float("nan"), True, [3, 2], 2.5]
    scores = {f"object_1_a-{prompt}": score for prompt, score in enumerate(given)}
    human = tmp_path / "merged_data"
    put(human / "group1" / "emu2-cp.json", json.dumps(scores))
    metric = put(tmp_path / "m" / "emu2.json", '{"object_1_a-0_0": 88.5, "object_1_a-1_0": Infinity}').parent
    it = ratings(human=str(human), metrics=(f"clip={metric}",))
    rows = {(row["rater"], row["prompt_index"]): row for row in ingested(it, tmp_path / "out").read().to_pylist()}
    people = [rows["group1", prompt] for prompt in range(9)]
    assert [row["score"] for row in people] == [4, None, None, None, None, None, None, None, 2.5]
    said = ["5; expected 0 to 4", "-1; expected 0 to 4", "'3'; expected a number"]
    assert [row["error"] for row in people[:4]] == ["", *(f"the score is {words}" for words in said)]
    assert [bool(row["error"]) for row in people[4:]] == [False, False, True, True, False]
    assert rows["clip", 0]["score"] == 88.5 and "inf" in rows["clip", 1]["error"]
    assert it.facts()["without_score"] == 2


def test_unreadable_and_contradicting_ratings_are_refused_naming_the_file(tmp_path):
    human = write_human_ratings(tmp_path / "merged_data")

    def said(text: str, name: str = "emu2-cp.json") -> str:
        file = put(human / "group1" / name, text)
        message = refusal(ratings(human=str(human)))
        file.unlink()
        return message

    assert "group1/emu2-cp.json cannot be read as JSON" in said('{"a-0": 1')
    assert "group1/emu2-cp.json cannot be read as JSON" in said("")
    assert "group1/emu2-cp.json holds a list; expected an object" in said("[1]")
    assert said('{"a-0": 1, "a-0": 2}').endswith("group1/emu2-cp.json: key(s) given twice: a-0")
    assert "is rated by" in said('{"a-0": 1, "a-00": 2}')
    assert "does not exist" in refusal(ratings(human=str(tmp_path / "nowhere")))
    assert "does not exist" in refusal(ratings(metrics=(f"dino={tmp_path / 'nowhere'}",)))
    assert "no rating of blip_diffusion" in refusal(ratings(human=str(human), methods=("BLIP-Diffusion",)))
    (tmp_path / "empty").mkdir()
    assert "no rating to read (left out: no file)" in refusal(ratings(human=str(tmp_path / "empty")))


def test_wrong_settings_are_refused_with_what_was_expected():
    for cls, wrong, words in (
        (DreambenchSettings, {"root": ""}, "root is empty"),
        (DreambenchSettings, {"root": "x", "captions": ""}, "captions is empty"),
        (DreambenchSettings, {"root": "x", "names_from": "id"}, "names_from is 'id'"),
        (DreambenchSettings, {"root": "x", "size_px": 8}, "size_px is 8"),
        (DreambenchSettings, {"root": "x", "split": "all"}, "split is 'all'"),
        (DreambenchGeneratedSettings, {"root": ""}, "root is empty"),
        (DreambenchGeneratedSettings, {"root": "x", "texts": "a/b"}, "name of a folder"),
        (DreambenchRatingsSettings, {}, "neither human nor metrics"),
        (DreambenchRatingsSettings, {"metrics": ("dino",)}, "expected NAME=FOLDER"),
    ):
        with pytest.raises(ValueError, match=words):
            cls(**wrong)
