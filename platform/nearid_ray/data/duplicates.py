"""Near-duplicates: views of different identities whose perceptual hashes differ in a few bits at most.

Axes: N views, M pairs, I identities.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from nearid_ray.data.perceptual import BITS, hash_bits, hash_distance

_CELLS = 4 << 20
"""Pairs compared at once: 32 MB of differing bits."""

PAIRS = pa.schema(
    [
        pa.field("first_identity_id", pa.string()),
        pa.field("first_view_index", pa.int32()),
        pa.field("first_split", pa.string()),
        pa.field("second_identity_id", pa.string()),
        pa.field("second_view_index", pa.int32()),
        pa.field("second_split", pa.string()),
        pa.field("distance", pa.int32()),
        pa.field("across_splits", pa.bool_()),
    ]
)
"""The report: one row a pair of views of two identities."""


@dataclass(frozen=True)
class HashedViews:
    """Views that have a perceptual hash, in a fixed order."""

    hash_N: NDArray[np.uint64]
    identity_ids: Sequence[str]
    view_indices: Sequence[int]
    splits: Sequence[str]

    @classmethod
    def of(cls, views: Sequence[tuple[str, str, int, str]]) -> "HashedViews":
        """From (hash in hex or empty, identity_id, view_index, split); those without a hash are left out."""
        some = sorted((view for view in views if view[0]), key=lambda view: (view[1], view[2]))
        hashes, identities, indices, splits = zip(*some, strict=True) if some else ((), (), (), ())
        return cls(hash_bits(list(hashes)), identities, indices, splits)


@dataclass(frozen=True)
class NearPairs:
    """Pairs of places in the views, first < second, in ascending order."""

    first_M: NDArray[np.int64]
    second_M: NDArray[np.int64]
    distance_M: NDArray[np.int64]
    complete: bool
    """Whether these are all; False where the search ended at the largest number wanted."""


def near_pairs(hash_N: NDArray[np.uint64], group_N: NDArray[np.int64], radius: int, most: int = 1_000_000) -> NearPairs:
    """All pairs of different groups whose hashes differ in at most `radius` bits, 0 to 63.

    Exact: every pair is compared, some millions at once (45,000 views take about two seconds on one core, memory stays
    below 100 MB). The search ends early where more than `most` pairs are found: such hashes say nothing.
    """
    if not 0 <= radius < BITS:
        raise ValueError(f"radius is {radius}; expected 0 to {BITS - 1} bits")
    firsts, seconds, distances, found = [], [], [], 0
    count, start, complete = len(hash_N), 0, True
    while start < count and complete:
        end = min(count, start + max(1, _CELLS // (count - start)))
        distance = hash_distance(hash_N[start:end, None], hash_N[None, start:])
        row, column = np.nonzero(distance <= radius)
        other = (row < column) & (group_N[start + row] != group_N[start + column])
        row, column = row[other], column[other]
        firsts.append(start + row)
        seconds.append(start + column)
        distances.append(distance[row, column].astype(np.int64))
        found += len(row)
        complete, start = found <= most, end
    empty = [np.empty(0, np.int64)]
    first_M, second_M, distance_M = (np.concatenate(parts or empty)[:most] for parts in (firsts, seconds, distances))
    return NearPairs(first_M, second_M, distance_M, complete)


def find_duplicates(views: HashedViews, radius: int, most: int = 1_000_000) -> tuple[pa.Table, bool]:
    """(the `PAIRS` of different identities, closest first; whether these are all)."""
    places = {name: place for place, name in enumerate(dict.fromkeys(views.identity_ids))}
    group_N = np.array([places[name] for name in views.identity_ids], np.int64)
    pairs = near_pairs(views.hash_N, group_N, radius, most)
    order = np.lexsort((pairs.second_M, pairs.first_M, pairs.distance_M))
    columns: dict[str, list] = {name: [] for name in PAIRS.names}
    for first, second, distance in zip(
        pairs.first_M[order].tolist(), pairs.second_M[order].tolist(), pairs.distance_M[order].tolist(), strict=True
    ):
        for side, place in (("first", first), ("second", second)):
            columns[f"{side}_identity_id"].append(views.identity_ids[place])
            columns[f"{side}_view_index"].append(views.view_indices[place])
            columns[f"{side}_split"].append(views.splits[place])
        columns["distance"].append(distance)
        columns["across_splits"].append(views.splits[first] != views.splits[second])
    return pa.table(columns, schema=PAIRS), pairs.complete


def to_drop(pairs: pa.Table, order: Sequence[str]) -> dict[str, str]:
    """identity to drop -> the kept identity it is a near-duplicate of.

    In the given order an identity is kept unless it is a near-duplicate of one kept before: no pair is left, and what
    is kept depends on nothing but the pairs and the order. `order` holds every identity of the pairs.
    """
    near: dict[str, set[str]] = {}
    for first, second in zip(
        pairs["first_identity_id"].to_pylist(), pairs["second_identity_id"].to_pylist(), strict=True
    ):
        near.setdefault(first, set()).add(second)
        near.setdefault(second, set()).add(first)
    rank = {name: place for place, name in enumerate(order)}
    dropped: dict[str, str] = {}
    for name in sorted(near, key=lambda name: rank[name]):
        kept = [other for other in near[name] if rank[other] < rank[name] and other not in dropped]
        if kept:
            dropped[name] = min(kept, key=lambda other: rank[other])
    return dropped
