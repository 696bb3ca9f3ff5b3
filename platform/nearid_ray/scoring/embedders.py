"""What makes embeddings of pictures: a model with its head, or a function that a person gives.

Axes: N pictures, B pictures of a batch, H, W pixels, S the model's image side, D embedding width.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from nearid_ray.errors import UsageError
from nearid_ray.models.backbone import Backbone
from nearid_ray.user_code import import_module, split_name


class FunctionFailed(UsageError):
    """A person's function raised an error."""


class Embedder(Protocol):
    """Pictures in, vectors out."""

    @property
    def spec(self) -> str:
        """What it was loaded from."""

    @property
    def device(self) -> str: ...

    @property
    def is_trained_head(self) -> bool:
        """Whether it is a head that training wrote, on a backbone that lies elsewhere."""

    @property
    def fingerprint(self) -> str:
        """Name of what it computes."""

    def shrunk(self, image_HW3: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """What of a picture `embed` needs; may run anywhere, in threads too."""

    def embed(self, images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """Unit vectors (N, D) of what `shrunk` gave, 1 or more; nan rows where there is none."""


class ModelEmbedder:
    """A backbone and what pools its tokens: its own head or a trained one."""

    def __init__(self, backbone: Backbone, pooling: nn.Module, spec: str, *, is_trained_head: bool = False) -> None:
        self.backbone, self.spec, self.device = backbone, spec, backbone.device
        self.is_trained_head = is_trained_head
        self.pooling = pooling.requires_grad_(False).eval().to(backbone.device)

    @cached_property
    def fingerprint(self) -> str:
        """Weights count up to their rounding to float16: the same for a head and for the release made with it."""
        digest = hashlib.sha256(
            json.dumps([self.backbone.tower_fingerprint, self.backbone.pixels.described()]).encode()
        )
        for name, value in sorted(self.pooling.state_dict().items()):
            digest.update(name.encode() + value.detach().cpu().half().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    def shrunk(self, image_HW3: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The picture at the model's size (S, S, 3)."""
        return self.backbone.pixels.resized(image_HW3)

    @torch.inference_mode()
    def embed(self, images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        pixels_B3SS = self.backbone.preprocess(images)
        pooled_BD = self.pooling(self.backbone.tokens_of(pixels_B3SS).float())
        return unit_rows(pooled_BD.float().cpu().numpy())


@dataclass(frozen=True)
class FunctionEmbedder:
    """A function of a person: list of uint8 arrays (H, W, 3) -> (N, D)."""

    spec: str
    function: Callable[[list[NDArray[np.uint8]]], Any]
    fingerprint: str
    device: str = "cpu"
    is_trained_head: bool = False

    def shrunk(self, image_HW3: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return image_HW3

    def embed(self, images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """
        Raises:
            FunctionFailed: the function raises.
            UsageError: it gives something else than an array (N, D) of numbers.
        """
        try:
            given = self.function(list(images))
            value_ND = given.detach().float().cpu().numpy() if isinstance(given, torch.Tensor) else np.asarray(given)
        except UsageError:
            raise
        except Exception as error:
            raise FunctionFailed(
                f"the scorer {self.spec} raised {type(error).__name__} on {len(images)} picture(s): {error}"
            ) from error
        if value_ND.ndim != 2 or len(value_ND) != len(images) or not value_ND.shape[1]:
            raise UsageError(
                f"the scorer {self.spec} gave an array of shape {value_ND.shape} for {len(images)} picture(s); "
                f"expected ({len(images)}, D): one row a picture"
            )
        if not np.issubdtype(value_ND.dtype, np.number) or np.iscomplexobj(value_ND):
            raise UsageError(f"the scorer {self.spec} gave values of type {value_ND.dtype}; expected real numbers")
        return unit_rows(value_ND)


def unit_rows(value_ND: NDArray[Any]) -> NDArray[np.float32]:
    """Rows at length one, float32; nan where they are not finite or zero.

    >>> unit_rows(np.array([[3.0, 4.0], [0.0, 0.0]])).tolist()
    [[0.6000000238418579, 0.800000011920929], [nan, nan]]
    """
    value_ND = value_ND.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        # Squares of huge numbers overflow; only the direction counts.
        scaled_ND = value_ND / np.abs(value_ND).max(axis=1, keepdims=True, initial=0.0)
        unit_ND = scaled_ND / np.linalg.norm(scaled_ND, axis=1, keepdims=True)
    unit_ND[~np.isfinite(unit_ND).all(axis=1)] = np.nan
    return unit_ND.astype(np.float32)


def load_function(spec: str) -> FunctionEmbedder:
    """The function that a spec names; its fingerprint is that of its file.

    Raises:
        UsageError: there is no such module, file or function, or importing it fails.
    """
    named = split_name(spec)
    if named is None:
        raise UsageError(f"{spec} names no function; expected module:function or FILE.py:function")
    module_name, name = named
    module = import_module(module_name, f"scorer {spec}")
    function = getattr(module, name, None)
    if not callable(function):
        known = sorted(key for key, value in vars(module).items() if callable(value) and not key.startswith("_"))
        raise UsageError(f"scorer {spec}: {module_name} has no function {name}; it has {', '.join(known) or 'none'}")
    file = getattr(module, "__file__", None)
    source = Path(file).read_bytes() if file else module_name.encode()
    digest = hashlib.sha256(source + b"\0" + name.encode())
    return FunctionEmbedder(spec=spec, function=function, fingerprint=digest.hexdigest()[:16])
