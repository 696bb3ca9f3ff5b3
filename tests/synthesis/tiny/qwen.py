"""Qwen-Image's weights as they are published: the base model, a ControlNet and a LoRA, each in a place of its own."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from tests.synthesis.tiny import pipelines


@dataclass(frozen=True)
class Published:
    base: Path
    """Folder of the text-to-image pipeline."""
    controlnet: Path
    """Folder of the ControlNet alone."""
    lora: Path
    """A LoRA in the layout of Lightning's files."""


def publish(tiny: Path, folder: Path) -> Published:
    """The parts of the tiny pipeline of kind qwen-image, taken apart."""
    base = shutil.copytree(tiny, folder / "base")
    controlnet = (base / "controlnet").rename(folder / "controlnet")
    index = base / "model_index.json"
    parts = json.loads(index.read_text())
    del parts["controlnet"]
    index.write_text(json.dumps(parts | {"_class_name": "QwenImagePipeline"}))
    plain = pipelines.save_lora("qwen-image", folder / "lora", "plain.safetensors")
    return Published(base, controlnet, as_lightning(plain, plain.with_name("lightning.safetensors")))


def as_lightning(lora: Path, file: Path, alpha: float = 2.0) -> Path:
    """diffusers' layout of a LoRA turned into the one of Lightning's files: down, up and alpha, without a prefix."""
    tensors = {}
    for name, tensor in load_file(lora).items():
        name = name.removeprefix("transformer.")
        tensors[name.replace("lora_A", "lora_down").replace("lora_B", "lora_up")] = tensor
        tensors[name.split(".lora_")[0] + ".alpha"] = torch.tensor(alpha)
    save_file(tensors, file)
    return file
