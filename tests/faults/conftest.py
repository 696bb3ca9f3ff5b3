"""The world of the matrix, made once, and the report of what was seen."""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

from tests.faults.cells import Seen
from tests.faults.jobs_under_test import CHAIN, slowed
from tests.faults.world import World

REPORT = "NEARID_FAULTS_REPORT"
"""Variable that names the file to which a line is added for each cell."""


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """The cluster, and the undisturbed run of every job on it, in `made`."""
    world = World(tmp_path_factory.mktemp("faults"))
    try:
        for job in CHAIN:
            world.begin(slowed(job, 0.0))
            run = world.start(job.command(world.made, str(world.made / job.name)))
            assert run.wait(300) == 0, run.said()
            assert world.await_end()[1] == []
        yield world
    finally:
        world.close()


@pytest.fixture
def report() -> Callable[[Seen], None]:
    """Keeps what was seen of a cell."""

    def keep(seen: Seen) -> None:
        if place := os.environ.get(REPORT):
            Path(place).parent.mkdir(parents=True, exist_ok=True)
            with open(place, "a") as stream:
                stream.write(json.dumps(asdict(seen)) + "\n")
        print(json.dumps(asdict(seen)))

    return keep
