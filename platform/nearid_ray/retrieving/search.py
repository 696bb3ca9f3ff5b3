"""Neighbours as records, and how good the rankings are where identities are known.

Axes: Q queries, G gallery items, K neighbours.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from nearid_ray.evaluation.bootstrap import Statistic, interval, mean_statistic
from nearid_ray.evaluation.measures import Measure
from nearid_ray.evaluation.retrieval import query_scores
from nearid_ray.retrieving.neighbours import NOBODY, FloatArray, Gallery, Neighbours
from schemas import NEIGHBOURS

BENCHMARK = "retrieval"
MOST_NUMBERS = 4_000_000_000
"""Similarities of all queries to all of the gallery that are still computed for mAP, nDCG and ROC-AUC."""

_BLOCK_NUMBERS = 32_000_000
_RANKS = (1, 5, 10, 100)


def own_pictures(query_ids: Sequence[str], gallery_ids: Sequence[str]) -> list[list[int]]:
    """For each query the gallery items that are the very same picture.

    >>> own_pictures(["b", "x"], ["a", "b", "b"])
    [[1, 2], []]
    """
    places: dict[str, list[int]] = {}
    for number, image in enumerate(gallery_ids):
        places.setdefault(image, []).append(number)
    return [places.get(image, []) for image in query_ids]


def neighbour_records(
    found: Neighbours,
    queries: Sequence[Mapping[str, Any]],
    gallery: pa.Table,
    shown: Sequence[str | None],
    *,
    scorer: str,
    condition: str,
) -> pa.Table:
    """Rows of `schemas.NEIGHBOURS`, each query's in the order of their rank.

    Args:
        queries: `name`, `image_id`, and `shown`, the identity that it shows, or None.
        gallery: columns of the gallery's pictures.
        shown: the identity that each of the gallery's pictures shows, or None.
    """
    kept = np.flatnonzero(found.item_QK.reshape(-1) != NOBODY)
    item_N = found.item_QK.reshape(-1)[kept]
    query_N, rank_N = np.divmod(kept, found.item_QK.shape[1])
    columns = ("image_id", "role", "identity_id", "view_index", "engine", "category")
    items = gallery.select(columns).take(pa.array(item_N))
    of_query = [queries[number] for number in query_N.tolist()]
    same = [
        None if query["shown"] is None or shown[item] is None else query["shown"] == shown[item]
        for query, item in zip(of_query, item_N.tolist(), strict=True)
    ]
    values = {
        "query": [query["name"] for query in of_query],
        "query_image_id": [query["image_id"] for query in of_query],
        "query_identity_id": [query["shown"] or "" for query in of_query],
        "scorer": [scorer] * len(kept),
        "condition": [condition] * len(kept),
        "rank": rank_N + 1,
        **{name: items[name] for name in columns},
        "similarity": found.similarity_QK.reshape(-1)[kept],
        "same": same,
    }
    fields = NEIGHBOURS.schema
    return pa.table([_column(values[field.name], field.type) for field in fields], schema=fields)


def retrieval_scores(
    query_QD: FloatArray,
    gallery: Gallery,
    query_shown: Sequence[str | None],
    gallery_shown: Sequence[str | None],
    left_out: Sequence[Sequence[int]],
) -> dict[str, NDArray[np.float64]]:
    """map, ndcg and roc_auc of each query's ranking of the whole gallery, in blocks of queries; each of shape (Q,).

    Gallery pictures whose identity is unknown are in no ranking. nan for queries of unknown identity, and for those
    that have nothing to find.
    """
    codes = {name: code for code, name in enumerate(sorted({*query_shown, *gallery_shown} - {None}, key=str))}
    query_Q = np.array([codes[name] if name is not None else -1 for name in query_shown], np.int64)
    gallery_G = np.array([codes[name] if name is not None else -2 for name in gallery_shown], np.int64)
    found = {name: np.full(len(query_Q), np.nan) for name in ("map", "ndcg", "roc_auc")}
    known = np.flatnonzero((query_Q >= 0) & np.isin(query_Q, gallery_G))
    for rows in _parts(known, max(1, _BLOCK_NUMBERS // max(1, len(gallery_G)))):
        similarity_QG = np.concatenate([query_QD[rows] @ block.T for _, block in gallery.blocks()], axis=1)
        allowed_QG = np.broadcast_to(gallery_G >= 0, similarity_QG.shape).copy()
        for place, row in enumerate(rows.tolist()):
            allowed_QG[place, list(left_out[row])] = False
        scores = query_scores(similarity_QG, query_Q[rows, None] == gallery_G[None, :], allowed_QG)
        found["map"][rows], found["ndcg"][rows] = scores.average_precision_Q, scores.ndcg_Q
        found["roc_auc"][rows] = scores.roc_auc_Q
    return found


def found_at(
    found: Neighbours,
    query_shown: Sequence[str | None],
    gallery_shown: Sequence[str | None],
    left_out: Sequence[Sequence[int]],
) -> dict[str, NDArray[np.float64]]:
    """recall@k (the share of the gallery's pictures of the query's identity that are among the first k) and hit@k (1
    where at least one is), of each query; nan where there is nothing to find.

    >>> nearest = Neighbours(np.array([[1, 0]]), np.array([[0.9, 0.8]]))
    >>> {name: value.tolist() for name, value in found_at(nearest, ["a"], ["a", "b", "a"], [[]]).items()}
    {'recall@1': [0.0], 'hit@1': [0.0]}
    """
    counts = Counter(gallery_shown)
    top = found.item_QK.shape[1]
    wanted_Q = np.array([
        counts[name] - sum(gallery_shown[item] == name for item in own) if name is not None else 0
        for name, own in zip(query_shown, left_out, strict=True)
    ])  # fmt: skip
    same_QK = np.array(
        [
            [item != NOBODY and name is not None and gallery_shown[item] == name for item in items]
            for name, items in zip(query_shown, found.item_QK.tolist(), strict=True)
        ],
        bool,
    ).reshape(len(query_shown), top)
    scores = {}
    with np.errstate(invalid="ignore", divide="ignore"):
        for rank in (rank for rank in _RANKS if rank <= top):
            hits_Q = same_QK[:, :rank].sum(axis=1)
            scores[f"recall@{rank}"] = np.where(wanted_Q > 0, hits_Q / wanted_Q, np.nan)
            scores[f"hit@{rank}"] = np.where(wanted_Q > 0, (hits_Q > 0).astype(float), np.nan)
    return scores


def retrieval_measures(
    scores: Mapping[str, NDArray[np.float64]],
    query_shown: Sequence[str | None],
    categories: Sequence[str],
    *,
    scorer: str,
    condition: str,
    draws: Mapping[str, Any],
) -> list[Measure]:
    """Means over the queries, of all and of each category; the queries' identities are what is resampled."""
    known = np.array([name is not None for name in query_shown], bool)
    identity = np.array([name or "" for name in query_shown])
    category = np.array(categories)
    groups = {"all": known}
    if len(names := sorted(set(category[known].tolist()) - {""})) > 1:
        groups |= {f"category:{name}": known & (category == name) for name in names}
    measures = []
    for name, rows in groups.items():
        for metric, value_Q in scores.items():
            statistic: Statistic = mean_statistic(value_Q[rows], identity[rows])
            ends = interval(statistic, **draws)
            measures.append(
                Measure(
                    benchmark=BENCHMARK, scorer=scorer, condition=condition, name=name, is_group=True, metric=metric,
                    value=ends.value, low=ends.low, high=ends.high, support=int(np.isfinite(value_Q[rows]).sum()),
                    coverage=ends.coverage if rows.any() else math.nan, baseline="",
                )
            )  # fmt: skip
    return measures


def _column(values: Any, kind: pa.DataType) -> Any:
    return values.cast(kind) if isinstance(values, pa.ChunkedArray) else pa.array(values, kind)


def _parts(rows: NDArray[np.int64], size: int) -> Iterator[NDArray[np.int64]]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]
