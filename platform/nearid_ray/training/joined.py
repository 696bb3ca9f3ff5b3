"""Several token caches of one backbone as one, for training on a mix of datasets.

Axes: N items, T tokens, D token width.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from nearid_ray.data.plan import differences
from nearid_ray.embedding.cache import TokenCache
from nearid_ray.errors import UsageError
from nearid_ray.identifiers import stable_hash

# What a folder's place decides, and not the function that the backbone computes.
_INCIDENTAL = ("spec", "revision", "parameters")


class JoinedCache:
    """Token caches side by side: the rows of the first, then those of the second, and so on."""

    def __init__(self, caches: Sequence[TokenCache]) -> None:
        """Raises UsageError when the caches hold tokens of different backbones, or an identity is in two of them."""
        self._caches = list(caches)
        first = self._caches[0]
        for other in self._caches[1:]:
            differing = differences(_function(first), _function(other))
            if differing:
                raise UsageError(
                    f"{first.uri} and {other.uri} hold tokens of different backbones:\n  "
                    + "\n  ".join(differing)
                    + "\nEmbed all data with one backbone."
                )
        _check_apart(self._caches)
        self.index = pa.concat_tables(cache.index for cache in self._caches).combine_chunks()
        self._start_C = np.cumsum([0, *(len(cache) for cache in self._caches)])
        self.fingerprint = stable_hash(*(cache.fingerprint for cache in self._caches))
        self.backbone: dict[str, Any] = first.backbone
        self.tokens, self.width = first.tokens, first.width
        self.disk_bytes = sum(cache.disk_bytes for cache in self._caches)
        self.uri = " ".join(cache.uri for cache in self._caches)

    def head_state(self) -> dict[str, Any]:
        """Weights of the backbone's own head."""
        return self._caches[0].head_state()

    def blank_TD(self) -> NDArray[np.float16]:
        """Tokens of a mid-grey picture."""
        return self._caches[0].blank_TD()

    def gather(self, index_rows: NDArray[np.int64], out: NDArray[np.float16]) -> NDArray[np.float16]:
        """Copy the tokens of the given rows of `index` into `out` (N, T, D), in their order; returns `out`."""
        cache_N = np.searchsorted(self._start_C, index_rows, side="right") - 1
        for place, cache in enumerate(self._caches):
            mine = np.flatnonzero(cache_N == place)
            if len(mine):
                cache.gather(index_rows[mine] - self._start_C[place], out, mine)
        return out


def _function(cache: TokenCache) -> dict[str, Any]:
    return {name: value for name, value in cache.backbone.items() if name not in _INCIDENTAL}


def _check_apart(caches: Sequence[TokenCache]) -> None:
    owner: dict[str, TokenCache] = {}
    for cache in caches:
        for identity in cache.index["identity_id"].unique().to_pylist():
            if identity in owner:
                raise UsageError(
                    f"{owner[identity].uri} and {cache.uri} both hold the identity {identity}; give caches of "
                    "different data (a source is repeated with --repeats SOURCE=N)"
                )
            owner[identity] = cache
