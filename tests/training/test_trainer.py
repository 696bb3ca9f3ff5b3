"""Training on real Ray Train workers: the head of one process, whatever happens to the workers."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray.train
import safetensors.torch
import torch
from ray.train.v2.api.exceptions import WorkerGroupError

from nearid_ray.data.store import locate
from nearid_ray.embedding.cache import BACKBONE_FILE, HEAD_FILE, TOKENS_FOLDER, TokenCache
from nearid_ray.embedding.shards import tokens_bytes
from nearid_ray.errors import UsageError
from nearid_ray.models.checkpoint import HeadCard, load_head, save_head
from nearid_ray.models.head import AttentionPoolingHead
from nearid_ray.training.checkpoints import last_checkpoint, read_checkpoint
from nearid_ray.training.history import HistoryRow, read_history
from nearid_ray.training.loop import HeadTraining
from nearid_ray.training.outputs import TrainedHead, save_trained
from nearid_ray.training.settings import TrainSettings, WorkerSettings
from nearid_ray.training.trainer import _is_full, check_runs, initial_head, train_many

BASE = TrainSettings(
    learning_rate=3e-3, warmup_steps=5, global_batch=15, max_steps=100, evaluate_every=20, checkpoint_every=40
)
TWO = WorkerSettings(workers=2)
RUNS = {"alpha 0.5": BASE, "alpha 0": replace(BASE, alpha=0.0)}


@pytest.fixture(scope="module")
def cache_uri(
    make_index: Callable[..., pa.Table], make_cache: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> str:
    """A token cache on disk as embed writes it: two shards, a small random head."""
    folder = tmp_path_factory.mktemp("cache")
    views = {f"s:{i:02}": 2 + i % 2 for i in range(50)}
    memory = make_cache(make_index(views, split=lambda name: "val" if name >= "s:38" else "train"))
    place = locate(folder)
    half = len(memory.index) // 2
    for name, part in {"000": slice(0, half), "001": slice(half, None)}.items():
        rows = range(len(memory.index))[part]
        index = memory.index.slice(rows.start, len(rows))
        index = index.set_column(index.column_names.index("shard"), "shard", pa.array([name] * len(rows)))
        index = index.set_column(index.column_names.index("row"), "row", pa.array(range(len(rows)), pa.int64()))
        index = index.append_column("oracle", pa.nulls(len(rows), pa.float64()))
        (folder / "data").mkdir(exist_ok=True)
        pq.write_table(index, folder / "data" / f"{name}.parquet")
        place.child(TOKENS_FOLDER, f"{name}.arrow").write_bytes(tokens_bytes(memory.tokens_NTD[part]))
    backbone = {**memory.backbone, "tokens": memory.tokens, "width": memory.width}
    place.child(BACKBONE_FILE).write_bytes(json.dumps(backbone).encode())
    place.child(HEAD_FILE).write_bytes(safetensors.torch.save(memory.head_state()))
    settings = {"table": "tokens_index", "content": {}, "content_digest": "test"}
    place.child("settings.json").write_bytes(json.dumps(settings).encode())
    return str(folder)


@pytest.fixture(scope="module")
def followed() -> list[tuple[str, HistoryRow]]:
    """What reached the driver while the undisturbed runs went on."""
    return []


@pytest.fixture(scope="module")
def undisturbed(
    ray_session: None, cache_uri: str, tmp_path_factory: pytest.TempPathFactory, followed: list[tuple[str, HistoryRow]]
) -> dict[str, TrainedHead]:
    def follow(name: str, rows: list[HistoryRow]) -> None:
        followed.extend((name, row) for row in rows)

    return train_many(RUNS, tokens=cache_uri, storage=str(storage(tmp_path_factory)), name="runs", on_rows=follow)


def storage(factory: pytest.TempPathFactory) -> Path:
    return factory.getbasetemp() / "undisturbed"


def assert_same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor], tolerance: float) -> None:
    assert left.keys() == right.keys()
    for name, value in left.items():
        torch.testing.assert_close(right[name], value, rtol=0, atol=tolerance, msg=name)


def test_two_workers_train_the_heads_of_one_process_for_a_hundred_steps(
    undisturbed: dict[str, TrainedHead], cache_uri: str
) -> None:
    cache = TokenCache.open(cache_uri)
    for name, settings in RUNS.items():
        training = HeadTraining({name: initial_head(cache)}, cache, {name: settings})
        list(training.run())
        alone = training.runs[name]
        trained = undisturbed[name]
        assert_same(alone.head.state_dict(), trained.last_head, 1e-4)
        assert alone.best is not None
        assert (trained.best_step, trained.best_val_ssr) == (alone.best["step"], alone.best["val_ssr"])
        assert_same(alone.best["head"], trained.best_head, 1e-4)
        losses = [row.loss for row in trained.history[1:]]
        assert losses == pytest.approx([row.loss for row in alone.history[1:]], rel=1e-3)
        assert len(losses) == 100 and sum(losses[-5:]) < sum(losses[:5])
    difference = undisturbed["alpha 0"].last_head["probe"] - undisturbed["alpha 0.5"].last_head["probe"]
    assert difference.abs().max() > 1e-3


def test_every_row_reaches_the_driver_once(
    undisturbed: dict[str, TrainedHead], followed: list[tuple[str, HistoryRow]]
) -> None:
    for name, trained in undisturbed.items():
        assert [row for other, row in followed if other == name] == trained.history


@pytest.mark.faults
def test_a_killed_worker_is_replaced_and_the_heads_come_out_the_same(
    undisturbed: dict[str, TrainedHead], cache_uri: str, tmp_path: Path
) -> None:
    marker = tmp_path / "died"

    def die_once(name: str, row: Any, steps: int) -> None:
        if name == "alpha 0" and row.step == 57 and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    trained = train_many(RUNS, tokens=cache_uri, storage=str(tmp_path), name="runs", on_row=die_once)
    assert marker.exists()
    for name in RUNS:
        assert_same(undisturbed[name].last_head, trained[name].last_head, 1e-6)
        assert_same(undisturbed[name].best_head, trained[name].best_head, 1e-6)
        assert [row.step for row in trained[name].history] == list(range(101))


DRIVER = """
import os, signal, sys
from dataclasses import replace
from pathlib import Path
from nearid_ray.cluster import ray_session
from nearid_ray.training.settings import TrainSettings, WorkerSettings
from nearid_ray.training.trainer import train_many

folder, tokens = Path(sys.argv[1]), sys.argv[2]
settings = TrainSettings(
    learning_rate=3e-3, warmup_steps=5, global_batch=15, max_steps=40, evaluate_every=10, checkpoint_every=10
)

def on_row(name, row, steps):
    if row.step == 34 and not (folder / "driver dies").exists():
        (folder / "driver dies").touch()
        signal.pause()

with ray_session(num_cpus=2):
    one = WorkerSettings(workers=1)
    train_many({"run": settings}, tokens=tokens, storage=str(folder), name="runs", where=one, on_row=on_row)
"""


def test_a_killed_driver_changes_not_one_bit_on_one_worker(cache_uri: str, tmp_path: Path) -> None:
    """The driver is a process of its own; after its death the same command is given again."""
    (tmp_path / "driver.py").write_text(DRIVER)
    command = [sys.executable, str(tmp_path / "driver.py"), str(tmp_path), cache_uri]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as first:
        while not (tmp_path / "driver dies").exists():
            assert first.poll() is None, first.stderr.read().decode() if first.stderr else ""
            time.sleep(0.1)
        first.kill()
    assert first.returncode == -signal.SIGKILL
    subprocess.run(command, check=True, capture_output=True)

    settings, cache = replace(BASE, max_steps=40, evaluate_every=10, checkpoint_every=10), TokenCache.open(cache_uri)
    head = initial_head(cache)
    undisturbed = HeadTraining({"run": head}, cache, {"run": settings})
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    list(undisturbed.run())
    torch.set_num_threads(threads)
    last = last_checkpoint(f"{tmp_path}/runs", None)
    origins = {"run": undisturbed.runs["run"].origin}
    finished = read_checkpoint(last, {"run": settings}, origins).finished["run"]
    assert_same(head.state_dict(), finished["head"], 0)
    losses = [row["loss"] for row in finished["history"]]
    assert losses == [row.loss for row in undisturbed.runs["run"].history] and len(losses) == 41


def test_finished_runs_are_not_trained_again(
    undisturbed: dict[str, TrainedHead], cache_uri: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    def refuse(name: str, row: Any, steps: int) -> None:
        raise AssertionError("nothing was left to train")

    again = train_many(RUNS, tokens=cache_uri, storage=str(storage(tmp_path_factory)), name="runs", on_row=refuse)
    for name in RUNS:
        assert_same(undisturbed[name].last_head, again[name].last_head, 0)
        assert undisturbed[name].history == again[name].history


def test_checkpoints_of_other_settings_are_refused_before_workers_start(
    undisturbed: dict[str, TrainedHead], cache_uri: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    place = str(storage(tmp_path_factory))
    with pytest.raises(UsageError, match=r"other settings \(learning_rate 0\.003 then, 0\.01 now\)"):
        changed = {**RUNS, "alpha 0": replace(RUNS["alpha 0"], learning_rate=0.01)}
        train_many(changed, tokens=cache_uri, storage=place, name="runs")
    with pytest.raises(UsageError, match=r"they hold 'alpha 0\.5', wanted are \['other'\]"):
        train_many({"other": BASE}, tokens=cache_uri, storage=place, name="runs")


def test_mistakes_are_refused_before_workers_start(cache_uri: str, tmp_path: Path) -> None:
    other = AttentionPoolingHead(16, 2, 32)
    save_head(str(tmp_path / "head"), other, HeadCard.of(other, "another", "xyz"))
    with pytest.raises(UsageError, match="backbone another"):
        train_many(RUNS, tokens=cache_uri, init=str(tmp_path / "head"), storage=str(tmp_path), name="runs")
    with pytest.raises(UsageError, match="unknown \\['flux'\\]"):
        wrong = {"a": replace(BASE, engines=("flux",))}
        train_many(wrong, tokens=cache_uri, storage=str(tmp_path), name="runs")
    with pytest.raises(UsageError, match="a: global_batch 1 is smaller than the number of workers, 2"):
        train_many(
            {"a": replace(BASE, global_batch=1)}, tokens=cache_uri, storage=str(tmp_path), name="runs", where=TWO
        )
    with pytest.raises(UsageError, match="the 2 workers can share evenly; here are some of 5 and 3 samples"):
        uneven = {"a": replace(BASE, mode="reference", global_batch=5)}
        train_many(uneven, tokens=cache_uri, storage=str(tmp_path), name="runs", where=TWO)
    with pytest.raises(UsageError, match="no settings were given"):
        train_many({}, tokens=cache_uri, storage=str(tmp_path), name="runs")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["head"]


def test_training_can_start_from_a_trained_head_of_the_same_backbone(cache_uri: str, tmp_path: Path) -> None:
    cache = TokenCache.open(cache_uri)
    trained = AttentionPoolingHead.initialised(16, 2, 32, seed=5)
    save_head(str(tmp_path), trained, HeadCard.of(trained, "memory", cache.backbone["fingerprint"]))
    started = initial_head(cache, str(tmp_path))
    assert_same(trained.state_dict(), started.state_dict(), 0)
    origins = [check_runs({"a": BASE}, cache, head)["a"] for head in (None, started)]
    assert origins[0]["initial_head"] != origins[1]["initial_head"] and origins[0]["tokens"] == origins[1]["tokens"]


def test_more_workers_than_the_machine_has_cpus_are_refused(ray_session: None, cache_uri: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="3 workers x 2 CPUs"):
        where = WorkerSettings(workers=3, threads=2)
        train_many(RUNS, tokens=cache_uri, storage=str(tmp_path), name="runs", where=where)


def test_gpus_that_the_cluster_does_not_have_are_refused(ray_session: None, cache_uri: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="1 workers x 1 CPUs and a GPU each are more than the 4 CPUs and 0 GPUs"):
        where = WorkerSettings(workers=1, gpu=True)
        train_many(RUNS, tokens=cache_uri, storage=str(tmp_path), name="runs", where=where)


def test_outputs_hold_both_heads_and_the_history(
    undisturbed: dict[str, TrainedHead], cache_uri: str, tmp_path: Path
) -> None:
    trained, cache = undisturbed["alpha 0.5"], TokenCache.open(cache_uri)
    save_trained(locate(tmp_path), trained, cache.backbone)
    best, card = load_head(str(tmp_path / "best"), cache.backbone["fingerprint"])
    assert_same(trained.best_head, best.state_dict(), 0)
    assert card.metrics == {"step": trained.best_step, "val_ssr": trained.best_val_ssr, "val_pa": trained.best_val_pa}
    assert card.settings["alpha"] == 0.5 and card.backbone == "memory"
    last, card = load_head(str(tmp_path / "last"))
    assert_same(trained.last_head, last.state_dict(), 0)
    assert card.metrics["step"] == 100 and card.metrics["val_ssr"] == trained.history[-1].val_ssr
    history = read_history((tmp_path / "history.csv").read_bytes())
    assert [row.step for row in history] == list(range(101)) and set(history[5].parts) == {"disc", "rank", "cohesion"}
    assert [row.flat() for row in history[1:]] == [row.flat() for row in trained.history[1:]]


def test_a_worker_that_had_no_room_is_told_from_one_that_failed_otherwise() -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert _is_full(WorkerGroupError("failed", {1: full}))
    assert not _is_full(WorkerGroupError("failed", {0: OSError(errno.EIO, os.strerror(errno.EIO))}))
    assert not _is_full(ray.train.TrainingFailedError("the controller failed"))
