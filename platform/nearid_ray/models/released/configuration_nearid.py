"""Configuration of NearID image embeddings."""

from typing import Any

from transformers import PretrainedConfig, SiglipVisionConfig


class NearIDConfig(PretrainedConfig):
    """A SigLIP vision model of fixed resolution whose attention-pooling head gives the embedding.

    Args:
        vision_config: values of a `SiglipVisionConfig`, or one.
        embed_dim: width of the embedding; that of the vision model.
        normalize_embeddings: whether `image_embeds` have length one.
    """

    model_type = "nearid"
    sub_configs = {"vision_config": SiglipVisionConfig}

    def __init__(
        self,
        vision_config: "dict[str, Any] | SiglipVisionConfig | None" = None,
        embed_dim: int = 1152,
        normalize_embeddings: bool = True,
        **kwargs: Any,
    ) -> None:
        if vision_config is None:
            vision_config = {"hidden_size": embed_dim}
        if isinstance(vision_config, dict):
            vision_config = SiglipVisionConfig(**vision_config)
        if vision_config.hidden_size != embed_dim:
            raise ValueError(f"embed_dim is {embed_dim}, the vision model's hidden_size {vision_config.hidden_size}")
        self.vision_config = vision_config
        self.embed_dim = embed_dim
        self.normalize_embeddings = normalize_embeddings
        super().__init__(**kwargs)
