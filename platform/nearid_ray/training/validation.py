"""How well a head does on the validation split: success rates on clean, full pictures.

Axes: I identities, V views, E engines, O pictures, D embedding width.
"""

from collections.abc import Callable, Sequence

import numpy as np
import pyarrow.compute as pc
import torch
from torch import Tensor, nn
from torch.nn import functional

from nearid_ray.errors import UsageError
from nearid_ray.evaluation.margins import TrialCounts, count_matrix, tuple_margins
from nearid_ray.training.items import item_table
from nearid_ray.training.pool import Workers
from nearid_ray.training.tokens import Cache, TokenReader

_CHUNK = 512
"""Pictures embedded at a time."""


class Validation:
    """Measures heads on the clean pictures of one split, by the engines that are trained on."""

    def __init__(self, cache: Cache, engines: Sequence[str], split: str = "val") -> None:
        """Raises UsageError when the split has no identity with two views, or none of the engines."""
        present = set(cache.index.filter(pc.equal(cache.index["split"], split))["engine"].unique().to_pylist())
        known = [engine for engine in engines if engine in present]
        if present and not known:
            raise UsageError(
                f"split {split!r} has distractors of {sorted(present - {''})}, none of the training engines "
                f"{list(engines)}; validation needs one of them, or evaluate_every 0"
            )
        self._items = item_table(cache.index, split=split, engines=known, clean=True)
        self._rows_O = self._items.plain_OA[:, 0]

    def measure(self, head: nn.Module, reader: TokenReader, workers: Workers) -> TrialCounts:
        """Trials of each validation identity and engine. The pictures are shared out; every worker must call it."""
        embedding_OD = self._embedded(head, reader, workers).double().cpu().numpy()
        view_IV, distractor_IVE = self._items.view_IV, self._items.distractor_IVE
        view_IVD = embedding_OD[view_IV]
        view_IVD[view_IV < 0] = np.nan
        distractor_IVED = embedding_OD[distractor_IVE]
        distractor_IVED[distractor_IVE < 0] = np.nan
        margin_IEM = tuple_margins(
            np.einsum("iud,ivd->iuv", view_IVD, view_IVD), np.einsum("ivd,ived->iev", view_IVD, distractor_IVED)
        )
        return count_matrix(margin_IEM, self._items.identities, self._items.engines)

    def _embedded(self, head: nn.Module, reader: TokenReader, workers: Workers) -> Tensor:
        """Embeddings of all pictures, each computed by one worker."""
        each = -(-len(self._rows_O) // workers.count)
        own_O = self._rows_O[workers.rank * each : (workers.rank + 1) * each]
        own_OD = embed_all(head, reader.read_NTD, own_O)
        padded_OD = functional.pad(own_OD, (0, 0, 0, each - len(own_O)))
        return workers.gather(padded_OD).detach()[: len(self._rows_O)]


@torch.no_grad()
def embed_all(head: nn.Module, read_NTD: Callable[[np.ndarray], Tensor], rows_O: np.ndarray) -> Tensor:
    """L2-normalised float32 embeddings of index rows, in chunks."""
    starts = range(0, max(len(rows_O), 1), _CHUNK)
    chunks = [head(read_NTD(rows_O[start : start + _CHUNK])).float() for start in starts]
    return functional.normalize(torch.cat(chunks), dim=-1)
