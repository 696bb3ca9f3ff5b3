"""A step in parts is the step in one piece; heads trained together are heads trained alone."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from nearid_ray.models.head import AttentionPoolingHead
from nearid_ray.training.losses import OBJECTIVE_NAMES, EmbeddedTuples, make_objective
from nearid_ray.training.pool import Workers, gather_pool
from nearid_ray.training.stack import HeadStack
from nearid_ray.training.step import StepBatch, backward_step, embedded

ANCHORS, POSITIVES, DISTRACTORS, TOKENS, WIDTH = 7, 2, 3, 5, 8
PARTS = {1: [7], 2: [5, 2]}
"""Anchors of each worker."""


def new_stack(count: int = 2) -> HeadStack:
    return HeadStack([AttentionPoolingHead.initialised(WIDTH, 2, 16, seed=s).double() for s in range(count)])


def global_batch() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    slots = 1 + POSITIVES + DISTRACTORS
    valid_BS = torch.rand(ANCHORS, slots, generator=generator) > 0.3
    valid_BS[:, 0] = True
    tokens = torch.randn(ANCHORS, slots, TOKENS, WIDTH, generator=generator).half()
    return tokens, valid_BS, torch.rand(ANCHORS, DISTRACTORS, generator=generator)


def batch_of(workers: Workers, blank: bool = False) -> StepBatch:
    tokens, valid_BS, oracle_BK = global_batch()
    start = sum(PARTS[workers.count][: workers.rank])
    own = slice(start, start + PARTS[workers.count][workers.rank])
    filled = tokens[own][valid_BS[own]]
    return StepBatch(
        tokens_NTD=torch.cat([filled, torch.full((1, TOKENS, WIDTH), 0.5).half()]) if blank else filled,
        valid_BS=valid_BS[own],
        positives=POSITIVES,
        padded_anchors=max(PARTS[workers.count]),
        oracle_BK=oracle_BK[own],
        draw_B=torch.full((PARTS[workers.count][workers.rank],), 0.7),
        blank=blank,
    )


def gradients(
    stack: HeadStack, workers: Workers, names: list[str], micro_batch: int = 0, **batch: bool
) -> list[Tensor]:
    """Losses of the stack's heads, then the gradients of all parameters."""
    model = DistributedDataParallel(stack) if workers.count > 1 else stack
    objectives = [make_objective(name) for name in names]  # type: ignore[arg-type]
    values = backward_step(model, batch_of(workers), objectives, workers, micro_batch=micro_batch)
    return [value.loss.detach() for value in values] + [p.grad for p in stack.parameters() if p.grad is not None]


def assert_close(left: list[Tensor], right: list[Tensor], tolerance: float = 1e-10) -> None:
    assert len(left) == len(right) > 10
    for one, other in zip(left, right, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", OBJECTIVE_NAMES)
@pytest.mark.parametrize("micro_batch", [1, 4, 11])
def test_embedding_in_parts_changes_neither_loss_nor_gradients(name: str, micro_batch: int) -> None:
    whole = gradients(new_stack(1), Workers(), [name])
    assert_close(gradients(new_stack(1), Workers(), [name], micro_batch), whole)
    assert any(gradient.abs().max() > 1e-3 for gradient in whole[1:])


def test_heads_trained_together_get_the_gradients_of_heads_trained_alone() -> None:
    names = ["nearid", "circle-rank"]
    together = new_stack(2)
    losses = gradients(together, Workers(), names)[:2]
    for place, name in enumerate(names):
        alone = HeadStack([new_stack(2).heads[place]])  # type: ignore[list-item]
        expected = gradients(alone, Workers(), [name])
        mine = [losses[place], *(p.grad for p in together.heads[place].parameters() if p.grad is not None)]
        assert_close(mine, expected)


def test_blank_pictures_in_empty_slots_are_embedded_once_for_all_of_them() -> None:
    """The reference mode with blanks written out slot by slot gives the same gradients."""
    objective = make_objective("nearid", mode="reference")
    short, written_out = new_stack(1), new_stack(1)
    batch = batch_of(Workers(), blank=True)
    (value,) = backward_step(short, batch, [objective], Workers())
    tokens, valid_BS, _ = global_batch()
    tokens[~valid_BS] = 0.5
    embedding_ND = embedded(written_out, tokens.flatten(0, 1), "fp32", torch.device("cpu"))[0]

    embedding_BSD = embedding_ND.view(ANCHORS, -1, WIDTH)
    tuples = EmbeddedTuples(
        anchor_BD=embedding_BSD[:, 0],
        positive_BPD=embedding_BSD[:, 1:3],
        positive_valid_BP=valid_BS[:, 1:3],
        distractor_BKD=embedding_BSD[:, 3:],
        distractor_valid_BK=valid_BS[:, 3:],
    )
    expected = objective(tuples, gather_pool(tuples.positive_BPD, tuples.positive_valid_BP, Workers()), Workers())
    expected.loss.backward()
    assert_close(
        [value.loss.detach(), *(p.grad for p in short.parameters() if p.grad is not None)],
        [expected.loss.detach(), *(p.grad for p in written_out.parameters() if p.grad is not None)],
    )


def run_worker(rank: int, address: str, folder: str) -> None:
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    found = {m: gradients(new_stack(), Workers.current(), ["nearid", "infonce"], m) for m in (0, 3)}
    torch.save(found, Path(folder, f"{rank}.pt"))
    dist.destroy_process_group()


def test_two_processes_in_parts_get_the_gradients_of_one_process_in_one_piece(tmp_path: Path) -> None:
    """One worker needs more parts than the other."""
    mp.spawn(run_worker, args=(f"file://{tmp_path}/meet", str(tmp_path)), nprocs=2)
    expected = gradients(new_stack(), Workers(), ["nearid", "infonce"])
    for rank in range(2):
        for found in torch.load(tmp_path / f"{rank}.pt").values():
            assert_close(found, expected)
