"""The demo and the jobs on toy data: what they make, that nothing is made twice, and which mistakes they refuse."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import schemas
from nearid_ray.data.store import Dataset, locate
from nearid_ray.evaluation.measures import find, read_measures, to_csv
from tests.e2e.conftest import JOBS, summary_of

TRAIN_ENGINES = ("toybox-redraw", "toybox-recolor", "toybox-reshape", "toybox-retexture")
SIZES = ("--train-identities", 48, "--val-identities", 10, "--test-identities", 12)
SMALL = (*SIZES, "--max-steps", 30, "--alphas", 0.5, 0)


@pytest.fixture(scope="module")
def demo(tmp_path_factory, ray_session) -> Path:
    """A small finished demo, made by the script in a process and a Ray session of its own."""
    output = tmp_path_factory.mktemp("demo") / "small demo"
    command = [sys.executable, JOBS / "demo.py", "--output", output, *SMALL]
    ended = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=400, env=os.environ)
    assert ended.returncode == 0, ended.stderr
    assert "toybox (toy data) and toybox-siglip2 (toy backbone)" in ended.stdout
    return output


def test_the_demo_makes_every_dataset_right_and_whole(demo):
    for name in ("tuples", "distractors", "tokens"):
        assert schemas.validate(demo / name, references={"tuples": demo / "tuples"}) == []
    for name in ("embeddings", "similarities", "margins"):
        assert schemas.validate(demo / "evaluation" / name) == []
    distractors = Dataset(demo / "distractors").read()
    assert set(distractors["background_max_difference"].to_pylist()) == {0}
    engines = {split: set() for split in ("train", "val", "test")}
    for row in distractors.select(["split", "engine"]).to_pylist():
        engines[row["split"]].add(row["engine"])
    assert len(engines["train"]) == 4
    assert engines["val"] == engines["test"]
    assert len(engines["test"]) == 9


def test_the_demos_summary_has_ssr_and_pa_of_every_scorer_and_engine(demo):
    summary = summary_of(demo)
    assert set(summary["scorers"]) == {"frozen", "nearid-alpha-0.5", "nearid-alpha-0"}
    for rates in summary["scorers"].values():
        assert {"train", "unseen", "object-level", "part-level", "toybox-redraw", "toybox-decal"} <= set(rates)
        for rate in rates.values():
            assert 0 <= rate["ssr_low"] <= rate["ssr"] <= rate["ssr_high"] <= 1
            assert 0 <= rate["pa"] <= 1
    assert (demo / "report" / "report.html").stat().st_size > 50_000
    drawn = {path.stem for path in (demo / "report" / "figures").glob("*.svg")}
    assert drawn >= {"alpha-curves", "figure3-attention", "figure5-projection", "figure7-tuples", "figure8-parts"}


def test_every_job_of_the_demo_is_a_run_in_mlflow(demo):
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{demo / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name("nearid").experiment_id])
    assert sorted(run.data.tags["job"] for run in runs) == [
        "embed", "evaluate", "ingest", "report", "synthesize", "train",
    ]  # fmt: skip
    assert {run.info.status for run in runs} == {"FINISHED"}
    trained = next(run for run in runs if run.data.tags["job"] == "train")
    assert trained.data.params["learning_rate"] == "0.001"
    losses = client.get_metric_history(trained.info.run_id, "nearid-alpha-0.5.loss")
    assert [metric.step for metric in losses] == list(range(1, 31))


def test_a_second_demo_makes_nothing_twice_and_says_so(demo, run_job):
    stamps = {path: path.stat().st_mtime_ns for path in demo.rglob("*.parquet")}
    first = summary_of(demo)["scorers"]
    ended = run_job("demo", "--output", demo, *SMALL)
    assert ended.code == 0
    assert "Nothing was made twice" in ended.out
    assert {path: path.stat().st_mtime_ns for path in demo.rglob("*.parquet")} == stamps
    assert summary_of(demo)["scorers"] == first


def test_the_same_seed_gives_the_same_bytes(demo, run_job, tmp_path):
    assert run_job("ingest", "toybox", "--output", tmp_path / "tuples", *SIZES, "--workers", 1).code == 0
    names = sorted(path.name for path in (demo / "tuples" / "data").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "tuples" / "data").iterdir())
    for name in names:
        assert (tmp_path / "tuples" / "data" / name).read_bytes() == (demo / "tuples" / "data" / name).read_bytes()


def test_stored_embeddings_are_measured_again_without_tokens_and_give_the_same_numbers(demo, run_job, tmp_path):
    stored = demo / "evaluation" / "embeddings"
    arguments = ("--embeddings", stored, "--output", tmp_path / "e", "--conditions", "full", "--tracking-uri", "off")
    ended = run_job("evaluate", *arguments, "--train-engines", *TRAIN_ENGINES)
    assert ended.code == 0
    assert "Agreement with the oracle, M-O" in ended.out
    of_tokens, again = (read_measures(locate(str(folder))) for folder in (demo / "evaluation", tmp_path / "e"))
    assert find(again, benchmark="mtg", metric="m_o", name="part-level")
    assert to_csv(again) == to_csv(find(of_tokens, condition="full"))


def test_heads_of_another_backbone_and_unfinished_inputs_are_refused(demo, run_job, tmp_path):
    other = tmp_path / "other head"
    best = demo / "train" / "heads" / "nearid-alpha-0.5" / "best"
    other.mkdir()
    for file in best.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    card = json.loads((other / "head.json").read_text())
    (other / "head.json").write_text(json.dumps(card | {"backbone": "somebody/else", "backbone_fingerprint": "0" * 16}))
    ended = run_job("evaluate", "--tokens", demo / "tokens", "--heads", f"x={other}", "--output", tmp_path / "e")
    assert ended.code == 2
    assert "somebody/else" in ended.err
    ended = run_job("evaluate", "--tokens", demo / "tokens", "--heads", str(best), "--output", tmp_path / "e")
    assert ended.code == 2
    assert "NAME=FOLDER" in ended.err
    ended = run_job("train", "--tokens", demo / "tuples", "--output", tmp_path / "t")
    assert ended.code == 2
    assert "expected a dataset of 'tokens_index'" in ended.err
    assert not (tmp_path / "e").exists()
    assert not (tmp_path / "t").exists()


def test_tokens_of_another_backbone_do_not_mix(demo, run_job, tmp_path):
    from nearid_ray.toybox.backbone import random_backbone, weights_folder

    folder = tmp_path / "random backbone"
    random_backbone(seed=1).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_bytes((weights_folder() / "preprocessor_config.json").read_bytes())
    inputs = ("--tuples", demo / "tuples", "--distractors", demo / "distractors")
    ended = run_job("embed", *inputs, "--output", demo / "tokens", "--backbone", folder)
    assert ended.code == 2
    assert "toybox" in ended.err
    assert "random backbone" in ended.err


NEW_TRAINING = ("--tokens", "{demo}/tokens", "--output", "{out}")
MISTAKES = [
    ("ingest", (), "expected `jobs/ingest.py SOURCE [OPTIONS]` with SOURCE one of: toybox, photos"),
    ("ingest", ("imagenet",), "'imagenet' is no source"),
    ("ingest", ("toybox", "--output", "{out}", "--test-identities", "-1"), "test_identities is -1"),
    ("ingest", ("toybox", "--output", "{out}", "--worker", "2"), "--workers"),
    ("synthesize", ("--tuples", "{demo}/nothing", "--output", "{out}"), "no dataset here"),
    ("synthesize", ("--tuples", "{demo}/tuples", "--output", "{out}", "--engines", "sdxl-42"), "engine 'sdxl-42'"),
    (
        "synthesize",
        ("--tuples", "{demo}/tuples", "--output", "{demo}/distractors", "--run-seed", "9"),
        "run_seed: there 0, now 9",
    ),
    ("embed", ("--tuples", "{demo}/tuples", "--output", "{out}", "--backbone", "{demo}/tuples"), "config.json"),
    ("embed", ("--tuples", "{demo}/tuples", "--output", "{out}", "--draws", "-1"), "draws is -1"),
    (
        "embed",
        ("--tuples", "{demo}/tuples", "--output", "{demo}/tuples"),
        "holds 'tuples', this job writes 'tokens_index'",
    ),
    (
        "train",
        ("--tokens", "{demo}/tokens", "--output", "{demo}/tokens"),
        "holds 'tokens_index', this job writes heads",
    ),
    ("train", (*NEW_TRAINING, "--preset", "huge"), "known presets: paper, table3/circle-rank"),
    ("train", (*NEW_TRAINING, "--alpha", "-1"), "alpha is -1"),
    ("train", (*NEW_TRAINING, "--max-steps", "50"), "warmup_steps 100 must be below the number of steps, which is 50"),
    ("train", (*NEW_TRAINING, "--config", "{yaml}"), "unknown key alhpa; did you mean alpha?"),
    (
        "train",
        ("--tokens", "{demo}/tokens", "--output", "{demo}/train", "--alphas", "7", "--preset", "toybox"),
        "exists with other settings",
    ),
    ("evaluate", ("--tokens", "{demo}/tokens", "--output", "{out}", "--split", "holdout"), "split is 'holdout'"),
    ("evaluate", ("--output", "{out}"), "expected --tokens, --embeddings or --judged"),
    ("report", ("--evaluation", "{demo}/tuples", "--output", "{out}"), "metrics.json"),
    ("synthesize", ("--tuples", "{demo}/tuples", "--output", "{out}", "--workers", "99"), "the cluster has 4 CPU"),
    ("ingest", ("toybox", "--output", "gs://bucket/tuples"), "gs:// is not supported"),
    ("ingest", ("toybox", "--output", "{yaml}"), "settings.yaml is a file; give a folder"),
    ("ingest", ("toybox", "--output", "{yaml}/out"), "this folder cannot be made"),
    ("ingest", ("toybox", "--output", "{out}", "--tracking-uri", "foo"), "tracking_uri is 'foo'"),
    ("train", (*NEW_TRAINING, "--alphas", "0.5", "0.5", "--preset", "toybox"), "alphas holds a value twice: 0.5"),
    ("demo", ("--output", "{out}", "--alphas"), "alphas"),
    ("demo", ("--output", "{out}", "--categories", "x.csv"), "give --photos"),
]


@pytest.mark.parametrize(("job", "argv", "said"), MISTAKES)
def test_a_mistake_is_one_clear_message_and_leaves_nothing(demo, run_job, tmp_path, job, argv, said):
    (tmp_path / "settings.yaml").write_text("alhpa: 0.5\n")
    places = {"demo": demo, "out": tmp_path / "new" / "out", "yaml": tmp_path / "settings.yaml"}
    before = sorted(demo.rglob("*"))
    ended = run_job(job, *(part.format(**places) for part in argv))
    assert ended.code == 2
    assert said in " ".join(ended.err.replace("│", " ").split())
    assert "Traceback" not in ended.err
    assert not (tmp_path / "new" / "out").exists()
    assert sorted(demo.rglob("*")) == before


@pytest.mark.parametrize("job", ["ingest", "synthesize", "embed", "train", "evaluate", "report", "demo"])
def test_help_is_for_people(run_job, job):
    source = ("toybox",) if job == "ingest" else ()
    ended = run_job(job, *source, "--help")
    assert ended.code == 0
    assert "--output" in ended.out
    assert "python jobs/" in ended.out or job == "ingest"
