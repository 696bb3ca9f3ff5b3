"""Mask models of the Hugging Face hub: found on the driver, loaded on a worker, run in batches."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from nearid_ray import hub
from nearid_ray.data.masking.settings import MaskSettings
from nearid_ray.errors import UsageError
from nearid_ray.gpu_batches import is_out_of_memory

if TYPE_CHECKING:
    from nearid_ray.models.backbone import PixelSettings

T = TypeVar("T")

_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_BILINEAR = 2


@dataclass(frozen=True)
class ModelPlace:
    """A model that was found: `spec` as it was given, the absolute folder or hub id `place`, the hub's commit (for a
    folder a name of its files), and what config.json and the preprocessor's file say."""

    spec: str
    place: str
    is_folder: bool
    revision: str
    config: Mapping[str, Any]
    preprocessor: Mapping[str, Any]

    @property
    def model_type(self) -> str:
        return str(self.config.get("model_type", ""))

    def describe(self) -> dict[str, Any]:
        """Which model it is, wherever its folder lies."""
        return {"mask_model": Path(self.place).name if self.is_folder else self.spec, "mask_revision": self.revision}

    def pixels(self, image_px: int) -> "PixelSettings":
        """How pictures become the model's input: what its preprocessor's file says, else squares of `image_px`,
        bilinear, ImageNet's mean and deviation. UsageError where the file asks for anything but that kind."""
        from nearid_ray.models.backbone import PixelSettings

        said = {name: value for name, value in self.preprocessor.items() if value is not None}
        size = said.get("size", image_px)
        height, width = (size, size) if isinstance(size, int) else (size.get("height"), size.get("width"))
        off = [name for name in ("do_resize", "do_rescale", "do_normalize") if not said.get(name, True)]
        if off or not height or height != width or said.get("do_center_crop"):
            does = f"skips {', '.join(off)}" if off else f"resizes to {size}"
            raise UsageError(
                f"mask_model {self.spec}: its preprocessor {does}{' and crops' if said.get('do_center_crop') else ''}; "
                "expected one that resizes to a square, rescales and normalises"
            )
        return PixelSettings(
            image_px=int(height),
            resample=int(said.get("resample", _BILINEAR)),
            scale=float(said.get("rescale_factor", 1 / 255)),
            mean=tuple(float(value) for value in said.get("image_mean", _IMAGENET_MEAN)),
            std=tuple(float(value) for value in said.get("image_std", _IMAGENET_STD)),
        )


def find_model(settings: MaskSettings) -> ModelPlace:
    """The model that the settings name; of one on the hub only its small files are fetched.

    Raises UsageError where there is no such folder or model, the hub cannot be reached, or a folder has no weights.
    """
    spec = settings.model
    if not hub.is_folder(spec, "mask_model", "what save_pretrained writes"):
        return _on_hub(spec, settings.mask_revision)
    folder = Path(spec).expanduser()
    if settings.mask_revision:
        raise UsageError(
            f"mask_revision is {settings.mask_revision!r}, but mask_model {spec} is a folder; leave it out"
        )
    if not (folder / "config.json").is_file():
        raise UsageError(f"mask_model {spec}: config.json is missing; expected a folder that save_pretrained wrote")
    if not any((folder / name).is_file() for name in _WEIGHTS):
        raise UsageError(f"mask_model {spec}: the weights are missing; expected {_WEIGHTS[0]} beside config.json")
    place = folder.resolve()
    config = _settings(spec, place / "config.json")
    return ModelPlace(spec, str(place), True, hub.fingerprint(place), config, _preprocessor(spec, str(place), None))


def load_weights(model_class: Any, place: ModelPlace, **arguments: Any) -> Any:
    """The model in float32 on this worker's device, ready to run. Raises UsageError where the weights cannot be had, do
    not fit the model, or the model's own code fails."""
    import torch

    try:
        with hub.quiet_transformers():
            model, report = model_class.from_pretrained(
                place.place,
                revision=None if place.is_folder else place.revision or None,
                local_files_only=place.is_folder,
                dtype=torch.float32,
                output_loading_info=True,
                **arguments,
            )
    except Exception as error:  # code that comes with a model can raise anything
        raise UsageError(f"mask_model {place.spec} cannot be loaded: {hub.in_words(error, place.spec)}") from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise UsageError(
            f"mask_model {place.spec}: its weights lack {len(missing)} tensor(s) of the model, e.g. {missing[0]}"
        )
    return model.eval().requires_grad_(False).to(device())


def device() -> str:
    """cuda where this worker was given a GPU, else cpu."""
    import ray
    import torch

    if not torch.cuda.is_available():
        return "cpu"
    return "cuda" if not ray.is_initialized() or ray.get_gpu_ids() else "cpu"


@contextmanager
def precision(dtype: str) -> Iterator[None]:
    """Run a model without gradients, in 16 bits where `dtype` says so."""
    import torch

    with torch.inference_mode(), torch.autocast(device(), getattr(torch, dtype), enabled=dtype != "float32"):
        yield


def in_batches(items: Sequence[T], batch: int, run: Callable[[Sequence[T]], list[Any]]) -> list[Any]:
    """`run` over the items, `batch` at a time; a batch too large for the GPU's memory is halved, for the rest too."""
    results: list[Any] = []
    while len(results) < len(items):
        part = items[len(results) : len(results) + batch]
        try:
            results += run(part)
        except RuntimeError as error:
            if not is_out_of_memory(error) or len(part) == 1:
                raise
            batch = max(1, len(part) // 2)
    return results


def _on_hub(spec: str, revision: str) -> ModelPlace:
    from transformers.utils import cached_file
    from transformers.utils.hub import extract_commit_hash

    try:
        file = str(cached_file(spec, "config.json", revision=revision or None))
    except (OSError, ValueError) as error:
        where = f" (revision {revision})" if revision else ""
        raise UsageError(
            f"mask_model {spec} is no folder here, and its config.json could not be fetched from the hub{where}: "
            f"{hub.in_words(error, spec)}"
        ) from error
    commit = extract_commit_hash(file, None) or revision
    return ModelPlace(spec, spec, False, commit, _settings(spec, Path(file)), _preprocessor(spec, spec, commit))


def _preprocessor(spec: str, place: str, revision: str | None) -> dict[str, Any]:
    """What the preprocessor's file says, from either of its two names; empty where there is none."""
    from transformers.utils import cached_file

    for name, inside in (("processor_config.json", "image_processor"), ("preprocessor_config.json", "")):
        file = cached_file(
            place,
            name,
            revision=revision,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
        said = _settings(spec, Path(str(file))) if file else {}
        said = said.get(inside, {}) if inside else said
        if said:
            return said
    return {}


def _settings(spec: str, file: Path) -> dict[str, Any]:
    return hub.read_settings(file, f"mask_model {spec}: {file.name}")
