"""Shared by all tests: a quiet offline environment and one small Ray session for the whole run."""

import os
from collections.abc import Iterator

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
