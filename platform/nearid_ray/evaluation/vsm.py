"""VSM: how much of what two pictures share in meaning they also share in looks (a baseline of the NearID paper).

It works on two feature maps of each picture: semantic features, which find the corresponding place, and visual ones,
which tell whether it looks the same there.

Axes: L locations of the first picture's object, M locations of the second's, D widths of features.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

SEMANTIC_ABOVE = 0.6
VISUAL_ABOVE = 0.6


def vsm_score(
    semantic_LD: ArrayLike,
    visual_LD: ArrayLike,
    other_semantic_MD: ArrayLike,
    other_visual_MD: ArrayLike,
    *,
    semantic_above: float = SEMANTIC_ABOVE,
    visual_above: float = VISUAL_ABOVE,
) -> float:
    """Share of the corresponding locations that look alike, 0..1; higher = more alike.

    For each location of the first object its best match (largest cosine) in the other picture, in semantic and in
    visual features separately. Locations with a semantic similarity above `semantic_above` are kept; the score is the
    share of those with a visual similarity above `visual_above`. The score has a direction: first to other.

    nan (not valid) where no location is kept, where a picture has none, or where a feature is not finite. Features of
    length zero match nothing.

    Args:
        semantic_LD, visual_LD: features at the locations of the first object (`object_locations` selects them).
        other_semantic_MD, other_visual_MD: those of the other picture, of the same widths.
        semantic_above, visual_above: cosines, -1..1.

    Raises:
        ValueError: the shapes do not belong together.

    Three locations: the first two have a counterpart, of which one looks the same.

    >>> semantic, visual = [[1, 0, 0], [0, 1, 0], [0, 0, 1]], [[1, 0], [0, 1], [1, 0]]
    >>> vsm_score(semantic, visual, [[1, 0, 0], [0, 2, 0]], [[3, 0], [3, 0]])
    0.5
    >>> vsm_score(semantic, visual, [[-1, -1, -1]], [[1, 0]])
    nan
    """
    first = [_features(features) for features in (semantic_LD, visual_LD)]
    other = [_features(features) for features in (other_semantic_MD, other_visual_MD)]
    for pair in (first, other):
        if len(pair[0]) != len(pair[1]):
            raise ValueError(f"{len(pair[0])} semantic and {len(pair[1])} visual locations; expected as many of each")
    for name, own, theirs in zip(("semantic", "visual"), first, other, strict=True):
        if own.shape[1] != theirs.shape[1]:
            raise ValueError(f"{name} features are {own.shape[1]} and {theirs.shape[1]} wide; expected equal widths")
    if not len(first[0]) or not len(other[0]) or not all(np.isfinite(a).all() for a in (*first, *other)):
        return math.nan
    semantic_L, visual_L = (_best_match(own, theirs) for own, theirs in zip(first, other, strict=True))
    kept = semantic_L > semantic_above
    return float(np.mean(visual_L[kept] > visual_above)) if kept.any() else math.nan


def object_locations(mask_HW: ArrayLike, rows: int, columns: int, *, covered: float = 0.5) -> NDArray[np.int64]:
    """Locations of a feature map (row by row) that an object's mask covers.

    Args:
        mask_HW: non-zero = object, of any size.
        rows, columns: size of the feature map.
        covered: share of a location's area that must be object, above 0 to 1. Where no location reaches it (a small
            object), the best covered ones; none for an empty mask.

    >>> object_locations([[1, 1, 0, 0], [1, 0, 0, 0]], 1, 2).tolist()
    [0]
    >>> object_locations([[0, 0], [0, 0]], 1, 1).tolist()
    []
    """
    mask = (np.asarray(mask_HW) != 0).astype(np.float64)
    if mask.ndim != 2 or not 0 < covered <= 1:
        raise ValueError(f"mask of shape {mask.shape}, covered {covered}; expected (height, width) and above 0 to 1")
    share = (_overlaps(mask.shape[0], rows) @ mask @ _overlaps(mask.shape[1], columns).T).reshape(-1)
    best = share.max(initial=0.0)
    return np.flatnonzero(share >= min(covered, best) - 1e-9) if best > 0 else np.empty(0, np.int64)


def _overlaps(pixels: int, cells: int) -> NDArray[np.float64]:
    """Share of each cell that each pixel fills, shape (cells, pixels), when both span the same length."""
    start, end = np.arange(cells)[:, None] / cells, (np.arange(cells)[:, None] + 1) / cells
    low, high = np.arange(pixels)[None, :] / pixels, (np.arange(pixels)[None, :] + 1) / pixels
    return np.asarray(np.clip(np.minimum(end, high) - np.maximum(start, low), 0, None) * cells)


def _features(features: ArrayLike) -> NDArray[np.float32]:
    array = np.asarray(features, np.float32)
    if array.ndim != 2:
        raise ValueError(f"features have shape {array.shape}; expected (locations, width)")
    return array


def _best_match(own_LD: NDArray[np.float32], other_MD: NDArray[np.float32]) -> NDArray[np.float32]:
    """Largest cosine of each own feature with any other one."""
    own, other = (a / np.maximum(np.linalg.norm(a, axis=1, keepdims=True), 1e-12) for a in (own_LD, other_MD))
    return np.asarray((own @ other.T).max(axis=1))
