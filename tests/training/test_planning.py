"""The plan says what training then does."""

from collections.abc import Callable
from typing import Any

import pyarrow as pa

from nearid_ray.models.head import AttentionPoolingHead
from nearid_ray.training.loop import HeadTraining
from nearid_ray.training.planning import described_plan
from nearid_ray.training.settings import TrainSettings, WorkerSettings


def test_the_plan_counts_what_a_training_reads(
    make_index: Callable[..., pa.Table], make_cache: Callable[..., Any]
) -> None:
    views = {f"nearid:{i:02}": 2 + i % 2 for i in range(20)} | {f"mtg:{i}": 2 for i in range(5)}
    cache = make_cache(make_index(views))
    head = AttentionPoolingHead(16, 2, 32)
    settings = TrainSettings(
        global_batch=8, epochs=2, warmup_steps=3, evaluate_every=0, repeats=("mtg=4",), checkpoint_every=0
    )
    other = TrainSettings(**{**vars(settings), "alpha": 2.0})
    third = TrainSettings(**{**vars(settings), "epochs": 1})
    runs = {"a": settings, "b": other, "c": third}
    plan = described_plan(runs, cache, head, WorkerSettings(workers=2))
    assert plan["parameters"]["trainable"] == f"{sum(p.numel() for p in head.parameters()):,} a head"
    assert "alpha=2.0" in plan["heads"]["b"]
    first, second = plan["pass 1 of 2"], plan["pass 2 of 2"]
    assert (first["heads"], second["heads"]) == ("a, b", "c")
    assert first["identities"] == "mtg 5 x 4, nearid 20 (2 views: 15, 3 views: 10)"
    assert (first["samples of an epoch"], first["batches of an epoch"]) == ("40", "5 of 8")
    assert first["steps"].startswith("10 = 2.00 epochs, 3 of them warm-up, never validated")

    training = HeadTraining({"a": head}, cache, {"a": settings})
    pictures = [
        int((training.selection.choose(batch, 0).rows_BS() >= 0).sum()) for batch in training.selection.epoch(0, 8)
    ]
    assert first["pictures a step"] == f"{sum(pictures) / 5:,.0f} of 48 slots"
    step_mib = sum(pictures) / 5 * 2 * 6 * 16 / 2**20
    assert first["bytes read a step"] == f"{step_mib:.1f} MiB, {step_mib / 2:.1f} MiB a worker"
    assert plan["tokens"]["on disk"] == f"{cache.tokens_NTD.nbytes / 2**20:.1f} MiB"
