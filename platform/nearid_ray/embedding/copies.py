"""Copies of remote token files on this machine's disk, bounded in size.

Every copy that is in use is held by a shared lock on the file; what makes room takes the least recently used copies
that nobody holds. The locks are the operating system's: they end with the process, however it ends.
"""

import contextlib
import fcntl
import os
import resource
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import pyarrow.fs as pafs

from nearid_ray.data.store import Location
from nearid_ray.errors import UsageError
from nearid_ray.identifiers import stable_hash

LIMIT_VARIABLE = "NEARID_COPIES_GIB"
"""Environment variable: how much disk the copies may take, in GiB."""

_SHARE_OF_FREE = 0.8
_PIECE_BYTES = 8 << 20
_ENDING = ".arrow"


def copies_folder() -> Path:
    """Where copies of remote caches are kept: `nearid-ray/tokens` in XDG_CACHE_HOME or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nearid-ray" / "tokens"


def default_limit_bytes(folder: Path) -> int:
    """What the copies may take: NEARID_COPIES_GIB, or else 80 % of the disk that is free or already theirs.

    Raises:
        UsageError: the variable is not a number of at least 0.
    """
    said = os.environ.get(LIMIT_VARIABLE)
    if said is None:
        folder.mkdir(parents=True, exist_ok=True)
        return int(_SHARE_OF_FREE * (shutil.disk_usage(folder).free + sum(size for _, size, _ in _copies(folder))))
    try:
        limit = float(said)
    except ValueError:
        limit = -1.0
    if not 0 <= limit < float("inf"):
        raise UsageError(f"{LIMIT_VARIABLE} is {said!r}; expected a number of GiB, 0 or more")
    return int(limit * 2**30)


class Copies:
    """The copies in one folder, as one process uses them. What it fetched stays until `close`, or its end."""

    def __init__(self, folder: str | Path, limit_bytes: int | None = None) -> None:
        """`limit_bytes` is what all copies in the folder may take; see `default_limit_bytes`."""
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.limit_bytes = default_limit_bytes(self.folder) if limit_bytes is None else limit_bytes
        self._held: dict[Path, int] = {}

    def fetch(self, source: Location, found: pafs.FileInfo) -> Path | None:
        """A copy of a remote file that stays as long as this object holds it; None where the limit leaves no room.

        Args:
            source: the file.
            found: its size and time: a file of another size or time is another one.
        """

        def write(stream: BinaryIO) -> None:
            with source.filesystem.open_input_file(source.path) as remote:
                for start in range(0, found.size, _PIECE_BYTES):
                    stream.write(remote.read_at(min(_PIECE_BYTES, found.size - start), start))

        return self.provide(name_of(source, found), found.size, write)

    def provide(self, name: str, size: int, write: Callable[[BinaryIO], None]) -> Path | None:
        """A file that stays as long as this object holds it; None where the limit leaves no room.

        Args:
            name: a name that no file with other content has, ending in `.arrow`.
            size: about how many bytes it takes.
            write: writes it where it is not there.
        """
        target = self.folder / name
        if target in self._held:
            return target
        with _alone(target.with_suffix(".lock")):  # one process makes it, the others find it
            file = self._hold(target)
            if file is None and self._make(target, size, write):
                file = self._hold(target)
        if file is None:
            return None
        self._held[target] = file
        return target

    def close(self) -> None:
        """Let go of all copies; mapped memory stays valid, but the files may be removed."""
        for file in self._held.values():
            os.close(file)
        self._held = {}

    def _hold(self, target: Path) -> int | None:
        """The file, open, locked against removal and marked as used now; None where there is none."""
        _allow_open_files(len(self._held) + 1)
        with contextlib.suppress(FileNotFoundError):
            file = os.open(target, os.O_RDONLY)
            fcntl.flock(file, fcntl.LOCK_SH)
            if os.fstat(file).st_nlink:
                os.utime(target, ns=(time.time_ns(), os.fstat(file).st_mtime_ns))
                return file
            os.close(file)  # it was removed in between
        return None

    def _make(self, target: Path, size: int, write: Callable[[BinaryIO], None]) -> bool:
        """Write the file, room permitting."""
        part = target.with_suffix(".part")
        with contextlib.ExitStack() as stack:
            with _alone(self.folder / ".lock"):
                if not self._room_for(size):
                    return False
                stream = stack.enter_context(open(part, "wb"))
                fcntl.flock(stream, fcntl.LOCK_EX)
                stream.truncate(size)  # what is under way counts in full
            write(stream)
            stream.truncate()
            stream.flush()
            os.fsync(stream.fileno())
            os.replace(part, target)
        return True

    def _room_for(self, size: int) -> bool:
        """Whether there is room, after removing the least recently used copies that nobody holds."""
        copies = sorted((used, taken, path) for path, taken, used in _copies(self.folder))
        total = sum(taken for _, taken, _ in copies)
        free = shutil.disk_usage(self.folder).free
        for _, taken, path in copies:
            if total + size <= self.limit_bytes and size <= free:
                break
            if _remove_unused(path):
                total, free = total - taken, free + taken
        return total + size <= self.limit_bytes and size <= free


def name_of(source: Location, found: pafs.FileInfo, ending: str = _ENDING) -> str:
    """A name for what a remote file holds now."""
    stem = source.path.rpartition("/")[2].partition(".")[0]
    return f"{stable_hash(source.uri, found.size, found.mtime_ns or 0)}-{stem}{ending}"


def _copies(folder: Path) -> Iterator[tuple[Path, int, int]]:
    """(path, bytes, time of last use) of each copy, those under way included."""
    for pattern in (f"*{_ENDING}", "*.part"):
        for path in folder.glob(pattern):
            with contextlib.suppress(FileNotFoundError):
                there = path.stat()
                yield path, there.st_size, there.st_atime_ns


def _remove_unused(path: Path) -> bool:
    try:
        with open(path, "rb") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
    except BlockingIOError:
        return False
    except FileNotFoundError:
        pass
    return True


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """One process at a time goes through the block."""
    with open(path, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _allow_open_files(count: int) -> None:
    """A lock takes an open file; systems often allow a thousand and would let one raise that."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + 512
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(max(wanted, 4 * soft), hard), hard))
