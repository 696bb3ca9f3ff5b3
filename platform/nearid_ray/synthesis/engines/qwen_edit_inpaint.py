"""Qwen-Image-Edit kept to a region, started from the object itself: ID-Sim's graded identity edits."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from nearid_ray.errors import UsageError
from nearid_ray.synthesis.engine import EngineRequest
from nearid_ray.synthesis.engines import qwen, qwen_editing
from nearid_ray.synthesis.engines.diffusion import DiffusionSettings

if TYPE_CHECKING:
    import torch

OPTIONS: dict[str, Any] = qwen.lora_options(qwen_editing.LORA_FILE) | {"lora": ""}
"""Those of `qwen.lora_options`."""

GRADES = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""Strengths of ID-Sim's identity edits: how far from the object the new one may be."""

SETTINGS = tuple(
    DiffusionSettings(
        name=f"qwen-edit-inpaint-{round(100 * strength)}",
        group="extra",
        weights=qwen_editing.WEIGHTS,
        resolution_px=qwen_editing.SIDE_PX,
        steps=50,
        guidance=4.0,
        strength=strength,
        prompt_template="Replace the {category} with a different one: {description}",
        options=OPTIONS,
    )
    for strength in GRADES
)
"""One a grade. Steps and guidance are not published; these are the model's own, because Lightning's 8 steps cannot tell
the grades apart."""


class QwenEditInpaintEngine(qwen_editing.EditEngine):
    """QwenImageEditInpaintPipeline."""

    family = "qwen-edit-inpaint"
    supports = qwen_editing.EditEngine.supports | {"strength"}
    defaults = OPTIONS

    def __init__(self, settings: DiffusionSettings) -> None:
        super().__init__(settings)
        painted = settings.strength * settings.steps
        self._painted_steps = round(painted)
        if abs(painted - self._painted_steps) > 1e-6 or not self._painted_steps:
            below = max(1, int(painted))
            raise UsageError(
                f"{settings.name}: strength {settings.strength} of {settings.steps} steps is {painted:g} steps, and a "
                f"part of a step is not painted; give strength {below / settings.steps:g} or "
                f"{(below + 1) / settings.steps:g}, or other steps"
            )

    def build(self, dtype: "torch.dtype") -> Any:
        from diffusers import QwenImageEditInpaintPipeline

        return self.build_with(QwenImageEditInpaintPipeline, dtype)

    def call(
        self,
        images: list[np.ndarray],
        masks: list[np.ndarray],
        requests: Sequence[EngineRequest],
        generators: "list[torch.Generator]",
    ) -> Any:
        # The class cuts steps - steps * strength to a whole number; a hair below it rounding cannot cost a step.
        strength = 1.0 if self._painted_steps == self.config.steps else (self._painted_steps - 1e-6) / self.config.steps
        return self.pipeline(
            image=[qwen_editing.at_one_megapixel(image) for image in images],
            mask_image=[qwen_editing.at_one_megapixel(mask) for mask in masks],
            strength=strength,
            generator=generators,
            output_type="np",
            **self.guided(requests),
        )
