"""SigLIP's pairwise sigmoid loss over the pool, with ranking.

Axes: B anchors of this worker, P positive slots, K distractor slots, M slots of the pool, C of one chunk.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor
from torch.nn import functional

from nearid_ray.training.objectives.base import (
    EmbeddedTuples,
    GlobalObjective,
    Reduction,
    Term,
    check_choice,
    check_number,
)
from nearid_ray.training.objectives.comparisons import cosines_of_own, masked_logsumexp, over_others
from nearid_ray.training.objectives.nearid import ranking
from nearid_ray.training.pool import Pool, Workers


@dataclass(frozen=True, kw_only=True)
class SigmoidObjective(GlobalObjective):
    """SigLIP + ranking (arXiv 2604.01973, Table 3, row SigLIP + Rank, formula in Table 4; the pairwise sigmoid loss is
    that of arXiv 2303.15343).

    With l = cosine / temperature + bias, an anchor's own positives G_i and batch negatives N_i in the pool, M entries
    in all:

        disc_i     = 1/M ( sum over G_i of softplus(-l(a_i, g)) + sum over N_i of softplus(l(a_i, g)) )
        distractor = softplus(l(a_i, r_ik))
        rank       = softplus( logsumexp over N_i of l(a_i, g) - l(a_i, r_ik) )

    and the loss is the mean of disc over all anchors + that of distractor + alpha * that of rank over the distractors.
    No parameter is learned. An anchor without batch negatives has rank 0 and counts.
    """

    alpha: float = 0.5
    """Weight of the ranking term, 0 or more."""
    temperature: float = 0.07
    """Of the logits, above 0."""
    bias: float = -10.0
    """Added to the logits."""
    reduction: Reduction = "paper"
    """How the terms of distractors are averaged: "paper", each slot over the anchors that have it, then the slots;
    "pairs", all filled slots at once."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("alpha", self.alpha, "a number, 0 or more", isfinite(self.alpha) and self.alpha >= 0)
        check_number("temperature", self.temperature, "a number above 0", 0 < self.temperature < float("inf"))
        check_number("bias", self.bias, "a finite number", isfinite(self.bias))
        check_choice("reduction", self.reduction, ("paper", "pairs"))

    @property
    def parts_names(self) -> tuple[str, ...]:
        return ("disc", "distractor", "rank")

    def terms(self, tuples: EmbeddedTuples, pool: Pool, workers: Workers) -> Sequence[Term]:
        """See `GlobalObjective.terms`."""

        def partial(cosine_BC: Tensor, other_BC: Tensor) -> Tensor:
            logit_BC = self._logit(cosine_BC)
            apart_BC = torch.where(other_BC, functional.softplus(logit_BC, threshold=50), 0.0)
            return torch.stack([apart_BC.sum(dim=1), masked_logsumexp(logit_BC, other_BC)], dim=1)

        apart_NB, logsumexp_NB = over_others(tuples.anchor_BD, pool, partial, self.chunk).unbind(dim=2)
        positive_BP = self._logit(cosines_of_own(tuples.anchor_BD, tuples.positive_BPD))
        distractor_BK = self._logit(cosines_of_own(tuples.anchor_BD, tuples.distractor_BKD))
        together_BP = torch.where(tuples.positive_valid_BP, functional.softplus(-positive_BP, threshold=50), 0.0)
        disc_B1 = (together_BP.sum(dim=1) + apart_NB.sum(dim=0))[:, None] / pool.valid_M.sum().clamp(min=1)
        valid_BK = tuples.distractor_valid_BK
        rank_BK = ranking(torch.logsumexp(logsumexp_NB, dim=0), distractor_BK)
        return [
            Term("disc", disc_B1, torch.ones_like(disc_B1, dtype=torch.bool)),
            Term(
                "distractor",
                torch.where(valid_BK, functional.softplus(distractor_BK, threshold=50), 0.0),
                valid_BK,
                reduction=self.reduction,
            ),
            Term("rank", torch.where(valid_BK, rank_BK, 0.0), valid_BK, self.alpha, self.reduction),
        ]

    def _logit(self, cosine: Tensor) -> Tensor:
        return cosine / self.temperature + self.bias
