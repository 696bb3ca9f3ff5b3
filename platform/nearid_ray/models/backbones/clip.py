"""CLIP, full checkpoints and vision models alone.

Tokens: the class token, then one a patch, all after the post-layernorm (transformers applies it to the class token
alone and leaves its `last_hidden_state` without). Pooled embedding: `image_embeds`, the class token projected; the
class token itself (`pooler_output`) of a checkpoint without projection.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from nearid_ray.models.backbones.tower import ARCHITECTURE, ClsPooling, Tower, check_square
from nearid_ray.models.files import ModelFiles
from nearid_ray.models.pixels import CLIP, read_pixel_settings

if TYPE_CHECKING:
    from transformers import CLIPVisionModelWithProjection

MODEL_TYPES = ("clip", "clip_vision_model")
_PROJECTION = "visual_projection.weight"


def load(files: ModelFiles, config: Mapping[str, Any]) -> Tower:
    """Of a full checkpoint the vision model and its projection alone are loaded.

    Raises:
        UsageError: files are missing or damaged.
    """
    from transformers import CLIPConfig, CLIPVisionConfig, CLIPVisionModelWithProjection

    if config["model_type"] == "clip":
        full = CLIPConfig.from_dict(dict(config))
        vision: Any = full.vision_config
        vision.projection_dim = full.projection_dim  # the vision part's own may be a default
    else:
        vision = CLIPVisionConfig.from_dict(dict(config))
    image_px = check_square(files.spec, "image_size", vision.image_size)
    pixels = read_pixel_settings(files, CLIP, image_px)
    model, commit, missing = files.load(CLIPVisionModelWithProjection, vision)
    projected = _PROJECTION not in missing
    if missing not in ([], [_PROJECTION]):
        raise files.lacking([name for name in missing if name != _PROJECTION])
    return Tower(
        model=_Tokens(model),
        weights={name: value for name, value in model.state_dict().items() if projected or name != _PROJECTION},
        architecture={"model_type": "clip", **{name: getattr(vision, name) for name in ARCHITECTURE}},
        pixels=pixels,
        commit=commit,
        width=vision.hidden_size,
        heads=vision.num_attention_heads,
        mlp_width=vision.intermediate_size,
        layer_norm_eps=vision.layer_norm_eps,
        patch_px=check_square(files.spec, "patch_size", vision.patch_size),
        prefix_tokens=1,
        pooling=ClsPooling(model.visual_projection.weight if projected else None),
    )


class _Tokens(nn.Module):
    def __init__(self, model: "CLIPVisionModelWithProjection") -> None:
        super().__init__()
        self.model = model.vision_model

    def forward(self, pixels_B3SS: Tensor) -> Tensor:
        return self.model.post_layernorm(self.model(pixel_values=pixels_B3SS).last_hidden_state)
