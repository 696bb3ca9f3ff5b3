"""Embedding on a real small Ray: reruns, growth, any number of workers; the cache it leaves is readable and whole."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nearid_ray.data.pipeline import RunSettings, RunSummary
from nearid_ray.data.store import Dataset
from nearid_ray.embedding.augment import AugmentSettings
from nearid_ray.embedding.cache import TokenCache
from nearid_ray.embedding.extract import plan_embedding
from nearid_ray.embedding.plan import EmbedSettings
from nearid_ray.errors import UsageError
from nearid_ray.models.backbone import load_backbone
from schemas import validate

Rows = list[dict[str, Any]]
Run = Callable[..., RunSummary]


pytestmark = pytest.mark.usefixtures("ray_session")


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nearid_ray.embedding.extract._ROWS_PER_SHARD", 16)


@pytest.fixture(scope="module")
def inputs(
    tmp_path_factory: pytest.TempPathFactory,
    rows_of: Callable[..., Rows],
    distractors_of: Callable[..., Rows],
    write: Callable[..., Dataset],
) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("inputs")
    rows = rows_of(["train", "train", "val", "test"])
    rows[1]["views"][0] |= {"error": "broken file", "view_id": "", "image": None, "mask": None}
    rows[2]["views"][0]["image"] = {"bytes": b"no picture", "path": "x"}
    tuples = write(folder / "tuples", "tuples", rows, rows_per_shard=2)
    del rows[1]["views"][0]
    distractors = write(folder / "distractors", "distractors", distractors_of(rows))
    return tuples.location.uri, distractors.location.uri


@pytest.fixture(scope="module")
def run_embed(inputs: tuple[str, str], tiny_backbone: Path) -> Run:
    def run(output: Path, workers: int = 1, **settings: Any) -> RunSummary:
        values = EmbedSettings(**{"backbone": str(tiny_backbone), "dtype": "float32", **settings})
        run = RunSettings(workers=workers, max_error_share=0.5)
        return plan_embedding("tokens", *inputs, Dataset(output), values, run).run(run)

    return run


@pytest.fixture(scope="module")
def embedded(ray_session: None, tmp_path_factory: pytest.TempPathFactory, run_embed: Run) -> tuple[Path, RunSummary]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nearid_ray.embedding.extract._ROWS_PER_SHARD", 16)
        output = tmp_path_factory.mktemp("embedded") / "cache"
        return output, run_embed(output, workers=2)


def files(folder: Path) -> dict[str, bytes]:
    """All files but the log, which holds times."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.parent.name != "log"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def test_the_cache_on_disk_is_valid_and_complete(embedded: tuple[Path, RunSummary], tiny_backbone: Path) -> None:
    output, summary = embedded
    assert validate(output) == []
    cache = TokenCache.open(output, backbone=load_backbone(str(tiny_backbone)).fingerprint)
    assert (summary.rows, summary.rows_made, summary.errors) == (len(cache), len(cache), 2)
    assert summary.shards_made == len(Dataset(output).shards()) > 2
    assert (cache.tokens, cache.width) == (16, 32)
    assert cache.backbone["heads"] == 2
    rejected = Dataset(output).location.child("rejected.parquet")
    assert rejected.exists()
    assert "Token cache" in (output / "README.md").read_text()


def test_the_cache_holds_the_backbones_own_head(embedded: tuple[Path, RunSummary], tiny_backbone: Path) -> None:
    stored = TokenCache.open(embedded[0]).head_state()
    own = load_backbone(str(tiny_backbone)).head_state()
    assert stored.keys() == own.keys()
    assert all(torch.equal(stored[name], own[name]) for name in own)


def test_one_worker_writes_the_bytes_that_two_wrote(
    embedded: tuple[Path, RunSummary], run_embed: Run, tmp_path: Path
) -> None:
    run_embed(tmp_path / "cache", workers=1)
    assert files(tmp_path / "cache") == files(embedded[0])


def test_a_rerun_makes_what_is_missing_with_the_same_bytes_and_then_nothing(
    embedded: tuple[Path, RunSummary], run_embed: Run
) -> None:
    output, _ = embedded
    before = files(output)
    lost = Dataset(output).shards()[1]
    (output / "data" / f"{lost}.parquet").unlink()
    with pytest.raises(UsageError, match=f"not complete: .* {lost}"):
        TokenCache.open(output)
    assert run_embed(output).shards_made == 1
    assert files(output) == before
    assert run_embed(output).shards_made == 0
    assert files(output) == before


def test_more_draws_add_shards_and_leave_the_others_alone(
    embedded: tuple[Path, RunSummary], run_embed: Run, tmp_path: Path
) -> None:
    output = tmp_path / "cache"
    for name, data in files(embedded[0]).items():
        (output / name).parent.mkdir(parents=True, exist_ok=True)
        (output / name).write_bytes(data)
    summary = run_embed(output, draws=2)
    assert summary.rows_before == embedded[1].rows
    assert summary.rows_made > 0
    kept = files(embedded[0])
    grown = files(output)
    changed = {name for name in kept if kept[name] != grown[name]}
    assert changed <= {"README.md"}
    cache = TokenCache.open(output)
    assert set(cache.index["draw"].to_pylist()) == {0, 1, 2}
    usable = np.flatnonzero(np.array(cache.index["error"].to_pylist()) == "")
    out = np.empty((len(usable), cache.tokens, cache.width), np.float16)
    assert np.abs(cache.gather(usable, out)).reshape(len(usable), -1).max(axis=1).min() > 0


def test_an_output_of_another_backbone_or_other_draws_is_refused(
    embedded: tuple[Path, RunSummary], run_embed: Run, make_backbone: Callable[..., Path], tmp_path: Path
) -> None:
    before = files(embedded[0])
    other = make_backbone(tmp_path / "other", seed=1)
    with pytest.raises(UsageError, match=r"holds what the backbone .* says; asked for was .*other"):
        run_embed(embedded[0], backbone=str(other))
    with pytest.raises(UsageError, match=r"augment\.flip_p: there 0\.5, now 0\.1"):
        run_embed(embedded[0], augment=AugmentSettings(flip_p=0.1))
    with pytest.raises(UsageError, match="dtype: there 'float32', now 'bfloat16'"):
        run_embed(embedded[0], dtype="bfloat16")
    assert files(embedded[0]) == before


def test_pooled_embeddings_are_a_dataset_of_their_own(
    inputs: tuple[str, str], tiny_backbone: Path, tmp_path: Path
) -> None:
    settings = EmbedSettings(backbone=str(tiny_backbone), dtype="float32", clean_splits=("test",))
    run = RunSettings(workers=2)
    summary = plan_embedding("pooled", *inputs, Dataset(tmp_path / "pooled"), settings, run).run(run)
    assert validate(tmp_path / "pooled") == []
    table = Dataset.open(tmp_path / "pooled", "embeddings").read()
    assert set(table["split"].to_pylist()) == {"train", "test"}
    assert (summary.rows, summary.errors) == (table.num_rows, 0)
    norms = np.linalg.norm(np.array(table["embedding"].to_pylist()), axis=1)
    np.testing.assert_allclose(norms, 1, atol=1e-5)


def test_an_input_that_is_not_complete_is_refused(
    rows_of: Callable[..., Rows], write: Callable[..., Dataset], tiny_backbone: Path, tmp_path: Path
) -> None:
    tuples = write(tmp_path / "tuples", "tuples", rows_of(["train"] * 6))
    tuples.shard("000-000001").delete()
    with pytest.raises(UsageError, match=r"not complete: 1 of its shards are missing, e\.g\. 000-000001"):
        settings = EmbedSettings(backbone=str(tiny_backbone))
        plan_embedding("tokens", tuples.location.uri, None, Dataset(tmp_path / "o"), settings, RunSettings())
    assert not (tmp_path / "o").exists()
