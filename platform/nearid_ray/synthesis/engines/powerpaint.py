"""PowerPaint v2: Stable Diffusion 1.5 with a BrushNet that is told a task by learned tokens."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nearid_ray.errors import UsageError
from nearid_ray.synthesis.engine import EngineRequest
from nearid_ray.synthesis.engines import powerpaint_weights as published
from nearid_ray.synthesis.engines.diffusion import DiffusionEngine, DiffusionSettings

if TYPE_CHECKING:
    import torch

SETTINGS = (
    DiffusionSettings(
        name="powerpaint-512",
        group="unseen",
        weights=published.PUBLISHED,
        resolution_px=640,  # the name tells the size at which the dataset keeps the pictures
        steps=45,
        guidance=7.5,
        negative_prompt="text, watermark, low resolution, low quality, blurry, deformed",
        options={"task": "text-guided", "fitting_degree": 1.0, "conditioning_scale": 1.0},
    ),
)
"""The paper's configuration."""


class PowerPaintEngine(DiffusionEngine):
    """Our PowerPaintPipeline.

    Its `options`: task, text-guided (paint what the prompt says) or shape-guided (and fill the mask with it);
    fitting_degree, 0 to 1, how closely a shape-guided object follows the mask; conditioning_scale, 0 or more, the
    weight of the BrushNet.
    """

    family = "powerpaint"
    multiple_px = 8
    licence = "apache-2.0; its base Realistic Vision V6: creativeml-openrail-m"
    model_card = f"https://huggingface.co/{published.PUBLISHED}"
    supports = frozenset({"strength", "negative_prompt", "compile"})  # its UNets ignore the attention backend
    option_names = frozenset(SETTINGS[0].options)
    index_file = published.INDEX

    def __init__(self, settings: DiffusionSettings) -> None:
        super().__init__(settings)
        _check_options(settings)

    def check_folder(self, folder: str) -> None:
        published.check_folder(Path(folder).expanduser(), f"{self.name}: weights")

    def build(self, dtype: "torch.dtype") -> Any:
        config, what = self.config, f"{self.name}: weights"
        pipeline = published.load(published.find(config.weights, config.revision, what), dtype, what)
        if config.compile:
            pipeline.brushnet.compile_repeated_blocks(fullgraph=True)  # the base UNet is compiled with all engines'
        return pipeline

    def call(
        self,
        images: list[np.ndarray],
        masks: list[np.ndarray],
        requests: Sequence[EngineRequest],
        generators: "list[torch.Generator]",
    ) -> Any:
        return self.pipeline(
            prompts=[request.prompt for request in requests],
            negative_prompts=[request.negative_prompt for request in requests],
            images=images,
            masks=masks,
            generators=generators,
            guidance=self.config.guidance,
            strength=self.config.strength,
            steps=self.config.steps,
            **self.config.options,
        )


def _check_options(settings: DiffusionSettings) -> None:
    options, name = settings.options, f"{settings.name}: options"
    if options["task"] not in published.TASKS:
        raise UsageError(f"{name}.task is {options['task']!r}; expected one of {', '.join(published.TASKS)}")
    if not 0 <= options["fitting_degree"] <= 1:
        raise UsageError(f"{name}.fitting_degree is {options['fitting_degree']}; expected 0 to 1")
    if options["fitting_degree"] != 1 and len(set(published.TASKS[options["task"]])) == 1:
        raise UsageError(f"{name}.fitting_degree has no effect on a {options['task']} task; set task=shape-guided")
    if options["conditioning_scale"] < 0:
        raise UsageError(f"{name}.conditioning_scale is {options['conditioning_scale']}; expected 0 or more")
