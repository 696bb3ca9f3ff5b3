"""Qwen-Image-Edit: the whole picture made anew after an instruction. ID-Sim's context and lighting edits.

What it gives is no distractor but a new view of the same identity, a positive; `context` has the prompts:

    engine = QwenEditEngine(SETTINGS[0])
    engine.check()
    engine.load()
    prompt = context_prompt("mug", *draw_context(seed))
    [new_view] = engine.generate([EngineRequest(view_HW3=view, mask_HW=mask, seed=seed, prompt=prompt)])

`place_on_white` with the same view, mask and seed tells where the object was placed.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from nearid_ray.synthesis.context import TEMPLATE, place_on_white
from nearid_ray.synthesis.engine import EngineRequest, EngineResult
from nearid_ray.synthesis.engines import qwen, qwen_editing
from nearid_ray.synthesis.engines.diffusion import DiffusionSettings

if TYPE_CHECKING:
    import torch

OPTIONS: dict[str, Any] = {"on_white": True, **qwen.lora_options(qwen_editing.LORA_FILE)}
"""`on_white`: the model is given the object alone, placed on white, as ID-Sim does it; otherwise the view as it is.
And those of `qwen.lora_options`."""

SETTINGS = (
    DiffusionSettings(
        name="qwen-edit",
        group="context",
        weights=qwen_editing.WEIGHTS,
        resolution_px=qwen_editing.SIDE_PX,
        steps=8,
        guidance=1.0,
        prompt_template=TEMPLATE,
        dilation_px=0,
        options=OPTIONS,
    ),
)
"""ID-Sim's context edits: Lightning's 8 steps without guidance."""


class QwenEditEngine(qwen_editing.EditEngine):
    """QwenImageEditPipeline. Its results are new throughout: the region of each is the whole view."""

    family = "qwen-edit"
    defaults = OPTIONS

    def build(self, dtype: "torch.dtype") -> Any:
        from diffusers import QwenImageEditPipeline

        return self.build_with(QwenImageEditPipeline, dtype)

    def generate(self, requests: list[EngineRequest]) -> "list[EngineResult | Exception]":
        """One new view a request; a row whose object cannot be placed fails alone."""
        if not self.config.options["on_white"]:
            return super().generate(requests)
        placed: list[EngineRequest | ValueError] = []
        for request in requests:
            try:
                view_HW3, mask_HW = place_on_white(request.view_HW3, request.mask_HW, request.seed)
                placed.append(replace(request, view_HW3=view_HW3, mask_HW=mask_HW))
            except ValueError as error:
                placed.append(error)
        made = iter(super().generate([row for row in placed if isinstance(row, EngineRequest)]))
        return [next(made) if isinstance(row, EngineRequest) else row for row in placed]

    def region(self, request: EngineRequest) -> np.ndarray:
        """The whole view."""
        return np.full(request.view_HW3.shape[:2], 255, np.uint8)

    def call(
        self,
        images: list[np.ndarray],
        masks: list[np.ndarray],
        requests: Sequence[EngineRequest],
        generators: "list[torch.Generator]",
    ) -> Any:
        return self.pipeline(
            image=[qwen_editing.at_one_megapixel(image) for image in images],
            generator=generators,
            output_type="np",
            **self.guided(requests),
        )
