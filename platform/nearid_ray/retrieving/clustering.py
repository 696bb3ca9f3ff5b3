"""Groups of pictures that show the same identity, and how well they match the identities that are known.

Axes: N pictures, D dimensions.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nearid_ray.errors import UsageError
from nearid_ray.retrieving.memory import available_bytes, gib

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

_SHARE = 0.8
"""Of the free memory, what the distances may take."""


@dataclass(frozen=True, eq=False)
class Tree:
    """Merges of average linkage on cosine distances, the nearest first, as scikit-learn numbers them."""

    children_M2: IntArray
    """What merge m joins: a picture below N, else merge number - N."""
    distance_M: FloatArray
    """Mean cosine distance (0..2) between the two sides."""
    count: int
    """Pictures."""

    def cut(self, *, distance: float | None = None, clusters: int | None = None) -> IntArray:
        """Labels (N,) of the groups: those that are nearer than `distance` merged, or so many groups left.

        >>> tree = linkage(np.array([[1.0, 0], [0.8, 0.6], [0, 1]]))
        >>> tree.cut(distance=0.5).tolist(), tree.cut(clusters=1).tolist(), tree.cut(distance=0.1).tolist()
        ([0, 0, 1], [0, 0, 0], [0, 1, 2])
        """
        if clusters is not None:
            merges = max(0, self.count - clusters)
        else:
            merges = int(np.searchsorted(self.distance_M, math.inf if distance is None else distance, side="left"))
        parent = np.arange(self.count + merges)
        for number, (left, right) in enumerate(self.children_M2[:merges].tolist()):
            parent[left] = parent[right] = self.count + number
        for node in range(len(parent) - 1, -1, -1):  # a parent has a higher number than its children
            parent[node] = parent[parent[node]]
        return ordered_labels(parent[: self.count])


@dataclass(frozen=True, kw_only=True)
class ClusterScores:
    """How well labels match identities, over the pictures whose identity is known; nan where nothing is comparable."""

    adjusted_rand: float
    """Adjusted Rand index: 1 = the same groups, 0 = as by chance."""
    homogeneity: float
    """1 = every cluster shows one identity alone."""
    completeness: float
    """1 = every identity is in one cluster alone."""
    v_measure: float
    """Harmonic mean of both."""
    pair_precision: float
    """Share of the pairs in one cluster that show the same identity."""
    pair_recall: float
    """Share of the pairs of the same identity that are in one cluster."""
    pictures: int
    """Pictures whose identity is known."""


def distance_bytes(count: int) -> int:
    """Memory that average linkage of so many pictures takes: all distances, and a working copy of them.

    >>> distance_bytes(50_000) // 10**9
    19
    """
    return 2 * 8 * count * (count - 1) // 2


def check_memory(count: int, memory_gib: float | None = None) -> None:
    """Refuse what does not fit, with the arithmetic.

    Args:
        memory_gib: what may be taken; most of what is free when left out.
    """
    needed = distance_bytes(count)
    limit = memory_gib * 2**30 if memory_gib is not None else _SHARE * available_bytes()
    if limit and needed > limit:
        most = int((1 + math.sqrt(1 + limit / 2)) / 2)
        raise UsageError(
            f"{count:,} pictures have {count * (count - 1) // 2:,} distances; twice 8 bytes each are {gib(needed)}, "
            f"and {gib(limit)} may be taken: enough for {most:,} pictures. Choose fewer (--roles, --splits), another "
            "machine, or --method hdbscan, which holds no matrix of distances"
        )


def linkage(vectors_ND: NDArray[np.floating]) -> Tree:
    """Average linkage on cosine distances (scikit-learn's AgglomerativeClustering), the whole tree.

    Raises:
        ValueError: fewer than two pictures, or a vector that is not finite.
    """
    if len(vectors_ND) < 2 or not np.isfinite(vectors_ND).all():
        raise ValueError(f"{len(vectors_ND)} vectors; expected 2 or more, all finite")
    from sklearn.cluster import AgglomerativeClustering

    made = AgglomerativeClustering(
        n_clusters=None, distance_threshold=0.0, metric="cosine", linkage="average", compute_full_tree=True
    ).fit(vectors_ND.astype(np.float64))
    return Tree(made.children_.astype(np.int64), np.maximum.accumulate(made.distances_), len(vectors_ND))


def hdbscan(vectors_ND: NDArray[np.floating], *, smallest: int, samples: int | None = None) -> IntArray:
    """Labels by scikit-learn's HDBSCAN on unit vectors (Euclidean distance, which orders pairs as the cosine does); -1
    for pictures in no cluster.

    Args:
        smallest: pictures of the smallest cluster, 2 or more.
        samples: neighbours that make a place dense; `smallest` when left out.
    """
    from sklearn.cluster import HDBSCAN

    made = HDBSCAN(min_cluster_size=smallest, min_samples=samples, metric="euclidean", copy=True)
    return np.asarray(made.fit(vectors_ND.astype(np.float64)).labels_, np.int64)


def alone_each(label_N: IntArray) -> tuple[IntArray, NDArray[np.bool_]]:
    """(labels in which every picture of no cluster is one of its own, which pictures those are).

    >>> [value.tolist() for value in alone_each(np.array([-1, 7, 7, -1]))]
    [[1, 0, 0, 2], [True, False, False, True]]
    """
    noise_N = label_N < 0
    label_N = label_N.copy()
    label_N[noise_N] = label_N.max(initial=0) + 1 + np.arange(int(noise_N.sum()))
    return ordered_labels(label_N), noise_N


def ordered_labels(label_N: NDArray[np.integer]) -> IntArray:
    """The same groups numbered from 0, the largest first, equal ones by their first picture.

    >>> ordered_labels(np.array([5, 3, 3, 9])).tolist()
    [1, 0, 0, 2]
    """
    names, first, inverse, counts = np.unique(label_N, return_index=True, return_inverse=True, return_counts=True)
    rank = np.empty(len(names), np.int64)
    rank[np.lexsort((first, -counts))] = np.arange(len(names))
    return rank[inverse]


def cluster_scores(label_N: Sequence[int] | IntArray, identity_N: Sequence[str | None]) -> ClusterScores:
    """Scores of labels against identities; pictures of unknown identity (None) are left out.

    Pairs: precision is nan where no two pictures share a cluster, recall where no two show the same identity.

    >>> found = cluster_scores([0, 0, 0, 1], ["a", "a", "b", None])
    >>> round(found.pair_precision, 3), found.pair_recall, found.pictures
    (0.333, 1.0, 3)
    """
    from sklearn.metrics import adjusted_rand_score, homogeneity_completeness_v_measure

    known = [place for place, name in enumerate(identity_N) if name is not None]
    labels = np.asarray(label_N)[known]
    names = [identity_N[place] for place in known]
    both = _pairs(list(zip(labels.tolist(), names, strict=True)))
    together, same = _pairs(labels.tolist()), _pairs(names)
    homogeneity, completeness, v = homogeneity_completeness_v_measure(names, labels) if known else (math.nan,) * 3
    return ClusterScores(
        adjusted_rand=float(adjusted_rand_score(names, labels)) if known else math.nan,
        homogeneity=float(homogeneity),
        completeness=float(completeness),
        v_measure=float(v),
        pair_precision=both / together if together else math.nan,
        pair_recall=both / same if same else math.nan,
        pictures=len(known),
    )


def best_distance(tree: Tree, identity_N: Sequence[str | None], *, steps: int = 200) -> tuple[float, float]:
    """(distance, adjusted Rand index) of the cut that matches known identities best: for a validation split.

    Looked for among at most `steps` places between merges, evenly spread; of equal ones the smallest distance.

    Raises:
        UsageError: no two pictures show the same identity, or all do.

    >>> tree = linkage(np.array([[1.0, 0], [0.9, 0.436], [0, 1]]))
    >>> distance, rand = best_distance(tree, ["a", "a", "b"])
    >>> 0.1 < distance < 0.9, rand
    (True, 1.0)
    """
    from sklearn.metrics import adjusted_rand_score

    known = [place for place, name in enumerate(identity_N) if name is not None]
    names = [identity_N[place] for place in known]
    if len(set(names)) in (0, 1, len(names)):
        raise UsageError(
            "a threshold cannot be chosen: it takes pictures of several identities, some with two or more; give "
            "--threshold, --clusters or --calibration"
        )
    ends = np.unique(tree.distance_M)
    between = np.concatenate([[ends[0] / 2], (ends[1:] + ends[:-1]) / 2, [ends[-1] + 1e-6]])
    chosen = between[np.unique(np.linspace(0, len(between) - 1, min(steps, len(between))).round().astype(int))]
    rated = [(float(adjusted_rand_score(names, tree.cut(distance=one)[known])), one) for one in chosen.tolist()]
    rand, distance = max(rated, key=lambda pair: (pair[0], -pair[1]))
    return distance, rand


def _pairs(groups: Sequence[object]) -> int:
    return sum(count * (count - 1) // 2 for count in Counter(groups).values())
