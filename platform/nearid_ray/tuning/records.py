"""What a sweep keeps of each trial: OUTPUT/trials/NAME.json, written last, says that the trial has ended."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self

from nearid_ray.data.store import Location
from nearid_ray.errors import UsageError
from nearid_ray.settings import dump_json
from nearid_ray.training.history import HistoryRow, read_history
from nearid_ray.training.outputs import BEST, HISTORY, TrainedHead, save_trained
from nearid_ray.tuning.plan import Trial

HEADS_FOLDER, TRIALS_FOLDER, BEGUN_FOLDER = "heads", "trials", "begun"

State = Literal["finished", "stopped", "failed"]


@dataclass(frozen=True, kw_only=True)
class Record:
    """The outcome of a trial."""

    name: str
    values: dict[str, Any]
    """What the trial set."""
    state: State
    """finished: trained to its last step. stopped: by the scheduler. failed: its numbers were not finite any more."""
    error: str = ""
    steps: int = 0
    """Steps it was trained for."""
    best_step: int | None = None
    val_ssr: float | None = None
    """Validation SSR of the best head."""
    val_pa: float | None = None
    samples_per_s: float | None = None
    """Median over the steps; of all heads that train together, each."""

    @classmethod
    def of(cls, trial: Trial, trained: TrainedHead, planned_steps: int) -> Self:
        """The record of a trial that has a head."""
        speeds = sorted(row.samples_per_s for row in trained.history if row.samples_per_s)
        return cls(
            name=trial.name,
            values=dict(trial.values),
            state="stopped" if trained.last_step < planned_steps else "finished",
            steps=trained.last_step,
            best_step=trained.best_step,
            val_ssr=trained.best_val_ssr,
            val_pa=trained.best_val_pa,
            samples_per_s=round(speeds[len(speeds) // 2], 1) if speeds else None,
        )

    @property
    def score(self) -> tuple[float, float]:
        """What trials are compared by: validation SSR, then PA, of the best head."""
        return (-1.0 if self.val_ssr is None else self.val_ssr, -1.0 if self.val_pa is None else self.val_pa)


def keep(output: Location, record: Record) -> None:
    """Write a trial's record, by which it counts as ended."""
    output.child(TRIALS_FOLDER, f"{record.name}.json").write_bytes(dump_json(asdict(record)))


def keep_trained(output: Location, record: Record, trained: TrainedHead, backbone: Mapping[str, Any]) -> None:
    """Write a trial's heads and history, then its record."""
    save_trained(output.child(HEADS_FOLDER, record.name), trained, backbone)
    keep(output, record)


def read_record(output: Location, name: str) -> Record | None:
    """The record of a trial that has ended."""
    place = output.child(TRIALS_FOLDER, f"{name}.json")
    if not place.exists():
        return None
    try:
        held = json.loads(place.read_bytes())
        return Record(**{**held, "values": _values(held["values"])})
    except (ValueError, TypeError, KeyError) as error:
        raise UsageError(
            f"{place.uri} is not the record of a trial ({error}); delete it to end the trial anew"
        ) from error


def read_rows(output: Location, name: str) -> list[HistoryRow]:
    """The history of a trial that has ended; empty where it failed."""
    place = output.child(HEADS_FOLDER, name, HISTORY)
    return read_history(place.read_bytes()) if place.exists() else []


def keep_begun(output: Location, trial: Trial) -> None:
    """Remember a suggested trial before it has ended, for a call that goes on."""
    output.child(TRIALS_FOLDER, BEGUN_FOLDER, f"{trial.name}.json").write_bytes(dump_json(dict(trial.values)))


def read_begun(output: Location) -> dict[str, dict[str, Any]]:
    """Values of all trials that were ever suggested, by name."""
    folder = output.child(TRIALS_FOLDER, BEGUN_FOLDER)
    return {
        name.removesuffix(".json"): _values(json.loads(folder.child(name).read_bytes()))
        for name in folder.names(".json")
    }


def best_of(records: Sequence[Record]) -> Record | None:
    """The trial with the highest validation SSR, then PA, then the first; None where none has a head."""
    with_head = [record for record in records if record.state != "failed"]
    return max(with_head, key=lambda record: record.score, default=None)


def export_best(output: Location, best: Record) -> None:
    """Copy the best trial's best head to OUTPUT/best."""
    held = output.child(HEADS_FOLDER, best.name, BEST)
    for name in held.names():
        output.child(BEST, name).write_bytes(held.child(name).read_bytes())


def _values(held: Mapping[str, Any]) -> dict[str, Any]:
    """Values as settings have them: JSON knows no tuples."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in held.items()}
