"""NearID, the paper's own objective, and its variant with cohesion.

Axes: B anchors of this worker, P positive slots, K distractor slots, D embedding width, M slots of the pool.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
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
from nearid_ray.training.objectives.comparisons import cosines_of_own, masked_logsumexp, others_logsumexp
from nearid_ray.training.pool import Pool, Workers

Mode = Literal["exact", "reference"]


@dataclass(frozen=True, kw_only=True)
class NearIdObjective(GlobalObjective):
    """NearID: discrimination + alpha * ranking + beta * cohesion (arXiv 2604.01973, Eq. 1 to 3; Table 3, rows NearID
    and NearID + cohesion; alpha is varied in Table 8, beta in Table 9).

    For anchor a with pool G (all workers' positives), own positives g_p in G, batch negatives N = G without its own,
    distractors r_k, and l = cosine / temperature:

        disc_p   = -l(a, g_p) + log( sum over G of exp l(a, g) + sum over k of exp l(a, r_k) )       Eq. 1
        rank_k   = softplus( logsumexp over N of l(a, g) - l(a, r_k) )                               Eq. 2
        cohesion = mean over p of 1 - cos(g_p, normalised sum of the g_p)

    mode "exact": missing slots are absent everywhere, averages are those of the global batch. An anchor without batch
    negatives has rank 0, one with fewer than two positives cohesion 0; both count. mode "reference" does what the
    released code does: missing slots are left out of the averages alone, their embeddings (of blank images) stay in
    every denominator and in the pool; averages are each worker's own, and so is the value. `disc` averages the slots
    that any anchor has, `rank` all filled slots, `cohesion` divides by all filled positive slots.
    """

    alpha: float = 0.5
    """Weight of the ranking term, 0 or more."""
    beta: float = 0.0
    """Weight of cohesion, 0 or more."""
    temperature: float = 0.07
    """Of the logits, above 0."""
    reduction: Reduction = "paper"
    """"paper": the mean of each slot over the anchors that have it, then over the slots; "pairs": the mean over all
    filled slots, which weighs rarely filled slots less. The reference mode has its own."""
    mode: Mode = "exact"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("alpha", self.alpha, "a number, 0 or more", isfinite(self.alpha) and self.alpha >= 0)
        check_number("beta", self.beta, "a number, 0 or more", isfinite(self.beta) and self.beta >= 0)
        check_number("temperature", self.temperature, "a number above 0", 0 < self.temperature < float("inf"))
        check_choice("reduction", self.reduction, ("paper", "pairs"))
        check_choice("mode", self.mode, ("exact", "reference"))

    @property
    def reference(self) -> bool:
        return self.mode == "reference"

    @property
    def parts_names(self) -> tuple[str, ...]:
        return ("disc", "rank", "cohesion")

    @property
    def alike(self) -> Hashable:
        # The reference mode averages each worker's own batch.
        return None if self.reference else replace(self, alpha=0.0, beta=0.0)

    @property
    def weights(self) -> tuple[float, ...]:
        return (1.0, self.alpha, self.beta)

    def terms(self, tuples: EmbeddedTuples, pool: Pool, workers: Workers) -> Sequence[Term]:
        """See `GlobalObjective.terms`.

        Raises:
            ValueError: reference mode, and the workers do not have the same number of anchors.
        """
        positive_BP, distractor_BK = tuples.positive_valid_BP, tuples.distractor_valid_BK
        cohesion_BP = cohesion(tuples.positive_BPD, positive_BP)
        if self.reference:
            if pool.anchors_per_worker != len(tuples.anchor_BD):
                raise ValueError(
                    f"mode reference takes workers with the same number of anchors; this one has "
                    f"{len(tuples.anchor_BD)}, another {pool.anchors_per_worker}. Use mode exact"
                )
            everything = replace(
                tuples,
                positive_valid_BP=torch.ones_like(positive_BP),
                distractor_valid_BK=torch.ones_like(distractor_BK),
            )
            blanks_too = replace(pool, valid_M=torch.ones_like(pool.valid_M))
            disc_BP, rank_BK = disc_and_rank(everything, blanks_too, self.temperature, self.chunk)
            return [
                Term("disc", torch.where(positive_BP, disc_BP, 0.0), positive_BP, reduction="paper"),
                Term("rank", torch.where(distractor_BK, rank_BK, 0.0), distractor_BK, self.alpha),
                Term("cohesion", cohesion_BP, positive_BP, self.beta),
            ]
        disc_BP, rank_BK = disc_and_rank(tuples, pool, self.temperature, self.chunk)
        mean_B1 = cohesion_BP.sum(dim=-1, keepdim=True) / positive_BP.sum(dim=1, keepdim=True).clamp(min=1)
        return [
            Term("disc", disc_BP, positive_BP, reduction=self.reduction),
            Term("rank", rank_BK, distractor_BK, self.alpha, self.reduction),
            Term("cohesion", mean_B1, torch.ones_like(positive_BP[:, :1]), self.beta),
        ]


def disc_and_rank(tuples: EmbeddedTuples, pool: Pool, temperature: float, chunk: int) -> tuple[Tensor, Tensor]:
    """Eq. 1 of each positive slot (B, P) and Eq. 2 of each distractor slot (B, K); zero in missing slots.

    See `NearIdObjective` for the formulas.
    """
    positive_BP = cosines_of_own(tuples.anchor_BD, tuples.positive_BPD) / temperature
    distractor_BK = cosines_of_own(tuples.anchor_BD, tuples.distractor_BKD) / temperature
    others_B = others_logsumexp(tuples.anchor_BD, pool, temperature, chunk)
    own_valid_BS = torch.cat([tuples.positive_valid_BP, tuples.distractor_valid_BK], dim=1)
    own_B = masked_logsumexp(torch.cat([positive_BP, distractor_BK], dim=-1), own_valid_BS)
    disc_BP = torch.logaddexp(others_B, own_B)[..., None] - positive_BP
    rank_BK = ranking(others_B, distractor_BK)
    return (
        torch.where(tuples.positive_valid_BP, disc_BP, 0.0),
        torch.where(tuples.distractor_valid_BK, rank_BK, 0.0),
    )


def ranking(others_B: Tensor, distractor_BK: Tensor) -> Tensor:
    """softplus(logsumexp of the batch negatives' logits - the distractor's logit); 0 without batch negatives."""
    # The default threshold of 20 drops a term of 2e-9.
    return functional.softplus(others_B[..., None] - distractor_BK, threshold=50)


def cohesion(positive_BPD: Tensor, valid_BP: Tensor) -> Tensor:
    """How far each positive is from the direction its anchor's positives have in common, in 0..2.

    0 in missing slots and for anchors with fewer than two positives.
    """
    count_B1 = valid_BP.sum(dim=1, keepdim=True)
    mean_BD = (positive_BPD * valid_BP[..., None]).sum(dim=-2) / count_B1.clamp(min=1)
    distance_BP = 1.0 - cosines_of_own(functional.normalize(mean_BD, dim=-1, eps=1e-7), positive_BPD)
    return torch.where(valid_BP & (count_B1 >= 2), distance_BP, 0.0)
