"""What differs between runs: settings, and measures with their intervals and paired differences."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from nearid_ray.comparing.runs import Run
from nearid_ray.data.store import Dataset, locate
from nearid_ray.errors import StoreError, UsageError
from nearid_ray.evaluation.bootstrap import Difference, bootstrap_difference
from nearid_ray.evaluation.counts import units_of_both
from nearid_ray.evaluation.measures import MTG, NEARID, Measure
from nearid_ray.evaluation.similarities import margin_counts
from schemas import MARGINS

PLACES = ("output", "tracking_uri", "run_name", "experiment", "workers", "break_lock", "dry_run")
"""Settings that say where and how, not what."""
_GAIN = "_gain"
"""Ends the names of measures against a run's own baseline; the comparison makes its own."""
_TRIALS = (NEARID, MTG)
"""Benchmarks whose SSR and PA rest on margins."""

Cell = tuple[str, str, str, str]
"""benchmark, condition, name, metric."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """One scorer of one run."""

    label: str
    run: Run
    scorer: str


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Runs side by side."""

    runs: list[Run]
    settings: dict[str, list[str | None]]
    """Setting -> its value in each run; None where the run has no such setting. Those that differ alone."""
    columns: list[Column]
    rows: list[Cell]
    cells: dict[tuple[Cell, str], Measure]
    """By row and column's label."""
    differences: dict[tuple[Cell, str], Difference] = field(default_factory=dict)
    """SSR and PA against the first column, identities drawn in pairs; only where both were measured on the same."""
    metrics: dict[str, list[float | None]] = field(default_factory=dict)
    """Runs without measures (training and others): last values of metrics that two or more of them have."""
    notes: list[str] = field(default_factory=list)


def compare_runs(
    runs: Sequence[Run], *, baseline: str = "", resamples: int = 1000, seed: int = 0, confidence: float = 0.95
) -> Comparison:
    """Put runs side by side.

    Args:
        baseline: label of the column that the others are compared with; the first when empty.

    Raises:
        UsageError: fewer than two columns or runs, or no column of that label.
    """
    if len(runs) < 2 and len({one.scorer for run in runs for one in run.measures}) < 2:
        raise UsageError(
            f"{len(runs)} run(s) with fewer than two scorers between them; give two or more runs, or one evaluation of "
            "several scorers"
        )
    columns = _columns(runs)
    if baseline:
        chosen = [column for column in columns if column.label == baseline]
        if not chosen:
            raise UsageError(
                f"baseline is {baseline!r}; the columns are {', '.join(column.label for column in columns) or 'none'}"
            )
        columns = chosen + [column for column in columns if column.label != baseline]
    cells = {
        ((one.benchmark, one.condition, one.name, one.metric), column.label): one
        for column in columns
        for one in column.run.measures
        if one.scorer == column.scorer and not one.metric.endswith(_GAIN)
    }
    rows = sorted({cell for cell, _ in cells}, key=_order(cells))
    differences, notes = _differences(columns, rows, resamples=resamples, seed=seed, confidence=confidence)
    return Comparison(
        runs=list(runs),
        settings=differing_settings([run.settings for run in runs]),
        columns=columns,
        rows=rows,
        cells=cells,
        differences=differences,
        metrics=_metrics(runs),
        notes=notes,
    )


def differing_settings(settings: Sequence[Mapping[str, str]]) -> dict[str, list[str | None]]:
    """The settings in which runs differ, places and names left out.

    >>> differing_settings([{"alpha": "0.5", "seed": "0", "output": "a"}, {"alpha": "1", "seed": "0", "output": "b"}])
    {'alpha': ['0.5', '1']}
    """
    names = dict.fromkeys(name for given in settings for name in given if name not in PLACES)
    found = {name: [given.get(name) for given in settings] for name in names}
    return {name: values for name, values in found.items() if len(set(values)) > 1}


def _columns(runs: Sequence[Run]) -> list[Column]:
    """A column for each run and scorer; a scorer that measured the same everywhere stands once."""
    found: list[Column] = []
    seen: set[str] = set()
    for run in runs:
        for scorer in dict.fromkeys(one.scorer for one in run.measures):
            own = tuple(one for one in run.measures if one.scorer == scorer and not one.metric.endswith(_GAIN))
            same = repr((scorer, sorted(own, key=lambda one: one.key)))  # as text, because nan is not nan
            if same not in seen:
                seen.add(same)
                found.append(Column(label=scorer, run=run, scorer=scorer))
    names = Counter(column.scorer for column in found)
    runs_named = Counter(run.name for run in runs)
    return [
        column
        if names[column.scorer] == 1
        else Column(label=f"{_short(column.run, runs_named)}: {column.scorer}", run=column.run, scorer=column.scorer)
        for column in found
    ]


def _short(run: Run, named: Mapping[str, int]) -> str:
    return run.name if named[run.name] == 1 else f"{run.name} {(run.run_id or run.output)[-8:]}"


def _order(cells: Mapping[tuple[Cell, str], Measure]) -> Callable[[Cell], tuple[bool, str, bool, int, int]]:
    """Rows as the evaluations have them: groups first, by their place of first mention."""
    place: dict[Cell, tuple[int, int]] = {}
    for number, ((cell, _), one) in enumerate(cells.items()):
        place.setdefault(cell, (not one.is_group, number))
    return lambda cell: (cell[0] != NEARID, cell[0], cell[1] != "full", *place[cell])


def _differences(
    columns: Sequence[Column], rows: Sequence[Cell], *, resamples: int, seed: int, confidence: float
) -> tuple[dict[tuple[Cell, str], Difference], list[str]]:
    """Paired differences of SSR and PA to the first column, for pooled and single engines."""
    if len(columns) < 2 or not any(cell[3] in ("ssr", "pa") and cell[0] in _TRIALS for cell in rows):
        return {}, []
    tables: dict[str, pa.Table | None] = {}
    for column in columns:
        tables.setdefault(column.run.output, _margins(column.run))
    first, *others = columns
    found: dict[tuple[Cell, str], Difference] = {}
    notes = []
    base_table = tables[first.run.output]
    for column in others:
        table = tables[column.run.output]
        if base_table is None or table is None:
            notes.append(f"{column.label}: the records of both evaluations cannot be read; intervals stand alone")
            continue
        groups = _groups(first.run) | _groups(column.run)
        for condition in dict.fromkeys(cell[1] for cell in rows if cell[0] in _TRIALS):
            ours, theirs = (margin_counts(t, c.scorer, condition) for t, c in ((base_table, first), (table, column)))
            if set(ours.identities) != set(theirs.identities) or not ours.identities:
                notes.append(f"{column.label}, {condition}: measured on other identities than {first.label}")
                continue
            for benchmark, name in dict.fromkeys(
                (cell[0], cell[2]) for cell in rows if cell[0] in _TRIALS and cell[1] == condition
            ):
                engines = [engine for engine in groups.get(name, [name]) if engine in ours.engines]
                if not engines or any(engine not in theirs.engines for engine in engines):
                    continue
                both = units_of_both(ours.of_engines(engines), theirs.of_engines(engines))
                pair = bootstrap_difference(*both, resamples=resamples, seed=seed, confidence=confidence)
                for metric, difference in zip(("ssr", "pa"), pair, strict=True):
                    found[(benchmark, condition, name, metric), column.label] = difference
    return found, notes


def _margins(run: Run) -> pa.Table | None:
    try:
        return Dataset(locate(run.output).child(MARGINS.name)).read(
            columns=["scorer", "condition", "identity_id", "engine", "margin"]
        )
    except (OSError, StoreError, UsageError, pa.ArrowException):
        return None


def _groups(run: Run) -> dict[str, list[str]]:
    """Engines of each group, as the evaluation wrote them."""
    try:
        return (Dataset(locate(run.output)).read_json("metrics.json") or {}).get("groups") or {}
    except (OSError, StoreError, UsageError):
        return {}


def _metrics(runs: Sequence[Run]) -> dict[str, list[float | None]]:
    plain = [run for run in runs if not run.measures]
    if len(plain) < 2:
        return {}
    counted = Counter(name for run in plain for name in run.metrics)
    return {name: [run.metrics.get(name) for run in runs] for name in sorted(counted) if counted[name] > 1}


def apart(one: Measure, other: Measure) -> bool | None:
    """Whether two intervals do not overlap; None where one of them has none."""
    if any(math.isnan(value) for value in (one.low, one.high, other.low, other.high)):
        return None
    return one.low > other.high or other.low > one.high
