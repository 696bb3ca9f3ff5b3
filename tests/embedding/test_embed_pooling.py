"""Backbones without an attention-pooling head: their own pooling goes with the tokens, training gets a new head."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection, DINOv3ViTConfig, DINOv3ViTModel
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from nearid_ray.data.pipeline import RunSettings
from nearid_ray.data.store import Dataset
from nearid_ray.embedding.cache import TokenCache
from nearid_ray.embedding.extract import plan_embedding
from nearid_ray.embedding.plan import EmbedSettings
from nearid_ray.evaluation.scorers import load_scorers
from nearid_ray.models.head import AttentionPoolingHead

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}
MODELS: dict[str, Callable[[], Any]] = {
    "clip": lambda: CLIPVisionModelWithProjection(CLIPVisionConfig(**SIZES, projection_dim=12)),
    "dinov3": lambda: DINOv3ViTModel(DINOv3ViTConfig(**SIZES, num_register_tokens=2)),
}


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize(("kind", "image_px", "shape"), [("clip", None, (17, 12)), ("dinov3", 48, (37, 32))])
def test_the_pooling_of_the_tokens_is_that_of_the_pictures(
    tmp_path: Path,
    rows_of: Callable[..., Any],
    write: Callable[..., Dataset],
    kind: str,
    image_px: int | None,
    shape: tuple[int, int],
) -> None:
    torch.manual_seed(0)
    MODELS[kind]().save_pretrained(tmp_path / "model")
    size = {"height": 32, "width": 32}
    SiglipImageProcessorPil(size=size, do_center_crop=False).save_pretrained(tmp_path / "model")
    tuples = write(tmp_path / "tuples", "tuples", rows_of(["test", "test"]))
    settings = EmbedSettings(backbone=str(tmp_path / "model"), dtype="float32", masked=False, image_px=image_px)
    for what in ("tokens", "pooled"):
        output = Dataset(tmp_path / what)
        plan_embedding(what, tuples.location.uri, None, output, settings, RunSettings(workers=1)).run(
            RunSettings(workers=1)
        )
    cache = TokenCache.open(tmp_path / "tokens")
    tokens = torch.from_numpy(cache.gather(np.arange(len(cache)), np.empty((len(cache), shape[0], 32), np.float16)))
    frozen = load_scorers(cache, {}).heads["frozen"]
    pooled = torch.nn.functional.normalize(frozen(tokens.float()), dim=1)
    expected = {row["image_id"]: row["embedding"] for row in Dataset(tmp_path / "pooled").read().to_pylist()}
    assert pooled.shape == (len(cache), shape[1])
    for image_id, embedding in zip(cache.index["image_id"].to_pylist(), pooled, strict=True):
        torch.testing.assert_close(embedding, torch.tensor(expected[image_id]), rtol=0, atol=2e-3)
    head = AttentionPoolingHead.from_state_dict(cache.head_state(), cache.backbone["heads"])
    assert head(tokens.float()).shape == (len(cache), 32)
