"""Sweeps whose workers and driver are killed: the same command goes on, and nothing comes out differently."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from nearid_ray.models.checkpoint import load_head

pytestmark = pytest.mark.faults

JOB = Path(__file__).parents[2] / "jobs" / "tune.py"
SETTINGS = [
    *("--workers", "1", "--global-batch", "12", "--learning-rate", "3e-3", "--warmup-steps", "3"),
    *("--max-steps", "240", "--evaluate-every", "20", "--checkpoint-every", "40", "--tracking-uri", "off"),
]
SWEEPS = {
    "fused": ["--space", "alpha=0,0.5,1", "clip=1,0.5"],
    "halving": ["--space", "alpha=0,1", "learning_rate=3e-3,1e-4", "--asha", "--grace-steps", "80"],
    "alone": ["--space", "alpha=0,1", "--no-fuse"],
    "optuna": ["--space", "alpha=uniform:0..2", "--search", "optuna", "--trials", "3"],
}


def command(cache_uri: str, output: Path, sweep: str) -> list[str]:
    return [sys.executable, str(JOB), "--tokens", cache_uri, "--output", str(output), *SETTINGS, *SWEEPS[sweep]]


def records(output: Path) -> dict[str, Any]:
    return {path.stem: json.loads(path.read_bytes()) for path in (output / "trials").glob("*.json")}


def children(pid: int) -> list[int]:
    """All processes below one."""
    listed = subprocess.run(["ps", "-eo", "pid,ppid"], capture_output=True, text=True, check=True).stdout.split("\n")
    pairs = [tuple(map(int, line.split())) for line in listed[1:] if line.strip()]
    found, below = [], [pid]
    while below:
        below = [child for child, parent in pairs if parent in below]
        found += below
    return found


def is_running(pid: int) -> bool:
    """Whether a process is there and is more than an entry nobody has read yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def worker_of(pid: int) -> int | None:
    """The training worker below a driver, if it runs."""
    for child in children(pid):
        try:
            if b"RayTrainWorker" in Path(f"/proc/{child}/cmdline").read_bytes():
                return child
        except OSError:
            pass
    return None


@pytest.mark.parametrize("sweep", SWEEPS)
def test_a_killed_driver_costs_what_followed_the_last_checkpoint_and_no_ended_trial(
    sweep: str, cache_uri: str, tmp_path: Path
) -> None:
    undisturbed, output = tmp_path / "undisturbed", tmp_path / "killed"
    subprocess.run(command(cache_uri, undisturbed, sweep), check=True, capture_output=True)
    with subprocess.Popen(
        command(cache_uri, output, sweep), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as first:
        wanted = 1 if sweep in ("alone", "optuna") else 0  # an ended trial, and one under way
        while len(records(output)) < wanted or len(list(output.glob("checkpoints/*/checkpoint_2*"))) < wanted + 1:
            assert first.poll() is None, first.stderr.read().decode() if first.stderr else ""
            time.sleep(0.05)
        below = children(first.pid)
        first.kill()
    ended = {name: (output / "trials" / f"{name}.json").stat().st_mtime_ns for name in records(output)}
    deadline = time.monotonic() + 180
    while (left := [pid for pid in below if is_running(pid)]) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert not left, "processes of the killed sweep are left"
    subprocess.run(command(cache_uri, output, sweep), check=True, capture_output=True)
    for name, changed in ended.items():
        assert (output / "trials" / f"{name}.json").stat().st_mtime_ns == changed
    assert_same(undisturbed, output)


def test_a_killed_worker_changes_no_verdict_and_no_head(cache_uri: str, tmp_path: Path) -> None:
    undisturbed, output = tmp_path / "undisturbed", tmp_path / "killed"
    subprocess.run(command(cache_uri, undisturbed, "halving"), check=True, capture_output=True)
    with subprocess.Popen(
        command(cache_uri, output, "halving"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as driver:
        while not list(output.glob("checkpoints/*/checkpoint_2*")) or (worker := worker_of(driver.pid)) is None:
            assert driver.poll() is None
            time.sleep(0.05)
        os.kill(worker, signal.SIGKILL)
    assert driver.returncode == 0
    assert_same(undisturbed, output)


def assert_same(undisturbed: Path, output: Path) -> None:
    left, right = records(undisturbed), records(output)
    assert {name: (r["state"], r["steps"], r["best_step"], r["val_ssr"]) for name, r in left.items()} == {
        name: (r["state"], r["steps"], r["best_step"], r["val_ssr"]) for name, r in right.items()
    }
    for name in left:
        mine, _ = load_head(str(undisturbed / "heads" / name / "last"))
        other, _ = load_head(str(output / "heads" / name / "last"))
        for key, value in mine.state_dict().items():
            torch.testing.assert_close(other.state_dict()[key], value, rtol=0, atol=1e-6)
