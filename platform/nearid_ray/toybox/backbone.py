"""`toybox-siglip2`: a SigLIP2-architecture vision model of about a million parameters for toybox images."""

import copy
import json
from importlib.resources import as_file, files
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import SiglipVisionConfig, SiglipVisionModel

from nearid_ray.toybox.render import SIZE_PX

#: Name under which the generic backbone loader knows the shipped weights.
TOYBOX_BACKBONE = "toybox-siglip2"

#: Side of a patch, hence (SIZE_PX / PATCH_PX)**2 tokens.
PATCH_PX = 8

#: Pixel statistics of SigLIP's processor: images are scaled to [-1, 1].
PIXEL_MEAN = 0.5
PIXEL_STD = 0.5


def toybox_config() -> SiglipVisionConfig:
    """The architecture: 64 px, patch 8 (64 tokens), width 128, 4 layers, 4 heads, attention-pooling head."""
    return SiglipVisionConfig(
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=SIZE_PX,
        patch_size=PATCH_PX,
    )


def random_backbone(seed: int) -> SiglipVisionModel:
    """The model with freshly drawn parameters; the global torch generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = SiglipVisionModel._from_config(toybox_config(), attn_implementation="eager")
        for name, parameter in model.named_parameters():
            _initialise(name, parameter)
    return model


def weights_folder() -> Path:
    """Folder of the shipped weights in `transformers` layout, usable as a backbone path."""
    with as_file(files("nearid_ray.toybox") / "weights") as folder:
        return Path(folder)


def load_toybox_backbone() -> SiglipVisionModel:
    """The shipped model in float32, in evaluation mode.

    Raises FileNotFoundError when the package was installed without its weights.
    """
    folder = weights_folder()
    if not (folder / "model.safetensors").is_file():
        raise FileNotFoundError(
            f"the weights of {TOYBOX_BACKBONE} are missing from {folder}; reinstall the package or make them "
            "with `python -m nearid_ray.toybox.pretrain --out DIR`"
        )
    model = SiglipVisionModel.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    return model.eval()


def save_backbone(backbone: SiglipVisionModel, folder: Path) -> None:
    """Write a `transformers` folder: config.json, model.safetensors (float16), preprocessor_config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    config = copy.deepcopy(backbone.config)
    config.architectures = [type(backbone).__name__]
    config.dtype = torch.float16
    config.save_pretrained(folder)
    half = {name: value.detach().half().contiguous() for name, value in backbone.state_dict().items()}
    save_file(half, folder / "model.safetensors", metadata={"format": "pt"})
    processor = {
        "image_processor_type": "SiglipImageProcessor",
        "do_resize": True,
        "size": {"height": SIZE_PX, "width": SIZE_PX},
        "resample": 2,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [PIXEL_MEAN] * 3,
        "image_std": [PIXEL_STD] * 3,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor, indent=2) + "\n")


def _initialise(name: str, parameter: torch.Tensor) -> None:
    if "norm" in name:
        return
    if name.endswith("bias"):
        nn.init.zeros_(parameter)
    elif "embed" in name or name.endswith("probe"):
        nn.init.trunc_normal_(parameter, std=0.02)
    else:
        nn.init.xavier_uniform_(parameter)
