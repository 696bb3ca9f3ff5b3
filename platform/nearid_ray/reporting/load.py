"""Fill a report from what the jobs wrote: eval records, embeddings, tuples, distractors, training histories."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
from PIL import Image

from nearid_ray.data.engine_sheet import MOST_ROWS, engine_sheet
from nearid_ray.data.images import decode_rgb, resize_rgb
from nearid_ray.data.store import Dataset, Location, locate
from nearid_ray.errors import UsageError
from nearid_ray.evaluation.evaluate import embeddings_of, read_evaluation
from nearid_ray.identifiers import stable_hash
from nearid_ray.models.checkpoint import CARD_FILE
from nearid_ray.reporting.model import Projection, ReportData, SheetPicture, SheetTuple, TrainingCurve
from nearid_ray.training.outputs import BEST, HISTORY

TOY_DATA = (
    "Toy data. Every picture on this page was drawn by a program (toybox: simple objects of a dozen categories, 64 "
    "pixels wide). The page shows whether the method works in small; its numbers say nothing about photographs and "
    "cannot be compared with published ones."
)
TOY_BACKBONE = (
    "Toy backbone. Pictures were embedded by toybox-siglip2, a model of about a million parameters that has only seen "
    "drawn toy pictures. On photographs its similarities show that the jobs run, not how well any method works."
)


@dataclass(frozen=True, kw_only=True)
class ReportInputs:
    """The folders a report is made of."""

    evaluation: str
    """Output of an evaluate job."""
    tuples: str = ""
    """Tuples dataset: gives the sheet its views. Empty leaves the sheet out."""
    distractors: str = ""
    """Distractors dataset of these tuples: gives the sheet its distractors."""
    tokens: str = ""
    """Token cache the evaluation read: says which backbone it was."""
    train: tuple[str, ...] = ()
    """NAME=FOLDER of each trained head to draw curves of: the folder with its history, by the name of its scorer."""


@dataclass(frozen=True, kw_only=True)
class ReportSettings:
    """What the page shows."""

    title: str = "Near-identity embeddings"
    """Heading of the page."""
    statement: tuple[str, ...] = ()
    """What the data is, one paragraph each; shown below what the data says of itself."""
    headline_group: str = "object-level"
    """Group of engines whose rates stand on top."""
    projected_identities: int = 7
    """Identities in the projection of embeddings; 0 leaves it out."""
    sheet_tuples: int = 8
    """Tuples on the sheet; 0 leaves it out."""
    thumbnail_px: int = 192
    """Larger pictures are brought to this width in pixels."""
    report_seed: int = 0
    """Chooses the identities of projection and sheet."""

    def __post_init__(self) -> None:
        for name, least in (("projected_identities", 0), ("sheet_tuples", 0), ("thumbnail_px", 16)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least {least}")


def load_report(
    inputs: ReportInputs,
    settings: ReportSettings,
    *,
    facts: Mapping[str, str] | None = None,
    commands: Sequence[str] = (),
) -> ReportData:
    """Read all that the page shows.

    Args:
        facts: further facts about the run, shown after those of the data.
        commands: commands that make the result.

    Raises:
        UsageError: a folder does not hold what it should.
    """
    folder = locate(inputs.evaluation)
    evaluation = read_evaluation(folder)
    similarities = Dataset.open(folder.child("similarities"), "similarities").read()
    stored = Dataset(folder).read_json("metrics.json") or {}
    asked = stored.get("settings", {})
    tuples = Dataset.open(inputs.tuples, "tuples") if inputs.tuples else None
    distractors = Dataset.open(inputs.distractors, "distractors") if inputs.distractors else None
    backbone = _backbone(inputs.tokens)
    engines = list(dict.fromkeys(engine for members in evaluation.groups.values() for engine in members))
    curves = [read_curve(name, locate(place)) for name, place in _named(inputs.train).items()]
    tokens = Dataset.open(inputs.tokens, "tokens_index") if inputs.tokens else None
    stages = {"tuples": tuples, "distractors": distractors, "tokens": tokens}
    found = {name: dataset for name, dataset in stages.items() if dataset is not None}
    sheet = _sheet(tuples, distractors, similarities, engines, settings) if tuples else []
    return ReportData(
        title=settings.title,
        statement=[*data_statement(similarities, backbone), *settings.statement],
        rows=evaluation.rows,
        baseline=asked.get("baseline", "frozen"),
        confidence=asked.get("confidence", 0.95),
        headline_group=settings.headline_group,
        group_engines=evaluation.groups,
        curves=curves,
        projections=_projections(folder, similarities, settings),
        sheet=sheet,
        engine_sheet=_engine_sheet(tuples, distractors, sheet) if tuples and distractors else b"",
        engine_counts=verdict_counts(distractors) if distractors else {},
        facts={
            **_facts(similarities, backbone),
            **_times({**found, "evaluation": Dataset(folder)}),
            **(facts or {}),
        },
        commands=commands,
        settings={
            **{name: (dataset.settings() or {}).get("content", {}) for name, dataset in found.items()},
            **{f"train {curve.name}": curve.settings for curve in curves if curve.settings},
            "evaluation": asked,
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


def read_curve(name: str, folder: Location) -> TrainingCurve:
    """The history of a training run, and which step was kept.

    Raises:
        UsageError: the folder holds none.
    """
    place = folder.child(HISTORY)
    if not place.exists():
        raise UsageError(f"{folder.uri} holds no {HISTORY}; give the folder of one head that training wrote")
    table = pyarrow.csv.read_csv(io.BytesIO(place.read_bytes()))
    step = table["step"].to_pylist()
    columns = {
        column: [(float(x), float(y)) for x, y in zip(step, table[column].to_pylist(), strict=True) if y is not None]
        for column in ("loss", "val_ssr")
        if column in table.column_names
    }
    card = Dataset(folder.child(BEST)).read_json(CARD_FILE) or {}
    return TrainingCurve(
        name=name,
        loss=columns.get("loss", []),
        validation_ssr=columns.get("val_ssr", []),
        kept_step=card.get("metrics", {}).get("step"),
        settings=card.get("settings", {}),
    )


def drawn_identities(identities: Sequence[str], count: int, *, purpose: str, seed: int) -> list[str]:
    """`count` of the identities, drawn by a hash: whoever runs it gets the same ones, and nobody chose them."""
    return sorted(set(identities), key=lambda name: (stable_hash(purpose, seed, name), name))[:count]


def _named(entries: Sequence[str]) -> dict[str, str]:
    pairs = [entry.partition("=") for entry in entries]
    if any(not (name and equals and place) for name, equals, place in pairs):
        raise UsageError(f"train holds {list(entries)}; expected NAME=FOLDER entries")
    return {name: place for name, _, place in pairs}


def _backbone(tokens: str) -> str:
    if not tokens:
        return ""
    made_by = Dataset.open(tokens, "tokens_index").read_json("backbone.json") or {}
    return str(made_by.get("spec", ""))


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


def _projections(folder: Location, similarities: pa.Table, settings: ReportSettings) -> list[Projection]:
    place = folder.child("embeddings")
    if not settings.projected_identities or not place.child("settings.json").exists():
        return []
    with_pairs = similarities.filter(pc.field("kind") == "positive")["identity_id"].unique().to_pylist()
    chosen = drawn_identities(
        with_pairs, settings.projected_identities, purpose="projection", seed=settings.report_seed
    )
    where = pc.field("identity_id").isin(chosen) & (pc.field("condition") == "full")
    embeddings = Dataset.open(place, "embeddings").read(where=where)
    projections = []
    for scorer in similarities["scorer"].unique().to_pylist():
        images, embedding_ND = embeddings_of(embeddings, scorer)
        if len(images):
            projections.append(
                Projection(
                    scorer=scorer,
                    embedding_ND=embedding_ND,
                    identities=images["identity_id"].to_pylist(),
                    is_view=[role == "view" for role in images["role"].to_pylist()],
                )
            )
    return projections


def _sheet(
    tuples: Dataset,
    distractors: Dataset | None,
    similarities: pa.Table,
    engines: Sequence[str],
    settings: ReportSettings,
) -> list[SheetTuple]:
    full = similarities.filter(pc.field("condition") == "full")
    with_pairs = full.filter(pc.field("kind") == "positive")["identity_id"].unique().to_pylist()
    chosen = drawn_identities(with_pairs, settings.sheet_tuples, purpose="sheet", seed=settings.report_seed)
    of_chosen = pc.field("identity_id").isin(chosen)
    rows = {row["identity_id"]: row for row in tuples.read(where=of_chosen).to_pylist()}
    painted: list[dict] = []
    if distractors is not None:
        columns = ["identity_id", "view_index", "engine", "image", "oracle", "error"]
        painted = distractors.read(columns, where=of_chosen).to_pylist()
    scores = _Scores(full.filter(of_chosen))
    sheet = []
    for identity in chosen:
        usable = {i: v for i, v in enumerate(rows[identity]["views"]) if not v["error"]} if identity in rows else {}
        if len(usable) < 2:
            continue
        anchor = min(usable)
        own = [p for p in painted if p["identity_id"] == identity and p["view_index"] == anchor and not p["error"]]
        own = [p for p in own if p["engine"] in engines]
        sheet.append(
            SheetTuple(
                identity_id=identity,
                category=rows[identity]["category"],
                anchor=_shown(usable[anchor], f"view {anchor}", {}, settings),
                positives=[
                    _shown(usable[other], f"view {other}", scores.positive(identity, anchor, other), settings)
                    for other in sorted(usable)
                    if other != anchor
                ],
                distractors=[
                    _shown(p, p["engine"], scores.distractor(identity, anchor, p["engine"]), settings)
                    for p in sorted(own, key=lambda p: engines.index(p["engine"]))
                ],
            )
        )
    return sheet


def _engine_sheet(tuples: Dataset, distractors: Dataset, shown: Sequence[SheetTuple]) -> bytes:
    """A JPEG of what each engine made of the identities on the sheet of tuples; empty where there are none."""
    painted = set(distractors.read(["identity_id"])["identity_id"].unique().to_pylist())
    identities = [item.identity_id for item in shown if item.identity_id in painted][:MOST_ROWS]
    return _jpeg(engine_sheet(tuples, distractors, identities)) if identities else b""


def verdict_counts(distractors: Dataset) -> dict[str, dict[str, int]]:
    """Engine -> verdict -> distractors, engines in the order of the shards."""
    rows = distractors.read(["engine", "verdict"])
    counts: dict[str, dict[str, int]] = {}
    for engine, verdict in zip(rows["engine"].to_pylist(), rows["verdict"].to_pylist(), strict=True):
        own = counts.setdefault(engine, {})
        own[verdict] = own.get(verdict, 0) + 1
    return counts


class _Scores:
    """Similarities by pair: {scorer: similarity}."""

    def __init__(self, similarities: pa.Table) -> None:
        self._found: dict[tuple, dict[str, float | None]] = {}
        for row in similarities.filter(pc.field("kind") != "random").to_pylist():
            key = (row["identity_id"], row["view_index"], row["other_view_index"], row["engine"])
            self._found.setdefault(key, {})[row["scorer"]] = row["similarity"]

    def positive(self, identity: str, first: int, second: int) -> dict[str, float | None]:
        return self._found.get((identity, min(first, second), max(first, second), ""), {})

    def distractor(self, identity: str, view: int, engine: str) -> dict[str, float | None]:
        return self._found.get((identity, view, view, engine), {})


def _shown(
    row: Mapping, label: str, similarities: Mapping[str, float | None], settings: ReportSettings
) -> SheetPicture:
    data = thumbnail(row["image"]["bytes"], settings.thumbnail_px)
    return SheetPicture(image=data, label=label, similarities=similarities, oracle=row.get("oracle"))


def thumbnail(data: bytes, width_px: int) -> bytes:
    """The picture as it is where it is small already, else as a JPEG of this width."""
    image_HW3 = decode_rgb(data)
    height, width = image_HW3.shape[:2]
    if width <= width_px:
        return data
    small = resize_rgb(image_HW3, width_px, max(1, round(height * width_px / width)))
    return _jpeg(small)


def _jpeg(image_HW3: np.ndarray) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image_HW3)).save(sink, "JPEG", quality=85)
    return sink.getvalue()
