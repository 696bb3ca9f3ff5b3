"""The NearID loss against explicit loops, and its edge cases."""

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from nearid_ray.training.losses import EmbeddedTuples, LossValue, NearIdObjective, Reduction, nearid_terms
from nearid_ray.training.pool import Workers, gather_pool

TEMPERATURE = 0.07


def random_tuples(
    anchors: int, positives: int, distractors: int, width: int = 6, missing: float = 0.4, seed: int = 0
) -> EmbeddedTuples:
    generator = torch.Generator().manual_seed(seed)

    def unit(*shape: int) -> Tensor:
        return functional.normalize(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1)

    return EmbeddedTuples(
        anchor_BD=unit(anchors, width).requires_grad_(),
        positive_BPD=unit(anchors, positives, width).requires_grad_(),
        positive_valid_BP=torch.rand(anchors, positives, generator=generator) >= missing,
        distractor_BKD=unit(anchors, distractors, width).requires_grad_(),
        distractor_valid_BK=torch.rand(anchors, distractors, generator=generator) >= missing,
    )


def loss_of(tuples: EmbeddedTuples, objective: NearIdObjective) -> LossValue:
    pool = gather_pool(tuples.positive_BPD, tuples.positive_valid_BP, Workers())
    return objective(tuples, pool, Workers())


def loss_by_loops(tuples: EmbeddedTuples, alpha: float, beta: float, reduction: Reduction) -> tuple[float, ...]:
    """(loss, disc, rank, cohesion) of Eq. 1 to 3, one scalar at a time."""
    anchor = tuples.anchor_BD.detach().numpy()
    positive = tuples.positive_BPD.detach().numpy()
    distractor = tuples.distractor_BKD.detach().numpy()
    has_positive, has_distractor = tuples.positive_valid_BP.numpy(), tuples.distractor_valid_BK.numpy()
    anchors, positives = has_positive.shape
    distractors = has_distractor.shape[1]

    def logit(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
        return sum(float(x) * float(y) for x, y in zip(a, b, strict=True)) / TEMPERATURE

    disc: dict[int, list[float]] = {p: [] for p in range(positives)}
    rank: dict[int, list[float]] = {k: [] for k in range(distractors)}
    cohesion: list[float] = []
    for i in range(anchors):
        exponentials, negatives = [], []
        for j in range(anchors):
            for p in range(positives):
                if has_positive[j, p]:
                    exponentials.append(math.exp(logit(anchor[i], positive[j, p])))
                    if j != i:
                        negatives.append(math.exp(logit(anchor[i], positive[j, p])))
        for k in range(distractors):
            if has_distractor[i, k]:
                exponentials.append(math.exp(logit(anchor[i], distractor[i, k])))
        for p in range(positives):
            if has_positive[i, p]:
                disc[p].append(-logit(anchor[i], positive[i, p]) + math.log(sum(exponentials)))
        for k in range(distractors):
            if has_distractor[i, k]:
                gap = math.log(sum(negatives)) - logit(anchor[i], distractor[i, k]) if negatives else None
                rank[k].append(math.log1p(math.exp(gap)) if gap is not None else 0.0)
        own = [positive[i, p] for p in range(positives) if has_positive[i, p]]
        if len(own) < 2:
            cohesion.append(0.0)
        else:
            prototype = sum(own) / math.sqrt(sum(float(x) ** 2 for x in sum(own)))
            cohesion.append(sum(1 - float(np.dot(vector, prototype)) for vector in own) / len(own))

    def average(slots: dict[int, list[float]]) -> float:
        if reduction == "pairs":
            everything = [value for values in slots.values() for value in values]
            return sum(everything) / len(everything) if everything else 0.0
        means = [sum(values) / len(values) for values in slots.values() if values]
        return sum(means) / len(means) if means else 0.0

    together = sum(cohesion) / len(cohesion) if cohesion else 0.0
    return average(disc) + alpha * average(rank) + beta * together, average(disc), average(rank), together


@pytest.mark.parametrize("reduction", ["paper", "pairs"])
@pytest.mark.parametrize(("alpha", "beta"), [(0.5, 0.0), (0.0, 0.0), (2.0, 0.1)])
@pytest.mark.parametrize(
    ("anchors", "positives", "distractors", "missing"),
    [(7, 2, 3, 0.0), (7, 2, 3, 0.4), (9, 3, 4, 0.7), (5, 1, 1, 0.3), (6, 2, 0, 0.2), (1, 2, 3, 0.0), (4, 2, 3, 1.0)],
)
def test_loss_and_its_parts_equal_explicit_loops(
    anchors: int, positives: int, distractors: int, missing: float, alpha: float, beta: float, reduction: Reduction
) -> None:
    tuples = random_tuples(anchors, positives, distractors, missing=missing, seed=anchors)
    got = loss_of(tuples, NearIdObjective(alpha=alpha, beta=beta, temperature=TEMPERATURE, reduction=reduction))
    loss, disc, rank, together = loss_by_loops(tuples, alpha, beta, reduction)
    assert got.loss.item() == pytest.approx(loss, abs=1e-12)
    assert got.parts == pytest.approx({"disc": disc, "rank": rank, "cohesion": together}, abs=1e-12)


def test_gradients_are_those_of_finite_differences() -> None:
    tuples = random_tuples(4, 2, 3, width=3, missing=0.3, seed=5)
    objective = NearIdObjective(alpha=0.5, beta=0.1)

    def loss(anchor_BD: Tensor, positive_BPD: Tensor, distractor_BKD: Tensor) -> Tensor:
        moved = EmbeddedTuples(
            anchor_BD=anchor_BD,
            positive_BPD=positive_BPD,
            positive_valid_BP=tuples.positive_valid_BP,
            distractor_BKD=distractor_BKD,
            distractor_valid_BK=tuples.distractor_valid_BK,
        )
        return loss_of(moved, objective).loss

    assert torch.autograd.gradcheck(loss, (tuples.anchor_BD, tuples.positive_BPD, tuples.distractor_BKD))


def test_paper_and_pairs_agree_when_every_slot_is_filled_and_differ_when_some_are_missing() -> None:
    full, gaps = random_tuples(8, 2, 3, missing=0.0), random_tuples(8, 2, 3, missing=0.4)
    paper, pairs = NearIdObjective(reduction="paper"), NearIdObjective(reduction="pairs")
    assert loss_of(full, paper).loss.item() == pytest.approx(loss_of(full, pairs).loss.item(), abs=1e-12)
    assert abs(loss_of(gaps, paper).loss.item() - loss_of(gaps, pairs).loss.item()) > 1e-3


@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_missing_slots_change_neither_value_nor_gradients_even_when_they_hold_nan(beta: float) -> None:
    clean = random_tuples(6, 2, 3, seed=2)
    positive_BPD, distractor_BKD = clean.positive_BPD.detach().clone(), clean.distractor_BKD.detach().clone()
    positive_BPD[~clean.positive_valid_BP] = float("nan")
    distractor_BKD[~clean.distractor_valid_BK] = float("nan")
    spoilt = EmbeddedTuples(
        anchor_BD=clean.anchor_BD.detach().clone().requires_grad_(),
        positive_BPD=positive_BPD.requires_grad_(),
        positive_valid_BP=clean.positive_valid_BP,
        distractor_BKD=distractor_BKD.requires_grad_(),
        distractor_valid_BK=clean.distractor_valid_BK,
    )
    losses = []
    for tuples in (clean, spoilt):
        losses.append(loss_of(tuples, NearIdObjective(beta=beta)).loss)
        losses[-1].backward()
    assert losses[0].item() == losses[1].item()
    for name in ("anchor_BD", "positive_BPD", "distractor_BKD"):
        assert torch.equal(getattr(clean, name).grad, getattr(spoilt, name).grad), name
    assert not spoilt.positive_BPD.grad[~clean.positive_valid_BP].any()


def test_without_batch_negatives_the_rank_term_is_zero_and_counts() -> None:
    tuples = random_tuples(2, 1, 2, missing=0.0)
    alone = EmbeddedTuples(
        anchor_BD=tuples.anchor_BD,
        positive_BPD=tuples.positive_BPD,
        positive_valid_BP=torch.tensor([[True], [False]]),
        distractor_BKD=tuples.distractor_BKD,
        distractor_valid_BK=torch.tensor([[True, True], [True, True]]),
    )
    pool = gather_pool(alone.positive_BPD, alone.positive_valid_BP, Workers())
    rank_BK = nearid_terms(alone, pool, TEMPERATURE).rank_BK
    assert not rank_BK[0].any() and rank_BK[1].all()
    expected = rank_BK.mean().item()
    assert loss_of(alone, NearIdObjective()).parts["rank"] == pytest.approx(expected, abs=1e-12)


def test_nothing_valid_is_zero_and_gives_zero_gradients() -> None:
    tuples = random_tuples(3, 2, 3, missing=1.1)
    value = loss_of(tuples, NearIdObjective(beta=0.1))
    value.loss.backward()
    assert value.loss.item() == 0.0
    for leaf in (tuples.anchor_BD, tuples.positive_BPD, tuples.distractor_BKD):
        assert leaf.grad is not None and not leaf.grad.any() and leaf.grad.isfinite().all()


def test_an_empty_batch_is_zero_and_can_be_differentiated() -> None:
    tuples = random_tuples(0, 2, 3)
    value = loss_of(tuples, NearIdObjective())
    value.loss.backward()
    assert value.loss.item() == 0.0 and tuples.anchor_BD.grad is not None


def test_extreme_similarities_stay_finite() -> None:
    direction = functional.normalize(torch.ones(1, 4), dim=-1)
    tuples = EmbeddedTuples(
        anchor_BD=direction.repeat(3, 1).requires_grad_(),
        positive_BPD=-direction.repeat(3, 2, 1).requires_grad_(),
        positive_valid_BP=torch.ones(3, 2, dtype=torch.bool),
        distractor_BKD=direction.repeat(3, 3, 1).requires_grad_(),
        distractor_valid_BK=torch.ones(3, 3, dtype=torch.bool),
    )
    value = loss_of(tuples, NearIdObjective(temperature=0.001, beta=0.1))
    value.loss.backward()
    assert value.loss.isfinite() and tuples.anchor_BD.grad is not None and tuples.anchor_BD.grad.isfinite().all()


def test_shapes_that_do_not_belong_together_are_refused() -> None:
    tuples = random_tuples(3, 2, 3)
    with pytest.raises(ValueError, match="do not belong together"):
        EmbeddedTuples(
            anchor_BD=tuples.anchor_BD,
            positive_BPD=tuples.positive_BPD[:2],
            positive_valid_BP=tuples.positive_valid_BP,
            distractor_BKD=tuples.distractor_BKD,
            distractor_valid_BK=tuples.distractor_valid_BK,
        )
