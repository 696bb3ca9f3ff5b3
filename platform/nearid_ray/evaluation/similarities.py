"""Eval records: every similarity once, and the margins that follow from them alone.

Axes: N images, D embedding width, P pairs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from nearid_ray.evaluation.margins import TrialCounts, count_trials, margins
from nearid_ray.evaluation.pairs import PairPlan
from schemas import MARGINS, SIMILARITIES, SPLITS

CONDITIONS = ("full", "foreground")
"""The picture as it is, and the picture with its background blacked out."""

# Pairs are multiplied in blocks of about this many numbers (64 MB of float64).
_BLOCK_NUMBERS = 8_000_000


def check_pairing(split: str, conditions: Sequence[str], random_views: int) -> None:
    """ValueError where settings name a split or condition that there is not, or a negative number of random views."""
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}; expected one of {', '.join(SPLITS)}")
    if not conditions or set(conditions) - set(CONDITIONS):
        raise ValueError(f"conditions is {tuple(conditions)}; expected some of {', '.join(CONDITIONS)}")
    if random_views < 0:
        raise ValueError(f"random_views is {random_views}; expected 0 or more")


def pair_similarity(embedding_ND: NDArray[np.floating], plan: PairPlan) -> NDArray[np.float64]:
    """Cosine of the two embeddings of each pair, in float64, -1..1; nan where either is not finite or zero.

    >>> embedding = np.array([[3.0, 4.0], [4.0, 3.0], [0.0, 0.0]], np.float32)
    >>> plan = PairPlan(first_P=np.array([0, 0]), second_P=np.array([1, 2]), described=pa.table({}))
    >>> pair_similarity(embedding, plan)
    array([0.96,  nan])
    """
    block = max(1, _BLOCK_NUMBERS // max(1, embedding_ND.shape[1]))
    similarity_P = np.empty(len(plan), np.float64)
    for start in range(0, len(plan), block):
        part = slice(start, start + block)
        first_PD = embedding_ND[plan.first_P[part]].astype(np.float64)
        second_PD = embedding_ND[plan.second_P[part]].astype(np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            lengths_P = np.linalg.norm(first_PD, axis=1) * np.linalg.norm(second_PD, axis=1)
            similarity_P[part] = np.einsum("pd,pd->p", first_PD, second_PD) / lengths_P
    return np.where(np.isfinite(similarity_P), np.clip(similarity_P, -1.0, 1.0), np.nan)


def similarity_records(
    embedding_ND: NDArray[np.floating], plan: PairPlan, *, scorer: str, condition: str = "full"
) -> pa.Table:
    """The `similarities` table of one scorer and condition; null where a similarity cannot be measured.

    Args:
        embedding_ND: one row an image of the plan's table; nan rows for images without an embedding.
    """
    return scored_records(plan, pair_similarity(embedding_ND, plan), scorer=scorer, condition=condition)


def scored_records(plan: PairPlan, similarity_P: NDArray[np.floating], *, scorer: str, condition: str) -> pa.Table:
    """The `similarities` table of similarities from anywhere (a judge, another metric): higher = more alike."""
    if len(similarity_P) != len(plan):
        raise ValueError(f"{len(similarity_P)} similarities for {len(plan)} pairs; expected one a pair")
    if condition not in CONDITIONS:
        raise ValueError(f"condition is {condition!r}; expected one of {', '.join(CONDITIONS)}")
    values = {name: plan.described[name] for name in plan.described.column_names}
    values["scorer"] = pa.repeat(pa.scalar(scorer), len(plan))
    values["condition"] = pa.repeat(pa.scalar(condition), len(plan))
    values["similarity"] = _nullable(np.asarray(similarity_P, np.float64))
    schema = SIMILARITIES.schema
    return pa.table([values[name] for name in schema.names], schema=schema)


def margin_records(similarities: pa.Table) -> pa.Table:
    """The `margins` table, one row a directed trial, from `similarities` records alone, in a fixed order.

    A trial needs a record of the view pair and one of the anchor's own distractor; where one of them is null the
    trial is there and not valid.
    """
    shared = ["identity_id", "category", "split", "scorer", "condition"]
    positive = similarities.filter(pc.field("kind") == "positive")
    forward = _renamed(positive, shared, view_index="anchor", other_view_index="positive", similarity="positive_sim")
    backward = _renamed(positive, shared, other_view_index="anchor", view_index="positive", similarity="positive_sim")
    own = (pc.field("kind") == "distractor") & (pc.field("view_index") == pc.field("other_view_index"))
    distractor = _renamed(
        similarities.filter(own),
        ["identity_id", "scorer", "condition", "engine"],
        view_index="anchor",
        similarity="distractor_sim",
    )
    trials = pa.concat_tables([forward, backward.select(forward.column_names)]).join(
        distractor, keys=["identity_id", "scorer", "condition", "anchor"], join_type="inner"
    )
    order = ["scorer", "condition", "engine", "identity_id", "anchor", "positive"]
    trials = trials.sort_by([(name, "ascending") for name in order])
    margin = margins(_floats(trials, "positive_sim"), _floats(trials, "distractor_sim"))
    valid = np.isfinite(margin)
    values = {
        **{name: trials[name] for name in (*shared, "engine")},
        "anchor_view_index": trials["anchor"],
        "positive_view_index": trials["positive"],
        "positive_similarity": trials["positive_sim"],
        "distractor_similarity": trials["distractor_sim"],
        "margin": _nullable(margin),
        "valid": pa.array(valid),
        "success": pa.array(valid & (np.nan_to_num(margin) > 0)),
    }
    schema = MARGINS.schema
    return pa.table([values[name] for name in schema.names], schema=schema)


def margin_counts(margin_table: pa.Table, scorer: str, condition: str = "full") -> TrialCounts:
    """Trial counts of one scorer and condition from the `margins` table."""
    mine = margin_table.filter((pc.field("scorer") == scorer) & (pc.field("condition") == condition))
    return count_trials(_floats(mine, "margin"), _strings(mine, "identity_id"), _strings(mine, "engine"))


def ordering_counts(similarities: pa.Table, scorer: str, condition: str = "full") -> TrialCounts:
    """Comparisons of each view's distractors with the random pairs of the same view; `.pa()` is the ordering rate.

    Counted like trials: success = the distractor is more similar to the view than the random identity's view is.
    """
    mine = similarities.filter((pc.field("scorer") == scorer) & (pc.field("condition") == condition))
    own = (pc.field("kind") == "distractor") & (pc.field("view_index") == pc.field("other_view_index"))
    anchor = ["identity_id", "view_index"]
    distractor = _renamed(mine.filter(own), [*anchor, "engine"], similarity="distractor_sim")
    random = _renamed(mine.filter(pc.field("kind") == "random"), anchor, similarity="random_sim")
    both = distractor.join(random, keys=anchor, join_type="inner")
    margin = margins(_floats(both, "distractor_sim"), _floats(both, "random_sim"))
    return count_trials(margin, _strings(both, "identity_id"), _strings(both, "engine"))


def _renamed(table: pa.Table, kept: list[str], **renamed: str) -> pa.Table:
    return pa.table({**{name: table[name] for name in kept}, **{new: table[old] for old, new in renamed.items()}})


def _floats(table: pa.Table, name: str) -> NDArray[np.float64]:
    return np.asarray(table[name].to_numpy(zero_copy_only=False), np.float64)


def _strings(table: pa.Table, name: str) -> np.ndarray:
    return table[name].to_numpy(zero_copy_only=False).astype(str)


def _nullable(values: NDArray[np.float64]) -> pa.Array:
    return pa.array(values, pa.float64(), mask=~np.isfinite(values))
