"""Sections that read measures alone: one table a benchmark, what is missing from it, and the artefact control."""

from __future__ import annotations

import math
from collections.abc import Sequence

from nearid_ray.evaluation.measures import Measure, find
from nearid_ray.reporting.markup import DASH, Markup, number, percent, tag
from nearid_ray.reporting.model import ReportData
from nearid_ray.reporting.pieces import framed_table
from nearid_ray.reporting.whole import whole

RATES = frozenset({"ssr", "pa", "ordering", "control_rate"})
"""Metrics that are shares, shown in percent; all others are shown as they are."""
CONTROL = "control_rate"
_NAMES = {
    "ssr": "SSR",
    "pa": "PA",
    "m_o": "M-O",
    "m_o_pair": "M-O pair",
    "m_h": "M-H",
    "m_h_spread": "± of the groups",
    "h_h": "People",
    "krippendorff_alpha": "Krippendorff's α",
    "oracle_r": "Oracle r",
    "ordering": "Ordering",
    CONTROL: "Control rate",
}
_TITLES = {
    "nearid": "Whole objects replaced (NearID's measures)",
    "mtg": "A part of the object changed (Mind-the-Glitch's measures)",
    "dreambench-plus": "Agreement with people (DreamBench++'s measures)",
}
_MOST_GAPS = 12


def benchmarks(data: ReportData) -> list[Markup]:
    """One table a benchmark: its headline by scorer and condition, with gains and coverage; then what is missing."""
    names = list(dict.fromkeys(one.benchmark for one in data.measures))
    names.sort(key=lambda name: list(_TITLES).index(name) if name in _TITLES else len(_TITLES))
    if not names:
        return []
    text = (
        "One row a scorer and condition, for the group of engines, methods or categories that stands for the "
        "benchmark. Rates in percent, correlations as they are; below each its interval, and its difference to "
        f"{data.baseline} with a sign (bold where the difference's interval leaves out 0). Coverage is the share of "
        "what should have been compared that was; where the columns differ, that of the worst, which is named."
    )
    parts = [tag("h2", "By benchmark"), tag("p", text)]
    for name in names:
        own = find(data.measures, benchmark=name)
        parts += [tag("h3", _TITLES.get(name, name)), *_benchmark(own)]
    return [*parts, *_gaps(data.gaps)]


def controls(data: ReportData) -> list[Markup]:
    """How often the same object, painted anew, is more like its view than the same engine's distractor is."""
    rows = find(data.measures, metric=CONTROL)
    if not rows:
        return []
    scorers = sorted(dict.fromkeys(one.scorer for one in rows), key=lambda name: name != data.baseline)
    lines = list(dict.fromkeys((one.name, one.condition, one.is_group) for one in rows))
    cells = {(one.name, one.condition, one.scorer): one for one in rows}
    head = [tag("tr", [tag("th", n, scope="col", class_="text" if k < 2 else None)
                       for k, n in enumerate(["Engine", "Condition", *scorers, "Pairs"])])]  # fmt: skip
    body = []
    for name, condition, is_group in lines:
        found = [cells.get((name, condition, scorer)) for scorer in scorers]
        support = max((one.support for one in found if one), default=0)
        cell = [tag("th", name, scope="row", class_="text"), tag("td", condition, class_="text")]
        cell += [_value(one, None) for one in found] + [tag("td", support)]
        body.append(tag("tr", cell, class_="group" if is_group else None))
    text = (
        "The same object, painted anew into its own view by an engine, against the distractor of the same engine in "
        "the same view: the share of pairs in which the repainted object is more like the view (percent; 50 is what "
        "chance gives, a tie fails). A scorer that has learned what generated pixels look like, and not identities, "
        "does well on distractors and fails here."
    )
    caption = "Share of repainted objects that are more like their view than the engine's distractor is, percent."
    return [tag("h2", "Artefact control"), tag("p", text), framed_table(caption, head, body)]


def _benchmark(measures: Sequence[Measure]) -> list[Markup]:
    groups = [one for one in measures if one.is_group]
    top = whole(groups)
    shown = [one for one in groups if one.name == top] or list(measures)
    # The artefact control has a table of its own.
    shown = [one for one in shown if one.metric != CONTROL]
    if not shown:
        return []
    parts = [_by_scorer(shown, top)]
    rest = [one for one in measures if one not in shown and one.metric != CONTROL]
    if rest and measures[0].benchmark != "nearid":
        details = [
            _by_scorer([m for m in rest if m.name == name], name) for name in dict.fromkeys(m.name for m in rest)
        ]
        parts.append(tag("details", tag("summary", "Every engine, method and category"), details))
    return parts


def _by_scorer(measures: Sequence[Measure], name: str) -> Markup:
    cells = {(m.scorer, m.condition, m.metric): m for m in measures}
    metrics = [m for m in dict.fromkeys(one.metric for one in measures) if not m.endswith("_gain")]
    lines = list(dict.fromkeys((one.scorer, one.condition) for one in measures))
    several = len({condition for _, condition in lines}) > 1
    titles = ["Scorer", "Condition", *(_NAMES.get(m, m) for m in metrics), "Support", "Coverage"]
    titles = [title for title in titles if several or title != "Condition"]
    texts = ("Scorer", "Condition")
    head = [tag("tr", [tag("th", t, scope="col", class_="text" if t in texts else None) for t in titles])]
    body = []
    for scorer, condition in lines:
        own = [m for m in measures if (m.scorer, m.condition) == (scorer, condition)]
        line = [tag("th", scorer, scope="row", class_="text")]
        line += [tag("td", condition, class_="text")] if several else []
        line += [
            _value(cells.get((scorer, condition, m)), cells.get((scorer, condition, f"{m}_gain"))) for m in metrics
        ]
        supports = sorted({m.support for m in own if not m.metric.endswith("_gain")})
        said = str(supports[0]) if len(supports) == 1 else f"{supports[0]} to {supports[-1]}" if supports else DASH
        line += [tag("td", said), _coverage(own)]
        body.append(tag("tr", line))
    benchmark = measures[0].benchmark
    caption = f"{benchmark}{f', {name}' if name else ''}: by scorer."
    return framed_table(caption, head, body)


def _value(one: Measure | None, gain: Measure | None) -> Markup:
    if one is None or not math.isfinite(one.value):
        return tag("td", DASH)
    said = _said(one.metric, one.value)
    interval = (
        tag("small", f"{_said(one.metric, one.low)} to {_said(one.metric, one.high)}")
        if math.isfinite(one.low) and math.isfinite(one.high)
        else None
    )
    difference = None
    if gain is not None and math.isfinite(gain.value):
        shown = ("+" if gain.value >= 0 else "") + _said(one.metric, gain.value)
        difference = tag("small", tag("b", shown) if gain.significant else shown)
    return tag("td", said, interval, difference)


def _said(metric: str, value: float) -> str:
    return percent(value) if metric in RATES or metric.endswith("_rate") else number(value, 3)


def _coverage(measures: Sequence[Measure]) -> Markup:
    known = [m for m in measures if math.isfinite(m.coverage)]
    if not known:
        return tag("td", DASH)
    worst = min(known, key=lambda m: m.coverage)
    of = worst.metric.removesuffix("_gain")
    differs = worst.coverage < max(m.coverage for m in known)
    # Never rounded up to 100: what is missing must show.
    said = f"{math.floor(1000 * worst.coverage) / 10:.1f} %"
    return tag(
        "td", said, tag("small", _NAMES.get(of, of)) if differs else None, class_="lose" if worst.coverage < 1 else None
    )


def _gaps(gaps: Sequence[str]) -> list[Markup]:
    if not gaps:
        return []
    parts = [tag("li", gap) for gap in gaps[:_MOST_GAPS]]
    if len(gaps) > _MOST_GAPS:
        parts.append(tag("li", f"and {len(gaps) - _MOST_GAPS} more"))
    text = "What is missing is left out where it is missing, and never counted as lost or won."
    return [tag("h3", "Missing, or to be read with care"), tag("ul", parts, class_="gaps lose"), tag("p", text)]
