"""One writer a dataset: while a job writes, its output holds a lock that says who it is and when it last lived.

`.lock` is created only where there is none and never changed after. Beside it the owner renews `.lock.TOKEN` every
few seconds: its time is the last sign of life. A lock whose process is gone from this machine is taken over by the next
job; any other one has to be broken by a person, since nobody can see from here whether its owner lives.
"""

import fcntl
import getpass
import hashlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from nearid_ray.data import s3
from nearid_ray.data.store import Location
from nearid_ray.errors import UsageError
from nearid_ray.settings import dump_json

LOCK = ".lock"
HEARTBEAT_S = 15.0
"""Time between two signs of life."""

_HALF_WRITTEN_S = 1.0
"""A lock without content for so long is no longer being written."""
_SETTLE_S = 1.0
"""Where creation is not exclusive, the last writer of so long a time is the owner."""
_held: "set[_Lock]" = set()


@dataclass(frozen=True)
class Owner:
    """Who writes a dataset."""

    job: str
    user: str
    host: str
    machine: str
    """This start of this machine, and the container on it, in which `pid` means something."""
    pid: int
    process: str
    """When the process began, as the system counts it: process numbers are used again."""
    began: str
    token: str

    @classmethod
    def here(cls, job: str) -> "Owner":
        """This process."""
        try:
            user = getpass.getuser()
        except (KeyError, OSError):  # a container's user without a name
            user = str(os.getuid())
        began = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        process, token = _process(os.getpid()), secrets.token_hex(8)
        return cls(job, user, socket.gethostname(), _machine(), os.getpid(), process, began, token)

    def is_here(self) -> bool:
        """Whether it runs, or ran, where this process can see it."""
        return self.machine == _machine()

    def is_gone(self) -> bool:
        """Whether it is certain that the owner has ended."""
        now = _process(self.pid) if self.is_here() else self.process
        return not now or (now != self.process and "?" not in (now, self.process))

    def __str__(self) -> str:
        return f"{self.job} of {self.user}@{self.host} (process {self.pid}), started {self.began}"


@contextmanager
def owned(place: Location, job: str, *, break_lock: bool = False, heartbeat_s: float = HEARTBEAT_S) -> Iterator[None]:
    """Be the one writer of `place` for the time of the block; folders made for the lock alone go with it.

    Args:
        break_lock: take a lock whose owner cannot be seen from here; one that is seen to live is never taken.

    Raises:
        UsageError: somebody else writes there, or the place cannot be written; also at the end of the block, or as an
            interrupt of it on the main thread, when somebody broke this lock meanwhile.
    """
    lock = _Lock(place, Owner.here(job))
    made = _missing_folders(place)
    try:
        with machine_lock(f"{LOCK} {place.uri}"):
            lock.take(break_lock)
        _held.add(lock)
        with _Heartbeat(lock, heartbeat_s) as heart:
            try:
                yield
            finally:
                if heart.lost:
                    raise UsageError(
                        f"{place.uri}: this job's lock was broken, another one may write there now; this job ends. "
                        "Run it again when the other one is done."
                    )
    finally:
        if lock in _held:
            _sweep(place)  # what killed workers of this job left
        _held.discard(lock)
        lock.release()
        for folder in made:
            with suppress(OSError):
                os.rmdir(folder)


def release_held() -> None:
    """Give up every lock of this process; for a process that must end at once."""
    for lock in list(_held):
        lock.release()


@contextmanager
def machine_lock(name: str) -> Iterator[None]:
    """Processes of this user on this machine pass one at a time; it ends with the process that holds it."""
    key = hashlib.sha256(name.encode()).hexdigest()[:16]
    path = os.path.join(tempfile.gettempdir(), f"nearid-{os.getuid()}-{key}.lock")
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            if _is_at(file, path):
                try:
                    yield
                finally:
                    os.unlink(path)
                return
        finally:
            os.close(file)


class _Lock:
    """The lock of one place, held by `owner` or wanted by it."""

    def __init__(self, place: Location, owner: Owner) -> None:
        self.place, self.owner = place, owner
        self._file = place.child(LOCK)
        self._wanted = False
        self._letting_go = threading.Lock()
        """A sign of life that is half written when the process ends would stay behind."""

    def take(self, break_lock: bool) -> None:
        if (there := self._read()) is not None:
            self._clear(there, break_lock)
        self._wanted = True
        try:
            created = self._file.write_new(self._content())
            if created and not self._file.is_local and self._file.write_new(self._content()):
                raise s3.NotExclusiveError  # it would have replaced anybody's lock as well
        except s3.NotExclusiveError:
            print(
                f"{self.place.uri}: this S3 server does not know conditional writes (If-None-Match), so two jobs that "
                "start in the same second may not see each other; start them apart.",
                file=sys.stderr,
            )
            self._file.write_bytes(self._content())
            time.sleep(_SETTLE_S)
            created = self.is_mine()
        if not created:
            self._refuse(self._read() or self.owner)

    def is_mine(self) -> bool:
        there = self._read()
        return isinstance(there, Owner) and there.token == self.owner.token

    def beat(self) -> None:
        """Show a sign of life, unless the lock is let go."""
        with self._letting_go:
            if self._wanted:
                self._sign(self.owner).write_bytes(b"")

    def release(self) -> None:
        """Remove what is this owner's; said, not raised, where the store does not let it."""
        if not self._wanted:
            return
        with self._letting_go:
            self._remove()
            self._wanted = False

    def _remove(self) -> None:
        try:
            self._sign(self.owner).delete()
            if self.is_mine():
                self._file.delete()
        except NotADirectoryError:
            pass  # the output lies below a file, where no lock can be
        except (OSError, UsageError) as error:
            print(f"the lock {self._file.uri} could not be removed: {error}", file=sys.stderr)

    def _read(self) -> "Owner | str | None":
        """The lock's owner; None where there is no lock, a text where it says nothing of its owner."""
        deadline = time.monotonic() + _HALF_WRITTEN_S
        while True:
            try:
                return Owner(**json.loads(self._file.read_bytes()))
            except (FileNotFoundError, NotADirectoryError):
                return None
            except (ValueError, TypeError):
                if time.monotonic() > deadline:
                    return "a job that its lock does not name"
                time.sleep(0.1)

    def _clear(self, there: Owner | str, break_lock: bool) -> None:
        """Remove the lock that is there, or refuse."""
        if isinstance(there, Owner) and there.is_gone():
            print(f"{self.place.uri}: {there} has ended without an end; this run goes on with its work.", flush=True)
        elif break_lock and not (isinstance(there, Owner) and there.is_here()):
            print(f"{self.place.uri}: the lock of {there} is broken as asked.", flush=True)
        else:
            self._refuse(there)
        if isinstance(there, Owner):
            self._sign(there).delete()
        self._file.delete()
        _sweep(self.place)

    def _refuse(self, there: Owner | str) -> None:
        if isinstance(there, Owner) and there.is_here():
            advice = f"Wait for it, end process {there.pid}, or give another output."
        else:
            advice = "Wait for it, or give another output. If it has certainly ended, give --break-lock as well."
        raise UsageError(
            f"{self.place.uri} is being written by {there}, last sign of life {self._last_sign(there)}. {advice}"
        )

    def _last_sign(self, there: Owner | str) -> str:
        files = [self._file, self._sign(there)] if isinstance(there, Owner) else [self._file]
        infos = files[0].filesystem.get_file_info([file.path for file in files])
        times = [info.mtime for info in infos if info.mtime is not None]
        if not times:
            return "just now"
        ago_s = max(0.0, (datetime.now(UTC) - max(times)).total_seconds())
        return f"{max(times):%Y-%m-%d %H:%M:%S} UTC ({ago_s:.0f} s ago)"

    def _sign(self, owner: Owner) -> Location:
        return self.place.child(f"{LOCK}.{owner.token}")

    def _content(self) -> bytes:
        return dump_json(asdict(self.owner))


class _Heartbeat:
    """Renews the sign of life on a thread of its own, and interrupts the main thread when the lock is gone."""

    def __init__(self, lock: _Lock, period_s: float) -> None:
        self._lock, self._period_s, self._stop, self.lost = lock, period_s, threading.Event(), False
        self._thread = threading.Thread(target=self._run, daemon=True, name="lock")
        self._on_main = threading.current_thread() is threading.main_thread()

    def __enter__(self) -> "_Heartbeat":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(self._period_s)

    def _run(self) -> None:
        while not self._stop.wait(self._period_s):
            try:
                self.lost = not self._lock.is_mine()
                if not self.lost:
                    self._lock.beat()
            except (OSError, UsageError, RuntimeError):
                continue  # a store that fails for a while says nothing of the lock
            if self.lost:
                if self._on_main and not self._stop.is_set():
                    os.kill(os.getpid(), signal.SIGINT)
                return


def _sweep(place: Location) -> None:
    """Remove what a killed writer left half written."""
    if place.is_local:
        for file in Path(place.path).rglob(".*.tmp"):
            with suppress(OSError):
                file.unlink()


def _missing_folders(place: Location) -> list[str]:
    """The folder and those above it that do not exist, deepest first; S3 has no folders."""
    path, missing = Path(place.path), []
    while place.is_local and not path.exists():
        missing.append(str(path))
        path = path.parent
    return missing


def _is_at(file: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(file), os.stat(path))
    except FileNotFoundError:
        return False


def _machine() -> str:
    """What two processes share that can see each other by number."""
    parts = [socket.gethostname()]
    with suppress(OSError):  # not on Linux
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def _process(pid: int) -> str:
    """When a process began, "" when it has ended; "?" when it runs and the system does not tell more."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    except PermissionError:
        pass
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if state in "ZX" else rest[18]
    except OSError:
        said = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True)
        return said.stdout.strip() or "?"
