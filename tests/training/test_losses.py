"""The NearID loss as a module of its own: un-normalised embeddings, masks, precision, odd input."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from nearid_ray.training.losses import EmbeddedTuples, LossValue, NearIDLoss, NearIdObjective
from nearid_ray.training.pool import Workers, gather_pool

Batch = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def random_batch(anchors: int = 6, positives: int = 2, distractors: int = 3, dtype=torch.float64) -> Batch:
    """Embeddings of any length, and masks with gaps."""
    generator = torch.Generator().manual_seed(anchors)

    def leaf(*shape: int) -> Tensor:
        return (4 * torch.randn(*shape, generator=generator, dtype=torch.float64)).to(dtype).requires_grad_()

    return (
        leaf(anchors, 8),
        leaf(anchors, positives, 8),
        leaf(anchors, distractors, 8),
        torch.rand(anchors, positives, generator=generator) > 0.3,
        torch.rand(anchors, distractors, generator=generator) > 0.3,
    )


def objective_value(batch: Batch, objective: NearIdObjective) -> LossValue:
    anchor, positive, distractor, has_positive, has_distractor = batch
    tuples = EmbeddedTuples(
        anchor_BD=functional.normalize(anchor, dim=-1),
        positive_BPD=functional.normalize(positive, dim=-1),
        positive_valid_BP=has_positive,
        distractor_BKD=functional.normalize(distractor, dim=-1),
        distractor_valid_BK=has_distractor,
    )
    return objective(tuples, gather_pool(tuples.positive_BPD, has_positive, Workers()), Workers())


def test_it_is_the_objective_on_normalised_embeddings() -> None:
    batch = random_batch()
    got = NearIDLoss(alpha=0.7, beta=0.2, temperature=0.1, reduction="pairs")(*batch)
    expected = objective_value(batch, NearIdObjective(alpha=0.7, beta=0.2, temperature=0.1, reduction="pairs"))
    assert got.loss.item() == pytest.approx(expected.loss.item(), abs=1e-12)
    assert list(got.terms) == ["discrimination", "ranking", "cohesion"]
    assert [term.item() for term in got.terms.values()] == pytest.approx(list(expected.parts.values()), abs=1e-12)
    weighted = got.terms["discrimination"] + 0.7 * got.terms["ranking"] + 0.2 * got.terms["cohesion"]
    assert got.loss.item() == pytest.approx(weighted.item(), abs=1e-12)


def test_the_length_of_embeddings_does_not_matter() -> None:
    batch = random_batch()
    longer = (batch[0] * 7, batch[1] * 0.01, batch[2] * 3, *batch[3:])
    assert NearIDLoss()(*batch).loss.item() == pytest.approx(NearIDLoss()(*longer).loss.item(), abs=1e-12)


def test_without_masks_every_slot_is_there() -> None:
    anchor, positive, distractor, has_positive, has_distractor = random_batch()
    everything = torch.ones_like(has_positive), torch.ones_like(has_distractor)
    expected = NearIDLoss()(anchor, positive, distractor, *everything).loss.item()
    assert NearIDLoss()(anchor, positive, distractor).loss.item() == expected
    assert NearIDLoss()(anchor, positive, distractor, has_positive, has_distractor).loss.item() != expected


@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_missing_slots_change_neither_value_nor_gradients_even_when_they_hold_nan(beta: float) -> None:
    clean = random_batch()
    positive, distractor = clean[1].detach().clone(), clean[2].detach().clone()
    positive[~clean[3]], distractor[~clean[4]] = float("nan"), float("inf")
    spoilt = (
        clean[0].detach().clone().requires_grad_(),
        positive.requires_grad_(),
        distractor.requires_grad_(),
        *clean[3:],
    )
    losses = [NearIDLoss(beta=beta)(*batch).loss for batch in (clean, spoilt)]
    for loss in losses:
        loss.backward()
    assert losses[0].item() == losses[1].item()
    for expected, found in zip(clean[:3], spoilt[:3], strict=True):
        assert expected.grad is not None and found.grad is not None and torch.equal(expected.grad, found.grad)
    assert not spoilt[1].grad[~clean[3]].any() and not spoilt[2].grad[~clean[4]].any()


def test_nothing_valid_is_zero_and_gives_zero_gradients() -> None:
    batch = random_batch()
    batch[3][:], batch[4][:] = False, False
    value = NearIDLoss(beta=0.1)(*batch)
    value.loss.backward()
    assert value.loss.item() == 0.0
    for leaf in batch[:3]:
        assert leaf.grad is not None and not leaf.grad.any() and leaf.grad.isfinite().all()


@pytest.mark.parametrize("mode", ["exact", "reference"])
def test_an_empty_batch_is_zero_and_can_be_differentiated(mode) -> None:
    batch = random_batch(anchors=0)
    value = NearIDLoss(mode=mode)(*batch)
    value.loss.backward()
    assert value.loss.item() == 0.0 and batch[0].grad is not None


@pytest.mark.parametrize("mode", ["exact", "reference"])
@pytest.mark.parametrize("given", ["no slots", "none"])
def test_without_distractors_it_is_multi_positive_infonce(mode, given: str) -> None:
    anchor, positive, *_ = random_batch(distractors=0)
    value = NearIDLoss(mode=mode)(anchor, positive, anchor.new_zeros(6, 0, 8) if given == "no slots" else None)
    logits = functional.normalize(anchor, dim=-1) @ functional.normalize(positive, dim=-1).flatten(0, 1).t() / 0.07
    expected = torch.stack([functional.cross_entropy(logits, torch.arange(6) * 2 + p) for p in range(2)]).mean()
    assert value.terms["ranking"].item() == 0.0
    assert value.loss.item() == pytest.approx(expected.item(), abs=1e-12)


@pytest.mark.parametrize("chunk", [5, 100])
@pytest.mark.parametrize("mode", ["exact", "reference"])
def test_autocast_around_loss_and_backward_changes_nothing(mode, chunk: int) -> None:
    outcomes = []
    for autocast in (False, True):
        batch = random_batch(dtype=torch.float32)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = NearIDLoss(beta=0.1, mode=mode, chunk=chunk)(*batch).loss
            loss.backward()
        outcomes.append([loss.detach(), *(leaf.grad for leaf in batch[:3])])
    assert all(torch.equal(plain, mixed) for plain, mixed in zip(*outcomes, strict=True))


@pytest.mark.parametrize(
    ("given", "computed"),
    [(torch.bfloat16, torch.float32), (torch.float16, torch.float32), (torch.float64, torch.float64)],
)
def test_half_precision_is_computed_in_float32_and_double_stays(given: torch.dtype, computed: torch.dtype) -> None:
    batch = random_batch(dtype=given)
    raised = (*(leaf.detach().to(computed) for leaf in batch[:3]), *batch[3:])
    value = NearIDLoss()(*batch)
    assert value.loss.dtype == computed and value.loss.item() == NearIDLoss()(*raised).loss.item()
    value.loss.backward()
    assert batch[0].grad is not None and batch[0].grad.dtype == given


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": -0.1}, "alpha is -0.1; expected a number, 0 or more"),
        ({"alpha": float("nan")}, "alpha is nan"),
        ({"beta": float("inf")}, "beta is inf"),
        ({"temperature": 0.0}, "temperature is 0.0; expected a number above 0"),
        ({"mode": "fast"}, "mode is 'fast'; expected one of exact, reference"),
        ({"reduction": "mean"}, "reduction is 'mean'; expected one of paper, pairs"),
        ({"chunk": 0}, "chunk is 0"),
    ],
)
def test_options_out_of_range_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NearIDLoss(**options)


def test_shapes_that_do_not_belong_together_are_refused() -> None:
    anchor, positive, distractor, has_positive, has_distractor = random_batch()
    with pytest.raises(ValueError, match="do not belong together"):
        NearIDLoss()(anchor, positive[:2], distractor, has_positive[:2], has_distractor)
    with pytest.raises(ValueError, match=r"distractor_mask_BK has shape \(6, 1\); expected \(6, 3\)"):
        NearIDLoss()(anchor, positive, distractor, has_positive, has_distractor[:, :1])
    with pytest.raises(ValueError, match=r"positive_mask_BP has shape \(6, 3\); expected \(6, 2\)"):
        NearIDLoss()(*random_batch()[:3], torch.ones(6, 3, dtype=torch.bool))
