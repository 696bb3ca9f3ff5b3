"""Several processes train as one: same loss, same gradients."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from nearid_ray.training.losses import EmbeddedTuples, NearIdObjective, Reduction
from nearid_ray.training.pool import Workers, gather_pool

ANCHORS, POSITIVES, DISTRACTORS, WIDTH = 7, 2, 3, 5
SIZES = {1: [7], 2: [5, 2], 4: [3, 0, 3, 1]}
"""Anchors of each worker: unequal, and one worker with none."""
CASES: list[tuple[Reduction, float, float]] = [("paper", 0.5, 0.1), ("pairs", 0.5, 0.0), ("paper", 0.0, 0.0)]


def global_batch() -> tuple[Tensor, Tensor]:
    """Inputs (anchor, positives, distractors) and their mask; some slots are missing."""
    generator = torch.Generator().manual_seed(11)
    slots = 1 + POSITIVES + DISTRACTORS
    valid_BS = torch.rand(ANCHORS, slots, generator=generator) > 0.3
    valid_BS[:, 0] = True
    return torch.randn(ANCHORS, slots, WIDTH, generator=generator, dtype=torch.float64), valid_BS


def model() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(WIDTH, 8), nn.Tanh(), nn.Linear(8, 4)).double()


def loss_and_gradients(
    rows: slice, workers: Workers, case: tuple[Reduction, float, float], padded: int | None
) -> dict[str, Tensor]:
    inputs_BSD, valid_BS = global_batch()
    network = model()
    wrapped = DistributedDataParallel(network) if workers.count > 1 else network
    embedded_BSD = functional.normalize(wrapped(inputs_BSD[rows]), dim=-1)
    positives, distractors = slice(1, 1 + POSITIVES), slice(1 + POSITIVES, None)
    tuples = EmbeddedTuples(
        anchor_BD=embedded_BSD[:, 0],
        positive_BPD=embedded_BSD[:, positives],
        positive_valid_BP=valid_BS[rows, positives],
        distractor_BKD=embedded_BSD[:, distractors],
        distractor_valid_BK=valid_BS[rows, distractors],
    )
    reduction, alpha, beta = case
    pool = gather_pool(tuples.positive_BPD, tuples.positive_valid_BP, workers, padded)
    value = NearIdObjective(alpha=alpha, beta=beta, reduction=reduction)(tuples, pool, workers)
    value.loss.backward()
    gradients = {name: parameter.grad for name, parameter in network.named_parameters()}
    return {"loss": value.loss.detach()} | {n: torch.tensor(v) for n, v in value.parts.items()} | gradients


def run_worker(rank: int, addresses: dict[int, str], folder: str) -> None:
    """One process of the groups of every size that it belongs to."""
    torch.set_num_threads(1)
    for count, address in addresses.items():
        if rank >= count:
            continue
        dist.init_process_group("gloo", init_method=address, rank=rank, world_size=count)
        start = sum(SIZES[count][:rank])
        rows = slice(start, start + SIZES[count][rank])
        paddings = (None, max(SIZES[count]))
        results = [loss_and_gradients(rows, Workers.current(), case, pad) for case in CASES for pad in paddings]
        torch.save(results, Path(folder) / f"{rank}-of-{count}.pt")
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def results_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What each process of groups of four and two processes computed; one start of processes for both."""
    folder = tmp_path_factory.mktemp("results")
    addresses = {count: f"file://{folder}/meeting-{count}" for count in (4, 2)}
    mp.spawn(run_worker, args=(addresses, str(folder)), nprocs=4)
    return folder


@pytest.mark.parametrize("count", [2, 4])
def test_any_number_of_processes_gives_the_loss_and_gradients_of_one(results_folder: Path, count: int) -> None:
    alone = [loss_and_gradients(slice(0, ANCHORS), Workers(), case, None) for case in CASES for _ in range(2)]
    assert alone[0]["loss"] > 0.1
    for rank in range(count):
        got = torch.load(results_folder / f"{rank}-of-{count}.pt")
        for expected, found in zip(alone, got, strict=True):
            for name, value in expected.items():
                torch.testing.assert_close(found[name], value, rtol=0, atol=1e-10, msg=f"{name} of worker {rank}")


def test_the_pool_of_one_process_is_its_own_positives() -> None:
    positive_BPD, valid_BP = torch.randn(3, 2, 4), torch.tensor([[True, False]] * 3)
    pool = gather_pool(positive_BPD, valid_BP, Workers())
    assert torch.equal(pool.embedding_MD, positive_BPD.reshape(6, 4)) and pool.own_offset == 0
    assert pool.valid_M.tolist() == [True, False] * 3


@pytest.mark.parametrize(("total", "count"), [(128, 2), (7, 4), (2, 4), (0, 3), (5, 1)])
def test_parts_cover_everything_once_and_differ_by_one(total: int, count: int) -> None:
    parts = [range(total)[Workers(count=count, rank=rank).part(total)] for rank in range(count)]
    assert [i for part in parts for i in part] == list(range(total))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
