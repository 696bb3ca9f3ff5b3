"""Deterministic identifiers and seeds.

Nothing here depends on position, batch, worker, process or time: the same content always has the same name, so a
rerun recognises what is done and a row can be made again from its own columns.
"""

import hashlib
import json
from typing import Any

_SEPARATOR = b"\x1f"


def content_hash(data: bytes) -> str:
    """Name of some bytes: the first 128 bits of their SHA-256, as 32 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()[:32]


def stable_hash(*parts: str | int) -> str:
    """Name of a tuple of strings and integers, as 16 hexadecimal digits.

    Parts are kept apart, so ``("ab", "c")`` and ``("a", "bc")`` differ; an integer and its decimal string are the same.
    """
    return hashlib.blake2b(_joined(parts), digest_size=8).hexdigest()


def seed_of(*parts: str | int) -> int:
    """A seed in [0, 2**63) drawn from a tuple of strings and integers."""
    return int.from_bytes(hashlib.blake2b(_joined(parts), digest_size=8, person=b"seed").digest(), "big") >> 1


def settings_digest(settings: dict[str, Any]) -> str:
    """Name of a JSON-like dictionary, independent of the order of its keys, as 16 hexadecimal digits."""
    canonical = json.dumps(settings, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.blake2b(canonical.encode(), digest_size=8).hexdigest()


def _joined(parts: tuple[str | int, ...]) -> bytes:
    encoded = [str(part).encode() for part in parts]
    for part in encoded:
        if _SEPARATOR in part:
            raise ValueError(f"an identifier part holds the separator character 0x1f: {part!r}")
    return _SEPARATOR.join(encoded)
