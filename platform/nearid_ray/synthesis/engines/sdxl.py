"""SDXL inpainting: a nine-channel UNet that paints the region anew from text."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from nearid_ray.synthesis.engine import EngineRequest
from nearid_ray.synthesis.engines.diffusion import DiffusionEngine

if TYPE_CHECKING:
    import torch


class SdxlEngine(DiffusionEngine):
    """StableDiffusionXLInpaintPipeline."""

    family = "sdxl"
    multiple_px = 8
    licence = "openrail++"
    model_card = "https://huggingface.co/diffusers/stable-diffusion-xl-1.0-inpainting-0.1"
    supports = frozenset({"strength", "negative_prompt", "compile"})  # its UNet ignores the attention backend

    def build(self, dtype: "torch.dtype") -> Any:
        from diffusers import StableDiffusionXLInpaintPipeline

        return StableDiffusionXLInpaintPipeline.from_pretrained(
            self.config.weights, revision=self.config.revision or None, dtype=dtype
        )

    def call(
        self,
        images: list[np.ndarray],
        masks: list[np.ndarray],
        requests: Sequence[EngineRequest],
        generators: "list[torch.Generator]",
    ) -> Sequence[Any]:
        height, width = images[0].shape[:2]
        return self.pipeline(
            prompt=[request.prompt for request in requests],
            negative_prompt=[request.negative_prompt for request in requests],
            image=[Image.fromarray(image) for image in images],
            mask_image=[Image.fromarray(mask) for mask in masks],
            height=height,
            width=width,
            strength=self.config.strength,
            guidance_scale=self.config.guidance,
            num_inference_steps=self.config.steps,
            generator=generators,
        ).images
