"""Several processes train as one: each objective's loss, parts and gradients, in real process groups.

Four processes start once. The default group is all of them; the second and the fourth form a group of two.
"""

from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from nearid_ray.errors import UsageError
from nearid_ray.training.losses import OBJECTIVE_NAMES, EmbeddedTuples, NearIDLoss, make_objective
from nearid_ray.training.pool import Workers, gather_pool
from tests.training.objectives.test_reference_mode import loops

ANCHORS, POSITIVES, DISTRACTORS, WIDTH = 7, 2, 3, 5
SIZES = {1: [7], 2: [5, 2], 4: [3, 0, 3, 1]}
"""Anchors of each worker: unequal, and one worker with none."""
EQUAL = {1: [6], 2: [3, 3]}
"""For the reference mode, which takes nothing else."""
PAIR = [1, 3]
"""Ranks of the group of two."""
OBJECTIVES: list[tuple[Any, dict[str, Any]]] = [
    *((name, {}) for name in OBJECTIVE_NAMES),
    *((name, {"chunk": 4}) for name in OBJECTIVE_NAMES),
    ("nearid-cohesion", {"reduction": "pairs"}),
    ("nearid", {"alpha": 0.0}),
    ("siglip-rank", {"reduction": "pairs"}),
    ("circle-rank", {"hinge": "mean"}),
]
MODULES: list[dict[str, Any]] = [
    {"beta": 0.1},
    {"alpha": 2.0, "reduction": "pairs"},
    {"beta": 0.1, "chunk": 3},
]


@dataclass
class Outcomes:
    """What one process found."""

    objectives: list[dict[str, Tensor]] = field(default_factory=list)
    modules: list[dict[str, Tensor]] = field(default_factory=list)
    reference: list[dict[str, Tensor]] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)


def global_batch() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Inputs (anchor, positives, distractors), their mask with gaps, oracle values and draws."""
    generator = torch.Generator().manual_seed(11)
    slots = 1 + POSITIVES + DISTRACTORS
    valid_BS = torch.rand(ANCHORS, slots, generator=generator) > 0.3
    valid_BS[:, 0] = True
    inputs_BSD = torch.randn(ANCHORS, slots, WIDTH, generator=generator, dtype=torch.float64)
    oracle_BK = torch.rand(ANCHORS, DISTRACTORS, generator=generator)
    return inputs_BSD, valid_BS, oracle_BK, torch.rand(ANCHORS, generator=generator)


@cache
def network_for(workers: Workers) -> tuple[nn.Module, nn.Module]:
    """A small network, and the same ready for these workers; it never changes."""
    torch.manual_seed(1)
    network = nn.Sequential(nn.Linear(WIDTH, 8), nn.Tanh(), nn.Linear(8, 4)).double()
    return network, DistributedDataParallel(network, process_group=workers.group) if workers.count > 1 else network


def rows_of(workers: Workers, sizes: dict[int, list[int]]) -> slice:
    start = sum(sizes[workers.count][: workers.rank])
    return slice(start, start + sizes[workers.count][workers.rank])


def gradients_of(loss: Tensor, network: nn.Module) -> dict[str, Tensor]:
    network.zero_grad()
    loss.backward()
    return {name: value.grad.clone() for name, value in network.named_parameters() if value.grad is not None}


def by_objective(workers: Workers, name: Any, options: dict[str, Any], padding: int | None) -> dict[str, Tensor]:
    network, wrapped = network_for(workers)
    inputs_BSD, valid_BS, oracle_BK, draw_B = global_batch()
    rows = rows_of(workers, SIZES)
    embedded_BSD = functional.normalize(wrapped(inputs_BSD[rows]), dim=-1)
    positives, distractors = slice(1, 1 + POSITIVES), slice(1 + POSITIVES, None)
    tuples = EmbeddedTuples(
        anchor_BD=embedded_BSD[:, 0],
        positive_BPD=embedded_BSD[:, positives],
        positive_valid_BP=valid_BS[rows, positives],
        distractor_BKD=embedded_BSD[:, distractors],
        distractor_valid_BK=valid_BS[rows, distractors],
        oracle_BK=oracle_BK[rows],
        draw_B=draw_B[rows],
    )
    pool = gather_pool(tuples.positive_BPD, tuples.positive_valid_BP, workers, padding)
    value = make_objective(name, **options)(tuples, pool, workers)
    parts = {part: torch.tensor(number) for part, number in value.parts.items()}
    return {"loss": value.loss.detach()} | parts | gradients_of(value.loss, network)


def by_module(workers: Workers, options: dict[str, Any]) -> dict[str, Tensor]:
    """Plain distributed code without anything else of ours; a worker without anchors does not know the slots."""
    network, wrapped = network_for(workers)
    inputs_BSD, valid_BS, *_ = global_batch()
    rows = rows_of(workers, SIZES)
    inputs_BSD, valid_BS = inputs_BSD[rows], valid_BS[rows]
    first, end = (1 + POSITIVES, None) if len(inputs_BSD) else (1, 1)
    output = NearIDLoss(**options, group=workers.group)(
        3 * wrapped(inputs_BSD[:, 0]),
        wrapped(inputs_BSD[:, 1:first]),
        5 * wrapped(inputs_BSD[:, first:end]),
        valid_BS[:, 1:first],
        valid_BS[:, first:end],
    )
    terms = {name: term.detach() for name, term in output.terms.items()}
    return {"loss": output.loss.detach()} | terms | gradients_of(output.loss, network)


def by_released_rules(workers: Workers, beta: float) -> dict[str, Tensor]:
    network, wrapped = network_for(workers)
    inputs_BSD, valid_BS, *_ = global_batch()
    rows = rows_of(workers, EQUAL)
    embedded_BSD = 3 * wrapped(inputs_BSD[rows])
    first = 1 + POSITIVES
    output = NearIDLoss(beta=beta, mode="reference", group=workers.group)(
        embedded_BSD[:, 0],
        embedded_BSD[:, 1:first],
        embedded_BSD[:, first:],
        valid_BS[rows, 1:first],
        valid_BS[rows, first:],
    )
    terms = {name: term.detach() for name, term in output.terms.items()}
    return {"loss": output.loss.detach()} | terms | gradients_of(output.loss, network)


def refusals(workers: Workers) -> list[str]:
    """What each process hears when batches are unequal in reference mode, or have no distractors anywhere."""
    heard = []
    rows = rows_of(workers, SIZES)
    inputs_BSD, valid_BS, *_ = global_batch()
    anchor_BD, positive_BPD, distractor_BKD = inputs_BSD[rows].split([1, POSITIVES, DISTRACTORS], dim=1)
    try:
        NearIDLoss(mode="reference", group=workers.group)(anchor_BD[:, 0], positive_BPD, distractor_BKD)
    except ValueError as error:
        heard.append(str(error))
    tuples = EmbeddedTuples(
        anchor_BD=anchor_BD[:, 0],
        positive_BPD=positive_BPD,
        positive_valid_BP=valid_BS[rows, 1 : 1 + POSITIVES],
        distractor_BKD=distractor_BKD,
        distractor_valid_BK=torch.zeros_like(valid_BS[rows, 1 + POSITIVES :]),
    )
    pool = gather_pool(positive_BPD, tuples.positive_valid_BP, workers)
    try:
        make_objective("nearid")(tuples, pool, workers)
    except UsageError as error:
        heard.append(str(error))
    # One distractor at one worker is enough for all.
    if workers.rank == 0:
        tuples = replace(tuples, distractor_valid_BK=torch.ones_like(tuples.distractor_valid_BK))
    assert make_objective("nearid")(tuples, pool, workers).loss.isfinite()
    return heard


def run_worker(rank: int, address: str, folder: str) -> None:
    """One process: everything with all four, then, if it is of the pair, with the two."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=4)
    pair = dist.new_group(PAIR)
    for workers in [Workers.current(), *([Workers.current(pair)] if rank in PAIR else [])]:
        found = Outcomes()
        for name, options in OBJECTIVES:
            found.objectives.append(by_objective(workers, name, options, None))
        found.objectives.append(by_objective(workers, "nearid", {}, 6))
        found.modules += [by_module(workers, options) for options in MODULES]
        if workers.count in EQUAL:
            found.reference += [by_released_rules(workers, beta) for beta in (0.0, 0.1)]
        found.refusals += refusals(workers)
        torch.save(vars(found), Path(folder) / f"{workers.rank}-of-{workers.count}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What each process of both groups found."""
    place = tmp_path_factory.mktemp("outcomes")
    mp.spawn(run_worker, args=(f"file://{place}/meeting", str(place)), nprocs=4)
    return place


def outcomes(folder: Path, count: int) -> list[Outcomes]:
    return [Outcomes(**torch.load(folder / f"{rank}-of-{count}.pt")) for rank in range(count)]


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], what: object) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-10, msg=f"{name}: {what}")


@pytest.mark.parametrize("count", [2, 4])
def test_every_objective_gives_the_loss_parts_and_gradients_of_one_process(folder: Path, count: int) -> None:
    cases = [*OBJECTIVES, ("nearid", {})]
    alone = [by_objective(Workers(), name, options, None) for name, options in cases]
    assert all(value["loss"] > 0.1 and any(v.abs().max() > 1e-3 for v in value.values()) for value in alone)
    for rank, worker in enumerate(outcomes(folder, count)):
        for case, found, expected in zip(cases, worker.objectives, alone, strict=True):
            assert_same(found, expected, f"{case}, worker {rank} of {count}")


@pytest.mark.parametrize("count", [2, 4])
def test_the_loss_module_in_plain_distributed_code_gives_the_loss_and_gradients_of_one_process(
    folder: Path, count: int
) -> None:
    alone = [by_module(Workers(), options) for options in MODULES]
    for rank, worker in enumerate(outcomes(folder, count)):
        for options, found, expected in zip(MODULES, worker.modules, alone, strict=True):
            assert_same(found, expected, f"{options}, worker {rank} of {count}")


def test_reference_mode_on_two_workers_counts_on_each_and_gathers_positives(folder: Path) -> None:
    for which, beta in enumerate((0.0, 0.1)):
        network, _ = network_for(Workers())
        inputs_BSD, valid_BS, *_ = global_batch()
        anchors, first = sum(EQUAL[2]), 1 + POSITIVES
        embedded_BSD = 3 * network(inputs_BSD[:anchors])
        batch = (
            embedded_BSD[:, 0],
            embedded_BSD[:, 1:first],
            embedded_BSD[:, first:],
            valid_BS[:anchors, 1:first],
            valid_BS[:anchors, first:],
        )
        parts = [range(0, 3), range(3, 6)]
        assert batch[3][:3].sum() != batch[3][3:].sum(), "the workers should count differently"
        by_worker = [loops(batch, 0.5, beta, of_worker=part) for part in parts]
        # DistributedDataParallel averages the workers' gradients.
        averaged = gradients_of(torch.stack([loss for loss, _ in by_worker]).mean(), network)
        for worker, (loss, terms) in zip(outcomes(folder, 2), by_worker, strict=True):
            expected = {"loss": loss.detach()} | {name: term.detach() for name, term in terms.items()} | averaged
            assert_same(worker.reference[which], expected, f"beta {beta}")
        assert not torch.allclose(by_worker[0][0], by_worker[1][0])


@pytest.mark.parametrize("count", [2, 4])
def test_every_process_hears_a_refusal(folder: Path, count: int) -> None:
    for worker in outcomes(folder, count):
        assert len(worker.refusals) == 2
        assert "same number of anchors" in worker.refusals[0] and "this global batch has none" in worker.refusals[1]


def test_a_group_this_process_is_not_in_is_refused(tmp_path: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        with pytest.raises(ValueError, match="does not belong"):
            NearIDLoss(group=dist.GroupMember.NON_GROUP_MEMBER)(torch.ones(1, 2), torch.ones(1, 1, 2), None)
        alone = NearIDLoss()(torch.ones(1, 2), torch.ones(1, 1, 2), -torch.ones(1, 1, 2))
        assert alone.loss.isfinite()
    finally:
        dist.destroy_process_group()
