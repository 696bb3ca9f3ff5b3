"""Datasets and all jobs on a real S3 server: the same bytes as on disk, nothing half, and refusals in words."""

import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pytest

import schemas
from nearid_ray.data.pipeline import RunSettings, ShardResult, run_shard, shards_to_make
from nearid_ray.data.plan import Plan, make_plan
from nearid_ray.data.store import Dataset, locate, read_parquet, read_rows
from nearid_ray.embedding.cache import TokenCache
from nearid_ray.errors import UsageError
from tests.s3.faulty_proxy import Answer, faulty_proxy
from tests.s3.swift_server import SECRET

SIZES = ("--train-identities", 16, "--val-identities", 4, "--test-identities", 6)
SMALL = (*SIZES, "--max-steps", 24, "--alphas", 0.5, "--train-workers", 1, "--tracking-uri", "off")
TIMES = re.compile(r"/log/|summary\.json|checkpoint|history\.csv|report\.html|mlflow|mlartifacts")
"""Files that say how long something took, or where."""


def objects(uri: str) -> dict[str, pafs.FileInfo]:
    """Everything below a place, by its path there."""
    root = locate(uri)
    found = root.filesystem.get_file_info(pafs.FileSelector(root.path, recursive=True, allow_not_found=True))
    return {entry.path.removeprefix(root.path + "/"): entry for entry in found if entry.is_file}


def contents(uri: str) -> dict[str, bytes]:
    return {name: locate(uri).child(*name.split("/")).read_bytes() for name in objects(uri)}


def test_files_large_and_small_are_read_as_written(bucket):
    for name, data in (
        ("small", b"one"),
        ("empty", b""),
        ("with space & sign=1+2", b"two"),
        ("large", b"ab" * 7_000_000),
    ):
        place = locate(f"{bucket}/files/{name}")
        assert not place.exists()
        place.write_bytes(data)
        assert place.exists()
        assert place.read_bytes() == data
    locate(f"{bucket}/files/small").write_bytes(b"again")
    assert locate(f"{bucket}/files").child("small").read_bytes() == b"again"
    locate(f"{bucket}/files/empty").delete()
    locate(f"{bucket}/files/empty").delete()
    assert locate(f"{bucket}/files").names() == ["large", "small", "with space & sign=1+2"]


def test_a_listing_of_several_pages_is_whole_and_sorted(bucket):
    names = [f"{number:02}.parquet" for number in range(23)]
    for name in reversed(names):
        locate(f"{bucket}/pages/data/{name}").write_bytes(b"")
    locate(f"{bucket}/pages/data/deeper/x.parquet").write_bytes(b"")
    assert locate(f"{bucket}/pages/data").names(".parquet") == names
    assert locate(f"{bucket}/pages/none").names() == []


def test_an_upload_that_fails_in_the_middle_leaves_the_old_file(bucket, server, monkeypatch):
    large = bytes(25_000_000)
    locate(f"{bucket}/failing/old").write_bytes(b"old")
    with faulty_proxy(server.port, lambda method, path: Answer(403) if "partNumber=2" in path else None) as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        for name in ("old", "new"):
            with pytest.raises(UsageError, match="denies access"):
                locate(f"{bucket}/failing/{name}").write_bytes(large)
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint)
    assert contents(f"{bucket}/failing") == {"old": b"old"}


def test_an_interrupt_during_an_upload_leaves_a_whole_file_or_none(bucket, server, monkeypatch, request):
    seen, whole = [], bytes(12_000_000)

    def interrupt(method: str, path: str) -> None:
        if "uploads" in path and method == "POST":  # the upload is being opened, nothing is sent yet
            seen.append(path)
            os.kill(os.getpid(), signal.SIGINT)

    # A process started in the background ignores Ctrl-C until it says otherwise.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    with faulty_proxy(server.port, interrupt) as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        with pytest.raises(KeyboardInterrupt):
            locate(f"{bucket}/interrupted/file").write_bytes(whole)
    assert seen
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint)
    assert set(contents(f"{bucket}/interrupted").values()) <= {whole}


class Squares:
    """Squares numbers, with a side file a shard."""

    uses_model = False

    def setup(self) -> None:
        """Nothing to load."""

    def prepare(self, work: pa.Table) -> list[int]:
        return [int(name) for name in work["row_id"].to_pylist()]

    def compute(self, prepared: list[int]) -> list[int]:
        return [number**2 for number in prepared]

    def finish(self, work: pa.Table, computed: list[int]) -> ShardResult:
        table = pa.table({"row_id": work["row_id"], "square": computed, "error": [""] * len(computed)})
        return ShardResult(table, {f"side/{work['shard'][0].as_py()}.txt": str(sum(computed)).encode()})


def squares(uri: str | Path, rows: int = 20) -> Plan:
    """Plan and make what is missing; the plan as it was before."""
    output, task = Dataset(uri), Squares()
    work = pa.table({"row_id": [str(number) for number in range(rows)]})
    plan = make_plan(output, work, table="squares", content={"power": 2}, rows_per_shard=3)
    for shard in shards_to_make(output, plan, RunSettings()):
        run_shard(task, output, shard, plan.members(shard))
    return plan


def test_a_deleted_shard_is_made_again_with_the_same_bytes_as_on_disk(bucket, tmp_path):
    uri = f"{bucket}/squares"
    assert len(squares(uri).pending) == 7
    squares(tmp_path / "squares")
    first = contents(uri)
    assert first == contents(str(tmp_path / "squares"))
    assert squares(uri).pending == ()
    Dataset(uri).shard("000-000002").delete()
    assert Dataset(uri).missing_shards() == ["000-000002"]
    assert squares(uri).pending == ("000-000002",)
    assert contents(uri) == first
    assert len(squares(uri, rows=25).pending) == 2
    assert Dataset(uri).read(["row_id"])["row_id"].to_pylist() == [str(number) for number in range(25)]
    rows = read_rows(Dataset(uri).shard("000-000001"), [2, 0])
    assert rows["square"].to_pylist() == [25, 9]
    with pytest.raises(UsageError, match="power: there 2, now 3"):
        make_plan(Dataset(uri), pa.table({"row_id": ["1"]}), table="squares", content={"power": 3}, rows_per_shard=3)


@pytest.fixture(scope="module")
def demo(bucket, jobs, tmp_path_factory) -> tuple[str, Path]:
    """The same small demo on S3 and on disk."""
    folder = tmp_path_factory.mktemp("local")
    jobs("demo", "--output", f"{bucket}/demo", *SMALL)
    jobs("demo", "--output", folder / "demo", *SMALL)
    return f"{bucket}/demo", folder / "demo"


def summary_at(uri: str | Path) -> dict[str, Any]:
    return json.loads(locate(uri).child("summary.json").read_bytes())


def test_every_job_writes_on_s3_what_it_writes_on_disk(demo):
    uri, folder = demo
    there = {name: data for name, data in contents(uri).items() if not TIMES.search(name)}
    here = {name: data for name, data in contents(str(folder)).items() if not TIMES.search(name)}
    assert there.keys() == here.keys()
    assert [name for name in here if there[name] != here[name]] == []
    assert {name.partition("/")[0] for name in here} == {
        "tuples", "distractors", "tokens", "train", "evaluation", "report",
    }  # fmt: skip
    assert summary_at(uri)["scorers"] == summary_at(folder)["scorers"]
    assert locate(uri).child("report", "report.html").exists()


def test_what_is_on_s3_keeps_the_contract(demo):
    tuples = Dataset(f"{demo[0]}/tuples").arrow()
    for name in ("tuples", "distractors", "tokens", "evaluation/embeddings", "evaluation/margins"):
        assert schemas.validate(Dataset(f"{demo[0]}/{name}").arrow(), references={"tuples": tuples}) == []


def test_no_credentials_are_written_anywhere(demo, jobs):
    told = contents(demo[0]) | {str(path): path.read_bytes() for path in demo[1].rglob("*") if path.is_file()}
    told |= {str(path): path.read_bytes() for path in jobs.logs() if path.is_file()}
    assert len(told) > 100
    assert [name for name, data in told.items() if b"test:tester" in data or SECRET.encode() in data] == []


def test_after_a_loss_on_s3_only_what_is_missing_is_made_again(demo, jobs):
    uri, _ = demo
    before, data = objects(uri), contents(uri)
    lost = locate(uri).child("distractors", "data", "000-000001.parquet")
    rows = read_parquet(lost, ["error"]).num_rows
    lost.delete()
    locate(uri).child("train", "settings.json").delete()  # as if the job had been killed before its last file
    jobs("demo", "--output", uri, *SMALL)
    summary, after = summary_at(uri), objects(uri)
    assert summary["rows_made"] == rows
    made = {name for name, entry in after.items() if name not in before or entry.mtime != before[name].mtime}
    datasets = re.compile(r"(tuples|distractors|tokens|evaluation/embeddings)/(data|tokens|plan)/|train/checkpoints/")
    assert {name for name in made if datasets.match(name)} == {"distractors/data/000-000001.parquet"}
    now = contents(uri)
    assert [name for name in data if not TIMES.search(name) and now[name] != data[name]] == []


def test_a_token_cache_on_s3_reads_as_one_on_disk_and_is_copied_once(demo, tmp_path):
    uri, folder = demo
    here, there = TokenCache.open(folder / "tokens"), TokenCache.open(f"{uri}/tokens", local_dir=tmp_path)
    assert there.uri == f"{uri}/tokens"
    assert there.fingerprint == here.fingerprint
    assert there.index.equals(here.index)
    rows = np.random.default_rng(0).permutation(len(here))[:200]
    shape = (len(rows), here.tokens, here.width)
    assert np.array_equal(here.gather(rows, np.empty(shape, "f2")), there.gather(rows, np.empty(shape, "f2")))
    copies = {path: path.stat().st_ino for path in tmp_path.rglob("*.*") if path.is_file()}
    TokenCache.open(f"{uri}/tokens", local_dir=tmp_path)
    assert {path: path.stat().st_ino for path in tmp_path.rglob("*.*") if path.is_file()} == copies


def test_a_copy_follows_a_cache_that_was_made_anew(demo, bucket, tmp_path):
    uri, mine = f"{demo[0]}/tokens", f"{bucket}/tokens of another run"
    for name, data in contents(uri).items():
        locate(mine).child(*name.split("/")).write_bytes(data)
    whole = TokenCache.open(mine, local_dir=tmp_path)
    gone = Dataset(mine).shards()[-1]
    plan = Dataset(mine).plans()[0]
    for name in (f"data/{gone}.parquet", f"tokens/{gone}.arrow", "plan/000.parquet"):
        locate(mine).child(*name.split("/")).delete()
    rest = TokenCache.open(mine, local_dir=tmp_path)
    assert len(whole) - len(rest) == plan["shard"].to_pylist().count(gone)


INGEST = ("ingest", "toybox", "--test-identities", 2, "--train-identities", 0, "--val-identities", 0)


@pytest.mark.parametrize(
    ("output", "said"),
    [
        ("s3://no-such-bucket/x", "the bucket 'no-such-bucket' does not exist; create it first"),
        ("s3:///x", "expected s3://bucket/prefix"),
        ("s3://nearid//x", "a folder's name is empty"),
        ("s3://nearid/x?region=mars", "use AWS_ENDPOINT_URL and AWS_DEFAULT_REGION"),
        ("s3://key:hushhush@nearid/x", "credentials"),
    ],
)
def test_a_place_that_cannot_be_is_refused_in_words(bucket, run_job, output, said):
    ended = run_job(*INGEST, "--output", output, "--tracking-uri", "off")
    assert ended.code == 2
    assert said in ended.err
    assert "Traceback" not in ended.err
    assert "hushhush" not in ended.err + ended.out


@pytest.mark.parametrize("name", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_wrong_keys_are_refused_in_words(bucket, run_job, monkeypatch, name):
    monkeypatch.setenv(name, "wrong")
    for argv in (
        (*INGEST, "--output", f"{bucket}/x"),
        ("embed", "--tuples", f"{bucket}/demo/tuples", "--output", f"{bucket}/x"),
        ("report", "--evaluation", f"{bucket}/demo/evaluation", "--output", f"{bucket}/x"),
    ):
        ended = run_job(*argv, "--tracking-uri", "off")
        assert ended.code == 2
        assert "denies access; check" in ended.err
        assert "Traceback" not in ended.err


def test_inputs_that_are_not_there_are_refused_in_words(bucket, run_job):
    for tokens, said in ((f"{bucket}/nothing", "no dataset here"), ("s3://no-such-bucket/x", "does not exist")):
        ended = run_job("train", "--tokens", tokens, "--output", f"{bucket}/x", "--tracking-uri", "off")
        assert ended.code == 2
        assert said in ended.err


def test_an_output_on_s3_that_cannot_be_tracked_is_refused_before_anything_is_written(bucket, run_job):
    for argv in (INGEST, ("demo",)):
        ended = run_job(*argv, "--output", f"{bucket}/untracked")
        assert ended.code == 2
        assert "--tracking-uri" in ended.err
        assert "Traceback" not in ended.err
    assert [name for name in objects(bucket) if name.startswith("untracked")] == []
