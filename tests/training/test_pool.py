"""The pool of one process, and the parts of a batch; groups of processes are tested with the objectives."""

import pytest
import torch

from nearid_ray.training.pool import Workers, gather_pool


def test_the_pool_of_one_process_is_its_own_positives() -> None:
    positive_BPD, valid_BP = torch.randn(3, 2, 4), torch.tensor([[True, False]] * 3)
    pool = gather_pool(positive_BPD, valid_BP, Workers())
    assert torch.equal(pool.embedding_MD, positive_BPD.reshape(6, 4)) and pool.own_offset == 0
    assert pool.valid_M.tolist() == [True, False] * 3 and (pool.slots, pool.anchors_per_worker) == (2, 3)


@pytest.mark.parametrize(("total", "count"), [(128, 2), (7, 4), (2, 4), (0, 3), (5, 1)])
def test_parts_cover_everything_once_and_differ_by_one(total: int, count: int) -> None:
    parts = [range(total)[Workers(count=count, rank=rank).part(total)] for rank in range(count)]
    assert [i for part in parts for i in part] == list(range(total))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
