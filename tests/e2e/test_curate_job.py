"""The curate job as a person runs it: a summary, nothing twice, and refusals that leave nothing."""

from nearid_ray.data.store import Dataset
from tests.data.test_card import toys
from tests.e2e.conftest import summary_of


def test_curate_splits_as_asked_makes_nothing_twice_and_its_output_is_valid(ray_session, run_job, tmp_path):
    toys(tmp_path / "tuples", train=9, test=3)
    argv = ("--tuples", tmp_path / "tuples", "--output", tmp_path / "my curated", "--tracking-uri", "off")
    assert run_job("curate", *argv, "--val", 2, "--test", 3).code == 0
    summary = summary_of(tmp_path / "my curated")
    assert {name: split["identities"] for name, split in summary["splits"].items()} == {
        "train": 7, "val": 2, "test": 3, "all": 12,
    }  # fmt: skip
    assert (summary["rows_made"], summary["left_out"]) == (12, {})
    again = run_job("curate", *argv, "--val", 2, "--test", 3)
    assert again.code == 0
    assert summary_of(tmp_path / "my curated")["rows_made"] == 0
    assert run_job("validate", tmp_path / "my curated").code == 0
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    other = run_job("curate", *argv, "--val", 2, "--test", 4)
    assert other.code == 2
    assert "sizes.test: there 3, now 4" in other.err
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()} == before


def test_refusals_are_one_message_and_leave_nothing(run_job, tmp_path):
    toys(tmp_path / "tuples", train=4, test=1)
    for argv, said in (
        (("--train", 4, "--test", 2), "train 4 + val 0 + test 2 = 6 identities are asked for; 5 are there"),
        (("--train", "rest", "--val", "rest"), "train and val are both the rest"),
        (("--kinds", "deformable"), "no identity stays (kind 5)"),
        (("--kinds", "wooden"), "expected some of rigid, deformable, unknown"),
        (("--min-views", 0), "min_views is 0"),
        (("--train", "some"), "--train"),
    ):
        output = tmp_path / "out"
        ended = run_job("curate", "--tuples", tmp_path / "tuples", "--output", output, *argv, "--tracking-uri", "off")
        assert ended.code == 2
        assert said in " ".join(ended.err.replace("│", " ").split())
        assert "Traceback" not in ended.err
        assert not output.exists()
    assert Dataset(tmp_path / "tuples").shards()


def test_help_is_for_people(run_job):
    for name, word in (("curate", "--near-duplicates"), ("show", "--against"), ("validate", "DATASET")):
        ended = run_job(name, "--help")
        assert ended.code == 0
        assert word in ended.out
        assert f"python jobs/{name}.py" in ended.out
