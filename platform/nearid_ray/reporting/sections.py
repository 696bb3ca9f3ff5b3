"""The sections of the report's page, each a function of the data."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

from nearid_ray.evaluation.bootstrap import Interval
from nearid_ray.evaluation.control import is_control
from nearid_ray.evaluation.groups import HEADLINES
from nearid_ray.evaluation.summary import MetricsRow
from nearid_ray.reporting.charts import Line, bar_chart, line_chart
from nearid_ray.reporting.figures.figure import colour_keys, html_legend
from nearid_ray.reporting.markup import Markup, data_uri, number, percent, tag
from nearid_ray.reporting.model import ReportData
from nearid_ray.reporting.pieces import fact_list, framed_table
from nearid_ray.reporting.svg import series_colours

CONDITION_NAMES = {"full": "whole pictures", "foreground": "foreground only (background blacked out)"}


def scorers_of(data: ReportData) -> list[str]:
    """Scorers in the order of the rows, the baseline first."""
    names = list(dict.fromkeys(row.scorer for row in data.rows))
    return sorted(names, key=lambda name: name != data.baseline)


def conditions_of(data: ReportData) -> list[str]:
    """Conditions in the order of the rows."""
    return list(dict.fromkeys(row.condition for row in data.rows))


def headline_rows(data: ReportData) -> list[MetricsRow]:
    """The row of each scorer for the headline group (else the last group or row), of whole pictures where there are."""
    conditions = conditions_of(data)
    if not conditions:
        return []
    condition = "full" if "full" in conditions else conditions[0]
    rows = [row for row in data.rows if row.condition == condition]
    names = [row.name for row in rows if row.is_group] or [row.name for row in rows]
    name = next((name for name in (data.headline_group, *HEADLINES) if name in names), names[-1])
    by_scorer = {row.scorer: row for row in rows if row.name == name}
    return [by_scorer[scorer] for scorer in scorers_of(data) if scorer in by_scorer]


def top(data: ReportData) -> Markup:
    """Title, what the data is, and the numbers that matter most."""
    rows = headline_rows(data)
    boxes = [
        tag("div", tag("span", row.scorer), tag("b", f"{percent(row.ssr)} %"), tag("span", _headline_text(row, data)),
            class_="number")
        for row in rows
    ]  # fmt: skip
    return tag(
        "header",
        tag("h1", data.title),
        tag("div", [tag("p", text) for text in data.statement], class_="statement") if data.statement else None,
        tag("p", f"Sample success rate (SSR), {_group_text(data, rows[0].name)}:", class_="lead") if rows else None,
        tag("div", boxes, class_="numbers") if boxes else None,
    )


def _intervals(data: ReportData) -> str:
    return f"{100 * data.confidence:g} % interval"


def _headline_text(row: MetricsRow, data: ReportData) -> str:
    text = f"{_intervals(data)} {percent(row.ssr_low)} to {percent(row.ssr_high)}; PA {percent(row.pa)} %"
    if math.isfinite(row.ssr_gain):
        text += f"; {'+' if row.ssr_gain >= 0 else ''}{percent(row.ssr_gain)} points"
    return text


def _group_text(data: ReportData, name: str) -> str:
    engines = data.group_engines.get(name)
    return f"{name} ({', '.join(engines)})" if engines else name


def results(data: ReportData) -> list[Markup]:
    """The frozen-against-trained tables and the bars."""
    colours = series_colours(scorers_of(data), data.baseline)
    parts = [
        tag("h2", "Results"),
        tag(
            "p",
            "Every pair of views i, j of an identity gives two trials: the similarity of the two views must be above "
            "the similarity of the anchor and a distractor painted into the anchor's own background. SSR is the share "
            "of identities that pass all their trials, PA the share of trials passed (percent, higher is better; a tie "
            f"fails). Small print: the bootstrap's {_intervals(data)} over identities. Groups are weighted by support.",
        ),
    ]
    for condition in conditions_of(data):
        name = CONDITION_NAMES.get(condition, condition)
        rows = [row for row in data.rows if row.condition == condition]
        parts.append(tag("h3", f"By engine: {name}"))
        parts.append(_main_table(data, rows, name))
        parts.append(_bars(data, rows, colours, name))
        # The second condition repeats the first one's columns: there for who asks, not in everybody's way.
        details = [tag("summary", f"Gains, ordering and oracle: {name}"), _detail_table(data, rows, name)]
        parts.append(tag("details", details, open=condition == conditions_of(data)[0]))
    if data.group_engines:
        listed = [(name, ", ".join(engines)) for name, engines in data.group_engines.items()]
        parts.append(tag("h3", "Groups of engines"))
        parts.append(fact_list(listed))
    return parts


def _names(data: ReportData, rows: Sequence[MetricsRow], *, groups: bool) -> list[str]:
    """Engines in the order of their groups, or the groups in their own order."""
    # The artefact control has a section of its own: its pictures show the same object, so a rate of success says less.
    found = list(dict.fromkeys(row.name for row in rows if row.is_group == groups and not is_control(row.name)))
    known = list(data.group_engines)
    if not groups:
        known = list(dict.fromkeys(engine for engines in data.group_engines.values() for engine in engines))
    return sorted(found, key=lambda name: known.index(name) if name in known else len(known))


def _main_table(data: ReportData, rows: Sequence[MetricsRow], condition: str) -> Markup:
    scorers = scorers_of(data)
    cells = {(row.name, row.scorer): row for row in rows}
    names = [*_names(data, rows, groups=False), *_names(data, rows, groups=True)]
    head = [
        tag("tr", tag("th", "Engine or group", rowspan=2, scope="col", class_="first"),
            [tag("th", scorer, colspan=2, scope="colgroup", class_="edge") for scorer in scorers]),
        tag("tr", [[tag("th", "SSR", scope="col", class_="edge"), tag("th", "PA", scope="col")] for _ in scorers]),
    ]  # fmt: skip
    body = []
    for name in names:
        found = [row for row in rows if row.name == name]
        identities = tag("small", f"{max(row.identities for row in found)} identities")
        line = [tag("th", name, identities, scope="row", class_="first")]
        for scorer in scorers:
            row = cells.get((name, scorer))
            line.append(_rate((row.ssr, row.ssr_low, row.ssr_high) if row else None, edge=True))
            line.append(_rate((row.pa, row.pa_low, row.pa_high) if row else None))
        body.append(tag("tr", line, class_="group" if found[0].is_group else None))
    caption = f"SSR and PA in percent, {condition}, by engine and (shaded) by group of engines."
    return framed_table(caption, head, body)


def _rate(value: tuple[float, float, float] | None, *, edge: bool = False) -> Markup:
    if value is None or not math.isfinite(value[0]):
        return tag("td", number(None), class_="edge" if edge else None)
    rate, low, high = value
    interval = tag("small", f"{percent(low)} to {percent(high)}") if math.isfinite(low) else None
    return tag("td", percent(rate), interval, class_="edge" if edge else None)


def _bars(data: ReportData, rows: Sequence[MetricsRow], colours: dict[str, str], condition: str) -> Markup:
    charts = []
    for title, is_group in (("engine", False), ("group of engines", True)):
        groups: dict[str, dict[str, Interval]] = {name: {} for name in _names(data, rows, groups=is_group)}
        for scorer in scorers_of(data):
            for row in rows:
                if row.scorer == scorer and row.is_group == is_group and row.name in groups:
                    interval = Interval(value=row.ssr, low=row.ssr_low, high=row.ssr_high)
                    groups[row.name][scorer] = interval
        # Groups of one engine each would only say again what the engines' chart says.
        if groups and not (is_group and all(len(data.group_engines.get(name, ())) == 1 for name in groups)):
            label = f"SSR by {title} for {', '.join(scorers_of(data))}, {condition}"
            caption = f"SSR by {title}, {condition}; the thin lines are the {_intervals(data)}s."
            chart = bar_chart(groups, colours, label=label, axis="SSR, %")
            charts.append(tag("figure", chart, tag("figcaption", caption)))
    return Markup(html_legend(colour_keys(colours)) + tag("div", charts, class_="figures"))


def _detail_table(data: ReportData, rows: Sequence[MetricsRow], condition: str) -> Markup:
    columns = ["Group", "Scorer", "SSR gain", "PA gain", "Ordering", "Oracle r", "Units", "Trials"]
    head = [tag("tr", [tag("th", c, scope="col", class_="text" if c in columns[:2] else None) for c in columns])]
    is_group = any(row.is_group for row in rows)
    body = []
    for name in _names(data, rows, groups=is_group):
        found = {row.scorer: row for row in rows if row.name == name and row.is_group == is_group}
        shown = [found[scorer] for scorer in scorers_of(data) if scorer in found]
        for n, row in enumerate(shown):
            line = [
                tag("th", name, scope="rowgroup", rowspan=len(shown), class_="text top") if n == 0 else None,
                tag("td", row.scorer, class_="text"),
                _rate((row.ssr_gain, row.ssr_gain_low, row.ssr_gain_high)),
                _rate((row.pa_gain, row.pa_gain_low, row.pa_gain_high)),
                _rate((row.ordering, row.ordering_low, row.ordering_high)),
                _correlation(row),
                tag("td", row.units),
                tag("td", row.trials),
            ]
            body.append(tag("tr", line, class_="starts" if n == 0 else None))
    caption = (
        f"{condition[0].upper()}{condition[1:]}. Gains over {data.baseline} in points, resampled in pairs. Ordering: "
        "how often a distractor is more similar to its view than a view of a random identity is, percent. Oracle r: "
        "Pearson's correlation of similarity with the share of the object that stayed the same (part-level engines)."
    )
    return framed_table(caption, head, body)


def _correlation(row: MetricsRow) -> Markup:
    if not math.isfinite(row.oracle_r):
        return tag("td", number(None))
    low, high = number(row.oracle_r_low, 2), number(row.oracle_r_high, 2)
    return tag("td", number(row.oracle_r, 2), tag("small", f"{low} to {high}"))


def training(data: ReportData) -> list[Markup]:
    """Loss and validation SSR by step."""
    if not data.curves:
        return []
    names = [curve.name for curve in data.curves]
    known = series_colours(scorers_of(data), data.baseline)
    colours = {**series_colours(names), **{name: known[name] for name in names if name in known}}
    figures = []
    for title, axis, scale, attribute in (
        ("Training loss", "loss", 1.0, "loss"),
        ("SSR on the validation split", "SSR, %", 100.0, "validation_ssr"),
    ):
        lines = [
            Line(name=c.name, x=[p[0] for p in getattr(c, attribute)], y=[scale * p[1] for p in getattr(c, attribute)])
            for c in data.curves
        ]
        few = max((len(line.x) for line in lines), default=0) <= 40
        if any(line.x for line in lines):
            label = f"{title} by step for {', '.join(names)}"
            chart = line_chart(lines, colours, label=label, x_axis="step", y_axis=axis, dots=few)
            figures.append(tag("figure", chart, tag("figcaption", f"{title}, by step.")))
    note = "Losses of runs with another weight of the ranking term are sums of other parts; compare the curves' shape."
    kept = [f"{curve.name}: step {curve.kept_step}" for curve in data.curves if curve.kept_step is not None]
    notes = [note] if len(names) > 1 else []
    notes += [f"Kept by validation SSR, never by the split that is reported: {'; '.join(kept)}."] if kept else []
    return [
        tag("h2", "Training"),
        *[tag("p", text, class_="lead") for text in notes],
        html_legend(colour_keys(colours)),
        tag("div", figures, class_="figures"),
    ]


def engines(data: ReportData) -> list[Markup]:
    """What each engine made, and how much of it the quality gate accepted."""
    if not data.engine_sheet:
        return []
    text = (
        "A view, its mask, and what each engine painted into it. Below each picture stands the quality gate's verdict: "
        "only accepted distractors are trained on and evaluated."
    )
    verdicts = sorted({verdict for counts in data.engine_counts.values() for verdict in counts})
    head = tag(
        "tr", [tag("th", n, scope="col", class_="text" if n == "engine" else None) for n in ("engine", *verdicts)]
    )
    body = [
        tag(
            "tr",
            tag("th", engine, scope="row", class_="text"),
            [tag("td", str(counts.get(verdict, 0))) for verdict in verdicts],
        )
        for engine, counts in data.engine_counts.items()
    ]
    picture = tag("img", src=data_uri(data.engine_sheet), alt="views, masks and distractors by engine", loading="lazy")
    caption = "A view, its mask and what each engine painted into it, one identity a row."
    return [
        tag("h2", "Distractors"),
        tag("p", text),
        framed_table("Distractors by engine and verdict of the quality gate.", [head], body),
        tag("figure", tag("div", picture, class_="scroll", tabindex=0), tag("figcaption", caption)),
    ]


def run_facts(data: ReportData) -> list[Markup]:
    """Facts, commands and settings of the run."""
    parts: list[Markup] = []
    if data.facts:
        parts.append(fact_list(data.facts.items()))
    if data.commands:
        parts += [tag("h3", "Commands"), tag("pre", "\n".join(data.commands), tabindex=0)]
    if data.settings:
        parts.append(tag("h3", "Settings"))
        for stage, values in data.settings.items():
            text = json.dumps(values, indent=2, ensure_ascii=False, default=str)
            parts.append(tag("details", tag("summary", stage), tag("pre", text, tabindex=0)))
    if data.not_drawn:
        parts += [tag("h3", "Figures that are not here"), fact_list(data.not_drawn.items())]
    return [tag("h2", "The run"), *parts] if parts else []
