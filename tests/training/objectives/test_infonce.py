"""InfoNCE, with and without distractors and the oracle's ranking, against explicit loops."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from nearid_ray.training.losses import EmbeddedTuples
from nearid_ray.training.objectives.infonce import InfoNceObjective, drawn_positive

ZERO = torch.zeros((), dtype=torch.float64)


def loops(tuples: EmbeddedTuples, objective: InfoNceObjective) -> tuple[Tensor, dict[str, Tensor]]:
    """The formulas of the class, one scalar at a time."""
    anchors, distractors = tuples.distractor_valid_BK.shape
    partner = {}
    for i in range(anchors):
        own = [p for p in range(tuples.positive_valid_BP.shape[1]) if tuples.positive_valid_BP[i, p]]
        if own:
            place = 0 if tuples.draw_B is None else int(tuples.draw_B[i].item() * len(own))
            partner[i] = tuples.positive_BPD[i, own[place]]

    def negatives(i: int, row: Tensor) -> Tensor:
        if not objective.distractors:
            return ZERO
        present = [k for k in range(distractors) if tuples.distractor_valid_BK[i, k]]
        return sum((torch.exp(row @ tuples.distractor_BKD[i, k] / objective.temperature) for k in present), ZERO)

    total = ZERO
    for i in partner:
        own_logit = tuples.anchor_BD[i] @ partner[i] / objective.temperature
        to_partners = sum((torch.exp(tuples.anchor_BD[i] @ partner[j] / objective.temperature) for j in partner), ZERO)
        to_anchors = sum((torch.exp(tuples.anchor_BD[j] @ partner[i] / objective.temperature) for j in partner), ZERO)
        total = total + 0.5 * (torch.log(to_partners + negatives(i, tuples.anchor_BD[i])) - own_logit)
        total = total + 0.5 * (torch.log(to_anchors + negatives(i, partner[i])) - own_logit)
    parts = {"disc": total / max(len(partner), 1)}
    if not objective.oracle:
        return parts["disc"], parts

    total, count = ZERO, 0
    assert tuples.oracle_BK is not None
    for i in range(anchors):
        for better in range(distractors):
            for worse in range(distractors):
                both = tuples.distractor_valid_BK[i, better] and tuples.distractor_valid_BK[i, worse]
                # False with not-a-number on either side.
                if both and tuples.oracle_BK[i, better] > tuples.oracle_BK[i, worse]:
                    gap = tuples.anchor_BD[i] @ (tuples.distractor_BKD[i, better] - tuples.distractor_BKD[i, worse])
                    total = total - torch.log(torch.sigmoid(gap - objective.margin))
                    count += 1
    parts["oracle"] = total / max(count, 1)
    return parts["disc"] + objective.alpha * parts["oracle"], parts


@pytest.mark.parametrize("draws", [True, False])
@pytest.mark.parametrize("oracle", [True, False])
@pytest.mark.parametrize("distractors", [True, False])
def test_loss_parts_and_gradients_equal_explicit_loops(
    tuples, check_against_loops, distractors: bool, oracle: bool, draws: bool
) -> None:
    objective = InfoNceObjective(distractors=distractors, oracle=oracle, temperature=0.1, alpha=0.7, margin=0.2)
    tuples = tuples if draws else replace(tuples, draw_B=None)
    check_against_loops(objective, tuples, lambda tuples: loops(tuples, objective))


def test_the_positive_is_drawn_uniformly_among_the_valid_ones() -> None:
    valid_BP = torch.tensor([[True, False, True, True]]).expand(3000, 4)
    drawn_BP = drawn_positive(valid_BP, torch.linspace(0, 1, 3001)[:3000])
    assert (drawn_BP.sum(dim=1) == 1).all() and drawn_BP.sum(dim=0).tolist() == [1000, 0, 1000, 1000]
    assert drawn_positive(valid_BP[:1], None).tolist() == [[True, False, False, False]]
    assert drawn_positive(valid_BP[:1], torch.ones(1)).tolist() == [[False, False, False, True]]
    assert not drawn_positive(torch.zeros(2, 3, dtype=torch.bool), torch.tensor([0.0, 0.9])).any()


def test_distractors_and_oracle_matter_only_where_asked_for(make_tuples, value_of) -> None:
    tuples = make_tuples(6, 2, 3)
    moved = replace(tuples, distractor_BKD=tuples.distractor_BKD.flip(0), oracle_BK=None)
    assert value_of(InfoNceObjective(), tuples).parts == value_of(InfoNceObjective(), moved).parts
    for objective in (InfoNceObjective(distractors=True), InfoNceObjective(oracle=True)):
        assert value_of(objective, tuples).parts != value_of(objective, moved).parts


def test_without_an_oracle_the_ranking_is_zero_also_when_strict(make_tuples, value_of) -> None:
    """A short batch of a mix can lack it; data without any is refused by the plan."""
    tuples = replace(make_tuples(4, 2, 3, missing=0.0), oracle_BK=None)
    for strict in (False, True):
        assert value_of(InfoNceObjective(oracle=True, strict=strict), tuples).parts["oracle"] == 0.0
