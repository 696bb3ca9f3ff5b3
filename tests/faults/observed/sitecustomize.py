"""Read by every Python process of the fault matrix: cuts small shards, and notes what is begun and what has ended.

Python imports a module of this name at its start, from PYTHONPATH. It changes nothing in what a row or a step is: it
makes shards of few rows, so that tens of rows are many shards, waits before each of them as the file `pace` says, and
appends a line to `log` before and after, with the process and the node that work on it.
"""

import functools
import json
import os
import sys
import time
from collections.abc import Callable
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any

ROWS = 4
"""Rows of a shard, wherever a stage decides."""


def note(folder: Path, **said: Any) -> None:
    line = json.dumps({**said, "pid": os.getpid(), "node": os.environ.get("NEARID_NODE", ""), "time": time.time()})
    file = os.open(folder / "log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(file, f"{line}\n".encode())
    os.close(file)


def die_at(folder: Path, name: str) -> None:
    """End this process where `name` is the deadly piece of work."""
    if (deadly := folder / "deadly").exists() and deadly.read_text() == name:
        os.kill(os.getpid(), 9)


def observed(folder: Path, kind: str, call: Callable, describe: Callable[..., tuple[str, int]]) -> Callable:
    """`call`, with a line in the log before and after, and a pause between the line and the work."""

    @functools.wraps(call)
    def observed_call(*args: Any, **kwargs: Any) -> Any:
        name, rows = describe(*args)
        note(folder, event="begun", kind=kind, name=name, rows=rows)
        if kind == "step":
            die_at(folder, name)
        pace = folder / "pace"
        time.sleep(float(pace.read_text()) if pace.exists() else 0.0)
        result = call(*args, **kwargs)
        note(folder, event="ended", kind=kind, name=name, rows=rows)
        return result

    return observed_call


def observe_pipeline(module: Any, folder: Path) -> None:
    def of_work(work: Any, *_: Any) -> tuple[str, int]:
        return module._shard_of(work), work.num_rows

    def of_packed(packed: Any, *_: Any) -> tuple[str, int]:
        return of_work(module._unpacked(packed)[0])

    count = module.Begun.count

    @functools.wraps(count)
    def counted(self: Any, step: str, shard: str) -> None:
        count(self, step, shard)  # what kills is in the work, after it is counted
        die_at(folder, shard)

    module.Begun.count = counted
    whole, compute = module._WholeShard, module._Compute
    whole.__call__ = observed(folder, "shard", whole.__call__, lambda self, work: of_work(work))
    compute.__call__ = observed(folder, "shard", compute.__call__, lambda self, packed: of_packed(packed))
    module._prepare = observed(folder, "prepare", module._prepare, of_work)
    module._finish = observed(folder, "finish", module._finish, of_packed)


def observe_training(module: Any, folder: Path) -> None:
    def of_step(training: Any, *_: Any) -> tuple[str, int]:
        # The first worker counts for all.
        return f"step {training.step + 1}", 0 if training.workers.rank else training.settings.global_batch

    training = module.HeadTraining
    training._advance = observed(folder, "step", training._advance, of_step)


def few_rows(module: Any, folder: Path) -> None:
    if hasattr(module, "_ROWS_PER_SHARD"):
        module._ROWS_PER_SHARD = 8 * ROWS
    else:
        module._rows_per_shard = lambda *_: ROWS


def few_items(module: Any, folder: Path) -> None:
    for value in vars(module).values():
        if "items_per_shard" in (defaults := getattr(value, "__kwdefaults__", None) or {}):
            defaults["items_per_shard"] = 2 * ROWS


WHAT = {
    "nearid_ray.data.pipeline": observe_pipeline,
    "nearid_ray.training.loop": observe_training,
    "nearid_ray.data.ingest": few_rows,
    "nearid_ray.embedding.extract": few_rows,
    "nearid_ray.evaluation.embed": few_items,
    "nearid_ray.evaluation.scorers": few_items,
}


class Observer(MetaPathFinder):
    """Changes the modules in `WHAT` when they are imported."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name not in WHAT:
            return None
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(name, path, target)
            if spec is not None and spec.loader is not None:
                load = spec.loader.exec_module

                def loaded(module: Any, load: Callable[[Any], None] = load) -> None:
                    load(module)
                    WHAT[name](module, self._folder)

                spec.loader.exec_module = loaded  # type: ignore[method-assign]
                return spec
        return None


if place := os.environ.get("NEARID_OBSERVED"):
    sys.meta_path.insert(0, Observer(Path(place)))
