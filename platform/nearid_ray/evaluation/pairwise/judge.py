"""Judgements on Ray: plan the pairs that an output misses, ask the scorer, write rows and card."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import pyarrow.compute as pc

from nearid_ray.data.card import licence_of, write_card
from nearid_ray.data.light import check_complete
from nearid_ray.data.pipeline import RunSettings, RunSummary, run_plan
from nearid_ray.data.plan import Plan, make_plan
from nearid_ray.data.rejects import write_rejected
from nearid_ray.data.store import Dataset, read_parquet
from nearid_ray.errors import UsageError
from nearid_ray.evaluation.pairwise.plan import PairSettings, plan_generated, plan_judgements
from nearid_ray.evaluation.pairwise.scorer import PairScorer
from nearid_ray.evaluation.pairwise.task import JudgeTask
from schemas import JUDGED_GENERATED, JUDGEMENTS

_ABOUT = {
    "vlm": "What a vision-language model answered when it was asked whether two pictures show the same object.",
    "vsm": "Share of the corresponding places of two objects that look the same (VSM).",
    "function": "What a function of two pictures said.",
}


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Datasets whose pictures are compared: distractors with their views, or generated pictures with references."""

    tuples: Dataset
    distractors: Dataset | None = None
    generated: Dataset | None = None

    @classmethod
    def open(cls, tuples: str, distractors: str = "", generated: str = "") -> "Inputs":
        """Finished datasets by URI; empty = not given.

        Raises:
            UsageError: a dataset is not there or not complete, or distractors and generated pictures are both given.
        """
        if distractors and generated:
            raise UsageError(
                "both --distractors and --generated are given; run it once for each, with an output of its own"
            )
        found = cls(
            tuples=Dataset.open(tuples, "tuples"),
            distractors=Dataset.open(distractors, "distractors") if distractors else None,
            generated=Dataset.open(generated, "generated") if generated else None,
        )
        for dataset in found.by_kind().values():
            check_complete(dataset)
        return found

    def by_kind(self) -> dict[str, Dataset]:
        every = {"tuples": self.tuples, "distractors": self.distractors, "generated": self.generated}
        return {kind: dataset for kind, dataset in every.items() if dataset is not None}

    @property
    def table(self) -> str:
        """Name of the table that comes of them."""
        return JUDGEMENTS.name if self.generated is None else JUDGED_GENERATED.name

    def work(self, settings: PairSettings, methods: tuple[str, ...], *, uses_masks: bool) -> Any:
        """(work list, rejected records)."""
        if self.generated is None:
            return plan_judgements(self.tuples, self.distractors, settings, uses_masks=uses_masks)
        if uses_masks:
            raise UsageError("VSM needs the masks of both pictures; generated pictures have none. Use another judge")
        return plan_generated(self.tuples, self.generated, settings, methods)


@dataclass(frozen=True)
class PlannedJudgements:
    """A planned judgement: what `plan_judging` found good. `run` makes what is missing."""

    task: JudgeTask
    plan: Plan
    output: Dataset
    inputs: Inputs

    def run(self, settings: RunSettings) -> RunSummary:
        """Make the pending shards; needs a Ray session where there are any."""
        summary = run_plan(self.task, self.output, self.plan, settings, title="judge")
        kind = self.task.scorer.described()["kind"]
        outcome = outcome_of(self.output)
        write_card(
            self.output,
            title=f"Judgements of {self.task.name}",
            about=_ABOUT.get(kind, "What a scorer of pairs said."),
            licence=licence_of(*self.inputs.by_kind().values()),
            facts={"scorer": self.task.name, "kind": kind, "rows": summary.rows, "rows with an error": summary.errors}
            | {name.replace("_", " "): value for name, value in outcome.items()},
        )
        return summary


def plan_judging(
    inputs: Inputs,
    output: Dataset,
    scorer: PairScorer,
    name: str,
    settings: PairSettings,
    run: RunSettings,
    *,
    rows_per_shard: int,
    methods: tuple[str, ...] = (),
) -> PlannedJudgements:
    """Plan the judgements that `output` misses. More pairs may be asked for later; the scorer stays the same.

    Args:
        scorer: not loaded; it is checked here.
        name: the column `scorer` of all rows.
        methods: of generated pictures; all when empty.

    Raises:
        UsageError: before anything is written, where the scorer cannot work, there is no pair, or the output holds the
            judgements of another scorer or of other datasets.
    """
    scorer.check()
    work, rejected = inputs.work(settings, methods, uses_masks=scorer.uses_masks)
    content: dict[str, Any] = {
        "scorer": name,
        "judge": scorer.described(),
        "inputs": {kind: dataset.digest() for kind, dataset in inputs.by_kind().items()},
    }
    if inputs.generated is None:
        content["distractor_mask"] = settings.distractor_mask
    plan = make_plan(output, work, table=inputs.table, content=content, rows_per_shard=rows_per_shard)
    write_rejected(output, "judge", rejected)
    task = JudgeTask(
        inputs={kind: dataset.location.uri for kind, dataset in inputs.by_kind().items()},
        scorer=scorer,
        name=name,
        table=inputs.table,
        threads=max(1, int(run.cpus_per_worker)),
    )
    return PlannedJudgements(task, plan, output, inputs)


def outcome_of(output: Dataset) -> dict[str, Any]:
    """How much of a judged dataset can be used: unreadable answers, and the share of rows with a similarity."""
    rows = output.read(columns=["answer", "error", "similarity"])
    failed, said = pc.not_equal(rows["error"], ""), pc.not_equal(rows["answer"], "")
    unreadable = pc.sum(pc.and_(failed, said)).as_py() or 0
    usable = rows.num_rows - rows["similarity"].null_count
    return {
        "unreadable_answers": unreadable,
        "coverage": round(usable / rows.num_rows, 4) if rows.num_rows else 0.0,
    }


def described_judging(
    inputs: Inputs,
    output: Dataset,
    scorer: PairScorer,
    settings: PairSettings,
    *,
    methods: tuple[str, ...] = (),
    seconds_a_row: float = 0.0,
) -> dict[str, Any]:
    """What a run would ask and how long it would take, by name, for people to read; writes nothing.

    Args:
        seconds_a_row: of one worker; 0 takes what earlier runs of this output have measured.
    """
    scorer.check()
    work, rejected = inputs.work(settings, methods, uses_masks=scorer.uses_masks)
    done = set()
    finished = set(output.shards()) if output.settings() is not None else set()
    for planned in output.plans() if finished else ():
        rows = zip(planned["row_id"].to_pylist(), planned["shard"].to_pylist(), strict=True)
        done |= {row for row, shard in rows if shard in finished}
    kinds = work["kind"] if "kind" in work.column_names else work["method"]
    counts = Counter(zip(work["condition"].to_pylist(), kinds.to_pylist(), strict=True))
    now = sum(row not in done for row in work["row_id"].to_pylist())
    measured = seconds_a_row or measured_seconds(output)
    time = (
        f"{now * measured / 3600:,.2f} at {measured:.2f} s a row"
        if measured
        else "unknown: run a trial first (--max-pairs 50), or give --seconds-a-row"
    )
    return {
        "scorer": scorer.described().get("model") or scorer.described().get("code"),
        "pairs": {f"{condition}, {kind}": count for (condition, kind), count in sorted(counts.items())},
        "rows": f"{work.num_rows:,}, of which {now:,} are to be made",
        "left out": f"{len(rejected):,}",
        "hours of one worker (one GPU where the cluster has any)": time,
    }


def measured_seconds(output: Dataset) -> float:
    """Seconds of one worker a row, loading left out, as the logs of earlier runs have it; 0 where there are none."""
    folder = output.location.child("log")
    logs = [read_parquet(folder.child(name)) for name in folder.names(".parquet")]
    rows = sum(pc.sum(log["rows"]).as_py() for log in logs if "score_s" in log.column_names)
    seconds = sum(pc.sum(log["score_s"]).as_py() for log in logs if "score_s" in log.column_names)
    return seconds / rows if rows else 0.0
