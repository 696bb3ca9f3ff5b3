"""What training minimises: the NearID loss (Eq. 1 to 3 of arXiv 2604.01973), exact under any number of workers.

Axes: B anchors of this worker, P positive slots, K distractor slots, D embedding width, M slots of the pool (the
positives of all workers).

A tuple is an anchor with its positives (other views of the identity) and distractors (other objects in the background
of the identity's views). Slots can be missing; a missing slot is absent from every numerator, denominator and count,
whatever its embedding holds. Logits are cosines divided by the temperature. Averages run over the anchors of the
global batch: each worker adds its part, one all-reduce brings sums and counts together, and the value is the same on
every worker.

An objective is anything that maps (tuples, pool, workers) to a `LossValue`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from nearid_ray.training.pool import Pool, Workers

Reduction = Literal["paper", "pairs"]


@dataclass(frozen=True, kw_only=True)
class EmbeddedTuples:
    """L2-normalised embeddings of this worker's tuples; missing slots may hold anything."""

    anchor_BD: Tensor
    positive_BPD: Tensor
    positive_valid_BP: Tensor
    distractor_BKD: Tensor
    distractor_valid_BK: Tensor

    def __post_init__(self) -> None:
        shapes = {name: tuple(getattr(self, name).shape) for name in self.__dataclass_fields__}
        anchors, width = self.anchor_BD.shape
        positives, distractors = self.positive_valid_BP.shape[-1], self.distractor_valid_BK.shape[-1]
        expected = {
            "anchor_BD": (anchors, width),
            "positive_BPD": (anchors, positives, width),
            "positive_valid_BP": (anchors, positives),
            "distractor_BKD": (anchors, distractors, width),
            "distractor_valid_BK": (anchors, distractors),
        }
        if shapes != expected:
            raise ValueError(f"tuples of shapes {shapes} do not belong together; expected {expected}")
        if self.positive_valid_BP.dtype != torch.bool or self.distractor_valid_BK.dtype != torch.bool:
            raise ValueError("the masks of valid slots must be boolean")


@dataclass(frozen=True, kw_only=True)
class LossValue:
    """The outcome of an objective."""

    loss: Tensor
    """Scalar. Its value is that of the global batch. Its gradients, averaged over the workers as
    DistributedDataParallel does, are those of one process holding the global batch."""
    parts: dict[str, float]
    """The terms before their weights, of the global batch: `disc`, `rank`, `cohesion`."""


class Objective(Protocol):
    """What a training step minimises."""

    def __call__(self, tuples: EmbeddedTuples, pool: Pool, workers: Workers) -> LossValue: ...


@dataclass(frozen=True, kw_only=True)
class NearIdTerms:
    """The loss of every slot, before any average; zero in missing slots."""

    disc_BP: Tensor
    rank_BK: Tensor
    cohesion_B: Tensor


def nearid_terms(tuples: EmbeddedTuples, pool: Pool, temperature: float) -> NearIdTerms:
    """Discrimination, ranking and cohesion of each slot of this worker's tuples.

    For anchor a with pool G, own positives g_p in G, batch negatives N = G without its own, distractors r_k:

        disc_p   = -l(a, g_p) + log( sum over G of exp l(a, g) + sum over k of exp l(a, r_k) )       Eq. 1
        rank_k   = softplus( logsumexp over N of l(a, g) - l(a, r_k) )                               Eq. 2
        cohesion = mean over p of 1 - cos(g_p, normalised sum of the g_p)

    An anchor without batch negatives has rank 0; one with fewer than two positives has cohesion 0.
    """
    anchor_BD = tuples.anchor_BD
    anchors, slots = tuples.positive_valid_BP.shape
    pool_MD = _absent_as_zero(pool.embedding_MD, pool.valid_M)
    distractor_BKD = _absent_as_zero(tuples.distractor_BKD, tuples.distractor_valid_BK)
    pool_logit_BM = anchor_BD @ pool_MD.t() / temperature
    distractor_logit_BK = torch.einsum("bd,bkd->bk", anchor_BD, distractor_BKD) / temperature

    own_BP = pool.own_offset + torch.arange(anchors * slots, device=anchor_BD.device).view(anchors, slots)
    negative_valid_BM = pool.valid_M.expand(anchors, -1).scatter(1, own_BP, False)

    all_logits = torch.cat([pool_logit_BM, distractor_logit_BK], dim=1)
    all_valid = torch.cat([pool.valid_M.expand(anchors, -1), tuples.distractor_valid_BK], dim=1)
    denominator_B = _masked_logsumexp(all_logits, all_valid)
    disc_BP = denominator_B[:, None] - pool_logit_BM.gather(1, own_BP)

    negatives_B = _masked_logsumexp(pool_logit_BM, negative_valid_BM)
    # The default threshold of 20 drops a term of 2e-9.
    rank_BK = functional.softplus(negatives_B[:, None] - distractor_logit_BK, threshold=50)
    rank_valid_BK = tuples.distractor_valid_BK & negative_valid_BM.any(dim=1, keepdim=True)
    return NearIdTerms(
        disc_BP=torch.where(tuples.positive_valid_BP, disc_BP, 0.0),
        rank_BK=torch.where(rank_valid_BK, rank_BK, 0.0),
        cohesion_B=cohesion(tuples.positive_BPD, tuples.positive_valid_BP),
    )


def cohesion(positive_BPD: Tensor, valid_BP: Tensor) -> Tensor:
    """How far each anchor's positives are from their common direction, in 0..2; 0 for fewer than two positives."""
    positive_BPD = _absent_as_zero(positive_BPD, valid_BP)
    prototype_BD = functional.normalize(positive_BPD.sum(dim=1), dim=-1)
    distance_BP = 1.0 - torch.einsum("bpd,bd->bp", positive_BPD, prototype_BD)
    count_B = valid_BP.sum(dim=1)
    mean_B = torch.where(valid_BP, distance_BP, 0.0).sum(dim=1) / count_B.clamp(min=1)
    return torch.where(count_B >= 2, mean_B, 0.0)


@dataclass(frozen=True, kw_only=True)
class NearIdObjective:
    """NearID: discrimination + alpha * ranking + beta * cohesion (Eq. 3; beta is the cohesion variant)."""

    alpha: float = 0.5
    beta: float = 0.0
    temperature: float = 0.07
    reduction: Reduction = "paper"

    def __call__(self, tuples: EmbeddedTuples, pool: Pool, workers: Workers) -> LossValue:
        """The loss of the global batch; see `LossValue` for its gradients.

        reduction "paper": for each slot p the mean over the anchors of the global batch that have it, then the mean
        over the slots that any anchor has; the same over k. "pairs": the mean over all filled slots of the global
        batch. Cohesion: the mean over all anchors. What nothing is valid for is 0, still attached to the graph.
        """
        terms = nearid_terms(tuples, pool, self.temperature)
        everyone_B1 = torch.ones_like(terms.cohesion_B, dtype=torch.bool)[:, None]
        averages = _global_averages(
            [
                (terms.disc_BP, tuples.positive_valid_BP),
                (terms.rank_BK, tuples.distractor_valid_BK),
                (terms.cohesion_B[:, None], everyone_B1),
            ],
            self.reduction,
            workers,
        )
        share, value = tuples.anchor_BD.sum() * 0.0, 0.0
        for average, weight in zip(averages, (1.0, self.alpha, self.beta), strict=True):
            if weight:
                share = share + weight * average.share
                value += weight * average.value
        disc, rank, together = (average.value for average in averages)
        return LossValue(
            loss=workers.with_global_value(share, value),
            parts={"disc": disc, "rank": rank, "cohesion": together},
        )


@dataclass(frozen=True, kw_only=True)
class _Average:
    """One term of the loss: this worker's share of the global average, with gradient, and that average."""

    share: Tensor
    value: float


def _global_averages(terms: Sequence[tuple[Tensor, Tensor]], reduction: Reduction, workers: Workers) -> list[_Average]:
    """Averages of terms (values_BS, valid_BS) over the global batch, by one exchange for all of them."""
    sums = [values_BS.sum(dim=0, dtype=torch.float64) for values_BS, _ in terms]
    counts = [valid_BS.sum(dim=0).double() for _, valid_BS in terms]
    widths = [len(sum_S) for sum_S in sums]
    global_sums, global_counts = workers.sum(torch.stack([torch.cat(sums), torch.cat(counts)])).cpu()
    averages = []
    for sum_S, global_sum_S, count_S in zip(sums, global_sums.split(widths), global_counts.split(widths), strict=True):
        weight_S = _slot_weights(count_S, reduction)
        share = (sum_S * weight_S.to(sum_S.device)).sum()
        averages.append(_Average(share=share, value=float((global_sum_S * weight_S).sum())))
    return averages


def _slot_weights(count_S: Tensor, reduction: Reduction) -> Tensor:
    """What one filled slot of each column weighs in the average, from the global number of filled slots."""
    if reduction == "pairs":
        return (1.0 / count_S.sum().clamp(min=1)).expand_as(count_S)
    used = (count_S > 0).sum().clamp(min=1)
    return 1.0 / (count_S.clamp(min=1) * used)


def _absent_as_zero(embedding: Tensor, valid: Tensor) -> Tensor:
    """Replaces missing embeddings, so that even a not-a-number in them reaches neither values nor gradients."""
    return torch.where(valid[..., None], embedding, 0.0)


def _masked_logsumexp(logit_BN: Tensor, valid_BN: Tensor) -> Tensor:
    """logsumexp over the valid entries of each row; a finite number without meaning where a row has none."""
    any_valid_B1 = valid_BN.any(dim=1, keepdim=True)
    masked_BN = torch.where(valid_BN, logit_BN, float("-inf"))
    return torch.logsumexp(torch.where(any_valid_B1, masked_BN, 0.0), dim=1)
