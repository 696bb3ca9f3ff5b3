"""The retrieve job: nearest neighbours of queries, how good the rankings are, and a sheet to look at."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from nearid_ray import job
from nearid_ray.data.card import licence_of, write_card
from nearid_ray.data.images import encode_png
from nearid_ray.data.pipeline import RunSettings, RunSummary
from nearid_ray.data.plan import Plan
from nearid_ray.data.store import Dataset, Location
from nearid_ray.errors import UsageError
from nearid_ray.evaluation.measures import Measure, find, write_measures
from nearid_ray.retrieving.choose import choose_scorers, identity_names
from nearid_ray.retrieving.embed import PictureTask, embed_pictures, needs_ray, plan_pictures
from nearid_ray.retrieving.index import APPROXIMATE, Kind, load_faiss, nearest_by_index
from nearid_ray.retrieving.memory import available_bytes, gib
from nearid_ray.retrieving.neighbours import Neighbours, nearest
from nearid_ray.retrieving.places import PLACE_SCHEMA, places_of
from nearid_ray.retrieving.queries import Queries, find_queries
from nearid_ray.retrieving.records import csv_bytes, write_records
from nearid_ray.retrieving.search import (
    MOST_NUMBERS,
    found_at,
    neighbour_records,
    own_pictures,
    retrieval_measures,
    retrieval_scores,
)
from nearid_ray.retrieving.sheets import Id, PictureFinder, key_of, neighbour_sheet, spread
from nearid_ray.retrieving.vectors import Embedded, Selection, matrix_of, open_embeddings, read_embedded
from nearid_ray.settings import to_dict
from nearid_ray.stages.outputs import refuse_others
from nearid_ray.text_tables import aligned
from nearid_ray.tracking import TrackingSettings
from schemas import NEIGHBOURS

_PICTURES = ("view", "picture", "generated")
_PRINTED = 5


@dataclass(frozen=True, kw_only=True)
class Retrieve:
    """Find the pictures of a gallery that are most like the queries."""

    queries: tuple[str, ...]
    """Pictures; folders of pictures (sub-folders name identities); CSVs with a column image, and identity where known;
    datasets of tuples, generated pictures or embeddings."""
    gallery: str
    """Dataset to search: embeddings, or pictures (tuples, distractors, generated) that the scorers embed first."""
    output: str
    """Folder or s3://bucket/prefix for neighbours, measures and sheets."""
    scorers: tuple[str, ...] = ()
    """Names of the gallery's scorers, or NAME=SPEC (SPEC: trained head, release, backbone, module:function) where
    pictures are to be embedded. Where everything is embedded already, all of the gallery's scorers when left out."""
    condition: str = "full"
    """Embeddings to compare: full, or foreground (background blacked out)."""
    roles: tuple[str, ...] = ()
    """What is searched: view, distractor, generated, picture; all when empty."""
    query_roles: tuple[str, ...] = ("view", "picture")
    """Which rows of a dataset are queries."""
    splits: tuple[str, ...] = ()
    """Splits of the gallery that are searched; all when empty."""
    top: int = 10
    """Neighbours of each query, 1 to 1000."""
    index: Kind = "none"
    """none: exact matrix products; faiss: its exact index; faiss-ivf, faiss-hnsw: approximate, may miss neighbours."""
    pictures: tuple[str, ...] = ()
    """Datasets that hold the pictures of embeddings, for the sheets."""
    sheet_queries: int = 12
    """Queries on a sheet, spread evenly; 0 for no sheet, at most 100."""
    memory_gib: float | None = None
    """What the gallery's vectors may take; a larger gallery is read anew at each pass. Half of what is free when left
    out."""
    resamples: int = 1000
    """Resamples of the queries' identities for the intervals; 1 or more."""
    retrieval_seed: int = 0
    """Seed of the resamples."""
    run: RunSettings = RunSettings()
    tracking: TrackingSettings = TrackingSettings()

    def __post_init__(self) -> None:
        if not self.queries:
            raise ValueError("queries is empty; expected pictures, folders, CSVs or datasets")
        if self.condition not in ("full", "foreground"):
            raise ValueError(f"condition is {self.condition!r}; expected full or foreground")
        if not 1 <= self.top <= 1000:
            raise ValueError(f"top is {self.top}; expected 1 to 1000")
        if not 0 <= self.sheet_queries <= 100:
            raise ValueError(f"sheet_queries is {self.sheet_queries}; expected 0 to 100")
        if self.resamples < 1:
            raise ValueError(f"resamples is {self.resamples}; expected 1 or more")
        for roles in (self.roles, self.query_roles):
            Selection(scorer="", roles=roles)
        Selection(scorer="", splits=self.splits)


@job.owning_output("retrieve")
def run_retrieve(settings: Retrieve) -> job.Job:
    """Embed what is not embedded, search, measure, draw."""
    output = job.output_of(settings.output, settings.tracking)
    refuse_others(output, "retrieve")
    planned = _planned(settings, output)
    with job.running(
        "retrieve",
        output,
        to_dict(settings),
        tracking=settings.tracking,
        inputs={"gallery": settings.gallery, "queries": " ".join(settings.queries)},
        needs_ray=any(needs_ray(work.output, work.plan, settings.run) for work in planned.works),
    ) as running:
        for work in planned.works:
            made = embed_pictures(planned.task, work.output, work.plan, settings.run, title=f"embed {work.name}")
            write_card(
                work.output, title=f"Embeddings of a search: {work.name}", about="Unit embeddings of pictures.",
                licence=licence_of(*planned.licensed), facts={"rows": made.rows, "rows with an error": made.errors},
            )  # fmt: skip
            _report(running, work, made)
        _search(settings, planned, output, running)
    return running


def _report(running: job.Job, work: "_Work", made: RunSummary) -> None:
    """What was embedded, under the name of the work: gallery or queries."""
    mine = job.Job(running.tracker)
    job.report_run(mine, work.output, made)
    names = ("rows", "rows_made", "rows_with_error", "rows_a_second", "error_examples")
    running.summary[f"embedded_{work.name}"] = {name: mine.summary[name] for name in names if name in mine.summary}
    running.failed |= mine.failed


@dataclass(frozen=True, kw_only=True)
class _Work:
    name: str
    output: Dataset
    plan: Plan
    places: pa.Table


@dataclass(frozen=True, kw_only=True)
class _Planned:
    """What was found good before anything is made."""

    scorers: list[str]
    task: PictureTask
    works: list[_Work]
    gallery: Dataset
    queries: Queries
    query_embeddings: list[Dataset]
    finder: PictureFinder
    licensed: list[Dataset]

    @property
    def query_order(self) -> dict[Id, int]:
        """Place of the pictures that were embedded as queries: the dataset may hold those of earlier runs too."""
        mine = [row for work in self.works if work.name == "queries" for row in work.places.to_pylist()]
        return {key_of(row): place for place, row in reversed(list(enumerate(mine)))}


def _planned(settings: Retrieve, output: Location) -> _Planned:
    if settings.index != "none":
        load_faiss()
    gallery = Dataset.open(settings.gallery)
    is_embedded = (gallery.settings() or {}).get("table") == "embeddings"
    gallery_places = PLACE_SCHEMA.empty_table() if is_embedded else places_of(gallery)
    if not is_embedded:
        kept = [
            (not settings.roles or row["role"] in settings.roles)
            and (not settings.splits or row["split"] in settings.splits)
            for row in gallery_places.to_pylist()
        ]
        gallery_places = gallery_places.filter(pa.array(kept, pa.bool_()))
        if not gallery_places.num_rows:
            raise UsageError(f"{settings.gallery} has no picture of the roles and splits that were asked for")
        identities = identity_names(gallery_places)
    else:
        gallery = open_embeddings(settings.gallery)
        identities = identity_names(gallery.read(["identity_id"]))
    queries = find_queries(settings.queries, settings.query_roles, identities)
    names, scorers = choose_scorers(
        settings.scorers,
        gallery if is_embedded else None,
        pictures=bool(queries.places.num_rows),
        embeddings=bool(queries.embeddings),
    )
    works = []
    for name, places, wanted in (
        ("gallery", gallery_places, not is_embedded),
        ("queries", queries.places, bool(queries.places.num_rows)),
    ):
        if wanted:
            place = Dataset(output.child(name))
            content = {"pictures": gallery.digest() if name == "gallery" else "given"}
            plan = plan_pictures(places, scorers, place, content=content, conditions=(settings.condition,))
            works.append(_Work(name=name, output=place, plan=plan, places=places))
    own = [Dataset(output.child("queries"))] if queries.places.num_rows else []
    shown = [places_of(Dataset.open(uri)) for uri in settings.pictures]
    return _Planned(
        scorers=names,
        task=PictureTask(scorers=tuple(scorers)),
        works=works,
        gallery=gallery if is_embedded else Dataset(output.child("gallery")),
        queries=queries,
        query_embeddings=[*own, *queries.embeddings],
        finder=PictureFinder([gallery_places, queries.places, *shown]),
        licensed=[gallery],
    )


def _search(settings: Retrieve, planned: _Planned, output: Location, running: job.Job) -> None:
    records, measures, sheets = [], [], []
    for scorer in planned.scorers:
        chosen = Selection(
            scorer=scorer, condition=settings.condition, roles=settings.roles, splits=settings.splits
        )  # fmt: skip
        gallery = read_embedded(planned.gallery, chosen, memory_gib=settings.memory_gib)
        queries, query_QD = _queries(settings, planned, scorer)
        if gallery.width != query_QD.shape[1]:
            raise UsageError(
                f"{scorer}: the queries have {query_QD.shape[1]} numbers a picture, the gallery {gallery.width}; they "
                "were embedded by different models"
            )
        left_out = own_pictures([q["image_id"] for q in queries], gallery.images["image_id"].to_pylist())
        found = _found(settings, query_QD, gallery, left_out)
        shown = gallery.shown()
        rows = neighbour_records(
            found, queries, gallery.images, shown, scorer=scorer, condition=settings.condition
        )  # fmt: skip
        records.append(rows)
        measures += _measures(settings, scorer, queries, query_QD, gallery, found, left_out, running)
        sheets.append((scorer, queries, rows.to_pylist()))
        running.summary["queries"], running.summary["gallery_pictures"] = len(queries), len(gallery.gallery)
    table = pa.concat_tables(records)
    running.summary["neighbours"] = table.num_rows
    running.summary["exact"] = settings.index not in APPROXIMATE
    write_records(
        output, NEIGHBOURS, table, content={"top": settings.top, "index": settings.index},
        about="The most similar pictures of each query, by rank.", licence=licence_of(*planned.licensed),
    )  # fmt: skip
    output.child("neighbours.csv").write_bytes(csv_bytes(table.to_pylist(), table.column_names))
    write_measures(output, measures)
    running.tracker.metrics({f"{m.scorer}/{m.name}/{m.metric}".replace(":", "_").replace("@", "_at_"): m.value
                             for m in measures if np.isfinite(m.value)})  # fmt: skip
    text = text_table(measures)
    if text:
        print(f"\n{text}")
    if settings.index in APPROXIMATE:
        print(f"\nThe search with {settings.index} is approximate: neighbours may be missing.")
    for scorer, queries, rows_list in sheets:
        _print_some(scorer, queries, rows_list)
        _write_sheet(settings, planned, output, running, scorer, queries, rows_list)


def _queries(settings: Retrieve, planned: _Planned, scorer: str) -> tuple[list[dict[str, Any]], np.ndarray]:
    """(name, columns and shown identity of each query, their vectors); those without an embedding are told and left."""
    rows: list[dict[str, Any]] = []
    order = planned.query_order
    for number, dataset in enumerate(planned.query_embeddings):
        given = bool(order) and number == 0
        chosen = Selection(
            scorer=scorer, condition=settings.condition, roles=() if given else settings.query_roles
        )  # fmt: skip
        embedded = read_embedded(dataset, chosen)
        columns = zip(embedded.images.to_pylist(), embedded.shown(), matrix_of(embedded), strict=True)
        mine = [row | {"shown": shown, "vector_D": vector_D} for row, shown, vector_D in columns]
        rows += sorted((r for r in mine if key_of(r) in order), key=lambda r: order[key_of(r)]) if given else mine
    for row in rows:
        row["name"] = _query_name(row, planned.queries)
        if row["error"]:
            print(f"note: {row['name']} is left out: {row['error']}")
    rows = [row for row in rows if not row["error"]]
    if not rows:
        raise UsageError("none of the queries could be embedded; the notes above say why")
    return rows, np.stack([row.pop("vector_D") for row in rows])


def _query_name(row: Mapping[str, Any], queries: Queries) -> str:
    if row["role"] == "picture":
        return queries.files.get(row["image_id"], row["image_id"])
    where = f"#{row['view_index']}" if row["view_index"] >= 0 else f" {row['image_id']}"
    return f"{row['identity_id']}{where} {row['engine']}".strip()


def _found(
    settings: Retrieve, query_QD: np.ndarray, gallery: Embedded, left_out: Sequence[Sequence[int]]
) -> Neighbours:
    if settings.index == "none":
        return nearest(query_QD, gallery.gallery, settings.top, left_out=left_out)
    needed, free = 2 * len(gallery.gallery) * gallery.width * 4, available_bytes()
    if free and needed > free:
        raise UsageError(
            f"an index of {len(gallery.gallery):,} vectors of {gallery.width} numbers takes about {gib(needed)}; "
            f"{gib(free)} are free. Leave --index out: the exact search reads the gallery in parts"
        )
    return nearest_by_index(query_QD, gallery.gallery, settings.top, kind=settings.index, left_out=left_out)


def _measures(
    settings: Retrieve, scorer: str, queries: Sequence[Mapping[str, Any]], query_QD: np.ndarray, gallery: Embedded,
    found: Neighbours, left_out: Sequence[Sequence[int]], running: job.Job,
) -> list[Measure]:  # fmt: skip
    """Measures where identities are known; none otherwise."""
    query_shown, gallery_shown = [query["shown"] for query in queries], gallery.shown()
    if not set(query_shown) & set(gallery_shown) - {None}:
        running.details["measures"] = "none: no query's identity is known and in the gallery"
        return []
    scores = found_at(found, query_shown, gallery_shown, left_out)
    if len(queries) * len(gallery_shown) <= MOST_NUMBERS:
        scores |= retrieval_scores(query_QD, gallery.gallery, query_shown, gallery_shown, left_out)
    else:
        print(f"note: map, ndcg and roc_auc are left out: they need all {len(queries) * len(gallery_shown):,} "
              f"similarities, above {MOST_NUMBERS:,}")  # fmt: skip
    categories = [query["category"] for query in queries]
    draws = {"resamples": settings.resamples, "seed": settings.retrieval_seed}
    return retrieval_measures(
        scores, query_shown, categories, scorer=scorer, condition=settings.condition, draws=draws
    )  # fmt: skip


def text_table(measures: Sequence[Measure]) -> str:
    """Each measure over all queries by scorer, with its interval; empty where nothing was measured."""
    mine = find(measures, name="all")
    scorers, metrics = (list(dict.fromkeys(getattr(m, name) for m in mine)) for name in ("scorer", "metric"))
    if not mine:
        return ""
    cells = {(m.scorer, m.metric): f"{m.value:.3f} ({m.low:.3f}-{m.high:.3f})" for m in mine}
    lines = [["", *scorers], *([metric, *(cells[s, metric] for s in scorers)] for metric in metrics)]
    return f"Means over {mine[0].support} queries that have something to find (interval)\n{aligned(lines)}"


def _print_some(scorer: str, queries: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]) -> None:
    """The neighbours themselves, where there are few queries."""
    if len(queries) > _PRINTED:
        return
    for query in queries:
        print(f"\n{query['name']}, by {scorer}")
        for row in rows:
            if (row["query"], row["query_image_id"]) == (query["name"], query["image_id"]):
                said = {True: "same", False: "other", None: ""}[row["same"]]
                print(f"  {row['rank']:>3}  {row['similarity']:.4f}  {row['identity_id']} {row['view_index']} "
                      f"{row['engine']}  {said}".rstrip())  # fmt: skip


def _write_sheet(
    settings: Retrieve, planned: _Planned, output: Location, running: job.Job, scorer: str,
    queries: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]],
) -> None:  # fmt: skip
    if not settings.sheet_queries:
        return
    if not planned.finder:
        print("note: no sheet, embeddings hold no pictures: name the datasets that hold them with --pictures")
        return
    shown = [queries[place] for place in spread(len(queries), settings.sheet_queries)]
    place = output.child(f"sheet-{_file_name(scorer)}.png")
    place.write_bytes(encode_png(neighbour_sheet(shown, rows, planned.finder)))
    running.details.setdefault("sheets", []).append(place.uri)
    print(f"sheet  {place.uri}")
    if place.is_local:
        running.tracker.file(place.path)


def _file_name(scorer: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in scorer)
