"""Loading diffusers pipelines strictly: every file is there, and every tensor of every part is found in its files.

diffusers and transformers fill tensors that the files lack with random numbers and say so in a notice alone; a pipeline
that paints noise for days is the price. Here they are an error.
"""

from collections.abc import Collection, Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nearid_ray import hub
from nearid_ray.errors import UsageError

if TYPE_CHECKING:
    import torch

INDEX = "model_index.json"
INSTALL = "pip install 'nearid-ray[diffusion]'"

_WEIGHTS = (
    "diffusion_pytorch_model.safetensors",
    "model.safetensors",
    "diffusion_pytorch_model.bin",
    "pytorch_model.bin",
)


def need_packages(what: str, *packages: str) -> None:
    """UsageError where a package is not installed, with the command that installs it."""
    lacking = [package for package in packages if find_spec(package) is None]
    if lacking:
        raise UsageError(f"{what} needs {' and '.join(lacking)}; install with: {INSTALL}")


def check_folder(folder: Path, what: str, *, parts: Collection[str] | None = None, source: str = "OWNER/NAME") -> None:
    """Refuse a folder in diffusers' layout that lacks a file.

    Args:
        folder: holds model_index.json and a folder a part.
        what: names the setting in messages, e.g. "sdxl-512: weights".
        parts: the parts that are needed; by default all that model_index.json names.
        source: the hub id that such a folder can be had from.

    Raises:
        UsageError: which file is missing, and how to get it.
    """
    index = _index(folder, what)
    for part, (_, kind) in _parts(index):
        if parts is not None and part not in parts:
            continue
        if not (folder / part).is_dir():
            raise UsageError(f"{what} {folder}: the part {part}/ ({kind}) is missing; {_how_to_get(part, source)}")
        check_part(folder / part, what, source=source)


def check_part(folder: Path, what: str, *, source: str = "OWNER/NAME") -> None:
    """Refuse one part's folder that lacks weights or a shard of them; parts without weights (schedulers, tokenizers)
    have no config.json."""
    if not (folder / "config.json").is_file():
        if not any(folder.glob("*.json")) and not any(folder.glob("*.txt")):
            raise UsageError(f"{what} {folder.parent}: {folder.name}/ is empty; {_how_to_get(folder.name, source)}")
        return
    if any((folder / name).is_file() for name in _WEIGHTS):
        return
    indices = [folder / f"{name}.index.json" for name in _WEIGHTS if (folder / f"{name}.index.json").is_file()]
    if not indices:
        expected = _WEIGHTS[0] if (folder / "config.json").read_text().find("_diffusers_version") >= 0 else _WEIGHTS[1]
        raise UsageError(
            f"{what} {folder.parent}: {folder.name}/{expected} is missing; {_how_to_get(folder.name, source)}"
        )
    shards = set(hub.read_settings(indices[0], f"{what} {indices[0]}").get("weight_map", {}).values())
    lacking = sorted(shard for shard in shards if not (folder / shard).is_file())
    if lacking:
        raise UsageError(
            f"{what} {folder.parent}: {len(lacking)} of {len(shards)} files of {folder.name}/ are missing, e.g. "
            f"{folder.name}/{lacking[0]}; {_how_to_get(folder.name, source)}"
        )


def pipeline_folder(weights: str, revision: str, what: str) -> Path:
    """The folder of a pipeline: `weights` itself, or what is fetched for that hub id (only what its class needs)."""
    if hub.is_folder(weights, what, f"{INDEX} and the pipeline's parts"):
        return Path(weights).expanduser()
    from diffusers import DiffusionPipeline

    return Path(DiffusionPipeline.download(weights, revision=revision or None))


def load_pipeline(
    pipeline_class: Any,
    weights: str,
    revision: str,
    dtype: "torch.dtype",
    what: str,
    *,
    source: str = "OWNER/NAME",
    **given: Any,
) -> Any:
    """A pipeline on the CPU, every part complete.

    Args:
        pipeline_class: a class of diffusers.
        weights: a folder in diffusers' layout, or a hub id.
        revision: branch, tag or commit on the hub; empty for its default branch and for folders.
        dtype: precision of all parts.
        what: names the setting in messages.
        source: the hub id that such a folder can be had from.
        given: parts that are made elsewhere and are not looked for in the folder, and options of the class.

    Raises:
        UsageError: a file or a tensor is missing. Other errors of the libraries are left to `hub.in_words`.
    """
    folder = pipeline_folder(weights, revision, what)
    known = {name for name, _ in _parts(_index(folder, what))} - set(given)
    wanted = known & _accepted(pipeline_class)
    check_folder(folder, what, parts=wanted, source=source)
    parts = {}
    for name, (library, kind) in _parts(_index(folder, what)):
        if name in wanted and library in ("diffusers", "transformers") and (folder / name / "config.json").is_file():
            part_class = getattr(import_module(library), kind)
            parts[name] = load_part(part_class, folder / name, dtype, what, source=source)
    return pipeline_class.from_pretrained(folder, dtype=dtype, local_files_only=True, **(parts | given))


def load_part(model_class: Any, folder: Path, dtype: "torch.dtype", what: str, *, source: str = "OWNER/NAME") -> Any:
    """One model from its folder, in evaluation mode.

    Raises:
        UsageError: its files lack tensors of the model, are damaged, or have other shapes.
    """
    check_part(folder, what, source=source)
    place = f"{what} {folder.parent}: {folder.name}/"
    try:
        model, report = model_class.from_pretrained(
            folder, dtype=dtype, local_files_only=True, output_loading_info=True
        )
    except Exception as error:  # of the libraries, of safetensors, of torch
        raise UsageError(f"{place} cannot be read as {model_class.__name__}: {hub.in_words(error, place)}") from error
    lacking = sorted(report["missing_keys"])
    if lacking:
        raise UsageError(
            f"{place} lacks {len(lacking)} tensor(s) of {model_class.__name__}, e.g. {lacking[0]}; "
            f"{_how_to_get(folder.name, source)}"
        )
    return model.eval()


def fuse_lora(pipeline: Any, file: Path, what: str, *, components: Collection[str] = ("transformer",)) -> None:
    """Add a LoRA to the weights of the pipeline's parts, and keep nothing of it beside them.

    Args:
        pipeline: of diffusers, still on the CPU.
        file: a safetensors file in any of the layouts that diffusers reads.
        what: names the setting in messages.
        components: the parts that it is for.

    Raises:
        UsageError: peft is not installed, the file is missing or damaged, or it has layers that the parts have not.
    """
    need_packages(f"{what} (a LoRA)", "peft")
    if not file.is_file():
        raise UsageError(f"{what} {file}: there is no such file; expected a LoRA as .safetensors")
    name = "added"
    try:
        pipeline.load_lora_weights(str(file.parent), weight_name=file.name, adapter_name=name, local_files_only=True)
    except Exception as error:  # of diffusers, peft, safetensors
        raise UsageError(f"{what} {file} cannot be loaded: {hub.in_words(error, str(file))}") from error
    places = sum(_lora_layers(getattr(pipeline, part), name) for part in components)
    expected = _layers_in(file)
    if places != expected:
        raise UsageError(
            f"{what} {file}: {places} of its {expected} layers have a place in {' and '.join(components)} of "
            f"{type(pipeline).__name__}; expected a LoRA that was made for it"
        )
    pipeline.fuse_lora(components=list(components), adapter_names=[name])
    pipeline.unload_lora_weights()


def _lora_layers(model: Any, adapter: str) -> int:
    return sum(1 for module in model.modules() if adapter in getattr(module, "lora_A", {}))


def _layers_in(file: Path) -> int:
    from safetensors import safe_open

    with safe_open(file, framework="pt") as tensors:
        # diffusers and peft say lora_A, others lora_down, for the first of a layer's two matrices.
        return sum(1 for key in tensors.keys() if ".lora_A" in key or ".lora_down" in key)  # noqa: SIM118


def _accepted(pipeline_class: Any) -> set[str]:
    from inspect import signature

    return set(signature(pipeline_class.__init__).parameters)


def _parts(index: dict[str, Any]) -> Iterator[tuple[str, tuple[str, str]]]:
    """(name, (library, class)) of every part that the index says is there."""
    for name, value in index.items():
        if isinstance(value, list) and len(value) == 2 and all(isinstance(said, str) for said in value):
            yield name, (value[0], value[1])


def _index(folder: Path, what: str) -> dict[str, Any]:
    if not (folder / INDEX).is_file():
        raise UsageError(f"{what} {folder} has no {INDEX}; expected a folder in diffusers' layout")
    return hub.read_settings(folder / INDEX, f"{what} {folder / INDEX}")


def _how_to_get(part: str, source: str) -> str:
    return f"copy it there, or get it with `hf download {source} --include '{part}/*' --local-dir FOLDER`"
