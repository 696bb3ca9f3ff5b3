"""Large pools in chunks: the same numbers, and memory that grows with the chunk instead of the pool."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from nearid_ray.training.losses import OBJECTIVE_NAMES, EmbeddedTuples, ObjectiveName, make_objective
from nearid_ray.training.pool import Pool, Workers

FORMS = [
    *((name, {}) for name in OBJECTIVE_NAMES),
    ("circle-rank", {"hinge": "mean"}),
    ("nearid", {"mode": "reference"}),
]
ANCHORS, WIDTH = 32, 8


def pool_of_two_workers(tuples: EmbeddedTuples, other: EmbeddedTuples) -> Pool:
    """The pool as the second of two workers sees it."""
    return Pool(
        embedding_MD=torch.cat([other.positive_BPD.flatten(0, 1), tuples.positive_BPD.flatten(0, 1)]),
        valid_M=torch.cat([other.positive_valid_BP.flatten(), tuples.positive_valid_BP.flatten()]),
        own_offset=other.positive_valid_BP.numel(),
        slots=tuples.positive_valid_BP.shape[1],
        anchors_per_worker=len(tuples.anchor_BD),
    )


@pytest.mark.parametrize(("name", "options"), [form for form in FORMS if not form[0].startswith("infonce")])
@pytest.mark.parametrize("chunk", [1, 3, 7, 27])
def test_chunks_give_the_loss_and_gradients_of_the_whole_pool(make_tuples, name, options, chunk: int) -> None:
    tuples, other = make_tuples(7, 2, 3), make_tuples(7, 2, 3, seed=1)
    leaves = [tuples.anchor_BD, tuples.positive_BPD, tuples.distractor_BKD, other.positive_BPD]
    outcomes = []
    for size in (1000, chunk):
        value = make_objective(name, chunk=size, **options)(tuples, pool_of_two_workers(tuples, other), Workers())
        outcomes.append([*value.part_tensors.values(), value.loss, *torch.autograd.grad(value.loss, leaves)])
    for whole, chunked in zip(*outcomes, strict=True):
        torch.testing.assert_close(chunked, whole, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", [name for name in OBJECTIVE_NAMES if name.startswith("infonce")])
@pytest.mark.parametrize("chunk", [1, 3, 6])
def test_chunks_give_the_same_infonce(make_tuples, value_of, name: ObjectiveName, chunk: int) -> None:
    tuples = make_tuples(7, 2, 3)
    leaves = [tuples.anchor_BD, tuples.positive_BPD]
    outcomes = []
    for size in (1000, chunk):
        value = value_of(make_objective(name, chunk=size), tuples)
        outcomes.append([value.loss, *torch.autograd.grad(value.loss, leaves)])
    for whole, chunked in zip(*outcomes, strict=True):
        torch.testing.assert_close(chunked, whole, rtol=0, atol=1e-12)


def test_gradients_in_chunks_are_those_of_finite_differences(make_tuples) -> None:
    tuples, other = make_tuples(4, 2, 2, width=3, seed=5), make_tuples(4, 2, 2, width=3, seed=6)
    objective = make_objective("nearid", chunk=3)

    def loss(anchor_BD: Tensor, positive_BPD: Tensor, other_BPD: Tensor) -> Tensor:
        moved = replace(tuples, anchor_BD=anchor_BD, positive_BPD=positive_BPD)
        return objective(moved, pool_of_two_workers(moved, replace(other, positive_BPD=other_BPD)), Workers()).loss

    assert torch.autograd.gradcheck(loss, (tuples.anchor_BD, tuples.positive_BPD, other.positive_BPD))


@pytest.mark.parametrize(("name", "options"), [form for form in FORMS if not form[0].startswith("infonce")])
def test_peak_memory_grows_with_the_chunk_and_not_with_the_pool(make_tuples, name, options) -> None:
    """Every allocation of forward and backward is counted, by the allocator's own events.

    Beyond what must grow with the pool (its embeddings, their gradient and mask) a pool ten times as large may cost
    little; without chunks it costs several matrices of anchors by pool.
    """
    small, large, chunk = 2_000, 20_000, 500
    entries = large - small
    matrix_bytes = 4 * ANCHORS * entries
    pool_bytes = entries * (4 * WIDTH + 1)

    def growth(chunk: int) -> int:
        return peak_bytes(make_tuples, name, options, large, chunk) - peak_bytes(
            make_tuples, name, options, small, chunk
        )

    assert growth(chunk) < 3 * pool_bytes < matrix_bytes
    assert growth(10**9) > 3 * matrix_bytes


def peak_bytes(make_tuples, name: ObjectiveName, options: dict, entries: int, chunk: int) -> int:
    """The most bytes of tensors alive at once during forward and backward, beyond those before."""
    tuples = make_tuples(ANCHORS, 1, 3, missing=0.0, width=WIDTH)
    parts = {n: getattr(tuples, n).detach().float().requires_grad_() for n in ("anchor_BD", "positive_BPD")}
    tuples = replace(
        tuples, distractor_BKD=tuples.distractor_BKD.detach().float(), oracle_BK=None, draw_B=None, **parts
    )
    others = torch.nn.functional.normalize(torch.randn(entries - ANCHORS, WIDTH), dim=-1).requires_grad_()
    pool = Pool(
        embedding_MD=torch.cat([tuples.positive_BPD[:, 0], others]),
        valid_M=torch.ones(entries, dtype=torch.bool),
        own_offset=0,
        slots=1,
        anchors_per_worker=ANCHORS,
    )
    objective = make_objective(name, chunk=chunk, **options)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        objective(tuples, pool, Workers()).loss.backward()
    alive, peak = 0, 0
    for event in profiled.profiler.kineto_results.events():
        if event.name() == "[memory]":
            alive += event.nbytes()
            peak = max(peak, alive)
    assert peak > 0
    return peak
