"""NearID image embeddings for transformers 4.56 and later, 5 included.

The modules are transformers' own SigLIP parts under names of their own, so that weights are called
`backbone.vision_model.*` in every version.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.models.siglip.modeling_siglip import (
    SiglipEncoder,
    SiglipMultiheadAttentionPoolingHead,
    SiglipVisionEmbeddings,
)
from transformers.utils import ModelOutput

from .configuration_nearid import NearIDConfig


@dataclass
class NearIDOutput(ModelOutput):
    """What the model says of a batch of images.

    Attributes:
        image_embeds: (images, embed_dim) embeddings, of length one where the configuration says so.
        pooler_output: (images, embed_dim) the same before normalisation.
        last_hidden_state: (images, patches, embed_dim) tokens that the head pools.
    """

    image_embeds: "torch.FloatTensor | None" = None
    pooler_output: "torch.FloatTensor | None" = None
    last_hidden_state: "torch.FloatTensor | None" = None


class NearIDModel(PreTrainedModel):
    """Embeds images so that the same object is nearer than a similar one, whatever the background.

    The similarity of two images is the cosine of their embeddings: `embeds_a @ embeds_b.T`.
    """

    config_class = NearIDConfig
    base_model_prefix = "nearid"
    main_input_name = "pixel_values"
    _no_split_modules = ["SiglipVisionEmbeddings", "SiglipEncoderLayer", "SiglipMultiheadAttentionPoolingHead"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True

    def __init__(self, config: NearIDConfig) -> None:
        super().__init__(config)
        # transformers hands it on to parts that are models of their own; these are modules.
        config.vision_config._attn_implementation = config._attn_implementation
        self.backbone = _Backbone(config.vision_config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.backbone.vision_model.embeddings.patch_embedding

    def forward(
        self, pixel_values: torch.Tensor, return_dict: "bool | None" = None, **kwargs: Any
    ) -> "NearIDOutput | tuple[torch.Tensor, ...]":
        """Embeddings of images.

        Args:
            pixel_values: (images, channels, side, side) as the image processor gives them, in any floating type.
            return_dict: give a `NearIDOutput` (default) or, when False, a tuple of its values.
        """
        tokens = self.backbone.vision_model(pixel_values)
        pooled = self.backbone.vision_model.head(tokens)
        embeds = pooled
        if self.config.normalize_embeddings:
            # In half precision the squares of a long vector could overflow.
            embeds = functional.normalize(pooled.float(), dim=-1).to(pooled.dtype)
        output = NearIDOutput(image_embeds=embeds, pooler_output=pooled, last_hidden_state=tokens)
        return output.to_tuple() if return_dict is False else output

    def get_image_features(self, pixel_values: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """`image_embeds` alone."""
        return self(pixel_values).image_embeds


class _Backbone(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.vision_model = _VisionModel(config)


class _VisionModel(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.image_size = config.image_size
        self.embeddings = SiglipVisionEmbeddings(config)
        self.encoder = SiglipEncoder(config)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.head = SiglipMultiheadAttentionPoolingHead(config)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        side = self.image_size
        if pixel_values.ndim != 4 or tuple(pixel_values.shape[2:]) != (side, side):
            raise ValueError(
                f"expected pixel_values of shape (images, channels, {side}, {side}), got {tuple(pixel_values.shape)}; "
                "make them with the checkpoint's AutoImageProcessor"
            )
        convolution = self.embeddings.patch_embedding
        patches = convolution(pixel_values.to(convolution.weight.dtype)).flatten(2).transpose(1, 2)
        embedded = patches + self.embeddings.position_embedding.weight
        return self.post_layernorm(self.encoder(inputs_embeds=embedded).last_hidden_state)
