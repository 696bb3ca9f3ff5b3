"""SigLIP and SigLIP 2 at a fixed resolution, and what NearID releases of them.

Tokens: one a patch, after the post-layernorm; there is no class token. Pooled embedding: the model's own
attention-pooling head (`pooler_output`).
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from nearid_ray.errors import UsageError
from nearid_ray.models.backbones.tower import ARCHITECTURE, Tower, check_square
from nearid_ray.models.files import ModelFiles
from nearid_ray.models.head import AttentionPoolingHead
from nearid_ray.models.pixels import SIGLIP, PixelSettings, read_pixel_settings

if TYPE_CHECKING:
    from transformers import SiglipVisionModel

MODEL_TYPES = ("siglip", "siglip_vision_model")
ACTIVATION = "gelu_pytorch_tanh"


def load(files: ModelFiles, config: Mapping[str, Any]) -> Tower:
    """Of a full checkpoint the vision model alone is loaded.

    Raises:
        UsageError: it has no attention-pooling head, or files are missing or damaged.
    """
    from transformers import SiglipConfig, SiglipVisionConfig, SiglipVisionModel

    # Configs leave out what equals a default.
    kind = SiglipConfig if config["model_type"] == "siglip" else SiglipVisionConfig
    vision = kind.from_dict(dict(config)).to_dict()
    vision = vision.get("vision_config", vision)
    pixels = read_pixels(files, vision)
    model, commit, missing = files.load(SiglipVisionModel)
    if missing:
        raise files.lacking(missing)
    return tower(files.spec, model, pixels, commit)


def read_pixels(files: ModelFiles, vision: Mapping[str, Any]) -> PixelSettings:
    """The preprocessor of a model with this vision config; UsageError where NearID cannot use the model."""
    if not vision.get("vision_use_head", True):
        raise UsageError(
            f"{files.what} {files.spec} has no attention-pooling head to start from; expected a SigLIP or SigLIP 2 "
            "model of fixed resolution with its head"
        )
    if vision.get("hidden_act") != ACTIVATION:
        raise UsageError(
            f"{files.what} {files.spec} uses the activation {vision.get('hidden_act')}; expected {ACTIVATION}"
        )
    image_px = check_square(files.spec, "image_size", vision["image_size"])
    return read_pixel_settings(files, replace(SIGLIP, side_px=image_px), image_px)


def tower(spec: str, model: "SiglipVisionModel", pixels: PixelSettings, commit: str) -> Tower:
    """A loaded vision model, taken apart; its own head stays out of the forward pass."""
    config = model.config
    head = AttentionPoolingHead.from_state_dict(
        model.head.state_dict(), config.num_attention_heads, config.layer_norm_eps
    )
    weights = model.state_dict()
    model.use_head = False
    return Tower(
        model=_Tokens(model),
        weights=weights,
        architecture={name: getattr(config, name) for name in ARCHITECTURE},
        pixels=pixels,
        commit=commit,
        width=config.hidden_size,
        heads=config.num_attention_heads,
        mlp_width=config.intermediate_size,
        layer_norm_eps=config.layer_norm_eps,
        patch_px=check_square(spec, "patch_size", config.patch_size),
        prefix_tokens=0,
        pooling=head,
    )


class _Tokens(nn.Module):
    def __init__(self, model: "SiglipVisionModel") -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels_B3SS: Tensor) -> Tensor:
        return self.model(pixel_values=pixels_B3SS).last_hidden_state
