"""Qwen-Image with a ControlNet for inpainting: a transformer that paints the region anew from text."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from nearid_ray import hub
from nearid_ray.errors import UsageError
from nearid_ray.synthesis.engine import EngineRequest
from nearid_ray.synthesis.engines import loading, qwen
from nearid_ray.synthesis.engines.diffusion import DiffusionSettings

if TYPE_CHECKING:
    import torch

WEIGHTS = "Qwen/Qwen-Image"
CONTROLNET = "InstantX/Qwen-Image-ControlNet-Inpainting"
LORA_FILE = "Qwen-Image-Lightning-8steps-V1.1.safetensors"

OPTIONS: dict[str, Any] = {
    "controlnet": CONTROLNET,
    "controlnet_revision": "",
    "conditioning_scale": 1.0,
    **qwen.lora_options(LORA_FILE),
}
"""`controlnet`: hub id or folder of the inpainting ControlNet, `controlnet_revision` its branch, tag or commit,
`conditioning_scale` its weight, 0 or more; and those of `qwen.lora_options`."""

SETTINGS = tuple(
    DiffusionSettings(
        name=f"qwen-image-{side_px}",
        group="train",
        weights=WEIGHTS,
        resolution_px=side_px,
        steps=8,
        guidance=1.0,
        options=OPTIONS,
    )
    for side_px in (512, 1328)
)
"""The paper's configurations: Lightning's 8 steps without guidance."""

_CONDITION_CHANNELS = 4 * (16 + 1)
"""2 x 2 cells of 16 latents and one of the mask."""


class QwenImageEngine(qwen.QwenEngine):
    """QwenImageControlNetInpaintPipeline.

    Its first-block cache is refused: the ControlNet's residuals would be counted twice.
    """

    family = "qwen-image"
    model_card = f"https://huggingface.co/{WEIGHTS}"
    defaults = OPTIONS

    def __init__(self, settings: DiffusionSettings) -> None:
        super().__init__(settings)
        options = self.config.options
        if not options["controlnet"]:
            raise UsageError(f"{self.name}: options.controlnet is empty; expected a hub id or a folder")
        if options["conditioning_scale"] < 0:
            raise UsageError(
                f"{self.name}: options.conditioning_scale is {options['conditioning_scale']}; expected 0 or more"
            )

    def check_parts(self) -> None:
        super().check_parts()
        folder = self._local_controlnet()
        if folder is None:
            self.fix_on_hub("controlnet", "config.json")
        else:
            self._check_controlnet(folder)
            self.fix_here("controlnet", folder, hub.fingerprint(folder))

    def build(self, dtype: "torch.dtype") -> Any:
        from diffusers import QwenImageControlNetInpaintPipeline, QwenImageControlNetModel

        options, what = self.config.options, f"{self.name}: options.controlnet"
        folder = self._local_controlnet()
        if folder is None:
            folder = qwen.fetch_part(options["controlnet"], options["controlnet_revision"])
        else:
            self._check_controlnet(folder)
            self.refuse_other("controlnet", folder, hub.fingerprint)
        controlnet = loading.load_part(QwenImageControlNetModel, folder, dtype, what, source=CONTROLNET)
        channels = controlnet.controlnet_x_embedder.in_features
        if channels != _CONDITION_CHANNELS:
            raise UsageError(
                f"{what} {folder} takes {channels} channels; expected the {_CONDITION_CHANNELS} of an inpainting "
                f"ControlNet such as {CONTROLNET}"
            )
        pipeline = self.load_pipeline(QwenImageControlNetInpaintPipeline, dtype, controlnet=controlnet)
        return self.with_lightning(pipeline)

    def call(
        self,
        images: list[np.ndarray],
        masks: list[np.ndarray],
        requests: Sequence[EngineRequest],
        generators: "list[torch.Generator]",
    ) -> Any:
        height, width = images[0].shape[:2]
        with qwen.own_noise(self.pipeline.vae, generators):
            return self.pipeline(
                control_image=[Image.fromarray(image) for image in images],
                control_mask=[Image.fromarray(mask) for mask in masks],
                controlnet_conditioning_scale=self.config.options["conditioning_scale"],
                height=height,
                width=width,
                generator=generators,
                output_type="np",
                **self.guided(requests),
            )

    def _local_controlnet(self) -> Path | None:
        spec = self.config.options["controlnet"]
        is_here = hub.is_folder(spec, f"{self.name}: options.controlnet", "config.json and the weights")
        return Path(spec).expanduser() if is_here else None

    def _check_controlnet(self, folder: Path) -> None:
        if not (folder / "config.json").is_file():
            raise UsageError(
                f"{self.name}: options.controlnet {folder} has no config.json; get it with "
                f"`hf download {CONTROLNET} --local-dir FOLDER`"
            )
        loading.check_part(folder, f"{self.name}: options.controlnet", source=CONTROLNET)
