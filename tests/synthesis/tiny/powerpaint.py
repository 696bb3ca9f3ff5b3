"""A tiny PowerPaint v2 with random weights, in exactly the two folders that are published."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import CLIPTextModel

from nearid_ray.synthesis.engines.brushnet import BrushNet
from tests.synthesis.tiny import parts, pipelines

BRUSHNET, BASE = "PowerPaint_Brushnet", "realisticVisionV60B1_v51VAE"
BRUSHNET_FILE = f"{BRUSHNET}/diffusion_pytorch_model.safetensors"
TEXT_FILE = f"{BRUSHNET}/pytorch_model.bin"
TASK_TOKENS = ("P_obj", "P_shape", "P_ctxt")


def brushnet(base_config: Any, seed: int = 7) -> BrushNet:
    """With random output convolutions: those of a fresh one are zero."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return parts.randomised(BrushNet(dict(base_config)))  # type: ignore[return-value]


def save(folder: Path) -> Path:
    """Both folders inside `folder`, which is returned."""
    pipelines.save("sd15", folder / BASE)
    base = pipelines.build("sd15")
    (folder / BRUSHNET).mkdir()
    save_file(brushnet_tensors(base.unet.config), folder / BRUSHNET_FILE)
    torch.save(text_tensors(base.text_encoder.config), folder / TEXT_FILE)
    return folder


def brushnet_tensors(base_config: Any) -> dict[str, torch.Tensor]:
    """As the released code names them: the UNet's own names, and another for its wider first convolution."""
    published = {}
    for name, value in brushnet(base_config).state_dict().items():
        if name.startswith("unet.conv_in."):
            published["conv_in_condition." + name.split(".")[-1]] = value
        else:
            published[name[5:] if name.startswith("unet.") else name] = value
    return published


def text_tensors(base_config: Any, seed: int = 8) -> dict[str, torch.Tensor]:
    """As a transformers before 5 names them, with the layer of embeddings that the released code puts around."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = CLIPTextModel(base_config)
        tensors = {f"text_model.{name}": value for name, value in encoder.state_dict().items()}
        embedding = "text_model.embeddings.token_embedding"
        tensors[f"{embedding}.wrapped.weight"] = tensors.pop(f"{embedding}.weight")
        for token in TASK_TOKENS:
            tensors[f"{embedding}.trainable_embeddings.{token}"] = torch.randn(10, base_config.hidden_size)
    tensors["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    return tensors
