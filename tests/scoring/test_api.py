"""The HTTP side in this process: what is answered, and each refusal with its reason."""

import asyncio
import base64
import io
import json
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import requests
from PIL import Image

import nearid_ray
from nearid_ray.scoring.api import Limits, make_api
from nearid_ray.scoring.scorer import Scorer
from tests.scoring.test_score_pairs import stored_calibration

LIMITS = Limits(upload_bytes=200_000, pixels=100_000, images=4)


class Alone:
    """A backend without batching."""

    def __init__(self, scorer: Scorer) -> None:
        self.scorer = scorer

    async def embed(self, image):
        return self.scorer.embedder.embed([image])[0]


@pytest.fixture(scope="module")
def scorer(head_folder: Path) -> Scorer:
    return nearid_ray.load(str(head_folder), device="cpu", name="toy head")


@dataclass(frozen=True)
class Answer:
    status_code: int
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


def ask(scorer: Scorer, method: str, path: str, pieces: Sequence[bytes] | None = None, **request: Any) -> Answer:
    """The app's answer to what `requests` would send; `pieces` is a body that does not say its size."""
    prepared = requests.Request(method, f"http://scorer{path}", **request).prepare()
    headers = [(name.lower().encode(), value.encode()) for name, value in prepared.headers.items()]
    if pieces is not None:
        headers = [(name, value) for name, value in headers if name != b"content-length"]
    waiting = [*(pieces if pieces is not None else [prepared.body or b""])]
    url = urlsplit(prepared.url)
    scope = {"type": "http", "method": method, "path": url.path, "query_string": url.query.encode(), "headers": headers}
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": waiting.pop(0), "more_body": bool(waiting)}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    asyncio.run(make_api(Alone(scorer), LIMITS)({**scope, "http_version": "1.1"}, receive, send))
    return Answer(sent[0]["status"], b"".join(message.get("body", b"") for message in sent[1:]))


def both(files: list[Path], *places: int) -> dict[str, bytes]:
    return {name: files[place].read_bytes() for name, place in zip("ab", places, strict=False)}


def test_similarity_of_two_uploads_and_of_base64_is_the_scorers(scorer, files):
    expected = scorer.similarity(files[0], files[1])
    uploaded = ask(scorer, "POST", "/similarity", files=both(files, 0, 1))
    assert uploaded.status_code == 200
    assert uploaded.json() == {
        "similarity": pytest.approx(expected, abs=1e-6), "probability": None, "same": None, "scorer": "toy head",
    }  # fmt: skip
    text = {name: base64.b64encode(data).decode() for name, data in both(files, 0, 1).items()}
    text["b"] = "data:image/png;base64," + text["b"]
    assert ask(scorer, "POST", "/similarity", json=text).json() == uploaded.json()


def test_embeddings_of_one_or_several_pictures(scorer, files):
    expected = scorer.embed(files[:3])
    one = ask(scorer, "POST", "/embed", files={"images": files[0].read_bytes()}).json()
    np.testing.assert_allclose(one["embeddings"], expected[:1], atol=1e-6)
    assert (one["width"], one["scorer"]) == (expected.shape[1], "toy head")
    several = ask(scorer, "POST", "/embed", files=[("images", path.read_bytes()) for path in files[:3]]).json()
    np.testing.assert_allclose(several["embeddings"], expected, atol=1e-6)
    listed = {"images": [base64.b64encode(path.read_bytes()).decode() for path in files[:3]]}
    np.testing.assert_allclose(ask(scorer, "POST", "/embed", json=listed).json()["embeddings"], expected, atol=1e-6)


def test_with_a_calibration_it_answers_probability_and_verdict(scorer, files):
    calibrated = Scorer(scorer.embedder, name="toy head", calibration=stored_calibration(scorer.fingerprint))
    found = ask(calibrated, "POST", "/similarity", files=both(files, 0, 0)).json()
    assert found["same"] is True
    assert found["probability"] == pytest.approx(calibrated.probability(files[0], files[0]))
    assert ask(calibrated, "GET", "/health").json()["false_accept_rates"] == [0.01]
    refused = ask(calibrated, "POST", "/similarity?false_accept_rate=0.2", files=both(files, 0, 0))
    assert refused.status_code == 422 and "it has 0.01" in refused.json()["detail"]
    assert ask(calibrated, "POST", "/similarity?false_accept_rate=7", files=both(files, 0, 0)).status_code == 422


def test_health_and_openapi_describe_the_service(scorer):
    health = ask(scorer, "GET", "/health").json()
    assert (health["status"], health["fingerprint"], health["device"]) == ("ok", scorer.fingerprint, "cpu")
    described = ask(scorer, "GET", "/openapi.json").json()
    assert set(described["paths"]) == {"/similarity", "/embed", "/health"}
    body = described["paths"]["/similarity"]["post"]["requestBody"]["content"]
    assert set(body) == {"multipart/form-data", "application/json"}
    assert body["multipart/form-data"]["schema"]["required"] == ["a", "b"]
    assert ask(scorer, "GET", "/docs").status_code == 200


def bomb() -> bytes:
    """A PNG of 90 bytes that claims 60,000 x 60,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def large(width: int, height: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (width, height)).save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"hello", "a: not a picture in a known format"),
        (b"", r"a: the file is empty"),
        (bomb(), "a: the picture claims"),
        (large(400, 400), "a: the picture claims 400 x 400 pixels; expected at most 100,000"),
        (large(300, 1), "a: the picture has 300 x 1 pixels"),
        (large(64, 64)[:-20], "a: the PNG picture is broken or cut off"),
    ],
)
def test_what_is_no_good_picture_is_answered_with_the_reason(scorer, files, data, reason):
    refused = ask(scorer, "POST", "/similarity", files={"a": data, "b": files[0].read_bytes()})
    assert refused.status_code == 422 and refused.json()["detail"].startswith(reason)


@pytest.mark.parametrize(
    ("request_of", "status", "reason"),
    [
        (lambda data: {"files": {"a": data}}, 422, "missing: b"),
        (lambda data: {"files": {"c": data}}, 422, "missing: a, b"),
        (lambda data: {"data": {"a": "text"}, "files": {"b": data}}, 422, "a is text; expected a file"),
        (lambda data: {"files": [("a", data), ("a", data), ("b", data)]}, 422, "a is given 2 times"),
        (lambda data: {"files": [("a", data)] * 6}, 400, "Too many files"),
        (lambda data: {"json": {"a": "!!"}}, 422, "a is no base64 text"),
        (lambda data: {"json": {"a": 3, "b": 4}}, 422, "a holds a int; expected base64"),
        (lambda data: {"json": [1]}, 422, "the body is a JSON list"),
        (lambda data: {"data": b"{", "headers": {"content-type": "application/json"}}, 422, "the body is no JSON"),
        (lambda data: {"data": data}, 415, "the body is of no named kind"),
        (lambda data: {"data": data, "headers": {"content-type": "image/png"}}, 415, "the body is image/png"),
        (lambda data: {"files": {"a": b"0" * 300_000, "b": data}}, 413, "the upload is larger than the 0.191 MiB"),
    ],
)
def test_a_wrong_request_is_answered_with_the_reason(scorer, files, request_of, status, reason):
    refused = ask(scorer, "POST", "/similarity", **request_of(files[0].read_bytes()))
    assert (refused.status_code, refused.json()["detail"][: len(reason)]) == (status, reason)


@pytest.mark.parametrize("kind", ["multipart/form-data; boundary=x", "application/json"])
def test_an_upload_that_does_not_say_its_size_is_cut_off(scorer, kind):
    head = b'--x\r\nContent-Disposition: form-data; name="images"; filename="a"\r\n\r\n'
    refused = ask(scorer, "POST", "/embed", pieces=[head] + [b"0" * 10_000] * 30, headers={"content-type": kind})
    assert refused.status_code == 413


def test_too_many_pictures_at_a_time_are_refused(scorer, files):
    text = base64.b64encode(files[1].read_bytes()).decode()
    refused = ask(scorer, "POST", "/embed", json={"images": [text] * 5})
    assert refused.status_code == 413 and "5 pictures; at most 4" in refused.json()["detail"]
