"""What a sweep says in the end: a table with one row a trial, and the picture of what trials trade for what."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from nearid_ray.data.store import Location
from nearid_ray.evaluation.measures import MTG, NEARID, Measure, find, headline, read_measures
from nearid_ray.reporting.figures.figure import standalone
from nearid_ray.reporting.figures.tradeoff import TradeoffPoint, tradeoff_figure
from nearid_ray.tuning.records import Record, best_of
from nearid_ray.tuning.space import value_text

CSV_FILE, TABLE_FILE, PICTURE_FILE = "trials.csv", "table.md", "tradeoff.svg"

_TITLES = {"ssr": "SSR", "pa": "PA", "ordering": "ordering", "m_o": "M-O", "m_o_pair": "M-O pair"}
_CORRELATIONS = ("m_o", "m_o_pair")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One trial: its record, and the measures of its best head where it was evaluated."""

    record: Record
    measured: Mapping[str, Measure] = field(default_factory=dict)
    """By metric."""

    def value(self, metric: str) -> float:
        """A measure's value; nan where there is none."""
        return self.measured[metric].value if metric in self.measured else math.nan


def rows_of(records: Sequence[Record], evaluation: Location | None = None) -> list[Row]:
    """The trials, with what an evaluation of their best heads measured on its headline group and on Mind-the-Glitch."""
    if evaluation is None:
        return [Row(record=record) for record in records]
    measures = find(read_measures(evaluation), condition="full")
    wanted = {NEARID: ("ssr", "pa", "ordering"), MTG: _CORRELATIONS}
    found: dict[str, dict[str, Measure]] = {}
    for benchmark, metrics in wanted.items():
        group = headline(find(measures, benchmark=benchmark))
        for one in find(measures, benchmark=benchmark, name=group):
            if one.metric in metrics:
                found.setdefault(one.scorer, {})[one.metric] = one
    return [Row(record=record, measured=found.get(record.name, {})) for record in records]


def to_csv(rows: Sequence[Row]) -> str:
    """The table for programs: shares of 1, all digits, empty where nothing was measured."""
    settings, metrics = _settings(rows), _metrics(rows)
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    own = ["state", "steps", "best_step", "val_ssr", "val_pa", "samples_per_s", "error"]
    ends = [f"{metric}{end}" for metric in metrics for end in ("", "_low", "_high")]
    table.writerow(["trial", *settings, *own, *ends])
    for row in rows:
        record = row.record
        values = [value_text(record.values[name]) if name in record.values else "" for name in settings]
        numbers: list[Any] = []
        for metric in metrics:
            one = row.measured.get(metric)
            numbers += [one.value, one.low, one.high] if one else [math.nan] * 3
        mine = [getattr(record, name) for name in own]
        shown = ["" if n is None or (isinstance(n, float) and math.isnan(n)) else n for n in [*mine, *numbers]]
        table.writerow([record.name, *values, *shown])
    return text.getvalue()


def to_markdown(rows: Sequence[Row]) -> str:
    """The table for people: percent, the best trial marked."""
    lines = _cells(rows)
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    text = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    ]
    text.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(text) + "\n"


def picture(rows: Sequence[Row], split: str = "") -> str:
    """SSR against M-O, or the ordering rate, or (where nothing was evaluated) validation PA: one point a trial, SVG."""
    up = next((metric for metric in ("m_o", "ordering") if any(not math.isnan(row.value(metric)) for row in rows)), "")
    best = best_of([row.record for row in rows])
    points = []
    for row in rows:
        record, chosen = row.record, row.record is best
        if up and "ssr" in row.measured and up in row.measured:
            x, y = row.measured["ssr"], row.measured[up]
            point = TradeoffPoint(name=record.name, x=x.value, y=y.value, chosen=chosen)
            points.append(replace(point, x_low=x.low, x_high=x.high, y_low=y.low, y_high=y.high))
        else:
            x_y = (math.nan, math.nan) if up else (_number(record.val_ssr), _number(record.val_pa))
            points.append(TradeoffPoint(name=record.name, x=x_y[0], y=x_y[1], chosen=chosen))
    where = f"split {split}" if up else "validation split"
    figure = tradeoff_figure(
        points,
        x_axis=f"SSR, %, {where}",
        y_axis={"m_o": "M-O", "ordering": "ordering rate, %"}.get(up, "PA, %, validation split"),
        y_percent=up != "m_o",
    )
    return standalone(figure)


def _cells(rows: Sequence[Row]) -> list[list[str]]:
    settings, metrics = _settings(rows), _metrics(rows)
    best = best_of([row.record for row in rows])
    head = ["trial", *settings, "state", "steps", "best at", "val SSR", "val PA", *(_TITLES[m] for m in metrics)]
    lines = [head]
    for row in rows:
        record = row.record
        lines.append(
            [
                f"**{record.name}**" if record is best else record.name,
                *(value_text(record.values[name]) if name in record.values else "" for name in settings),
                record.state,
                str(record.steps or ""),
                "" if record.best_step is None else str(record.best_step),
                _percent(_number(record.val_ssr)),
                _percent(_number(record.val_pa)),
                *(_shown(metric, row.value(metric)) for metric in metrics),
            ]
        )
    return lines


def _settings(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row.record.values))


def _metrics(rows: Sequence[Row]) -> list[str]:
    return [metric for metric in _TITLES if any(metric in row.measured for row in rows)]


def _shown(metric: str, value: float) -> str:
    if metric in _CORRELATIONS:
        return "" if math.isnan(value) else f"{value:.3f}"
    return _percent(value)


def _percent(value: float) -> str:
    return "" if math.isnan(value) else f"{100 * value:.2f}"


def _number(value: float | None) -> float:
    return math.nan if value is None else value
