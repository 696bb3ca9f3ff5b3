"""What the driver keeps of a running sweep: MLflow runs of the trials, and their records as they end."""

from collections.abc import Mapping
from typing import Any

from nearid_ray.data.store import Location
from nearid_ray.tracking import Tracker
from nearid_ray.training.history import HistoryRow
from nearid_ray.training.outputs import TrainedHead
from nearid_ray.tuning.plan import Pass, Trial
from nearid_ray.tuning.records import Record, keep, keep_trained, read_rows
from nearid_ray.tuning.space import value_text

_STATUS = {"finished": "FINISHED", "stopped": "FINISHED", "failed": "FAILED"}


class Watch:
    """Records of a sweep's trials and their runs in MLflow. Its methods are called one at a time."""

    def __init__(self, tracker: Tracker, output: Location, backbone: Mapping[str, Any]) -> None:
        self._tracker, self._output, self._backbone = tracker, output, backbone
        self._trials: dict[str, Trial] = {}
        self._steps: dict[str, int] = {}
        self._children: dict[str, Tracker] = {}
        self._told: set[tuple[str, int]] = set()
        self.records: dict[str, Record] = {}
        """Of all trials that have ended."""

    def add(self, trial: Trial, steps: int) -> None:
        """A trial that is to be trained for so many steps."""
        self._trials[trial.name], self._steps[trial.name] = trial, steps

    def known(self, record: Record) -> None:
        """A trial that an earlier call has ended."""
        self.records[record.name] = record

    def rows(self, name: str, rows: list[HistoryRow]) -> None:
        """What a trial's run did."""
        fresh = [row for row in rows if (name, row.step) not in self._told]
        self._told.update((name, row.step) for row in fresh)
        self._child(name).history([row.flat() for row in fresh])

    def ended(self, one: Pass, trained: Mapping[str, TrainedHead], failed: Mapping[str, str]) -> None:
        """A pass has ended: heads, histories and records of its trials are written."""
        for name in one.runs:
            trial = self._trials[name]
            if name in trained:
                record = Record.of(trial, trained[name], self._steps[name])
                keep_trained(self._output, record, trained[name], self._backbone)
                self.rows(name, trained[name].history)
            else:
                record = Record(name=name, values=dict(trial.values), state="failed", error=failed[name])
                keep(self._output, record)
            self.records[name] = record
            self._close(record)

    def close(self) -> None:
        """End the MLflow runs of all trials, those of earlier calls too, which are told once more."""
        for name, record in self.records.items():
            if name not in self._children:
                self.rows(name, read_rows(self._output, name))
                self._close(record)
        for name, child in self._children.items():
            if name not in self.records:
                child.end("KILLED")

    def _child(self, name: str) -> Tracker:
        if name not in self._children:
            child = self._tracker.child(name)
            trial = self._trials.get(name)
            if trial is not None:
                child.params(trial.settings.resolved())
                child.tags({"job": "tune", "trial": name, **_said(trial.values)})
            self._children[name] = child
        return self._children[name]

    def _close(self, record: Record) -> None:
        child = self._child(record.name)
        final = {"best_val_ssr": record.val_ssr, "best_val_pa": record.val_pa, "best_step": record.best_step}
        child.metrics({name: float(value) for name, value in final.items() if value is not None}, record.steps)
        child.tags({"state": record.state, **({"error": record.error} if record.error else {})})
        child.end(_STATUS[record.state])


def _said(values: Mapping[str, Any]) -> dict[str, str]:
    return {f"swept.{name}": value_text(value) for name, value in values.items()}
