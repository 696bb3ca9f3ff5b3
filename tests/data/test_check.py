"""validate: every planted fault is named in the dataset that has it, and nothing else is; nothing is ever written."""

import runpy
import shutil
import sys
from pathlib import Path

import pytest

from nearid_ray.data.images import decode_mask, decode_rgb, encode_png
from nearid_ray.data.masks import mask_quality
from nearid_ray.data.perceptual import perceptual_hash
from nearid_ray.data.store import Dataset
from nearid_ray.errors import UsageError
from nearid_ray.identifiers import content_hash
from nearid_ray.stages.validate import Validate, check_datasets, run_validate
from tests.data.planted_faults import (
    ALL,
    FAULTS,
    cut,
    damage_tokens,
    flip,
    make_datasets,
    repaint,
    rewrite,
    same_picture,
    view_with,
    written,
)

JOBS = Path(__file__).resolve().parents[2] / "jobs"


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("made")
    make_datasets(root)
    return root


def findings(root: Path, *names: str, workers: int = 0) -> dict[str, dict[str, list[str]]]:
    """dataset -> kind -> examples."""
    entries = check_datasets([Dataset(root / name) for name in names or ALL], 0, workers)
    return {
        dataset.location.uri.removeprefix(f"{root}/"): found.examples for dataset, _, found in entries if found.counts
    }


def state(folder: Path) -> dict[Path, tuple[int, int]]:
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in folder.rglob("*")}


def test_good_datasets_have_no_finding_and_everything_is_looked_at(made):
    before = state(made)
    assert findings(made) == {}
    entries = check_datasets([Dataset(made / name) for name in ALL], 0, 0)
    looked = {table: found.checked for _, table, found in entries}
    views, painted_count = looked["tuples"]["pictures"], looked["distractors"]["pictures"]
    assert looked["tuples"]["masks"] == views
    assert painted_count == looked["distractors"]["backgrounds"] == looked["distractors"]["rows"] > views
    assert looked["tokens_index"]["tokens"] == looked["embeddings"]["rows"] == views + painted_count
    assert looked["margins"]["rows"] == 1
    assert state(made) == before


def test_curated_tuples_may_have_other_splits_than_what_they_were_drawn_from(made, tmp_path):
    tuples = Dataset(made / "tuples")
    rows = [row | {"split": "val"} for row in tuples.read().to_pylist()]
    drawn = {"tuples": tuples.digest(), "split_seed": 0}
    for content, expected in ((drawn, {}), ({"tuples": tuples.digest()}, {"split"})):
        shutil.rmtree(tmp_path / "other", ignore_errors=True)
        other = written(tmp_path / "other", "tuples", rows, "identity_id", content=content)
        found = [found for _, _, found in check_datasets([tuples, other], 0, 0)]
        assert set(found[0].counts) | set(found[1].counts) == set(expected)


@pytest.mark.parametrize(("plant", "expected"), [fault[1:] for fault in FAULTS], ids=[fault[0] for fault in FAULTS])
def test_a_planted_fault_is_named_where_it_is_and_nothing_else(made, tmp_path, plant, expected):
    root = tmp_path / "copy"
    shutil.copytree(made, root)
    plant(root)
    before, found = state(root), findings(root)
    assert {name: set(kinds) for name, kinds in found.items()} == {name: set(kinds) for name, kinds in expected.items()}
    for name, kinds in expected.items():
        for kind, said in kinds.items():
            assert said in found[name][kind][0]
    assert state(root) == before


def test_a_flipped_bit_and_a_cut_file_are_found_whatever_they_hit(made, tmp_path):
    for number, plant in enumerate((flip, cut)):
        root = tmp_path / str(number)
        shutil.copytree(made / "tuples", root / "tuples")
        plant(root)
        kinds = set(findings(root, "tuples")["tuples"])
        assert kinds & {"unreadable", "content-hash", "picture", "mask", "values", "row"}, kinds


def test_a_broken_settings_file_is_a_finding_not_a_crash(made, tmp_path):
    for number, text in enumerate(("{", "[]", '{"table": "toys", "content": {}, "content_digest": "x"}', "\xff")):
        root = tmp_path / str(number)
        shutil.copytree(made / "tuples", root / "tuples")
        (root / "tuples" / "settings.json").write_bytes(text.encode("latin-1"))
        assert set(findings(root, "tuples")["tuples"]) == {"settings"}
        if number != 2:  # a folder of another table is no dataset of the contract
            assert run_validate(Validate(datasets=(str(root),), workers=0)) == 1


def test_the_same_picture_in_two_splits_leaks_and_in_one_split_is_a_note(made, tmp_path):
    for split, kind in (("test", "leak"), ("train", "shared-picture")):
        root = tmp_path / split
        shutil.copytree(made / "tuples", root / "tuples")
        same_picture(root, split)
        found = findings(root, "tuples")["tuples"]
        assert kind in found
        assert ("near-duplicate" in found) == (split == "test")
        problems = run_validate(Validate(datasets=(str(root / "tuples"),), workers=0))
        assert problems == (kind == "leak")


def test_near_duplicates_across_splits_are_a_note_or_on_request_a_problem(made, tmp_path):
    def almost(rows: list[dict]) -> None:
        train = next(row for row in rows if row["split"] == "train")
        test = next(row for row in rows if row["split"] == "test")
        image_HW3 = decode_rgb(train["views"][0]["image"]["bytes"])
        image_HW3[0, 0] ^= 3
        encoded = encode_png(image_HW3)
        test["views"][0] = train["views"][0] | {
            "image": {"bytes": encoded, "path": ""},
            "view_id": content_hash(encoded),
            "perceptual_hash": perceptual_hash(image_HW3),
        }

    shutil.copytree(made / "tuples", tmp_path / "tuples")
    rewrite(tmp_path / "tuples", almost, "tuples")
    assert set(findings(tmp_path, "tuples")["tuples"]) == {"near-duplicate"}
    given = (str(tmp_path / "tuples"),)
    assert run_validate(Validate(datasets=given, workers=0, hash_distance=0)) == 0
    assert run_validate(Validate(datasets=given, workers=0, hash_distance=0, near_duplicates="problem")) == 1


def test_one_identity_in_two_datasets_with_different_splits_is_named(made, tmp_path):
    shutil.copytree(made / "tuples", tmp_path / "a")
    shutil.copytree(made / "tuples", tmp_path / "b")
    assert findings(tmp_path, "a", "b") == {}
    rewrite(tmp_path / "b", lambda rows: rows[2].update(split="val"), "tuples")
    found = findings(tmp_path, "a", "b")
    assert set(found) == {"b"}
    assert "in " + str(tmp_path / "a") in found["b"]["split"][0]


def test_doubled_rows_and_rows_of_another_plan_are_named(made, tmp_path):
    shutil.copytree(made, tmp_path / "c")
    rewrite(tmp_path / "c" / "tuples", lambda rows: [rows[0], *rows[:-1]], "tuples")
    found = findings(tmp_path / "c", "tuples")["tuples"]
    assert "1 duplicate key(s)" in found["values"][0]
    assert "row 1 is" in found["plan-rows"][0]
    rewrite(tmp_path / "c" / "tuples", lambda rows: rows[:-1], "tuples")
    assert "has 5 rows; its plan has 6" in findings(tmp_path / "c", "tuples")["tuples"]["plan-rows"][0]


def test_without_the_datasets_that_rows_name_they_are_not_compared_and_that_is_said(made):
    assert findings(made, "distractors") == {"distractors": {"not-compared": ["no tuples were given to compare with"]}}
    found = findings(made, "tuples", "tokens")
    assert found == {"tokens": {"not-compared": ["no distractors were given to compare with"]}}
    assert run_validate(Validate(datasets=(str(made / "distractors"),), workers=0)) == 0


def test_on_ray_the_same_is_found(made, tmp_path, ray_session):
    shutil.copytree(made, tmp_path / "c")
    repaint(tmp_path / "c", "background")
    damage_tokens(tmp_path / "c", "bit")
    assert findings(tmp_path / "c", workers=2) == findings(tmp_path / "c")


def test_mask_figures_of_the_toybox_are_those_of_its_masks(made):
    for row in Dataset(made / "tuples").read().to_pylist():
        for view in row["views"]:
            quality = mask_quality(decode_mask(view["mask"]["bytes"]))
            assert (view["mask_pieces"], view["mask_touches_border"]) == quality[1:]


def validate(monkeypatch, capfd, *argv: object) -> tuple[int, str]:
    monkeypatch.setattr(sys, "argv", ["validate.py", *map(str, argv)])
    monkeypatch.syspath_prepend(str(JOBS))
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(JOBS / "validate.py"), run_name="__main__")
    out, err = capfd.readouterr()
    assert "Traceback" not in err
    return int(ended.value.code or 0), out + err


def test_the_job_prints_a_table_and_its_exit_code_says_good_bad_or_wrong_input(made, tmp_path, monkeypatch, capfd):
    code, said = validate(monkeypatch, capfd, made)
    assert code == 0
    assert said.count("\n  ok") + said.count("\n  note") >= len(ALL)
    assert "no problem was found" in said
    shutil.copytree(made / "tuples", tmp_path / "tuples")
    view_with(size_px=3)(tmp_path)
    code, said = validate(monkeypatch, capfd, tmp_path / "tuples", made / "distractors")
    assert code == 1
    assert "PROBLEM  size" in said
    assert "1 problem(s) in 1 of 2 dataset(s)" in said
    for argv, message in (
        ((), "no dataset is given"),
        ((tmp_path / "nothing",), "does not exist"),
        ((made / "tuples" / "data",), "holds no dataset"),
        ((made, made / "tuples"), "is given more than once"),
        ((made, "--hash-distance", "40"), "hash_distance is 40"),
    ):
        code, said = validate(monkeypatch, capfd, *argv)
        assert code == 2
        assert message in " ".join(said.replace("│", " ").split())


def test_settings_out_of_range_are_refused():
    with pytest.raises(ValueError, match="workers is -1"):
        Validate(datasets=("x",), workers=-1)
    with pytest.raises(UsageError, match="does not exist"):
        run_validate(Validate(datasets=("/nowhere/at all",)))
