"""Following a training from the driver: what the first worker reports reaches it while the training runs.

Reports arrive at Ray Train's controller, a process on the driver's machine. It appends them to a file there, and a
thread of the driver reads along. The driver alone then talks to MLflow.
"""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ray.train import Checkpoint, UserCallback

from nearid_ray.training.history import HistoryRow

ROWS = "rows"
"""Key of the reported rows: JSON, a list of (name of the run, the row as a dictionary)."""

_LOOK_S = 1.0

OnRows = Callable[[str, list[HistoryRow]], None]
"""Called on the driver with the name of a run and its next rows."""


class RowsToFile(UserCallback):
    """Appends the first worker's rows to a file, on the controller."""

    def __init__(self, path: str) -> None:
        self._path = path

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Checkpoint | None) -> None:
        rows = metrics[0].get(ROWS)
        if rows:
            with open(self._path, "a") as stream:
                stream.write(rows + "\n")


@contextmanager
def following(on_rows: OnRows | None) -> Iterator[list[RowsToFile]]:
    """Callbacks for Ray Train's RunConfig, and a thread that hands on what they write as long as the block lasts."""
    if on_rows is None:
        yield []
        return
    with TemporaryDirectory(prefix="nearid-train-") as folder:
        path, end = Path(folder, "rows"), threading.Event()
        path.touch()
        thread = threading.Thread(target=_follow, args=(path, end, on_rows), daemon=True)
        thread.start()
        try:
            yield [RowsToFile(str(path))]
        finally:
            end.set()
            thread.join()


def rows_text(rows: list[tuple[str, dict[str, Any]]]) -> str:
    """Rows as they are reported."""
    return json.dumps(rows)


def _follow(path: Path, end: threading.Event, on_rows: OnRows) -> None:
    with open(path) as stream:
        begun = ""
        while True:
            last = end.wait(_LOOK_S)
            for line in stream:
                begun += line
                if begun.endswith("\n"):
                    _hand_on(json.loads(begun), on_rows)
                    begun = ""
            if last:
                return


def _hand_on(rows: list[tuple[str, dict[str, Any]]], on_rows: OnRows) -> None:
    by_run: dict[str, list[HistoryRow]] = {}
    for name, row in rows:
        by_run.setdefault(name, []).append(HistoryRow.saved(row))
    for name, held in by_run.items():
        on_rows(name, held)
