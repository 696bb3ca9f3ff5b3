"""A real S3 server for the tests here, and jobs that use it in a Ray session of their own."""

import json
import os
import pwd
import random
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow.fs as pafs
import pytest

from tests.e2e.conftest import run_job  # noqa: F401  (a fixture)
from tests.s3.swift_server import SECRET

SERVER_PYTHON = "NEARID_S3_SERVER_PYTHON"
HERE = Path(__file__).parent
HOST = "127.0.0.1"


@dataclass(frozen=True)
class Server:
    """A running S3 server."""

    port: int

    @property
    def endpoint(self) -> str:
        return f"http://{HOST}:{self.port}"


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """OpenStack Swift with its S3 interface; it ends with the tests."""
    folder = tmp_path_factory.mktemp("swift")
    if reason := cannot_run(folder):
        pytest.skip(reason)
    with running_server(folder) as server:
        yield server


@contextmanager
def running_server(folder: Path) -> Iterator[Server]:
    """The server on a folder, as long as the block lasts."""
    python = os.environ[SERVER_PYTHON]
    port = _free_ports(4)
    log = folder / "server.log"
    with log.open("w") as said:
        command = [python, str(HERE / "swift_server.py"), str(folder), str(port)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=said, stderr=said)
    assert process.stdin is not None
    try:
        for number in range(4):
            _await(port + number, process, log)
        yield Server(port)
    finally:
        process.stdin.close()
        process.wait(30)


def environment(server: Server, cache: Path) -> dict[str, str]:
    """The variables that lead to the server, and nothing else of AWS."""
    return {name: value for name, value in os.environ.items() if not name.startswith("AWS_")} | {
        "AWS_ENDPOINT_URL": server.endpoint,
        "AWS_ACCESS_KEY_ID": "test:tester",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "XDG_CACHE_HOME": str(cache),
    }


@pytest.fixture(scope="module")
def bucket(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URI of a bucket, with the environment that leads to it."""
    wanted = environment(server, tmp_path_factory.mktemp("cache"))
    with pytest.MonkeyPatch.context() as patch:
        for name in os.environ.keys() - wanted.keys():
            patch.delenv(name)
        for name, value in wanted.items():
            patch.setenv(name, value)
        pafs.S3FileSystem(endpoint_override=server.endpoint, allow_bucket_creation=True).create_dir("nearid")
        yield "s3://nearid"


class Runner:
    """Runs jobs in one process, whose Ray session was started with the environment of the time, which workers need."""

    def __init__(self, log: Path, environment: dict[str, str] | None = None) -> None:
        self._log = log
        command = [sys.executable, str(HERE / "job_runner.py"), str(log)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        assert self._process.stdout is not None
        self._session = self._process.stdout.readline().strip()
        """Ray's folder of logs."""

    def run(self, name: str, *argv: object) -> tuple[int, str]:
        """(exit code, what it printed) of a job: `run("ingest", "toybox", ...)`."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps([name, *map(str, argv)]), file=self._process.stdin, flush=True)
        code = self._process.stdout.readline().strip()
        assert code, self._log.read_text()
        return int(code), self._log.read_text()

    def __call__(self, name: str, *argv: object) -> str:
        """What a job prints that must succeed."""
        code, said = self.run(name, *argv)
        assert code == 0, said
        return said

    def logs(self) -> list[Path]:
        """What Ray and the jobs say beside that, while the session lasts."""
        return [self._log, *Path(self._session).rglob("*.*")]

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)


@pytest.fixture(scope="package")
def jobs(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    """`jobs("ingest", "toybox", ...)` runs a job that must succeed, and returns what it printed."""
    folder = tmp_path_factory.mktemp("jobs")
    runner = Runner(folder / "log.txt", environment(server, folder))
    try:
        yield runner
    finally:
        runner.close()


def cannot_run(folder: Path) -> str:
    """Why there can be no server on this folder; "" where there can."""
    python = os.environ.get(SERVER_PYTHON, "")
    if not python:
        return (
            f"no S3 server: `make s3` installs one (OpenStack Swift); then set {SERVER_PYTHON}=.venv/s3/bin/python; "
            "`make test` does both"
        )
    command = [python, "-c", "import swift.common.wsgi"]
    if not shutil.which(python) or subprocess.run(command, capture_output=True).returncode:
        return f"no S3 server: {SERVER_PYTHON} is {python}, which does not import OpenStack Swift"
    try:
        os.setxattr(folder, "user.test", b"")
        pwd.getpwuid(os.getuid())
    except (AttributeError, OSError, KeyError) as error:
        return f"no S3 server: Swift needs extended attributes of files in {folder}, and a user with a name ({error!r})"
    return ""


def _free_ports(count: int) -> int:
    """The first of so many free ports in a row."""
    while True:
        first = random.SystemRandom().randrange(20000, 30000)
        try:
            for port in range(first, first + count):
                with socket.socket() as trial:
                    trial.bind((HOST, port))
            return first
        except OSError:
            continue


def _await(port: int, process: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        try:
            socket.create_connection((HOST, port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.05)
    raise AssertionError(f"the S3 server did not start:\n{log.read_text()}")
