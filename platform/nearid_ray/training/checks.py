"""What is refused before training starts, and what is said when its numbers go wrong.

Axes: N pictures, M rows of the index, E engines, O pictures of the item table.
"""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from nearid_ray.training.items import ItemTable
from nearid_ray.training.losses import Objective, check_data
from nearid_ray.training.pool import Workers
from nearid_ray.training.settings import TrainSettings

_NAMED = 5
"""How many bad rows a message names."""


def check_needs(
    objectives: Mapping[str, Objective], items: ItemTable, settings: TrainSettings, oracle_M: NDArray[np.float64]
) -> None:
    """Refuse an objective that needs what the training identities do not have.

    Raises:
        UsageError: see `check_data`.
    """
    distractors = int((items.distractor_IVE >= 0).sum()) if settings.distractor_slots else 0
    pairs = _oracle_pairs(items, oracle_M) if settings.distractor_slots > 1 else 0
    for name, objective in objectives.items():
        check_data(objective, distractors, pairs, f"{name}: the training data ({len(items.identities)} identities)")


def _oracle_pairs(items: ItemTable, oracle_M: NDArray[np.float64]) -> int:
    """Identities with two distractors that have an oracle."""
    row_IVE = np.where(items.distractor_IVE >= 0, items.plain_OA[items.distractor_IVE, 0], -1)
    known_IVE = (row_IVE >= 0) & np.isfinite(oracle_M[row_IVE])
    return int((known_IVE.sum(axis=(1, 2)) >= 2).sum())


def not_finite(index: pa.Table, rows_N: NDArray[np.int64], tokens_NTD: Tensor, workers: Workers) -> str:
    """Names of the items, of all workers, whose tokens hold a number that is not finite; empty where there are none.

    Every worker must call it.
    """
    fine_N = torch.stack([torch.isfinite(tokens_TD).all() for tokens_TD in tokens_NTD]) if len(rows_N) else None
    bad = rows_N[~fine_N.cpu().numpy()].tolist() if fine_N is not None else []
    names = [item_name(index, row) for row in bad]
    if workers.count > 1:
        held: list[list[str]] = [[] for _ in range(workers.count)]
        dist.all_gather_object(held, names)
        names = [name for part in held for name in part]
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return "; ".join(names[:_NAMED]) + more


def item_name(index: pa.Table, row: int) -> str:
    """A row of a token index in words."""
    names = ("identity_id", "view_index", "engine", "draw", "masked")
    identity, view, engine, draw, masked = (index[name][row].as_py() for name in names)
    what = f"{identity} view {view}" + (f", engine {engine}" if engine else "")
    return f"row {row} ({what}, draw {draw}{', masked' if masked else ''})"
