"""The metrics table: what the eval records say, by scorer, condition and engine or group of engines."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nearid_ray.evaluation.bootstrap import (
    CONFIDENCE,
    RESAMPLES,
    Difference,
    Interval,
    bootstrap_difference,
    bootstrap_rates,
)
from nearid_ray.evaluation.control import control_counts, without_controls
from nearid_ray.evaluation.correlations import bootstrap_pearson
from nearid_ray.evaluation.counts import units_of_both
from nearid_ray.evaluation.expected import expected_trials, share_of
from nearid_ray.evaluation.groups import PART_LEVEL, benchmark_groups
from nearid_ray.evaluation.margins import TrialCounts
from nearid_ray.evaluation.measures import MTG, NEARID, Measure
from nearid_ray.evaluation.similarities import margin_counts, ordering_counts
from schemas.distractors import CONTROL_SUFFIX

NOTHING = Interval(value=math.nan, low=math.nan, high=math.nan)
NO_GAIN = Difference(value=math.nan, low=math.nan, high=math.nan, share_above_zero=math.nan)


@dataclass(frozen=True, kw_only=True)
class MetricsRow:
    """Measures of one scorer under one condition against one engine or group. Rates are 0..1; nan = not measurable."""

    scorer: str
    condition: str
    name: str
    """An engine, or a group of engines."""
    is_group: bool
    identities: int
    """Identities with at least one valid trial."""
    units: int
    """Identity and engine pairs with at least one valid trial: the support."""
    trials: int
    """Valid directed trials."""
    expected: int
    """Directed trials there would be with every distractor made and every similarity measured."""
    coverage: float
    """Share of the expected trials that are valid; nan where none is expected."""
    ssr: float
    ssr_low: float
    ssr_high: float
    pa: float
    pa_low: float
    pa_high: float
    ssr_gain: float
    """SSR minus the baseline scorer's on the units both could measure, resampled in pairs; nan for the baseline."""
    ssr_gain_low: float
    ssr_gain_high: float
    ssr_gain_share: float
    """Share of the resamples in which the gain is above 0; near 1 or near 0 is significant."""
    pa_gain: float
    pa_gain_low: float
    pa_gain_high: float
    pa_gain_share: float
    ordering: float
    """Share of comparisons in which a distractor is more similar to its view than a random identity's view."""
    ordering_low: float
    ordering_high: float
    comparisons: int
    """Comparisons that share was taken over."""
    ordering_coverage: float
    """Share of the comparisons there would be with every distractor made and every similarity measured."""
    oracle_r: float
    """Pearson's correlation of similarity(view, distractor) with the oracle, where engines have one."""
    oracle_r_low: float
    oracle_r_high: float
    oracle_pairs: int
    """Pairs that correlation was taken over."""
    oracle_coverage: float
    """Share of the pairs there would be with every distractor made, with an oracle, and measured."""


def engine_groups(similarities: pa.Table, train_engines: Sequence[str] = ()) -> dict[str, list[str]]:
    """The groups that results are pooled over (`groups.benchmark_groups`), from the engines in the records.

    Engines with an oracle are part-level. Artefact controls are in no group: they show the same object.
    """
    distractors = similarities.filter(pc.field("kind") == "distractor")
    engines = without_controls(sorted(set(distractors["engine"].unique().to_pylist())))
    part = distractors.filter(pc.is_valid(pc.field("oracle")))["engine"].unique().to_pylist()
    return benchmark_groups(engines, part, train_engines)


def metrics_rows(
    similarities: pa.Table,
    margins: pa.Table,
    groups: Mapping[str, Sequence[str]],
    *,
    baseline: str = "frozen",
    resamples: int = RESAMPLES,
    seed: int = 0,
    confidence: float = CONFIDENCE,
) -> list[MetricsRow]:
    """One row a scorer, condition and engine or group, groups last; scorers in the order of first appearance.

    Args:
        similarities: the `similarities` table.
        margins: the `margins` table that follows from it.
        groups: name -> engines, as from `engine_groups`.
        baseline: the scorer that gains are measured against; where it is absent gains are nan.
        resamples, seed, confidence: of the percentile intervals over identities.
    """
    drawing: dict[str, Any] = {"resamples": resamples, "seed": seed, "confidence": confidence}
    keys = similarities.group_by(["scorer", "condition"], use_threads=False).aggregate([])
    expected = expected_trials(similarities)
    own = (pc.field("kind") == "distractor") & pc.is_valid(pc.field("oracle"))
    rows = []
    for scorer, condition in zip(keys["scorer"].to_pylist(), keys["condition"].to_pylist(), strict=True):
        trials = margin_counts(margins, scorer, condition)
        reference = margin_counts(margins, baseline, condition) if scorer != baseline else None
        ordering = ordering_counts(similarities, scorer, condition)
        of_scorer = (pc.field("scorer") == scorer) & (pc.field("condition") == condition)
        pairs = similarities.filter(of_scorer & own)
        drawn = similarities.filter(of_scorer & (pc.field("kind") == "random"))["identity_id"]
        named = [(engine, [engine], False) for engine in trials.engines]
        for name, engines, is_group in [*named, *((name, list(members), True) for name, members in groups.items())]:
            counts = _part(trials, engines)
            row: dict[str, Any] = {"scorer": scorer, "condition": condition, "name": name, "is_group": is_group}
            row |= {"identities": counts.identity_count(), "units": counts.support(), "trials": counts.trial_count()}
            row |= {"expected": expected.trials(engines), "coverage": expected.coverage(counts, engines)}
            ssr, pa_ = bootstrap_rates(counts, **drawing)
            gains = (NO_GAIN, NO_GAIN)
            if reference is not None:
                shared = units_of_both(_part(reference, engines), counts)
                gains = bootstrap_difference(*shared, **drawing) if shared[0].support() else gains
            row |= {"ssr_gain_share": gains[0].share_above_zero, "pa_gain_share": gains[1].share_above_zero}
            compared = _part(ordering, engines)
            order = bootstrap_rates(compared, **drawing)[1]
            row["comparisons"] = compared.trial_count()
            row["ordering_coverage"] = share_of(row["comparisons"], expected.comparisons(drawn, engines))
            mine = pairs.filter(pc.is_in(pairs["engine"], pa.array(engines, pa.string())))
            oracle = _oracle(mine, drawing)
            row["oracle_pairs"] = len(mine) - mine["similarity"].null_count
            row["oracle_coverage"] = share_of(row["oracle_pairs"], expected.views(engines)) if len(mine) else math.nan
            measures = {"ssr": ssr, "pa": pa_, "ssr_gain": gains[0], "pa_gain": gains[1]}
            for measure, interval in {**measures, "ordering": order, "oracle_r": oracle}.items():
                row |= {measure: interval.value, f"{measure}_low": interval.low, f"{measure}_high": interval.high}
            rows.append(MetricsRow(**row))
    return rows


def row_measures(rows: Sequence[MetricsRow], groups: Mapping[str, Sequence[str]], baseline: str) -> list[Measure]:
    """The metrics table as measures.

    nearid: rates of engines that replace the whole object, and of groups that hold no other. mtg: ordering and the
    correlation with the oracle of engines that have one (`glitch_measures` gives the rest). Controls are no
    distractors and have no rates.

    Args:
        groups: as in `metrics_rows`; `part-level` names the engines with an oracle.
        baseline: the scorer that gains were measured against.
    """
    part = set(groups.get(PART_LEVEL, ()))
    found = []
    for row in rows:
        engines = list(groups.get(row.name, ())) if row.is_group else [row.name]
        mixed = not part.isdisjoint(engines) and not part.issuperset(engines)
        if mixed or len(without_controls(engines)) < len(engines):
            continue
        graded = not part.isdisjoint(engines)
        support = {"ssr": row.units, "ssr_gain": row.units, "ordering": row.comparisons, "oracle_r": row.oracle_pairs}
        coverage = {"ordering": row.ordering_coverage, "oracle_r": row.oracle_coverage}
        for metric in ("ordering", "oracle_r") if graded else ("ssr", "pa", "ssr_gain", "pa_gain", "ordering"):
            if math.isnan(getattr(row, metric)) and metric not in ("ssr", "pa"):
                continue
            found.append(
                Measure(
                    benchmark=MTG if graded else NEARID,
                    scorer=row.scorer,
                    condition=row.condition,
                    name=row.name,
                    is_group=row.is_group,
                    metric=metric,
                    value=getattr(row, metric),
                    low=getattr(row, f"{metric}_low"),
                    high=getattr(row, f"{metric}_high"),
                    support=support.get(metric, row.trials),
                    coverage=coverage.get(metric, row.coverage),
                    baseline=baseline if metric.endswith("_gain") else "",
                )
            )
    return found


def control_measures(
    similarities: pa.Table, groups: Mapping[str, Sequence[str]], drawing: Mapping[str, Any]
) -> list[Measure]:
    """The artefact control's rate of each engine that has controls, with intervals; `support` counts the controls."""
    expected = expected_trials(similarities)
    found = []
    for (scorer, condition, engine), counts in control_counts(similarities).items():
        rate = bootstrap_rates(counts, **drawing)[1]
        found.append(
            Measure(
                benchmark=MTG if engine in groups.get(PART_LEVEL, ()) else NEARID,
                scorer=scorer,
                condition=condition,
                name=engine,
                is_group=False,
                metric="control_rate",
                value=rate.value,
                low=rate.low,
                high=rate.high,
                support=counts.trial_count(),
                coverage=share_of(counts.trial_count(), expected.views([engine + CONTROL_SUFFIX])),
                baseline="",
            )
        )
    return found


def rows_to_table(rows: Sequence[MetricsRow]) -> pa.Table:
    """The rows as an Arrow table; nan becomes null."""
    kinds = {"str": pa.string(), "bool": pa.bool_(), "int": pa.int64(), "float": pa.float64()}
    schema = pa.schema([(field.name, kinds[str(field.type)]) for field in fields(MetricsRow)])
    return pa.Table.from_pylist([row_to_dict(row) for row in rows], schema=schema)


def row_to_dict(row: MetricsRow) -> dict[str, str | bool | int | float | None]:
    """The row as a JSON-like dictionary; nan becomes None (JSON has no nan)."""
    return {name: None if isinstance(v, float) and math.isnan(v) else v for name, v in asdict(row).items()}


def row_from_dict(values: Mapping[str, str | bool | int | float | None]) -> MetricsRow:
    """The row that `row_to_dict` gave; keys it does not know are left aside, absent numbers are nan or 0."""
    empty = {"str": "", "bool": False, "int": 0, "float": math.nan}
    found = {f.name: values.get(f.name) for f in fields(MetricsRow)}
    filled = {f.name: empty[str(f.type)] if found[f.name] is None else found[f.name] for f in fields(MetricsRow)}
    return MetricsRow(**filled)  # type: ignore[arg-type]


def _part(counts: TrialCounts, engines: Sequence[str]) -> TrialCounts:
    return counts.of_engines([engine for engine in engines if engine in counts.engines])


def _oracle(pairs: pa.Table, drawing: dict[str, Any]) -> Interval:
    if not len(pairs):
        return NOTHING
    similarity, oracle = (np.asarray(pairs[n].to_numpy(zero_copy_only=False), float) for n in ("similarity", "oracle"))
    return bootstrap_pearson(similarity, oracle, pairs["identity_id"].to_numpy(zero_copy_only=False), **drawing)
