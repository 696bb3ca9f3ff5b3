"""Servers that fail: an MLflow server that can go away and come back, and what stands before an S3 server."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from tests.s3.faulty_proxy import Answer


@dataclass
class S3:
    """What the proxy before the S3 server answers."""

    failing_until: float = 0.0
    errors: int = 0
    there: bool = False

    def __call__(self, method: str, path: str) -> Answer | None:
        if time.monotonic() > self.failing_until:
            return None
        self.errors += 1
        return Answer(503, "SlowDown") if self.errors % 2 else Answer(500, "InternalError")


class MlflowServer:
    """A real `mlflow server` on one database and one folder of files."""

    def __init__(self, folder: Path, host: str) -> None:
        folder.mkdir()
        self._folder, self._host = folder, host
        with socket.socket() as trial:
            trial.bind((host, 0))
            self._port = trial.getsockname()[1]
        self.address = f"http://{host}:{self._port}"
        self._process: subprocess.Popen | None = None
        self.start()
        self.await_ready()

    def start(self) -> None:
        """Start it; it answers some seconds later."""
        command = [sys.executable, "-m", "mlflow", "server", "--host", self._host, "--port", str(self._port)]
        command += ["--backend-store-uri", f"sqlite:///{self._folder}/mlflow.db", "--workers", "1"]
        command += ["--artifacts-destination", str(self._folder / "files"), "--allowed-hosts", "*"]
        with open(self._folder / "log", "ab") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True, cwd=self._folder
            )

    def await_ready(self) -> None:
        deadline = time.monotonic() + 240
        while True:
            try:
                urllib.request.urlopen(f"{self.address}/health", timeout=5).close()
                return
            except OSError:
                if time.monotonic() > deadline:
                    raise AssertionError((self._folder / "log").read_text()[-3000:]) from None
                time.sleep(0.5)

    def kill(self) -> None:
        """SIGKILL to the server and its workers."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None
