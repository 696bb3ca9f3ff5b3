"""Search by faiss (an extra), for galleries far above a million: exact, or approximate and called so.

Whatever faiss proposes is compared again in float64, so that its digits and its order of equals are those of
`neighbours.nearest`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np

from nearid_ray.errors import UsageError
from nearid_ray.retrieving.neighbours import FloatArray, Gallery, Neighbours, ranked

Kind = Literal["none", "faiss", "faiss-ivf", "faiss-hnsw"]
APPROXIMATE = ("faiss-ivf", "faiss-hnsw")
"""Kinds that may miss neighbours."""

_SPARE = 32
_NEIGHBOURS_A_NODE = 32
_LISTS_SEARCHED = 32
_SAMPLES_A_LIST = 64


def load_faiss() -> Any:
    """The module; UsageError where it is not installed."""
    try:
        import faiss
    except ImportError as error:
        raise UsageError(
            "--index faiss needs the package faiss, which is not installed: pip install 'nearid-ray[faiss]' (or "
            "faiss-cpu), or leave --index out for the exact search that needs no index"
        ) from error
    return faiss


def nearest_by_index(
    query_QD: FloatArray,
    gallery: Gallery,
    top: int,
    *,
    kind: Kind,
    left_out: Sequence[Iterable[int]] | None = None,
) -> Neighbours:
    """As `neighbours.nearest`, found by faiss. The whole gallery is copied into the index: it must fit into memory.

    `faiss` is IndexFlatIP, exact up to the rounding of float32. `faiss-ivf` looks into the 32 nearest of about
    4 sqrt(G) lists, `faiss-hnsw` follows a graph: both are approximate and may miss neighbours.

    Raises:
        UsageError: faiss is not installed.
    """
    forbidden = [set(items) for items in left_out or [()] * len(query_QD)]
    index, number_G = _filled(load_faiss(), gallery, query_QD.shape[1], kind)
    wanted = min(top + _SPARE + max(map(len, forbidden), default=0), max(1, len(number_G)))
    finite_Q = np.flatnonzero(np.isfinite(query_QD).all(axis=1))
    rows, items = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    if len(finite_Q) and len(number_G):
        _, found_QN = index.search(np.ascontiguousarray(query_QD[finite_Q], np.float32), wanted)
        for query, found_N in zip(finite_Q.tolist(), found_QN, strict=True):
            mine = number_G[found_N[found_N >= 0]]
            mine = mine[~np.isin(mine, list(forbidden[query]))]
            rows.append(np.full(len(mine), query, np.int64))
            items.append(mine)
    return ranked(query_QD, gallery, np.concatenate(rows), np.concatenate(items), top)


def _filled(faiss: Any, gallery: Gallery, width: int, kind: Kind) -> tuple[Any, np.ndarray]:
    """(the index, the gallery's number of each of its vectors); vectors that are not finite are left out."""
    index = _made(faiss, gallery, width, kind)
    numbers = [np.empty(0, np.int64)]
    for first, vectors_GD in gallery.blocks():
        kept = np.flatnonzero(np.isfinite(vectors_GD).all(axis=1))
        index.add(np.ascontiguousarray(vectors_GD[kept], np.float32))
        numbers.append(kept + first)
    return index, np.concatenate(numbers)


def _made(faiss: Any, gallery: Gallery, width: int, kind: Kind) -> Any:
    if kind == "faiss-hnsw":
        index = faiss.IndexHNSWFlat(width, _NEIGHBOURS_A_NODE, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction, index.hnsw.efSearch = 200, 128
        return index
    if kind == "faiss-ivf":
        lists = max(1, min(int(4 * math.sqrt(len(gallery))), len(gallery) // 40))
        index = faiss.IndexIVFFlat(faiss.IndexFlatIP(width), width, lists, faiss.METRIC_INNER_PRODUCT)
        index.nprobe = _LISTS_SEARCHED
        index.train(_sample(gallery, width, lists * _SAMPLES_A_LIST))
        return index
    return faiss.IndexFlatIP(width)


def _sample(gallery: Gallery, width: int, size: int) -> FloatArray:
    """About `size` finite vectors, evenly spread over the gallery."""
    step = max(1, len(gallery) // size)
    parts = [vectors_GD[-first % step :: step] for first, vectors_GD in gallery.blocks()]
    sample_ND = np.concatenate(parts) if parts else np.empty((0, width), np.float32)
    return np.ascontiguousarray(sample_ND[np.isfinite(sample_ND).all(axis=1)], np.float32)
