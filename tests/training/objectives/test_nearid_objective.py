"""NearID in exact mode against explicit loops, and its edge cases."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from nearid_ray.training.losses import EmbeddedTuples, NearIdObjective, Reduction
from nearid_ray.training.objectives.nearid import disc_and_rank
from nearid_ray.training.pool import Workers, gather_pool

TEMPERATURE = 0.07
NONE = torch.zeros((), dtype=torch.float64)


def average(values: dict[int, list[Tensor]], reduction: Reduction) -> Tensor:
    if reduction == "pairs":
        everything = [value for column in values.values() for value in column]
        return sum(everything, NONE) / max(len(everything), 1)
    means = [sum(column, NONE) / len(column) for column in values.values() if column]
    return sum(means, NONE) / max(len(means), 1)


def loops(tuples: EmbeddedTuples, alpha: float, beta: float, reduction: Reduction) -> tuple[Tensor, dict[str, Tensor]]:
    """Eq. 1 to 3, one scalar at a time."""
    anchors, positives = tuples.positive_valid_BP.shape
    distractors = tuples.distractor_valid_BK.shape[1]

    def to_positive(i: int, j: int, p: int) -> Tensor:
        return (tuples.anchor_BD[i] * tuples.positive_BPD[j, p]).sum() / TEMPERATURE

    def to_distractor(i: int, k: int) -> Tensor:
        return (tuples.anchor_BD[i] * tuples.distractor_BKD[i, k]).sum() / TEMPERATURE

    disc: dict[int, list[Tensor]] = {p: [] for p in range(positives)}
    rank: dict[int, list[Tensor]] = {k: [] for k in range(distractors)}
    cohesion = NONE
    for i in range(anchors):
        own = [p for p in range(positives) if tuples.positive_valid_BP[i, p]]
        present = [k for k in range(distractors) if tuples.distractor_valid_BK[i, k]]
        everything, negatives = [], []
        for j in range(anchors):
            for p in range(positives):
                if tuples.positive_valid_BP[j, p]:
                    everything.append(torch.exp(to_positive(i, j, p)))
                    if j != i:
                        negatives.append(torch.exp(to_positive(i, j, p)))
        everything += [torch.exp(to_distractor(i, k)) for k in present]
        for p in own:
            disc[p].append(torch.log(sum(everything, NONE)) - to_positive(i, i, p))
        for k in present:
            rank[k].append(torch.log1p(sum(negatives, NONE) / torch.exp(to_distractor(i, k))) if negatives else NONE)
        if len(own) >= 2:
            total = sum((tuples.positive_BPD[i, p] for p in own), torch.zeros(1))
            prototype = total / total.norm()
            cohesion = cohesion + sum((1 - tuples.positive_BPD[i, p] @ prototype for p in own), NONE) / len(own)
    parts = {
        "disc": average(disc, reduction),
        "rank": average(rank, reduction),
        "cohesion": cohesion / max(anchors, 1),
    }
    return parts["disc"] + alpha * parts["rank"] + beta * parts["cohesion"], parts


@pytest.mark.parametrize("reduction", ["paper", "pairs"])
@pytest.mark.parametrize(("alpha", "beta"), [(0.5, 0.0), (0.0, 0.0), (2.0, 0.1)])
def test_loss_parts_and_gradients_equal_explicit_loops(
    tuples, check_against_loops, alpha: float, beta: float, reduction: Reduction
) -> None:
    objective = NearIdObjective(alpha=alpha, beta=beta, temperature=TEMPERATURE, reduction=reduction)
    check_against_loops(objective, tuples, lambda tuples: loops(tuples, alpha, beta, reduction))


def test_gradients_are_those_of_finite_differences(make_tuples, value_of) -> None:
    tuples = make_tuples(4, 2, 3, width=3, missing=0.3, seed=5)

    def loss(anchor_BD: Tensor, positive_BPD: Tensor, distractor_BKD: Tensor) -> Tensor:
        moved = replace(tuples, anchor_BD=anchor_BD, positive_BPD=positive_BPD, distractor_BKD=distractor_BKD)
        return value_of(NearIdObjective(alpha=0.5, beta=0.1), moved).loss

    assert torch.autograd.gradcheck(loss, (tuples.anchor_BD, tuples.positive_BPD, tuples.distractor_BKD))


def test_paper_and_pairs_agree_when_every_slot_is_filled_and_differ_when_some_are_missing(
    make_tuples, value_of
) -> None:
    paper, pairs = NearIdObjective(reduction="paper"), NearIdObjective(reduction="pairs")
    full, gaps = make_tuples(8, 2, 3, missing=0.0), make_tuples(8, 2, 3, missing=0.4)
    assert value_of(paper, full).loss.item() == pytest.approx(value_of(pairs, full).loss.item(), abs=1e-12)
    assert abs(value_of(paper, gaps).loss.item() - value_of(pairs, gaps).loss.item()) > 1e-3


def test_without_batch_negatives_the_rank_term_is_zero_and_counts(make_tuples, value_of) -> None:
    tuples = replace(
        make_tuples(2, 1, 2, missing=0.0),
        positive_valid_BP=torch.tensor([[True], [False]]),
        distractor_valid_BK=torch.tensor([[True, True], [True, True]]),
    )
    pool = gather_pool(tuples.positive_BPD, tuples.positive_valid_BP, Workers())
    _, rank_BK = disc_and_rank(tuples, pool, TEMPERATURE, chunk=100)
    assert not rank_BK[0].any() and rank_BK[1].all()
    assert value_of(NearIdObjective(), tuples).parts["rank"] == pytest.approx(rank_BK.mean().item(), abs=1e-12)


def test_extreme_similarities_stay_finite(value_of) -> None:
    direction = functional.normalize(torch.ones(1, 4), dim=-1)
    tuples = EmbeddedTuples(
        anchor_BD=direction.repeat(3, 1).requires_grad_(),
        positive_BPD=-direction.repeat(3, 2, 1).requires_grad_(),
        positive_valid_BP=torch.ones(3, 2, dtype=torch.bool),
        distractor_BKD=direction.repeat(3, 3, 1).requires_grad_(),
        distractor_valid_BK=torch.ones(3, 3, dtype=torch.bool),
    )
    value = value_of(NearIdObjective(temperature=0.001, beta=0.1), tuples)
    value.loss.backward()
    assert value.loss.isfinite() and tuples.anchor_BD.grad is not None and tuples.anchor_BD.grad.isfinite().all()
