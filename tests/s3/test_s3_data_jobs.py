"""Curate, show and validate on a real S3 server: the same as on disk, and nothing written where nothing should be."""

import pytest

from nearid_ray.data.card import licence_of
from nearid_ray.data.compare import compare
from nearid_ray.data.show import describe
from nearid_ray.data.store import Dataset, locate
from tests.data.test_card import toys
from tests.s3.test_s3 import contents, objects

SIZES = ("--val", 2, "--test", 3, "--tracking-uri", "off")


@pytest.fixture(scope="module")
def curated(bucket, jobs, tmp_path_factory) -> tuple[str, str]:
    """The same toybox curated on S3 and on disk."""
    folder = tmp_path_factory.mktemp("local")
    toys(f"{bucket}/curation/tuples", train=8, test=2)
    toys(folder / "tuples", train=8, test=2)
    jobs("curate", "--tuples", f"{bucket}/curation/tuples", "--output", f"{bucket}/curation/curated", *SIZES)
    jobs("curate", "--tuples", folder / "tuples", "--output", folder / "curated", *SIZES)
    return f"{bucket}/curation", str(folder)


def test_curation_on_s3_gives_the_bytes_it_gives_on_disk_and_the_licence(curated):
    there, here = (contents(f"{place}/curated") for place in curated)
    same = {name for name in here if not name.startswith(("log/", "summary"))}
    assert {name for name in there if not name.startswith(("log/", "summary"))} == same
    assert [name for name in same if there[name] != here[name]] == []
    assert licence_of(Dataset(f"{curated[0]}/curated")) == "cc-by-4.0"


def test_show_and_validate_say_the_same_of_both_and_write_nothing(curated, run_job, tmp_path):
    uri, folder = curated
    before = {name: entry.mtime for name, entry in objects(uri).items()}
    said, local = (describe(Dataset(f"{place}/curated")) for place in curated)
    assert {k: v for k, v in said.items() if k != "bytes"} == {k: v for k, v in local.items() if k != "bytes"}
    assert not compare(Dataset(f"{uri}/curated"), Dataset(f"{folder}/curated")).any
    assert run_job("validate", f"{uri}/tuples").code == 0
    shown = run_job("show", f"{uri}/curated", "--sheet", tmp_path / "sheet.png")
    assert (shown.code, (tmp_path / "sheet.png").exists()) == (0, True)
    assert run_job("show", uri).out.count("\n  rows  ") == 2
    assert {name: entry.mtime for name, entry in objects(uri).items()} == before
    inside = run_job("show", f"{uri}/curated", "--sheet", f"{uri}/curated/sheet.png")
    assert inside.code == 2
    assert "lies in the dataset" in inside.err


def test_faults_on_s3_are_named(curated, run_job):
    uri = curated[0]
    shard = locate(f"{uri}/curated").child("data", "000-000000.parquet")
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-50])
    locate(f"{uri}/curated").child("data", "stray.parquet").write_bytes(b"")
    ended = run_job("validate", f"{uri}/curated")
    assert ended.code == 1
    assert "unreadable" in ended.out
    assert "stray-file" in ended.out
    assert "Traceback" not in ended.err
    assert run_job("validate", f"{uri}/nothing").code == 2
