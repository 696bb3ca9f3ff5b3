"""Jobs through `ray job submit` against a running cluster, from a plain checkout that is not installed."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import summary_of

ROOT = Path(__file__).resolve().parents[2]
RAY = str(Path(sys.executable).parent / "ray")


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


def _environment() -> dict[str, str]:
    """Without anything that would help to find the package or another Ray."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "RAY_ADDRESS")}
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])  # the job's `python`
    return kept | {"PATH": path, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}


@pytest.fixture(scope="module")
def address(tmp_path_factory) -> Iterator[str]:
    """The job server of a cluster of one node, which ends with the tests; another version of the package is there."""
    other = tmp_path_factory.mktemp("other")
    (other / "nearid_ray").mkdir()
    (other / "nearid_ray" / "__init__.py").write_text("raise ImportError('the version of the node')\n")
    port, dashboard, agent = _free_port(), _free_port(), _free_port()
    command = [RAY, "start", "--head", "--block", "--num-cpus=2", f"--port={port}", f"--dashboard-port={dashboard}"]
    command.append(f"--dashboard-agent-listen-port={agent}")  # its default is taken where another Ray runs
    log = (tmp_path_factory.mktemp("ray") / "head.log").open("w")
    environment = _environment() | {"PYTHONPATH": str(other)}
    head = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd="/")
    try:
        _await(f"http://127.0.0.1:{dashboard}", head)
        yield f"http://127.0.0.1:{dashboard}"
    finally:
        head.terminate()
        head.wait(60)


@pytest.fixture(scope="module")
def submit(address, tmp_path_factory) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Submits `python jobs/...` from a checkout."""
    checkout = tmp_path_factory.mktemp("checkout")
    for name in ("platform", "schemas", "jobs"):
        shutil.copytree(ROOT / name, checkout / name, ignore=shutil.ignore_patterns("__pycache__"))

    def run(*argv: object) -> subprocess.CompletedProcess[str]:
        submitted = [RAY, "job", "submit", "--address", address, "--runtime-env", "jobs/runtime_env.yaml"]
        submitted += ["--working-dir", str(checkout), "--", "python"]
        deadline = time.monotonic() + 120
        while True:
            ended = subprocess.run(
                [*submitted, *map(str, argv)],
                env=_environment(),
                cwd=checkout,
                capture_output=True,
                text=True,
                timeout=240,
            )
            # The dashboard answers before the node's agent, which starts jobs, has come up.
            if "No available agent" not in ended.stdout + ended.stderr or time.monotonic() > deadline:
                return ended
            time.sleep(1)

    return run


def _await(address: str, head: subprocess.Popen) -> None:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        assert head.poll() is None, "ray start ended by itself"
        try:
            urllib.request.urlopen(f"{address}/api/version", timeout=2)
            return
        except OSError:
            time.sleep(0.3)
    raise AssertionError("the cluster did not come up")


def test_a_submitted_job_writes_its_dataset_and_leads_to_its_mlflow_run_and_back(submit, address, tmp_path):
    counts = ("--train-identities", 10, "--val-identities", 0, "--test-identities", 4)
    ended = submit("jobs/ingest.py", "toybox", "--output", tmp_path / "tuples", *counts)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "rows_made" in ended.stdout + ended.stderr
    summary = summary_of(tmp_path / "tuples")
    assert summary["rows"] == 14
    (job,) = json.load(urllib.request.urlopen(f"{address}/api/jobs/", timeout=30))
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    run = summary["mlflow_run"]
    assert job["metadata"] == {"mlflow_run": run, "mlflow_uri": uri, "output": str(tmp_path / "tuples")}
    assert job["status"] == "SUCCEEDED"
    assert f"MLflow run {run} at {uri}" in ended.stdout + ended.stderr
    from mlflow import MlflowClient

    assert MlflowClient(tracking_uri=uri).get_run(run).data.tags["ray_job"] == job["submission_id"]


def test_a_relative_output_would_be_lost_and_is_refused(submit):
    ended = submit("jobs/ingest.py", "toybox", "--output", "runs/tuples")
    assert ended.returncode != 0
    assert "runs/tuples is a relative path" in ended.stdout + ended.stderr
