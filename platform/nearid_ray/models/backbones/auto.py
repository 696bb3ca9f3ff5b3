"""Any other image model of transformers: one embedding a picture, no tokens to train a head on.

Loaded through AutoModel and AutoImageProcessor. The embedding is, in this order, what the model has of: the output of
`get_image_features` (models of pictures and text), `pooler_output`, the mean of `last_hidden_state` over places. Which
one it is stands in the description and in the fingerprint. A pooler whose weights are not in the files is not used.

Axes: B images, H, W pixels, S the model's image side, P width of the embedding.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nearid_ray import hub
from nearid_ray.errors import UsageError
from nearid_ray.models.backbones.tower import ClsPooling, Tower
from nearid_ray.models.files import ModelFiles
from nearid_ray.models.pixels import PixelSettings

FEATURES, POOLER, MEAN = "get_image_features", "pooler_output", "mean of last_hidden_state"
TAKEN = (FEATURES, POOLER, MEAN)

_PROBES = ((61, 47), (64, 64))
_NAMES = ("transformers_version", "architectures", "dtype", "torch_dtype", "id2label", "label2id", "auto_map")
"""Entries of a config that do not decide what the weights compute."""


@dataclass(frozen=True, kw_only=True)
class ProcessorPixels(PixelSettings):
    """A preprocessor of transformers, run in two steps: to uint8 squares where pictures are read, to numbers on the
    model's device."""

    processor: Any = field(compare=False)

    def described(self) -> dict[str, Any]:
        kept = json.loads(self.processor.to_json_string())
        return {"image_px": self.image_px, "processor": {k: v for k, v in kept.items() if not k.startswith("_")}}

    def resized(self, image_HW3: np.ndarray) -> np.ndarray:
        """A uint8 picture of any size at S x S pixels, as the processor resizes and cuts it."""
        made = self.processor(images=[image_HW3], do_rescale=False, do_normalize=False, return_tensors="np")
        pixels_3SS = np.asarray(made["pixel_values"][0], np.float32)
        return np.clip(np.rint(pixels_3SS), 0, 255).astype(np.uint8).transpose(1, 2, 0)


def load(files: ModelFiles, config: Mapping[str, Any], *, trust_remote_code: bool = False) -> Tower:
    """Any image model of transformers, or with `trust_remote_code` one that brings Python code along.

    Raises:
        UsageError: it brings code that is not trusted, gives no image embedding, or files are missing or damaged.
    """
    from transformers import AutoModel

    kind = str(config.get("model_type"))
    _check_known(files, config, kind, trust_remote_code)
    pixels = _pixels(files, kind, trust_remote_code)
    model, commit, missing = files.load(AutoModel, attention=None, trust_remote_code=trust_remote_code)
    model.eval()
    without_pooler = [name for name in missing if "pooler." not in name and not name.endswith("mask_token")]
    if without_pooler:
        raise files.lacking(without_pooler)
    pooled = not any("pooler." in name for name in missing)
    embedding = _embedding(files, kind, model, pixels, pooled)
    with torch.inference_mode():
        width = embedding(torch.zeros(1, 3, pixels.image_px, pixels.image_px)).shape[-1]
    return Tower(
        model=embedding,
        weights={name: value for name, value in model.state_dict().items() if pooled or "pooler." not in name},
        architecture={"model_type": kind, "taken": embedding.taken, "config": _config(config)},
        pixels=pixels,
        commit=commit,
        width=width,
        heads=1,
        mlp_width=1,
        layer_norm_eps=0.0,
        patch_px=0,
        prefix_tokens=1,
        pooling=ClsPooling(),
        taken=embedding.taken,
    )


class _Embedding(nn.Module):
    """embedding_B1P: a picture's embedding as its only token."""

    def __init__(self, model: nn.Module, taken: str) -> None:
        super().__init__()
        self.model, self.taken = model, taken

    def forward(self, pixels_B3SS: Tensor) -> Tensor:
        if self.taken == FEATURES:
            made: Any = self.model.get_image_features(pixel_values=pixels_B3SS)  # type: ignore[operator]
            embedding = made if isinstance(made, Tensor) else made.pooler_output
        elif self.taken == POOLER:
            embedding = self.model(pixel_values=pixels_B3SS).pooler_output
        else:
            places = self.model(pixel_values=pixels_B3SS).last_hidden_state
            # (B, T, P) of transformers, (B, P, height, width) of convolutional networks.
            embedding = places.flatten(2).mean(dim=2) if places.ndim == 4 else places.mean(dim=1)
        if embedding.ndim == 4 and embedding.shape[2:] == (1, 1):
            embedding = embedding[:, :, 0, 0]
        if embedding.ndim != 2 or len(embedding) != len(pixels_B3SS):
            raise ValueError(f"{self.taken} has shape {tuple(embedding.shape)}")
        return embedding[:, None]


def _embedding(files: ModelFiles, kind: str, model: Any, pixels: PixelSettings, pooled: bool) -> _Embedding:
    """The first of `TAKEN` that the model has, tried on two pictures."""
    generator = np.random.default_rng(0)
    pictures_2SS3 = generator.integers(0, 256, (2, pixels.image_px, pixels.image_px, 3), dtype=np.uint8)
    pixels_23SS = pixels.normalised(torch.from_numpy(pictures_2SS3))
    tried = []
    for taken in TAKEN:
        if (taken == FEATURES and not hasattr(model, FEATURES)) or (taken == POOLER and not pooled):
            continue
        embedding = _Embedding(model, taken)
        try:
            with torch.inference_mode():
                first, again = embedding(pixels_23SS), embedding(pixels_23SS)
        except Exception as error:  # of models that want text, sound, patches ...
            tried.append(f"{taken}: {(str(error).splitlines() or [type(error).__name__])[0]}")
            continue
        if not torch.equal(first, again):
            raise UsageError(
                f"{files.what} {files.spec} is a {kind} model whose embedding of one picture is another each time (it "
                "draws at random); expected one that embeds a picture in one way"
            )
        return embedding
    raise UsageError(
        f"{files.what} {files.spec} is a {kind} model, which gives no image embedding ({'; '.join(tried)}); expected a "
        "model that makes one vector of a picture"
    )


def _check_known(files: ModelFiles, config: Mapping[str, Any], kind: str, trusted: bool) -> None:
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    if kind in MODEL_MAPPING_NAMES or (trusted and "auto_map" in config):
        return
    if "auto_map" in config:
        raise UsageError(
            f"{files.what} {files.spec} is a {kind} model that brings Python code of its own, which is run only where "
            "it is trusted: it can do anything to this machine. Read it, then give --trust-remote-code"
        )
    raise UsageError(
        f"{files.what} {files.spec} is a {kind} model, which AutoModel of this version of transformers does not load; "
        "expected one that reads pictures"
    )


def _config(config: Mapping[str, Any]) -> dict[str, Any]:
    """As the files have it: what transformers makes of it, with its defaults, changes with its version."""
    return {name: value for name, value in config.items() if not name.startswith("_") and name not in _NAMES}


def _pixels(files: ModelFiles, kind: str, trusted: bool) -> ProcessorPixels:
    processor = _processor(files, kind, trusted)
    rescales, normalises = getattr(processor, "do_rescale", True), getattr(processor, "do_normalize", True)
    try:
        sides = {_own(processor, shape).shape[2:] for shape in _PROBES}
        side = next(iter(sides))
        if len(sides) > 1 or len(side) != 2 or side[0] != side[1]:
            raise ValueError(f"it gives pictures of {' and '.join(str(tuple(s)) for s in sorted(sides))}")
        pixels = ProcessorPixels(
            image_px=int(side[0]),
            resample=0,
            scale=float(getattr(processor, "rescale_factor", 1 / 255)) if rescales else 1.0,
            mean=_three(processor.image_mean if normalises else 0.0),
            std=_three(processor.image_std if normalises else 1.0),
            processor=processor,
        )
        apart = max(_apart(pixels, shape) for shape in _PROBES)
    except Exception as error:  # of processors of every kind
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise UsageError(
            f"{files.what} {files.spec} ({kind}): its preprocessor cannot be used: {said}. Expected one that makes "
            "squares of one size"
        ) from error
    # Half a grey level is what rounding to bytes between the two steps may cost.
    if apart > 0.51:
        raise UsageError(
            f"{files.what} {files.spec} ({kind}): its preprocessor does more than resize, cut, scale and normalise "
            f"(pixels differ by {apart:.1f} grey levels), which is not supported"
        )
    return pixels


def _processor(files: ModelFiles, kind: str, trusted: bool) -> Any:
    from transformers import AutoImageProcessor

    given = {"revision": files.revision or "main", "local_files_only": files.local, "trust_remote_code": trusted}
    with hub.quiet_transformers():
        try:
            # With Pillow everywhere, so that pixels do not depend on what is installed.
            return AutoImageProcessor.from_pretrained(files.source, backend="pil", **given)
        except Exception as error:  # of transformers and the hub
            if not files.local and any(type(e).__module__.startswith("huggingface_hub") for e in hub.causes(error)):
                raise files.not_fetched("preprocessor_config.json", error) from error
            said = (str(error).splitlines() or [type(error).__name__])[0]
            raise UsageError(
                f"{files.what} {files.spec} is a {kind} model, which does not read pictures as far as its files say "
                f"(no image processor: {said})"
            ) from error


def _probe(shape: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(sum(shape)).integers(0, 256, (*shape, 3), dtype=np.uint8)


def _own(processor: Any, shape: tuple[int, int]) -> np.ndarray:
    pixels = np.asarray(processor(images=[_probe(shape)], return_tensors="np")["pixel_values"])
    if pixels.ndim != 4 or pixels.shape[1] != 3:
        raise ValueError(f"it gives numbers of shape {pixels.shape}, not (pictures, 3, height, width)")
    return pixels


def _apart(pixels: ProcessorPixels, shape: tuple[int, int]) -> float:
    """Largest difference between the two steps and the processor's one, in grey levels."""
    mine = pixels.normalised(torch.from_numpy(pixels.resized(_probe(shape))[None])).numpy()
    levels = np.abs(mine - _own(pixels.processor, shape)) * np.array(pixels.std)[:, None, None] / pixels.scale
    return float(levels.max())


def _three(values: Any) -> tuple[float, ...]:
    given = [float(values)] if isinstance(values, int | float) else [float(value) for value in values]
    return tuple(given * 3 if len(given) == 1 else given)
