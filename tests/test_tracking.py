"""MLflow runs: what is logged, how they end, and where they may go."""

import pytest

from nearid_ray.data.store import Location, locate
from nearid_ray.errors import UsageError
from nearid_ray.tracking import TrackingSettings, tracked


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
