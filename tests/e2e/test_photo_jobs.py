"""Photo folders through ingest, synthesize, embed, evaluate and report; and what a newcomer gets wrong on the way."""

from pathlib import Path

import datasets
import pytest
from PIL import Image

import schemas
from nearid_ray.data.store import Dataset
from tests.e2e.conftest import photo, summary_of

pytestmark = pytest.mark.usefixtures("ray_session")


def _ingest(run_job, root: Path, output: Path, *more: object):
    kinds = ("--categories", root.parent / "kinds.csv")
    return run_job("ingest", "photos", "--root", root, *kinds, "--output", output, "--size-px", 64, *more)


def test_photos_become_measured_and_shown(run_job, photos, tmp_path):
    tuples, distractors, tokens = (tmp_path / "runs" / name for name in ("tuples", "distractors", "tokens"))
    assert _ingest(run_job, photos, tuples).code == 0
    assert run_job("synthesize", "--tuples", tuples, "--output", distractors, "--engines", "exemplar").code == 0
    made = summary_of(distractors)
    assert (made["rows"], made["rows_with_error"], made["left_out"]) == (6, 0, {"no-donor": 2})
    assert run_job("embed", "--tuples", tuples, "--distractors", distractors, "--output", tokens).code == 0
    evaluated = run_job("evaluate", "--tokens", tokens, "--output", tmp_path / "runs" / "evaluation")
    assert evaluated.code == 0
    assert "exemplar" in evaluated.out
    inputs = ("--evaluation", tmp_path / "runs" / "evaluation", "--tuples", tuples, "--distractors", distractors)
    assert run_job("report", *inputs, "--tokens", tokens, "--output", tmp_path / "runs" / "report").code == 0
    page = (tmp_path / "runs" / "report" / "report.html").read_text()
    assert "photos:mug a" in page
    assert "Toy backbone" in page

    for dataset in (tuples, distractors, tokens):
        assert schemas.validate(dataset, references={"tuples": tuples}) == []
    rows = (
        Dataset(distractors).read(columns=["background_max_difference", "donor_identity_id", "identity_id"]).to_pylist()
    )
    assert all(row["background_max_difference"] == 0 and row["donor_identity_id"] != row["identity_id"] for row in rows)


def test_nearest_donors_come_from_an_embeddings_dataset(run_job, photos, tmp_path):
    tuples, pooled, distractors = (tmp_path / name for name in ("tuples", "pooled", "distractors"))
    _ingest(run_job, photos, tuples)
    assert run_job("embed", "--tuples", tuples, "--what", "pooled", "--output", pooled).code == 0
    command = ("--tuples", tuples, "--embeddings", pooled, "--output", distractors, "--engines", "exemplar")
    assert run_job("synthesize", *command).code == 0
    assert summary_of(distractors)["rows"] == 6


def test_a_bad_photo_or_mask_is_a_row_with_an_error_and_is_counted(run_job, photos, tmp_path):
    (photos / "mug a" / "0.png").write_bytes(b"not a picture")
    Image.new("L", (96, 80)).save(photos / "mug b" / "masks" / "0.png")
    Image.new("L", (10, 10), 255).save(photos / "mug c" / "masks" / "0.png")
    ended = _ingest(run_job, photos, tmp_path / "tuples")
    assert ended.code == 1
    assert "3 of 4 rows have an error (75.0%), above the limit of 1.0%" in ended.err
    assert summary_of(tmp_path / "tuples")["rows_with_error"] == 3
    rows = {row["identity_id"]: row for row in Dataset(tmp_path / "tuples").read().to_pylist()}
    said = {name: row["views"][0]["error"] for name, row in rows.items()}
    assert "0.png" in rows["photos:mug a"]["error"]
    assert any(example.startswith("photos:mug ") for example in summary_of(tmp_path / "tuples")["error_examples"])
    assert "empty" in said["photos:mug b"] or "nothing" in said["photos:mug b"]
    assert "10" in said["photos:mug c"] and "96" in said["photos:mug c"]
    assert all(row["views"][1]["error"] == "" for row in rows.values())
    assert schemas.validate(tmp_path / "tuples") == []
    command = ("--tuples", tmp_path / "tuples", "--output", tmp_path / "distractors", "--engines", "exemplar")
    assert run_job("synthesize", *command).code == 0
    assert summary_of(tmp_path / "distractors")["left_out"] == {"view-error": 3, "no-donor": 2}


def test_broken_photos_are_read_again_once_mended(run_job, photos, tmp_path):
    whole = (photos / "mug a" / "0.png").read_bytes()
    (photos / "mug a" / "0.png").write_bytes(b"broken")
    assert _ingest(run_job, photos, tmp_path / "tuples").code == 1
    (photos / "mug a" / "0.png").write_bytes(whole)
    assert _ingest(run_job, photos, tmp_path / "tuples", "--retry-errors").code == 0
    assert summary_of(tmp_path / "tuples")["rows_with_error"] == 0


def test_datasets_of_one_name_are_not_taken_for_each_other(run_job, photos, tmp_path):
    _ingest(run_job, photos, tmp_path / "a" / "tuples")
    sizes = ("--train-identities", 0, "--val-identities", 0, "--test-identities", 3)
    run_job("ingest", "toybox", "--output", tmp_path / "b" / "tuples", *sizes)
    cache = str(tmp_path / "cache")
    sources = [
        datasets.load_dataset(str(tmp_path / name / "tuples"), split="train", cache_dir=cache)[0]["source"]
        for name in ("a", "b")
    ]
    assert sources == ["photos", "toybox"]


def _missing(root: Path) -> None:
    root.rename(root.with_name("moved"))


def _empty(root: Path) -> None:
    _missing(root)
    root.mkdir()


def _no_pictures(root: Path) -> None:
    _empty(root)
    (root / "mug").mkdir()
    (root / "mug" / "notes.txt").write_text("no picture")


def _one_view(root: Path) -> None:
    (root / "car" / "1.png").unlink()
    (root / "car" / "masks" / "1.png").unlink()


def _same_id(root: Path) -> None:
    photo(root / "MUG A" / "0.png", seed=1)
    photo(root / "MUG A" / "1.png", seed=2)


def _csv_of_others(root: Path) -> None:
    (root.parent / "kinds.csv").write_text("name,kind\nteapot,pot\n")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_missing, "my photos"),
        (_empty, "my photos"),
        (_no_pictures, ".jpg"),
        (_one_view, "car"),
        (_same_id, "MUG A"),
        (_csv_of_others, "teapot"),
    ],
)
def test_a_folder_that_cannot_be_right_is_refused_in_one_message(run_job, photos, tmp_path, spoil, said):
    spoil(photos)
    ended = _ingest(run_job, photos, tmp_path / "out" / "tuples")
    assert ended.code == 2
    assert ended.err.startswith("error: ")
    assert said in ended.err
    assert "Traceback" not in ended.err
    assert not (tmp_path / "out").exists()


def test_an_output_of_other_settings_or_photos_is_refused_and_stays_as_it_is(run_job, photos, tmp_path):
    output = tmp_path / "tuples"
    _ingest(run_job, photos, output)
    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    kinds = ("--categories", photos.parent / "kinds.csv")
    other = run_job("ingest", "photos", "--root", photos, *kinds, "--output", output, "--size-px", 32)
    assert other.code == 2
    assert "size_px: there 64, now 32" in other.err
    photo(photos / "mug a" / "2.png", seed=77)
    grown = _ingest(run_job, photos, output)
    assert grown.code == 2
    assert "photos:mug a" in grown.err
    assert {path: path.read_bytes() for path in output.rglob("*") if path.is_file()} == before


def test_a_new_identity_adds_to_what_is_there(run_job, photos, tmp_path):
    _ingest(run_job, photos, tmp_path / "tuples")
    for view in range(2):
        photo(photos / "mug d" / f"{view}.png", seed=90 + view)
    assert _ingest(run_job, photos, tmp_path / "tuples").code == 0
    made = summary_of(tmp_path / "tuples")
    assert (made["rows"], made["rows_made"], made["rows_done_before"]) == (5, 1, 4)
