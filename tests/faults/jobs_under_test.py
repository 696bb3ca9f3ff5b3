"""The jobs of the matrix: their commands on tens of rows, where they are in mid-work, when results are equal."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from nearid_ray.data.store import Location, locate
from nearid_ray.training.history import read_history

OFF = ("--tracking-uri", "off")
SAME_HEAD = 1e-6
"""Largest difference of a weight: sums over two workers may be in another order after a fault."""


@dataclass(frozen=True, kw_only=True)
class JobUnderTest:
    """One job of the chain."""

    name: str
    inputs: Callable[[Path], tuple[object, ...]]
    """Flags that name what it reads, given the folder of the undisturbed run."""
    more: tuple[object, ...] = ()
    """Its other flags."""
    after: tuple[str, ...] = ()
    """Jobs whose undisturbed outputs it reads."""
    kind: str = "shard"
    """What the observer calls a piece of its work that costs the most."""
    pace_s: float = 0.5
    """Pause before each piece of its work, so that a fault finds it at it."""
    strikes: tuple[int, int] = (2, 6)
    """The fault comes when so many pieces, drawn between these, have begun."""
    differs: Callable[[Location, Location], list[str]] = lambda there, undisturbed: differing_files(there, undisturbed)

    def command(self, source: Path, output: str, tracking: tuple[str, ...] = OFF) -> tuple[str, ...]:
        """Name and flags."""
        return tuple(map(str, (self.name, *self.inputs(source), "--output", output, *self.more, *tracking)))


def files_of(place: Location) -> dict[str, str]:
    """Digest by name of what follows from the plan alone, hidden files included: not what tells times."""
    from pyarrow.fs import FileSelector, FileType

    selector = FileSelector(place.path, recursive=True, allow_not_found=True)
    names = [e.path for e in place.filesystem.get_file_info(selector) if e.type == FileType.File]
    result = {}
    for path in sorted(names):
        name = path[len(place.path) :].strip("/")
        if "log" not in name.split("/")[:-1] and not name.endswith("summary.json"):
            with place.filesystem.open_input_stream(path) as stream:
                result[name] = hashlib.sha256(stream.read()).hexdigest()
    return result


def differing_files(there: Location, undisturbed: Location) -> list[str]:
    """Names of the files that are missing, too many or of other bytes."""
    left, right = files_of(there), files_of(undisturbed)
    return sorted(name for name in left.keys() | right.keys() if left.get(name) != right.get(name))


def differing_heads(there: Location, undisturbed: Location) -> list[str]:
    """What differs between trained heads: a weight by more than SAME_HEAD, a step, a loss, a best step."""
    result = []
    for path in sorted(Path(undisturbed.path, "heads").rglob("*")):
        name = str(path.relative_to(undisturbed.path))
        if path.is_dir():
            continue
        place = there.child(*name.split("/"))
        if not place.exists():
            result.append(f"{name} is missing")
        elif path.suffix == ".safetensors":
            mine, other = safetensors.torch.load(place.read_bytes()), safetensors.torch.load(path.read_bytes())
            gap = max(float((mine[key] - other[key]).abs().max()) for key in other)
            if mine.keys() != other.keys() or not gap <= SAME_HEAD:
                result.append(f"{name}: a weight is off by {gap:.1e}")
        elif path.name == "history.csv":
            result += _differing_rows(name, place.read_bytes(), path.read_bytes())
        elif path.suffix == ".json" and _told(place.read_bytes()) != _told(path.read_bytes()):
            result.append(f"{name} differs")
    return result


def _differing_rows(name: str, mine: bytes, other: bytes) -> list[str]:
    left, right = read_history(mine), read_history(other)
    if [row.step for row in left] != [row.step for row in right]:
        return [f"{name}: steps {[row.step for row in left]}"]
    losses = [torch.tensor([row.loss or 0.0 for row in rows]) for rows in (left, right)]
    gap = float((losses[0] - losses[1]).abs().max())
    return [] if gap <= 1e-5 else [f"{name}: a loss is off by {gap:.1e}"]


def _told(data: bytes) -> Any:
    card = json.loads(data)
    card.pop("weights", None)  # a name of the exact bytes
    return {key: value for key, value in card.items() if key != "metrics"}


IDENTITIES = ("--train-identities", 12, "--val-identities", 5, "--test-identities", 6)

INGEST = JobUnderTest(
    name="ingest", inputs=lambda _: ("toybox",), more=(*IDENTITIES, "--workers", 2), pace_s=1.0, strikes=(2, 4)
)
SYNTHESIZE = JobUnderTest(
    name="synthesize",
    inputs=lambda made: ("--tuples", made / "ingest"),
    after=("ingest",),
    more=("--engines", "sleeping-1", "--rows-per-shard", 4, "--engine-batch", 2, "--gpus-per-worker", 1),
    strikes=(3, 8),
)
EMBED = JobUnderTest(
    name="embed",
    inputs=lambda made: ("--tuples", made / "ingest", "--distractors", made / "synthesize"),
    after=("ingest", "synthesize"),
    more=("--draws", 1, "--dtype", "float32", "--gpus-per-worker", 1),
    strikes=(3, 7),
)
TRAIN = JobUnderTest(
    name="train",
    inputs=lambda made: ("--tokens", made / "embed"),
    after=("embed",),
    more=(
        *("--learning-rate", 1e-3, "--warmup-steps", 5, "--global-batch", 8, "--max-steps", 60),
        *("--evaluate-every", 15, "--checkpoint-every", 15, "--workers", 2, "--gpu", "False"),
    ),
    kind="step",
    pace_s=0.15,
    strikes=(50, 90),  # of both workers: steps 25 to 45 of 60
    differs=lambda there, undisturbed: differing_heads(there, undisturbed),
)
EVALUATE = JobUnderTest(
    name="evaluate",
    inputs=lambda made: ("--tokens", made / "embed", "--heads", f"trained={made}/train/heads/nearid-alpha-0.5/best"),
    after=("embed", "train"),
    more=("--workers", 2, "--gpus-per-worker", 0, "--resamples", 50),
    strikes=(2, 4),
)
TUNE = replace(TRAIN, name="tune", more=(*TRAIN.more, "--space", "alpha=0,0.5"))
JOBS = (INGEST, SYNTHESIZE, EMBED, TRAIN, EVALUATE, TUNE)
BY_NAME = {job.name: job for job in JOBS}


def located(output: str) -> Location:
    """Where an output is."""
    return locate(output)
