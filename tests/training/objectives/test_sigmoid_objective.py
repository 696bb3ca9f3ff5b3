"""SigLIP's sigmoid loss with ranking against explicit loops."""

import pytest
import torch
from torch import Tensor

from nearid_ray.training.losses import EmbeddedTuples
from nearid_ray.training.objectives.sigmoid import SigmoidObjective

ZERO = torch.zeros((), dtype=torch.float64)


def loops(tuples: EmbeddedTuples, objective: SigmoidObjective) -> tuple[Tensor, dict[str, Tensor]]:
    """The formulas of the class, one scalar at a time."""
    anchors, positives = tuples.positive_valid_BP.shape
    distractors = tuples.distractor_valid_BK.shape[1]
    entries = [(j, p) for j in range(anchors) for p in range(positives) if tuples.positive_valid_BP[j, p]]

    def logit(i: int, other: Tensor) -> Tensor:
        return tuples.anchor_BD[i] @ other / objective.temperature + objective.bias

    def cross_entropy(value: Tensor, label: int) -> Tensor:
        return -torch.log(torch.sigmoid(value if label else -value))

    main, apart, ranks = ZERO, {}, {}
    for i in range(anchors):
        for j, p in entries:
            main = main + cross_entropy(logit(i, tuples.positive_BPD[j, p]), int(i == j))
        negatives = [torch.exp(logit(i, tuples.positive_BPD[j, p])) for j, p in entries if j != i]
        for k in range(distractors):
            if tuples.distractor_valid_BK[i, k]:
                own = logit(i, tuples.distractor_BKD[i, k])
                apart[i, k] = cross_entropy(own, 0)
                share = torch.exp(own) / (torch.exp(own) + sum(negatives, ZERO))
                ranks[i, k] = -torch.log(share)

    def average(values: dict[tuple[int, int], Tensor]) -> Tensor:
        if objective.reduction == "pairs":
            return sum(values.values(), ZERO) / max(len(values), 1)
        columns = [[v for (_, slot), v in values.items() if slot == k] for k in range(distractors)]
        means = [sum(column, ZERO) / len(column) for column in columns if column]
        return sum(means, ZERO) / max(len(means), 1)

    parts = {
        "disc": main / max(anchors * len(entries), 1),
        "distractor": average(apart),
        "rank": average(ranks),
    }
    return parts["disc"] + parts["distractor"] + objective.alpha * parts["rank"], parts


@pytest.mark.parametrize("reduction", ["paper", "pairs"])
@pytest.mark.parametrize("bias", [-2.0, -10.0])
def test_loss_parts_and_gradients_equal_explicit_loops(tuples, check_against_loops, bias: float, reduction) -> None:
    objective = SigmoidObjective(alpha=0.8, temperature=0.2, bias=bias, reduction=reduction)
    check_against_loops(objective, tuples, lambda tuples: loops(tuples, objective))
