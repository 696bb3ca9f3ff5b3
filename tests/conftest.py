"""Shared by all tests: a quiet offline environment and one small Ray session for the whole run."""

import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """A real Ray on this machine with four logical CPUs, as the jobs would start it."""
    import ray

    from nearid_ray import cluster

    if not ray.is_initialized():
        with cluster.ray_session(num_cpus=4):
            yield
    else:
        yield


@dataclass(frozen=True)
class SmallDisk:
    """A file system of a few megabytes."""

    path: Path

    def remount(self, options: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{options}", self.path], check=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    """Skips where this process may not mount one."""
    path = tmp_path / "small disk"
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", path]
    if os.name != "posix" or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a small file system takes rights that this process does not have")
    try:
        yield SmallDisk(path)
    finally:
        subprocess.run(["umount", "-l", path], check=True)
