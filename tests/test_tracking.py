"""MLflow runs: what is logged, how they end, and where they may go."""

import socket
import threading

import pytest

from nearid_ray.data.store import Location, locate
from nearid_ray.errors import UsageError
from nearid_ray.patience import PatientCalls
from nearid_ray.tracking import Tracker, TrackingSettings, tracked


def _runs(folder):
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}")
    return client, client.search_runs([client.get_experiment_by_name("nearid").experiment_id])


def test_a_run_holds_settings_inputs_numbers_and_texts_and_ends_as_its_job_did(tmp_path):
    output = locate(tmp_path / "tuples")
    with tracked("ingest", output, TrackingSettings(), {"seed": 3}, {"photos": "/there"}) as tracker:
        tracker.history([{"step": 1, "loss": 2.0, "note": "text"}, {"step": 2, "loss": 1.0, "val": None}])
        tracker.text("hello", "a.txt")
    with pytest.raises(RuntimeError, match="planted"), tracked("embed", output, TrackingSettings(), {}, {}):
        raise RuntimeError("planted")
    client, runs = _runs(tmp_path)
    by_job = {run.data.tags["job"]: run for run in runs}
    assert by_job["embed"].info.status == "FAILED"
    ingest = by_job["ingest"]
    assert ingest.info.status == "FINISHED"
    assert ingest.data.params == {"seed": "3"}
    assert ingest.data.tags["input.photos"] == "/there"
    history = client.get_metric_history(ingest.info.run_id, "loss")
    assert [(metric.step, metric.value) for metric in history] == [(1, 2.0), (2, 1.0)]
    assert [artifact.path for artifact in client.list_artifacts(ingest.info.run_id)] == ["a.txt"]


def test_off_tracks_nothing(tmp_path):
    with tracked("ingest", locate(tmp_path / "x"), TrackingSettings(tracking_uri="off"), {"a": 1}, {}) as tracker:
        tracker.metrics({"a": 1.0})
        tracker.text("b", "c.txt")
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_does_not_answer_is_said_at_once(tmp_path):
    settings = TrackingSettings(tracking_uri="http://127.0.0.1:9")
    with pytest.raises(UsageError, match="does not answer"), tracked("x", locate(tmp_path / "x"), settings, {}, {}):
        pass


def test_outputs_on_s3_ask_where_runs_go(tmp_path):
    import pyarrow.fs

    remote = Location("s3://bucket/x", pyarrow.fs.SubTreeFileSystem("/", pyarrow.fs.LocalFileSystem()), "bucket/x")
    with pytest.raises(UsageError, match="--tracking-uri"), tracked("x", remote, TrackingSettings(), {}, {}):
        pass


class _Server:
    """Answers, or is away; what it was told, in order."""

    def __init__(self) -> None:
        self.away, self.told = False, []

    def call(self, what: str):
        def made() -> None:
            if what == "wrong":
                raise ValueError("refused")
            if self.away:
                raise ConnectionError("refused to connect")
            self.told.append(what)

        return made


def _calls(server: _Server, patience_s: float) -> PatientCalls:
    return PatientCalls("the server", lambda error: isinstance(error, ConnectionError), patience_s=patience_s)


def test_what_is_told_to_a_server_that_goes_away_reaches_it_in_order_when_it_is_back(capsys):
    server = _Server()
    calls = _calls(server, patience_s=20)
    calls(server.call("a"))
    server.away = True
    for what in ("b", "wrong", "c"):
        calls(server.call(what))
    assert server.told == ["a"]
    server.away = False
    calls(server.call("d"))
    calls.close()
    calls(server.call("e"))
    assert server.told == ["a", "b", "c", "d", "e"]
    said = capsys.readouterr().err
    assert "does not answer (refused to connect); the job goes on" in said
    assert "refused what was kept for it: refused" in said
    assert "answers again" in said


def test_a_server_that_stays_away_is_given_up_and_said_to_be(capsys):
    server = _Server()
    server.away = True
    calls = _calls(server, patience_s=0.5)
    calls(server.call("a"))
    calls.close()
    server.away = False
    calls(server.call("b"))
    assert calls.given_up and server.told == []
    assert "1 call(s) and all that follow are not logged" in capsys.readouterr().err


def test_the_end_of_an_interrupted_job_does_not_wait_for_a_server():
    server = _Server()
    server.away = True
    calls = _calls(server, patience_s=600)
    calls(server.call("a"))
    calls.close(wait_s=0.1)
    assert calls.given_up


def test_a_server_that_refuses_is_an_error_of_the_caller():
    with pytest.raises(ValueError, match="refused"):
        _calls(_Server(), patience_s=20)(_Server().call("wrong"))


@pytest.fixture
def no_server():
    """Address of a server that takes connections and ends them at once."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def end_them() -> None:
            while True:
                try:
                    listening.accept()[0].close()
                except OSError:
                    return

        threading.Thread(target=end_them, daemon=True).start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


def test_a_run_whose_server_has_gone_ends_without_an_error(no_server, capsys, monkeypatch):
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    tracker = Tracker(MlflowClient(tracking_uri=no_server), "0" * 32, no_server, patience_s=0.3)
    tracker.params({"a": 1})
    tracker.metrics({"b": 2.0})
    tracker.text("c", "c.txt")
    child = tracker.child("trial")
    child.metrics({"d": 3.0})
    child.end()
    tracker.end()
    tracker.close()
    said = capsys.readouterr().err
    assert f"MLflow at {no_server} does not answer" in said
    assert "The job and its output are not affected" in said
