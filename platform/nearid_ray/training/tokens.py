"""Reading cached tokens for the head.

Axes: N items, T tokens, D token width.
"""

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from nearid_ray.errors import UsageError

T = TypeVar("T")

_CHUNK_BYTES = 256 << 20
"""How much is read at a time where a whole cache is."""


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

    @property
    def disk_bytes(self) -> int:
        """What the tokens take on disk; 0 where they are computed when they are asked for."""
        ...

    def blank_TD(self) -> NDArray[np.float16]:
        """Tokens (T, D) of a mid-grey picture, which the released implementation has in empty slots."""
        ...

    def gather(self, index_rows: NDArray[np.int64], out: NDArray[np.float16]) -> object:
        """Copies the tokens of index rows into `out`, of shape (rows, tokens, width)."""
        ...


class TokenReader:
    """Reads items into buffers that are used again and again."""

    def __init__(self, cache: Cache, device: torch.device, buffers: int = 1) -> None:
        """`buffers` is how many results stay valid on the CPU: the next but so many overwrites the first."""
        self._cache = cache
        self._device = device
        self._buffers = [torch.empty(0, cache.tokens, cache.width, dtype=torch.float16) for _ in range(buffers)]
        self._next = 0
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    @property
    def item_bytes(self) -> int:
        """Size of an item in a buffer."""
        return 2 * self._cache.tokens * self._cache.width

    def read_NTD(self, index_rows: NDArray[np.int64], *, on_device: bool = True) -> Tensor:
        """Tokens of some index rows, float16, on the device (or, if wished, on the host).

        On the host the result is the buffer itself: it changes when the buffer is used again.
        """
        place, self._next = self._next, (self._next + 1) % len(self._buffers)
        if len(index_rows) > len(self._buffers[place]):
            shape = (len(index_rows), *self._buffers[place].shape[1:])
            self._buffers[place] = torch.empty(shape, dtype=torch.float16, pin_memory=self._stream is not None)
        out = self._buffers[place][: len(index_rows)]
        if len(index_rows):
            self._cache.gather(np.ascontiguousarray(index_rows, np.int64), out.numpy())
        if self._stream is None or not on_device:
            return out
        # A stream of its own: the copy overlaps with the computation of the step before.
        with torch.cuda.stream(self._stream):
            copy = out.to(self._device, non_blocking=True)
        self._stream.synchronize()
        copy.record_stream(torch.cuda.default_stream(self._device))
        return copy


class ResidentTokens:
    """The tokens of some items, all held on the device."""

    def __init__(self, cache: Cache, device: torch.device, index_rows: NDArray[np.int64]) -> None:
        """Reads them once.

        Raises:
            UsageError: the device has no room for them.
        """
        rows = np.unique(index_rows[index_rows >= 0])
        self._place_N = np.full(len(cache.index), -1, np.int64)
        self._place_N[rows] = np.arange(len(rows))
        size = 2 * len(rows) * cache.tokens * cache.width
        try:
            self._held_MTD = torch.empty(len(rows), cache.tokens, cache.width, dtype=torch.float16, device=device)
        except (torch.OutOfMemoryError, RuntimeError) as error:
            raise UsageError(
                f"the tokens of {len(rows)} items are {size / 2**30:.1f} GiB, for which {device} has no room; leave "
                "out --resident, or train on fewer draws or engines"
            ) from error
        reader = TokenReader(cache, device)
        each = max(1, _CHUNK_BYTES // reader.item_bytes)
        for start in range(0, len(rows), each):
            self._held_MTD[start : start + each] = reader.read_NTD(rows[start : start + each])

    def read_NTD(self, index_rows: NDArray[np.int64], *, on_device: bool = True) -> Tensor:
        """Tokens of some of the held items, on the device."""
        return self._held_MTD[torch.from_numpy(self._place_N[index_rows]).to(self._held_MTD.device)]


class Ahead(Generic[T]):
    """What a step needs, made on a thread while the step before is in use."""

    def __init__(self, make: Callable[[int], T], end: int) -> None:
        """`make` gives what a step needs; steps from `end` on are not made ahead."""
        self._make, self._end = make, end
        self._thread: ThreadPoolExecutor | None = None
        self._coming: tuple[int, Future[T]] | None = None

    def take(self, step: int) -> T:
        """What a step needs. What an error of the making was, it is raised here."""
        coming, self._coming = self._coming, None
        ready = coming is not None and coming[0] == step
        value = coming[1].result() if coming is not None and ready else self._make(step)
        if step + 1 < self._end:
            self._thread = self._thread or ThreadPoolExecutor(1, "next-step")
            self._coming = (step + 1, self._thread.submit(self._make, step + 1))
        return value

    def close(self) -> None:
        """End the thread; what is under way is finished and dropped."""
        if self._thread is not None:
            self._thread.shutdown(wait=True, cancel_futures=True)
        self._thread = self._coming = None
