"""Seeing a run: progress with the time left, what is waited for when nothing moves, metrics for the dashboard, traces.

The metrics appear in Prometheus as ray_nearid_rows_total, ray_nearid_errors_total and ray_nearid_model_share, by stage.
"""

import gzip
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, TextIO, TypeVar

import ray
from tqdm import tqdm

from nearid_ray.data.store import Location

T = TypeVar("T")
SILENCE_S = 60.0
"""After so long without a sign of progress the driver says what it waits for."""
_LINES_S = 20.0
"""Between two lines of progress where the output is a log and not a terminal."""
_LINE = "{desc}: {n_fmt}/{total_fmt} {unit}s ({percentage:.0f} %), {rate_fmt}, {remaining} left{postfix}"


class _Lines:
    """A stream that gets whole lines where tqdm would draw over the last one."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        line = text.strip("\r\n ")
        if line:
            self._stream.write(line + "\n")

    def flush(self) -> None:
        self._stream.flush()


def progress(total: int, title: str, *, unit: str = "row", stream: TextIO | None = None) -> "tqdm[Any]":
    """A bar on a terminal; in a log a line now and then, with rate and time left."""
    stream = stream or sys.stderr
    if stream.isatty():
        return tqdm(total=total, desc=title, unit=unit, mininterval=1.0, file=stream)
    lines: Any = _Lines(stream)
    return tqdm(total=total, desc=title, unit=unit, mininterval=_LINES_S, maxinterval=_LINES_S, bar_format=_LINE,
                file=lines)  # fmt: skip


def left_of(done: int, total: int, seconds: float) -> str:
    """Time that is left at the pace so far.

    >>> left_of(30, 120, 60.0), left_of(0, 5, 3.0), left_of(1, 7201, 1.0)
    ('3:00', '?', '2:00:00')
    """
    return tqdm.format_interval(seconds / done * (total - done)).removeprefix("0") if done else "?"


class Watchdog:
    """Says what is waited for when nothing has moved for a while; a cluster without room otherwise waits in silence."""

    def __init__(
        self,
        title: str,
        *,
        sign: str = "shard finished",
        wanted: str = "",
        silence_s: float = SILENCE_S,
        say: Callable[[str], object] = tqdm.write,
    ) -> None:
        """
        Args:
            sign: what `alive` reports, as in "no shard finished for 60 s".
            wanted: what the run asks of the cluster, e.g. "2 workers of 1 CPU and 1 GPU".
        """
        self._title, self._sign, self._wanted, self._silence_s, self._say = title, sign, wanted, silence_s, say
        self._stop, self._last, self._signs = threading.Event(), time.monotonic(), 0
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def alive(self) -> None:
        """Something moved."""
        self._last, self._signs = time.monotonic(), self._signs + 1

    def __enter__(self) -> "Watchdog":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()

    def _watch(self) -> None:
        while not self._stop.wait(self._silence_s):
            silent = time.monotonic() - self._last
            if silent >= self._silence_s:
                self._say(f"{self._title}: no {self._sign} for {silent:.0f} s; {self._evidence()}")

    def _evidence(self) -> str:
        """What the cluster says of itself."""
        try:
            free, nodes = ray.available_resources(), ray.nodes()
        except Exception as error:  # a cluster that does not answer is what is to be told
            return f"the cluster does not answer ({type(error).__name__})"
        alive = sum(bool(node["Alive"]) for node in nodes)
        cluster = f"{alive} node(s) alive" + (f", {len(nodes) - alive} dead" if alive < len(nodes) else "")
        known = ", ".join(f"{free.get(name, 0):g} {name}" for name in ("CPU", "GPU") if name in free or name == "CPU")
        asked = f"; asked for: {self._wanted}" if self._wanted else ""
        hint = "" if self._signs else ". Nothing has come yet: workers start, load a model, or wait for room"
        return f"free in the cluster: {known}; {cluster}{asked}{hint}"


@lru_cache(maxsize=8)
def _gauges(stage: str) -> dict[str, Any]:
    """This process's metrics of a stage."""
    from ray.util.metrics import Counter, Gauge

    made = {
        "rows": Counter("nearid_rows", "Rows made.", tag_keys=("stage",)),
        "errors": Counter("nearid_errors", "Rows made that have an error.", tag_keys=("stage",)),
        "share": Gauge("nearid_model_share", "Share of a worker's time spent in the model.", tag_keys=("stage",)),
    }
    for metric in made.values():
        metric.set_default_tags({"stage": stage})
    return made


def count_rows(stage: str, rows: int, errors: int) -> None:
    """Add to the dashboard's counters; call it in a worker."""
    metrics = _gauges(stage)
    metrics["rows"].inc(rows)
    if errors:
        metrics["errors"].inc(errors)


class ModelShare:
    """How much of a worker's time its model works: one minus the time it waits for rows."""

    def __init__(self, stage: str) -> None:
        self._stage, self._last = stage, time.monotonic()

    @contextmanager
    def working(self) -> Iterator[None]:
        """The block is the model's work."""
        began = time.monotonic()
        yield
        ended = time.monotonic()
        _gauges(self._stage)["share"].set((ended - began) / max(ended - self._last, 1e-9))
        self._last = ended


def device_name() -> str:
    """The GPU that this process computes on, or cpu."""
    torch = sys.modules.get("torch")
    return torch.cuda.get_device_name() if torch is not None and torch.cuda.is_available() else "cpu"


@contextmanager
def traced(place: Location | None) -> Iterator[None]:
    """Write a trace of the block's torch operations to `place` (.json.gz, for chrome://tracing or Perfetto).

    Does nothing where `place` is None.
    """
    if place is None:
        yield
        return
    import torch
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])
    with profile(activities=activities, record_shapes=True) as found:
        yield
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "trace.json")
        found.export_chrome_trace(str(path))
        place.write_bytes(gzip.compress(path.read_bytes()))


def traced_items(items: Iterator[T], count: int, place: Location | None, *, after: int = 5) -> Iterator[T]:
    """The items; what is done with `count` of them, after the first few, is traced to `place`."""
    if place is None or not count:
        yield from items
        return
    yield from islice(items, after)
    with traced(place):
        yield from islice(items, count)
    yield from items
