"""Lists of pairs: every picture is embedded once, rows keep their columns, and what is wrong stands in the row."""

import csv
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import schemas
from nearid_ray.data.pipeline import RunSettings, run_shard
from nearid_ray.data.store import Dataset, locate
from nearid_ray.errors import UsageError
from nearid_ray.evaluation.calibration import Calibration, OperatingPoint, reliability
from nearid_ray.models.checkpoint import CALIBRATION_FILE
from nearid_ray.scoring import score as module
from nearid_ray.scoring.calibrated import ConditionCalibration, StoredCalibration
from nearid_ray.scoring.pair_files import PairsFile
from nearid_ray.scoring.score import PlannedScores, ScoreSettings, plan_scores, write_csv
from nearid_ray.scoring.scorer import load
from nearid_ray.scoring.tasks import NOT_FINITE

RUN = RunSettings(gpus_per_worker=0)


def listed(path: Path, rows: list[tuple[object, ...]], head: tuple[str, ...] = ("a", "b")) -> Path:
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows([head, *rows])
    return path


def planned_of(pairs: Path, scorer: object, output: Path, **settings: object) -> PlannedScores:
    return plan_scores(str(pairs), str(scorer), locate(output), ScoreSettings(images_per_shard=2, **settings), RUN)


def scored(pairs: Path, scorer: object, output: Path, **settings: object) -> list[dict]:
    """The rows of all pairs, made without Ray."""
    make(planned_of(pairs, scorer, output, **settings))
    return Dataset(output / "scores").read().to_pylist()


def make(planned: PlannedScores) -> int:
    """Make the pending shards; how many there were."""
    steps = (
        (planned.image_task, planned.images, planned.image_plan),
        (planned.pair_task, planned.scores, planned.pair_plan),
    )
    for task, output, plan in steps:
        if plan.pending:
            task.setup()
        for shard in plan.pending:
            run_shard(task, output, shard, plan.members(shard))
    return sum(len(plan.pending) for *_, plan in steps)


def test_each_pair_has_the_scorers_similarity_and_its_own_columns(head_folder, files, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_PAIRS_PER_PART", 3)
    names = [path.name for path in files[:5]]
    every = [(a, b, f"note {a}, {b}", "9" * 40) for a in names for b in names]
    pairs = listed(files[0].parent / "all.csv", every, ("a", "b", "note", "number"))
    rows = scored(pairs, head_folder, tmp_path / "out")
    expected = load(str(head_folder), device="cpu").similarities(
        [files[0].parent / a for a, *_ in every], [files[0].parent / b for _, b, *_ in every]
    )
    assert [(row["a"], row["b"], row["note"], row["number"]) for row in rows] == every
    assert [row["row"] for row in rows] == list(range(len(every)))
    np.testing.assert_allclose([row["similarity"] for row in rows], expected, atol=1e-6)
    assert {(row["probability"], row["same"], row["error"]) for row in rows} == {(None, None, "")}
    images = Dataset(tmp_path / "out" / "images").read()["image"].to_pylist()
    assert images == [str(files[0].parent / name) for name in names]
    for name in ("images", "scores"):
        assert schemas.validate(tmp_path / "out" / name) == []


def test_a_picture_that_cannot_be_read_gives_rows_with_the_reason(head_folder, files, tmp_path):
    rows = [("0.png", "1.png"), ("0.png", "gone.png"), ("broken.png", "gone.png"), ("", "0.png"), ("2.png", "2.png")]
    found = scored(listed(files[0].parent / "bad.csv", rows), head_folder, tmp_path / "out")
    assert [row["similarity"] is None for row in found] == [False, True, True, True, False]
    assert found[1]["error"] == "b (gone.png): there is no such file"
    assert found[2]["error"].startswith("a (broken.png): not a picture in a known format")
    assert found[2]["error"].endswith("; b (gone.png): there is no such file")
    assert found[3]["error"] == "a: no picture is named"
    assert found[4]["similarity"] == pytest.approx(1)
    assert schemas.validate(tmp_path / "out" / "scores") == []


def test_only_missing_pictures_give_rows_too(head_folder, tmp_path):
    found = scored(listed(tmp_path / "p.csv", [("x.png", "y.png")]), head_folder, tmp_path / "out")
    assert found[0]["similarity"] is None and "x.png" in found[0]["error"] and "y.png" in found[0]["error"]


def test_a_second_run_has_nothing_to_do_and_a_lost_shard_is_made_again(head_folder, files, tmp_path):
    pairs = listed(files[0].parent / "again.csv", [(f"{n}.png", "0.png") for n in range(5)])
    assert make(planned_of(pairs, head_folder, tmp_path / "out")) == 3 + 1
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.parquet")}
    again = planned_of(pairs, head_folder, tmp_path / "out")
    assert not again.needs_ray(RUN) and make(again) == 0
    for lost in ("images/data/000-000001.parquet", "scores/data/000-000000.parquet"):
        (tmp_path / "out" / lost).unlink()
    assert make(planned_of(pairs, head_folder, tmp_path / "out")) == 2
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.parquet")} == before


def test_an_output_of_another_list_or_scorer_is_refused(head_folder, files, tmp_path):
    pairs = listed(files[0].parent / "one.csv", [("0.png", "1.png")])
    planned_of(pairs, head_folder, tmp_path / "out")
    with pytest.raises(UsageError, match=r"exists with other settings:\n  pairs: there"):
        planned_of(listed(files[0].parent / "one.csv", [("0.png", "2.png")]), head_folder, tmp_path / "out")
    with pytest.raises(UsageError, match=r"(?s)exists with other settings:.*scorer: there"):
        planned_of(pairs, "toybox-siglip2", tmp_path / "out")


def test_paths_count_from_the_list_or_the_root_and_parquet_keeps_its_types(functions, files, tmp_path):
    table = pa.table(
        {
            "weight": pa.array([2**62, None], pa.int64()),
            "a": pa.array(["0.png", None]),
            "b": pa.array([str(files[1]), "1.png"]).dictionary_encode(),
            "tags": pa.array([["x"], []]),
        }
    )
    pq.write_table(table, tmp_path / "p.parquet")
    found = scored(tmp_path / "p.parquet", f"{functions}:means", tmp_path / "out", root=str(files[0].parent))
    assert [(row["weight"], row["tags"]) for row in found] == [(2**62, ["x"]), (None, [])]
    assert found[0]["similarity"] == pytest.approx(load(f"{functions}:means").similarity(files[0], files[1]))
    assert found[1]["error"] == "a: no picture is named"
    with pytest.raises(UsageError, match=r"column tags of the pairs holds list<.*>, which no CSV can hold"):
        write_csv(Dataset(tmp_path / "out" / "scores"), locate(tmp_path / "s.csv"))
    assert not (tmp_path / "s.csv").exists()


def test_the_csv_has_every_row_and_column(functions, files, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_PAIRS_PER_PART", 2)
    rows = [(f"{n}.png", "0.png", 'a "quoted", line\nbreak') for n in range(5)]
    found = scored(listed(files[0].parent / "c.csv", rows, ("a", "b", "note")), f"{functions}:means", tmp_path / "out")
    write_csv(Dataset(tmp_path / "out" / "scores"), locate(tmp_path / "out" / "scores.csv"))
    with (tmp_path / "out" / "scores.csv").open(newline="") as stream:
        read = list(csv.DictReader(stream))
    assert [row["note"] for row in read] == [row["note"] for row in found]
    assert [float(row["similarity"]) for row in read] == [row["similarity"] for row in found]


def test_scores_with_further_columns_open_with_datasets(functions, files, tmp_path):
    from datasets import load_dataset

    pairs = listed(files[0].parent / "d.csv", [("0.png", "1.png", "x")], ("a", "b", "note"))
    scored(pairs, f"{functions}:means", tmp_path / "out")
    data = [str(path) for path in (tmp_path / "out" / "scores" / "data").iterdir()]
    loaded = load_dataset("parquet", data_files=data, split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded.column_names[-2:] == ["error", "note"] and loaded[0]["note"] == "x"


def test_a_function_that_fails_on_one_picture_spoils_no_other(files, tmp_path):
    (tmp_path / "mine.py").write_text(
        "import numpy as np\n"
        "def embed(images):\n"
        "    if any(image.shape[0] == 120 for image in images): raise ValueError('too tall')\n"
        "    rows = np.stack([image.reshape(-1, 3).mean(axis=0) for image in images])\n"
        "    rows[[image.shape[0] == 150 for image in images]] = np.nan\n"
        "    return rows\n"
    )
    pairs = listed(files[0].parent / "f.csv", [(f"{n}.png", "0.png") for n in range(5)])
    found = scored(pairs, f"{tmp_path}/mine.py:embed", tmp_path / "out")
    assert [row["similarity"] is None for row in found] == [False, False, True, True, False]
    assert "raised ValueError on 1 picture(s): too tall" in found[2]["error"]
    assert found[3]["error"] == f"a (3.png): {NOT_FINITE}"


@pytest.mark.parametrize(("name", "message"), [("raises", "no weights"), ("flat", r"expected \(2, D\)")])
def test_a_function_that_cannot_work_is_told_before_any_picture_is_read(functions, files, tmp_path, name, message):
    with pytest.raises(UsageError, match=message):
        planned_of(listed(files[0].parent / "g.csv", [("0.png", "1.png")]), f"{functions}:{name}", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"is empty \(0 bytes\)"),
        ("first,second\n", r"has no column a and no column b; found first, second"),
        ("a;b\nx;y\n", r"found a;b; .*give --delimiter ';'"),
        ("a,b,b\n", "has the column b more than once"),
        ("a,b,similarity\n", "has a column similarity, which the scores will have too"),
        ("a,b\n", "names no picture: it has no rows"),
        ("a,b\n,\n", "names no picture"),
        ("a,b\nx\n", r"cannot be read as CSV: .*Row #2: Expected 2 columns, got 1"),
    ],
)
def test_a_list_that_cannot_be_used_is_refused(head_folder, tmp_path, content, message):
    (tmp_path / "p.csv").write_text(content)
    with pytest.raises(UsageError, match=message):
        planned_of(tmp_path / "p.csv", head_folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_is_no_list_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"gone.csv does not exist; expected a CSV or Parquet file"):
        PairsFile.open(str(tmp_path / "gone.csv"))
    with pytest.raises(UsageError, match="is a folder"):
        PairsFile.open(str(tmp_path))
    (tmp_path / "p.parquet").write_bytes(b"no")
    with pytest.raises(UsageError, match=r"cannot be read as Parquet"):
        PairsFile.open(str(tmp_path / "p.parquet"))
    (tmp_path / "l.csv").write_bytes("a,b\nd\xe9j\xe0.png,x\n".encode("latin-1"))
    with pytest.raises(UsageError, match=r"cannot be read as CSV: .*invalid UTF8"):
        list(PairsFile.open(str(tmp_path / "l.csv")).batches())


def stored_calibration(fingerprint: str) -> StoredCalibration:
    """Half at 0.5, steep; accepted from 0.75 on."""
    fitted = Calibration(kind="logistic", slope=20.0, intercept=-10.0, same_share=0.5, num_pairs=1000)
    point = OperatingPoint(
        threshold=0.75, false_accept_rate=0.01, true_accept_rate=0.9, wished=0.01, num_different=5000, coverage=1.0
    )
    curve = reliability(fitted.probability([0.1, 0.9]), [False, True])
    found = ConditionCalibration(calibration=fitted, points=(point,), reliability=curve)
    return StoredCalibration(
        scorer="mine", fingerprint=fingerprint, split="val", kinds=("random",), conditions={"full": found}
    )


def test_a_calibration_gives_probabilities_and_verdicts(functions, files, tmp_path):
    spec = f"{functions}:means"
    stored = stored_calibration(load(spec).fingerprint)
    (tmp_path / CALIBRATION_FILE).write_bytes(stored.to_bytes())
    assert StoredCalibration.from_bytes(stored.to_bytes(), "x").to_bytes() == stored.to_bytes()
    pairs = listed(files[0].parent / "k.csv", [(f"{n}.png", "0.png") for n in range(5)] + [("gone.png", "0.png")])
    found = scored(pairs, spec, tmp_path / "out", calibration=str(tmp_path))
    for row in found[:5]:
        assert row["probability"] == pytest.approx(1 / (1 + np.exp(10 - 20 * row["similarity"])))
        assert row["same"] is (row["similarity"] >= 0.75)
    assert (found[5]["probability"], found[5]["same"]) == (None, None)
    assert {row["same"] for row in found[:5]} == {True, False}
    with pytest.raises(UsageError, match=r"no threshold for a false-accept rate of 0.001; it has 0.01"):
        planned_of(pairs, spec, tmp_path / "o2", calibration=str(tmp_path), false_accept_rate=0.001)
    (tmp_path / CALIBRATION_FILE).write_bytes(stored_calibration("0" * 16).to_bytes())
    with pytest.raises(UsageError, match=r"calibration is of a scorer with the fingerprint 0{16} \(mine\)"):
        planned_of(pairs, spec, tmp_path / "o2", calibration=str(tmp_path))
    with pytest.raises(UsageError, match=r"holds no calibration.json"):
        planned_of(pairs, spec, tmp_path / "o2", calibration=str(tmp_path / "nowhere"))


@pytest.mark.parametrize("as_module", [False, True])
def test_relative_places_of_scorer_and_list_hold_on_workers(functions, files, tmp_path, monkeypatch, as_module):
    monkeypatch.chdir(files[0].parent)
    listed(Path("r.csv"), [("0.png", "1.png")])
    Path("my_own.py").write_text(functions.read_text())
    spec = "my_own:means" if as_module else os.path.relpath(functions) + ":means"
    planned = planned_of(Path("r.csv"), spec, tmp_path / "out")
    monkeypatch.chdir("/")
    make(planned)
    assert Dataset(tmp_path / "out" / "scores").count_errors() == (1, 0)
