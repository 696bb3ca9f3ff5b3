"""A scorer behind HTTP, with Ray Serve.

    serve run nearid_ray.scoring.serve:app scorer=runs/toy/train/heads/nearid-alpha-0.5/best

`name=value` sets what `ServeSettings` has. Serve listens on 127.0.0.1:8000 alone unless it is told otherwise.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import yaml

from nearid_ray.errors import UsageError
from nearid_ray.settings import build

if TYPE_CHECKING:
    from ray.serve import Application


@dataclass(frozen=True, kw_only=True)
class ServeSettings:
    """How a scorer is served."""

    scorer: str
    """Folder of a trained head; a NearID release or a backbone (folder, s3:// or hub id); or FILE.py:function."""
    name: str | None = None
    """What answers call the scorer; by default a name made of `scorer`."""
    num_replicas: int = 1
    """Processes that hold the scorer, 1 or more."""
    num_cpus: float = 1.0
    """CPUs that Ray reserves for a replica, above 0; PyTorch uses so many threads, at least 1."""
    num_gpus: float = 0.0
    """GPUs that Ray reserves for a replica, fractions allowed; 0: it computes on the CPU."""
    max_batch_size: int = 32
    """Pictures of different requests that go through the model together, 1 or more."""
    batch_wait_ms: float = 5.0
    """How long a picture waits for others, in milliseconds; 0 or more."""
    max_ongoing_requests: int = 100
    """Requests a replica works on at a time, 1 or more."""
    max_queued_requests: int = 1000
    """Requests that wait for a replica; further ones are answered 503. -1: no limit."""
    upload_mib: float = 20.0
    """Largest body of a request, in MiB; a larger one is answered 413."""
    megapixels: float = 40.0
    """Largest picture, in millions of pixels, found before it is decoded."""
    max_images: int = 32
    """Pictures in one request, 2 or more."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision the backbone computes in; auto: bfloat16 on a GPU, else float32."""
    backbone: str | None = None
    """Where a trained head's backbone lies now, if not where its card says."""
    revision: str | None = None
    """Branch, tag or commit of a model on the hub."""
    image_px: int | None = None
    """Side, in pixels, at which DINOv2 and DINOv3 read pictures; by default that of the model's preprocessor."""
    calibration: str = "auto"
    """auto: the one beside the scorer's weights, where there is one; none; or a calibration.json or its folder."""

    def __post_init__(self) -> None:
        least = {"num_replicas": 1, "max_batch_size": 1, "max_ongoing_requests": 1, "max_images": 2, "batch_wait_ms": 0}
        for name, bound in {**least, "num_gpus": 0, "max_queued_requests": -1}.items():
            if getattr(self, name) < bound:
                raise ValueError(f"{name} is {getattr(self, name)}; expected {bound} or more")
        for name in ("num_cpus", "upload_mib", "megapixels"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a number above 0")


def app(arguments: dict[str, str]) -> Application:
    """The Serve application; `serve run nearid_ray.scoring.serve:app name=value ...` calls it.

    Raises:
        UsageError: an argument is unknown or out of range, there is no such scorer, or the extra is not installed.
    """
    check_installed()
    settings = build(ServeSettings, parsed(arguments), "serve run")
    from nearid_ray.scoring.deployment import application

    return application(settings)


def parsed(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The text after each `=` as YAML reads it; what is no text already (from Python) stays.

    >>> parsed({"scorer": "runs/best", "num_gpus": "0.5", "name": "null"})
    {'scorer': 'runs/best', 'num_gpus': 0.5, 'name': None}
    """
    return {name: yaml.safe_load(value) if isinstance(value, str) else value for name, value in arguments.items()}


def check_installed() -> None:
    """Raises UsageError where a package of the extra `serve` is missing."""
    missing = [name for name in ("fastapi", "python_multipart") if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(
            f"serving needs {', '.join(name.replace('_', '-') for name in missing)}, which is not installed: "
            "pip install 'nearid-ray[serve]'"
        )
