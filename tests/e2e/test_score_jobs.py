"""score and calibrate as a person runs them: the commands, what a rerun makes, exit codes and messages."""

import csv
from pathlib import Path

import pytest

import schemas
from nearid_ray.data.store import Dataset
from tests.e2e.conftest import summary_of
from tests.scoring.conftest import files, functions, head_folder, toy  # noqa: F401  (fixtures)


def test_score_makes_every_pair_once_and_tells_of_pictures_it_cannot_read(
    ray_session,
    run_job,
    head_folder,  # noqa: F811
    files,  # noqa: F811
    tmp_path: Path,
):
    pairs = files[0].parent / "job.csv"
    rows = [(f"{n}.png", "0.png", f"note {n}") for n in range(5)] + [("broken.png", "0.png", "bad")]
    with pairs.open("w", newline="") as stream:
        csv.writer(stream).writerows([("a", "b", "note"), *rows])
    command = ("score", pairs, "--scorer", head_folder, "--output", tmp_path / "out", "--csv", "--tracking-uri", "off")
    ended = run_job(*command, "--workers", 1)
    assert ended.code == 1 and "1 of 6 rows have an error (16.7%)" in ended.err
    summary = summary_of(tmp_path / "out")
    assert (summary["pictures"], summary["pictures_with_error"], summary["rows_with_error"]) == (6, 1, 1)
    scores = Dataset(tmp_path / "out" / "scores").read().to_pylist()
    assert [row["note"] for row in scores] == [note for *_, note in rows]
    assert scores[0]["similarity"] == pytest.approx(1)
    assert (tmp_path / "out" / "scores.csv").read_text().count("\n") == len(rows) + 1
    assert schemas.validate(tmp_path / "out" / "scores") == []
    ended = run_job(*command, "--max-error-share", 0.2)
    assert ended.code == 0 and summary_of(tmp_path / "out")["rows_made"] == 0


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("score", "{pairs}", "--scorer", "{gone}", "--output", "{out}"), "there is no such folder"),
        (("score", "{gone}", "--scorer", "toybox-siglip2", "--output", "{out}"), "does not exist; expected a CSV"),
        (("calibrate", "--scorer", "toybox-siglip2", "--records", "{gone}", "--output", "{out}"), "no dataset here"),
    ],
)
def test_a_mistake_is_told_in_a_sentence(run_job, tmp_path, command, message):
    (tmp_path / "pairs.csv").write_text("a,b\nx.png,y.png\n")
    places = {"pairs": tmp_path / "pairs.csv", "gone": tmp_path / "gone", "out": tmp_path / "out"}
    name, *rest = (word.format(**places) for word in command)
    ended = run_job(name, *rest, "--tracking-uri", "off", *(("--gpus-per-worker", 0) if name == "score" else ()))
    assert ended.code == 2 and message in ended.err and "Traceback" not in ended.err
