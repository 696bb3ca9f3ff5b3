"""Random tuples, and the comparison of an objective with its explicit loops, gradients included."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from nearid_ray.training.losses import EmbeddedTuples, LossValue, Objective
from nearid_ray.training.pool import Workers, gather_pool

CASES = {
    "full": (7, 2, 3, 0.0),
    "gaps": (7, 2, 3, 0.4),
    "many gaps": (9, 3, 4, 0.7),
    "one slot each": (5, 1, 1, 0.3),
    "no distractor slots": (6, 2, 0, 0.2),
    "one anchor": (1, 2, 3, 0.0),
    "one anchor, one positive": (1, 1, 2, 0.0),
    "nothing there": (4, 2, 3, 1.1),
}
"""Anchors, positive slots, distractor slots, share of missing slots."""

Loops = Callable[[EmbeddedTuples], tuple[Tensor, dict[str, Tensor]]]
"""Loss and parts, one scalar at a time, as tensors that gradients flow through."""


@pytest.fixture(params=list(CASES))
def tuples(request: pytest.FixtureRequest) -> EmbeddedTuples:
    """Random tuples of each case in turn, with oracle and draws."""
    return random_tuples(*CASES[request.param], seed=len(request.param))


def random_tuples(
    anchors: int, positives: int, distractors: int, missing: float = 0.4, width: int = 6, seed: int = 0
) -> EmbeddedTuples:
    """Float64 leaves; half of the oracle values are missing, some are tied."""
    generator = torch.Generator().manual_seed(seed)

    def unit(*shape: int) -> Tensor:
        return functional.normalize(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1)

    oracle_BK = (torch.rand(anchors, distractors, generator=generator, dtype=torch.float64) * 4).round() / 4
    oracle_BK[torch.rand(anchors, distractors, generator=generator) < 0.2] = float("nan")
    return EmbeddedTuples(
        anchor_BD=unit(anchors, width).requires_grad_(),
        positive_BPD=unit(anchors, positives, width).requires_grad_(),
        positive_valid_BP=torch.rand(anchors, positives, generator=generator) >= missing,
        distractor_BKD=unit(anchors, distractors, width).requires_grad_(),
        distractor_valid_BK=torch.rand(anchors, distractors, generator=generator) >= missing,
        oracle_BK=oracle_BK,
        draw_B=torch.rand(anchors, generator=generator, dtype=torch.float64),
    )


@pytest.fixture(scope="session")
def make_tuples() -> Callable[..., EmbeddedTuples]:
    return random_tuples


def value_in_one_process(objective: Objective, tuples: EmbeddedTuples) -> LossValue:
    return objective(tuples, gather_pool(tuples.positive_BPD, tuples.positive_valid_BP, Workers()), Workers())


@pytest.fixture(scope="session")
def value_of() -> Callable[[Objective, EmbeddedTuples], LossValue]:
    """The value of an objective on one process."""
    return value_in_one_process


@pytest.fixture(scope="session")
def check_against_loops() -> Callable[[Objective, EmbeddedTuples, Loops], None]:
    """Compares loss, parts and the gradients of the loss and of each part with explicit loops, to 1e-11."""

    def gradients(value: Tensor, tuples: EmbeddedTuples) -> list[Tensor]:
        leaves = [tuples.anchor_BD, tuples.positive_BPD, tuples.distractor_BKD]
        if not value.requires_grad:
            return [torch.zeros_like(leaf) for leaf in leaves]
        found = torch.autograd.grad(value, leaves, retain_graph=True, allow_unused=True)
        return [torch.zeros_like(leaf) if g is None else g for leaf, g in zip(leaves, found, strict=True)]

    def check(objective: Objective, tuples: EmbeddedTuples, loops: Loops) -> None:
        got = value_in_one_process(objective, tuples)
        loss, parts = loops(tuples)
        assert tuple(got.parts) == objective.parts_names == tuple(parts)
        pairs = {"loss": (got.loss, loss)} | {name: (got.part_tensors[name], parts[name]) for name in parts}
        for name, (found, expected) in pairs.items():
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-11, msg=name)
            for place, expected_gradient in zip(gradients(found, tuples), gradients(expected, tuples), strict=True):
                torch.testing.assert_close(place, expected_gradient, rtol=0, atol=1e-11, msg=f"gradient of {name}")

    return check
