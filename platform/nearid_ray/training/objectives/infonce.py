"""InfoNCE with one positive an anchor, with or without distractors as negatives and ranking by an oracle.

Axes: B anchors of this worker, A anchors of all workers (padded), P positive slots, K distractor slots, D embedding
width, M = A * P slots of the pool, S pairs of distractor slots.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isfinite

import torch
from torch import Tensor
from torch.nn import functional

from nearid_ray.training.objectives.base import (
    EmbeddedTuples,
    GlobalObjective,
    Need,
    Term,
    check_number,
    ordered_pairs,
)
from nearid_ray.training.objectives.comparisons import cosines_of_own, masked_logsumexp, others_logsumexp
from nearid_ray.training.pool import Pool, Workers, padded


@dataclass(frozen=True, kw_only=True)
class InfoNceObjective(GlobalObjective):
    """Symmetric InfoNCE over the global batch, one positive an anchor (arXiv 2604.01973, Table 3, the four InfoNCE
    rows; Table 10 takes the first as its base).

    Of each anchor a_i with a positive, one is drawn, g_i. With l = cosine / temperature, over the anchors with a
    positive of all workers:

        disc_i = 1/2 ( -l(a_i, g_i) + log( sum over j of exp l(a_i, g_j) + X(a_i) ) )
               + 1/2 ( -l(a_i, g_i) + log( sum over j of exp l(a_j, g_i) + X(g_i) ) )

    averaged over them. `distractors` adds the anchor's own ones as negatives in both directions,
    X(v) = sum over k of exp l(v, r_ik); otherwise X = 0. `oracle` adds alpha times

        oracle = softplus( margin - (cos(a, r_k) - cos(a, r_m)) )  where the oracle finds r_k more alike than r_m,

    averaged over all such pairs of an anchor's distractors of the global batch. An anchor alone has disc 0.
    """

    distractors: bool = False
    """Whether distractors are negatives."""
    oracle: bool = False
    """Whether distractors are ranked by an oracle."""
    temperature: float = 0.07
    """Of the logits, above 0."""
    alpha: float = 1.0
    """Weight of the ranking by the oracle, 0 or more; not published."""
    margin: float = 0.05
    """By how much cosines should differ, 0 to 2."""

    @property
    def parts_names(self) -> tuple[str, ...]:
        return ("disc", "oracle") if self.oracle else ("disc",)

    @property
    def needs(self) -> frozenset[Need]:
        needed: dict[Need, bool] = {"distractors": self.distractors or self.oracle, "oracle": self.oracle}
        return frozenset(need for need, is_needed in needed.items() if is_needed)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("temperature", self.temperature, "a number above 0", 0 < self.temperature < float("inf"))
        check_number("alpha", self.alpha, "a number, 0 or more", isfinite(self.alpha) and self.alpha >= 0)
        check_number("margin", self.margin, "a cosine difference, 0 to 2", 0 <= self.margin <= 2)

    def terms(self, tuples: EmbeddedTuples, pool: Pool, workers: Workers) -> Sequence[Term]:
        """See `GlobalObjective.terms`."""
        drawn_BP = drawn_positive(tuples.positive_valid_BP, tuples.draw_B)
        valid_B1 = drawn_BP.any(dim=1, keepdim=True)
        partner_BD = torch.where(drawn_BP[..., None], tuples.positive_BPD, 0.0).sum(dim=1)
        partners, anchors = _pools_of_drawn(tuples.anchor_BD, drawn_BP, pool, workers)
        own_B1 = cosines_of_own(tuples.anchor_BD, partner_BD[:, None]) / self.temperature
        disc_B1 = 0.5 * (
            self._against(tuples.anchor_BD, own_B1, partners, tuples)
            + self._against(partner_BD, own_B1, anchors, tuples)
        )
        terms = [Term("disc", torch.where(valid_B1, disc_B1, 0.0), valid_B1)]
        if self.oracle:
            terms.append(self._ranking(tuples))
        return terms

    def _against(self, row_BD: Tensor, own_B1: Tensor, pool: Pool, tuples: EmbeddedTuples) -> Tensor:
        """-log of the softmax at the own entry, (B, 1)."""
        others_B1 = others_logsumexp(row_BD, pool, self.temperature, self.chunk)[:, None]
        denominator_B1 = torch.logaddexp(others_B1, own_B1)
        if self.distractors and tuples.distractor_valid_BK.shape[1]:
            distractor_BK = cosines_of_own(row_BD, tuples.distractor_BKD) / self.temperature
            distractor_B = masked_logsumexp(distractor_BK, tuples.distractor_valid_BK)
            denominator_B1 = torch.logaddexp(denominator_B1, distractor_B[:, None])
        return denominator_B1 - own_B1

    def _ranking(self, tuples: EmbeddedTuples) -> Term:
        first_S, second_S, order_BS = ordered_pairs(tuples)
        cosine_BK = cosines_of_own(tuples.anchor_BD, tuples.distractor_BKD)
        gap_BS = order_BS * (cosine_BK[:, first_S] - cosine_BK[:, second_S])
        valid_BS = order_BS != 0
        return Term(
            "oracle", torch.where(valid_BS, functional.softplus(self.margin - gap_BS), 0.0), valid_BS, self.alpha
        )


def drawn_positive(valid_BP: Tensor, draw_B: Tensor | None) -> Tensor:
    """Which slot of each anchor is its one positive: True at one valid slot, nowhere for anchors without any.

    Uniform among the valid slots if the draws are uniform in [0, 1); the first one without draws.
    """
    count_B = valid_BP.sum(dim=1)
    place_B = torch.zeros_like(count_B)
    if draw_B is not None:
        # A draw that rounds to 1 takes the last.
        place_B = torch.minimum((draw_B * count_B).long(), (count_B - 1).clamp(min=0))
    return valid_BP & (valid_BP.cumsum(dim=1) - 1 == place_B[:, None])


def _pools_of_drawn(anchor_BD: Tensor, drawn_BP: Tensor, pool: Pool, workers: Workers) -> tuple[Pool, Pool]:
    """The pool reduced to the drawn positives, and the pool of the anchors that have one."""
    width = anchor_BD.shape[1]
    block = torch.cat([anchor_BD, drawn_BP.to(anchor_BD.dtype)], dim=1)
    gathered_AX = workers.gather(padded(block, pool.anchors_per_worker))
    drawn_AP = gathered_AX[:, width:].detach() > 0
    anchors = Pool(
        embedding_MD=gathered_AX[:, :width],
        valid_M=drawn_AP.any(dim=1),
        own_offset=workers.rank * pool.anchors_per_worker,
        slots=1,
        anchors_per_worker=pool.anchors_per_worker,
    )
    return replace(pool, valid_M=drawn_AP.flatten()), anchors
