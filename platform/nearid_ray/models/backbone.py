"""Frozen vision models whose tokens are cached: SigLIP and SigLIP 2 at a fixed resolution.

Axes: B images, H, W pixels, S the model's image side, T tokens, D token width.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from nearid_ray.errors import UsageError
from nearid_ray.models.head import AttentionPoolingHead

if TYPE_CHECKING:
    from transformers import SiglipVisionModel

Precision = Literal["float32", "bfloat16", "float16"]

TOYBOX_BACKBONE = "toybox-siglip2"
"""The backbone that ships with the package."""

_EXPECTED_FILES = "config.json, model.safetensors and preprocessor_config.json"
_KNOWN_TYPES = ("siglip", "siglip_vision_model")
_ARCHITECTURE = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_channels",
    "image_size",
    "patch_size",
    "hidden_act",
    "layer_norm_eps",
)
"""The values of a config that decide what the weights compute."""


@dataclass(frozen=True, kw_only=True)
class PixelSettings:
    """How a picture becomes a model's input: the model's own preprocessor, run with Pillow."""

    image_px: int
    """Side S of the square that the model reads, in pixels."""
    resample: int
    """Pillow's number of the filter that resizes: 2 bilinear, 3 bicubic."""
    scale: float
    """Factor that brings a pixel from 0..255 to 0..1."""
    mean: tuple[float, ...]
    """Subtracted from each of the three channels after scaling."""
    std: tuple[float, ...]
    """Each channel is divided by it after that."""

    def resized(self, image_HW3: np.ndarray) -> np.ndarray:
        """A uint8 picture of any size at S x S pixels, its aspect not kept."""
        if image_HW3.shape[:2] == (self.image_px, self.image_px):
            return image_HW3
        square = (self.image_px, self.image_px)
        return np.array(Image.fromarray(image_HW3).resize(square, Image.Resampling(self.resample)))

    def normalised(self, image_BSS3: Tensor) -> Tensor:
        """Pixels float32 (B, 3, S, S) from resized uint8 pictures (B, S, S, 3), on the same device."""
        # A table of all 256 values gives transformers' digits, whose arithmetic differs from torch's in the last bit.
        table_3V = torch.from_numpy(self._values()).to(image_BSS3.device)
        image_B3SS = image_BSS3.permute(0, 3, 1, 2)
        if len(set(self.mean)) == len(set(self.std)) == 1:
            return table_3V[0][image_B3SS.int()].contiguous()
        return torch.stack([table_3V[c][image_B3SS[:, c].int()] for c in range(3)], dim=1)

    def _values(self) -> np.ndarray:
        scaled_V = (np.arange(256, dtype=np.float64) * self.scale).astype(np.float32)
        mean_3, std_3 = np.array(self.mean, np.float32), np.array(self.std, np.float32)
        return (scaled_V[None] - mean_3[:, None]) / std_3[:, None]


class Backbone:
    """A frozen vision model with an attention-pooling head; the head's weights are held apart.

    Attributes:
        spec: what it was loaded from, a folder as absolute path; `revision`: the hub's commit, or empty for a folder.
        pixels: its preprocessor; image_px: side of its input in pixels.
        tokens, width: shape (T, D) of what it says of an image.
        heads, mlp_width, layer_norm_eps: sizes of its attention-pooling head.
    """

    def __init__(
        self,
        model: "SiglipVisionModel",
        pixels: PixelSettings,
        *,
        spec: str,
        revision: str,
        dtype: Precision,
        device: str,
    ) -> None:
        config = model.config
        self.spec, self.revision, self.dtype, self.device = spec, revision, dtype, device
        self.pixels = pixels
        self.image_px: int = pixels.image_px
        self.tokens: int = model.embeddings.num_patches
        self.width: int = config.hidden_size
        self.heads: int = config.num_attention_heads
        self.mlp_width: int = config.intermediate_size
        self.layer_norm_eps: float = config.layer_norm_eps
        self._architecture = {name: getattr(config, name) for name in _ARCHITECTURE}
        self._head_state = {name: value.detach().clone() for name, value in model.head.state_dict().items()}
        self._fingerprint = ""
        # The head stays out of the forward pass: only its weights are wanted here.
        self._weights = model.state_dict()
        model.use_head = False
        self._model = model.eval().requires_grad_(False).to(device)

    def __repr__(self) -> str:
        return f"Backbone({self.spec!r}, fingerprint={self.fingerprint!r})"

    @property
    def fingerprint(self) -> str:
        """Name of the function this backbone computes: of its architecture, preprocessor and weights."""
        if not self._fingerprint:
            said = json.dumps([self._architecture, asdict(self.pixels)], sort_keys=True)
            digest = hashlib.sha256(said.encode())
            for name in sorted(self._weights):
                digest.update(name.encode())
                digest.update(memoryview(self._weights[name].contiguous().cpu().numpy()).cast("B"))
            self._fingerprint = digest.hexdigest()[:16]
        return self._fingerprint

    def describe(self) -> dict[str, Any]:
        """All that a reader of its tokens needs to know, JSON-like."""
        return {
            "spec": self.spec,
            "revision": self.revision,
            "fingerprint": self.fingerprint,
            "tokens": self.tokens,
            "width": self.width,
            "heads": self.heads,
            "mlp_width": self.mlp_width,
            "layer_norm_eps": self.layer_norm_eps,
            "pixels": asdict(self.pixels) | {"mean": list(self.pixels.mean), "std": list(self.pixels.std)},
        }

    def preprocess(self, images: Sequence[np.ndarray] | np.ndarray) -> Tensor:
        """Pixels float32 (B, 3, S, S) of uint8 RGB pictures (H, W, 3), equal to transformers' Pillow processor."""
        resized_BSS3 = np.stack([self.pixels.resized(image) for image in images])
        return self.pixels.normalised(torch.from_numpy(resized_BSS3).to(self.device))

    @torch.inference_mode()
    def tokens_of(self, pixels_B3SS: Tensor) -> Tensor:
        """tokens_BTD: the last layer's tokens after the last layer norm, in the precision asked for, on the device."""
        pixels_B3SS = pixels_B3SS.to(self.device)
        reduced = self.dtype != "float32"
        with torch.autocast(torch.device(self.device).type, getattr(torch, self.dtype), enabled=reduced):
            return self._model(pixel_values=pixels_B3SS).last_hidden_state

    def head_state(self) -> dict[str, Tensor]:
        """Weights of the backbone's own attention-pooling head, float32 on the CPU."""
        return {name: value.clone() for name, value in self._head_state.items()}

    def head(self) -> AttentionPoolingHead:
        """The backbone's own head as a module, to pool tokens into embeddings or to start training from."""
        return AttentionPoolingHead.from_state_dict(self.head_state(), self.heads, self.layer_norm_eps)


def load_backbone(
    spec: str, *, revision: str | None = None, dtype: Precision | Literal["auto"] = "auto", device: str = "cpu"
) -> Backbone:
    """A frozen backbone with its weights in float32; `dtype` is the precision it computes in.

    Args:
        spec: "toybox-siglip2" (shipped), a folder in transformers' layout, or a hub id such as
            google/siglip2-so400m-patch14-384. Of a full SigLIP checkpoint only the vision tower is loaded.
        revision: branch, tag or commit on the hub.
        dtype: "auto" takes what `resolve_dtype` finds for the device.
        device: "cpu" or "cuda".

    Raises:
        UsageError: there is no model, it cannot be reached or read, or it is not of a supported kind.
    """
    source, local = _source(spec)
    config = _config(spec, source, revision, local)
    _check_kind(spec, config)
    vision = config.get("vision_config", config)
    pixels = _pixel_settings(spec, source, revision, local, vision["image_size"])
    model, commit = _load_model(spec, source, revision, local)
    return Backbone(
        model,
        pixels,
        # A worker elsewhere has another working directory.
        spec=str(Path(source).resolve()) if local and spec != TOYBOX_BACKBONE else spec,
        revision="" if local else (commit or revision or ""),
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


def _source(spec: str) -> tuple[str, bool]:
    """(what transformers is to load, whether it is a folder)."""
    if spec == TOYBOX_BACKBONE:
        from nearid_ray.toybox.backbone import weights_folder

        return str(weights_folder()), True
    folder = Path(spec).expanduser()
    if folder.is_dir():
        return str(folder), True
    if folder.exists():
        raise UsageError(f"backbone {spec} is a file; expected a folder with {_EXPECTED_FILES}, or a hub id")
    if spec.startswith(("/", ".", "~")) or spec.count("/") > 1 or not spec.strip():
        raise UsageError(
            f"backbone {spec!r}: there is no such folder; expected one with {_EXPECTED_FILES}, "
            f"a hub id (owner/name) or {TOYBOX_BACKBONE}"
        )
    return spec, False


def _file(spec: str, source: str, revision: str | None, local: bool, name: str) -> Path | None:
    """A file of the model, fetched from the hub where it lies there; None where a folder has no such file."""
    if local:
        path = Path(source, name)
        return path if path.is_file() else None
    from transformers.utils import cached_file

    try:
        return Path(str(cached_file(source, name, revision=revision)))
    except (OSError, ValueError) as error:
        raise UsageError(
            f"backbone {spec} is no folder here, and {name} could not be fetched from the hub"
            f"{f' (revision {revision})' if revision else ''}: {str(error).splitlines()[0]} "
            f"Give a folder with {_EXPECTED_FILES}, check the name and the connection, or use {TOYBOX_BACKBONE}."
        ) from error


def _read_json(spec: str, path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"backbone {spec}: {path.name} cannot be read ({error})") from error
    if not isinstance(data, dict):
        raise UsageError(f"backbone {spec}: {path.name} holds no settings; expected a JSON object")
    return data


def _config(spec: str, source: str, revision: str | None, local: bool) -> dict[str, Any]:
    path = _file(spec, source, revision, local, "config.json")
    if path is None:
        raise UsageError(f"backbone {spec} holds no model: config.json is missing; expected {_EXPECTED_FILES}")
    kept = _read_json(spec, path)
    if kept.get("model_type") not in _KNOWN_TYPES:
        return kept
    from transformers import SiglipConfig, SiglipVisionConfig

    # Configs leave out what equals a default.
    kind = SiglipConfig if kept["model_type"] == "siglip" else SiglipVisionConfig
    return kind.from_dict(kept).to_dict()


def _check_kind(spec: str, config: Mapping[str, Any]) -> None:
    kind = config.get("model_type")
    vision = config.get("vision_config", config)
    known = "expected a SigLIP or SigLIP 2 model of fixed resolution (model_type siglip or siglip_vision_model)"
    if kind in _KNOWN_TYPES:
        if not vision.get("vision_use_head", True):
            raise UsageError(f"backbone {spec} has no attention-pooling head to start from; {known}")
        if vision.get("hidden_act") != "gelu_pytorch_tanh":
            used = vision.get("hidden_act")
            raise UsageError(f"backbone {spec} uses the activation {used}; expected gelu_pytorch_tanh")
        return
    if kind == "siglip2":
        raise UsageError(f"backbone {spec} takes pictures of any shape (NaFlex), which is not supported; {known}")
    if "vision_config" in config or "image_size" in config or "patch_size" in config:
        raise UsageError(
            f"backbone {spec} is a {kind} model, which pools its tokens without an attention-pooling head; "
            f"such backbones are not supported yet; {known}"
        )
    raise UsageError(f"backbone {spec} is a {kind} model, which does not read pictures; {known}")


def _pixel_settings(spec: str, source: str, revision: str | None, local: bool, image_px: int) -> PixelSettings:
    path = _file(spec, source, revision, local, "preprocessor_config.json")
    if path is None:
        raise UsageError(
            f"backbone {spec}: preprocessor_config.json is missing, which says how pictures are resized and scaled; "
            f"expected {_EXPECTED_FILES}"
        )
    kept = _read_json(spec, path)
    size = kept.get("size", {"height": image_px, "width": image_px})
    if size != {"height": image_px, "width": image_px}:
        square = f"{image_px} x {image_px}"
        raise UsageError(f"backbone {spec}: its preprocessor resizes to {size}, its model reads {square}")
    off = [name for name in ("do_resize", "do_rescale", "do_normalize") if not kept.get(name, True)]
    if off or kept.get("do_center_crop"):
        raise UsageError(
            f"backbone {spec}: its preprocessor {'skips ' + ', '.join(off) if off else 'crops'}; "
            "expected one that resizes, rescales and normalises"
        )
    return PixelSettings(
        image_px=image_px,
        resample=int(kept.get("resample", Image.Resampling.BICUBIC)),
        scale=float(kept.get("rescale_factor", 1 / 255)),
        mean=tuple(float(value) for value in kept.get("image_mean", (0.5, 0.5, 0.5))),
        std=tuple(float(value) for value in kept.get("image_std", (0.5, 0.5, 0.5))),
    )


def _load_model(spec: str, source: str, revision: str | None, local: bool) -> "tuple[SiglipVisionModel, str]":
    from safetensors import SafetensorError
    from transformers import SiglipVisionModel

    try:
        with _without_bars():
            loaded: Any = SiglipVisionModel.from_pretrained(
                source,
                revision=revision or "main",
                local_files_only=local,
                dtype=torch.float32,
                attn_implementation="sdpa",
                output_loading_info=True,
            )
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise UsageError(
            f"backbone {spec}: its weights cannot be read: {str(error).splitlines()[0]} Expected {_EXPECTED_FILES}"
        ) from error
    model, report = loaded
    missing = sorted(report["missing_keys"])
    if missing:
        raise UsageError(
            f"backbone {spec}: its weights lack {len(missing)} tensor(s) of the vision model, e.g. {missing[0]}"
        )
    return model, getattr(model.config, "_commit_hash", None) or ""


@contextmanager
def _without_bars() -> Iterator[None]:
    """transformers draws a bar for loading, also for a model of two megabytes."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
