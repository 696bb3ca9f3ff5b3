"""DINOv2 (with and without registers) and DINOv3 vision transformers.

Tokens: the class token, then one a patch, after the last layer norm; register tokens are dropped, as they are scratch
space of the model. Pooled embedding: the class token (`pooler_output`). They read squares of any side that is a
multiple of the patch: that of their preprocessor, or the one asked for.

DINOv3's own preprocessor, which needs torchvision, resizes floating-point pixels; here Pillow resizes bytes, so that
pixels differ by up to half a grey level.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from nearid_ray.errors import UsageError
from nearid_ray.models.backbones.tower import ClsPooling, Tower, check_square
from nearid_ray.models.files import ModelFiles
from nearid_ray.models.pixels import CLIP, DINOV3, PixelSettings, read_pixel_settings

MODEL_TYPES = ("dinov2", "dinov2_with_registers", "dinov3_vit")
ARCHITECTURE = (
    "model_type",
    "hidden_size",
    "intermediate_size",
    "mlp_ratio",
    "num_hidden_layers",
    "num_attention_heads",
    "num_channels",
    "image_size",
    "patch_size",
    "hidden_act",
    "layer_norm_eps",
    "num_register_tokens",
    "use_swiglu_ffn",
    "use_gated_mlp",
    "rope_theta",
)
"""Those that a family's config has not are left out."""


def load(files: ModelFiles, config: Mapping[str, Any], image_px: int | None = None) -> Tower:
    """The model at the side of its preprocessor, or at `image_px`: pictures are then resized to that square whole.

    Raises:
        UsageError: the side is no multiple of the patch, or files are missing or damaged.
    """
    model_class = _model_class(config["model_type"])
    settings = model_class.config_class.from_dict(dict(config))
    usual = DINOV3 if config["model_type"] == "dinov3_vit" else CLIP
    pixels = read_pixel_settings(files, usual, None)
    if image_px is not None:
        pixels = replace(pixels, image_px=image_px, resized_px=None, keeps_aspect=False)
    patch_px = check_square(files.spec, "patch_size", settings.patch_size)
    _check_side(files, pixels, patch_px)
    check_square(files.spec, "image_size", settings.image_size)
    model, commit, missing = files.load(model_class)
    # Only pretraining needs it.
    missing = [name for name in missing if not name.endswith("mask_token")]
    if missing:
        raise files.lacking(missing)
    return Tower(
        model=_Tokens(model, getattr(settings, "num_register_tokens", 0)),
        weights={name: value for name, value in model.state_dict().items() if not name.endswith("mask_token")},
        architecture={name: getattr(settings, name) for name in ARCHITECTURE if hasattr(settings, name)},
        pixels=pixels,
        commit=commit,
        width=settings.hidden_size,
        heads=settings.num_attention_heads,
        mlp_width=getattr(settings, "intermediate_size", None) or int(settings.hidden_size * settings.mlp_ratio),
        layer_norm_eps=settings.layer_norm_eps,
        patch_px=patch_px,
        prefix_tokens=1,
        pooling=ClsPooling(),
    )


def _model_class(model_type: str) -> Any:
    import transformers

    names = {
        "dinov2": "Dinov2Model",
        "dinov2_with_registers": "Dinov2WithRegistersModel",
        "dinov3_vit": "DINOv3ViTModel",
    }
    return getattr(transformers, names[model_type])


def _check_side(files: ModelFiles, pixels: PixelSettings, patch_px: int) -> None:
    side = pixels.image_px
    if side < patch_px or side % patch_px:
        near = max(1, round(side / patch_px)) * patch_px
        raise UsageError(
            f"{files.what} {files.spec}: a side of {side} px is no multiple of its patch of {patch_px} px; "
            f"give image_px, e.g. {near}"
        )


class _Tokens(nn.Module):
    def __init__(self, model: nn.Module, registers: int) -> None:
        super().__init__()
        self.model, self.registers = model, registers

    def forward(self, pixels_B3SS: Tensor) -> Tensor:
        token_BTD = self.model(pixel_values=pixels_B3SS).last_hidden_state
        # The registers lie between the class token and the patches.
        return torch.cat([token_BTD[:, :1], token_BTD[:, 1 + self.registers :]], dim=1) if self.registers else token_BTD
