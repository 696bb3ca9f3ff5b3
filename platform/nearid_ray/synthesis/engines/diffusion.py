"""What all engines on diffusers pipelines share: settings, loading, placement, seeds, resolution, batches.

A family's file says which pipeline class it loads, and with which arguments it is called. Facts on the classes that
hold for diffusers 0.42 stand where they are used.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from PIL import Image

from nearid_ray import hub
from nearid_ray.errors import UsageError
from nearid_ray.gpu_batches import is_out_of_memory
from nearid_ray.synthesis.engine import CONTROL, EngineRequest, EngineResult
from nearid_ray.synthesis.engines import loading, runtime
from nearid_ray.synthesis.fit import fitted_size, painting_mask, to_engine, to_view

if TYPE_CHECKING:
    import torch

_RUNTIME = ("offload", "compile", "attention", "cache_threshold")
"""Settings of speed and memory; they change pixels by rounding alone, and are named in `settings` only when set."""


@dataclass(frozen=True, kw_only=True)
class DiffusionSettings:
    """One configuration of a diffusion engine. Presets are in `catalog`; every value can be overridden."""

    name: str
    """Configuration, e.g. sdxl-512; the column `engine`."""
    group: Literal["train", "unseen", "extra", "part", "context", "control"] = "train"
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
        if self.steps * self.strength < 1:
            raise ValueError(
                f"{self.name}: steps {self.steps} x strength {self.strength} leave no step; expected at least 1"
            )
        if not self.weights:
            raise ValueError(f"{self.name}: weights is empty; expected a hub id or a folder")
        try:
            self.prompt_template.format(category="", description="")
        except (AttributeError, IndexError, KeyError, ValueError) as error:
            raise ValueError(
                f"{self.name}: prompt_template {self.prompt_template!r} cannot be filled in ({error}); it may name "
                "{category} and {description}"
            ) from error


class DiffusionEngine(ABC):
    """An inpainting or editing engine on a diffusers pipeline.

    A row's noise comes from a generator of its own, seeded by the row. The same batch gives the same bits; in another
    batch a row's pixels move by at most 1/255 in float32 and by some more in bfloat16. The first-block cache skips
    steps for a whole batch: with it nothing is promised across batches.
    """

    family: ClassVar[str]
    multiple_px: ClassVar[int]
    """Sides of the pictures are multiples of this."""
    uses_model: ClassVar[bool] = True
    needs_donor: ClassVar[bool] = False
    licence: ClassVar[str]
    """Licence of the published weights."""
    model_card: ClassVar[str]
    """Where the published weights are described: https://huggingface.co/OWNER/NAME."""
    supports: ClassVar[frozenset[str]] = frozenset()
    """Which of strength, negative_prompt, cache, compile, attention the class knows; others are refused."""
    option_names: ClassVar[frozenset[str] | None] = None
    """The keys that `options` has to have; None where the family reads it itself."""
    index_file: ClassVar[str] = loading.INDEX
    """A small file that every copy of the weights has."""
    packages: ClassVar[tuple[str, ...]] = ("diffusers", "accelerate")
    """What has to be installed."""

    def __init__(self, settings: DiffusionSettings) -> None:
        self.config = settings
        self.name, self.group = settings.name, settings.group
        self._refuse_unsupported()
        try:
            fitted_size(settings.resolution_px, settings.resolution_px, settings.resolution_px, self.multiple_px)
        except ValueError as error:
            raise UsageError(f"{settings.name}: resolution_px: {error}") from error
        self._fingerprint = ""
        self._pipeline: Any = None

    @property
    def revision(self) -> str:
        """The weights' name and revision; after `check` the hub's commit, or a name of a folder's files."""
        revision = self._fingerprint or self.config.revision
        return f"{self._weights_name}@{revision}" if revision else self._weights_name

    @property
    def settings(self) -> dict[str, Any]:
        """Every value that changes pixels. After `check` a folder is known by its name and files, wherever it lies."""
        values = asdict(self.config) | {"weights": self._weights_name}
        unset = {name: DiffusionSettings.__dataclass_fields__[name].default for name in _RUNTIME}
        dropped = {"name", "group", "offload", *(name for name in _RUNTIME if values[name] == unset[name])}
        return {name: value for name, value in values.items() if name not in dropped}

    def prompt(self, category: str, description: str) -> str:
        """The prompt of an identity."""
        said = description or category or "an object"
        return self.config.prompt_template.format(category=category or "object", description=said)

    @property
    def negative_prompt(self) -> str:
        """What is not wanted, or empty."""
        return self.config.negative_prompt

    def control(self, strength: float) -> "DiffusionEngine | None":
        """The same object from its own description, started from itself; None where the class has no strength: it
        would paint another object."""
        if "strength" not in self.supports or self.group == "control":
            return None
        return type(self)(replace(self.config, name=self.name + CONTROL, group="control", strength=strength))

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
        """Run `self.pipeline` on pictures (h, w, 3) and masks (h, w) of one size.

        Returns one picture a row, PIL or array (float of 0 to 1 tells numbers that are none), or the pipeline's output
        with `images` and, where it has a safety check, `nsfw_content_detected`. What it raises fails the whole batch.
        """

    def inpainting(
        self,
        images: list[np.ndarray],
        masks: list[np.ndarray],
        requests: Sequence[EngineRequest],
        generators: "list[torch.Generator]",
    ) -> dict[str, Any]:
        """The arguments that diffusers' inpainting pipelines share; of `call`'s."""
        height, width = images[0].shape[:2]
        return {
            "prompt": [request.prompt for request in requests],
            "image": [Image.fromarray(image) for image in images],
            "mask_image": [Image.fromarray(mask) for mask in masks],
            "height": height,
            "width": width,
            "strength": self.config.strength,
            "guidance_scale": self.config.guidance,
            "num_inference_steps": self.config.steps,
            "generator": generators,
            "output_type": "np",
        }

    @property
    def pipeline(self) -> Any:
        """The loaded pipeline."""
        if self._pipeline is None:
            raise RuntimeError(f"{self.name}: load() was not called")
        return self._pipeline

    def check(self) -> None:
        """Refuse what can be found missing before a worker starts, and fix which weights are meant: `config` then holds
        a folder's absolute path or the hub's commit.

        Raises:
            UsageError: a package or a file is missing, or the hub does not give the weights; says what to do.
        """
        loading.need_packages(self.name, *self.packages)
        config, what = self.config, f"{self.name}: weights"
        if hub.is_folder(config.weights, what, f"{self.index_file} and the parts"):
            if config.revision:
                raise UsageError(f"{self.name}: revision is {config.revision!r}, but weights is a folder; leave it out")
            folder = Path(config.weights).expanduser().resolve()
            self.check_folder(str(folder))
            self.config = replace(config, weights=str(folder))
            self._fingerprint = hub.fingerprint(folder)
        else:
            self.config = replace(config, revision=hub.commit(config.weights, config.revision, self.index_file, what))

    def check_folder(self, folder: str) -> None:
        """Refuse a folder of weights that lacks a file; families with another layout say which files they need."""
        loading.check_folder(Path(folder), f"{self.name}: weights", source=self._published)

    def load(self) -> None:
        """Weights into memory, to the GPU where this worker has one.

        Raises:
            UsageError: they are missing or damaged here, or differ from those that `check` found.
        """
        import torch

        loading.need_packages(self.name, *self.packages)
        config, what = self.config, f"{self.name}: weights"
        if hub.is_folder(config.weights, what, f"{self.index_file} and the parts"):
            self.check_folder(config.weights)
            if self._fingerprint and hub.fingerprint(Path(config.weights).expanduser()) != self._fingerprint:
                raise UsageError(
                    f"{what} {config.weights} holds other files here than on the driver; give a path that all nodes "
                    "share, or a hub id"
                )
        try:
            with hub.quiet_transformers(), runtime.quiet_diffusers():
                pipeline = self.build(getattr(torch, config.dtype))
                pipeline.set_progress_bar_config(disable=True)
                runtime.place(pipeline, config)
        except UsageError:
            raise
        except Exception as error:  # whatever the libraries raise for weights that are missing or do not fit
            if is_out_of_memory(error):
                raise
            said = hub.in_words(error, config.weights)
            raise UsageError(f"{self.name}: {config.weights} cannot be loaded: {said}") from error
        self._pipeline = pipeline

    def load_pipeline(self, pipeline_class: Any, dtype: "torch.dtype", **given: Any) -> Any:
        """A diffusers pipeline from `config.weights` with every tensor accounted for; see `loading.load_pipeline`."""
        config, what = self.config, f"{self.name}: weights"
        return loading.load_pipeline(
            pipeline_class, config.weights, config.revision, dtype, what, source=self._published, **given
        )

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
            places, regions, images, masks = zip(*rows, strict=True)
            batch = [requests[place] for place in places]
            painted = self._paint(batch, list(images), list(masks))
            for place, region_HW, request, result in zip(places, regions, batch, painted, strict=True):
                results[place] = result if isinstance(result, Exception) else self.result(request, region_HW, *result)
        return [result for result in results if result is not None]

    def region(self, request: EngineRequest) -> np.ndarray:
        """What of the view is painted, (H, W) at the view's size; families with partial masks override it."""
        return painting_mask(request.mask_HW, self.config.dilation_px)

    def result(
        self, request: EngineRequest, region_HW: np.ndarray, picture_HW3: np.ndarray, flagged: bool | None
    ) -> EngineResult:
        """The row's result from the model's picture; families that know more of it override it."""
        image_HW3 = to_view(picture_HW3, request.view_HW3)
        return EngineResult(image_HW3=image_HW3, mask_HW=region_HW, flagged=flagged)

    def _paint(
        self, requests: list[EngineRequest], images: list[np.ndarray], masks: list[np.ndarray]
    ) -> list[tuple[np.ndarray, bool | None] | Exception]:
        import torch

        # Noise drawn on the CPU is the same on every kind of GPU.
        generators = [torch.Generator("cpu").manual_seed(request.seed) for request in requests]
        with torch.inference_mode(), hub.quiet_transformers(), runtime.quiet_diffusers():
            output = self.call(images, masks, requests, generators)
        pictures = [np.asarray(picture) for picture in getattr(output, "images", output)]
        flags = getattr(output, "nsfw_content_detected", None) or [None] * len(pictures)
        if not len(pictures) == len(flags) == len(requests):
            raise RuntimeError(f"{self.name}: {len(requests)} rows in, {len(pictures)} pictures out")
        return [self._checked(picture, flag) for picture, flag in zip(pictures, flags, strict=True)]

    def _checked(self, picture: np.ndarray, flag: bool | None) -> tuple[np.ndarray, bool | None] | Exception:
        flagged = None if flag is None else bool(flag)
        if picture.ndim != 3 or picture.shape[2] != 3:
            return ValueError(f"{self.name} gave an array of shape {picture.shape}; expected (H, W, 3)")
        if picture.dtype != np.uint8:
            if not np.isfinite(picture).all():
                return ValueError(f"{self.name} gave pixels that are no numbers (NaN or infinite); try another dtype")
            picture = np.rint(np.clip(picture, 0, 1) * 255).astype(np.uint8)
        return picture, flagged  # a blank one is for the quality gate, which can have it painted again

    @property
    def _weights_name(self) -> str:
        return Path(self.config.weights).name if self._fingerprint else self.config.weights

    @property
    def _published(self) -> str:
        return self.model_card.removeprefix("https://huggingface.co/")

    def _refuse_unsupported(self) -> None:
        config = self.config
        if self.option_names is not None and set(config.options) != self.option_names:
            raise UsageError(
                f"{config.name}: options {', '.join(sorted(config.options)) or '(none)'}; expected "
                f"{', '.join(sorted(self.option_names)) or 'none'}"
            )
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
