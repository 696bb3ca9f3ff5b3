"""How a picture becomes a model's input: the model's own preprocessor, run with Pillow.

Axes: B images, H, W pixels, S the model's image side.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from nearid_ray.errors import UsageError
from nearid_ray.models.files import EXPECTED_FILES, ModelFiles

_OPENAI_MEAN, _OPENAI_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PROCESSOR_FILE = "preprocessor_config.json"


@dataclass(frozen=True, kw_only=True)
class PixelSettings:
    """A preprocessor: resize, cut out the middle where it says so, scale, normalise."""

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
    resized_px: int | None = None
    """Side to which a picture is resized, in pixels, before its middle S x S is cut out; None: S, nothing is cut."""
    keeps_aspect: bool = False
    """Whether `resized_px` is the picture's shorter side, its aspect kept, or both sides."""

    def described(self) -> dict[str, Any]:
        """All values, JSON-like; those of the cut only where there is one, as names of caches depend on them."""
        data = asdict(self) | {"mean": list(self.mean), "std": list(self.std)}
        if self.resized_px is None:
            del data["resized_px"], data["keeps_aspect"]
        return data

    def resized(self, image_HW3: np.ndarray) -> np.ndarray:
        """A uint8 picture of any size at S x S pixels."""
        height, width = image_HW3.shape[:2]
        side = self.resized_px or self.image_px
        if self.keeps_aspect:
            # Rounded down, as transformers does.
            target = (side, int(side * height / width)) if width <= height else (int(side * width / height), side)
        else:
            target = (side, side)
        if (width, height) != target:
            image_HW3 = np.array(Image.fromarray(image_HW3).resize(target, Image.Resampling(self.resample)))
        left, top = ((length - self.image_px) // 2 for length in target)
        return image_HW3[top : top + self.image_px, left : left + self.image_px]

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


@dataclass(frozen=True, kw_only=True)
class ProcessorDefaults:
    """What a class of preprocessors takes for values that a file leaves out."""

    side_px: int = 224
    keeps_aspect: bool = False
    cuts: bool = False
    resample: Image.Resampling = Image.Resampling.BICUBIC
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)


SIGLIP = ProcessorDefaults()
CLIP = ProcessorDefaults(keeps_aspect=True, cuts=True, mean=_OPENAI_MEAN, std=_OPENAI_STD)
DINOV3 = ProcessorDefaults(resample=Image.Resampling.BILINEAR, mean=_IMAGENET_MEAN, std=_IMAGENET_STD)

_BY_CLASS = {
    "Siglip": SIGLIP,
    "CLIP": CLIP,
    "Bit": CLIP,
    "DINOv3ViT": DINOV3,
    "ViT": ProcessorDefaults(resample=Image.Resampling.BILINEAR),
}
"""By how the names of transformers' classes begin."""


def read_pixel_settings(files: ModelFiles, usual: ProcessorDefaults, image_px: int | None) -> PixelSettings:
    """What a model's preprocessor_config.json says.

    Args:
        files: the model's.
        usual: defaults of the preprocessor that its family has, where the file does not name another.
        image_px: side of the square that the model reads; None where it reads any.

    Raises:
        UsageError: there is no such file, or it does not give squares of that side.
    """
    kept = files.json(PROCESSOR_FILE)
    if kept is None:
        raise UsageError(
            f"{files.what} {files.spec}: {PROCESSOR_FILE} is missing, which says how pictures are resized and scaled; "
            f"expected {EXPECTED_FILES}"
        )
    off = [name for name in ("do_resize", "do_rescale", "do_normalize") if not kept.get(name, True)]
    if off:
        raise UsageError(
            f"{files.what} {files.spec}: its preprocessor skips {', '.join(off)}; "
            "expected one that resizes, rescales and normalises"
        )
    defaults = _defaults(kept) or usual
    size, cuts = kept.get("size"), bool(kept.get("do_center_crop", defaults.cuts))
    resized_px, keeps_aspect = _resize(size, defaults)
    cut_px = _square(kept.get("crop_size", defaults.side_px)) if cuts else None if keeps_aspect else resized_px
    if not resized_px or not cut_px or cut_px > resized_px or cut_px != (image_px or cut_px):
        asked = f"resizes to {size}" + (f" and cuts out {kept.get('crop_size')}" if cuts else "")
        wanted = f"its model reads {image_px} x {image_px}" if image_px else "expected one that gives squares"
        raise UsageError(f"{files.what} {files.spec}: its preprocessor {asked}, {wanted}")
    whole = cut_px == resized_px and not keeps_aspect
    return PixelSettings(
        image_px=cut_px,
        resample=int(kept.get("resample", defaults.resample)),
        scale=float(kept.get("rescale_factor", 1 / 255)),
        mean=_three(kept.get("image_mean", defaults.mean)),
        std=_three(kept.get("image_std", defaults.std)),
        resized_px=None if whole else resized_px,
        keeps_aspect=keeps_aspect,
    )


def _defaults(kept: Mapping[str, Any]) -> ProcessorDefaults | None:
    name = str(kept.get("image_processor_type") or kept.get("feature_extractor_type") or "")
    return next((defaults for start, defaults in _BY_CLASS.items() if name.startswith(start)), None)


def _resize(size: Any, defaults: ProcessorDefaults) -> tuple[int | None, bool]:
    """(pixels, whether they are the shorter side alone) of a `size`; None where it is neither that nor a square."""
    if size is None:
        return defaults.side_px, defaults.keeps_aspect
    if isinstance(size, int):  # as older files have it
        return size, defaults.keeps_aspect
    if isinstance(size, Mapping) and set(_given(size)) == {"shortest_edge"}:
        return int(size["shortest_edge"]), True
    return _square(size), False


def _square(size: Any) -> int | None:
    """Side of a square that is given by a number or by height and width; None where it is none."""
    if isinstance(size, Mapping):
        given = _given(size)
        square = set(given) == {"height", "width"} and given["height"] == given["width"]
        return int(given["height"]) if square else None
    return size if isinstance(size, int) else None


def _given(size: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in size.items() if value is not None}


def _three(values: Any) -> tuple[float, ...]:
    return tuple(float(value) for value in values)
