"""NearID as the released code computes it, against explicit loops over the rules it follows.

Its behaviour with two workers is tested in test_worker_groups.py.
"""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from nearid_ray.training.losses import EmbeddedTuples, NearIDLoss, NearIDLossOutput, NearIdObjective

TEMPERATURE = 0.07
ZERO = torch.zeros((), dtype=torch.float64)
Raw = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
"""Un-normalised anchors, positives, distractors; masks of positives and distractors."""


def raw(anchors: int, positives: int, distractors: int, missing: float, seed: int) -> Raw:
    """Embeddings of any length, some of missing slots too, as encoders give them for blank images."""
    generator = torch.Generator().manual_seed(seed)

    def leaf(*shape: int) -> Tensor:
        return (3 * torch.randn(*shape, generator=generator, dtype=torch.float64)).requires_grad_()

    return (
        leaf(anchors, 5),
        leaf(anchors, positives, 5),
        leaf(anchors, distractors, 5),
        torch.rand(anchors, positives, generator=generator) >= missing,
        torch.rand(anchors, distractors, generator=generator) >= missing,
    )


def loops(batch: Raw, alpha: float, beta: float, of_worker: range | None = None) -> tuple[Tensor, dict[str, Tensor]]:
    """The rules of the released code, one scalar at a time: for one process, or for one worker's anchors of a batch."""
    anchor, positive, distractor, has_positive, has_distractor = batch
    anchors, positives = has_positive.shape
    distractors = has_distractor.shape[1]
    mine = range(anchors) if of_worker is None else of_worker

    def unit(vector: Tensor) -> Tensor:
        length = vector.norm()
        return vector / (length if length > 1e-7 else 1e-7)

    def logit(a: Tensor, b: Tensor) -> Tensor:
        return (unit(a) * unit(b)).sum() / TEMPERATURE

    def log_of_sum(logits: list[Tensor]) -> Tensor:
        largest = max(value.item() for value in logits)
        return largest + torch.log(sum((torch.exp(value - largest) for value in logits), ZERO))

    # Main: every pool entry and every own distractor is in the denominator, blank ones too.
    slot_means = []
    for p in range(positives):
        rows = [i for i in mine if has_positive[i, p]]
        values = []
        for i in rows:
            logits = [logit(anchor[i], positive[j, q]) for j in range(anchors) for q in range(positives)]
            logits += [logit(anchor[i], distractor[i, k]) for k in range(distractors)]
            values.append(log_of_sum(logits) - logit(anchor[i], positive[i, p]))
        if rows:
            slot_means.append(sum(values, ZERO) / len(rows))
    main = sum(slot_means, ZERO) / max(len(slot_means), 1)

    # Rank: the pool with the anchor's own slots at the smallest number of the type.
    smallest = torch.tensor(torch.finfo(torch.float64).min, dtype=torch.float64)
    total, count = ZERO, 0
    for i in mine:
        for k in range(distractors):
            if has_distractor[i, k]:
                others = [
                    logit(anchor[i], positive[j, q]) if j != i else smallest
                    for j in range(anchors)
                    for q in range(positives)
                ]
                gap = log_of_sum(others) - logit(anchor[i], distractor[i, k])
                # log(1 + exp(gap)) without overflow
                total = total + torch.clamp(gap, min=0) + torch.log1p(torch.exp(-gap.abs()))
                count += 1
    rank = total / max(count, 1)

    # Cohesion: anchors with two or more positives, over the number of all valid positives.
    together = ZERO
    for i in mine:
        own = [unit(positive[i, p]) for p in range(positives) if has_positive[i, p]]
        if len(own) >= 2:
            prototype = unit(sum(own, torch.zeros(1)) / len(own))
            together = together + sum((1 - vector @ prototype for vector in own), ZERO)
    together = together / max(int(has_positive[mine.start : mine.stop].sum()), 1)
    terms = {"discrimination": main, "ranking": rank, "cohesion": together}
    return main + alpha * rank + beta * together, terms


def check(batch: Raw, alpha: float = 0.5, beta: float = 0.1) -> NearIDLossOutput:
    """Compares loss, terms and gradients to 1e-9."""
    anchor, positive, distractor, has_positive, has_distractor = batch
    got = NearIDLoss(alpha=alpha, beta=beta, mode="reference")(
        anchor, positive, distractor, has_positive, has_distractor
    )
    loss, terms = loops(batch, alpha, beta)
    assert tuple(got.terms) == tuple(terms)
    for name, found, expected in [("loss", got.loss, loss), *((n, got.terms[n], terms[n]) for n in terms)]:
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-9, msg=name)
        leaves = [leaf for leaf in (anchor, positive, distractor) if leaf.numel()]
        for leaf in leaves:
            pair = [
                torch.autograd.grad(value, leaf, retain_graph=True, allow_unused=True)[0]
                if value.requires_grad
                else None
                for value in (found, expected)
            ]
            filled = [torch.zeros_like(leaf) if gradient is None else gradient for gradient in pair]
            torch.testing.assert_close(*filled, rtol=0, atol=1e-9, msg=f"gradient of {name}")
    return got


@pytest.mark.parametrize("beta", [0.0, 0.1])
@pytest.mark.parametrize("missing", [0.0, 0.4, 0.8])
@pytest.mark.parametrize("shape", [(6, 2, 3), (5, 3, 1), (4, 1, 2)])
def test_loss_terms_and_gradients_equal_explicit_loops(
    shape: tuple[int, int, int], missing: float, beta: float
) -> None:
    check(raw(*shape, missing, seed=3), beta=beta)


def test_blank_slots_stay_in_denominators_and_pool(make_tuples, value_of) -> None:
    batch = raw(5, 2, 3, 0.4, seed=1)
    anchor, positive, distractor, has_positive, has_distractor = batch
    before = check(batch)
    changed = positive.detach().clone()
    changed[~has_positive] += 1.0
    after = NearIDLoss(beta=0.1, mode="reference")(anchor, changed, distractor, has_positive, has_distractor)
    assert all(abs(after.terms[n] - before.terms[n]) > 1e-4 for n in ("discrimination", "ranking"))
    assert after.terms["cohesion"] == pytest.approx(before.terms["cohesion"].item(), abs=1e-12)


def test_a_batch_of_one_has_rank_zero() -> None:
    assert check(raw(1, 2, 3, 0.0, seed=1)).terms["ranking"].item() == 0.0


def test_without_valid_positives_the_main_term_is_zero_and_the_rank_term_stays() -> None:
    batch = raw(4, 2, 3, 0.0, seed=1)
    batch[3][:] = False
    got = check(batch)
    assert got.terms["discrimination"].item() == 0.0 and got.terms["ranking"].item() > 0.1


def test_without_distractor_slots_the_rank_term_is_zero() -> None:
    assert check(raw(4, 2, 0, 0.0, seed=1)).terms["ranking"].item() == 0.0
    anchor, positive, *_ = raw(4, 2, 0, 0.0, seed=1)
    assert NearIDLoss(mode="reference")(anchor, positive, None).terms["ranking"].item() == 0.0


def test_without_valid_distractors_the_rank_term_is_zero_but_they_stay_in_denominators() -> None:
    batch = raw(4, 2, 3, 0.0, seed=1)
    batch[4][:] = False
    got = check(batch)
    without = NearIDLoss(mode="reference")(batch[0], batch[1], None, batch[3])
    assert got.terms["ranking"].item() == 0.0
    assert got.terms["discrimination"] > without.terms["discrimination"] + 1e-3


def test_embeddings_of_no_length_are_divided_by_a_smallest_length() -> None:
    batch = raw(3, 2, 2, 0.0, seed=1)
    with torch.no_grad():
        batch[0][0] *= 1e-9 / 3
        batch[1][1, 1] = 0.0
    anchor, positive, distractor, has_positive, has_distractor = batch
    got = NearIDLoss(mode="reference")(anchor, positive, distractor, has_positive, has_distractor)
    assert got.loss.item() == pytest.approx(loops(batch, 0.5, 0.0)[0].item(), abs=1e-9)
    got.loss.backward()
    assert all(leaf.grad is not None and leaf.grad.isfinite().all() for leaf in (anchor, positive, distractor))


def test_with_every_slot_valid_reference_paper_and_pairs_are_one() -> None:
    batch = raw(6, 2, 3, 0.0, seed=4)
    values = [
        NearIDLoss(beta=0.1, mode="reference")(*batch),
        NearIDLoss(beta=0.1, reduction="paper")(*batch),
        NearIDLoss(beta=0.1, reduction="pairs")(*batch),
    ]
    for other in values[1:]:
        for name, term in values[0].terms.items():
            assert term.item() == pytest.approx(other.terms[name].item(), abs=1e-12), name


def test_chunks_change_nothing() -> None:
    batch = raw(6, 2, 3, 0.4, seed=4)
    whole, chunked = (NearIDLoss(mode="reference", chunk=chunk)(*batch).loss.item() for chunk in (100, 5))
    assert whole == pytest.approx(chunked, abs=1e-12)


def test_the_objective_is_the_same_as_the_loss_module(
    make_tuples: Callable[..., EmbeddedTuples], value_of: Callable
) -> None:
    tuples = make_tuples(5, 2, 3)
    value = value_of(NearIdObjective(mode="reference", beta=0.1), tuples)
    module = NearIDLoss(mode="reference", beta=0.1)(
        tuples.anchor_BD,
        tuples.positive_BPD,
        tuples.distractor_BKD,
        tuples.positive_valid_BP,
        tuples.distractor_valid_BK,
    )
    assert value.loss.item() == pytest.approx(module.loss.item(), abs=1e-12)
    assert NearIdObjective(mode="reference").reference and not NearIdObjective().reference
    assert not math.isclose(value.loss.item(), value_of(NearIdObjective(beta=0.1), tuples).loss.item(), abs_tol=1e-4)
