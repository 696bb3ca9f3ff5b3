"""PowerPaint v2's published folders, read strictly: a tensor that is missing, unknown or of another shape is an error.

    PowerPaint_Brushnet/diffusion_pytorch_model.safetensors   the BrushNet
    PowerPaint_Brushnet/pytorch_model.bin                     its text encoder, with the task tokens
    realisticVisionV60B1_v51VAE/                              the base, in diffusers' layout

The BrushNet's architecture is its base's; nothing else is published of it.
"""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nearid_ray import hub
from nearid_ray.errors import UsageError
from nearid_ray.synthesis.engines import loading

if TYPE_CHECKING:
    import torch

PUBLISHED = "JunhaoZhuang/PowerPaint-v2-1"
BRUSHNET = "PowerPaint_Brushnet"
BASE = "realisticVisionV60B1_v51VAE"
BRUSHNET_FILE = f"{BRUSHNET}/diffusion_pytorch_model.safetensors"
TEXT_FILE = f"{BRUSHNET}/pytorch_model.bin"
INDEX = f"{BASE}/{loading.INDEX}"

TASK_TOKENS = ("P_ctxt", "P_shape", "P_obj")
"""Learned tokens, in the order of their vectors behind the vocabulary of the BrushNet's text encoder."""
VECTORS = 10
"""Vectors of one task token."""
TASKS = {"text-guided": ("P_obj", "P_obj"), "shape-guided": ("P_shape", "P_ctxt")}
"""By task: the token at fitting degree 1, and the one that it is blended with below that."""

_MODELS = ("unet", "vae", "text_encoder")
_PARTS = (*_MODELS, "tokenizer", "scheduler")
HUB_PATTERNS = (BRUSHNET_FILE, TEXT_FILE, INDEX, *(f"{BASE}/{part}/*" for part in _PARTS))
"""What is fetched from the hub; a safety checker lies beside it."""

_NAMED = 5
_EMBEDDING = "embeddings.token_embedding"
_BUFFERS = ("embeddings.position_ids",)


def find(weights: str, revision: str, what: str) -> Path:
    """The folder that holds both published folders: `weights` itself, or what is fetched for that hub id.

    Raises:
        UsageError: a path at which there is no folder. Errors of the hub's client are left to `hub.in_words`.
    """
    if hub.is_folder(weights, what, f"{BRUSHNET}/ and {BASE}/"):
        return Path(weights).expanduser()
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(weights, revision=revision or None, allow_patterns=list(HUB_PATTERNS)))


def check_folder(folder: Path, what: str) -> None:
    """Refuse a folder without the published layout.

    Raises:
        UsageError: which files are missing, and how to get them.
    """
    needed = [BRUSHNET_FILE, TEXT_FILE, INDEX, *(f"{BASE}/{part}/config.json" for part in _MODELS)]
    lacking = [name for name in needed if not (folder / name).is_file()]
    lacking += [f"{BASE}/{part}/" for part in _PARTS if not (folder / BASE / part).is_dir()]
    lacking += [f"{BASE}/{part}/*.safetensors or *.bin" for part in _MODELS if not _has_weights(folder / BASE / part)]
    if lacking:
        inside = (folder / Path(BRUSHNET_FILE).name, folder / loading.INDEX)
        if any(file.is_file() for file in inside):
            help_ = f"give the folder that holds both {BRUSHNET}/ and {BASE}/"
        else:
            help_ = f"get them with `hf download {PUBLISHED} --local-dir FOLDER` and give that folder"
        raise UsageError(f"{what} {folder} is not laid out as PowerPaint v2: it has no {_some(lacking)}; {help_}")


def load(folder: Path, dtype: "torch.dtype", what: str) -> Any:
    """The PowerPaintPipeline on the CPU, every tensor of its files accounted for.

    Args:
        folder: with the published layout.
        dtype: precision of all parts.
        what: names the setting in messages.

    Raises:
        UsageError: a file is missing or damaged, or a tensor is missing, unknown or of another shape.
    """
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel, UniPCMultistepScheduler
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    from nearid_ray.synthesis.engines.powerpaint_pipeline import PowerPaintPipeline

    check_folder(folder, what)
    base = folder / BASE
    # From configurations alone, so that files that do not fit are refused before gigabytes of the base are read.
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(base / "unet"))
        vae = AutoencoderKL.from_config(AutoencoderKL.load_config(base / "vae"))
    text = CLIPTextConfig.from_pretrained(base / "text_encoder")
    _check_base(unet.config, vae.config, text, f"{what} {base}")
    brushnet = load_brushnet(folder / BRUSHNET_FILE, unet.config, dtype, what)
    text_encoder_brushnet = load_task_encoder(folder / TEXT_FILE, text, dtype, what)
    classes = {"unet": UNet2DConditionModel, "vae": AutoencoderKL, "text_encoder": CLIPTextModel}
    return PowerPaintPipeline(
        **{name: loading.load_part(kind, base / name, dtype, what, source=PUBLISHED) for name, kind in classes.items()},
        tokenizer=CLIPTokenizer.from_pretrained(base / "tokenizer", local_files_only=True),
        scheduler=UniPCMultistepScheduler.from_pretrained(base / "scheduler", local_files_only=True),
        brushnet=brushnet,
        text_encoder_brushnet=text_encoder_brushnet,
    )


def load_brushnet(file: Path, base_config: Mapping[str, Any], dtype: "torch.dtype", what: str) -> Any:
    """A BrushNet for the UNet with that config, from the published file. Raises UsageError as `load` does."""
    import torch
    from safetensors import safe_open

    from nearid_ray.synthesis.engines.brushnet import BrushNet

    with torch.device("meta"):
        network = BrushNet(dict(base_config))
    tensors = network.state_dict()
    names = {published_name(own): own for own in tensors}
    expected = {name: tuple(tensors[own].shape) for name, own in names.items()}
    place = f"{what} {file}"
    try:
        with safe_open(file, framework="pt") as stored:
            found = {name: tuple(stored.get_slice(name).get_shape()) for name in stored.keys()}  # noqa: SIM118
            _check_shapes(expected, found, place)
            values = {own: stored.get_tensor(name).to(dtype) for name, own in names.items()}
    except UsageError:
        raise
    except Exception as error:  # of safetensors and of the file system
        raise UsageError(f"{place} cannot be read as safetensors ({error}); get it anew from {PUBLISHED}") from error
    network.load_state_dict(values, strict=True, assign=True)
    return network.eval()


def load_task_encoder(file: Path, base_config: Any, dtype: "torch.dtype", what: str) -> Any:
    """The BrushNet's text encoder from the published file: the task tokens' vectors stand behind its vocabulary.

    Its layers are those of `base_config`, the base's text encoder. The file's names are of an older transformers: one
    level, `text_model.`, is gone since, and a load that is not strict takes none of its tensors without a word.

    Raises:
        UsageError: as `load` does.
    """
    import torch
    from transformers import CLIPTextModel

    place = f"{what} {file}"
    try:
        said = torch.load(file, map_location="cpu", weights_only=True)
        found = {name.removeprefix("text_model."): value for name, value in said.items()}
        shapes = {name: tuple(value.shape) for name, value in found.items() if name not in _BUFFERS}
    except Exception as error:  # of pickle, zip, torch, or whatever else the file holds
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UsageError(
            f"{place} cannot be read as tensors by name ({first_line}); get it anew from {PUBLISHED}"
        ) from error
    config = copy.deepcopy(base_config)
    words = config.vocab_size
    config.vocab_size = words + VECTORS * len(TASK_TOKENS)
    model: Any = CLIPTextModel(config)
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    rows = {f"{_EMBEDDING}.wrapped.weight": words}
    rows |= {f"{_EMBEDDING}.trainable_embeddings.{token}": VECTORS for token in TASK_TOKENS}
    width = expected.pop(f"{_EMBEDDING}.weight")[1]
    _check_shapes(expected | {name: (count, width) for name, count in rows.items()}, shapes, place)
    embedding = torch.cat([found[name].to(dtype) for name in rows])
    values = {name: found[name] for name in expected} | {f"{_EMBEDDING}.weight": embedding}
    model = model.to(dtype)
    model.load_state_dict(values, strict=True)
    return model.eval()


def published_name(own: str) -> str:
    """The name in the published file of a tensor of our BrushNet."""
    name = own.removeprefix("unet.")
    return name.replace("conv_in.", "conv_in_condition.", 1) if name.startswith("conv_in.") else name


def _check_base(unet: Any, vae: Any, text: Any, place: str) -> None:
    if unet.in_channels != vae.latent_channels:
        raise UsageError(
            f"{place}: its UNet takes {unet.in_channels} channels; expected a text-to-image one that takes the VAE's "
            f"{vae.latent_channels}"
        )
    if unet.cross_attention_dim != text.hidden_size:
        raise UsageError(
            f"{place}: its UNet reads text of width {unet.cross_attention_dim}, its text encoder gives "
            f"{text.hidden_size}; expected a Stable Diffusion 1.5"
        )


def _check_shapes(expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]], place: str) -> None:
    lacking = sorted(expected.keys() - found.keys())
    unknown = sorted(found.keys() - expected.keys())
    others = [
        f"{name} {found[name]} instead of {expected[name]}"
        for name in sorted(expected.keys() & found.keys())
        if found[name] != expected[name]
    ]
    wrong = []
    if lacking:
        wrong.append(f"{len(lacking)} of {len(expected)} tensors are missing: {_some(lacking)}")
    if unknown:
        wrong.append(f"{len(unknown)} of {len(found)} tensors are not known: {_some(unknown)}")
    if others:
        wrong.append(f"{len(others)} tensors have another shape: {_some(others)}")
    if wrong:
        raise UsageError(
            f"{place} does not fit PowerPaint v2 on this base; {'; '.join(wrong)}. Expected the file of {PUBLISHED}, "
            "unchanged"
        )


def _has_weights(part: Path) -> bool:
    return any(part.glob("*.safetensors")) or any(part.glob("*.bin"))


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
