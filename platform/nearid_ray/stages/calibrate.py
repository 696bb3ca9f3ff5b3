"""The calibrate job: from a scorer's similarities to probabilities and thresholds, stored beside its weights."""

import math
from dataclasses import dataclass
from typing import Any

from nearid_ray import job
from nearid_ray.data.store import Location, locate
from nearid_ray.errors import UsageError
from nearid_ray.evaluation.bootstrap import Interval
from nearid_ray.models.checkpoint import CALIBRATION_FILE, CARD_FILE
from nearid_ray.reporting.figures.figure import standalone
from nearid_ray.reporting.figures.reliability import reliability_figure
from nearid_ray.scoring.calibrate import (
    CalibrateSettings,
    CheckedPoint,
    check_points,
    checked_errors,
    fit,
    name_in_records,
    read_records,
    text_table,
)
from nearid_ray.scoring.calibrated import StoredCalibration
from nearid_ray.scoring.scorer import load
from nearid_ray.settings import to_dict
from nearid_ray.tracking import TrackingSettings

CHART_FILE = "reliability.svg"


@dataclass(frozen=True, kw_only=True)
class Calibrate:
    """Turn a scorer's similarities into probabilities of the same identity, with thresholds for false accepts."""

    scorer: str
    """Folder of a trained head, a release or backbone (folder, s3:// or hub id), or FILE.py:function."""
    records: str
    """Evaluation of the validation split: output of evaluate with --split val."""
    output: str
    """Folder or s3://bucket/prefix for calibration.json, the reliability chart and the summary."""
    name: str = ""
    """The scorer's name in the records; by default found by its weights."""
    check: str = ""
    """Evaluation of the test split: says what the thresholds do there."""
    beside: bool = True
    """Put calibration.json beside the scorer's weights too, where they lie in a folder of their own."""
    backbone: str | None = None
    """Where a trained head's backbone lies now, if not where its card says."""
    calibration: CalibrateSettings = CalibrateSettings()
    tracking: TrackingSettings = TrackingSettings()


@job.owning_output("calibrate")
def run_calibrate(settings: Calibrate) -> job.Job:
    """Fit, store, check."""
    output = job.output_of(settings.output, settings.tracking)
    _refuse_others(output)
    scorer = load(settings.scorer, device="cpu", backbone=settings.backbone, calibration="none")
    place = locate(settings.records)
    records = read_records(place, settings.calibration)
    name = name_in_records(place, records, scorer, settings.name)
    tested = read_records(locate(settings.check), settings.calibration, "test") if settings.check else None
    tested_name = name_in_records(locate(settings.check), tested, scorer, settings.name) if tested is not None else ""
    inputs = {"scorer": settings.scorer, "records": settings.records}
    with job.running(
        "calibrate", output, to_dict(settings), tracking=settings.tracking, inputs=inputs, needs_ray=False
    ) as running:
        stored = fit(records, scorer, name, settings.calibration)
        data = stored.to_bytes()
        output.child(CALIBRATION_FILE).write_bytes(data)
        chart = standalone(
            reliability_figure(
                {f"{name}, {key}": (one.calibration, one.reliability) for key, one in stored.conditions.items()}
            )
        )
        output.child(CHART_FILE).write_bytes(chart.encode())
        running.tracker.text(chart, CHART_FILE)
        running.summary |= {"scorer": name, "fingerprint": stored.fingerprint}
        running.summary |= {key: _described(stored, key, settings.calibration) for key in stored.conditions}
        if tested is not None:
            checked = check_points(tested, stored, tested_name)
            running.details["test"] = [_as_json(one) for one in checked]
            running.summary["test"] = checked_errors(tested, stored, tested_name)
            print(f"\nThresholds on the test split, percent\n{text_table(checked)}")
        beside = _beside(settings.scorer) if settings.beside else None
        if beside is not None:
            beside.child(CALIBRATION_FILE).write_bytes(data)
            running.summary["beside"] = beside.child(CALIBRATION_FILE).uri
    return running


def _refuse_others(output: Location) -> None:
    """An output that holds something else than a calibration is left alone."""
    strange = set(output.names()) - {CALIBRATION_FILE, CHART_FILE, "summary.json", "mlflow.db", "mlflow.db-journal"}
    if strange and not output.child(CALIBRATION_FILE).exists():
        raise UsageError(f"{output.uri} is not empty (it holds {min(strange)}); give a folder that is new or empty")


def _beside(spec: str) -> Location | None:
    """The folder of a trained head or of a NearID release; None for other scorers, whose folder is not ours."""
    if "://" not in spec and not locate(spec).exists():
        return None
    place = locate(spec)
    if place.child(CARD_FILE).exists() or place.child("modeling_nearid.py").exists():
        return place
    return None


def _described(stored: StoredCalibration, condition: str, settings: CalibrateSettings) -> dict[str, Any]:
    found = stored.conditions[condition]
    made = {point.wished for point in found.points}
    left_out = [f"{rate:g}" for rate in settings.false_accept_rates if rate not in made]
    return {
        "pairs": found.calibration.num_pairs,
        "same_share": round(found.calibration.same_share, 4),
        "coverage": round(found.calibration.coverage, 4),
        "expected_error": _rounded(found.reliability.expected_error),
        "brier": _rounded(found.reliability.brier),
        "thresholds": [f"{point.wished:g} from {point.threshold:.4f}" for point in found.points],
        "too_few_pairs_for": left_out,
    }


def _as_json(one: CheckedPoint) -> dict[str, Any]:
    return {
        "condition": one.condition,
        "wished": one.point.wished,
        "threshold": one.point.threshold,
        "false_accept_rate": _bounds(one.false_accepts),
        "by_kind": {kind: _bounds(rate) for kind, rate in one.by_kind.items()},
        "true_accept_rate": _bounds(one.true_accepts),
    }


def _bounds(rate: Interval) -> list[float | None]:
    return [_rounded(rate.value), _rounded(rate.low), _rounded(rate.high)]


def _rounded(value: float) -> float | None:
    return round(value, 5) if math.isfinite(value) else None
