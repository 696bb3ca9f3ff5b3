"""Checkpoints of a list of runs: what is finished, and the group of runs under way.

A Ray Train checkpoint is a folder. `finished-NNN.pt` holds a finished run, `current.pt` the states of the runs that are
trained together at the moment, `failed.pt` why others left. Nothing in them depends on the number of workers.
"""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray.train
from pyarrow.fs import FileSystem
from ray.train import Checkpoint

from nearid_ray.errors import UsageError
from nearid_ray.training.loop import check_resumable
from nearid_ray.training.settings import TrainSettings
from nearid_ray.training.state import load_state, save_state

_CURRENT, _FAILED = "current.pt", "failed.pt"

States = dict[str, dict[str, Any]]
"""States (`HeadTraining.state`) by the name of the run."""


@dataclass
class Held:
    """What a checkpoint holds."""

    finished: States = field(default_factory=dict)
    """Runs that are at their last step, or were stopped before, without the optimiser."""
    current: States = field(default_factory=dict)
    """Runs under way."""
    failed: dict[str, str] = field(default_factory=dict)
    """Runs that could not go on, and why."""

    def finish(self, states: States) -> None:
        """Runs have come to their end."""
        for name, state in states.items():
            self.finished[name] = {key: value for key, value in state.items() if key not in ("optimizer", "scaler")}
        self.current = {name: state for name, state in self.current.items() if name not in states}

    def ended(self) -> set[str]:
        """Names of the runs for which nothing is left to do."""
        return {*self.finished, *self.failed}


@contextmanager
def checkpoint_of(held: Held) -> Iterator[Checkpoint]:
    """A checkpoint, in a folder that lasts as long as the block."""
    with tempfile.TemporaryDirectory() as folder:
        for place, (name, state) in enumerate(held.finished.items()):
            save_state(Path(folder, f"finished-{place:03}.pt"), {"name": name, "state": state})
        if held.current:
            save_state(Path(folder, _CURRENT), held.current)
        if held.failed:
            save_state(Path(folder, _FAILED), held.failed)
        yield Checkpoint.from_directory(folder)


def read_checkpoint(
    checkpoint: Checkpoint | None, runs: Mapping[str, TrainSettings], origins: Mapping[str, Mapping[str, Any]]
) -> Held:
    """What a checkpoint holds.

    Raises:
        UsageError: it holds a run that is not among `runs`, or one with other settings or of another origin.
    """
    held = Held()
    if checkpoint is None:
        return held
    with checkpoint.as_directory() as folder:
        for path in sorted(Path(folder).glob("finished-*.pt")):
            entry = load_state(path)
            held.finished[entry["name"]] = entry["state"]
        path, failed = Path(folder, _CURRENT), Path(folder, _FAILED)
        held.current = load_state(path) if path.exists() else {}
        held.failed = load_state(failed) if failed.exists() else {}
    for name, state in {**held.finished, **held.current}.items():
        if name not in runs:
            raise UsageError(
                f"the checkpoints are of other runs: they hold {name!r}, wanted are {sorted(runs)}; use a new output "
                "folder"
            )
        check_resumable(state, runs[name], origins[name])
    return held


def last_checkpoint(path: str, filesystem: FileSystem | None) -> Checkpoint | None:
    """The last checkpoint that an earlier call left, if any."""
    try:
        return ray.train.Result.from_path(path, storage_filesystem=filesystem).checkpoint
    except RuntimeError:  # no such folder, or nothing registered in it
        return None
