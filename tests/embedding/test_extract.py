"""One shard of items through the backbone, without Ray: the right picture, augmentation, tokens; failures are rows."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import SiglipVisionModel

from nearid_ray.data.images import decode_mask, decode_rgb, encode_png
from nearid_ray.data.pipeline import run_shard
from nearid_ray.data.store import Dataset
from nearid_ray.embedding.augment import AugmentSettings, augment, draw_seed
from nearid_ray.embedding.extract import EmbedTask
from nearid_ray.embedding.plan import EmbedSettings, plan_embed, pooled_settings
from nearid_ray.embedding.shards import map_tokens
from nearid_ray.errors import UsageError
from nearid_ray.models.backbone import load_backbone
from schemas import EMBEDDINGS, TOKENS_INDEX, validate

Rows = list[dict[str, Any]]


@pytest.fixture
def inputs(
    tmp_path: Path, rows_of: Callable[..., Rows], distractors_of: Callable[..., Rows], write: Callable[..., Dataset]
) -> dict[str, Dataset]:
    rows = rows_of(["train", "test", "val"])
    return {
        "tuples": write(tmp_path / "tuples", "tuples", rows, rows_per_shard=2),
        "distractors": write(tmp_path / "distractors", "distractors", distractors_of(rows)),
    }


def task_for(inputs: dict[str, Dataset], backbone_folder: Path, what: str = "tokens", **changes: Any) -> EmbedTask:
    backbone = load_backbone(str(backbone_folder))
    values: dict[str, Any] = {
        "what": what,
        "inputs": {kind: dataset.location.uri for kind, dataset in inputs.items()},
        "spec": str(backbone_folder),
        "revision": None,
        "fingerprint": backbone.fingerprint,
        "dtype": "float32",
        "batch_size": 5,
        "threads": 1,
        "pixels": backbone.pixels,
        "augment": AugmentSettings(),
    }
    task = EmbedTask(**values | changes)
    task.setup()
    return task


def planned(inputs: dict[str, Dataset], settings: EmbedSettings | None = None) -> pa.Table:
    work, _ = plan_embed(inputs["tuples"], inputs["distractors"], settings or EmbedSettings(draws=2))
    return work.append_column("shard", pa.array(["s"] * work.num_rows))


def picture_of(
    inputs: dict[str, Dataset], item: dict[str, Any], distractor_mask: str = "view"
) -> tuple[np.ndarray, np.ndarray]:
    """Image and mask of an item, found by its names instead of by its place."""
    identities = inputs["tuples"].read().to_pylist()
    view = next(row for row in identities if row["identity_id"] == item["identity_id"])["views"][item["view_index"]]
    if item["role"] == "view":
        return decode_rgb(view["image"]["bytes"]), decode_mask(view["mask"]["bytes"])
    rows = inputs["distractors"].read().to_pylist()
    found = next(row for row in rows if row["distractor_id"] == item["image_id"])
    masked_by = view if distractor_mask == "view" else found
    return decode_rgb(found["image"]["bytes"]), decode_mask(masked_by["mask"]["bytes"])


@pytest.mark.parametrize("distractor_mask", ["view", "painted"])
def test_tokens_of_every_item_are_those_of_its_own_augmented_picture(
    inputs: dict[str, Dataset], tiny_backbone: Path, tmp_path: Path, distractor_mask: Literal["view", "painted"]
) -> None:
    task = task_for(inputs, tiny_backbone)
    work = planned(inputs, EmbedSettings(draws=2, distractor_mask=distractor_mask))
    index = run_shard(task, Dataset(tmp_path / "out"), "s", work)
    tokens_NTD = map_tokens(tmp_path / "out" / "tokens" / "s.arrow", work.num_rows, 16, 32)
    model = SiglipVisionModel.from_pretrained(tiny_backbone).eval()
    for row, item in enumerate(work.to_pylist()):
        image, mask = picture_of(inputs, item, distractor_mask)
        name = {"masked": item["masked"], "draw": item["draw"], "settings": task.augment}
        drawn = augment(image, mask, task.augment, masked=item["masked"], seed=draw_seed(item["image_id"], **name))
        pixels = torch.from_numpy(drawn).permute(2, 0, 1)[None] / 127.5 - 1
        with torch.inference_mode():
            expected = model(pixel_values=pixels).last_hidden_state[0].numpy()
        np.testing.assert_allclose(tokens_NTD[row], expected, rtol=2e-3, atol=2e-3)
    assert index["row"].to_pylist() == list(range(work.num_rows))
    assert validate(index, TOKENS_INDEX) == []


def test_the_same_work_gives_the_same_bytes_whatever_the_batch_size(
    inputs: dict[str, Dataset], tiny_backbone: Path, tmp_path: Path
) -> None:
    work = planned(inputs)
    run_shard(task_for(inputs, tiny_backbone), Dataset(tmp_path / "a"), "s", work)
    run_shard(task_for(inputs, tiny_backbone), Dataset(tmp_path / "b"), "s", work)
    for name in ("tokens/s.arrow", "data/s.parquet"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    run_shard(task_for(inputs, tiny_backbone, batch_size=64), Dataset(tmp_path / "c"), "s", work)
    one, other = (map_tokens(tmp_path / name / "tokens" / "s.arrow", work.num_rows, 16, 32) for name in "ac")
    np.testing.assert_allclose(one, other, rtol=2e-3, atol=1e-3)


def test_pictures_of_another_size_are_resized_as_the_backbone_wants(
    inputs: dict[str, Dataset], make_backbone: Callable[..., Path], tmp_path: Path
) -> None:
    folder = make_backbone(tmp_path / "larger", image_px=48)
    work = planned(inputs, EmbedSettings(draws=0, masked=False))
    task = task_for(inputs, folder)
    prepared = task.prepare(work)
    for row, item in enumerate(work.to_pylist()):
        image, _ = picture_of(inputs, item)
        assert np.array_equal(prepared.image_NSS3[row], task.pixels.resized(image))
    assert task.compute(prepared).value_N.shape == (work.num_rows, 36, 32)


def test_pooled_embeddings_are_the_backbones_own_normalised(
    inputs: dict[str, Dataset], tiny_backbone: Path, tmp_path: Path
) -> None:
    work = planned(inputs, pooled_settings(EmbedSettings()))
    table = run_shard(task_for(inputs, tiny_backbone, what="pooled"), Dataset(tmp_path / "out"), "s", work)
    assert validate(table, EMBEDDINGS) == []
    assert set(table["condition"].to_pylist()) == {"full", "foreground"}
    assert set(table["scorer"].to_pylist()) == {"frozen"}
    model = SiglipVisionModel.from_pretrained(tiny_backbone).eval()
    for item, embedding in zip(work.to_pylist(), table["embedding"].to_pylist(), strict=True):
        image, mask = picture_of(inputs, item)
        drawn = augment(image, mask, AugmentSettings(), masked=item["masked"], seed=None)
        with torch.inference_mode():
            pooled = model(pixel_values=torch.from_numpy(drawn).permute(2, 0, 1)[None] / 127.5 - 1).pooler_output[0]
        np.testing.assert_allclose(embedding, pooled / pooled.norm(), atol=1e-5)
    assert not (tmp_path / "out" / "tokens").exists()


def test_what_fails_becomes_a_row_with_an_error_and_zero_tokens(
    tmp_path: Path,
    tiny_backbone: Path,
    rows_of: Callable[..., Rows],
    distractors_of: Callable[..., Rows],
    write: Callable[..., Dataset],
) -> None:
    rows = rows_of(["test", "test"])
    others = distractors_of(rows)
    views = [view for row in rows for view in row["views"]]
    views[0]["image"] = {"bytes": b"no picture", "path": "x"}
    views[1]["mask"] = {"bytes": encode_png(np.zeros((32, 32), np.uint8)), "path": "x"}
    views[2]["mask"] = {"bytes": encode_png(np.full((16, 16), 255, np.uint8)), "path": "x"}
    others[0]["image"] = {"bytes": b"", "path": "x"}
    tuples, distractors = write(tmp_path / "t", "tuples", rows), write(tmp_path / "d", "distractors", others)
    inputs = {"tuples": tuples, "distractors": distractors}
    work = planned(inputs, EmbedSettings(distractor_mask="painted"))
    index = run_shard(task_for(inputs, tiny_backbone), Dataset(tmp_path / "out"), "s", work)
    tokens_NTD = map_tokens(tmp_path / "out" / "tokens" / "s.arrow", work.num_rows, 16, 32)
    by_item = {
        (row["image_id"], row["masked"]): (row["error"], bool(tokens.any()))
        for row, tokens in zip(index.to_pylist(), tokens_NTD, strict=True)
    }
    errors = {key: said for key, (said, _) in by_item.items() if said}
    assert all(bool(said) != any_token for said, any_token in by_item.values())
    assert errors == {
        (
            views[0]["view_id"],
            False,
        ): "not a picture in a known format (JPEG, PNG, WebP, GIF, BMP, TIFF), or broken from its start",
        (
            views[0]["view_id"],
            True,
        ): "not a picture in a known format (JPEG, PNG, WebP, GIF, BMP, TIFF), or broken from its start",
        (views[1]["view_id"], True): "the mask is empty: no pixel belongs to the object",
        (views[2]["view_id"], True): "the mask has shape (16, 16), the picture (32, 32); expected the same",
        (others[0]["distractor_id"], False): "its image is missing",
        (others[0]["distractor_id"], True): "its image is missing",
    }


@pytest.mark.filterwarnings("ignore:overflow encountered")
def test_numbers_that_are_not_finite_become_an_error(inputs: dict[str, Dataset], tiny_backbone: Path) -> None:
    task, work = task_for(inputs, tiny_backbone), planned(inputs, EmbedSettings(draws=0, masked=False))
    prepared = task.prepare(work)
    prepared.image_NSS3[1] = 255
    task.pixels = task.pixels.__class__(image_px=32, resample=2, scale=1.0, mean=(0.0,) * 3, std=(1e-38,) * 3)
    computed = task.compute(prepared)
    assert all(error == "the backbone gave numbers that are not finite" for error in computed.errors)
    assert not computed.value_N.any()


def test_a_worker_with_another_backbone_refuses_to_work(inputs: dict[str, Dataset], tiny_backbone: Path) -> None:
    with pytest.raises(UsageError, match=r"of this worker has the fingerprint .*, that of the driver 1234"):
        task_for(inputs, tiny_backbone, fingerprint="1234")
