"""Reading cached tokens for the head.

Axes: N items, T tokens, D token width.
"""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor


class Cache(Protocol):
    """What training needs of a token cache."""

    @property
    def index(self) -> pa.Table:
        """One row an item: what it shows and where its tokens lie."""
        ...

    @property
    def fingerprint(self) -> str:
        """Name of what the tokens are: data, backbone, augmentation."""
        ...

    @property
    def backbone(self) -> Mapping[str, Any]:
        """Who made the tokens: spec, fingerprint, heads, layer_norm_eps and more."""
        ...

    def head_state(self) -> dict[str, Any]:
        """Weights of the backbone's own attention-pooling head."""
        ...

    @property
    def tokens(self) -> int:
        """Tokens of an item."""
        ...

    @property
    def width(self) -> int:
        """Width of a token."""
        ...

    def gather(self, index_rows: NDArray[np.int64], out: NDArray[np.float16]) -> object:
        """Copies the tokens of index rows into `out`, of shape (rows, tokens, width)."""
        ...


class TokenReader:
    """Reads items into one buffer that is used again and again."""

    def __init__(self, cache: Cache, device: torch.device) -> None:
        self._cache = cache
        self._device = device
        self._buffer: NDArray[np.float16] = np.empty((0, cache.tokens, cache.width), np.float16)

    def read_NTD(self, index_rows: NDArray[np.int64]) -> Tensor:
        """Tokens of some index rows, float16, on the device.

        On the CPU the result is the buffer itself: it changes with the next call.
        """
        if len(index_rows) > len(self._buffer):
            self._buffer = np.empty((len(index_rows), *self._buffer.shape[1:]), np.float16)
        out = self._buffer[: len(index_rows)]
        if len(index_rows):
            self._cache.gather(np.ascontiguousarray(index_rows, np.int64), out)
        return torch.from_numpy(out).to(self._device)
