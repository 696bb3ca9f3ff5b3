"""FLUX.1 Canny: keeps to the edges of the view while it paints the region anew, so the object's outline stays."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from PIL import Image

from nearid_ray.errors import UsageError
from nearid_ray.synthesis.engine import EngineRequest
from nearid_ray.synthesis.engines import runtime
from nearid_ray.synthesis.engines.diffusion import DiffusionEngine, DiffusionSettings
from nearid_ray.synthesis.engines.flux_fill import refuse_other_input

if TYPE_CHECKING:
    import torch

_WEIGHTS = "black-forest-labs/FLUX.1-Canny-dev"

SETTINGS = tuple(
    DiffusionSettings(
        name=f"flux-canny-{side_px}",
        group="extra",
        weights=_WEIGHTS,
        resolution_px=side_px,
        steps=28,
        guidance=7.0,
        strength=0.99,
        options={"canny_low": 50, "canny_high": 200},
    )
    for side_px in (512, 1024)
)
"""The paper's configurations: 28 steps, guidance 7, strength 0.99, Canny edges at 50 and 200."""


def edges(image_HW3: np.ndarray, low: int, high: int) -> np.ndarray:
    """Canny edges of the whole picture, white on black, (H, W, 3) uint8; of the colour channels the steepest counts."""
    return np.repeat(cv2.Canny(image_HW3, low, high)[..., None], 3, axis=2)


class FluxCannyEngine(DiffusionEngine):
    """FluxControlInpaintPipeline with the edges of the view, inside the region as well as outside. Of a prompt it
    reads the first 512 tokens."""

    family = "flux-canny"
    multiple_px = 16
    licence = "flux-1-dev-non-commercial-license"
    model_card = f"https://huggingface.co/{_WEIGHTS}"
    supports = frozenset({"strength", "compile", "attention", "cache"})
    option_names = frozenset({"canny_low", "canny_high"})

    def __init__(self, settings: DiffusionSettings) -> None:
        super().__init__(settings)
        low, high = self._thresholds
        if not 0 <= low <= high:
            raise UsageError(f"{self.name}: canny_low is {low}, canny_high {high}; expected 0 <= low <= high")

    def build(self, dtype: "torch.dtype") -> Any:
        from diffusers import FluxControlInpaintPipeline

        pipeline = self.load_pipeline(FluxControlInpaintPipeline, dtype)
        refuse_other_input(pipeline, 64 + 64, self.name, "FLUX.1 Canny")  # noise, and latents of the edges
        return pipeline

    def call(
        self,
        images: list[np.ndarray],
        masks: list[np.ndarray],
        requests: Sequence[EngineRequest],
        generators: "list[torch.Generator]",
    ) -> Any:
        low, high = self._thresholds
        with runtime.caching(self.pipeline, self.config):
            return self.pipeline(
                control_image=[Image.fromarray(edges(image, low, high)) for image in images],
                **self.inpainting(images, masks, requests, generators),
            )

    @property
    def _thresholds(self) -> tuple[int, int]:
        return self.config.options["canny_low"], self.config.options["canny_high"]
