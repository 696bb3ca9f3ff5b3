"""Records of alignment with people: similarities of generated pictures to their references, joined with ratings by key.

A key is (method, identity, prompt): people rate what a method made of an identity for a prompt as a whole. Everything
is joined by key, never by order.

Axes: N pairs of a reference view and a generated picture.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nearid_ray.errors import UsageError
from nearid_ray.evaluation.embed import embedding_matrix
from schemas import ALIGNMENT, GENERATED_SIMILARITIES

Key = tuple[str, str, int]
"""(method, identity_id, prompt_index)."""

NO_VIEW = -1
GENERATED_COLUMNS = ("generated_id", "identity_id", "method", "prompt_index", "image_index", "category", "error")
"""What is read of a dataset of generated pictures."""
RATING_COLUMNS = (
    "identity_id", "method", "prompt_index", "rater", "rater_kind", "aspect", "category", "score", "error",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class People:
    """Ratings by one or two groups of people, and scores by metrics, each by key."""

    groups: dict[str, dict[Key, float]]
    """Group -> rating by key; a missing or broken rating is not there."""
    metrics: dict[str, dict[Key, float]]
    """Metric -> score by key, nan where it gave none."""
    categories: dict[str, str]
    """identity_id -> category."""


def read_people(ratings: pa.Table, *, aspect: str = "concept", groups: Sequence[str] = ()) -> People:
    """People and metrics of a ratings table; several ratings of one key (a picture each) are averaged.

    Args:
        groups: the groups to take; the ratings' only ones when left out.

    Raises:
        UsageError: nobody rated this aspect, a group is not there, or there are more than two to choose from.
    """
    rows = ratings.filter(pc.equal(ratings["aspect"], aspect)).to_pylist()
    values: dict[tuple[str, str], dict[Key, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        key = (row["method"], row["identity_id"], row["prompt_index"])
        known = row["score"] is not None and not row["error"]
        values[row["rater_kind"], row["rater"]][key].append(row["score"] if known else math.nan)
    found = {rater for kind, rater in values if kind == "human"}
    if not found:
        aspects = sorted(set(ratings["aspect"].to_pylist())) or ["none"]
        raise UsageError(
            f"the ratings hold none by people of the aspect {aspect!r} (they have: {', '.join(aspects)}); ingest "
            "dreambench-ratings with --human FOLDER"
        )
    missing = sorted(set(groups) - found)
    if missing:
        raise UsageError(f"the ratings have no group {', '.join(missing)}; they have {', '.join(sorted(found))}")
    chosen = list(groups) or sorted(found)
    if len(chosen) > 2:
        raise UsageError(
            f"the ratings are by the groups {', '.join(chosen)}; M-H is the mean over two: choose them with --groups"
        )
    means = {rater: {key: _mean(scores) for key, scores in of_one.items()} for rater, of_one in values.items()}
    people = {name: {k: v for k, v in means["human", name].items() if not math.isnan(v)} for name in chosen}
    metrics = {rater: of_one for (kind, rater), of_one in sorted(means.items()) if kind == "metric"}
    return People(groups=people, metrics=metrics, categories={row["identity_id"]: row["category"] for row in rows})


def similarities_of(generated: pa.Table, embeddings: pa.Table, *, scorer: str, condition: str) -> pa.Table:
    """Records of `schemas.GENERATED_SIMILARITIES`: each generated picture with each view of its reference.

    Args:
        generated: columns `GENERATED_COLUMNS` of the generated pictures.
        embeddings: rows of this scorer and condition with the roles view and generated.

    A picture without an embedding, and one without a reference (its view_index is then -1), has a row with `error`.
    """
    matrix_ND = embedding_matrix(embeddings["embedding"]).astype(np.float64)
    error = embeddings["error"].to_pylist()
    views: dict[str, list[tuple[int, int]]] = defaultdict(list)
    picture: dict[str, int] = {}
    columns = ("role", "image_id", "identity_id", "view_index")
    for number, (role, image, identity, view) in enumerate(
        zip(*(embeddings[name].to_pylist() for name in columns), strict=True)
    ):
        if role == "view":
            views[identity].append((view, number))
        elif role == "generated":
            picture[image] = number
    rows = []
    for row in generated.to_pylist():
        mine = picture.get(row["generated_id"])
        of_reference: list[tuple[int, int | None]] = [*sorted(views.get(row["identity_id"], []))]
        for view, reference in of_reference or [(NO_VIEW, None)]:
            problem = row["error"]
            if not problem and mine is None:
                problem = f"there is no embedding of it by {scorer}"
            elif not problem and reference is None:
                problem = "there is no embedding of its reference"
            elif not problem:
                problem = error[mine] or (f"its reference: {error[reference]}" if error[reference] else "")
            usable = not problem and mine is not None and reference is not None
            value = float((matrix_ND[mine] * matrix_ND[reference]).sum()) if usable else None
            rows.append(
                row
                | {"view_index": view, "scorer": scorer, "condition": condition, "similarity": value, "error": problem}
            )
    return pa.Table.from_pylist(rows, schema=GENERATED_SIMILARITIES.schema)


def judged_similarities(judged: pa.Table) -> pa.Table:
    """What a scorer of pairs said of generated pictures, as the same records."""
    return judged.select(GENERATED_SIMILARITIES.schema.names).cast(GENERATED_SIMILARITIES.schema)


def alignment_records(similarities: pa.Table, people: People, methods: Sequence[str]) -> pa.Table:
    """Records of `schemas.ALIGNMENT`: for each scorer and condition every key that it scored or that was rated.

    Args:
        similarities: of any scorers and conditions.
        methods: whose keys count.

    Raises:
        UsageError: a scorer has the name of a metric of the ratings.
    """
    scored: dict[tuple[str, str], dict[Key, dict[str, list[float]]]] = {}
    categories = dict(people.categories)
    columns = ("scorer", "condition", "method", "identity_id", "prompt_index", "generated_id", "similarity", "category")
    for scorer, condition, method, identity, prompt, picture, value, category in zip(
        *(similarities[name].to_pylist() for name in columns), strict=True
    ):
        of_keys = scored.setdefault((scorer, condition), defaultdict(lambda: defaultdict(list)))
        of_keys[method, identity, prompt][picture].append(math.nan if value is None else value)
        categories[identity] = categories.get(identity) or category
    double = sorted({scorer for scorer, _ in scored} & set(people.metrics))
    if double:
        raise UsageError(
            f"{', '.join(double)} is a scorer and a metric of the ratings; give the scorer another name (NAME=SPEC)"
        )
    rated = {key for ratings in people.groups.values() for key in ratings}
    rows: list[dict[str, Any]] = []
    for (scorer, condition), of_keys in scored.items():
        scores = {key: _mean(_mean(values) for values in pictures.values()) for key, pictures in of_keys.items()}
        counts = {key: len(pictures) for key, pictures in of_keys.items()}
        rows += _rows(scorer, condition, scores, counts, rated, people, categories)
    for metric, scores in people.metrics.items():
        rows += _rows(metric, "full", scores, dict.fromkeys(scores, 1), rated, people, categories)
    wanted = set(methods)
    return pa.Table.from_pylist([row for row in rows if row["method"] in wanted], schema=ALIGNMENT.schema)


def _rows(
    scorer: str,
    condition: str,
    scores: Mapping[Key, float],
    counts: Mapping[Key, int],
    rated: set[Key],
    people: People,
    categories: Mapping[str, str],
) -> Iterable[dict[str, Any]]:
    groups = list(people.groups.values())
    for key in sorted(rated | set(scores)):
        method, identity, prompt = key
        score = scores.get(key, math.nan)
        yield {
            "identity_id": identity,
            "method": method,
            "prompt_index": prompt,
            "category": categories.get(identity, ""),
            "scorer": scorer,
            "condition": condition,
            "score": None if math.isnan(score) else score,
            "num_pictures": counts.get(key, 0),
            "rating_1": groups[0].get(key),
            "rating_2": groups[1].get(key) if len(groups) > 1 else None,
        }


def _mean(values: Iterable[float]) -> float:
    """Mean of what is finite; nan of nothing."""
    finite = [value for value in values if math.isfinite(value)]
    return math.fsum(finite) / len(finite) if finite else math.nan
