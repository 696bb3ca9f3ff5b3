"""What must hold before a job writes on a cluster."""

import pytest

from nearid_ray import cluster
from nearid_ray.errors import UsageError


def test_a_relative_output_is_refused_inside_a_submitted_job_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cluster.output_location("runs/x").path == str(tmp_path / "runs" / "x")
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    with pytest.raises(UsageError, match="runs/x is a relative path"):
        cluster.output_location("runs/x")
    assert cluster.output_location("/data/x").path == "/data/x"


def test_the_session_of_a_job_is_the_one_that_is_there(ray_session):
    import ray

    with cluster.ray_session():
        assert cluster.resources() == (4.0, 0.0)
    assert ray.is_initialized(), "a job ended a session that it did not start"


def test_the_cluster_launchers_file_is_valid():
    from pathlib import Path

    import yaml
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = yaml.safe_load((Path(__file__).parents[1] / "cluster.yaml").read_text())
    validate_config(prepare_config(config))
    broken = config | {"available_node_types": {}}
    with pytest.raises(Exception, match="head"):
        validate_config(prepare_config(broken))


def test_a_cluster_that_does_not_answer_is_said_at_once(monkeypatch):
    import ray

    from nearid_ray.cluster import ray_session

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    with pytest.raises(UsageError, match="where no Ray cluster answers"), ray_session():
        pass
