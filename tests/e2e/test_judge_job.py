"""The judge job as a person runs it, on a tiny vision-language model, and its answers as a scorer of an evaluation."""

import csv
from collections.abc import Callable
from pathlib import Path

import pytest

from nearid_ray.data.store import Dataset
from schemas import JUDGEMENTS, validate
from tests.e2e.conftest import RunJob, summary_of
from tests.embedding.conftest import distractor_rows, tuple_rows, write_dataset
from tests.evaluation.pairwise.tiny_judge import REFUSAL, write_judge


@pytest.fixture
def data(tmp_path: Path) -> list[object]:
    rows = tuple_rows(["test", "test", "test"], views=3)
    write_dataset(tmp_path / "tuples", "tuples", rows)
    write_dataset(tmp_path / "distractors", "distractors", distractor_rows(rows))
    return ["--tuples", tmp_path / "tuples", "--distractors", tmp_path / "distractors"]


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted((folder / "data").iterdir())}


@pytest.mark.usefixtures("ray_session")
def test_a_judge_is_asked_once_goes_on_where_it_stopped_and_becomes_a_scorer(
    run_job: RunJob, tmp_path: Path, data: list[object]
) -> None:
    write_judge(tmp_path / "Tiny-Judge", only_answers=True)
    output = tmp_path / "judged"
    command = [*data, "--judge", f"vlm:{tmp_path / 'Tiny-Judge'}", "--output", output, "--rows-per-shard", 32]
    command += ["--max-new-tokens", 1, "--dtype", "float32", "--max-error-share", 0.9, "--workers", 1]
    planned = run_job("judge", *command, "--dry-run", "--seconds-a-row", 3.6)
    assert planned.code == 0 and not output.exists()
    assert "90, of which 90 are to be made" in planned.out and "0.09 at 3.60 s a row" in planned.out
    first = run_job("judge", *command)
    summary = summary_of(output)
    rows = Dataset(output).read().to_pylist()
    assert first.code == 0 and validate(Dataset(output).read(), JUDGEMENTS) == []
    unreadable = [row for row in rows if row["answer"] == REFUSAL]
    assert summary["scorer"] == "tiny-judge" and summary["rows"] == len(rows) == 90
    assert 0 < len(unreadable) == summary["unreadable_answers"] == summary["rows_with_error"] < 90
    assert summary["coverage"] == round(1 - len(unreadable) / 90, 4)
    assert all(row["similarity"] is None for row in unreadable)
    assert "Tell the instance from its category" in (output / "README.md").read_text()
    before = bytes_of(output)
    (output / "data" / "000-000001.parquet").unlink()
    assert run_job("judge", *command).code == 0
    assert bytes_of(output) == before and summary_of(output)["rows_made"] == 32
    strict = run_job("judge", *command, "--max-error-share", 0)
    assert strict.code == 1 and "rows have an error" in strict.err
    other = run_job("judge", *command, "--max-new-tokens", 2)
    assert other.code == 2 and "judge.max_new_tokens: there 1, now 2" in other.err
    evaluated = run_job("evaluate", "--judged", output, "--output", tmp_path / "evaluation", "--resamples", 10)
    assert evaluated.code == 0, evaluated.err
    with open(tmp_path / "evaluation" / "measures.csv") as stream:
        measures = list(csv.DictReader(stream))
    assert {row["scorer"] for row in measures} == {"tiny-judge"}
    covered = [float(row["coverage"]) for row in measures if row["metric"] == "pa"]
    assert covered and min(covered) < 1


@pytest.mark.usefixtures("ray_session")
def test_a_function_that_cannot_compare_ends_the_job_in_words(
    run_job: RunJob, tmp_path: Path, data: list[object]
) -> None:
    (tmp_path / "mine.py").write_text("def too_many(first, second):\n    return [0.5] * (len(first) + 1)\n")
    given = ["--judge", f"function:{tmp_path / 'mine.py'}:too_many", "--output", tmp_path / "judged"]
    ended = run_job("judge", *data, *given, "--conditions", "full", "--max-pairs", 8, "--workers", 1)
    assert ended.code == 2 and "gave an array of shape (9,) for 8 pairs; expected one number a pair" in ended.err


@pytest.mark.parametrize(
    ("judge", "message"),
    [
        ("gpt", "judge is 'gpt'; expected"),
        ("vsm", "VSM needs features: give an extractor"),
        ("vlm:./nowhere", "there is no such folder"),
        ("function:no_such_module:f", "cannot be imported"),
    ],
)
def test_a_judge_that_is_none_is_refused_before_anything_is_written(
    run_job: Callable, tmp_path: Path, data: list[object], judge: str, message: str
) -> None:
    ended = run_job("judge", *data, "--judge", judge, "--output", tmp_path / "judged")
    assert ended.code == 2 and message in ended.err + ended.out
    assert not (tmp_path / "judged" / "settings.json").exists()
