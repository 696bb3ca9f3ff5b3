"""Fit a scorer's calibration on the eval records of a validation split, and check it on those of another split.

Pairs of views of one identity are the same; pairs of a view with its distractor, and random pairs of views of two
identities, are different. An engine's artefact controls show the same object and are left out.

Axes: N pairs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from nearid_ray.data.store import Dataset, Location
from nearid_ray.errors import UsageError
from nearid_ray.evaluation.bootstrap import Interval, interval
from nearid_ray.evaluation.calibration import (
    Kind,
    OperatingPoint,
    accept_statistics,
    fit_calibration,
    reliability,
    reliability_statistics,
    threshold_at,
)
from nearid_ray.evaluation.control import without_controls
from nearid_ray.evaluation.embed import head_digest
from nearid_ray.evaluation.similarities import CONDITIONS
from nearid_ray.scoring.calibrated import ConditionCalibration, StoredCalibration
from nearid_ray.scoring.embedders import ModelEmbedder
from nearid_ray.scoring.scorer import Scorer
from nearid_ray.text_tables import aligned, percent
from schemas import SIMILARITIES

Different = Literal["distractor", "random"]
_FOLDS = 5
_PAIRS_ABOVE = 10
"""A rate is measured only where so many different pairs lie above its threshold: below, the threshold is chance."""
_COLUMNS = ("kind", "identity_id", "split", "engine", "scorer", "condition", "similarity")


@dataclass(frozen=True, kw_only=True)
class CalibrateSettings:
    """What a calibration is fitted on, and how."""

    method: Kind = "isotonic"
    """isotonic follows any shape and wants some hundred pairs of each label; logistic has two numbers."""
    kinds: tuple[Different, ...] = ("distractor", "random")
    """Which different pairs count: distractor (near-identical), random (two identities), or both."""
    conditions: tuple[str, ...] = CONDITIONS
    """full: whole pictures; foreground: backgrounds blacked out. Those that the records have are calibrated."""
    split: Literal["val", "train"] = "val"
    """Split whose pairs are fitted to. Never test: what is fitted on the test split says nothing there."""
    false_accept_rates: tuple[float, ...] = (0.1, 0.01, 0.001)
    """Wished shares of different pairs above a threshold; those that the pairs are too few for are left out."""

    def __post_init__(self) -> None:
        if self.method not in get_args(Kind):
            raise ValueError(f"method is {self.method!r}; expected {' or '.join(get_args(Kind))}")
        if not self.kinds or set(self.kinds) - set(get_args(Different)):
            raise ValueError(f"kinds is {self.kinds}; expected distractor, random, or both")
        if not self.conditions or set(self.conditions) - set(CONDITIONS):
            raise ValueError(f"conditions is {self.conditions}; expected some of {', '.join(CONDITIONS)}")
        if not self.false_accept_rates or not all(0 < rate < 1 for rate in self.false_accept_rates):
            raise ValueError(f"false_accept_rates is {self.false_accept_rates}; expected numbers between 0 and 1")


@dataclass(frozen=True)
class Pairs:
    """Labelled pairs of one scorer and condition; similarities may be nan."""

    similarity: NDArray[np.float64]
    same: NDArray[np.bool_]
    identity: NDArray[Any]
    kind: NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class CheckedPoint:
    """A threshold on pairs that it was not chosen on."""

    condition: str
    point: OperatingPoint
    false_accepts: Interval
    """Rate of all different pairs."""
    by_kind: Mapping[str, Interval]
    """Rate of each kind of different pairs."""
    true_accepts: Interval


def read_records(folder: Location, settings: CalibrateSettings, split: str | None = None) -> pa.Table:
    """The similarities of an evaluation that a calibration looks at, of one split.

    Args:
        folder: output of evaluate, or its `similarities`.

    Raises:
        UsageError: there are none.
    """
    inside = folder.child(SIMILARITIES.name)
    dataset = Dataset.open(inside if inside.exists() else folder, SIMILARITIES.name)
    split = split or settings.split
    wanted = pc.is_in(pc.field("kind"), pa.array(["positive", *settings.kinds]))
    wanted &= pc.is_in(pc.field("condition"), pa.array(list(settings.conditions)))
    records = dataset.read(list(_COLUMNS), where=wanted & (pc.field("split") == split))
    if not len(records):
        there = sorted(set(dataset.read(["split"])["split"].unique().to_pylist()))
        raise UsageError(
            f"{folder.uri} has no pairs of the split {split!r}, but of {', '.join(there)}; evaluate that split first: "
            f"jobs/evaluate.py --split {split} with another --output"
        )
    engines = records["engine"].unique().to_pylist()
    return records.filter(pc.is_in(records["engine"], pa.array(without_controls(engines), pa.string())))


def name_in_records(folder: Location, records: pa.Table, scorer: Scorer, given: str = "") -> str:
    """Under which name the records hold this scorer: found by the digest of its head, where they keep digests.

    Raises:
        UsageError: the records have no such scorer, or one of this name with other weights.
    """
    names = sorted(records["scorer"].unique().to_pylist())
    digests = _digests(folder)
    own = head_digest(scorer.embedder.pooling) if isinstance(scorer.embedder, ModelEmbedder) else ""
    if given:
        if given not in names:
            raise UsageError(f"{folder.uri} has no scorer {given!r}; it has {', '.join(names)}")
        if scorer.embedder.is_trained_head and digests.get(given, own) != own:
            raise UsageError(
                f"the scorer {given!r} in {folder.uri} has other weights than {scorer.embedder.spec}; evaluate it"
            )
        return given
    found = [name for name in names if digests.get(name) == own]
    if len(found) == 1:
        return found[0]
    raise UsageError(
        f"which of the scorers in {folder.uri} is {scorer.embedder.spec}? It has {', '.join(names)}; "
        + ("none has its weights; evaluate it, or " if not found else "")
        + "say --name NAME"
    )


def labelled_pairs(records: pa.Table, name: str, condition: str) -> Pairs:
    """The pairs of one scorer and condition."""
    mine = records.filter((pc.field("scorer") == name) & (pc.field("condition") == condition))
    kind = mine["kind"].to_numpy(zero_copy_only=False).astype(str)
    return Pairs(
        similarity=np.asarray(mine["similarity"].to_numpy(zero_copy_only=False), np.float64),
        same=kind == "positive",
        identity=mine["identity_id"].to_numpy(zero_copy_only=False).astype(str),
        kind=kind,
    )


def fit(records: pa.Table, scorer: Scorer, name: str, settings: CalibrateSettings) -> StoredCalibration:
    """The scorer's calibration by records of its similarities, for each condition that they have.

    Raises:
        UsageError: same or different pairs are missing.
    """
    there = set(records.filter(pc.field("scorer") == name)["condition"].unique().to_pylist())
    conditions = {
        condition: fit_condition(labelled_pairs(records, name, condition), settings)
        for condition in settings.conditions
        if condition in there
    }
    return StoredCalibration(
        scorer=name,
        fingerprint=scorer.fingerprint,
        split=settings.split,
        kinds=tuple(settings.kinds),
        conditions=conditions,
    )


def fit_condition(pairs: Pairs, settings: CalibrateSettings) -> ConditionCalibration:
    """Function, thresholds and reliability; the last of pairs whose identity the fit had not seen."""
    fitted = fit_calibration(pairs.similarity, pairs.same, kind=settings.method)
    different = int((~pairs.same & np.isfinite(pairs.similarity)).sum())
    points = tuple(
        threshold_at(pairs.similarity, pairs.same, rate)
        for rate in sorted(set(settings.false_accept_rates), reverse=True)
        if measurable(different, rate)
    )
    curve = reliability(unseen_probability(pairs, settings.method), pairs.same)
    return ConditionCalibration(calibration=fitted, points=points, reliability=curve)


def measurable(different: int, rate: float) -> bool:
    """Whether so many different pairs tell a rate of false accepts from chance.

    >>> measurable(1000, 0.01), measurable(999, 0.01)
    (True, False)
    """
    return different * rate >= _PAIRS_ABOVE - 1e-9


def unseen_probability(pairs: Pairs, method: Kind) -> NDArray[np.float64]:
    """Each pair's probability by a calibration of the other folds of identities; nan where they have but one label."""
    names, identity = np.unique(pairs.identity, return_inverse=True)
    fold_N = np.random.default_rng(0).permutation(len(names))[identity] % _FOLDS
    probability = np.full(len(identity), np.nan)
    for fold in range(_FOLDS):
        inside = fold_N == fold
        label = pairs.same[~inside & np.isfinite(pairs.similarity)]
        if inside.any() and label.any() and not label.all():
            fitted = fit_calibration(pairs.similarity[~inside], pairs.same[~inside], kind=method)
            probability[inside] = fitted.probability(pairs.similarity[inside])
    return probability


def check_points(records: pa.Table, stored: StoredCalibration, name: str, resamples: int = 1000) -> list[CheckedPoint]:
    """What the thresholds do to the pairs of other records, with intervals over identities."""
    found = []
    for condition, fitted in stored.conditions.items():
        pairs = labelled_pairs(records, name, condition)
        for point in fitted.points if len(pairs.same) else ():
            rates = _rates(pairs, point.threshold, np.ones(len(pairs.same), bool), resamples)
            kinds = [kind for kind in stored.kinds if (pairs.kind == kind).any()]
            by_kind = {kind: _rates(pairs, point.threshold, pairs.kind == kind, resamples) for kind in kinds}
            found.append(
                CheckedPoint(
                    condition=condition,
                    point=point,
                    false_accepts=rates["false_accept_rate"],
                    by_kind={kind: rate["false_accept_rate"] for kind, rate in by_kind.items()},
                    true_accepts=rates["true_accept_rate"],
                )
            )
    return found


def checked_errors(records: pa.Table, stored: StoredCalibration, name: str) -> dict[str, dict[str, float]]:
    """condition -> expected error and Brier score of the probabilities on other records."""
    found = {}
    for condition, fitted in stored.conditions.items():
        pairs = labelled_pairs(records, name, condition)
        if len(pairs.same):
            probability = fitted.calibration.probability(pairs.similarity)
            statistics = reliability_statistics(probability, pairs.same, pairs.identity)
            found[condition] = {key: round(statistic.value(), 5) for key, statistic in statistics.items()}
    return found


def _rates(pairs: Pairs, threshold: float, chosen: NDArray[np.bool_], resamples: int) -> dict[str, Interval]:
    statistics = accept_statistics(pairs.similarity[chosen], pairs.same[chosen], threshold, pairs.identity[chosen])
    nothing = Interval(value=np.nan, low=np.nan, high=np.nan)
    return {
        name: interval(statistic, resamples=resamples) if np.isfinite(statistic.value()) else nothing
        for name, statistic in statistics.items()
    }


def _digests(folder: Location) -> dict[str, str]:
    """Digest of each scorer's head, where the evaluation made its embeddings itself."""
    embeddings = Dataset(folder.child("embeddings"))
    digests: dict[str, str] = {}
    for plan in embeddings.plans() if embeddings.settings() else ():
        if "head_digest" in plan.column_names:
            pairs = plan.group_by(["scorer", "head_digest"]).aggregate([])
            digests |= dict(zip(pairs["scorer"].to_pylist(), pairs["head_digest"].to_pylist(), strict=True))
    return digests


def text_table(checked: Sequence[CheckedPoint]) -> str:
    """Wished rates of false accepts beside those on other pairs, in percent, as text."""
    kinds = list(dict.fromkeys(kind for one in checked for kind in one.by_kind))
    lines = [["condition", "wished", "measured (interval)", *kinds, "same accepted", "similarity from"]]
    for one in checked:
        rate = one.false_accepts
        lines.append(
            [
                one.condition,
                f"{100 * one.point.wished:g}",
                f"{percent(rate.value, 2)} ({percent(rate.low, 2)}-{percent(rate.high, 2)})",
                *(percent(one.by_kind[kind].value if kind in one.by_kind else None, 2) for kind in kinds),
                percent(one.true_accepts.value),
                f"{one.point.threshold:.4f}",
            ]
        )
    return aligned(lines)
