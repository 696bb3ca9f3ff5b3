"""Tokens computed online are those of the cache, and training on them is training on the cache."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nearid_ray.data.pipeline import RunSettings, run_shard
from nearid_ray.data.store import Dataset
from nearid_ray.embedding.cache import TokenCache
from nearid_ray.embedding.copies import Copies
from nearid_ray.embedding.extract import plan_embedding
from nearid_ray.embedding.online import OnlineTokens
from nearid_ray.embedding.plan import EmbedSettings
from nearid_ray.embedding.report import described_embedding
from nearid_ray.errors import UsageError
from nearid_ray.models.backbone import Backbone, load_backbone
from nearid_ray.models.head import AttentionPoolingHead
from nearid_ray.training.loop import HeadTraining
from nearid_ray.training.settings import TrainSettings

Rows = list[dict[str, Any]]

DRAWS = 2


@pytest.fixture(scope="module")
def inputs(
    tmp_path_factory: pytest.TempPathFactory,
    rows_of: Callable[..., Rows],
    distractors_of: Callable[..., Rows],
    write: Callable[..., Dataset],
) -> dict[str, str]:
    folder, rows = tmp_path_factory.mktemp("inputs"), rows_of(["train"] * 6 + ["val"] * 2)
    datasets = {
        "tuples": write(folder / "tuples", "tuples", rows),
        "distractors": write(folder / "distractors", "distractors", distractors_of(rows), rows_per_shard=9),
    }
    return {kind: dataset.location.uri for kind, dataset in datasets.items()}


@pytest.fixture(scope="module")
def backbone(tiny_backbone: Path) -> Backbone:
    return load_backbone(str(tiny_backbone), dtype="float32")


@pytest.fixture(scope="module")
def settings(tiny_backbone: Path) -> EmbedSettings:
    return EmbedSettings(backbone=str(tiny_backbone), dtype="float32", draws=DRAWS, batch_size=7)


@pytest.fixture(scope="module")
def cache(inputs: dict[str, str], settings: EmbedSettings, tmp_path_factory: pytest.TempPathFactory) -> TokenCache:
    output, run = Dataset(tmp_path_factory.mktemp("tokens")), RunSettings(gpus_per_worker=0)
    planned = plan_embedding("tokens", inputs["tuples"], inputs["distractors"], output, settings, run)
    planned.task.setup()
    for shard in planned.plan.pending:
        run_shard(planned.task, output, shard, planned.plan.members(shard))
    return TokenCache.open(output.location)


@pytest.fixture
def online(inputs: dict[str, str], settings: EmbedSettings, backbone: Backbone, tmp_path: Path) -> OnlineTokens:
    return OnlineTokens([inputs], backbone, settings, threads=2, copies=Copies(tmp_path / "pictures"))


def place_of(index: Any) -> dict[tuple[Any, ...], int]:
    columns = ("role", "identity_id", "view_index", "engine", "masked", "draw", "split", "oracle")
    return {tuple(row[name] for name in columns): place for place, row in enumerate(index.to_pylist())}


def test_the_items_are_those_of_the_cache_and_so_are_their_tokens(cache: TokenCache, online: OnlineTokens) -> None:
    here, there = place_of(online.index), place_of(cache.index)
    assert here.keys() == there.keys() and len(here) == len(online) == len(cache)
    names = list(here)[::3]
    shape = (len(names), cache.tokens, cache.width)
    mine = online.gather(np.array([here[name] for name in names]), np.empty(shape, np.float16))
    cached = cache.gather(np.array([there[name] for name in names]), np.empty(shape, np.float16))
    np.testing.assert_allclose(mine.astype(float), cached.astype(float), atol=2e-3, rtol=2e-3)
    np.testing.assert_allclose(online.blank_TD().astype(float), cache.blank_TD().astype(float), atol=2e-3, rtol=2e-3)


def test_training_online_is_training_on_the_cache(cache: TokenCache, online: OnlineTokens, backbone: Backbone) -> None:
    settings = TrainSettings(
        global_batch=4, max_steps=8, warmup_steps=1, evaluate_every=4, learning_rate=1e-3, checkpoint_every=0
    )
    heads: list[AttentionPoolingHead] = []
    losses, rates = [], []
    for tokens in (cache, online):
        heads.append(backbone.head())
        run = HeadTraining({"head": heads[-1]}, tokens, {"head": settings})
        rows = [row["head"] for row in run.run()]
        losses.append([row.loss for row in rows[1:]])
        rates.append([row.val_pa for row in rows])
    assert losses[0] == pytest.approx(losses[1], rel=5e-3) and losses[0][-1] != losses[0][0]
    for name, value in heads[0].state_dict().items():
        np.testing.assert_allclose(heads[1].state_dict()[name], value, atol=2e-3)
    assert rates[0] == pytest.approx(rates[1], abs=0.3)


def test_a_picture_that_is_asked_for_twice_is_computed_once(
    online: OnlineTokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedded: list[int] = []
    embed = online._embedded
    monkeypatch.setattr(online, "_embedded", lambda images: embedded.append(len(images)) or embed(images))
    (clean,) = np.flatnonzero(np.array(online.index["draw"]) == 0)[:1]
    (drawn,) = np.flatnonzero(np.array(online.index["draw"]) == 1)[:1]
    rows, out = np.array([drawn, clean, drawn, clean]), np.empty((4, online.tokens, online.width), np.float16)
    online.gather(rows, out)
    assert embedded == [2] and np.array_equal(out[0], out[2]) and not np.array_equal(out[0], out[1])
    online.gather(rows, out)
    assert embedded == [2, 1], "clean pictures are kept for the next validation"


def test_pictures_are_laid_out_once(
    inputs: dict[str, str], settings: EmbedSettings, backbone: Backbone, tmp_path: Path
) -> None:
    seen = []
    for _ in range(2):
        tokens = OnlineTokens([inputs], backbone, settings, copies=Copies(tmp_path))
        tokens.gather(np.array([0]), np.empty((1, tokens.tokens, tokens.width), np.float16))
        seen.append({path: path.stat().st_ino for path in tmp_path.glob("*.arrow")})
    assert seen[0] == seen[1] and len(seen[0]) == 6


def test_a_picture_that_cannot_be_read_is_named(
    rows_of: Callable[..., Rows], write: Callable[..., Dataset], backbone: Backbone, tmp_path: Path
) -> None:
    rows = rows_of(["train"])
    rows[0]["views"][1]["image"] = {"bytes": b"no picture", "path": "x"}
    uri = write(tmp_path / "tuples", "tuples", rows).location.uri
    tokens = OnlineTokens([{"tuples": uri}], backbone, EmbedSettings(), copies=Copies(tmp_path / "pictures"))
    everything = np.empty((len(tokens), tokens.tokens, tokens.width), np.float16)
    with pytest.raises(UsageError, match=r"test:000, view 1: .*repair the dataset"):
        tokens.gather(np.arange(len(tokens)), everything)


def test_a_disk_without_room_for_the_pictures_is_said(
    inputs: dict[str, str], settings: EmbedSettings, backbone: Backbone, tmp_path: Path
) -> None:
    tokens = OnlineTokens([inputs], backbone, settings, copies=Copies(tmp_path, limit_bytes=1000))
    with pytest.raises(UsageError, match="has no room for the pictures"):
        tokens.gather(np.array([0]), np.empty((1, tokens.tokens, tokens.width), np.float16))


def test_the_plan_counts_items_and_what_computing_them_online_would_cost(
    inputs: dict[str, str], settings: EmbedSettings, cache: TokenCache
) -> None:
    plan = described_embedding(inputs["tuples"], inputs["distractors"], settings)
    size = cache.tokens * cache.width
    assert plan["items"] == f"{len(cache)} of {cache.tokens} x {cache.width} (train 144, val 24)"
    assert plan["float16 on disk"] == f"{len(cache) * 2 * size / 2**30:.2f} GiB"
    # Six identities with two views: two views and two distractors a sample.
    assert plan["instead, online"].startswith("no disk; 24 pictures through the backbone in each epoch")
