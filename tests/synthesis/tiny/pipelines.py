"""One tiny pipeline with random weights of each class that an engine loads, saved as the published ones are laid out.

`save("sdxl", folder)` takes half a second and writes about a megabyte; a kind has the same weights every time.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.synthesis.tiny import parts
from tests.synthesis.tiny.tokenizers import clip_tokenizer, qwen_tokenizer, t5_tokenizer

_SD_NOISE: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
}


def sdxl() -> Any:
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLInpaintPipeline
    from transformers import CLIPTextModelWithProjection

    first, second = clip_tokenizer(), clip_tokenizer(pad_token="!")
    return StableDiffusionXLInpaintPipeline(
        vae=parts.kl_vae(4, 0.13025),
        text_encoder=parts.clip_text_encoder(first),
        text_encoder_2=parts.clip_text_encoder(second, CLIPTextModelWithProjection),
        tokenizer=first,
        tokenizer_2=second,
        unet=parts.sdxl_unet(),
        scheduler=EulerDiscreteScheduler(timestep_spacing="leading", **_SD_NOISE),
        force_zeros_for_empty_prompt=True,
    )


def sd15() -> Any:
    """The base of PowerPaint: an ordinary text-to-image model."""
    from diffusers import PNDMScheduler, StableDiffusionPipeline

    tokenizer = clip_tokenizer()
    return StableDiffusionPipeline(
        vae=parts.kl_vae(4, 0.18215),
        text_encoder=parts.clip_text_encoder(tokenizer),
        tokenizer=tokenizer,
        unet=parts.sd15_unet(),
        scheduler=PNDMScheduler(skip_prk_steps=True, **_SD_NOISE),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def flux_fill() -> Any:
    from diffusers import FluxFillPipeline

    return _flux(
        FluxFillPipeline, 64 + 64 + 256
    )  # noise, masked latents, the mask's 8 x 8 pixels of each of 2 x 2 cells


def flux_canny() -> Any:
    from diffusers import FluxControlInpaintPipeline

    return _flux(FluxControlInpaintPipeline, 64 + 64)  # noise, latents of the edges


def qwen_image() -> Any:
    from diffusers import QwenImageControlNetInpaintPipeline

    return QwenImageControlNetInpaintPipeline(controlnet=parts.qwen_controlnet(), **_qwen())


def qwen_edit() -> Any:
    from diffusers import QwenImageEditPipeline

    return QwenImageEditPipeline(processor=None, **_qwen())


def qwen_edit_inpaint() -> Any:
    from diffusers import QwenImageEditInpaintPipeline

    return QwenImageEditInpaintPipeline(processor=None, **_qwen())


KINDS: dict[str, Callable[[], Any]] = {
    "sdxl": sdxl,
    "sd15": sd15,
    "flux-fill": flux_fill,
    "flux-canny": flux_canny,
    "qwen-image": qwen_image,
    "qwen-edit": qwen_edit,
    "qwen-edit-inpaint": qwen_edit_inpaint,
}


def build(kind: str, seed: int = 0) -> Any:
    """The pipeline of a kind (a key of KINDS) in memory; Qwen's editing ones without their processor."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return KINDS[kind]()


def save(kind: str, folder: Path, seed: int = 0) -> Path:
    """The pipeline of a kind as a folder that from_pretrained loads; returns the folder."""
    from nearid_ray import hub
    from nearid_ray.synthesis.engines import runtime

    with hub.quiet_transformers(), runtime.quiet_diffusers():
        pipeline = build(kind, seed)
        pipeline.save_pretrained(folder)
    if kind.startswith("qwen-edit"):
        _save_qwen_processor(folder, pipeline.tokenizer)
    return folder


def save_lora(kind: str, folder: Path, file_name: str = "lora.safetensors", seed: int = 1) -> Path:
    """A LoRA of rank 2 with random weights for the attention of the kind's transformer; returns the file."""
    from peft import LoraConfig, get_peft_model_state_dict

    pipeline = build(kind)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipeline.transformer.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "to_k", "to_v"]))
        for name, parameter in pipeline.transformer.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, std=0.5)
    type(pipeline).save_lora_weights(
        folder, transformer_lora_layers=get_peft_model_state_dict(pipeline.transformer), weight_name=file_name
    )
    return folder / file_name


def _flux(pipeline_class: Any, in_channels: int) -> Any:
    clip, t5 = clip_tokenizer(), t5_tokenizer()
    return pipeline_class(
        scheduler=parts.flux_scheduler(),
        vae=parts.kl_vae(16, 0.3611, 0.1159),
        text_encoder=parts.clip_text_encoder(clip),
        tokenizer=clip,
        text_encoder_2=parts.t5_encoder(t5),
        tokenizer_2=t5,
        transformer=parts.flux_transformer(in_channels),
    )


def _qwen() -> dict[str, Any]:
    tokenizer = qwen_tokenizer()
    return {
        "scheduler": parts.qwen_scheduler(),
        "vae": parts.qwen_vae(),
        "text_encoder": parts.qwen_text_encoder(tokenizer),
        "tokenizer": tokenizer,
        "transformer": parts.qwen_transformer(),
    }


def _save_qwen_processor(folder: Path, tokenizer: Any) -> None:
    """`processor/` as it is published, written without its class: that one needs torchvision for its video half."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    images = Qwen2VLImageProcessorPil(
        size={"shortest_edge": 56 * 56, "longest_edge": 64 * 28 * 28},
        patch_size=14,
        temporal_patch_size=2,
        merge_size=2,
    )
    images.save_pretrained(folder / "processor")
    tokenizer.save_pretrained(folder / "processor")
    index = folder / "model_index.json"
    index.write_text(
        json.dumps(json.loads(index.read_text()) | {"processor": ["transformers", "Qwen2VLProcessor"]}, indent=2)
    )
