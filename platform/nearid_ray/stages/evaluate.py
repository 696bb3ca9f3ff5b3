"""The evaluate job: SSR and PA of frozen backbone and trained heads, with intervals."""

import math
from dataclasses import dataclass

from nearid_ray import job
from nearid_ray.data.pipeline import RunSettings
from nearid_ray.data.store import Dataset
from nearid_ray.evaluation.control import control_rates
from nearid_ray.evaluation.evaluate import EvaluateSettings, Evaluation
from nearid_ray.evaluation.scorers import named_heads, plan_evaluation
from nearid_ray.evaluation.summary import MetricsRow
from nearid_ray.settings import to_dict
from nearid_ray.tracking import TrackingSettings
from schemas import SIMILARITIES


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Measure how well embeddings see identity: success rates on near-identity distractors, by engine."""

    tokens: str
    """The token cache that embed wrote; it needs the split that is measured."""
    output: str
    """Folder or s3://bucket/prefix for eval records, metrics and the table."""
    heads: tuple[str, ...] = ()
    """Trained heads as NAME=FOLDER; the backbone's own head is always measured, as `frozen`."""
    evaluation: EvaluateSettings = EvaluateSettings()
    run: RunSettings = RunSettings()
    tracking: TrackingSettings = TrackingSettings()


@job.owning_output("evaluate")
def run_evaluate(settings: Evaluate) -> job.Job:
    """Embed, compare, measure."""
    output = job.output_of(settings.output, settings.tracking)
    heads = named_heads(settings.heads)
    planned = plan_evaluation(settings.tokens, heads, output, settings.evaluation)
    with job.running(
        "evaluate",
        output,
        to_dict(settings),
        tracking=settings.tracking,
        inputs={"tokens": settings.tokens, **heads},
        needs_ray=bool(planned.plan.pending),
    ) as running:
        made = planned.embed(settings.run)
        evaluation = planned.measure()
        running.summary |= {
            "embeddings_made": made.rows_made,
            "embeddings_done_before": made.rows_before,
            "records_made": not evaluation.reused,
        }
        running.details["scorers"] = scorer_summary(evaluation)
        running.failed = made.failed
        for condition in dict.fromkeys(row.condition for row in evaluation.rows):
            print(f"\n{text_table(evaluation, condition)}")
        running.tracker.metrics(flat_metrics(evaluation))
        _report_controls(running, Dataset(output.child(SIMILARITIES.name)))
    return running


def _report_controls(running: job.Job, similarities: Dataset) -> None:
    """The artefact control: how often the same object, painted anew, is more like its view than a distractor."""
    columns = ["kind", "scorer", "condition", "engine", "identity_id", "other_view_index", "similarity"]
    rates = control_rates(similarities.read(columns=columns))
    if not rates:
        return
    print("\nArtefact control: how many pictures of the same object, painted anew by an engine, are more like their")
    print("view than the engine's distractor is, percent")
    for (scorer, condition, engine), found in rates.items():
        print(f"  {scorer}, {engine}, {condition}: {100 * found.rate:.1f} of {found.pairs}")
        if found.pairs:
            name = f"{scorer}/{engine}/{condition}".replace(":", "_")
            running.details.setdefault("control_rate", {})[name] = round(found.rate, 4)
            running.tracker.metrics({f"{name}/control_rate": found.rate})


def scorer_summary(evaluation: Evaluation) -> dict[str, dict[str, dict[str, float | int | None]]]:
    """scorer -> engine or group -> SSR, PA (with intervals) and ordering rate, shares of 1, on whole pictures."""
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
            }
    return result


def text_table(evaluation: Evaluation, condition: str = "full") -> str:
    """Engines and groups against scorers: SSR with its interval / PA, in percent."""
    rows = [row for row in evaluation.rows if row.condition == condition]
    scorers = list(dict.fromkeys(row.scorer for row in rows))
    names = list(dict.fromkeys(row.name for row in rows))
    cells = {(row.name, row.scorer): _cell(row) for row in rows}
    groups = {row.name for row in rows if row.is_group}
    lines = [["", *scorers]]
    lines += [[f"[{n}]" if n in groups else n, *(cells.get((n, s), "-") for s in scorers)] for n in names]
    widths = [max(len(line[i]) for line in lines) for i in range(len(scorers) + 1)]
    head = f"SSR (interval) / PA in percent, condition {condition}; [groups] pool their engines"
    body = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([head, *body])


def flat_metrics(evaluation: Evaluation) -> dict[str, float]:
    """Every SSR and PA by a name that MLflow accepts."""
    values: dict[str, float] = {}
    for row in evaluation.rows:
        for metric, value in (("ssr", row.ssr), ("pa", row.pa)):
            if not math.isnan(value):
                values[f"{row.scorer}/{row.name}/{row.condition}/{metric}".replace(":", "_")] = value
    return values


def _cell(row: MetricsRow) -> str:
    if math.isnan(row.ssr):
        return "-"
    return f"{row.ssr:.1%} ({row.ssr_low:.0%}-{row.ssr_high:.0%}) / {row.pa:.1%}".replace("%", "")


def _rounded(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 4)
