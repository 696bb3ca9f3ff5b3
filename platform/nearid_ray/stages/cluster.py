"""The cluster job: pictures grouped by identity, how well the groups match what is known, and a sheet of them."""

import math
import sys
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from nearid_ray import job
from nearid_ray.data.card import licence_of
from nearid_ray.data.images import encode_png
from nearid_ray.data.store import Dataset, Location
from nearid_ray.errors import UsageError
from nearid_ray.evaluation.measures import Measure, write_measures
from nearid_ray.retrieving.clustering import (
    ClusterScores,
    alone_each,
    best_distance,
    check_memory,
    cluster_scores,
    hdbscan,
    linkage,
    ordered_labels,
)
from nearid_ray.retrieving.places import places_of
from nearid_ray.retrieving.records import csv_bytes, write_records
from nearid_ray.retrieving.sheets import PictureFinder, cluster_sheet
from nearid_ray.retrieving.vectors import (
    Embedded,
    Selection,
    choose_scorer,
    matrix_of,
    open_embeddings,
    read_embedded,
)
from nearid_ray.scoring.calibrated import read_calibration
from nearid_ray.settings import to_dict
from nearid_ray.stages.outputs import refuse_others
from nearid_ray.tracking import TrackingSettings
from schemas import CLUSTERS

BENCHMARK = "clustering"
SHEET = "sheet.png"


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Group embedded pictures by the identity that they show."""

    embeddings: str
    """Dataset of embeddings."""
    output: str
    """Folder or s3://bucket/prefix for clusters, measures and the sheet."""
    scorer: str = ""
    """Whose embeddings; needed where the dataset holds those of several scorers."""
    condition: Literal["full", "foreground"] = "full"
    """Embeddings to compare: full, or foreground (background blacked out)."""
    roles: tuple[str, ...] = ("view", "picture")
    """What is grouped: view, distractor, generated, picture."""
    splits: tuple[str, ...] = ()
    """Splits that are grouped; all when empty (without val where that chooses the threshold)."""
    method: Literal["agglomerative", "hdbscan"] = "agglomerative"
    """agglomerative: average linkage on cosine distances, cut at a threshold; hdbscan: places where pictures are dense,
    the rest stands alone."""
    threshold: float | None = None
    """Cosine similarity, -1 to 1, above which groups are merged (mean over the pairs between them)."""
    clusters: int | None = None
    """Number of clusters, instead of a threshold."""
    calibration: str = ""
    """calibration.json or its folder (a trained head): the threshold is its own for `false_accept_rate`."""
    false_accept_rate: float = 0.01
    """With calibration: share of pairs of different identities that may pass, above 0, below 1."""
    min_cluster_size: int = 2
    """With hdbscan: pictures of the smallest cluster, 2 or more."""
    memory_gib: float | None = None
    """What the distances may take; most of what is free when left out."""
    pictures: tuple[str, ...] = ()
    """Datasets that hold the pictures, for the sheet."""
    sheet_clusters: int = 16
    """Clusters on the sheet, the largest; 0 for no sheet, at most 100."""
    tracking: TrackingSettings = TrackingSettings()

    def __post_init__(self) -> None:
        if self.threshold is not None and not -1 <= self.threshold <= 1:
            raise ValueError(f"threshold is {self.threshold}; expected a cosine similarity from -1 to 1")
        if self.clusters is not None and self.clusters < 1:
            raise ValueError(f"clusters is {self.clusters}; expected 1 or more")
        given = [name for name in ("threshold", "clusters", "calibration") if getattr(self, name) not in (None, "")]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} are given; expected one of them")
        if self.method == "hdbscan" and given:
            raise ValueError(f"hdbscan takes no {given[0]}; it finds its clusters by density (--min-cluster-size)")
        if not 0 < self.false_accept_rate < 1:
            raise ValueError(f"false_accept_rate is {self.false_accept_rate}; expected a number between 0 and 1")
        if self.min_cluster_size < 2:
            raise ValueError(f"min_cluster_size is {self.min_cluster_size}; expected 2 or more")
        if not 0 <= self.sheet_clusters <= 100:
            raise ValueError(f"sheet_clusters is {self.sheet_clusters}; expected 0 to 100")
        Selection(scorer="", roles=self.roles, splits=self.splits)


@job.owning_output("cluster")
def run_cluster(settings: Cluster) -> job.Job:
    """Read, group, measure, draw."""
    output = job.output_of(settings.output, settings.tracking)
    refuse_others(output, "cluster")
    dataset = open_embeddings(settings.embeddings)
    scorer = choose_scorer(dataset, settings.scorer)
    places = [places_of(Dataset.open(uri)) for uri in settings.pictures]
    with job.running(
        "cluster",
        output,
        to_dict(settings),
        tracking=settings.tracking,
        inputs={"embeddings": settings.embeddings},
        needs_ray=False,
    ) as running:
        distance, said, splits = _distance(settings, dataset, scorer)
        embedded = _read(settings, dataset, scorer, splits)
        matrix_ND = matrix_of(embedded)
        usable = np.flatnonzero(np.isfinite(matrix_ND).all(axis=1))
        if len(usable) < 2:
            raise UsageError(f"{len(usable)} pictures have an embedding; expected 2 or more")
        label_N, noise_N = _labels(settings, matrix_ND[usable], distance)
        shown = [embedded.shown()[place] for place in usable.tolist()]
        rows = _rows(embedded.images.take(pa.array(usable)).to_pylist(), label_N, noise_N, matrix_ND[usable])
        scores = cluster_scores(label_N, shown)
        running.summary |= {
            "pictures": len(usable),
            "without_embedding": len(matrix_ND) - len(usable),
            "clusters": int(label_N.max()) + 1,
            "alone": sum(row["cluster_size"] == 1 for row in rows),
            "merged_above": said,
            "scores": {name: round(value, 4) for name, value in asdict(scores).items() if math.isfinite(value)},
        }
        _write(settings, output, dataset, rows)
        write_measures(output, _measures(scores, scorer, settings.condition, len(usable)))
        running.tracker.metrics({f"{scorer}/{n}".replace(":", "_"): v for n, v in asdict(scores).items()
                                 if math.isfinite(v)})  # fmt: skip
        _draw(settings, output, running, rows, shown, PictureFinder(places))
    return running


def _distance(settings: Cluster, dataset: Dataset, scorer: str) -> tuple[float | None, str, tuple[str, ...]]:
    """(cosine distance below which groups are merged, what is said of it, splits that are grouped)."""
    if settings.method == "hdbscan":
        return None, "(by density)", settings.splits
    if settings.clusters is not None:
        return None, f"({settings.clusters} clusters were asked for)", settings.splits
    if settings.threshold is not None:
        return 1 - settings.threshold, f"{settings.threshold:g}", settings.splits
    if settings.calibration:
        stored = read_calibration(settings.calibration)
        threshold = stored.of(settings.condition).threshold(settings.false_accept_rate)
        said = f"{threshold:.4f} (false-accept rate {settings.false_accept_rate:g} of {stored.scorer})"
        if stored.scorer != scorer:
            print(
                f"note: the calibration is of a scorer called {stored.scorer}, the embeddings are of {scorer}; its "
                "threshold holds only where both have the same weights",
                file=sys.stderr,
            )
        return 1 - threshold, said, settings.splits
    there = set(dataset.read(["split"])["split"].to_pylist())
    if "val" not in there or there == {"val"}:
        raise UsageError(
            "no threshold: give --threshold SIMILARITY, --clusters N, or --calibration (jobs/calibrate.py); it can be "
            f"chosen on a split val beside what is grouped, but {dataset.location.uri} has {', '.join(sorted(there))}"
        )
    validation = _read(settings, dataset, scorer, ("val",))
    matrix_ND = matrix_of(validation)
    usable = np.flatnonzero(np.isfinite(matrix_ND).all(axis=1))
    check_memory(len(usable), settings.memory_gib)
    shown = validation.shown()
    distance, rand = best_distance(linkage(matrix_ND[usable]), [shown[place] for place in usable.tolist()])
    said = f"{1 - distance:.4f} (best on split val: adjusted Rand index {rand:.3f})"
    return distance, said, settings.splits or tuple(sorted(there - {"val"}))


def _read(settings: Cluster, dataset: Dataset, scorer: str, splits: tuple[str, ...]) -> Embedded:
    chosen = Selection(scorer=scorer, condition=settings.condition, roles=settings.roles, splits=splits)
    return read_embedded(dataset, chosen, memory_gib=math.inf)


def _labels(settings: Cluster, matrix_ND: np.ndarray, distance: float | None) -> tuple[np.ndarray, np.ndarray]:
    """(cluster of each picture, which pictures the method put into none)."""
    if settings.method == "hdbscan":
        if len(matrix_ND) < settings.min_cluster_size:
            raise UsageError(
                f"{len(matrix_ND)} pictures; expected at least min_cluster_size {settings.min_cluster_size}"
            )
        return alone_each(hdbscan(matrix_ND, smallest=settings.min_cluster_size))
    check_memory(len(matrix_ND), settings.memory_gib)
    if settings.clusters is not None and settings.clusters > len(matrix_ND):
        raise UsageError(f"clusters is {settings.clusters}; there are {len(matrix_ND)} pictures")
    label_N = ordered_labels(linkage(matrix_ND).cut(distance=distance, clusters=settings.clusters))
    return label_N, np.zeros(len(label_N), bool)


def _rows(
    images: list[dict[str, Any]], label_N: np.ndarray, noise_N: np.ndarray, matrix_ND: np.ndarray
) -> list[dict[str, Any]]:
    """Records of `schemas.CLUSTERS`, cluster by cluster, the most typical pictures first."""
    sums_CD = np.zeros((int(label_N.max()) + 1, matrix_ND.shape[1]))
    np.add.at(sums_CD, label_N, matrix_ND.astype(np.float64))
    sizes = np.bincount(label_N)
    with np.errstate(invalid="ignore", divide="ignore"):
        centre_CD = sums_CD / np.linalg.norm(sums_CD, axis=1, keepdims=True)
    similarity_N = np.nan_to_num((centre_CD[label_N] * matrix_ND).sum(axis=1))
    rows = [
        {name: image[name] for name in CLUSTERS.schema.names if name in image}
        | {"cluster": int(label), "cluster_size": int(sizes[label]), "similarity": float(s), "noise": bool(noise)}
        | {"place": place}
        for place, (image, label, s, noise) in enumerate(zip(images, label_N, similarity_N, noise_N, strict=True))
    ]
    return sorted(rows, key=lambda row: (row["cluster"], -row["similarity"], row["place"]))


def _write(settings: Cluster, output: Location, dataset: Dataset, rows: list[dict[str, Any]]) -> None:
    table = pa.Table.from_pylist([{n: row[n] for n in CLUSTERS.schema.names} for row in rows], schema=CLUSTERS.schema)
    content = {"embeddings": dataset.digest(), "method": settings.method}
    about = "Groups of pictures that look like the same identity."
    write_records(output, CLUSTERS, table, content=content, about=about, licence=licence_of(dataset))
    output.child("clusters.csv").write_bytes(csv_bytes(rows, CLUSTERS.schema.names))


def _measures(scores: ClusterScores, scorer: str, condition: str, pictures: int) -> list[Measure]:
    return [
        Measure(
            benchmark=BENCHMARK, scorer=scorer, condition=condition, name="all", is_group=True, metric=name,
            value=value, low=math.nan, high=math.nan, support=scores.pictures, coverage=scores.pictures / pictures,
            baseline="",
        )
        for name, value in asdict(scores).items()
        if name != "pictures"
    ]  # fmt: skip


def _draw(
    settings: Cluster, output: Location, running: job.Job, rows: list[dict[str, Any]], shown: list[str | None],
    finder: PictureFinder,
) -> None:  # fmt: skip
    if not settings.sheet_clusters:
        return
    if not finder:
        print("note: no sheet, embeddings hold no pictures: name the datasets that hold them with --pictures")
        return
    members: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        members.setdefault(row["cluster"], []).append(row | {"shown": shown[row["place"]]})
    drawn = []
    for cluster in sorted(members)[: settings.sheet_clusters]:
        some = members[cluster]
        most = Counter(row["shown"] for row in some if row["shown"] is not None).most_common(1)
        right = [None if row["shown"] is None else row["shown"] == most[0][0] for row in some]
        drawn.append([row | {"right": said} for row, said in zip(some, right, strict=True)][:10])
    place = output.child(SHEET)
    place.write_bytes(encode_png(cluster_sheet(drawn, finder)))
    running.summary["sheet"] = place.uri
    if place.is_local:
        running.tracker.file(place.path)
