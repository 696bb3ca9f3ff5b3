"""How much memory this process may take, so that what does not fit is refused with the arithmetic."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

GIB = 2**30


def available_bytes() -> int:
    """Memory that is free to use: of the machine, or of the container where that allows less. 0 where unknown."""
    found = [value for value in (_machine(), _container()) if value is not None]
    return max(0, min(found)) if found else 0


def _machine() -> int | None:
    with suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None


def _container() -> int | None:
    folder = Path("/sys/fs/cgroup")
    with suppress(OSError, ValueError):
        limit = (folder / "memory.max").read_text().strip()
        if limit != "max":
            return int(limit) - int((folder / "memory.current").read_text())
    return None


def gib(number_of_bytes: float) -> str:
    """Bytes for people.

    >>> gib(3 * 2**29)
    '1.5 GiB'
    """
    return f"{number_of_bytes / GIB:,.1f} GiB"
