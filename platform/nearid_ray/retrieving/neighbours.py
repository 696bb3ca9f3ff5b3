"""Nearest neighbours by cosine, exact: a matrix product in blocks, whose best are merged as they come.

Memory does not grow with the gallery: a block of it, its similarities to a block of queries, and the best so far are
all that is held. The product is in float32; everything that its rounding could have put among the best is compared
again in float64, sum by sum in a fixed order. So the result is exact, equal pictures have equal similarities wherever
they stand, and blocks of any size give the same digits.

Axes: Q queries, G gallery items, D dimensions, K neighbours, N candidates.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]

QUERY_BLOCK = 256
GALLERY_BLOCK = 16_384
NOBODY = -1
"""In place of a neighbour where the gallery has too few."""

_ROUNDING = 2.0**-24
_MOST_TIED = 4096
"""Candidates a query beyond those asked for: so many pictures that are as good as equal are told apart."""
_CHUNK = 4096
"""Candidates compared at a time."""
_NONE = np.empty(0, np.int64)


class Gallery(Protocol):
    """Unit vectors to search, read block by block, always in the same order."""

    def __len__(self) -> int: ...

    def blocks(self) -> Iterator[tuple[int, FloatArray]]:
        """(number of the first item, vectors GD) one after the other; rows that are not finite are never found."""


@dataclass(frozen=True, eq=False)
class ArrayGallery:
    """A gallery that is held in memory."""

    vectors_GD: FloatArray
    block: int = GALLERY_BLOCK

    def __len__(self) -> int:
        return len(self.vectors_GD)

    def blocks(self) -> Iterator[tuple[int, FloatArray]]:
        for start in range(0, len(self.vectors_GD), self.block):
            yield start, self.vectors_GD[start : start + self.block]


@dataclass(frozen=True, eq=False)
class Neighbours:
    """The nearest gallery items of each query, the most alike first."""

    item_QK: IntArray
    """Numbers of gallery items; -1 where there are no more."""
    similarity_QK: NDArray[np.float64]
    """Cosines; nan where there is no item."""


def nearest(
    query_QD: FloatArray,
    gallery: Gallery,
    top: int,
    *,
    left_out: Sequence[Iterable[int]] | None = None,
) -> Neighbours:
    """The `top` most similar gallery items of each query, found exactly; equal ones in the gallery's order.

    Args:
        query_QD: unit rows. A row that is not finite finds nothing.
        left_out: for each query the gallery items that it must not find, such as its own picture.

    Raises:
        ValueError: top is below 1, or the gallery's vectors have another length.

    >>> gallery = ArrayGallery(np.array([[0, 1], [1, 0], [0.6, 0.8], [1, 0]], np.float32))
    >>> found = nearest(np.array([[1, 0]], np.float32), gallery, 3)
    >>> found.item_QK.tolist(), found.similarity_QK.round(3).tolist()
    ([[1, 3, 2]], [[1.0, 1.0, 0.6]])
    >>> nearest(np.array([[1, 0]], np.float32), gallery, 2, left_out=[[1]]).item_QK.tolist()
    [[3, 2]]
    """
    if top < 1:
        raise ValueError(f"top is {top}; expected 1 or more")
    query_QD = np.ascontiguousarray(query_QD, np.float32)
    forbidden = [np.array(sorted(set(items)), np.int64) for items in left_out or [[]] * len(query_QD)]
    if len(forbidden) != len(query_QD):
        raise ValueError(f"{len(forbidden)} lists of items to leave out for {len(query_QD)} queries")
    starts = range(0, len(query_QD), QUERY_BLOCK)
    parts = [_Candidates(query_QD[i : i + QUERY_BLOCK], top, forbidden[i : i + QUERY_BLOCK]) for i in starts]
    for first, vectors_GD in gallery.blocks():
        if vectors_GD.shape[1] != query_QD.shape[1]:
            raise ValueError(
                f"queries have {query_QD.shape[1]} dimensions, the gallery {vectors_GD.shape[1]}; expected the same"
            )
        block_GD = np.ascontiguousarray(vectors_GD, np.float32)
        for part in parts:
            part.look_through(first, block_GD)
    row_N = np.concatenate([part.row_N + start for start, part in zip(starts, parts, strict=True)] or [_NONE])
    return ranked(query_QD, gallery, row_N, np.concatenate([part.item_N for part in parts] or [_NONE]), top)


def ranked(query_QD: FloatArray, gallery: Gallery, row_N: IntArray, item_N: IntArray, top: int) -> Neighbours:
    """The `top` best of candidates, compared in float64: query `row_N[n]` with gallery item `item_N[n]`.

    >>> gallery = ArrayGallery(np.array([[0, 1], [1, 0]], np.float32))
    >>> ranked(np.array([[0.6, 0.8]], np.float32), gallery, np.array([0, 0]), np.array([1, 0]), 1).item_QK.tolist()
    [[0]]
    """
    by_item = np.argsort(item_N, kind="stable")
    row_N, item_N = row_N[by_item], item_N[by_item]
    exact_N = np.full(len(item_N), np.nan)
    for first, vectors_GD in gallery.blocks():
        part = slice(*np.searchsorted(item_N, (first, first + len(vectors_GD))))
        exact_N[part] = cosines(vectors_GD[item_N[part] - first], query_QD[row_N[part]])
    order = np.lexsort((item_N, -exact_N, row_N))
    row_N, item_N, exact_N = row_N[order], item_N[order], exact_N[order]
    rank_N = _place_in_row(row_N)
    best = rank_N < top
    item_QK = np.full((len(query_QD), top), NOBODY, np.int64)
    similarity_QK = np.full((len(query_QD), top), np.nan)
    item_QK[row_N[best], rank_N[best]] = item_N[best]
    similarity_QK[row_N[best], rank_N[best]] = exact_N[best]
    return Neighbours(item_QK=item_QK, similarity_QK=similarity_QK)


def cosines(first_ND: FloatArray, second_ND: FloatArray) -> NDArray[np.float64]:
    """Dot products of rows in float64, each summed in the same order: the digits depend on the two rows alone.

    >>> cosines(np.array([[0.6, 0.8]], np.float32), np.array([[1, 0]], np.float32)).round(3).tolist()
    [0.6]
    """
    found_N = np.empty(len(first_ND))
    for start in range(0, len(first_ND), _CHUNK):
        part = slice(start, start + _CHUNK)
        found_N[part] = (first_ND[part].astype(np.float64) * second_ND[part].astype(np.float64)).sum(axis=1)
    return found_N


class _Candidates:
    """What may be among the best of a block of queries, as (query, item, similarity) side by side."""

    def __init__(self, query_QD: FloatArray, top: int, forbidden: Sequence[IntArray]) -> None:
        self._query_QD, self._top, self._forbidden = query_QD, top, forbidden
        self.row_N, self.item_N = np.empty(0, np.int64), np.empty(0, np.int64)
        self._similarity_N = np.empty(0, np.float32)
        # A float32 product of unit vectors is off by at most D * 2^-24 (any order of summation); two are compared.
        self._tolerance = np.float32(2 * query_QD.shape[1] * _ROUNDING)
        self._floor_Q = np.full(len(query_QD), -np.inf, np.float32)

    def look_through(self, first: int, block_GD: FloatArray) -> None:
        with np.errstate(invalid="ignore", over="ignore"):
            similarity_QG = self._query_QD @ block_GD.T
        similarity_QG[~np.isfinite(similarity_QG)] = -np.inf
        for query, items in enumerate(self._forbidden):
            inside = items[(items >= first) & (items < first + len(block_GD))]
            similarity_QG[query, inside - first] = -np.inf
        if (self._floor_Q == -np.inf).any() and len(block_GD) > self._top:
            own_Q = np.partition(similarity_QG, -self._top, axis=1)[:, -self._top]
            self._floor_Q = np.maximum(self._floor_Q, own_Q - self._tolerance)
        row_N, place_N = np.nonzero((similarity_QG >= self._floor_Q[:, None]) & (similarity_QG > -np.inf))
        if len(row_N):
            self.row_N = np.concatenate([self.row_N, row_N])
            self.item_N = np.concatenate([self.item_N, place_N + first])
            self._similarity_N = np.concatenate([self._similarity_N, similarity_QG[row_N, place_N]])
            self._drop_the_rest()

    def _drop_the_rest(self) -> None:
        """Keep what is as good as the last of the best, by more than rounding could hide."""
        self._keep(np.lexsort((self.item_N, -self._similarity_N, self.row_N)))
        place_N = _place_in_row(self.row_N)
        last = place_N == self._top - 1
        self._floor_Q[self.row_N[last]] = self._similarity_N[last] - self._tolerance
        kept = (self._similarity_N >= self._floor_Q[self.row_N]) & (place_N < self._top + _MOST_TIED)
        self._keep(np.flatnonzero(kept))

    def _keep(self, which: IntArray) -> None:
        self.row_N, self.item_N = self.row_N[which], self.item_N[which]
        self._similarity_N = self._similarity_N[which]


def _place_in_row(row_N: IntArray) -> IntArray:
    """0, 1, 2, ... within each run of equal rows.

    >>> _place_in_row(np.array([3, 3, 5])).tolist()
    [0, 1, 0]
    """
    starts = np.flatnonzero(np.diff(row_N, prepend=-1))
    return np.arange(len(row_N)) - np.repeat(starts, np.diff(starts, append=len(row_N)))
