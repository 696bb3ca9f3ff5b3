"""The HTTP side of a scorer, as a FastAPI app: what it takes, what it refuses, what it answers. Runs without Ray.

Needs the extra `serve`. Every refusal is `{"detail": REASON}`: 413 for what is too large, 415 for a body of another
kind, 422 for what is missing or is no picture.

Axes: N pictures of a request, D embedding width.
"""

import asyncio
import base64
import binascii
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from fastapi import FastAPI, HTTPException, Query, Request
from numpy.typing import NDArray
from pydantic import BaseModel, Field
from starlette.datastructures import FormData, UploadFile
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import nearid_ray
from nearid_ray.data.images import decode_rgb
from nearid_ray.errors import UsageError
from nearid_ray.scoring.pictures import check_aspect
from nearid_ray.scoring.scorer import Scorer, cosines

_DECODERS = 4
"""Pictures decoded at a time: what a replica holds of large ones."""
_MULTIPART, _JSON = "multipart/form-data", "application/json"
_REFUSALS: dict[int | str, dict[str, Any]] = {
    413: {"description": "The upload, or the number of pictures, is too large."},
    415: {"description": f"The body is neither {_MULTIPART} nor {_JSON}."},
    422: {"description": "A field is missing, or what it holds is no picture; `detail` says what and why."},
}


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a request may ask for."""

    upload_bytes: int
    """Of the whole body."""
    pixels: int
    """Of one picture, found before it is decoded."""
    images: int
    """Pictures in one request."""


class Backend(Protocol):
    """What answers: a scorer, and its embedding of one prepared picture at a time, batched as it pleases."""

    scorer: Scorer

    async def embed(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Unit vector (D,) of what `embedder.shrunk` gave; nan where there is none."""


class Similarity(BaseModel):
    """What POST /similarity answers."""

    similarity: float = Field(description="Cosine, -1..1: higher = more alike.")
    probability: float | None = Field(description="Of the same identity; null without a calibration.")
    same: bool | None = Field(description="At the threshold for the rate of false accepts; null without a calibration.")
    scorer: str


class Embeddings(BaseModel):
    """What POST /embed answers."""

    embeddings: list[list[float]] = Field(description="A unit vector for each picture, in their order.")
    width: int
    scorer: str


class Health(BaseModel):
    """What GET /health answers."""

    status: str
    scorer: str
    fingerprint: str
    device: str
    calibrated: bool
    false_accept_rates: list[float] = Field(description="Those that `same` has a threshold for.")


def make_api(backend: Backend, limits: Limits) -> FastAPI:
    """The app. Its pages: /docs for people, /openapi.json for programs."""
    api = FastAPI(
        title="NearID scorer",
        version=nearid_ray.__version__,
        description=f"Identity-aware similarity of pictures by the scorer {backend.scorer.name}.",
    )
    api.add_middleware(UploadLimit, most_bytes=limits.upload_bytes)
    decoders = ThreadPoolExecutor(_DECODERS, "decode")

    async def vectors(given: Mapping[str, bytes]) -> list[NDArray[np.float32]]:
        loop = asyncio.get_running_loop()
        pending = [loop.run_in_executor(decoders, _prepared, backend.scorer, limits, *item) for item in given.items()]
        images = await asyncio.gather(*pending)
        found = await asyncio.gather(*map(backend.embed, images))
        for name, vector_D in zip(given, found, strict=True):
            if not np.isfinite(vector_D).all():
                raise HTTPException(422, f"{name}: the scorer gives no finite embedding of this picture")
        return found

    @api.post("/similarity", responses=_REFUSALS, openapi_extra=_body({"a": False, "b": False}))
    async def similarity(
        request: Request,
        false_accept_rate: float = Query(0.01, gt=0, le=1, description="The rate that `same` is said for."),
        same_share: float = Query(0.5, gt=0, lt=1, description="Share of same pairs to expect, for `probability`."),
    ) -> Similarity:
        """How alike two pictures are: the fields a and b, as files or as base64 text in JSON."""
        given = await _pictures(request, ("a", "b"), limits)
        probability, same = None, None
        # First what is wrong with the question, then the work.
        try:
            calibrated = None if backend.scorer.calibration is None else backend.scorer.calibrated()
            threshold = None if calibrated is None else calibrated.threshold(false_accept_rate)
        except UsageError as error:
            raise HTTPException(422, str(error)) from error
        first_D, second_D = await vectors({name: given[name][0] for name in ("a", "b")})
        value = cosines(first_D[None], second_D[None]).item()
        if calibrated is not None and threshold is not None:
            probability, same = (
                calibrated.calibration.probability(value, same_share=same_share).item(),
                value >= threshold,
            )
        return Similarity(similarity=value, probability=probability, same=same, scorer=backend.scorer.name)

    @api.post("/embed", responses=_REFUSALS, openapi_extra=_body({"images": True}))
    async def embed(request: Request) -> Embeddings:
        """Embeddings of one or several pictures: the field images, once for each file, or a list of base64 text."""
        given = await _pictures(request, ("images",), limits)
        found = await vectors({f"images[{n}]": data for n, data in enumerate(given["images"])})
        return Embeddings(
            embeddings=[vector_D.tolist() for vector_D in found], width=len(found[0]), scorer=backend.scorer.name
        )

    @api.get("/health")
    async def health() -> Health:
        """Whether the scorer is there, and which one it is."""
        stored = backend.scorer.calibration
        full = None if stored is None else stored.conditions.get("full")
        return Health(
            status="ok",
            scorer=backend.scorer.name,
            fingerprint=backend.scorer.fingerprint,
            device=backend.scorer.embedder.device,
            calibrated=full is not None,
            false_accept_rates=[] if full is None else [point.wished for point in full.points],
        )

    return api


class UploadLimit:
    """Refuses bodies above a size, by what they say of themselves and by what arrives."""

    def __init__(self, app: ASGIApp, most_bytes: int) -> None:
        self.app, self.most_bytes = app, most_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        said = dict(scope["headers"]).get(b"content-length", b"")
        if said.isdigit() and int(said) > self.most_bytes:
            await JSONResponse({"detail": self._refusal()}, 413)(scope, receive, send)
            return
        arrived = 0

        async def counted() -> Message:
            nonlocal arrived
            message = await receive()
            arrived += len(message.get("body", b""))
            if arrived > self.most_bytes:
                raise HTTPException(413, self._refusal())
            return message

        await self.app(scope, counted, send)

    def _refusal(self) -> str:
        return f"the upload is larger than the {self.most_bytes / 2**20:.3g} MiB that are taken"


async def _pictures(request: Request, names: Sequence[str], limits: Limits) -> dict[str, list[bytes]]:
    """Encoded pictures by field, one or more each."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == _MULTIPART:
        found = await _of_form(request, names, limits)
    elif kind == _JSON:
        found = await _of_json(request, names)
    else:
        raise HTTPException(415, f"the body is {kind or 'of no named kind'}; expected {_MULTIPART} or {_JSON}")
    missing = [name for name in names if not found[name]]
    if missing:
        raise HTTPException(422, f"missing: {', '.join(missing)}; expected a picture in each of {', '.join(names)}")
    twice = [name for name in names if name != "images" and len(found[name]) > 1]
    if twice:
        raise HTTPException(422, f"{twice[0]} is given {len(found[twice[0]])} times; expected one picture")
    if sum(map(len, found.values())) > limits.images:
        raise HTTPException(
            413, f"{sum(map(len, found.values()))} pictures; at most {limits.images} are taken at a time"
        )
    return found


async def _of_form(request: Request, names: Sequence[str], limits: Limits) -> dict[str, list[bytes]]:
    form: FormData
    async with request.form(max_files=limits.images + 1, max_fields=16) as form:
        found: dict[str, list[bytes]] = {name: [] for name in names}
        for name in names:
            for entry in form.getlist(name):
                if not isinstance(entry, UploadFile):
                    raise HTTPException(422, f"{name} is text; expected a file")
                found[name].append(await entry.read())
    return found


async def _of_json(request: Request, names: Sequence[str]) -> dict[str, list[bytes]]:
    try:
        body = await request.json()
    except (ValueError, RecursionError) as error:
        raise HTTPException(422, f"the body is no JSON: {error}") from error
    if not isinstance(body, dict):
        raise HTTPException(422, f"the body is a JSON {type(body).__name__}; expected an object")
    found: dict[str, list[bytes]] = {}
    for name in names:
        value = body.get(name, [])
        found[name] = [_base64(name, text) for text in (value if isinstance(value, list) else [value])]
    return found


def _base64(name: str, text: Any) -> bytes:
    if not isinstance(text, str):
        raise HTTPException(422, f"{name} holds a {type(text).__name__}; expected base64 text of a picture's file")
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise HTTPException(422, f"{name} is no base64 text ({error}); expected that of a picture's file") from error


def _prepared(scorer: Scorer, limits: Limits, name: str, data: bytes) -> NDArray[np.uint8]:
    try:
        image = decode_rgb(data, max_pixels=limits.pixels)
        check_aspect(image)
    except ValueError as error:
        raise HTTPException(422, f"{name}: {error}") from error
    return scorer.embedder.shrunk(image)


def _body(fields: Mapping[str, bool]) -> dict[str, Any]:
    """The request body for OpenAPI; `fields` says of each name whether it holds several."""

    def schema(encoding: dict[str, str]) -> dict[str, Any]:
        one = {"type": "string", **encoding}
        properties = {name: {"type": "array", "items": one} if many else one for name, many in fields.items()}
        return {"schema": {"type": "object", "required": list(fields), "properties": properties}}

    content = {_MULTIPART: schema({"format": "binary"}), _JSON: schema({"contentEncoding": "base64"})}
    return {"requestBody": {"required": True, "content": content}}
