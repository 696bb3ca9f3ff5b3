"""The world of the matrix, made once, and the report of what was seen."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path

import pyarrow.fs as pafs
import pytest

from tests.faults.cells import Seen
from tests.faults.servers import S3
from tests.faults.world import World
from tests.s3.conftest import cannot_run, environment, running_server
from tests.s3.faulty_proxy import faulty_proxy
from tests.s3.swift_server import SECRET

REPORT = "NEARID_FAULTS_REPORT"
"""Variable that names the file to which a line is added for each cell."""


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """The cluster, and in `made` the undisturbed runs of the jobs on it."""
    with ExitStack() as stack:
        s3 = S3()

        def servers(host: str) -> dict[str, str]:
            folder = tmp_path_factory.mktemp("swift")
            if cannot_run(folder):
                return {}
            server = stack.enter_context(running_server(folder))
            pafs.S3FileSystem(
                endpoint_override=server.endpoint, access_key="test:tester", secret_key=SECRET,
                region="us-east-1", allow_bucket_creation=True,
            ).create_dir("nearid")  # fmt: skip
            endpoint = stack.enter_context(faulty_proxy(server.port, s3, host))
            s3.there = True
            wanted = environment(server, folder) | {"AWS_ENDPOINT_URL": endpoint}
            mine = {name: value for name, value in wanted.items() if name.startswith("AWS_")}
            stack.enter_context(changed_environment(mine))
            return mine

        world = World(tmp_path_factory.mktemp("faults"), servers, s3=s3)
        stack.callback(world.close)
        yield world


@contextmanager
def changed_environment(wanted: dict[str, str]) -> Iterator[None]:
    """This process's environment with these variables."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in wanted.items():
            patch.setenv(name, value)
        yield


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
