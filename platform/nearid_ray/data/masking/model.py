"""Mask models of the Hugging Face hub: found on the driver, loaded on a worker, run in batches."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from nearid_ray import hub
from nearid_ray.data.masking.settings import MaskSettings
from nearid_ray.errors import UsageError
from nearid_ray.identifiers import stable_hash

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
_DECIDING = (".json", ".py", ".safetensors", ".bin")
"""Endings of the files of a folder that decide what its model computes."""
_SAMPLED_BLOCKS = 64
_BLOCK_BYTES = 64 << 10


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
    folder = Path(spec).expanduser()
    if not folder.is_dir():
        if folder.exists():
            raise UsageError(f"mask_model {spec} is a file; expected a folder that save_pretrained wrote, or a hub id")
        if spec.startswith(("/", ".", "~")) or spec.count("/") > 1 or not spec.strip():
            raise UsageError(f"mask_model {spec!r}: there is no such folder; expected one, or a hub id (owner/name)")
        return _on_hub(spec, settings.mask_revision)
    if settings.mask_revision:
        raise UsageError(
            f"mask_revision is {settings.mask_revision!r}, but mask_model {spec} is a folder; leave it out"
        )
    if not (folder / "config.json").is_file():
        raise UsageError(f"mask_model {spec}: config.json is missing; expected a folder that save_pretrained wrote")
    if not any((folder / name).is_file() for name in _WEIGHTS):
        raise UsageError(f"mask_model {spec}: the weights are missing; expected {_WEIGHTS[0]} beside config.json")
    place = folder.resolve()
    config = _read(spec, place / "config.json")
    files = sorted(file for file in place.iterdir() if file.suffix in _DECIDING)
    said = stable_hash(*(part for file in files for part in (file.name, _sample(file))))
    return ModelPlace(spec, str(place), True, said, config, _preprocessor(spec, str(place), None))


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
        raise UsageError(f"mask_model {place.spec} cannot be loaded: {_in_words(error, place.spec)}") from error
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
            if type(error).__name__ != "OutOfMemoryError" or len(part) == 1:
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
            f"{_in_words(error, spec)}"
        ) from error
    commit = extract_commit_hash(file, None) or revision
    return ModelPlace(spec, spec, False, commit, _read(spec, Path(file)), _preprocessor(spec, spec, commit))


def _sample(file: Path) -> str:
    """A name of a file's size and of blocks all over it: weights that were trained on differ everywhere, and reading
    gigabytes to name them would take longer than many runs."""
    digest, size = hashlib.sha256(), file.stat().st_size
    digest.update(str(size).encode())
    with file.open("rb") as stream:
        for block in range(_SAMPLED_BLOCKS):
            stream.seek(size * block // _SAMPLED_BLOCKS)
            digest.update(stream.read(_BLOCK_BYTES))
    return digest.hexdigest()


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
        said = _read(spec, Path(str(file))) if file else {}
        said = said.get(inside, {}) if inside else said
        if said:
            return said
    return {}


def _read(spec: str, path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"mask_model {spec}: {path.name} cannot be read ({error})") from error
    if not isinstance(data, dict):
        raise UsageError(f"mask_model {spec}: {path.name} holds no settings; expected a JSON object")
    return data


def _in_words(error: BaseException, spec: str) -> str:
    """Why a model could not be had, and what to do."""
    from huggingface_hub import errors

    chain = list(hub.causes(error))
    kinds = (errors.GatedRepoError, errors.RepositoryNotFoundError, errors.RevisionNotFoundError,
             errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, ImportError)  # fmt: skip
    kind = next((known for known in kinds if any(isinstance(one, known) for one in chain)), None)
    first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if kind is errors.GatedRepoError:
        return "its owners ask for consent. Accept their terms on the model's page and log in (`hf auth login`)."
    if kind is errors.RepositoryNotFoundError:
        return "the hub has no such model, or it is private. Check the name, or log in (`hf auth login`)."
    if kind is errors.RevisionNotFoundError:
        return "the model has no such revision. Give mask_revision a branch, tag or commit of it."
    if kind in (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled):
        return (
            "it is not in the local cache, and the hub cannot be reached (or HF_HUB_OFFLINE is set). Where there is a "
            f"connection run `hf download {spec} --local-dir FOLDER` and give mask_model that folder."
        )
    if kind is ImportError:
        return f"its code needs a package that is not installed here: {first_line}"
    if "meta tensor" in str(error):
        return f"its code does not work with this version of transformers; give a newer mask_revision. ({first_line})"
    return first_line
