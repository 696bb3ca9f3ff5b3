"""What a weight of the loss (alpha, beta) does to every measure, with the published curve where there is one."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nearid_ray.evaluation.measures import MTG, NEARID, Measure, find
from nearid_ray.reporting.figures.figure import DASH_PATTERN, Figure, Key, Panel
from nearid_ray.reporting.markup import Markup
from nearid_ray.reporting.svg import BASELINE_COLOUR, COLOURS, Frame, dot, nice_ticks, polygon, polyline, svg
from nearid_ray.reporting.tables.published import published
from nearid_ray.reporting.whole import whole

WEIGHTS = ("alpha", "beta")
HERE, PUBLISHED, FROZEN = "measured here", "published", "baseline, without training"
_HEIGHT = 280.0
_TABLES = {"alpha": "table8", "beta": "table9"}
_OURS, _THEIRS = COLOURS[0], COLOURS[1]


@dataclass(frozen=True, kw_only=True)
class WeightPoint:
    """A measure at one weight."""

    weight: float
    value: float
    low: float = math.nan
    high: float = math.nan


@dataclass(frozen=True, kw_only=True)
class WeightCurve:
    """A measure over a weight."""

    measure: str
    """Name of the axis, e.g. `SSR, object-level`."""
    here: Sequence[WeightPoint]
    published: Sequence[WeightPoint] = ()
    baseline: float = math.nan
    """The baseline scorer's value."""
    percent: bool = False


_SHOWN = (
    # benchmark, metric, said, percent, column of the published table
    (NEARID, "ssr", "SSR", True, "nearid_ssr"),
    (NEARID, "pa", "PA", True, "nearid_pa"),
    (NEARID, "ordering", "Ordering", True, ""),
    (MTG, "m_o", "M-O", False, "mtg_mo"),
    (MTG, "ssr", "SSR, part-level", True, "mtg_ssr"),
    ("dreambench-plus", "m_h", "M-H", False, "dbpp_mh"),
)


def weight_curves(
    weight: str, weights: Mapping[str, float], measures: Sequence[Measure], *, baseline: str = ""
) -> list[WeightCurve]:
    """One curve a measure that at least two scorers have.

    Args:
        weight: alpha or beta: says which published table stands beside.
        weights: the weight of each scorer.
    """
    curves = []
    for benchmark, metric, said, percent, column in _SHOWN:
        rows = find(measures, benchmark=benchmark, metric=metric, condition="full")
        name = whole(rows) or (rows[0].name if rows else "")
        found = {one.scorer: one for one in rows if one.name == name}
        here = [WeightPoint(weight=weights[s], value=one.value, low=one.low, high=one.high)
                for s, one in found.items() if s in weights and math.isfinite(one.value)]  # fmt: skip
        if len({point.weight for point in here}) < 2:
            continue
        curves.append(
            WeightCurve(
                measure=said,
                here=sorted(here, key=lambda point: point.weight),
                published=_published(weight, column),
                baseline=found[baseline].value if baseline in found else math.nan,
                percent=percent,
            )
        )
    return curves


def weights_of(weight: str, settings: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """{head: its weight} of the largest set of heads whose settings differ in this weight alone.

    Args:
        settings: of each trained head, as its card has them.

    >>> settings = {"a": {"alpha": 0.5, "beta": 0}, "b": {"alpha": 1, "beta": 0}, "c": {"alpha": 2, "beta": 1}}
    >>> weights_of("alpha", settings)
    {'a': 0.5, 'b': 1.0}
    """
    sets: dict[str, dict[str, float]] = {}
    for name, values in settings.items():
        if isinstance(values.get(weight), int | float):
            rest = {key: value for key, value in values.items() if key != weight}
            sets.setdefault(json.dumps(rest, sort_keys=True, default=str), {})[name] = float(values[weight])
    largest = max(sets.values(), key=lambda found: len(set(found.values())), default={})
    return largest if len(set(largest.values())) > 1 else {}


def weight_figure(weight: str, curves: Sequence[WeightCurve]) -> Figure:
    """One panel a measure: ours with its interval as a band, the published curve dashed, the baseline grey."""
    panels = [
        Panel(svg=_chart(weight, curve), height=_HEIGHT, caption=f"{curve.measure} by {weight}.") for curve in curves
    ]
    legend = {HERE: Key(colour=_OURS)}
    theirs = any(curve.published for curve in curves)
    legend |= {PUBLISHED: Key(colour=_THEIRS, dashed=True)} if theirs else {}
    legend |= {FROZEN: Key(colour=BASELINE_COLOUR)} if any(math.isfinite(c.baseline) for c in curves) else {}
    what = "ranking" if weight == "alpha" else "cohesion"
    caption = (
        f"Heads that differ in the weight of the {what} term alone. Bands: intervals over identities, where measured."
    )
    if theirs:
        table = _TABLES[weight].replace("table", "table ")
        caption += (
            f" Published: {table} of arXiv 2604.01973, another backbone on other data; compare the curves' direction, "
            "not their height."
        )
    return Figure(name=f"{weight}-curves", title=f"What {weight} does", caption=caption, panels=panels, legend=legend)


def _published(weight: str, column: str) -> list[WeightPoint]:
    if not column or weight not in _TABLES:
        return []
    rows = published(_TABLES[weight])
    return [WeightPoint(weight=float(key), value=row[column]) for key, row in rows.items()
            if math.isfinite(row.get(column, math.nan))]  # fmt: skip


def _chart(weight: str, curve: WeightCurve) -> Markup:
    scale = 100.0 if curve.percent else 1.0
    drawn = [*curve.here, *curve.published]
    numbers = [scale * v for p in drawn for v in (p.value, p.low, p.high) if math.isfinite(v)]
    numbers += [scale * curve.baseline] if math.isfinite(curve.baseline) else []
    y_ticks = [tick for tick in nice_ticks(*_ends(numbers)) if not curve.percent or -1e-9 <= tick <= 100 + 1e-9]
    frame = Frame(x_ticks=nice_ticks(0.0, max(p.weight for p in drawn)), y_ticks=y_ticks, height=_HEIGHT)
    parts = frame.axes(weight, f"{curve.measure}, %" if curve.percent else curve.measure)

    def places(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
        return [(frame.x(x), frame.y(scale * y)) for x, y in points]

    banded = [p for p in curve.here if math.isfinite(p.low) and math.isfinite(p.high)]
    if len(banded) > 1:
        edge = [(p.weight, p.low) for p in banded] + [(p.weight, p.high) for p in reversed(banded)]
        parts.append(polygon(places(edge), _OURS, name="interval", opacity=0.16))
    if math.isfinite(curve.baseline):
        ends = [(frame.x_ticks[0], curve.baseline), (frame.x_ticks[-1], curve.baseline)]
        parts.append(polyline(places(ends), BASELINE_COLOUR, name=f"{FROZEN}: {scale * curve.baseline:.4g}", width=1.4))
    for points, colour, name, dash in (
        (curve.published, _THEIRS, PUBLISHED, DASH_PATTERN),
        (curve.here, _OURS, HERE, None),
    ):
        at = places((p.weight, p.value) for p in points)
        parts.append(polyline(at, colour, name=name, dash=dash))
        for (x, y), p in zip(at, points, strict=True):
            said = f"{name}, {weight} {p.weight:g}: {scale * p.value:.4g}"
            parts.append(dot(x, y, colour, name=said, radius=3.6, hollow=name == PUBLISHED))
    return svg(parts, _HEIGHT, f"{curve.measure} by {weight}")


def _ends(numbers: Sequence[float]) -> tuple[float, float]:
    return min(numbers), max(numbers)
