"""The plan of a training in numbers, before anything is started.

Axes: B samples, S slots, T tokens, D token width, H attention heads.
"""

from collections import Counter
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import numpy as np

from nearid_ray.models.head import AttentionPoolingHead
from nearid_ray.training.loop import HeadTraining
from nearid_ray.training.settings import TrainSettings, WorkerSettings, grouped
from nearid_ray.training.tokens import Cache

_SAMPLED_BATCHES = 5
"""Batches whose filled slots are counted; an epoch has hundreds."""


def described_plan(
    runs: Mapping[str, TrainSettings], cache: Cache, head: AttentionPoolingHead, where: WorkerSettings
) -> dict[str, Any]:
    """What training these runs means, by name, for people to read.

    Raises:
        UsageError: see `HeadTraining`.
    """
    groups = grouped(runs)
    trainable = sum(parameter.numel() for parameter in head.parameters())
    frozen = cache.backbone.get("parameters")
    plan: dict[str, Any] = {
        "heads": {name: repr(settings.make_objective()) for name, settings in runs.items()},
        "parameters": {
            "trainable": f"{trainable:,} a head",
            "frozen": f"{frozen:,} ({cache.backbone['spec']})"
            if frozen
            else f"not recorded in {cache.backbone['spec']}",
        },
        "tokens": _tokens(cache),
    }
    for place, group in enumerate(groups):
        training = HeadTraining({name: deepcopy(head) for name in group}, cache, group)
        plan[f"pass {place + 1} of {len(groups)}" if len(groups) > 1 else "training"] = {
            "heads": ", ".join(group),
            **_data(training),
            **_steps(training),
            **_reading(training, cache, where),
            **_memory(training, cache, head, where),
        }
    return plan


def _tokens(cache: Cache) -> dict[str, str]:
    items = cache.index.num_rows
    item_bytes = 2 * cache.tokens * cache.width
    said = {"items": f"{items:,} of {cache.tokens} x {cache.width}"}
    if cache.disk_bytes:
        return said | {"on disk": gib(cache.disk_bytes)}
    return said | {"on disk": f"0 GiB: computed online; as a cache {gib(items * item_bytes)}"}


def _data(training: HeadTraining) -> dict[str, str]:
    items = training.items
    views_I = (items.view_IV >= 0).sum(axis=1)
    counts = {f"{views} views": int((views_I == views).sum()) for views in np.unique(views_I)}
    sources = Counter(items.sources())
    repeats = training.settings.repeats_by_source()
    said = ", ".join(
        f"{name} {count:,}" + (f" x {repeats[name]}" if name in repeats else "") for name, count in sources.items()
    )
    return {
        "identities": f"{said} ({', '.join(f'{name}: {count:,}' for name, count in counts.items())})",
        "engines": ", ".join(items.engines) or "none",
        "left out": "; ".join(f"{reason}: {count:,}" for reason, count in items.left_out.items()) or "nothing",
    }


def _steps(training: HeadTraining) -> dict[str, str]:
    settings, samples = training.settings, training.selection.samples_per_epoch
    rest = samples % settings.global_batch
    every = f", validated every {settings.evaluate_every}" if settings.evaluate_every else ", never validated"
    return {
        "samples of an epoch": f"{samples:,}",
        "batches of an epoch": f"{training.batches_per_epoch:,} of {settings.global_batch}"
        + (f", the last of {rest}" if rest else ""),
        "steps": f"{training.steps:,} = {training.steps / training.batches_per_epoch:.2f} epochs, "
        f"{settings.warmup_steps} of them warm-up{every}",
    }


def _reading(training: HeadTraining, cache: Cache, where: WorkerSettings) -> dict[str, str]:
    """Bytes that the workers read; blank slots are never read."""
    batches = training.selection.epoch(0, training.settings.global_batch)[:_SAMPLED_BATCHES]
    filled = [int((training.selection.choose(batch, 0).rows_BS() >= 0).sum()) for batch in batches]
    slots = training.settings.global_batch * (1 + training.settings.positives + training.settings.distractor_slots)
    item_bytes = cache.disk_bytes / cache.index.num_rows if cache.disk_bytes else 0
    step_bytes = sum(filled) / len(filled) * item_bytes
    said = (
        f"{gib(step_bytes)}, {gib(step_bytes / where.workers)} a worker" if item_bytes else "0; pictures are embedded"
    )
    return {
        "pictures a step": f"{sum(filled) / len(filled):,.0f} of {slots:,} slots",
        "bytes read a step": said,
        "bytes read in all": gib(step_bytes * training.steps),
    }


def _memory(training: HeadTraining, cache: Cache, head: AttentionPoolingHead, where: WorkerSettings) -> dict[str, str]:
    """The large parts of a worker's memory: tokens, attention weights, head with gradient and optimiser."""
    settings = training.settings
    slots = 1 + settings.positives + settings.distractor_slots
    pictures = -(-settings.global_batch // where.workers) * slots
    heads = len(training.runs)
    batch_bytes = 2 * pictures * cache.tokens * cache.width
    at_once = min(pictures, where.micro_batch or pictures)
    state_bytes = 16 * heads * sum(parameter.numel() for parameter in head.parameters())
    attention_bytes = 4 * at_once * heads * head.heads * (cache.tokens + 2 * cache.width)
    resident_bytes = 0
    if where.resident:
        used = sum(int((rows >= 0).sum()) for rows in (training.items.plain_OA, training.items.masked_OA))
        resident_bytes = 2 * used * cache.tokens * cache.width
    on_device = at_once * 2 * cache.tokens * cache.width + attention_bytes + state_bytes + resident_bytes
    return {
        "memory of a worker": f"host {gib(2 * batch_bytes)} (two batches of tokens), device about {gib(on_device)} "
        f"(tokens, attention, {heads} head(s) with gradient and optimiser; on a CPU both are the host's)",
        "checkpoint": f"{gib(0.75 * state_bytes)}, two are kept",
    }


def gib(size: float) -> str:
    """A size in GiB, or MiB below one.

    >>> gib(3 * 2**30), gib(5 * 2**20)
    ('3.00 GiB', '5.0 MiB')
    """
    return f"{size / 2**30:,.2f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
