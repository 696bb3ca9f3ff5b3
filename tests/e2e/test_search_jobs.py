"""align, retrieve and cluster as a person runs them: on DreamBench++ as it is published, and on photos."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import schemas
from nearid_ray.data.importers.dreambench import DreambenchImporter, DreambenchSettings
from nearid_ray.data.importers.dreambench_generated import DreambenchGeneratedImporter, DreambenchGeneratedSettings
from nearid_ray.data.importers.dreambench_ratings import DreambenchRatingsImporter, DreambenchRatingsSettings
from nearid_ray.data.importers.photos import PhotosImporter, PhotosSettings
from nearid_ray.data.ingest import ingest_task, plan_ingest
from nearid_ray.data.pipeline import run_shard
from nearid_ray.data.store import Dataset, locate
from nearid_ray.evaluation.human import alignment
from nearid_ray.evaluation.measures import find, read_measures
from tests.data.published import write_human_ratings, write_metric, write_references, write_samples
from tests.e2e.conftest import summary_of

QUIET = ("--tracking-uri", "off", "--resamples", 50)
FUNCTIONS = """
import numpy as np

def colours(images):
    return np.stack([np.concatenate([np.histogram(i[..., c], 8, (0, 256))[0] for c in range(3)]) + 1.0 for i in images])

def mean(images):
    return np.stack([i.reshape(-1, 3).mean(axis=0) + 1 for i in images])

def spread(images):
    return np.stack([i.reshape(-1, 3).std(axis=0) + 1 for i in images])
"""


def ingested(importer, output: Path) -> Path:
    """The dataset as ingest makes it, in this process."""
    dataset = Dataset(output)
    plan = plan_ingest(importer, dataset)
    for shard in plan.shard_names:
        run_shard(ingest_task(importer), dataset, shard, plan.members(shard))
    return output


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    """references, generated and ratings of a small DreamBench++, and functions that embed."""
    root = tmp_path_factory.mktemp("dream bench")
    write_references(root / "data")
    write_samples(root / "samples")
    write_human_ratings(root / "merged_data")
    write_metric(root / "gpt")
    (root / "mine.py").write_text(FUNCTIONS)
    ingested(DreambenchImporter(DreambenchSettings(root=str(root / "data"), size_px=48)), root / "references")
    ingested(DreambenchGeneratedImporter(DreambenchGeneratedSettings(root=str(root / "samples"))), root / "generated")
    ratings = DreambenchRatingsSettings(human=str(root / "merged_data"), metrics=(f"gpt={root / 'gpt'}",))
    ingested(DreambenchRatingsImporter(ratings), root / "ratings")
    return root


def test_scorers_are_compared_with_people_by_key_and_a_rerun_embeds_nothing(published, run_job, ray_session, tmp_path):
    inputs = [f"--{name}={published / name}" for name in ("tuples", "generated", "ratings")]
    inputs[0] = f"--tuples={published / 'references'}"
    scorers = [f"{name}={published}/mine.py:{name}" for name in ("colours", "mean", "spread")]
    ended = run_job("align", *inputs, "--scorers", *scorers, "--output", tmp_path / "a", *QUIET)
    assert ended.code == 0, ended.err
    assert summary_of(tmp_path / "a")["rows_made"] == 3 * (4 + 24)
    for name in ("embeddings", "generated_similarities", "alignment"):
        assert schemas.validate(tmp_path / "a" / name) == []
    measures = read_measures(locate(str(tmp_path / "a")))
    similarity = {
        (row["method"], f"{row['identity_id'].removeprefix('dreambench:')}-{row['prompt_index']}"): row["similarity"]
        for row in Dataset(tmp_path / "a" / "generated_similarities").read().to_pylist()
        if row["scorer"] == "colours"
    }
    for method in ("dreambooth_sd", "emu2"):
        groups = [json.loads((published / "merged_data" / g / f"{method}-cp.json").read_text())
                  for g in ("group1", "group2")]  # fmt: skip
        expected = alignment({key: value for (m, key), value in similarity.items() if m == method}, *groups)
        (found,) = find(measures, scorer="colours", name=method, metric="m_h")
        assert found.value == pytest.approx(expected.r, abs=1e-12) and found.coverage == 1
    assert {m.scorer for m in measures} == {"people", "colours", "mean", "spread", "gpt"}
    assert "Fisher-z mean" in ended.out and "H-H" in ended.out
    first = (tmp_path / "a" / "measures.csv").read_bytes()
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "a" / "embeddings" / "data").iterdir()}
    again = run_job("align", *inputs, "--scorers", *scorers, "--output", tmp_path / "a", *QUIET)
    assert again.code == 0 and summary_of(tmp_path / "a")["rows_made"] == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "a" / "embeddings" / "data").iterdir()} == stamps
    assert (tmp_path / "a" / "measures.csv").read_bytes() == first


def test_metrics_of_the_ratings_are_compared_without_pictures_and_mistakes_are_refused(published, run_job, tmp_path):
    ended = run_job("align", f"--ratings={published / 'ratings'}", "--output", tmp_path / "a", *QUIET)
    assert ended.code == 0 and "gpt" in ended.out
    refused = run_job("align", f"--ratings={published / 'ratings'}", "--scorers", "x=y", "--output", tmp_path / "b")
    assert refused.code == 2 and "give --tuples" in refused.err
    given = [f"--tuples={published / 'references'}", f"--generated={published / 'generated'}"]
    named = [*given, f"--ratings={published / 'ratings'}", "--output", tmp_path / "b", "--tracking-uri", "off"]
    refused = run_job("align", *named, "--scorers", f"gpt={published}/mine.py:mean")
    assert refused.code == 2 and "a metric of the ratings" in refused.err
    refused = run_job("align", *named, "--scorers", f"m={published}/mine.py:mean", "--conditions", "foreground")
    assert refused.code == 2 and "--mask-method" in refused.err
    refused = run_job("align", *named, "--scorers", f"m={published}/mine.py:mean", "--methods", "dall-e")
    assert refused.code == 2
    assert not (tmp_path / "b").exists()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """Photos of six identities, two views each as tuples and one as a query, and functions that embed."""
    root = tmp_path_factory.mktemp("search")
    random = np.random.default_rng(0)
    for number in range(6):
        colour = random.integers(0, 256, 3)
        for view in range(3):
            image = np.clip(colour + random.integers(-40, 40, (32, 32, 3)), 0, 255).astype(np.uint8)
            folder = root / ("queries" if view == 2 else "photos") / f"thing{number}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / f"{view}.png")
    (root / "mine.py").write_text(FUNCTIONS)
    settings = PhotosSettings(root=str(root / "photos"), size_px=32)
    ingested(PhotosImporter(settings), root / "tuples")
    return root


def test_queries_find_their_identity_and_clusters_are_the_identities(pictures, run_job, tmp_path):
    asked = ("--queries", pictures / "queries", "--scorers", f"mean={pictures}/mine.py:mean", "--top", 4)
    ended = run_job("retrieve", *asked, "--gallery", pictures / "tuples", "--output", tmp_path / "r", *QUIET)
    assert ended.code == 0, ended.err
    assert schemas.validate(tmp_path / "r" / "neighbours") == []
    rows = Dataset(tmp_path / "r" / "neighbours").read().to_pylist()
    assert len(rows) == 6 * 4
    for row in rows:
        if row["rank"] <= 2:
            assert row["same"] is True and row["identity_id"] == row["query_identity_id"]
    measured = read_measures(locate(str(tmp_path / "r")))
    assert {m.metric: m.value for m in find(measured, name="all")}["map"] == 1
    with Image.open(tmp_path / "r" / "sheet-mean.png") as sheet:
        assert sheet.width > 5 * 128
    clustered = run_job("cluster", "--embeddings", tmp_path / "r" / "gallery", "--clusters", 6, "--output",
                        tmp_path / "c", "--pictures", pictures / "tuples", "--tracking-uri", "off")  # fmt: skip
    assert clustered.code == 0, clustered.err
    assert schemas.validate(tmp_path / "c" / "clusters") == []
    assert summary_of(tmp_path / "c")["scores"]["adjusted_rand"] == 1
    assert (tmp_path / "c" / "sheet.png").exists()
    lines = (tmp_path / "c" / "clusters.csv").read_text().splitlines()
    assert len(lines) == 13 and lines[0].startswith("image_id,role,identity_id")


def test_searches_that_cannot_be_are_refused_before_anything_is_written(pictures, run_job, tmp_path):
    base = ["--gallery", pictures / "tuples", "--output", tmp_path / "x", "--tracking-uri", "off"]
    for more, said in (
        (["--queries", pictures / "queries"], "say with --scorers NAME=SPEC what embeds them"),
        (["--queries", pictures / "queries", "--scorers", "m=/no/model"], "/no/model"),
        (["--queries", pictures / "none.png", "--scorers", f"m={pictures}/mine.py:mean"], "does not exist"),
        (["--queries", pictures / "queries", "--scorers", f"m={pictures}/mine.py:mean", "--top", 0], "top is 0"),
    ):
        ended = run_job("retrieve", *base, *more)
        assert ended.code == 2 and said in ended.err, ended.err
    shutil.rmtree(tmp_path / "x", ignore_errors=True)
    ended = run_job("cluster", "--embeddings", pictures / "tuples", "--output", tmp_path / "c")
    assert ended.code == 2 and "expected a dataset of 'embeddings'" in ended.err


def test_an_output_that_another_job_wrote_is_left_alone(pictures, run_job, tmp_path):
    before = sorted(path.name for path in (pictures / "tuples").iterdir())
    for name, needs in (
        ("retrieve", ["--queries", pictures / "queries", "--gallery", pictures / "tuples"]),
        ("cluster", ["--embeddings", pictures / "tuples"]),
        ("evaluate", ["--tokens", pictures / "tuples"]),
    ):
        ended = run_job(name, *needs, "--output", pictures / "tuples", "--tracking-uri", "off")
        assert ended.code == 2 and "holds a dataset of 'tuples'; give a folder that is new" in ended.err, ended.err
    (tmp_path / "summary.json").write_text('{"job": "retrieve"}')
    ended = run_job("cluster", "--embeddings", pictures / "tuples", "--output", tmp_path, "--tracking-uri", "off")
    assert ended.code == 2 and "holds what the job 'retrieve' wrote" in ended.err
    assert sorted(path.name for path in (pictures / "tuples").iterdir()) == before
