"""Jobs that are killed, that run out of disk, that run beside each other: what is finished stays, nothing is lost."""

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nearid_ray.data.store import Dataset
from tests.e2e.conftest import JOBS, photo, summary_of

IDENTITIES, SHARDS = 32, 8


def photos_without_masks(root: Path) -> Path:
    """Photos whose masks have to be found, which cuts them into several shards."""
    for identity in range(IDENTITIES):
        for view in range(2):
            photo(root / f"thing {identity:02}" / f"{view}.png", seed=10 * identity + view)
        for mask in (root / f"thing {identity:02}" / "masks").iterdir():
            mask.unlink()
    return root


def ingest_photos(root: object, *more: object) -> tuple[object, ...]:
    return "ingest", "photos", "--root", root, "--size-px", 64, "--tracking-uri", "off", *more


def start(name: str, *argv: object, **options: Any) -> subprocess.Popen:
    """A job in processes of its own."""
    return subprocess.Popen([sys.executable, str(JOBS / f"{name}.py"), *map(str, argv)], **options)


def kill_at(command: tuple[object, ...], reached: Callable[[], bool], *, after_s: float) -> None:
    """Run a job and kill it with all its processes, so long after a point in its work."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    job = start(*command, start_new_session=True, **quiet)  # type: ignore[arg-type]
    try:
        deadline = time.monotonic() + 120
        while not reached():
            assert time.monotonic() < deadline, "it did not get so far"
            assert job.poll() is None, "it ended by itself"
            time.sleep(0.02)
        time.sleep(after_s)
    finally:
        os.killpg(job.pid, signal.SIGKILL)
        job.wait()


def killed_thrice(command: tuple[object, ...], output: Dataset, seed: int) -> list[int]:
    """Kill one run after the other at three random points; how many shards were finished at each."""
    drawn, counts = random.Random(seed), []
    for _ in range(3):
        goal = (counts[-1] if counts else -1) + drawn.randint(1, 2)

        def reached(goal: int = goal) -> bool:
            return len(output.plans()) > 0 and len(output.shards()) >= goal

        kill_at(command, reached, after_s=drawn.uniform(0, 0.4))
        counts.append(len(output.shards()))
    return counts


def lasting(folder: Path) -> dict[str, str]:
    """What follows from the plan alone, hidden files included: not the times of a run."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    names = {str(path.relative_to(folder)): path for path in files}
    return {
        name: hashlib.sha256(path.read_bytes()).hexdigest()
        for name, path in sorted(names.items())
        if not name.startswith("log/") and name != "summary.json"
    }


@pytest.mark.faults
def test_a_job_killed_at_three_random_points_ends_with_the_same_bytes(ray_session, run_job, tmp_path):
    root = photos_without_masks(tmp_path / "my photos")
    command = (*ingest_photos(root, "--output", tmp_path / "tuples"), "--workers", 1)
    counts = killed_thrice(command, Dataset(tmp_path / "tuples"), seed=20)
    assert counts == sorted(counts)
    assert counts[2] < SHARDS
    ended = run_job(*command)
    assert ended.code == 0
    assert "has ended without an end; this run goes on with its work" in ended.out
    assert len(Dataset(tmp_path / "tuples").shards()) == SHARDS
    assert summary_of(tmp_path / "tuples")["rows_done_before"] >= counts[2] * IDENTITIES // SHARDS
    assert run_job(*ingest_photos(root, "--output", tmp_path / "undisturbed")).code == 0
    assert lasting(tmp_path / "tuples") == lasting(tmp_path / "undisturbed")


def test_a_job_on_a_full_disk_says_so_and_goes_on_when_there_is_room(ray_session, run_job, photos, small_disk):
    filler = small_disk.path / "filler"
    filler.write_bytes(bytes(4_000_000))
    output = small_disk.path / "tuples"
    command = ("ingest", "photos", "--root", photos, "--size-px", 1024, "--output", output, "--tracking-uri", "off")
    ended = run_job(*command)
    assert ended.code == 1
    assert ended.err.splitlines()[-1].startswith(f"error: no space left to write {output}")
    assert "Traceback" not in ended.err
    assert list(small_disk.path.rglob(".*")) == []
    small_disk.remount("size=64m")
    assert run_job(*command).code == 0
    assert Dataset(output).read().num_rows == 4


@pytest.mark.faults
def test_jobs_beside_each_other_in_one_folder_share_its_database_and_never_a_dataset(tmp_path):
    def started(name: str, identities: int) -> subprocess.Popen:
        counts = ("--train-identities", 0, "--val-identities", 0, "--test-identities", identities)
        told = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return start("ingest", "toybox", "--output", tmp_path / "runs" / name, *counts, **told)

    jobs = {name: started(name, 20 + number) for number, name in enumerate(("a", "b"))}
    deadline = time.monotonic() + 60
    while not (tmp_path / "runs" / "a" / ".lock").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    second = started("a", 20)
    out, err = second.communicate(timeout=120)
    assert second.returncode == 2, out + err
    assert "runs/a is being written by ingest of" in err
    assert f"(process {jobs['a'].pid})" in err
    assert "Traceback" not in err
    for number, (name, job) in enumerate(jobs.items()):
        out, err = job.communicate(timeout=120)
        assert job.returncode == 0, out + err
        assert Dataset(tmp_path / "runs" / name).read(["identity_id"]).num_rows == 20 + number
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name("nearid").experiment_id])
    assert sorted((run.info.run_name, run.info.status) for run in runs) == [
        ("ingest a", "FINISHED"),
        ("ingest b", "FINISHED"),
    ]
