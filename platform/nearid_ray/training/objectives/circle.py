"""Circle loss with ranking by a hinge.

Axes: B anchors of this worker, P positive slots, K distractor slots, M slots of the pool, C of one chunk, N chunks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Literal

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
from nearid_ray.training.objectives.comparisons import (
    NOTHING,
    cosines_of_own,
    masked_logsumexp,
    others_count,
    over_others,
)
from nearid_ray.training.pool import Pool, Workers

Hinge = Literal["largest", "mean"]


@dataclass(frozen=True, kw_only=True)
class CircleObjective(GlobalObjective):
    """Circle loss + ranking (arXiv 2604.01973, Table 3, row Circle + Rank, formula in Table 4; circle loss is that of
    arXiv 2002.10857, its weights w taken as constants).

    With cosines s, own positives G_i, batch negatives N_i of the pool and distractors r_ik:

        disc_i = softplus( logsumexp over N_i and the r_ik of gamma w_n (s_n - m)
                         + logsumexp over G_i of gamma w_p (1 - m - s_p) )
        w_n = [s_n + m]_+,  w_p = [1 + m - s_p]_+

        rank_ik = [ max over N_i of s_b - s(a_i, r_ik) + m ]_+            hinge "largest", the paper's Table 4
        rank_ik = mean over N_i of [ s_b - s(a_i, r_ik) + m ]_+           hinge "mean", as in the released code

    and the loss is the mean of disc over the anchors with a positive + alpha * the mean of rank over the distractors.
    Without any negative disc is 0, without batch negatives rank is 0; both count.
    """

    alpha: float = 0.5
    """Weight of the ranking term, 0 or more."""
    margin: float = 0.25
    """m, a cosine, 0 to 1: positives should reach 1 - m, negatives m, and distractors m above the batch negatives."""
    gamma: float = 64.0
    """Scale of the logits, above 0."""
    hinge: Hinge = "largest"
    """What a distractor is compared with: the largest batch negative, or all of them, averaged."""
    reduction: Reduction = "paper"
    """How the ranking term is averaged: "paper", each slot over the anchors that have it, then the slots; "pairs", all
    filled slots at once."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("alpha", self.alpha, "a number, 0 or more", isfinite(self.alpha) and self.alpha >= 0)
        check_number("margin", self.margin, "a cosine, 0 to 1", 0 <= self.margin <= 1)
        check_number("gamma", self.gamma, "a number above 0", 0 < self.gamma < float("inf"))
        check_choice("hinge", self.hinge, ("largest", "mean"))
        check_choice("reduction", self.reduction, ("paper", "pairs"))

    @property
    def parts_names(self) -> tuple[str, ...]:
        return ("disc", "rank")

    def terms(self, tuples: EmbeddedTuples, pool: Pool, workers: Workers) -> Sequence[Term]:
        """See `GlobalObjective.terms`."""
        positive_BP = cosines_of_own(tuples.anchor_BD, tuples.positive_BPD)
        distractor_BK = cosines_of_own(tuples.anchor_BD, tuples.distractor_BKD)

        def partial(cosine_BC: Tensor, other_BC: Tensor) -> Tensor:
            apart_B = masked_logsumexp(self._negative_logit(cosine_BC), other_BC)
            if self.hinge == "largest":
                compared_BK = [_largest(cosine_BC, other_BC)]
            else:
                compared_BK = [
                    torch.where(other_BC, functional.relu(cosine_BC - distractor_B[:, None] + self.margin), 0.0).sum(1)
                    for distractor_B in distractor_BK.unbind(dim=1)
                ]
            return torch.stack([apart_B, *compared_BK], dim=1)

        found_NBR = over_others(tuples.anchor_BD, pool, partial, self.chunk)
        distractors_B = masked_logsumexp(self._negative_logit(distractor_BK), tuples.distractor_valid_BK)
        negative_B = torch.logaddexp(torch.logsumexp(found_NBR[:, :, 0], dim=0), distractors_B)
        weight_BP = functional.relu(1.0 + self.margin - positive_BP.detach())
        positive_logit_BP = self.gamma * weight_BP * (1.0 - self.margin - positive_BP)
        together_B = masked_logsumexp(positive_logit_BP, tuples.positive_valid_BP)
        disc_B1 = functional.softplus(negative_B + together_B, threshold=50)[:, None]
        has_positive_B1 = tuples.positive_valid_BP.any(dim=1, keepdim=True)

        if self.hinge == "largest":
            largest_B1 = found_NBR[:, :, 1].amax(dim=0)[:, None]
            rank_BK = functional.relu(largest_B1 - distractor_BK + self.margin)
        else:
            count_B1 = others_count(len(tuples.anchor_BD), pool)[:, None]
            rank_BK = found_NBR[:, :, 1:].sum(dim=0) / count_B1.clamp(min=1)
        valid_BK = tuples.distractor_valid_BK
        return [
            Term("disc", torch.where(has_positive_B1, disc_B1, 0.0), has_positive_B1),
            Term("rank", torch.where(valid_BK, rank_BK, 0.0), valid_BK, self.alpha, self.reduction),
        ]

    def _negative_logit(self, cosine: Tensor) -> Tensor:
        return self.gamma * functional.relu(cosine.detach() + self.margin) * (cosine - self.margin)


def _largest(cosine_BC: Tensor, valid_BC: Tensor) -> Tensor:
    """The largest valid cosine of each row, (B,); NOTHING where there is none."""
    if not cosine_BC.shape[1]:
        return cosine_BC.new_full((len(cosine_BC),), NOTHING)
    return torch.where(valid_BC, cosine_BC, NOTHING).amax(dim=1)
