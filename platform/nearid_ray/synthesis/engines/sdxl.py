"""SDXL inpainting: a nine-channel UNet that paints the region anew from text."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from nearid_ray.synthesis.engine import EngineRequest
from nearid_ray.synthesis.engines.diffusion import DiffusionEngine, DiffusionSettings

if TYPE_CHECKING:
    import torch

_WEIGHTS = "diffusers/stable-diffusion-xl-1.0-inpainting-0.1"

SETTINGS = tuple(
    DiffusionSettings(
        name=f"sdxl-{side_px}",
        group="unseen",
        weights=_WEIGHTS,
        resolution_px=side_px,
        steps=30,
        guidance=8.0,
        strength=0.99,
        negative_prompt="text, letters, watermark, logo, low resolution, blurry",
    )
    for side_px in (512, 1024)
)
"""The paper's configurations: 30 steps, guidance 8, strength 0.99, a negative prompt against text and watermarks."""


class SdxlEngine(DiffusionEngine):
    """StableDiffusionXLInpaintPipeline. Of a prompt it reads the first 77 tokens."""

    family = "sdxl"
    multiple_px = 8
    licence = "openrail++"
    model_card = f"https://huggingface.co/{_WEIGHTS}"
    supports = frozenset({"strength", "negative_prompt", "compile"})  # its UNet ignores the attention backend
    option_names = frozenset()

    def build(self, dtype: "torch.dtype") -> Any:
        from diffusers import StableDiffusionXLInpaintPipeline

        # Left unsaid, pictures carry a watermark wherever the package for it happens to be installed.
        return self.load_pipeline(StableDiffusionXLInpaintPipeline, dtype, add_watermarker=False)

    def call(
        self,
        images: list[np.ndarray],
        masks: list[np.ndarray],
        requests: Sequence[EngineRequest],
        generators: "list[torch.Generator]",
    ) -> Any:
        return self.pipeline(
            negative_prompt=[request.negative_prompt for request in requests],
            **self.inpainting(images, masks, requests, generators),
        )
