"""Fill a report from what the jobs wrote: eval records, measures, tuples, distractors, training histories."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from nearid_ray.data.engine_sheet import MOST_ROWS, engine_sheet
from nearid_ray.data.store import Dataset
from nearid_ray.evaluation.control import control_rates
from nearid_ray.evaluation.expected import missing, warnings_of
from nearid_ray.evaluation.measures import NEARID, Measure, find
from nearid_ray.reporting.benchmarks import CONTROL
from nearid_ray.reporting.figures.gather import sheet_identities
from nearid_ray.reporting.figures.make import MadeFigures, draw_figures
from nearid_ray.reporting.figures.pictures import jpeg
from nearid_ray.reporting.inputs import Opened
from nearid_ray.reporting.model import ReportData, ReportSettings

TOY_DATA = (
    "Toy data. Every picture on this page was drawn by a program (toybox: simple objects of a dozen categories, 64 "
    "pixels wide). The page shows whether the method works in small; its numbers say nothing about photographs and "
    "cannot be compared with published ones."
)
TOY_BACKBONE = (
    "Toy backbone. Pictures were embedded by toybox-siglip2, a model of about a million parameters that has only seen "
    "drawn toy pictures. On photographs its similarities show that the jobs run, not how well any method works."
)


def load_report(
    opened: Opened,
    settings: ReportSettings,
    *,
    drawn: MadeFigures | None = None,
    facts: Mapping[str, str] | None = None,
    commands: Sequence[str] = (),
) -> ReportData:
    """Read all that the page shows.

    Args:
        drawn: its figures, where they are drawn already.
        facts: further facts about the run, shown after those of the data.
        commands: commands that make the result.

    Raises:
        UsageError: a folder does not hold what it should, or belongs to another evaluation.
    """
    found = {"tuples": opened.tuples, "distractors": opened.distractors, "tokens": opened.tokens}
    stages = {name: dataset for name, dataset in found.items() if dataset is not None}
    drawn = drawn or draw_figures(opened, settings)
    similarities, backbone = opened.similarities, opened.backbone
    return ReportData(
        title=settings.title,
        statement=[*data_statement(similarities, backbone), *settings.statement],
        rows=opened.evaluation.rows,
        baseline=opened.baseline,
        confidence=opened.asked.get("confidence", 0.95),
        headline_group=settings.headline_group,
        group_engines=opened.evaluation.groups,
        measures=[*opened.measures, *control_measures(opened)],
        gaps=warnings_of(similarities, missing(similarities)),
        curves=opened.curves,
        figures=drawn.figures,
        not_drawn=drawn.missing,
        engine_sheet=_engine_sheet(opened, settings),
        engine_counts=verdict_counts(opened.distractors) if opened.distractors else {},
        facts={
            **_facts(similarities, backbone),
            **_times({**stages, "evaluation": Dataset(opened.folder)}),
            **(facts or {}),
        },
        commands=commands,
        settings={
            **{name: (dataset.settings() or {}).get("content", {}) for name, dataset in stages.items()},
            **{f"train {curve.name}": curve.settings for curve in opened.curves if curve.settings},
            "evaluation": opened.asked,
        },
    )


def data_statement(similarities: pa.Table, backbone: str) -> list[str]:
    """What must be said of the data before any number: whether pictures or backbone are toys, and who made them."""
    sources = {name.partition(":")[0] for name in similarities["identity_id"].unique().to_pylist()}
    statement = []
    if "toybox" in sources:
        statement.append(TOY_DATA)
    if backbone.startswith("toybox") and sources - {"toybox"}:
        statement.append(TOY_BACKBONE)
    painters = sorted(set(similarities["engine"].unique().to_pylist()) - {""})
    made = [f"Views: {', '.join(sorted(sources))}.", f"Distractors painted by: {', '.join(painters) or 'nobody'}."]
    return [*statement, " ".join([*made, f"Backbone: {backbone}." if backbone else ""]).strip()]


def control_measures(opened: Opened) -> list[Measure]:
    """The artefact control's rates as measures, where the evaluation has controls and no such measures of its own."""
    if find(opened.measures, metric=CONTROL):
        return []
    return [
        Measure(
            benchmark=NEARID, scorer=scorer, condition=condition, name=engine, is_group=False, metric=CONTROL,
            value=rate.rate, low=math.nan, high=math.nan, support=rate.pairs, coverage=1.0, baseline="",
        )
        for (scorer, condition, engine), rate in control_rates(opened.similarities).items()
    ]  # fmt: skip


def verdict_counts(distractors: Dataset) -> dict[str, dict[str, int]]:
    """Engine -> verdict -> distractors, engines in the order of the shards."""
    rows = distractors.read(["engine", "verdict"])
    counts: dict[str, dict[str, int]] = {}
    for engine, verdict in zip(rows["engine"].to_pylist(), rows["verdict"].to_pylist(), strict=True):
        own = counts.setdefault(engine, {})
        own[verdict] = own.get(verdict, 0) + 1
    return counts


def _facts(similarities: pa.Table, backbone: str) -> dict[str, str]:
    kinds = similarities.group_by(["scorer", "condition", "kind"], use_threads=False).aggregate([([], "count_all")])
    pairs = {row["kind"]: row["count_all"] for row in kinds.to_pylist()}
    facts = {
        "Identities": str(len(similarities["identity_id"].unique())),
        "Split": ", ".join(sorted(similarities["split"].unique().to_pylist())),
        "Pairs a scorer": ", ".join(f"{count} {kind}" for kind, count in pairs.items()),
    }
    return {**facts, "Backbone": backbone} if backbone else facts


def _times(stages: Mapping[str, Dataset]) -> dict[str, str]:
    """What each job's summary says of its last run; a rerun that found all done was quick, so its rows stand beside."""
    times = {}
    for name, dataset in stages.items():
        summary = dataset.read_json("summary.json") or {}
        if "seconds" in summary:
            rows = [f"{summary[key]} rows {said}" for key, said in
                    (("rows_made", "made"), ("rows_done_before", "done before")) if key in summary]  # fmt: skip
            times[f"Last run, {name}"] = ", ".join([f"{summary['seconds']} s", *rows])
    return times


def _engine_sheet(opened: Opened, settings: ReportSettings) -> bytes:
    """A JPEG of what each engine made of the identities on the sheet of tuples; empty where there are none."""
    if opened.tuples is None or opened.distractors is None or not settings.sheet_tuples:
        return b""
    shown = sheet_identities(opened, settings)
    where = pc.field("identity_id").isin(shown)
    painted = set(opened.distractors.read(["identity_id"], where=where)["identity_id"].unique().to_pylist())
    identities = [name for name in shown if name in painted][:MOST_ROWS]
    return jpeg(engine_sheet(opened.tuples, opened.distractors, identities)) if identities else b""
