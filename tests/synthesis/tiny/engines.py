"""Engines with their presets on tiny weights, and rows for them."""

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from nearid_ray.synthesis.engine import EngineRequest
from nearid_ray.synthesis.engines.diffusion import DiffusionEngine, DiffusionSettings
from nearid_ray.synthesis.engines.flux_canny import SETTINGS as FLUX_CANNY
from nearid_ray.synthesis.engines.flux_canny import FluxCannyEngine
from nearid_ray.synthesis.engines.flux_fill import SETTINGS as FLUX_FILL
from nearid_ray.synthesis.engines.flux_fill import FluxFillEngine
from nearid_ray.synthesis.engines.flux_fill_partial import SETTINGS as FLUX_FILL_PARTIAL
from nearid_ray.synthesis.engines.flux_fill_partial import FluxFillPartialEngine
from nearid_ray.synthesis.engines.sdxl import SETTINGS as SDXL
from nearid_ray.synthesis.engines.sdxl import SdxlEngine

TEXT_TO_PICTURE: dict[str, tuple[type[DiffusionEngine], DiffusionSettings, str]] = {
    "sdxl": (SdxlEngine, SDXL[0], "sdxl"),
    "flux-fill": (FluxFillEngine, FLUX_FILL[0], "flux-fill"),
    "flux-fill-partial": (FluxFillPartialEngine, FLUX_FILL_PARTIAL[0], "flux-fill"),
    "flux-canny": (FluxCannyEngine, FLUX_CANNY[0], "flux-canny"),
}
"""Family: (its class, its first preset, the kind of tiny weights)."""


def settings(family: str, folder: Path, **changes: Any) -> DiffusionSettings:
    """The family's first preset on tiny weights, at 64 pixels in four steps, in float32."""
    preset = TEXT_TO_PICTURE[family][1]
    small: dict[str, Any] = {"resolution_px": 64, "steps": 4, "dilation_px": 2, "dtype": "float32"}
    return replace(preset, weights=str(folder), **(small | changes))


def engine(family: str, folder: Path, **changes: Any) -> DiffusionEngine:
    """The family's engine, checked and loaded."""
    made = TEXT_TO_PICTURE[family][0](settings(family, folder, **changes))
    made.check()
    made.load()
    return made


@cache
def shared_engine(family: str, folder: Path) -> DiffusionEngine:
    """As `engine`, loaded once; tests must leave it as it is."""
    return engine(family, folder)


def view(size_px: int = 48, seed: int = 0) -> np.ndarray:
    """Coloured squares."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3)).astype(np.uint8)
    return np.kron(coarse, np.ones((size_px // 6, size_px // 6, 1), np.uint8))


def object_mask(size_px: int = 48) -> np.ndarray:
    """A box of about a sixth of the view."""
    mask = np.zeros((size_px, size_px), np.uint8)
    mask[size_px // 4 : 5 * size_px // 8, size_px // 4 : 3 * size_px // 4] = 255
    return mask


def row(seed: int = 0, size_px: int = 48, **changes: Any) -> EngineRequest:
    values: dict[str, Any] = {
        "view_HW3": view(size_px),
        "mask_HW": object_mask(size_px),
        "seed": seed,
        "prompt": "a photo of a red mug",
    }
    return EngineRequest(**(values | changes))


def difference(first: Any, second: Any) -> int:
    """The largest difference of two results' pictures, in steps of 1/255."""
    return int(np.abs(first.image_HW3.astype(int) - second.image_HW3).max())
