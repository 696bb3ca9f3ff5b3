"""What must hold before a job writes on a cluster."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from nearid_ray import cluster
from nearid_ray.errors import UsageError


def test_a_relative_output_is_refused_inside_a_submitted_job_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cluster.output_location("runs/x").path == str(tmp_path / "runs" / "x")
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    with pytest.raises(UsageError, match="runs/x is a relative path"):
        cluster.output_location("runs/x")
    assert cluster.output_location("/data/x").path == "/data/x"


@pytest.fixture
def web_server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


def test_an_address_where_no_head_answers_is_refused_at_once(web_server, monkeypatch):
    monkeypatch.setattr("ray.is_initialized", lambda: False)  # by a test before this one
    for address, told in [
        ("127.0.0.1:1", "no Ray cluster answers"),
        ("127.0.0.1:99999", "no Ray cluster answers"),
        (f"127.0.0.1:{web_server}", "something else answers"),
        (f"http://127.0.0.1:{web_server}", "a job server: hand the job to it with `ray job submit"),
    ]:
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(UsageError, match=told), cluster.ray_session():
            pass


@pytest.mark.parametrize(
    ("mode", "cause", "told"),
    [
        ("disabled", "Unauthenticated", "RAY_AUTH_MODE is disabled: it came without a token"),
        ("token", "Unauthenticated", "the token of /keys/mine.*what `ray get-auth-token` prints on its head"),
        ("token", "Version mismatch: Ray: 1 and 2", "install the same .* Version mismatch: Ray: 1 and 2"),
    ],
)
def test_a_cluster_that_does_not_let_the_job_in_is_told_in_words(mode, cause, told, monkeypatch):
    monkeypatch.setattr(cluster, "_check_address", lambda address: None)
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("RAY_AUTH_MODE", mode)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/keys/mine")
    with pytest.raises(UsageError, match=told), cluster._joining("10.0.0.1:6379"):
        raise ConnectionError("Failed to connect to Ray cluster at 10.0.0.1:6379") from RuntimeError(cause)


def test_an_error_of_ray_that_is_no_refusal_stays_what_it_is(monkeypatch):
    monkeypatch.setattr(cluster, "_check_address", lambda address: None)
    with pytest.raises(RuntimeError, match="a bug"), cluster._joining("10.0.0.1:6379"):
        raise RuntimeError("a bug")


def test_the_session_of_a_job_is_the_one_that_is_there(ray_session):
    import ray

    with cluster.ray_session():
        assert cluster.resources() == (4.0, 0.0)
    assert ray.is_initialized(), "a job ended a session that it did not start"


ROOT = Path(__file__).parents[1]


def read(name: str) -> dict:
    return yaml.safe_load((ROOT / name).read_text())


def test_the_cluster_launchers_file_is_valid():
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = read("cluster.yaml")
    validate_config(prepare_config(config))
    broken = config | {"available_node_types": {}}
    with pytest.raises(Exception, match="head"):
        validate_config(prepare_config(broken))


def test_the_launcher_has_a_head_without_work_and_workers_that_come_and_go():
    kinds = read("cluster.yaml")["available_node_types"]
    assert kinds["head"]["resources"] == {"CPU": 0}
    assert kinds["gpu_spot"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert "InstanceMarketOptions" not in kinds["gpu_train"]["node_config"]
    assert all(kinds[name]["min_workers"] == 0 < kinds[name]["max_workers"] for name in ("gpu_spot", "gpu_train"))


def test_rays_own_reader_makes_the_launchers_cluster_of_the_kubernetes_manifest():
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

    manifest = read("platform/deploy/raycluster.yaml")
    manifest["metadata"]["namespace"] = "default"
    kinds = _derive_autoscaling_config_from_ray_cr(manifest)["available_node_types"]
    assert kinds["headgroup"]["resources"]["CPU"] == 0
    launched = read("cluster.yaml")["available_node_types"]
    for group, kind in (("gpu-spot", "gpu_spot"), ("gpu-train", "gpu_train")):
        assert kinds[group]["resources"]["GPU"] == 1
        assert kinds[group]["max_workers"] == launched[kind]["max_workers"]
        (resource,) = launched[kind]["resources"]
        assert kinds[group]["resources"][resource] == 1


def test_manifest_image_and_pins_name_one_version_of_ray():
    pinned = next(line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("ray=="))
    version = pinned.removeprefix("ray==")
    assert read("platform/deploy/raycluster.yaml")["spec"]["rayVersion"] == version
    assert f"rayproject/ray:{version}-py311" in (ROOT / "platform/deploy/Dockerfile").read_text()


def test_the_runtime_environment_is_one_that_ray_accepts():
    from ray.runtime_env import RuntimeEnv

    given = read("jobs/runtime_env.yaml")
    assert RuntimeEnv(**given)["env_vars"]["PYTHONUNBUFFERED"] == "1"
    assert all(isinstance(value, str) for value in given["env_vars"].values())


def test_a_cluster_that_does_not_answer_is_said_at_once(monkeypatch):
    import ray

    from nearid_ray.cluster import ray_session

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    with pytest.raises(UsageError, match="where no Ray cluster answers"), ray_session():
        pass
