"""The NearID loss for training code of any kind, and the names of all objectives in one place.

Axes: B anchors of this worker, P positive slots, K distractor slots, D embedding width.
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

from nearid_ray.training.objectives.base import (
    DEFAULT_CHUNK,
    EmbeddedTuples,
    LossValue,
    Objective,
    Reduction,
    absent_as_zero,
    check_data,
)
from nearid_ray.training.objectives.make import OBJECTIVE_NAMES, ObjectiveName, ObjectiveOptions, make_objective
from nearid_ray.training.objectives.nearid import Mode, NearIdObjective
from nearid_ray.training.pool import Workers, gather_pool

__all__ = [
    "OBJECTIVE_NAMES",
    "EmbeddedTuples",
    "LossValue",
    "Mode",
    "NearIDLoss",
    "NearIDLossOutput",
    "NearIdObjective",
    "Objective",
    "ObjectiveName",
    "ObjectiveOptions",
    "Reduction",
    "check_data",
    "make_objective",
]

_TERMS = {"disc": "discrimination", "rank": "ranking", "cohesion": "cohesion"}


@dataclass(frozen=True, kw_only=True)
class NearIDLossOutput:
    """The outcome of `NearIDLoss`."""

    loss: Tensor
    """Scalar, to call backward on."""
    terms: dict[str, Tensor]
    """"discrimination", "ranking" and "cohesion" before their weights; scalars with gradients like the loss's, so
    detach what is kept."""


class NearIDLoss(nn.Module):
    """NearID on un-normalised embeddings: discrimination + alpha * ranking + beta * cohesion (arXiv 2604.01973).

    Works in one process and in any loop with DistributedDataParallel or gradient averaging of its own: the positives
    of all processes form the pool. Mode "exact": the loss is that of the global batch, the same in every process, and
    the averaged gradients are those of one process that holds all of it; processes may bring different numbers of
    anchors or none, but every one must call. Mode "reference" repeats the released implementation, see
    `NearIdObjective`: the loss is the process's own, and all must bring the same number of anchors.

    Computed in float32, or float64 if the embeddings are, whatever autocast is around.

        loss_of = NearIDLoss(alpha=0.5)
        output = loss_of(head(anchors), head(positives), head(distractors), positive_mask, distractor_mask)
        output.loss.backward()
    """

    def __init__(
        self,
        alpha: float = 0.5,
        beta: float = 0.0,
        temperature: float = 0.07,
        mode: Mode = "exact",
        reduction: Reduction = "paper",
        group: "dist.ProcessGroup | None" = None,
        *,
        chunk: int = DEFAULT_CHUNK,
    ) -> None:
        """Settles the options.

        Args:
            alpha: weight of the ranking term, 0 or more.
            beta: weight of cohesion, 0 or more.
            temperature: what cosines are divided by, above 0.
            mode: "exact" or "reference".
            reduction: "paper" (each slot averaged over the anchors that have it, then the slots) or "pairs" (all
                filled slots at once); of mode "exact".
            group: the processes that train together; None is the default group if there is one, else one process.
            chunk: pool entries handled at once, 1 or more.

        Raises:
            UsageError: an option out of its range; it is a ValueError.
        """
        super().__init__()
        self.objective = NearIdObjective(
            alpha=alpha, beta=beta, temperature=temperature, mode=mode, reduction=reduction, chunk=chunk
        )
        self.group = group

    def extra_repr(self) -> str:
        return repr(self.objective)

    def forward(
        self,
        anchor_BD: Tensor,
        positive_BPD: Tensor,
        distractor_BKD: Tensor | None = None,
        positive_mask_BP: Tensor | None = None,
        distractor_mask_BK: Tensor | None = None,
    ) -> NearIDLossOutput:
        """The loss of the global batch.

        Args:
            anchor_BD: one embedding an anchor.
            positive_BPD: other views of its identity. Missing slots may hold anything, not-a-number too; in mode
                "reference" they must hold embeddings of blank images.
            distractor_BKD: its distractors; None is no distractors.
            positive_mask_BP: which positives are there; None is all.
            distractor_mask_BK: which distractors are there; None is all.

        Raises:
            ValueError: shapes that do not belong together, or unequal numbers of anchors in mode "reference".
        """
        if distractor_BKD is None:
            distractor_BKD = anchor_BD.new_zeros(len(anchor_BD), 0, anchor_BD.shape[1])
        reference = self.objective.reference
        _check_mask("positive_mask_BP", positive_mask_BP, positive_BPD)
        _check_mask("distractor_mask_BK", distractor_mask_BK, distractor_BKD)
        with torch.autocast(anchor_BD.device.type, enabled=False):
            tuples = EmbeddedTuples(
                anchor_BD=_unit(anchor_BD, None, reference),
                positive_BPD=_unit(positive_BPD, positive_mask_BP, reference),
                positive_valid_BP=_mask(positive_mask_BP, positive_BPD),
                distractor_BKD=_unit(distractor_BKD, distractor_mask_BK, reference),
                distractor_valid_BK=_mask(distractor_mask_BK, distractor_BKD),
            )
            workers = Workers.current(self.group)
            tuples, padded_anchors, equal = _of_common_shape(tuples, workers)
            if reference and not equal:
                raise ValueError(
                    f'mode "reference" takes the same number of anchors in every process; this one has '
                    f"{len(anchor_BD)}, the most are {padded_anchors}. Use mode exact"
                )
            pool = gather_pool(tuples.positive_BPD, tuples.positive_valid_BP, workers, padded_anchors)
        value = self.objective(tuples, pool, workers)
        terms = {_TERMS[name]: part for name, part in value.part_tensors.items()}
        return NearIDLossOutput(loss=value.loss, terms=terms)


def _unit(embedding: Tensor, mask: Tensor | None, reference: bool) -> Tensor:
    """Embeddings divided by their length, in float32 at least; missing ones are 0 unless the reference is wanted."""
    embedding = embedding.to(torch.promote_types(embedding.dtype, torch.float32))
    if reference:
        return functional.normalize(embedding, dim=-1, eps=1e-7)
    if mask is not None:
        embedding = absent_as_zero(embedding, mask.bool())
    return functional.normalize(embedding, dim=-1)


def _check_mask(name: str, mask: Tensor | None, embedding: Tensor) -> None:
    if mask is not None and mask.shape != embedding.shape[:2]:
        raise ValueError(
            f"{name} has shape {tuple(mask.shape)}; expected {tuple(embedding.shape[:2])}, one entry an embedding"
        )


def _mask(mask: Tensor | None, embedding: Tensor) -> Tensor:
    if mask is None:
        return torch.ones(embedding.shape[:2], dtype=torch.bool, device=embedding.device)
    return mask.bool()


def _of_common_shape(tuples: EmbeddedTuples, workers: Workers) -> tuple[EmbeddedTuples, int, bool]:
    """Tuples with as many slots as any worker has, those added missing; the most anchors; whether all have as many."""
    anchors, positives = tuples.positive_valid_BP.shape
    distractors = tuples.distractor_valid_BK.shape[1]
    most, minus_least, slots_P, slots_K = workers.all_largest(
        [anchors, -anchors, positives, distractors], tuples.anchor_BD.device
    )
    more_P, more_K = slots_P - positives, slots_K - distractors
    common = EmbeddedTuples(
        anchor_BD=tuples.anchor_BD,
        positive_BPD=functional.pad(tuples.positive_BPD, (0, 0, 0, more_P)),
        positive_valid_BP=functional.pad(tuples.positive_valid_BP, (0, more_P)),
        distractor_BKD=functional.pad(tuples.distractor_BKD, (0, 0, 0, more_K)),
        distractor_valid_BK=functional.pad(tuples.distractor_valid_BK, (0, more_K)),
    )
    return common, most, most == -minus_least
