"""The evaluate job: success rates and agreement with oracles of heads, backbones and judges, with intervals."""

import math
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from nearid_ray import job
from nearid_ray.data.pipeline import RunSettings, RunSummary
from nearid_ray.data.store import Location
from nearid_ray.evaluation.evaluate import EvaluateSettings, Evaluation, evaluate
from nearid_ray.evaluation.inputs import Given, open_given
from nearid_ray.evaluation.measures import MTG, Measure, find
from nearid_ray.evaluation.scorers import named_heads, plan_evaluation, refuse_unknown_engines
from nearid_ray.evaluation.summary import MetricsRow
from nearid_ray.settings import to_dict
from nearid_ray.stages.outputs import refuse_others
from nearid_ray.text_tables import aligned, percent
from nearid_ray.tracking import TrackingSettings


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Measure how well scorers see identity: success rates on near-identity distractors, by engine."""

    output: str
    """Folder or s3://bucket/prefix for eval records, metrics and the table."""
    tokens: str = ""
    """The token cache that embed wrote, with the split that is measured; empty measures what the others hold."""
    heads: tuple[str, ...] = ()
    """Trained heads as NAME=FOLDER, applied to the tokens; the backbone's own is always measured, as `frozen`."""
    embeddings: tuple[str, ...] = ()
    """Folders of pooled embeddings (embed --what pooled) as FOLDER or NAME=FOLDER; their scorers are measured too."""
    judged: tuple[str, ...] = ()
    """Folders of judgements (judge) as FOLDER or NAME=FOLDER; their scorers are measured too."""
    evaluation: EvaluateSettings = EvaluateSettings()
    run: RunSettings = RunSettings()
    tracking: TrackingSettings = TrackingSettings()

    def __post_init__(self) -> None:
        if not (self.tokens or self.embeddings or self.judged):
            raise ValueError(
                "there is nothing to measure; expected --tokens, --embeddings or --judged, or some of them"
            )
        if self.heads and not self.tokens:
            raise ValueError("heads are applied to tokens; give --tokens too, or leave --heads out")


@job.owning_output("evaluate")
def run_evaluate(settings: Evaluate) -> job.Job:
    """Embed, compare, measure."""
    output = job.output_of(settings.output, settings.tracking)
    refuse_others(output, "evaluate")
    heads = named_heads(settings.heads)
    others = open_given(settings.embeddings, settings.judged)
    planned = (
        plan_evaluation(settings.tokens, heads, output, settings.evaluation, others=others) if settings.tokens else None
    )
    measure = planned.measure if planned else partial(_measure_given, others, output, settings.evaluation)
    inputs = {"tokens": settings.tokens} if settings.tokens else {}
    with job.running(
        "evaluate",
        output,
        to_dict(settings),
        tracking=settings.tracking,
        inputs={**inputs, **heads, **{f"input {n}": one.origin for n, one in enumerate(others)}},
        needs_ray=planned is not None and bool(planned.plan.pending),
    ) as running:
        made = planned.embed(settings.run) if planned else None
        evaluation = measure()
        if planned and planned.unpainted:
            said = f"no distractor in split {settings.evaluation.split} by {', '.join(planned.unpainted)}"
            evaluation = replace(evaluation, warnings=[*evaluation.warnings, said])
        running.failed = _report(running, evaluation, made)
    return running


def _measure_given(others: Sequence[Given], output: Location, settings: EvaluateSettings) -> Evaluation:
    engines = {name for one in others for name in one.dataset.read(["engine"])["engine"].unique().to_pylist()}
    refuse_unknown_engines(settings, sorted(engines), "the inputs")
    return evaluate([], output, settings, others=others)


def _report(running: job.Job, evaluation: Evaluation, made: RunSummary | None) -> bool:
    """Fill the summary, print the tables and log the numbers; whether too much could not be embedded."""
    running.summary |= {"embeddings_made": made.rows_made, "embeddings_done_before": made.rows_before} if made else {}
    running.summary["records_made"] = not evaluation.reused
    running.details |= {"scorers": scorer_summary(evaluation), "warnings": evaluation.warnings}
    for condition in dict.fromkeys(row.condition for row in evaluation.rows):
        print(f"\n{text_table(evaluation, condition)}")
        if find(evaluation.measures, benchmark=MTG, condition=condition):
            print(f"\n{oracle_table(evaluation, condition)}")
    _print_controls(running, find(evaluation.measures, metric="control_rate"))
    if evaluation.warnings:
        print("\nNot everything could be measured (all of it stands in missing.csv):", file=sys.stderr)
        print("\n".join(f"  {said}" for said in evaluation.warnings), file=sys.stderr)
    running.tracker.metrics(flat_metrics(evaluation))
    return made is not None and made.failed


def _print_controls(running: job.Job, rates: Sequence[Measure]) -> None:
    """The artefact control: how often the same object, painted anew, is more like its view than a distractor."""
    if not rates:
        return
    print("\nArtefact control: how many pictures of the same object, painted anew by an engine, are more like their")
    print("view than the engine's distractor is, percent")
    for one in rates:
        print(f"  {one.scorer}, {one.name}, {one.condition}: {100 * one.value:.1f} of {one.support}")
        if one.support:
            name = f"{one.scorer}/{one.name}/{one.condition}".replace(":", "_")
            running.details.setdefault("control_rate", {})[name] = round(one.value, 4)


def scorer_summary(evaluation: Evaluation) -> dict[str, dict[str, dict[str, float | int | None]]]:
    """scorer -> engine or group -> SSR, PA (with intervals), ordering, coverage; shares of 1, on whole pictures."""
    result: dict[str, dict[str, dict[str, float | int | None]]] = {}
    for row in evaluation.rows:
        if row.condition == "full":
            result.setdefault(row.scorer, {})[row.name] = {
                "ssr": _rounded(row.ssr),
                "ssr_low": _rounded(row.ssr_low),
                "ssr_high": _rounded(row.ssr_high),
                "pa": _rounded(row.pa),
                "pa_low": _rounded(row.pa_low),
                "pa_high": _rounded(row.pa_high),
                "ordering": _rounded(row.ordering),
                "coverage": _rounded(row.coverage),
            }
    return result


def text_table(evaluation: Evaluation, condition: str = "full") -> str:
    """Engines and groups against scorers: SSR with its interval / PA, in percent; what a cell lacks beside it."""
    rows = [row for row in evaluation.rows if row.condition == condition]
    cells = {(row.name, row.scorer): _cell(row) for row in rows}
    groups = {row.name for row in rows if row.is_group}
    head = f"SSR (interval) / PA in percent, condition {condition}; [groups] pool their engines"
    said = f"* a gain over {evaluation.baseline} whose interval leaves 0 out" if any(_gained(r) for r in rows) else ""
    named = {name: f"[{name}]" if name in groups else name for name in dict.fromkeys(row.name for row in rows)}
    return _table([head, said], named, list(dict.fromkeys(row.scorer for row in rows)), cells)


def oracle_table(evaluation: Evaluation, condition: str = "full") -> str:
    """Engines with an oracle against scorers: M-O with its interval / M-O pair."""
    found = find(evaluation.measures, benchmark=MTG, condition=condition)
    pairs = {(one.name, one.scorer): one for one in found if one.metric == "m_o_pair"}
    cells = {}
    for one in found:
        if one.metric == "m_o":
            pair = pairs[one.name, one.scorer]
            text = f"{one.value:.3f} ({one.low:.2f} to {one.high:.2f})" if math.isfinite(one.value) else "-"
            lack = _lack(one.coverage)
            cells[one.name, one.scorer] = f"{text} / {pair.value:.3f}{lack}" if math.isfinite(pair.value) else "-"
    named = {one.name: f"[{one.name}]" if one.is_group else one.name for one in found}
    head = f"Agreement with the oracle, M-O (interval) / M-O pair, condition {condition}"
    return _table([head], named, list(dict.fromkeys(one.scorer for one in found)), cells)


def _table(
    head: Sequence[str], names: dict[str, str], scorers: Sequence[str], cells: dict[tuple[str, str], str]
) -> str:
    lines = [["", *scorers]]
    lines += [[said, *(cells.get((name, scorer), "-") for scorer in scorers)] for name, said in names.items()]
    return "\n".join([*(line for line in head if line), aligned(lines)])


def flat_metrics(evaluation: Evaluation) -> dict[str, float]:
    """Every number, and the coverage of every cell, by a name that MLflow accepts.

    SCORER/ENGINE/CONDITION/METRIC; with `mtg/` before the metric where it is not of the nearid benchmark.
    """
    values: dict[str, float] = {}
    for row in evaluation.rows:
        for metric, value in (("ssr", row.ssr), ("pa", row.pa), ("coverage", row.coverage)):
            values[f"{row.scorer}/{row.name}/{row.condition}/{metric}"] = value
    for one in evaluation.measures:
        metric = f"mtg/{one.metric}" if one.benchmark == MTG and one.metric != "control_rate" else one.metric
        values[f"{one.scorer}/{one.name}/{one.condition}/{metric}"] = one.value
    return {re.sub(r"[^\w. /-]", "_", name): value for name, value in values.items() if math.isfinite(value)}


def _cell(row: MetricsRow) -> str:
    if math.isnan(row.ssr):
        return f"-{_lack(row.coverage)}"
    star = "*" if _gained(row) else ""
    interval = f"{percent(row.ssr_low, 0)}-{percent(row.ssr_high, 0)}"
    return f"{percent(row.ssr)}{star} ({interval}) / {percent(row.pa)}{_lack(row.coverage)}"


def _gained(row: MetricsRow) -> bool:
    return row.ssr_gain_low > 0 or row.ssr_gain_high < 0


def _lack(coverage: float) -> str:
    """What is said of a cell that does not rest on everything it should."""
    return f" [of {100 * coverage:.1f} %]" if coverage < 1 else ""


def _rounded(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 4)
