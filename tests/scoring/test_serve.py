"""A scorer behind Ray Serve: one application, started once, asked over HTTP."""

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import requests

import nearid_ray
from nearid_ray.errors import UsageError
from nearid_ray.scoring import serve as module
from nearid_ray.scoring.serve import app


@pytest.fixture(scope="module")
def address(head_folder, ray_session) -> Iterator[str]:
    from ray import serve

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serve.start(http_options={"port": port})
    serve.run(app({"scorer": str(head_folder), "name": "toy head", "upload_mib": "0.1"}), route_prefix="/")
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()


def test_requests_at_the_same_time_get_their_own_answers(address, head_folder, files):
    scorer = nearid_ray.load(str(head_folder), device="cpu")
    pairs = [(first, second) for first in range(5) for second in range(5)]
    expected = scorer.similarities([files[a] for a, _ in pairs], [files[b] for _, b in pairs])

    def asked(pair: tuple[int, int]) -> float:
        sent = {name: files[place].read_bytes() for name, place in zip("ab", pair, strict=True)}
        answer = requests.post(f"{address}/similarity", files=sent, timeout=60)
        assert answer.status_code == 200 and answer.json()["scorer"] == "toy head"
        return answer.json()["similarity"]

    with ThreadPoolExecutor(8) as clients:
        np.testing.assert_allclose(list(clients.map(asked, pairs)), expected, atol=1e-5)


def test_health_documentation_and_refusals_come_through(address, files):
    assert requests.get(f"{address}/health", timeout=60).json()["status"] == "ok"
    assert requests.get(f"{address}/docs", timeout=60).status_code == 200
    broken = requests.post(f"{address}/embed", files={"images": b"no picture"}, timeout=60)
    assert broken.status_code == 422 and "not a picture in a known format" in broken.json()["detail"]
    large = requests.post(f"{address}/embed", files={"images": b"0" * 200_000}, timeout=60)
    assert large.status_code == 413 and "larger than the 0.1" in large.json()["detail"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "serve run: missing scorer"),
        ({"scorer": "toybox-siglip2", "num_gpu": "1"}, "unknown key num_gpu; did you mean num_gpus"),
        ({"scorer": "toybox-siglip2", "num_replicas": "many"}, "num_replicas"),
        ({"scorer": "toybox-siglip2", "max_images": "1"}, "max_images is 1; expected 2 or more"),
        ({"scorer": "/no/such/folder"}, "there is no such folder"),
        ({"scorer": "no_such_module_here:embed"}, "no_such_module_here cannot be imported"),
    ],
)
def test_wrong_arguments_are_refused_before_a_replica_starts(arguments, message):
    with pytest.raises(ValueError, match=message):
        app(arguments)


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"serving needs fastapi, python-multipart.*pip install 'nearid-ray\[serve\]'"):
        app({"scorer": "toybox-siglip2"})
