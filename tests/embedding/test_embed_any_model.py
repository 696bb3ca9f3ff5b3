"""A model without tokens goes through the embed job's own code for pooled embeddings, and no further."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import ConvNextConfig, ConvNextModel
from transformers.models.convnext.image_processing_pil_convnext import ConvNextImageProcessorPil

from nearid_ray.data.images import decode_mask, decode_rgb, foreground_only
from nearid_ray.data.pipeline import RunSettings, run_shard
from nearid_ray.data.store import Dataset
from nearid_ray.embedding.extract import plan_embedding
from nearid_ray.embedding.plan import EmbedSettings
from nearid_ray.errors import UsageError
from schemas import EMBEDDINGS, validate

RUN = RunSettings(gpus_per_worker=0)


@pytest.fixture(scope="module")
def convnext(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("convnext")
    torch.manual_seed(0)
    sizes = {"hidden_sizes": [8, 8, 16, 24], "depths": [1, 1, 1, 1], "image_size": 32}
    config = ConvNextConfig(**sizes, layer_scale_init_value=1.0, initializer_range=1.0)
    ConvNextModel(config).save_pretrained(folder)
    ConvNextImageProcessorPil(size={"shortest_edge": 32}, crop_pct=0.875).save_pretrained(folder)
    return folder


def test_pooled_embeddings_are_those_of_transformers_whole_and_foreground(
    tmp_path: Path, convnext: Path, rows_of: Callable[..., Any], write: Callable[..., Dataset]
) -> None:
    tuples = write(tmp_path / "tuples", "tuples", rows_of(["test", "test"]))
    settings = EmbedSettings(backbone=str(convnext), dtype="float32")
    output = Dataset(tmp_path / "pooled")
    planned = plan_embedding("pooled", tuples.location.uri, None, output, settings, RUN)
    planned.task.setup()
    (shard,) = planned.plan.pending
    table = run_shard(planned.task, output, shard, planned.plan.members(shard))
    assert validate(table, EMBEDDINGS) == []
    model, processor = ConvNextModel.from_pretrained(convnext).eval(), planned.backbone.pixels.processor
    views = {row["identity_id"]: row["views"] for row in tuples.read().to_pylist()}
    for row in table.to_pylist():
        view = views[row["identity_id"]][row["view_index"]]
        image = decode_rgb(view["image"]["bytes"])
        if row["condition"] == "foreground":
            image = foreground_only(image, decode_mask(view["mask"]["bytes"]))
        with torch.inference_mode():
            pooled = model(**processor(images=[image], return_tensors="pt")).pooler_output[0]
        np.testing.assert_allclose(row["embedding"], pooled / pooled.norm(), atol=2e-2)
    assert output.read_json("backbone.json")["embedding"] == "pooler_output"
    assert not output.location.child("head.safetensors").exists()


def test_a_token_cache_of_such_a_model_is_refused_before_anything_is_written(
    tmp_path: Path, convnext: Path, rows_of: Callable[..., Any], write: Callable[..., Dataset]
) -> None:
    tuples = write(tmp_path / "tuples", "tuples", rows_of(["train", "test"]))
    settings = EmbedSettings(backbone=str(convnext), dtype="float32")
    with pytest.raises(UsageError, match="no tokens, which the token cache needs"):
        plan_embedding("tokens", tuples.location.uri, None, Dataset(tmp_path / "tokens"), settings, RUN)
    assert not (tmp_path / "tokens").exists()
