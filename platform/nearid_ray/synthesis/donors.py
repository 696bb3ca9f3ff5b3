"""Which identity lends its object to another one's background."""

from collections.abc import Mapping, Sequence

import numpy as np


def choose_donor(
    identity_id: str,
    category: str,
    candidates: Sequence[str],
    embeddings: Mapping[str, np.ndarray] | None = None,
) -> str | None:
    """The donor for an identity among `candidates` (identities of its category), or None where there is none.

    With `embeddings` (identity_id -> mean embedding of its views) it is the one of the largest cosine; equal cosines
    are settled by the smaller id, candidates without a usable embedding are passed over. Without embeddings, or where
    the identity or all candidates lack one, it is the next id in sorted, cyclic order, so that every identity of a
    category lends exactly once. An identity is never its own donor; an unknown category ("") has none. The order of
    `candidates` does not matter.

    >>> choose_donor("photos:b", "mug", ["photos:a", "photos:b", "photos:c"])
    'photos:c'
    >>> choose_donor("photos:c", "mug", ["photos:a", "photos:b", "photos:c"])
    'photos:a'
    """
    others = {candidate for candidate in candidates if candidate != identity_id}
    if not category or not others:
        return None
    own = _direction(embeddings or {}, identity_id)
    if own is not None:
        directions = {other: _direction(embeddings or {}, other) for other in others}
        cosines = {other: float(own @ direction) for other, direction in directions.items() if direction is not None}
        if cosines:
            return min(cosines, key=lambda other: (-cosines[other], other))
    later = [other for other in others if other > identity_id]
    return min(later or others)


def _direction(embeddings: Mapping[str, np.ndarray], identity_id: str) -> np.ndarray | None:
    """The unit vector of an identity, or None where it has no embedding or one without direction."""
    if identity_id not in embeddings:
        return None
    vector = np.asarray(embeddings[identity_id], np.float64)
    length = np.linalg.norm(vector)
    return vector / length if np.isfinite(length) and length > 0 else None
