"""Frozen vision models whose tokens are cached: SigLIP, SigLIP 2, CLIP, DINOv2, DINOv3, and NearID's releases.

Any other image model of transformers gives one embedding a picture and no tokens: `grid` is then (0, 0).

Which tokens and which pooled embedding each family gives is said on top of its file in `backbones/`.

Axes: B images, H, W pixels, S the model's image side, T tokens, D token width, P width of the pooled embedding.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from nearid_ray.errors import UsageError
from nearid_ray.models.backbones import auto, clip, dino, nearid, siglip
from nearid_ray.models.backbones.tower import ClsPooling, Tower
from nearid_ray.models.files import EXPECTED_FILES, TOYBOX_BACKBONE, ModelFiles
from nearid_ray.models.head import AttentionPoolingHead
from nearid_ray.models.pixels import PixelSettings

__all__ = [
    "TOYBOX_BACKBONE",
    "Backbone",
    "PixelSettings",
    "Precision",
    "load_backbone",
    "pooling_of",
    "resolve_dtype",
]

Precision = Literal["float32", "bfloat16", "float16"]

_KNOWN = (
    "a vision model of SigLIP or SigLIP 2 (fixed resolution), CLIP, DINOv2 or DINOv3 (ViT), or a NearID release "
    f"(model_type {', '.join([*siglip.MODEL_TYPES, *clip.MODEL_TYPES, *dino.MODEL_TYPES, *nearid.MODEL_TYPES])}), or "
    "for embeddings alone any image model of transformers"
)


class Backbone:
    """A frozen vision model; what makes one embedding of its tokens is held apart.

    Attributes:
        spec: what it was loaded from, a folder as absolute path; `revision`: the hub's commit, or empty for a folder.
        pixels: its preprocessor; image_px: side of its input in pixels.
        tokens, width: shape (T, D) of what it says of an image.
        prefix_tokens, grid: the first tokens belong to no patch, the others to (rows, columns) of patches, row by row.
        heads, mlp_width, layer_norm_eps: sizes of the attention-pooling head that training starts from.
        has_own_head: whether that head is the model's own; otherwise it is a new one.
        pooled_width: P.
    """

    def __init__(self, tower: Tower, *, spec: str, revision: str, dtype: Precision, device: str) -> None:
        self.spec, self.revision, self.dtype, self.device = spec, revision, dtype, device
        self.pixels = tower.pixels
        self.image_px: int = tower.pixels.image_px
        self.prefix_tokens, self.grid = tower.prefix_tokens, tower.grid
        self.tokens: int = tower.prefix_tokens + tower.grid[0] * tower.grid[1]
        self.width, self.heads, self.mlp_width = tower.width, tower.heads, tower.mlp_width
        self.layer_norm_eps = tower.layer_norm_eps
        self.has_own_head = isinstance(tower.pooling, AttentionPoolingHead)
        self._architecture, self._weights = tower.architecture, tower.weights
        self._head_state, self._taken = tower.head_state, tower.taken
        self._pooling = tower.pooling.requires_grad_(False)
        self._fingerprint = self._tower_fingerprint = ""
        self._model = tower.model.eval().requires_grad_(False).to(device)

    def __repr__(self) -> str:
        return f"Backbone({self.spec!r}, fingerprint={self.fingerprint!r})"

    @property
    def fingerprint(self) -> str:
        """Name of the function this backbone computes: of its architecture, preprocessor and weights."""
        if not self._fingerprint:
            digest = hashlib.sha256(_json([self._architecture, self.pixels.described()]))
            for name in sorted(self._weights):
                digest.update(name.encode())
                digest.update(_bytes(self._weights[name]).data)
            self._fingerprint = digest.hexdigest()[:16]
        return self._fingerprint

    @property
    def tower_fingerprint(self) -> str:
        """Name of what makes the tokens, rounded to float16, without head and preprocessor: the same for a model and
        for a release that was exported with it."""
        if not self._tower_fingerprint:
            digest = hashlib.sha256(_json(self._architecture))
            for name in sorted(name for name in self._weights if not name.startswith("head.")):
                digest.update(name.encode())
                digest.update(_bytes(self._weights[name].half()).data)
            self._tower_fingerprint = digest.hexdigest()[:16]
        return self._tower_fingerprint

    def describe(self) -> dict[str, Any]:
        """All that a reader of its tokens needs to know, JSON-like."""
        return {
            "spec": self.spec,
            "revision": self.revision,
            "fingerprint": self.fingerprint,
            "tower_fingerprint": self.tower_fingerprint,
            "tokens": self.tokens,
            "width": self.width,
            "prefix_tokens": self.prefix_tokens,
            "grid": list(self.grid),
            "heads": self.heads,
            "mlp_width": self.mlp_width,
            "layer_norm_eps": self.layer_norm_eps,
            "pooling": "attention" if self.has_own_head else "cls",
            "pooled_width": self.pooled_width,
            "parameters": sum(parameter.numel() for parameter in self._model.parameters()),
            "pixels": self.pixels.described(),
            **({"embedding": self._taken} if self._taken else {}),
        }

    def check_tokens(self, what: str) -> None:
        """UsageError where it gives one embedding a picture and no tokens; `what` says what needs them."""
        if self.grid == (0, 0):
            raise UsageError(
                f"the backbone {self.spec} gives one embedding of a picture ({self._taken}) and no tokens, which "
                f"{what} needs; compute its embeddings (jobs/embed.py --what pooled), or take a model of SigLIP, CLIP, "
                "DINOv2 or DINOv3"
            )

    def preprocess(self, images: Sequence[np.ndarray] | np.ndarray) -> Tensor:
        """Pixels float32 (B, 3, S, S) of uint8 RGB pictures (H, W, 3), equal to transformers' Pillow processor."""
        resized_BSS3 = np.stack([self.pixels.resized(image) for image in images])
        return self.pixels.normalised(torch.from_numpy(resized_BSS3).to(self.device))

    @torch.no_grad()
    def tokens_of(self, pixels_B3SS: Tensor) -> Tensor:
        """tokens_BTD: the last layer's tokens after the last layer norm, in the precision asked for, on the device."""
        pixels_B3SS = pixels_B3SS.to(self.device)
        reduced = self.dtype != "float32"
        with torch.autocast(torch.device(self.device).type, getattr(torch, self.dtype), enabled=reduced):
            return self._model(pixels_B3SS)

    @property
    def pooled_width(self) -> int:
        """Width P of the frozen model's own embedding."""
        projection_PD = getattr(self._pooling, "projection_PD", None)
        return self.width if projection_PD is None else len(projection_PD)

    def pooling(self) -> nn.Module:
        """The frozen model's own way from tokens_BTD to embedding_BP (not normalised), float32 on the CPU."""
        return pooling_of(self.describe(), self.pooling_state())

    def pooling_state(self) -> dict[str, Tensor]:
        """Weights of `pooling`; empty where it takes the class token as it is."""
        return {name: value.clone() for name, value in self._pooling.state_dict().items()}

    def head_state(self) -> dict[str, Tensor]:
        """Weights of the attention-pooling head that training starts from, float32 on the CPU."""
        return {name: value.clone() for name, value in self._head_state.items()}

    def head(self) -> AttentionPoolingHead:
        """The attention-pooling head that training starts from: the model's own, or a new one by seed 0."""
        return AttentionPoolingHead.from_state_dict(self.head_state(), self.heads, self.layer_norm_eps)

    def weights(self) -> Mapping[str, Tensor]:
        """All weights by their names in transformers, float32; to be read only."""
        return self._weights

    def architecture(self) -> dict[str, Any]:
        """The values of its config that decide what the weights compute."""
        return dict(self._architecture)


def pooling_of(description: Mapping[str, Any], state: Mapping[str, Tensor]) -> nn.Module:
    """The frozen model's own pooling from what `Backbone.describe` and `Backbone.pooling_state` say.

    Raises:
        UsageError: `state` is not that of such a pooling.
    """
    if description.get("pooling", "attention") == "cls":
        return ClsPooling.from_state_dict(state)
    return AttentionPoolingHead.from_state_dict(state, description["heads"], description["layer_norm_eps"])


def load_backbone(
    spec: str,
    *,
    revision: str | None = None,
    dtype: Precision | Literal["auto"] = "auto",
    device: str = "cpu",
    image_px: int | None = None,
    trust_remote_code: bool = False,
) -> Backbone:
    """A frozen backbone with its weights in float32; `dtype` is the precision it computes in.

    Args:
        spec: "toybox-siglip2" (shipped), a folder in transformers' layout, or a hub id such as
            google/siglip2-so400m-patch14-384. Of a full checkpoint only the vision model is loaded.
        revision: branch, tag or commit on the hub.
        dtype: "auto" takes what `resolve_dtype` finds for the device.
        device: "cpu" or "cuda".
        image_px: side at which a model that reads any square (DINOv2, DINOv3) reads pictures, instead of that of its
            preprocessor; pictures are then resized to it whole.
        trust_remote_code: run Python code that a model of an unknown kind brings along.

    Raises:
        UsageError: there is no model, it cannot be reached or read, or it is not of a supported kind.
    """
    files = ModelFiles.find(spec, revision)
    config = files.json("config.json")
    if config is None:
        raise UsageError(f"backbone {spec} holds no model: config.json is missing; expected {EXPECTED_FILES}")
    tower = _tower(files, config, image_px, trust_remote_code)
    return Backbone(
        tower,
        # A worker elsewhere has another working directory.
        spec=str(Path(files.source).resolve()) if files.local and spec != TOYBOX_BACKBONE else spec,
        revision="" if files.local else (tower.commit or revision or ""),
        dtype=resolve_dtype(dtype, device),
        device=device,
    )


def resolve_dtype(dtype: Precision | Literal["auto"], device: str) -> Precision:
    """The precision that "auto" means: bfloat16 on a GPU or a CPU that multiplies in it, else float32."""
    if dtype != "auto":
        return dtype
    if torch.device(device).type != "cpu":
        return "bfloat16"
    # Where the CPU has no such instructions torch emulates them, several times slower than float32.
    native = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
    return "bfloat16" if native else "float32"


def _tower(files: ModelFiles, config: Mapping[str, Any], image_px: int | None, trust_remote_code: bool) -> Tower:
    kind = config.get("model_type")
    if kind in dino.MODEL_TYPES:
        return dino.load(files, config, image_px)
    if not kind or kind == "siglip2":
        said = "takes pictures of any shape (NaFlex), which is not supported" if kind else "names no model_type"
        raise UsageError(f"backbone {files.spec} {said}; expected {_KNOWN}")
    families = [family.load for family in (siglip, clip, nearid) if kind in family.MODEL_TYPES]
    load = families[0] if families else partial(auto.load, trust_remote_code=trust_remote_code)
    tower = load(files, config)
    if image_px not in (None, tower.pixels.image_px):
        raise UsageError(
            f"image_px is {image_px}, but the backbone {files.spec} reads {tower.pixels.image_px} px alone; "
            "only DINOv2 and DINOv3 read other sides"
        )
    return tower


def _json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True).encode()


def _bytes(tensor: Tensor) -> np.ndarray:
    return tensor.contiguous().cpu().numpy().reshape(-1).view(np.uint8)
