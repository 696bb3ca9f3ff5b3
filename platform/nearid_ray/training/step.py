"""One training step over a stack of heads: embed the filled slots, take each head's loss, bring gradients back.

Axes: B anchors of this worker, S slots of a sample (anchor, P positives, K distractors), N pictures, T tokens, D token
width, R heads of the stack.

A batch can be too large to embed at once with gradients. It is then embedded in parts without any, the losses see the
whole pool, and the parts are embedded once more to bring the losses' gradients back to the head: the gradients are
those of the whole batch, for one more pass through the head.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from nearid_ray.training.losses import EmbeddedTuples, LossValue, Objective
from nearid_ray.training.objectives.base import stacked_values
from nearid_ray.training.pool import Workers, gather_pool

Precision = Literal["fp32", "bf16", "fp16"]

_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class StepBatch:
    """What the head reads for this worker's samples."""

    tokens_NTD: Tensor
    """Tokens of the filled slots, and behind them, where `blank`, those of a blank picture."""
    valid_BS: Tensor
    """Which slots are filled, in the order of N; on the device of the head."""
    positives: int
    """Positive slots P; slot 0 is the anchor, the distractors come last."""
    padded_anchors: int
    """A number of anchors that no worker has more of."""
    oracle_BK: Tensor | None = None
    """How alike each distractor is to the anchor's object; not a number where nothing says so."""
    draw_B: Tensor | None = None
    """A uniform number for each anchor, for objectives that take one of its positives."""
    blank: bool = False
    """Whether empty slots hold the embedding of the blank picture instead of zeros (the released implementation)."""


def backward_step(
    stack: nn.Module,
    batch: StepBatch,
    objectives: Sequence[Objective],
    workers: Workers,
    *,
    precision: Precision = "fp32",
    micro_batch: int = 0,
    scales: Sequence[Tensor | float] = (),
) -> list[LossValue]:
    """The losses of one step; their gradients are added to the parameters of the stack.

    Every worker must call it, one without samples too.

    Args:
        stack: a `HeadStack`, possibly wrapped in DistributedDataParallel.
        batch: what this worker reads.
        objectives: one for each head.
        workers: the processes that train together.
        precision: what the heads compute in; losses are float32 at least.
        micro_batch: pictures that are embedded at a time; 0 embeds all at once.
        scales: what each loss is multiplied by before its gradient is taken; 1 when left out.
    """
    scales = scales or [1.0] * len(objectives)
    pictures = len(batch.tokens_NTD)
    if not micro_batch or pictures <= micro_batch:
        embedding_RND = embedded(stack, batch.tokens_NTD, precision, batch.valid_BS.device)
        values = losses(embedding_RND, batch, objectives, workers)
        _scaled_sum(values, scales).backward()
        return values
    with torch.no_grad():
        parts = [embedded(stack, part, precision, batch.valid_BS.device) for part in _parts(batch, micro_batch)]
    leaf_RND = torch.cat(parts, dim=1).requires_grad_()
    values = losses(leaf_RND, batch, objectives, workers)
    _scaled_sum(values, scales).backward()
    assert leaf_RND.grad is not None
    start = 0
    for part in _parts(batch, micro_batch):
        last = start + len(part) == pictures
        with nullcontext() if last else _without_exchange(stack):
            again_RND = embedded(stack, part, precision, batch.valid_BS.device)
            again_RND.backward(leaf_RND.grad[:, start : start + len(part)])
        start += len(part)
    return values


def embedded(stack: nn.Module, tokens_NTD: Tensor, precision: Precision, device: torch.device) -> Tensor:
    """embedding_RND, of length 1, in float32 at least."""
    with computing(precision, device):
        embedding_RND = stack(tokens_NTD.to(device, non_blocking=True))
    # float64 heads stay float64; half precision goes up.
    embedding_RND = embedding_RND.to(torch.promote_types(embedding_RND.dtype, torch.float32))
    return functional.normalize(embedding_RND, dim=-1)


def losses(
    embedding_RND: Tensor, batch: StepBatch, objectives: Sequence[Objective], workers: Workers
) -> list[LossValue]:
    """Each head's loss of the global batch."""
    values: dict[int, LossValue] = {}
    for places in _alike(objectives):
        own = [objectives[place] for place in places]
        stacked = len(places) > 1
        embedding = embedding_RND[places] if stacked else embedding_RND[places[0]]
        tuples = _tuples(embedding, batch)
        pool = gather_pool(tuples.positive_BPD, tuples.positive_valid_BP, workers, batch.padded_anchors)
        found = stacked_values(own, tuples, pool, workers) if stacked else [own[0](tuples, pool, workers)]  # type: ignore[arg-type]
        values |= dict(zip(places, found, strict=True))
    return [values[place] for place in range(len(objectives))]


def _alike(objectives: Sequence[Objective]) -> list[list[int]]:
    """Places of objectives that one pass over a stack of embeddings can serve."""
    groups: dict[Any, list[int]] = {}
    for place, objective in enumerate(objectives):
        key = getattr(objective, "alike", None)
        groups.setdefault(place if key is None else key, []).append(place)
    return list(groups.values())


def computing(precision: Precision, device: torch.device) -> AbstractContextManager[Any]:
    """The autocast of a precision."""
    return torch.autocast(device.type, _TYPES[precision]) if precision in _TYPES else nullcontext()


def _tuples(embedding_ND: Tensor, batch: StepBatch) -> EmbeddedTuples:
    """Embeddings in their slots; with an axis of several heads in front where the embeddings have one."""
    valid_BS, first_distractor = batch.valid_BS, 1 + batch.positives
    embedding_BSD = _in_slots(embedding_ND, valid_BS, batch.blank)
    return EmbeddedTuples(
        anchor_BD=embedding_BSD[..., 0, :],
        positive_BPD=embedding_BSD[..., 1:first_distractor, :],
        positive_valid_BP=valid_BS[:, 1:first_distractor],
        distractor_BKD=embedding_BSD[..., first_distractor:, :],
        distractor_valid_BK=valid_BS[:, first_distractor:],
        oracle_BK=batch.oracle_BK,
        draw_B=batch.draw_B,
    )


def _in_slots(embedding_ND: Tensor, valid_BS: Tensor, blank: bool) -> Tensor:
    """Embeddings of the filled slots at their places; zeros, or the last embedding, elsewhere."""
    samples, slots = valid_BS.shape
    filled = valid_BS.flatten().nonzero()[:, 0]
    if blank:
        place = torch.full((samples * slots,), embedding_ND.shape[-2] - 1, device=valid_BS.device)
        place[filled] = torch.arange(len(filled), device=valid_BS.device)
        return embedding_ND[..., place, :].unflatten(-2, (samples, slots))
    flat = embedding_ND.new_zeros(*embedding_ND.shape[:-2], samples * slots, embedding_ND.shape[-1])
    return flat.index_copy(-2, filled, embedding_ND).unflatten(-2, (samples, slots))


def _parts(batch: StepBatch, micro_batch: int) -> Iterator[Tensor]:
    return iter(batch.tokens_NTD.split(micro_batch))


def _scaled_sum(values: Sequence[LossValue], scales: Sequence[Tensor | float]) -> Tensor:
    return torch.stack([value.loss * scale for value, scale in zip(values, scales, strict=True)]).sum()


def _without_exchange(stack: nn.Module) -> AbstractContextManager[Any]:
    return stack.no_sync() if isinstance(stack, DistributedDataParallel) else nullcontext()
