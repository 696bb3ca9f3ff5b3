"""MLflow, in one place: one run a job, written by the driver alone."""

import logging
import os
import re
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from nearid_ray import __version__
from nearid_ray.data.lock import machine_lock
from nearid_ray.data.store import Location
from nearid_ray.errors import UsageError
from nearid_ray.patience import PATIENCE_S, PatientCalls
from nearid_ray.submitted import annotate, submission_id

_OFF = "off"
_SCHEMES = ("http://", "https://", "sqlite:///", "postgresql", "mysql", "mssql", "databricks")
_ANSWER_S = 10.0
"""How long a tracking server may take to answer."""
_AWAY = ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED")
"""MLflow's names of errors that pass; a connection that is refused or breaks is an INTERNAL_ERROR too."""
_INTERRUPTED_S = 5.0
"""How long the end of an interrupted job waits for a server that is away."""
_CLIENT = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}
"""MLflow's own client would hold up the job for minutes; the tracker tries again beside it."""
_PARAM_LENGTH = 6000
"""MLflow's limit on the length of a parameter's value."""


@dataclass(frozen=True, kw_only=True)
class TrackingSettings:
    """Where the job's MLflow run goes."""

    tracking_uri: str | None = None
    """An MLflow server (http://...) or database (sqlite:////absolute/path.db), or `off`; by default the file mlflow.db
    in the folder that holds the output."""
    experiment: str = "nearid"
    """Name of the MLflow experiment."""
    run_name: str | None = None
    """Name of the MLflow run; by default the job's name and the output's."""


class Tracker:
    """The job's MLflow run; every method is a no-op when tracking is off.

    A server that goes away costs nothing: what is logged meanwhile is kept and sent when it is back. After some minutes
    the job goes on without it.
    """

    def __init__(
        self,
        client: Any = None,
        run_id: str = "",
        uri: str = "",
        *,
        patience_s: float = PATIENCE_S,
        calls: PatientCalls | None = None,
    ) -> None:
        self._client, self.run_id, self.uri = client, run_id, uri
        self._calls = calls or PatientCalls(f"MLflow at {without_password(uri)}", is_outage, patience_s=patience_s)

    def params(self, values: Mapping[str, Any]) -> None:
        """Log settings."""
        if self._client is None:
            return
        from mlflow.entities import Param

        entries = [Param(name, without_password(str(value))[:_PARAM_LENGTH]) for name, value in values.items()]
        for start in range(0, len(entries), 100):
            self._batch(params=entries[start : start + 100])

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Log numbers at one step."""
        self.history([{"step": step, **values}])

    def history(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Log rows of numbers, each with its `step`; what is no number is passed over."""
        if self._client is None:
            return
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        entries = [
            Metric(name, float(value), now, int(row["step"]))
            for row in rows
            for name, value in row.items()
            if name != "step" and isinstance(value, int | float)
        ]
        for start in range(0, len(entries), 1000):
            self._batch(metrics=entries[start : start + 1000])

    def tags(self, values: Mapping[str, str]) -> None:
        """Log tags."""
        for name, value in values.items():
            self._do(partial(self._set_tag, name, value))

    def child(self, name: str) -> "Tracker":
        """A run of its own below this one, for one trial of many; `end` it. Its id is "" while the server is away."""
        if self._client is None:
            return Tracker()
        child = Tracker(self._client, "", self.uri, calls=self._calls)
        self._do(partial(self._create_child, child, name))
        return child

    def text(self, text: str, name: str) -> None:
        """Log a text file."""
        self._do(lambda: self._client.log_text(self.run_id, text, name))

    def file(self, path: str | Path, folder: str | None = None) -> None:
        """Log a local file."""
        if self._client is None:
            return
        data = Path(path).read_bytes()  # the file may be gone when the server is back
        self._do(lambda: self._log_file(Path(path).name, data, folder))

    def end(self, status: str = "FINISHED") -> None:
        """Give the run its last status: FINISHED, FAILED or KILLED."""
        self._do(lambda: self._client.set_terminated(self.run_id, status))

    def close(self, wait_s: float | None = None) -> None:
        """Wait for what is kept for a server that is away, `wait_s` at the most."""
        self._calls.close(wait_s)

    def _create_child(self, child: "Tracker", name: str) -> None:
        experiment = self._client.get_run(self.run_id).info.experiment_id
        run = self._client.create_run(experiment, run_name=name, tags={"mlflow.parentRunId": self.run_id})
        child.run_id = run.info.run_id

    def _set_tag(self, name: str, value: str) -> None:
        self._client.set_tag(self.run_id, name, value)

    def _batch(self, **entries: Any) -> None:
        self._do(lambda: self._client.log_batch(self.run_id, **entries))

    def _log_file(self, name: str, data: bytes, folder: str | None) -> None:
        with tempfile.TemporaryDirectory() as held:
            Path(held, name).write_bytes(data)
            self._client.log_artifact(self.run_id, str(Path(held, name)), folder)

    def _do(self, call: Callable[[], object]) -> None:
        if self._client is not None:
            self._calls(call)


def is_outage(error: Exception) -> bool:
    """Whether an exception of MLflow's client says that its server is away, rather than that it refuses."""
    from mlflow.exceptions import MlflowException
    from requests.exceptions import RequestException

    if isinstance(error, MlflowException):
        return error.error_code in _AWAY
    return isinstance(error, RequestException | ConnectionError | TimeoutError)


@contextmanager
def tracked(
    job: str, output: Location, tracking: TrackingSettings, settings: Mapping[str, Any], inputs: Mapping[str, str]
) -> Iterator[Tracker]:
    """The job's run: settings as parameters, inputs and code version as tags; FINISHED or FAILED with the block."""
    uri = _uri(output, tracking)
    if uri == _OFF:
        yield Tracker()
        return
    client, experiment = _open(uri, tracking.experiment)
    name = tracking.run_name or f"{job} {output.path.rstrip('/').rsplit('/', 1)[-1]}"
    run = client.create_run(experiment, run_name=name)
    tracker = Tracker(client, run.info.run_id, uri)
    tracker.params(settings)
    tracker.tags({"job": job, "output": output.uri, "nearid_ray": __version__, **code_version(), **_named(inputs)})
    if job_id := submission_id():
        tracker.tags({"ray_job": job_id})
        print(f"{job}: MLflow run {tracker.run_id} at {without_password(uri)}", flush=True)
        annotate({"mlflow_run": tracker.run_id, "mlflow_uri": without_password(uri), "output": output.uri})
    try:
        yield tracker
    except BaseException as error:
        tracker.end("FAILED")
        tracker.close(None if isinstance(error, Exception) else _INTERRUPTED_S)
        raise
    tracker.end()
    tracker.close()


def prepare_store(output: Location, tracking: TrackingSettings) -> None:
    """Create the tracking database if it is not there; takes seconds the first time, so it can be done ahead."""
    uri = _uri(output, tracking)
    if uri != _OFF:
        _open(uri, tracking.experiment)


def check_tracking(output: Location, tracking: TrackingSettings) -> None:
    """Raises UsageError where nothing says to which place the run goes."""
    _uri(output, tracking)


def without_password(text: str) -> str:
    """The text without the user and password that a URI in it may hold.

    >>> without_password("postgresql://me:secret@host/mlflow")
    'postgresql://***@host/mlflow'
    """
    return re.sub(r"://[^/\s]+@", "://***@", text)


def code_version() -> dict[str, str]:
    """The commit this code was checked out from, where it was."""
    try:
        command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
        found = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return {}
    return {"code": found.stdout.strip()}


def _uri(output: Location, tracking: TrackingSettings) -> str:
    if tracking.tracking_uri:
        if tracking.tracking_uri != _OFF and not tracking.tracking_uri.startswith(_SCHEMES):
            raise UsageError(
                f"tracking_uri is {without_password(tracking.tracking_uri)!r}; expected http://SERVER:5000, "
                "sqlite:////absolute/path/mlflow.db, another database MLflow knows, or off"
            )
        return tracking.tracking_uri
    if not output.is_local:
        raise UsageError(
            f"{output.uri}: for outputs on S3 say where MLflow keeps its runs: --tracking-uri http://SERVER:5000, "
            "sqlite:////absolute/path/mlflow.db, or off"
        )
    return f"sqlite:///{Path(output.path).parent / 'mlflow.db'}"


def _open(uri: str, experiment: str) -> tuple[Any, str]:
    """(client, the experiment's id); both are made where they are not there yet."""
    # Two jobs that create the tables of one database at once fail.
    with machine_lock(uri) if uri.startswith("sqlite:") else nullcontext():
        client = open_client(uri)
        return client, _experiment(client, experiment, uri)


def open_client(uri: str) -> Any:
    """An `MlflowClient` of a store, without MLflow's notices; a missing folder of a database is made.

    Raises:
        UsageError: a server does not answer.
    """
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic"):  # its import sets its own levels
        logging.getLogger(name).setLevel(logging.WARNING)
    if uri.startswith("sqlite:///"):
        Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    elif uri.startswith(("http://", "https://")):
        _check_answers(uri)
        for name, value in _CLIENT.items():
            os.environ.setdefault(name, value)
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        return MlflowClient(tracking_uri=uri)
    except (ImportError, MlflowException, SQLAlchemyError) as error:
        # What a database's driver says may hold the address.
        told = without_password(str(error)).strip().splitlines()[0]
        raise UsageError(
            f"MLflow cannot open {without_password(uri)} ({told}); correct --tracking-uri, install the database's "
            "driver, or give --tracking-uri off"
        ) from None


def _check_answers(uri: str) -> None:
    """Say at once that a server is not there; MLflow's client would try again for minutes."""
    if without_password(uri) != uri:
        raise UsageError(
            f"tracking_uri {without_password(uri)} holds a user or password, which processes and logs show; set "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD instead"
        )
    try:
        urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=_ANSWER_S)
    except urllib.error.HTTPError:
        pass  # it answers; whether it lets this client in is its business
    except OSError as error:
        raise UsageError(
            f"the MLflow server {without_password(uri)} does not answer ({error}); start it, correct --tracking-uri, "
            "or give --tracking-uri off"
        ) from error


def _experiment(client: Any, name: str, uri: str) -> str:
    found = client.get_experiment_by_name(name)
    if found is not None:
        return found.experiment_id
    artifacts = None
    if uri.startswith("sqlite:///"):
        artifacts = (Path(uri.removeprefix("sqlite:///")).parent / "mlartifacts").as_uri()
    return client.create_experiment(name, artifact_location=artifacts)


def _named(inputs: Mapping[str, str]) -> dict[str, str]:
    return {f"input.{name}": uri for name, uri in inputs.items() if uri}
