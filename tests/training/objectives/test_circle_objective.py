"""Circle loss with ranking by a hinge, in both forms, against explicit loops."""

import pytest
import torch
from torch import Tensor

from nearid_ray.training.losses import EmbeddedTuples
from nearid_ray.training.objectives.circle import CircleObjective

ZERO = torch.zeros((), dtype=torch.float64)


def loops(tuples: EmbeddedTuples, objective: CircleObjective) -> tuple[Tensor, dict[str, Tensor]]:
    """The formulas of the class, one scalar at a time."""
    anchors, positives = tuples.positive_valid_BP.shape
    distractors = tuples.distractor_valid_BK.shape[1]
    margin, gamma = objective.margin, objective.gamma
    discs, ranks = [], {}
    for i in range(anchors):
        own = [tuples.anchor_BD[i] @ tuples.positive_BPD[i, p] for p in range(positives) if present(tuples, i, p)]
        batch = [
            tuples.anchor_BD[i] @ tuples.positive_BPD[j, p]
            for j in range(anchors)
            for p in range(positives)
            if j != i and present(tuples, j, p)
        ]
        mine = {
            k: tuples.anchor_BD[i] @ tuples.distractor_BKD[i, k]
            for k in range(distractors)
            if tuples.distractor_valid_BK[i, k]
        }
        pull = sum((torch.exp(gamma * max(1 + margin - s.item(), 0) * (1 - margin - s)) for s in own), ZERO)
        push = sum(
            (torch.exp(gamma * max(s.item() + margin, 0) * (s - margin)) for s in [*batch, *mine.values()]), ZERO
        )
        if own:
            discs.append(torch.log(1 + pull * push))
        for k, cosine in mine.items():
            if not batch:
                ranks[i, k] = ZERO
            elif objective.hinge == "largest":
                largest = max(batch, key=lambda value: value.item())
                ranks[i, k] = torch.clamp(largest - cosine + margin, min=0)
            else:
                ranks[i, k] = sum((torch.clamp(s - cosine + margin, min=0) for s in batch), ZERO) / len(batch)

    def average(values: dict[tuple[int, int], Tensor]) -> Tensor:
        if objective.reduction == "pairs":
            return sum(values.values(), ZERO) / max(len(values), 1)
        columns = [[v for (_, slot), v in values.items() if slot == k] for k in range(distractors)]
        means = [sum(column, ZERO) / len(column) for column in columns if column]
        return sum(means, ZERO) / max(len(means), 1)

    parts = {"disc": sum(discs, ZERO) / max(len(discs), 1), "rank": average(ranks)}
    return parts["disc"] + objective.alpha * parts["rank"], parts


def present(tuples: EmbeddedTuples, i: int, p: int) -> bool:
    return bool(tuples.positive_valid_BP[i, p])


@pytest.mark.parametrize("reduction", ["paper", "pairs"])
@pytest.mark.parametrize("hinge", ["largest", "mean"])
@pytest.mark.parametrize("gamma", [8.0, 64.0])
def test_loss_parts_and_gradients_equal_explicit_loops(
    tuples, check_against_loops, gamma: float, hinge, reduction
) -> None:
    objective = CircleObjective(alpha=0.8, margin=0.3, gamma=gamma, hinge=hinge, reduction=reduction)
    check_against_loops(objective, tuples, lambda tuples: loops(tuples, objective))


def test_hinges_agree_with_one_batch_negative_and_differ_with_more(make_tuples, value_of) -> None:
    forms = [CircleObjective(hinge="largest"), CircleObjective(hinge="mean")]
    two, many = make_tuples(2, 1, 3, missing=0.0), make_tuples(6, 2, 3)
    ranks = [value_of(form, two).parts["rank"] for form in forms]
    assert ranks[0] == pytest.approx(ranks[1], abs=1e-12)
    assert value_of(forms[0], many).parts["rank"] > value_of(forms[1], many).parts["rank"] + 1e-3
