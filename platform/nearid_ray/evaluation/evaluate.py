"""Evaluate: embeddings, then eval records, then the metrics table, each written beside the others.

OUTPUT/embeddings/     one row an image, scorer and condition (made on Ray, where tokens were given)
OUTPUT/similarities/   eval records: one row a pair of images, scorer and condition
OUTPUT/margins/        one row a directed trial
OUTPUT/metrics.json    the metrics table with its groups, and what to know before reading it
OUTPUT/measures.csv    every number, one a row: what tables, figures and comparisons read
OUTPUT/missing.csv     whatever lowers a coverage, by identity
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
from numpy.typing import NDArray

from nearid_ray.data.card import licence_of, write_card
from nearid_ray.data.light import check_complete
from nearid_ray.data.plan import store_settings
from nearid_ray.data.store import Dataset, Location, parquet_bytes
from nearid_ray.errors import UsageError
from nearid_ray.evaluation.embed import embedding_matrix
from nearid_ray.evaluation.expected import missing, warnings_of
from nearid_ray.evaluation.glitch import glitch_measures
from nearid_ray.evaluation.groups import PART_LEVEL
from nearid_ray.evaluation.inputs import Given, of_scorers, read_given, refuse_mixture, refuse_same_names
from nearid_ray.evaluation.measures import MEASURES_FILE, NEARID, Measure, headline, read_measures, write_measures
from nearid_ray.evaluation.pairs import IMAGE_COLUMNS, PairPlan, plan_pairs
from nearid_ray.evaluation.similarities import CONDITIONS, check_pairing, margin_records, similarity_records
from nearid_ray.evaluation.summary import (
    MetricsRow,
    control_measures,
    engine_groups,
    metrics_rows,
    row_from_dict,
    row_measures,
    row_to_dict,
)
from nearid_ray.identifiers import content_hash, settings_digest
from nearid_ray.settings import build, dump_json, to_dict
from schemas import EMBEDDINGS, MARGINS, SIMILARITIES

FROZEN = "frozen"
"""Scorer name of the backbone's own pooling."""
METRICS_FILE, MISSING_FILE = "metrics.json", "missing.csv"
RECORDS_VERSION = 2
"""Raised when records hold more than before, so that those of earlier versions are made anew. 2: crossed pairs."""


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings:
    """What is measured, and how its intervals are drawn."""

    split: str = "test"
    """Split that is measured: train, val or test."""
    conditions: tuple[str, ...] = CONDITIONS
    """full: whole pictures; foreground: backgrounds blacked out (where the tokens have them)."""
    baseline: str = ""
    """Scorer that gains are measured against; empty: `frozen`, or the first one where there is none of that name."""
    train_engines: tuple[str, ...] = ()
    """Engines the heads were trained on: results are grouped by it. Empty: what the heads say of themselves."""
    random_views: int = 10
    """Views of other identities each view is compared with for the ordering rate; 0 leaves it out."""
    resamples: int = 1000
    """Resamples of identities for the intervals; 1 or more."""
    confidence: float = 0.95
    """Share of the resamples inside an interval; above 0, below 1."""
    evaluation_seed: int = 0
    """Seed of random pairs and resamples."""

    def __post_init__(self) -> None:
        check_pairing(self.split, self.conditions, self.random_views)
        if self.resamples < 1:
            raise ValueError(f"resamples is {self.resamples}; expected 1 or more")
        if not 0 < self.confidence < 1:
            raise ValueError(f"confidence is {self.confidence}; expected a number between 0 and 1")


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What was measured."""

    rows: list[MetricsRow]
    measures: list[Measure] = field(default_factory=list)
    """Every number, of each benchmark that the records allow."""
    groups: dict[str, list[str]] = field(default_factory=dict)
    """Engines of each group."""
    baseline: str = ""
    """Scorer that gains are measured against."""
    warnings: list[str] = field(default_factory=list)
    """What to know before reading the numbers: what is missing, and whose scores are constant."""
    reused: bool = False
    """Whether a finished evaluation of the same embeddings and settings was read instead of made."""

    def row(self, scorer: str, name: str, condition: str = "full") -> MetricsRow:
        """The row of a scorer and engine or group.

        Raises:
            KeyError: there is none.
        """
        for row in self.rows:
            if (row.scorer, row.name, row.condition) == (scorer, name, condition):
                return row
        raise KeyError(f"no metrics of {scorer} on {name}, {condition}")


def records_of(embeddings: pa.Table, settings: EvaluateSettings) -> tuple[pa.Table, pa.Table]:
    """(similarities, margins) of an embeddings table, by its own scorers and conditions. Plain function, no Ray.

    Raises:
        UsageError: the table has nothing of the wanted split and conditions.
    """
    similarities = similarities_of(embeddings, settings)
    return similarities, margin_records(similarities)


def similarities_of(embeddings: pa.Table, settings: EvaluateSettings) -> pa.Table:
    """The first of `records_of`: the baseline's rows first, then the other scorers' by name."""
    wanted = (pc.field("split") == settings.split) & pc.is_in(
        pc.field("condition"), pa.array(list(settings.conditions))
    )
    chosen = embeddings.filter(wanted)
    if not len(chosen):
        splits, conditions = (sorted(set(embeddings[n].unique().to_pylist())) for n in ("split", "condition"))
        raise UsageError(
            f"no embeddings of split {settings.split!r}, condition {' or '.join(settings.conditions)}; found splits "
            f"{splits}, conditions {conditions}"
        )
    keys = chosen.group_by(["scorer", "condition"], use_threads=False).aggregate([])
    names = list(zip(keys["scorer"].to_pylist(), keys["condition"].to_pylist(), strict=True))
    names.sort(key=lambda name: (name[0] != settings.baseline, name[0], name[1] != "full"))
    parts, planned = [], _Planned(settings)
    for scorer, condition in names:
        mine = chosen.filter((pc.field("scorer") == scorer) & (pc.field("condition") == condition))
        # Sorted, so that scorers embedded in another order share one plan.
        mine = mine.sort_by([(name, "ascending") for name in ("identity_id", "view_index", "engine", "role")])
        plan = planned.of(mine.select(IMAGE_COLUMNS))
        matrix = embedding_matrix(mine["embedding"])
        parts.append(similarity_records(matrix, plan, scorer=scorer, condition=condition))
    return pa.concat_tables(parts)


class _Planned:
    """Keeps the last plan: most scorers embed the same pictures."""

    def __init__(self, settings: EvaluateSettings) -> None:
        self._settings = settings
        self._last: tuple[pa.Table, PairPlan] | None = None

    def of(self, images: pa.Table) -> PairPlan:
        if self._last is None or not self._last[0].equals(images):
            plan = plan_pairs(images, random_views=self._settings.random_views, seed=self._settings.evaluation_seed)
            self._last = images, plan
        return self._last[1]


def measure(similarities: pa.Table, margins: pa.Table, settings: EvaluateSettings) -> Evaluation:
    """Everything that is measured, from eval records alone.

    Raises:
        UsageError: the baseline is not among the scorers.
    """
    names = similarities["scorer"].unique().to_pylist()
    baseline = choose_baseline(settings.baseline, names)
    groups = engine_groups(similarities, settings.train_engines)
    drawing: dict[str, Any] = {
        "resamples": settings.resamples,
        "seed": settings.evaluation_seed,
        "confidence": settings.confidence,
    }
    rows = metrics_rows(similarities, margins, groups, baseline=baseline, **drawing)
    graded = {name: groups[name] for name in (PART_LEVEL,) if name in groups}
    found = [
        *row_measures(rows, groups, baseline),
        *glitch_measures(similarities, graded, baseline=baseline, drawing=drawing),
        *control_measures(similarities, groups, drawing),
    ]
    return Evaluation(
        rows=rows,
        measures=sorted(found, key=lambda one: one.benchmark != NEARID),
        groups=groups,
        baseline=baseline,
        warnings=warnings_of(similarities, missing(similarities)),
    )


def choose_baseline(wanted: str, scorers: Sequence[str]) -> str:
    """The baseline among the scorers, in the order in which they were given.

    Raises:
        UsageError: the wanted one is not there.

    >>> choose_baseline("", ["a", "frozen"]), choose_baseline("", ["a", "b"])
    ('frozen', 'a')
    """
    if wanted and wanted not in scorers:
        raise UsageError(f"baseline is {wanted!r}; expected one of {', '.join(scorers)}")
    return wanted or (FROZEN if FROZEN in scorers else scorers[0])


def measure_records(folder: Location) -> Evaluation:
    """Measure again what `evaluate` wrote, from its similarities alone, with the settings it was asked with.

    Nothing is written. A metric that is new in this version needs no new pass over pictures or embeddings.

    Raises:
        UsageError: the folder holds no finished evaluation.
    """
    known = {one.name for one in fields(EvaluateSettings)}
    asked = {name: value for name, value in _stored_metrics(folder)["settings"].items() if name in known}
    settings = build(EvaluateSettings, asked, folder.child(METRICS_FILE).uri)
    similarities = Dataset.open(folder.child(SIMILARITIES.name), SIMILARITIES.name).read()
    if settings.baseline not in similarities["scorer"].unique().to_pylist():
        settings = replace(settings, baseline="")
    return measure(similarities, margin_records(similarities), settings)


def evaluate(
    embeddings: Sequence[Dataset],
    output: Location,
    settings: EvaluateSettings,
    scorers: Sequence[str] | None = None,
    *,
    others: Sequence[Given] = (),
) -> Evaluation:
    """Write eval records and metrics of embeddings and judgements into `output`.

    A finished evaluation of the same inputs with the same settings is read, not made again.

    Args:
        embeddings: datasets of `schemas.EMBEDDINGS`; no scorer stands in two of them.
        scorers: measure these of them alone; all that they hold when left out.
        others: further embeddings, and judgements, all of whose scorers are measured beside them.

    Raises:
        UsageError: a dataset is unfinished, there is nothing of the split or of a scorer, two scorers have one name,
            the inputs are of two benchmarks, or there is nothing to compare.
    """
    given = [Given(dataset=dataset) for dataset in embeddings]
    content: dict[str, Any] = {
        "records": RECORDS_VERSION,
        "evaluation": to_dict(settings),
        "scorers": sorted(scorers) if scorers is not None else None,
        "embeddings": [_fingerprint(one.dataset) for one in given],
        "others": [[one.table, one.name, _fingerprint(one.dataset)] for one in others],
    }
    stored = _read_metrics(output)
    if stored is not None and stored.get("digest") == settings_digest(content):
        if not output.child(MEASURES_FILE).exists():
            write_measures(output, measure_records(output).measures)
        return _from_json(stored, read_measures(output))
    similarities = _records([*of_scorers(given, scorers), *others], settings)
    _refuse_nothing(similarities, settings)
    margins = margin_records(similarities)
    evaluation = measure(similarities, margins, settings)
    licence = licence_of(*embeddings, *(one.dataset for one in others))
    for contract, records in ((SIMILARITIES, similarities), (MARGINS, margins)):
        _write_records(Dataset(output.child(contract.name)), contract.name, records, content, licence)
    write_measures(output, evaluation.measures)
    output.child(MISSING_FILE).write_bytes(_csv(missing(similarities)))
    # Last, because it says that the records beside it are complete.
    output.child(METRICS_FILE).write_bytes(dump_json(_to_json(evaluation, content)))
    return evaluation


def _records(given: Sequence[Given], settings: EvaluateSettings) -> pa.Table:
    """The `similarities` table of everything that was given."""
    refuse_same_names((one.origin, one.scorer_names()) for one in given)
    parts = [(one, read_given(one, settings.split, settings.conditions)) for one in given]
    refuse_mixture([(one.origin, table) for one, table in parts])
    names = [name for one in given for name in one.scorer_names()]
    settings = replace(settings, baseline=choose_baseline(settings.baseline, names))
    embedded = [table for one, table in parts if one.table == EMBEDDINGS.name]
    made = [similarities_of(pa.concat_tables(embedded), settings)] if embedded else []
    judged = [table for one, table in parts if one.table != EMBEDDINGS.name]
    order = [("kind", "ascending"), ("pair_id", "ascending")]
    keys = [("scorer", "ascending"), ("condition", "descending"), *order]
    together = pa.concat_tables([*made, *(table.sort_by(keys) for table in judged)])
    return together.combine_chunks()


def _refuse_nothing(similarities: pa.Table, settings: EvaluateSettings) -> None:
    kinds = set(similarities["kind"].unique().to_pylist())
    if "positive" not in kinds:
        raise UsageError(
            f"no identity of split {settings.split!r} has two views, so there is nothing to compare its distractors "
            "with; two photos or more of the same object are needed"
        )
    if "distractor" not in kinds:
        raise UsageError(
            f"split {settings.split!r} has no distractors, so there is nothing to tell its views from; embed them too "
            "(jobs/embed.py --distractors FOLDER)"
        )


def read_evaluation(folder: Location) -> Evaluation:
    """What `evaluate` wrote.

    Raises:
        UsageError: the folder holds no finished evaluation.
    """
    return _from_json(_stored_metrics(folder), read_measures(folder))


def _stored_metrics(folder: Location) -> dict[str, Any]:
    stored = _read_metrics(folder)
    if stored is None:
        raise UsageError(f"{folder.uri} holds no {METRICS_FILE}; give the output folder of a finished evaluate job")
    return stored


def _fingerprint(dataset: Dataset) -> str:
    """Name of a dataset's content: its settings, plans, finished shards, and number of failed rows (retries mend)."""
    check_complete(dataset)
    stored = dataset.location.child("settings.json").read_bytes()
    plans = b"".join(
        dataset.location.child("plan", name).read_bytes() for name in dataset.location.child("plan").names(".parquet")
    )
    state = [*dataset.shards(), *map(str, dataset.count_errors())]
    return content_hash(stored + plans + ",".join(state).encode())


def _write_records(output: Dataset, table: str, records: pa.Table, content: dict[str, Any], licence: str) -> None:
    """One shard, written whole; it follows from the embeddings, so an older one is simply replaced."""
    output.shard("000-000000").write_bytes(parquet_bytes(records))
    store_settings(output, table, content)
    write_card(
        output,
        title=f"Eval records: {table}",
        about="Written by an evaluation; follows from the embeddings that the settings name.",
        licence=licence,
        facts={"rows": len(records), "scorers": ", ".join(records["scorer"].unique().to_pylist())},
    )


def _read_metrics(folder: Location) -> dict[str, Any] | None:
    return Dataset(folder).read_json(METRICS_FILE)


def _to_json(evaluation: Evaluation, content: dict[str, Any]) -> dict[str, Any]:
    return {
        "digest": settings_digest(content),
        "settings": content["evaluation"] | {"baseline": evaluation.baseline},
        "headline": headline(evaluation.measures),
        "warnings": evaluation.warnings,
        "groups": evaluation.groups,
        "rows": [row_to_dict(row) for row in evaluation.rows],
    }


def _from_json(stored: Mapping[str, Any], measures: list[Measure]) -> Evaluation:
    rows = [row_from_dict(row) for row in stored["rows"]]
    return Evaluation(
        rows=rows,
        measures=measures,
        groups=stored["groups"],
        baseline=stored["settings"].get("baseline", FROZEN),
        warnings=list(stored.get("warnings", [])),
        reused=True,
    )


def _csv(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pyarrow.csv.write_csv(table, sink)
    return bytes(sink.getvalue())


def embeddings_of(embeddings: pa.Table, scorer: str, condition: str = "full") -> tuple[pa.Table, NDArray[np.float32]]:
    """(image columns, matrix) of one scorer and condition, for figures."""
    mine = embeddings.filter((pc.field("scorer") == scorer) & (pc.field("condition") == condition))
    return mine.select(IMAGE_COLUMNS), embedding_matrix(mine["embedding"])
