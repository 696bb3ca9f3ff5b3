"""What all engines on diffusers pipelines share: settings, loading, placement, seeds, resolution, batches.

A family's file says which pipeline class it loads, and with which arguments it is called. Facts on the classes that
hold for diffusers 0.42 stand where they are used.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from nearid_ray import hub
from nearid_ray.errors import UsageError
from nearid_ray.synthesis.engine import EngineRequest, EngineResult
from nearid_ray.synthesis.fit import fitted_size, painting_mask, to_engine, to_view

if TYPE_CHECKING:
    import torch

_RUNTIME = ("offload", "compile", "attention", "cache_threshold")
"""Settings of speed and memory; they change pixels by rounding alone, and are named in `settings` only when set."""

_EXPECTED_FILES = "model_index.json and the pipeline's parts"


@dataclass(frozen=True, kw_only=True)
class DiffusionSettings:
    """One configuration of a diffusion engine. Presets are in `catalog`; every value can be overridden."""

    name: str
    """Configuration, e.g. sdxl-512; the column `engine`."""
    group: Literal["train", "unseen", "part", "control"] = "train"
    """What its distractors are for."""
    weights: str
    """Hub id, or a folder in diffusers' layout."""
    revision: str = ""
    """Branch, tag or commit of weights on the hub."""
    resolution_px: int = 512
    """Shorter side of the pictures given to the model."""
    steps: int = 50
    """Denoising steps, 1 or more."""
    guidance: float = 1.0
    """Classifier-free (or distilled) guidance scale, 0 or more."""
    strength: float = 1.0
    """How far the painted region starts from noise, above 0, to 1 (all noise)."""
    prompt_template: str = "a photo of {description}"
    """What is asked for; {category} and {description} are the identity's (without a description: its category)."""
    negative_prompt: str = ""
    """What is not wanted."""
    dilation_px: int = 12
    """The object's mask is grown by this many canonical pixels before it is painted; 8 to 16 hide seams."""
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    """Precision of the model."""
    offload: Literal["none", "model", "sequential"] = "none"
    """Keep parts that do not run in host memory: less GPU memory, slower."""
    compile: bool = False
    """Compile the repeated blocks of the denoiser once a worker; pays off for many rows."""
    attention: str = ""
    """diffusers' attention backend, e.g. flash, _native_cudnn, sage; empty = its default."""
    cache_threshold: float = 0.0
    """First-block cache of the denoiser: above 0, steps that change it less are skipped; 0 = off."""
    options: dict[str, Any] = field(default_factory=dict)
    """What only this family knows."""

    def __post_init__(self) -> None:
        for name, low in (
            ("steps", 1),
            ("guidance", 0),
            ("dilation_px", 0),
            ("cache_threshold", 0),
            ("resolution_px", 8),
        ):
            if getattr(self, name) < low:
                raise ValueError(f"{self.name}: {name} is {getattr(self, name)}; expected at least {low}")
        if not 0 < self.strength <= 1:
            raise ValueError(f"{self.name}: strength is {self.strength}; expected above 0, at most 1")
        if not self.weights:
            raise ValueError(f"{self.name}: weights is empty; expected a hub id or a folder")


class DiffusionEngine(ABC):
    """An inpainting or editing engine on a diffusers pipeline.

    A row's noise comes from a generator of its own, seeded by the row: whatever the batch, float32 results of a row
    agree within a few millionths of the pixel range, and to the bit where the batch is the same.
    """

    family: ClassVar[str]
    multiple_px: ClassVar[int]
    """Sides of the pictures are multiples of this."""
    uses_model: ClassVar[bool] = True
    needs_donor: ClassVar[bool] = False
    licence: ClassVar[str]
    """Licence of the published weights."""
    model_card: ClassVar[str]
    """Where the published weights are described."""
    supports: ClassVar[frozenset[str]] = frozenset()
    """Which of strength, negative_prompt, guidance, cache, compile, attention the class knows; others are refused."""

    def __init__(self, settings: DiffusionSettings) -> None:
        self.config = settings
        self.name, self.group = settings.name, settings.group
        self._refuse_unsupported()
        fitted_size(settings.resolution_px, settings.resolution_px, settings.resolution_px, self.multiple_px)
        self._pipeline: Any = None

    @property
    def revision(self) -> str:
        """The weights' name and revision."""
        return f"{self.config.weights}@{self.config.revision}" if self.config.revision else self.config.weights

    @property
    def settings(self) -> dict[str, Any]:
        """Every value that changes pixels."""
        values = asdict(self.config)
        unset = {name: DiffusionSettings.__dataclass_fields__[name].default for name in _RUNTIME}
        dropped = {"name", "group", *(name for name in _RUNTIME if values[name] == unset[name])} - {"options"}
        return {name: value for name, value in values.items() if name not in dropped}

    def prompt(self, category: str, description: str) -> str:
        """The prompt of an identity."""
        said = description or category or "an object"
        return self.config.prompt_template.format(category=category or "object", description=said)

    @abstractmethod
    def build(self, dtype: "torch.dtype") -> Any:
        """The pipeline, from `config.weights`, on the CPU. Errors of loading are put into words by `load`."""

    @abstractmethod
    def call(
        self,
        images: list[np.ndarray],
        masks: list[np.ndarray],
        requests: Sequence[EngineRequest],
        generators: "list[torch.Generator]",
    ) -> Sequence[Any]:
        """Run `self.pipeline` on pictures (h, w, 3) and masks (h, w) of one size: one picture (PIL or array) a row."""

    @property
    def pipeline(self) -> Any:
        """The loaded pipeline."""
        if self._pipeline is None:
            raise RuntimeError(f"{self.name}: load() was not called")
        return self._pipeline

    def check(self) -> None:
        """What can be refused before a worker starts: a folder that is not there, a file in its place."""
        if hub.is_folder(self.config.weights, f"{self.name}: weights", _EXPECTED_FILES):
            self.check_folder(self.config.weights)

    def check_folder(self, folder: str) -> None:
        """Refuse a folder of weights that lacks a file; families with another layout say which files they need."""
        from pathlib import Path

        if not (Path(folder).expanduser() / "model_index.json").is_file():
            raise UsageError(
                f"{self.name}: weights {folder} has no model_index.json; expected a folder in diffusers' layout"
            )

    def load(self) -> None:
        """Weights into memory, to the GPU where this worker has one."""
        import torch

        from nearid_ray.synthesis.engines import runtime

        try:
            with hub.quiet_transformers(), runtime.quiet_diffusers():
                pipeline = self.build(getattr(torch, self.config.dtype))
        except UsageError:
            raise
        except Exception as error:  # whatever the libraries raise for weights that are missing or do not fit
            said = hub.in_words(error, self.config.weights)
            raise UsageError(f"{self.name}: {self.config.weights} cannot be loaded: {said}") from error
        pipeline.set_progress_bar_config(disable=True)
        runtime.place(pipeline, self.config)
        self._pipeline = pipeline

    def generate(self, requests: list[EngineRequest]) -> "list[EngineResult | Exception]":
        """One result a request. Rows of one size share a pass; a row that cannot be painted fails alone."""
        results: list[EngineResult | Exception | None] = [None] * len(requests)
        prepared: dict[tuple[int, ...], list[tuple[int, np.ndarray, np.ndarray, np.ndarray]]] = {}
        for place, request in enumerate(requests):
            try:
                region_HW = self.region(request)
                image, mask = to_engine(request.view_HW3, region_HW, self.config.resolution_px, self.multiple_px)
            except ValueError as error:
                results[place] = error
                continue
            prepared.setdefault(image.shape, []).append((place, region_HW, image, mask))
        for rows in prepared.values():
            painted = self._paint(
                [requests[row[0]] for row in rows], [row[2] for row in rows], [row[3] for row in rows]
            )
            for (place, region_HW, _, _), result in zip(rows, painted, strict=True):
                if isinstance(result, Exception):
                    results[place] = result
                else:
                    image_HW3 = to_view(result, requests[place].view_HW3)
                    results[place] = EngineResult(image_HW3=image_HW3, mask_HW=region_HW)
        return [result for result in results if result is not None]

    def region(self, request: EngineRequest) -> np.ndarray:
        """What of the view is painted, (H, W) at the view's size; families with partial masks override it."""
        return painting_mask(request.mask_HW, self.config.dilation_px)

    def _paint(
        self, requests: list[EngineRequest], images: list[np.ndarray], masks: list[np.ndarray]
    ) -> list[np.ndarray | Exception]:
        import torch

        # Noise drawn on the CPU is the same on every kind of GPU.
        generators = [torch.Generator("cpu").manual_seed(request.seed) for request in requests]
        with torch.inference_mode():
            pictures = [np.asarray(picture) for picture in self.call(images, masks, requests, generators)]
        if len(pictures) != len(requests):
            raise RuntimeError(f"{self.name}: {len(requests)} rows in, {len(pictures)} pictures out")
        return [self._checked(picture) for picture in pictures]

    def _checked(self, picture: np.ndarray) -> np.ndarray | Exception:
        if picture.ndim != 3 or picture.shape[2] != 3:
            return ValueError(f"{self.name} gave an array of shape {picture.shape}; expected (H, W, 3)")
        return picture if picture.dtype == np.uint8 else np.rint(np.clip(picture, 0, 1) * 255).astype(np.uint8)

    def _refuse_unsupported(self) -> None:
        config = self.config
        asked = {
            "strength": config.strength != 1.0,
            "negative_prompt": bool(config.negative_prompt),
            "cache": config.cache_threshold > 0,
            "compile": config.compile,
            "attention": bool(config.attention),
        }
        for name, is_asked in asked.items():
            if is_asked and name not in self.supports:
                raise UsageError(
                    f"{config.name}: {name} is set, which {self.family} does not support; it supports "
                    f"{', '.join(sorted(self.supports)) or 'none of these'}"
                )
