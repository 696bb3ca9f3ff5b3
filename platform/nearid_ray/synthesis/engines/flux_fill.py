"""FLUX.1 Fill: a transformer that paints the region anew from text."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from nearid_ray.errors import UsageError
from nearid_ray.synthesis.engine import EngineRequest
from nearid_ray.synthesis.engines import runtime
from nearid_ray.synthesis.engines.diffusion import DiffusionEngine, DiffusionSettings

if TYPE_CHECKING:
    import torch

WEIGHTS = "black-forest-labs/FLUX.1-Fill-dev"

SETTINGS = tuple(
    DiffusionSettings(
        name=f"flux-fill-{side_px}",
        group="train",
        weights=WEIGHTS,
        resolution_px=side_px,
        steps=50,
        guidance=30.0,
    )
    for side_px in (512, 1024)
)
"""The paper's configurations: 50 steps, guidance 30."""


class FluxFillEngine(DiffusionEngine):
    """FluxFillPipeline. Of a prompt it reads the first 512 tokens."""

    family = "flux-fill"
    multiple_px = 16
    licence = "flux-1-dev-non-commercial-license"
    model_card = f"https://huggingface.co/{WEIGHTS}"
    supports = frozenset({"strength", "compile", "attention", "cache"})
    option_names: ClassVar[frozenset[str] | None] = frozenset()

    def build(self, dtype: "torch.dtype") -> Any:
        from diffusers import FluxFillPipeline

        pipeline = self.load_pipeline(FluxFillPipeline, dtype)
        # Noise and masked latents (64 channels each, 2 x 2 cells of 16), and the mask's 2 x 2 x 8 x 8 pixels.
        refuse_other_input(pipeline, 64 + 64 + 256, self.name, "FLUX.1 Fill")
        return pipeline

    def call(
        self,
        images: list[np.ndarray],
        masks: list[np.ndarray],
        requests: Sequence[EngineRequest],
        generators: "list[torch.Generator]",
    ) -> Any:
        return self.fill(images, masks, requests, generators, self.config.strength)

    def fill(
        self,
        images: list[np.ndarray],
        masks: list[np.ndarray],
        requests: Sequence[EngineRequest],
        generators: "list[torch.Generator]",
        strength: float,
    ) -> Any:
        """One pass of the pipeline at a strength; its output with pictures as floats of 0 to 1."""
        arguments = self.inpainting(images, masks, requests, generators) | {"strength": strength}
        with runtime.caching(self.pipeline, self.config):
            return self.pipeline(**arguments)


def refuse_other_input(pipeline: Any, channels: int, name: str, model: str) -> None:
    """UsageError where the transformer takes other input than the pipeline makes; it would fail at the first row."""
    found = pipeline.transformer.config.in_channels
    if found != channels:
        raise UsageError(
            f"{name}: the transformer of these weights takes {found} channels, that of {model} {channels}; give "
            "weights of that model"
        )
