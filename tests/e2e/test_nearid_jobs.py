"""NearID's published tables through all jobs and back into their layout; and a table of other people."""

import json

import datasets
import pytest

import schemas
from nearid_ray.data.store import Dataset
from tests.data.published import encoded, put, scene
from tests.data.published_nearid import GAPS, as_parquet, distractors, index_file, positives
from tests.e2e.conftest import summary_of

pytestmark = pytest.mark.usefixtures("ray_session")


def test_published_tables_are_ingested_measured_and_exported_again(run_job, tmp_path):
    runs, views = tmp_path / "runs", 6 * 3 - len(GAPS)
    source = as_parquet(positives(), tmp_path / "NearID")
    tables = [
        as_parquet(distractors(shade=90), tmp_path / "NearID-Flux"),
        as_parquet(distractors(shade=10, scale=2), tmp_path / "NearID-SDXL_1024"),
    ]
    test = index_file(tmp_path / "test.json", list(range(6)))
    tuples, painted = runs / "tuples", runs / "distractors"
    ingest = ("ingest", "nearid", "--source", source, "--test-index", test, "--size-px", 64, "--output", tuples)
    assert run_job(*ingest).code == 0
    assert summary_of(tuples)["identities_with_2_views"] == len(GAPS)
    assert run_job(
        "ingest", "nearid-distractors", "--tuples", tuples, "--sources", *tables, "--output", painted
    ).code == 0  # fmt: skip
    made = summary_of(painted)
    assert (made["rows"], made["rows_with_error"], made["left_out"]) == (2 * views, 0, {})
    assert run_job("validate", tuples, painted).code == 0

    tokens, evaluation = runs / "tokens", runs / "evaluation"
    assert run_job("embed", "--tuples", tuples, "--distractors", painted, "--output", tokens).code == 0
    ended = run_job("evaluate", "--tokens", tokens, "--output", evaluation)
    assert ended.code == 0 and "flux-fill-512" in ended.out and "sdxl-1024" in ended.out

    export = ("export", "--tuples", tuples, "--distractors", painted, "--output", runs / "hub")
    assert run_job(*export).code == 0
    assert summary_of(runs / "hub")["files_made"] == 3
    assert run_job(*export).code == 0
    assert summary_of(runs / "hub")["files_made"] == 0
    again = runs / "again"
    command = ("--source", runs / "hub" / "positives", "--test-index", runs / "hub" / "splits" / "test.json")
    assert run_job("ingest", "nearid", *command, "--size-px", 64, "--output", again).code == 0
    columns = ["identity_id", "split", "category"]
    assert Dataset(again).read(columns) == Dataset(tuples).read(columns)
    folder = str(runs / "hub" / "distractors" / "sdxl-1024")
    loaded = datasets.load_dataset(folder, split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded[0]["nimg1"].size == (64, 64)


def test_what_does_not_fit_ends_with_one_message_and_nothing_written(run_job, tmp_path):
    source = as_parquet(positives(3), tmp_path / "NearID")
    wrong = index_file(tmp_path / "wrong.json", [0, 1, 1, 7])
    ended = run_job("ingest", "nearid", "--source", source, "--train-index", wrong, "--output", tmp_path / "tuples")
    assert ended.code == 2 and "1 row number(s) out of range: 7" in ended.err and "Traceback" not in ended.err
    assert not (tmp_path / "tuples").exists()
    good = ("--source", source, "--mask-method", "none", "--size-px", 32, "--output", tmp_path / "tuples")
    assert run_job("ingest", "nearid", *good).code == 0
    more = as_parquet(distractors(4), tmp_path / "NearID-Flux")
    ended = run_job(
        "ingest", "nearid-distractors", "--tuples", tmp_path / "tuples", "--sources", more, "--output", tmp_path / "d"
    )
    assert ended.code == 2 and "has 4 rows, the positives had 3" in ended.err
    assert not (tmp_path / "d").exists()
    ended = run_job("export", "--tuples", tmp_path / "tuples", "--output", tmp_path / "NearID")
    assert ended.code == 2 and "is not empty and holds no export" in ended.err


def test_a_table_of_other_people_needs_its_columns_named(run_job, tmp_path):
    for row in range(4):
        put(tmp_path / "t" / f"{row}.png", encoded(scene(row)))
    table = put(tmp_path / "t" / "t.csv", "thing,file\n" + "".join(f"mug {r % 2},{r}.png\n" for r in range(4)))
    output = tmp_path / "tuples"
    ended = run_job("ingest", "table", "--source", table, "--output", output)
    assert ended.code == 2 and "found the columns: thing, file" in ended.err
    named = ("--identity", "thing", "--image", "file", "--mask-method", "none", "--size-px", 32)
    assert run_job("ingest", "table", "--source", table, *named, "--output", output).code == 0
    assert schemas.validate(output) == []
    rows = Dataset(output).read(["identity_id", "provenance"]).to_pylist()
    assert [(row["identity_id"], json.loads(row["provenance"])["row"]) for row in rows] == [
        ("table:mug 0", 0),
        ("table:mug 1", 1),
    ]
