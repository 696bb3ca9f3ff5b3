"""How well a head does on the validation split: success rates on clean, full pictures.

Axes: I identities, V views, E engines, O pictures, D embedding width, R heads of a stack.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from nearid_ray.errors import UsageError
from nearid_ray.evaluation.margins import TrialCounts, count_matrix, tuple_margins
from nearid_ray.training.checks import item_name
from nearid_ray.training.items import item_table, of_sources
from nearid_ray.training.pool import Workers
from nearid_ray.training.tokens import Cache, TokenReader

_CHUNK_BYTES = 128 << 20
"""Tokens embedded at a time."""


class NotFinite(FloatingPointError):
    """Some heads' embeddings are not finite; `heads` are their places in the stack."""

    def __init__(self, message: str, heads: Sequence[int]) -> None:
        super().__init__(message)
        self.heads = list(heads)


class Validation:
    """Measures heads on the clean pictures of one split, by the engines that are trained on."""

    def __init__(self, cache: Cache, engines: Sequence[str], split: str = "val", sources: Sequence[str] = ()) -> None:
        """Raises UsageError when the split has no identity with two views of these sources, or none of the engines."""
        found = cache.index.filter(pc.equal(cache.index["split"], split))
        if sources and len(found):
            found = of_sources(found, sources, split)
        present = set(found["engine"].unique().to_pylist())
        known = [engine for engine in engines if engine in present]
        if present and not known:
            raise UsageError(
                f"split {split!r} has distractors of {sorted(present - {''})}, none of the training engines "
                f"{list(engines)}; validation needs one of them, or evaluate_every 0"
            )
        self._index = cache.index
        self._items = item_table(cache.index, split=split, engines=known, sources=sources, clean=True)
        self._rows_O = self._items.plain_OA[:, 0]

    def measure(self, stack: nn.Module, reader: TokenReader, workers: Workers) -> list[TrialCounts]:
        """Trials of each validation identity and engine, for each head of a stack.

        The pictures are shared out, so that no worker waits for another; every worker must call it.

        Raises:
            NotFinite: an embedding is not finite.
        """
        embedding_ORD = self._embedded(stack, reader, workers).double().cpu().numpy()
        if not np.isfinite(embedding_ORD).all():
            finite_OR = np.isfinite(embedding_ORD).all(axis=2)
            bad = self._rows_O[~finite_OR.all(axis=1)]
            raise NotFinite(
                f"the head's embeddings of {len(bad)} validation items are not finite, e.g. of "
                f"{item_name(self._index, int(bad[0]))}; their tokens are not finite, or the head is broken",
                np.flatnonzero(~finite_OR.all(axis=0)).tolist(),
            )
        return [self._counted(embedding_ORD[:, head]) for head in range(embedding_ORD.shape[1])]

    def _counted(self, embedding_OD: NDArray[np.float64]) -> TrialCounts:
        view_IV, distractor_IVE = self._items.view_IV, self._items.distractor_IVE
        view_IVD = embedding_OD[view_IV]
        view_IVD[view_IV < 0] = np.nan
        distractor_IVED = embedding_OD[distractor_IVE]
        distractor_IVED[distractor_IVE < 0] = np.nan
        margin_IEM = tuple_margins(
            np.einsum("iud,ivd->iuv", view_IVD, view_IVD), np.einsum("ivd,ived->iev", view_IVD, distractor_IVED)
        )
        return count_matrix(margin_IEM, self._items.identities, self._items.engines)

    def _embedded(self, stack: nn.Module, reader: TokenReader, workers: Workers) -> Tensor:
        """embedding_ORD of all pictures, each computed by one worker."""
        each = -(-len(self._rows_O) // workers.count)
        own_O = self._rows_O[workers.rank * each : (workers.rank + 1) * each]
        own_ORD = embed_all(stack, reader, own_O)
        padded_ORD = functional.pad(own_ORD, (0, 0, 0, 0, 0, each - len(own_O)))
        return workers.gather(padded_ORD).detach()[: len(self._rows_O)]


@torch.no_grad()
def embed_all(stack: nn.Module, reader: TokenReader, rows_O: NDArray[np.int64]) -> Tensor:
    """L2-normalised float32 embeddings (O, R, D) of index rows by each head of a stack, in chunks."""
    each = max(1, _CHUNK_BYTES // reader.item_bytes)
    starts = range(0, max(len(rows_O), 1), each)
    chunks = [stack(reader.read_NTD(rows_O[start : start + each])).float() for start in starts]
    return functional.normalize(torch.cat(chunks, dim=1), dim=-1).transpose(0, 1)
