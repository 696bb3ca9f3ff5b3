"""Where training gets its tokens from, in a form that travels to the workers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from nearid_ray.embedding.cache import TokenCache
from nearid_ray.errors import UsageError
from nearid_ray.training.joined import JoinedCache
from nearid_ray.training.tokens import Cache


class TokenSource(Protocol):
    """Opens tokens, on the driver and on every worker."""

    def open(self, device: str = "cpu") -> Cache:
        """The tokens; `device` is where they are computed if they are."""
        ...

    def describe(self) -> dict[str, str]:
        """The inputs by name, for the record."""
        ...


@dataclass(frozen=True)
class CachedTokens:
    """Token caches that embed wrote, of different data and one backbone."""

    uris: tuple[str, ...]

    def open(self, device: str = "cpu") -> Cache:
        """The caches as one; those on S3 are read through copies on this machine's disk."""
        return open_caches(self.uris)

    def describe(self) -> dict[str, str]:
        if len(self.uris) == 1:
            return {"tokens": self.uris[0]}
        return {f"tokens{place}": uri for place, uri in enumerate(self.uris)}


def open_caches(uris: Sequence[str]) -> Cache:
    """One cache, or several as one.

    Raises:
        UsageError: there is none, one is named twice, or they do not go together (`JoinedCache`).
    """
    if not uris or len(set(uris)) != len(uris):
        raise UsageError(f"tokens names {list(uris)}; expected one or more token caches, each once")
    caches = [TokenCache.open(uri) for uri in uris]
    return caches[0] if len(caches) == 1 else JoinedCache(caches)
