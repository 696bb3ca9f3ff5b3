"""Evaluate: embeddings, then eval records, then the metrics table, each written beside the others.

OUTPUT/embeddings/     one row an image, scorer and condition (made on Ray, where tokens were given)
OUTPUT/similarities/   eval records: one row a pair of images, scorer and condition
OUTPUT/margins/        one row a directed trial
OUTPUT/metrics.json    the metrics table with its groups
OUTPUT/measures.csv    every number, one a row: what tables, figures and comparisons read
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from nearid_ray.data.card import licence_of, write_card
from nearid_ray.data.light import check_complete
from nearid_ray.data.plan import store_settings
from nearid_ray.data.store import Dataset, Location, parquet_bytes
from nearid_ray.errors import UsageError
from nearid_ray.evaluation.embed import embedding_matrix
from nearid_ray.evaluation.glitch import glitch_measures
from nearid_ray.evaluation.groups import PART_LEVEL
from nearid_ray.evaluation.measures import MEASURES_FILE, Measure, read_measures, write_measures
from nearid_ray.evaluation.pairs import IMAGE_COLUMNS, PairPlan, plan_pairs
from nearid_ray.evaluation.similarities import CONDITIONS, margin_records, similarity_records
from nearid_ray.evaluation.summary import (
    MetricsRow,
    engine_groups,
    metrics_rows,
    row_from_dict,
    row_measures,
    row_to_dict,
)
from nearid_ray.identifiers import content_hash, settings_digest
from nearid_ray.settings import build, dump_json, to_dict
from schemas import MARGINS, SIMILARITIES, SPLITS

METRICS_FILE = "metrics.json"
RECORDS_VERSION = 2
"""Raised when records hold more than before, so that those of earlier versions are made anew. 2: crossed pairs."""


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings:
    """What is measured, and how its intervals are drawn."""

    split: str = "test"
    """Split that is measured: train, val or test."""
    conditions: tuple[str, ...] = CONDITIONS
    """full: whole pictures; foreground: backgrounds blacked out (where the tokens have them)."""
    baseline: str = "frozen"
    """Scorer that gains are measured against."""
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
        if self.split not in SPLITS:
            raise ValueError(f"split is {self.split!r}; expected one of {', '.join(SPLITS)}")
        if not self.conditions or set(self.conditions) - set(CONDITIONS):
            raise ValueError(f"conditions is {self.conditions}; expected some of {', '.join(CONDITIONS)}")
        if self.random_views < 0:
            raise ValueError(f"random_views is {self.random_views}; expected 0 or more")
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
    similarities = pa.concat_tables(parts)
    return similarities, margin_records(similarities)


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
    """The metrics table of eval records."""
    groups = engine_groups(similarities, settings.train_engines)
    drawing: dict[str, Any] = {
        "resamples": settings.resamples,
        "seed": settings.evaluation_seed,
        "confidence": settings.confidence,
    }
    rows = metrics_rows(similarities, margins, groups, baseline=settings.baseline, **drawing)
    graded = {name: groups[name] for name in (PART_LEVEL,) if name in groups}
    found = [
        *row_measures(rows, groups, settings.baseline),
        *glitch_measures(similarities, graded, baseline=settings.baseline, drawing=drawing),
    ]
    return Evaluation(rows=rows, measures=found, groups=groups)


def measure_records(folder: Location) -> Evaluation:
    """Measure again what `evaluate` wrote, from its similarities alone, with the settings it was asked with.

    Nothing is written. A metric that is new in this version needs no new pass over pictures or embeddings.

    Raises:
        UsageError: the folder holds no finished evaluation.
    """
    stored = _stored_metrics(folder)
    settings = build(EvaluateSettings, stored["settings"], folder.child(METRICS_FILE).uri)
    similarities = Dataset.open(folder.child(SIMILARITIES.name), SIMILARITIES.name).read()
    return measure(similarities, margin_records(similarities), settings)


def evaluate(
    embeddings: Sequence[Dataset], output: Location, settings: EvaluateSettings, scorers: Sequence[str] | None = None
) -> Evaluation:
    """Write eval records and metrics of embeddings datasets into `output`.

    A finished evaluation of the same embeddings with the same settings is read, not made again.

    Args:
        embeddings: datasets of `schemas.EMBEDDINGS`; no scorer stands in two of them.
        scorers: measure these alone; all that the datasets hold when left out.

    Raises:
        UsageError: a dataset is unfinished, or there is nothing of the split or of a scorer.
    """
    content: dict[str, Any] = {
        "records": RECORDS_VERSION,
        "evaluation": to_dict(settings),
        "scorers": sorted(scorers) if scorers is not None else None,
        "embeddings": [_fingerprint(dataset) for dataset in embeddings],
    }
    stored = _read_metrics(output)
    if stored is not None and stored.get("digest") == settings_digest(content):
        if not output.child(MEASURES_FILE).exists():
            write_measures(output, measure_records(output).measures)
        return _from_json(stored, read_measures(output))
    table = pa.concat_tables([dataset.read() for dataset in embeddings])
    if scorers is not None:
        lost = sorted(set(scorers) - set(table["scorer"].unique().to_pylist()))
        if lost:
            raise UsageError(f"there are no embeddings of {', '.join(lost)}; run the job that makes them first")
        table = table.filter(pc.is_in(table["scorer"], pa.array(list(scorers), pa.string())))
    similarities, margins = records_of(table, settings)
    evaluation = measure(similarities, margins, settings)
    licence = licence_of(*embeddings)
    for contract, records in ((SIMILARITIES, similarities), (MARGINS, margins)):
        _write_records(Dataset(output.child(contract.name)), contract.name, records, content, licence)
    write_measures(output, evaluation.measures)
    # Last, because it says that the records beside it are complete.
    output.child(METRICS_FILE).write_bytes(dump_json(_to_json(evaluation, content)))
    return evaluation


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
        "settings": content["evaluation"],
        "groups": evaluation.groups,
        "rows": [row_to_dict(row) for row in evaluation.rows],
    }


def _from_json(stored: Mapping[str, Any], measures: list[Measure]) -> Evaluation:
    rows = [row_from_dict(row) for row in stored["rows"]]
    return Evaluation(rows=rows, measures=measures, groups=stored["groups"], reused=True)


def embeddings_of(embeddings: pa.Table, scorer: str, condition: str = "full") -> tuple[pa.Table, NDArray[np.float32]]:
    """(image columns, matrix) of one scorer and condition, for figures."""
    mine = embeddings.filter((pc.field("scorer") == scorer) & (pc.field("condition") == condition))
    return mine.select(IMAGE_COLUMNS), embedding_matrix(mine["embedding"])
