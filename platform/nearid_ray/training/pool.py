"""The pool of positives over all workers, with gradient, and the sums that make a loss global.

Axes: B anchors of this worker, P positive slots, D embedding width, S = padded slots a worker brings, M = S * workers.

Gradients follow DistributedDataParallel's convention: it averages the parameters' gradients over the workers, so each
worker's share of the loss is multiplied by their number. The gradient that other workers' losses have with respect to
this worker's positives comes back through the gather.
"""

from dataclasses import dataclass, replace
from typing import Self

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import FunctionCtx


@dataclass(frozen=True, kw_only=True)
class Workers:
    """The processes that train together; one alone needs no process group."""

    count: int = 1
    rank: int = 0
    group: "dist.ProcessGroup | None" = None
    """The process group they form; None is the default group."""

    @classmethod
    def current(cls, group: "dist.ProcessGroup | None" = None) -> Self:
        """The workers of a group, the default one if not given; one alone where there is none.

        Raises:
            ValueError: this process is not in the group.
        """
        if not dist.is_available() or not dist.is_initialized():
            return cls()
        rank = dist.get_rank(group)
        if rank < 0:
            raise ValueError("this process does not belong to the process group that was given")
        return cls(count=dist.get_world_size(group), rank=rank, group=group)

    def sum(self, value: Tensor) -> Tensor:
        """The sum of a tensor over all workers, without gradient. Every worker must call it."""
        value = value.detach().clone()
        if self.count > 1:
            dist.all_reduce(value, group=self.group)
        return value

    def largest(self, value: int, device: torch.device) -> int:
        """The largest of the workers' numbers. Every worker must call it."""
        return self.all_largest([value], device)[0]

    def all_largest(self, values: list[int], device: torch.device) -> list[int]:
        """For each place of a list the largest of the workers' numbers. Every worker must call it."""
        if self.count == 1:
            return values
        held = torch.tensor(values, device=device)
        dist.all_reduce(held, op=dist.ReduceOp.MAX, group=self.group)
        return held.tolist()

    def gather(self, block: Tensor) -> Tensor:
        """The workers' blocks, of one shape, stacked in rank order along axis 0; gradients flow to every block."""
        return _Gather.apply(block, self) if self.count > 1 else block

    def with_global_value(self, share: Tensor, value: Tensor | float) -> Tensor:
        """A loss that reads as `value` everywhere and whose gradients, averaged over workers, are the shares' sum."""
        scaled = share * self.count
        return scaled + (value - scaled).detach()

    def part(self, total: int) -> slice:
        """This worker's contiguous part of `total` things; parts differ by one at the most and can be empty."""
        return slice(total * self.rank // self.count, total * (self.rank + 1) // self.count)


@dataclass(frozen=True, kw_only=True)
class Pool:
    """What every worker's anchors are compared with, in rank order.

    Slot p of this worker's anchor i is entry own_offset + i * slots + p.
    """

    embedding_MD: Tensor
    valid_M: Tensor
    own_offset: int
    slots: int
    """Entries an anchor brings, P."""
    anchors_per_worker: int
    """Anchors each worker brings, those added as padding counted."""


def gather_pool(positive_BPD: Tensor, valid_BP: Tensor, workers: Workers, padded_anchors: int | None = None) -> Pool:
    """The positives of all workers, gradients included. Every worker must call it, one without anchors too.

    Args:
        positive_BPD: embeddings of this worker's positives, missing ones anything. With an axis of several heads in
            front the pool's embeddings have it too; they travel together.
        valid_BP: which slots are there.
        workers: the processes that train together.
        padded_anchors: a number of anchors no worker has more of, the same on all of them; when left out it is
            found by one more exchange.

    Raises:
        ValueError: this worker has more than `padded_anchors` anchors.
    """
    anchors, slots, width = positive_BPD.shape[-3:]
    if workers.count > 1 and positive_BPD.ndim == 4:
        wide_BPX = positive_BPD.movedim(0, -2).flatten(-2)
        pool = gather_pool(wide_BPX, valid_BP, workers, padded_anchors)
        return replace(pool, embedding_MD=pool.embedding_MD.unflatten(-1, (-1, width)).movedim(1, 0))
    if workers.count == 1:
        return Pool(
            embedding_MD=positive_BPD.flatten(-3, -2),
            valid_M=valid_BP.flatten(),
            own_offset=0,
            slots=slots,
            anchors_per_worker=anchors,
        )
    if padded_anchors is None:
        padded_anchors = workers.largest(anchors, positive_BPD.device)
    if anchors > padded_anchors:
        raise ValueError(f"{anchors} anchors do not fit into blocks padded to {padded_anchors}")
    # The mask travels as one more column: one exchange instead of two.
    filled = torch.cat([positive_BPD, valid_BP[..., None].to(positive_BPD.dtype)], dim=-1).flatten(0, 1)
    gathered_MD = workers.gather(padded(filled, padded_anchors * slots))
    return Pool(
        embedding_MD=gathered_MD[:, :width],
        valid_M=gathered_MD[:, width].detach() > 0,
        own_offset=workers.rank * padded_anchors * slots,
        slots=slots,
        anchors_per_worker=padded_anchors,
    )


def padded(block: Tensor, rows: int) -> Tensor:
    """The block with zeros added along axis 0 up to a number of rows."""
    return torch.cat([block, block.new_zeros(rows - len(block), *block.shape[1:])])


class _Gather(torch.autograd.Function):
    """all_gather along axis 0; backward sums what all workers' losses want of this worker's block."""

    @staticmethod
    def forward(ctx: FunctionCtx, block: Tensor, workers: Workers) -> Tensor:
        ctx.workers = workers  # type: ignore[attr-defined]
        blocks = [torch.empty_like(block) for _ in range(workers.count)]
        dist.all_gather(blocks, block.detach().contiguous(), group=workers.group)
        return torch.cat(blocks)

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> tuple[Tensor, None]:
        workers: Workers = ctx.workers  # type: ignore[attr-defined]
        gradient = gradients[0].contiguous().clone()
        dist.all_reduce(gradient, group=workers.group)
        rows = len(gradient) // workers.count
        return gradient[workers.rank * rows : (workers.rank + 1) * rows], None
