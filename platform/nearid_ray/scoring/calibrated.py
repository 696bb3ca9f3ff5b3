"""A calibration beside a scorer's weights: probabilities and thresholds that belong to this scorer alone.

`calibration.json` names the scorer by its fingerprint. Whole pictures and pictures whose background is blacked out
("full", "foreground") have similarities of their own, and so calibrations of their own.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from nearid_ray.data.store import Location, locate
from nearid_ray.errors import UsageError
from nearid_ray.evaluation.calibration import Calibration, OperatingPoint, Reliability
from nearid_ray.models.checkpoint import CALIBRATION_FILE
from nearid_ray.settings import dump_json

_FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class ConditionCalibration:
    """What was fitted on the pairs of one condition."""

    calibration: Calibration
    points: tuple[OperatingPoint, ...]
    """Thresholds for the wished rates of false accepts that the pairs were enough for."""
    reliability: Reliability
    """Of probabilities for pairs of identities that the fit had not seen (folds of identities)."""

    def threshold(self, false_accept_rate: float) -> float:
        """The similarity from which on two pictures count as the same.

        Raises:
            UsageError: there is no threshold for this rate; names those there are.
        """
        for point in self.points:
            if math.isclose(point.wished, false_accept_rate, rel_tol=1e-9):
                return point.threshold
        there = ", ".join(f"{point.wished:g}" for point in self.points) or "none"
        raise UsageError(
            f"the calibration has no threshold for a false-accept rate of {false_accept_rate:g}; it has {there}. Other "
            "rates: jobs/calibrate.py --false-accept-rates; a rate wants some ten different pairs above it"
        )


@dataclass(frozen=True, kw_only=True)
class StoredCalibration:
    """What calibration.json says."""

    scorer: str
    """Name under which the scorer was evaluated."""
    fingerprint: str
    """`Scorer.fingerprint` of the scorer that it holds for."""
    split: str
    """Split of the pairs it was fitted on."""
    kinds: tuple[str, ...]
    """Kinds of different pairs it was fitted with: distractor, random."""
    conditions: Mapping[str, ConditionCalibration]

    def of(self, condition: str = "full") -> ConditionCalibration:
        """Raises UsageError where nothing was fitted for the condition."""
        found = self.conditions.get(condition)
        if found is None:
            raise UsageError(
                f"the calibration of {self.scorer} holds for pictures that are {' or '.join(self.conditions)}, not for "
                f"{condition}; calibrate with an evaluation of that condition"
            )
        return found

    def check(self, fingerprint: str, what: str) -> None:
        """Raises UsageError where it is another scorer's."""
        if fingerprint != self.fingerprint:
            raise UsageError(
                f"the calibration is of a scorer with the fingerprint {self.fingerprint} ({self.scorer}), but {what} "
                f"has {fingerprint}; was the head trained again? Calibrate it: jobs/calibrate.py"
            )

    def to_bytes(self) -> bytes:
        """The JSON file; the same calibration gives the same bytes."""
        conditions = {
            name: {
                "calibration": found.calibration.to_json(),
                "points": [_plain(asdict(point)) for point in found.points],
                "reliability": _plain(asdict(found.reliability)),
            }
            for name, found in self.conditions.items()
        }
        about = {"scorer": self.scorer, "fingerprint": self.fingerprint, "split": self.split, "kinds": list(self.kinds)}
        return dump_json({"format": _FORMAT, **about, "conditions": conditions})

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> StoredCalibration:
        """Raises UsageError where it is no calibration; `where` names the file."""
        try:
            stored = json.loads(data)
            if stored.pop("format") != _FORMAT:
                raise UsageError(f"{where} has another format than {_FORMAT}, which this version reads")
            conditions = {
                name: ConditionCalibration(
                    calibration=Calibration.from_json(found["calibration"]),
                    points=tuple(OperatingPoint(**_numbers(point)) for point in found["points"]),
                    reliability=Reliability(**_numbers(found["reliability"])),
                )
                for name, found in stored.pop("conditions").items()
            }
            return cls(**{**stored, "kinds": tuple(stored["kinds"])}, conditions=conditions)
        except UsageError as error:
            raise UsageError(f"{where}: {error}") from error
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise UsageError(f"{where} is no calibration ({error!r}); write it again with jobs/calibrate.py") from error


def read_calibration(given: str | Location) -> StoredCalibration:
    """The calibration in a file, or in a folder that holds one.

    Raises:
        UsageError: there is none.
    """
    place = given if isinstance(given, Location) else locate(given)
    inside = place.child(CALIBRATION_FILE)
    if inside.exists():
        place = inside
    elif not place.exists() or not place.path.endswith(".json"):
        raise UsageError(f"{place.uri} holds no {CALIBRATION_FILE}; write one with jobs/calibrate.py")
    return StoredCalibration.from_bytes(place.read_bytes(), place.uri)


def _plain(values: Any) -> Any:
    """JSON knows no nan: null stands for it."""
    if isinstance(values, dict):
        return {name: _plain(value) for name, value in values.items()}
    if isinstance(values, list | tuple):
        return [_plain(value) for value in values]
    return None if isinstance(values, float) and not math.isfinite(values) else values


def _numbers(stored: Mapping[str, Any]) -> dict[str, Any]:
    def number(value: Any) -> Any:
        if isinstance(value, list):
            return tuple(number(entry) for entry in value)
        return math.nan if value is None else value

    return {name: number(value) for name, value in stored.items()}
