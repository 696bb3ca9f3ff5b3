"""Similarities of anchors with the pool: in one piece where it is small, in chunks where it is large.

Axes: B anchors (or other rows) of this worker, P slots an anchor brings to the pool, K distractor slots, D embedding
width, M entries of the pool, C entries of one chunk, R results of a row, N chunks. Embeddings, and all that is made of
them, may have axes for several heads in front; what is there and what belongs to whom is the same for all of them.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.utils.checkpoint import checkpoint

from nearid_ray.training.pool import Pool

NOTHING = -1e30
"""Stands for the logarithm of 0: finite, so that gradients are 0 instead of not-a-number, and in reach of float32."""

Partial = Callable[[Tensor, Tensor], Tensor]
"""Results (B, R) of some entries from their cosines (B, C) and which of them belong to others and are there (B, C)."""


def dot(left_ID: Tensor, right_JD: Tensor) -> Tensor:
    """Inner products of all rows, left @ right^T, batched; in the embeddings' precision, gradients included."""
    return _Dot.apply(left_ID, right_JD)


def cosines_of_own(anchor_BD: Tensor, own_BSD: Tensor) -> Tensor:
    """Cosine of each anchor with each of its own slots, (B, S)."""
    return dot(anchor_BD[..., None, :], own_BSD)[..., 0, :]


def over_others(row_BD: Tensor, pool: Pool, partial: Partial, chunk: int) -> Tensor:
    """What `partial` makes of each chunk of the pool, (N, B, R); row i's own entries do not count.

    A pool of one chunk is done directly. Otherwise a chunk's cosines are given up after use and computed again for
    the gradient, so that memory grows with B x chunk and not with B x M.

    Args:
        row_BD: embeddings, normalised; row i belongs to this worker's anchor i.
        pool: what they are compared with.
        partial: must not keep what it was given.
        chunk: entries handled at once.
    """
    own_start_B1 = pool.own_offset + pool.slots * torch.arange(row_BD.shape[-2], device=row_BD.device)[:, None]

    def of_chunk(entry_CD: Tensor, valid_C: Tensor, start: int) -> Tensor:
        place_C = torch.arange(start, start + len(valid_C), device=row_BD.device)
        own_BC = (place_C >= own_start_B1) & (place_C < own_start_B1 + pool.slots)
        return partial(dot(row_BD, entry_CD), valid_C & ~own_BC)

    if len(pool.valid_M) <= chunk:
        return of_chunk(pool.embedding_MD, pool.valid_M, 0)[None]
    results, start = [], 0
    # split, not slices: its backward writes the pool's gradient once, slices would write all of it for each chunk.
    for entry_CD, valid_C in zip(pool.embedding_MD.split(chunk, dim=-2), pool.valid_M.split(chunk), strict=True):
        results.append(
            checkpoint(of_chunk, entry_CD, valid_C, start, use_reentrant=False, preserve_rng_state=False)
            if torch.is_grad_enabled()
            else of_chunk(entry_CD, valid_C, start)
        )
        start += chunk
    return torch.stack(results)


def others_logsumexp(row_BD: Tensor, pool: Pool, temperature: float, chunk: int) -> Tensor:
    """log of the sum of exp(cosine / temperature) over others' entries, (B,); NOTHING or less where there are none."""

    def partial(cosine_BC: Tensor, other_BC: Tensor) -> Tensor:
        return masked_logsumexp(cosine_BC / temperature, other_BC)[..., None]

    return torch.logsumexp(over_others(row_BD, pool, partial, chunk), dim=0)[..., 0]


def others_count(rows: int, pool: Pool) -> Tensor:
    """How many entries of others each row of this worker is compared with, (B,)."""
    own_M = pool.valid_M[pool.own_offset : pool.own_offset + rows * pool.slots]
    return pool.valid_M.sum() - own_M.view(rows, pool.slots).sum(dim=1)


def masked_logsumexp(logit_BN: Tensor, valid_BN: Tensor) -> Tensor:
    """logsumexp over the valid entries of each row; about NOTHING, with gradients of zero, where a row has none."""
    if not logit_BN.shape[-1]:
        return logit_BN.new_full(logit_BN.shape[:-1], NOTHING)
    return torch.logsumexp(torch.where(valid_BN, logit_BN, NOTHING), dim=-1)


class _Dot(torch.autograd.Function):
    """Matrix product whose backward keeps its precision, even when it runs inside autocast."""

    @staticmethod
    def forward(ctx: FunctionCtx, left: Tensor, right: Tensor) -> Tensor:
        ctx.save_for_backward(left, right)
        with torch.autocast(left.device.type, enabled=False):
            return left @ right.mT

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None]:
        left, right = ctx.saved_tensors
        with torch.autocast(left.device.type, enabled=False):
            return (
                gradients[0] @ right if ctx.needs_input_grad[0] else None,
                gradients[0].mT @ left if ctx.needs_input_grad[1] else None,
            )
