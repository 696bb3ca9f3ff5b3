"""Which pairs of images an evaluation looks at: one row a pair, found without loops over identities.

The images come as an Arrow table with the columns of `IMAGE_COLUMNS` (the token index and the embeddings table have
them), one row an image. Axes: N images, P pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from nearid_ray.errors import UsageError
from nearid_ray.evaluation.control import without_controls
from nearid_ray.identifiers import seed_of, stable_hash

IMAGE_COLUMNS = ("image_id", "role", "identity_id", "view_index", "engine", "category", "split", "oracle")
"""What is read of an image. `oracle` is null for views and for engines without one."""

IntArray = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class PairPlan:
    """Pairs of rows of an image table, and what the records say of each pair."""

    first_P: IntArray
    """Row of the first image: a view."""
    second_P: IntArray
    """Row of the second image: a view or a distractor."""
    described: pa.Table
    """Columns of the `similarities` table that do not depend on the scorer, one row a pair."""

    def __len__(self) -> int:
        return len(self.first_P)


def plan_pairs(images: pa.Table, *, random_views: int = 0, seed: int = 0) -> PairPlan:
    """All pairs (view i, view j) with i < j, (view i, distractor of view i), random pairs of views, and crossed pairs.

    Crossed are (view i, distractor of view j) with i != j: Mind-the-Glitch compares them with the oracle, so they are
    planned for engines of which a distractor has one.

    The plan depends on the images and the seed, not on the order of the rows. A distractor whose view is not among
    the images gives no pair.

    Args:
        images: columns `IMAGE_COLUMNS`, one row an image.
        random_views: for each view, so many views of other identities are drawn (duplicates are dropped, so a small
            dataset gives fewer). 0 = no random pairs.
        seed: of that draw.

    Raises:
        UsageError: a column is missing or an image stands twice.
    """
    missing = [name for name in IMAGE_COLUMNS if name not in images.column_names]
    if missing:
        raise UsageError(f"the images have no column {', '.join(missing)}; found {', '.join(images.column_names)}")
    keys = _Keys(images)
    parts = [
        ("positive", *_view_pairs(keys)),
        ("distractor", *_distractor_pairs(keys)),
        ("random", *_random_pairs(keys, random_views, seed)),
        ("crossed", *_crossed_pairs(keys)),
    ]
    kinds = np.repeat([kind for kind, *_ in parts], [len(first) for _, first, _ in parts])
    first_P = np.concatenate([first for _, first, _ in parts])
    second_P = np.concatenate([second for *_, second in parts])
    return PairPlan(first_P=first_P, second_P=second_P, described=_described(images, kinds, first_P, second_P))


class _Keys:
    """Integer keys of the images, and their views in sorted order."""

    def __init__(self, images: pa.Table) -> None:
        identities = images["identity_id"].to_numpy(zero_copy_only=False).astype(str)
        names, identity_N = np.unique(identities, return_inverse=True)
        index_N = images["view_index"].to_numpy(zero_copy_only=False).astype(np.int64)
        engines = images["engine"].to_numpy(zero_copy_only=False).astype(str)
        is_view_N = images["role"].to_numpy(zero_copy_only=False).astype(str) == "view"
        with_oracle = without_controls(sorted(set(engines[np.asarray(images["oracle"].is_valid()) & ~is_view_N])))
        stride = int(index_N.max(initial=0)) + 1
        self.identity_names = names
        self.identity_N = identity_N.astype(np.int64)
        self.place_N = self.identity_N * stride + index_N
        """Identity and view index in one number, ordered by both."""

        order = np.lexsort((engines, self.place_N))
        self.view_rows = order[is_view_N[order]]
        self.distractor_rows = order[~is_view_N[order]]
        self.graded_rows = self.distractor_rows[np.isin(engines[self.distractor_rows], with_oracle)]
        """Distractors of engines with an oracle."""
        _refuse_doubles(identities, index_N, engines, self.view_rows, "view")
        _refuse_doubles(identities, index_N, engines, self.distractor_rows, "distractor")


def _refuse_doubles(identities: np.ndarray, index_N: IntArray, engines: np.ndarray, rows: IntArray, role: str) -> None:
    same = (
        (identities[rows[1:]] == identities[rows[:-1]])
        & (index_N[rows[1:]] == index_N[rows[:-1]])
        & (engines[rows[1:]] == engines[rows[:-1]])
    )
    if same.any():
        row = rows[1:][same][0]
        engine = f", engine {engines[row]}" if engines[row] else ""
        raise UsageError(
            f"{int(same.sum())} image(s) stand twice, e.g. {role} {index_N[row]} of {identities[row]}{engine}; "
            "expected one row an image (one draw, one run seed)"
        )


def _view_pairs(keys: _Keys) -> tuple[IntArray, IntArray]:
    rows = keys.view_rows
    identity = keys.identity_N[rows]
    first, second = [rows[:0]], [rows[:0]]
    step = 1
    while step < len(rows) and (same := identity[step:] == identity[:-step]).any():
        first.append(rows[:-step][same])
        second.append(rows[step:][same])
        step += 1
    first_P, second_P = np.concatenate(first), np.concatenate(second)
    order = np.lexsort((keys.place_N[second_P], keys.place_N[first_P]))
    return first_P[order], second_P[order]


def _distractor_pairs(keys: _Keys) -> tuple[IntArray, IntArray]:
    place_V = keys.place_N[keys.view_rows]
    place_P = keys.place_N[keys.distractor_rows]
    position = np.minimum(np.searchsorted(place_V, place_P), max(0, len(place_V) - 1))
    found = place_V[position] == place_P if len(place_V) else np.zeros(len(place_P), bool)
    return keys.view_rows[position[found]], keys.distractor_rows[found]


def _crossed_pairs(keys: _Keys) -> tuple[IntArray, IntArray]:
    rows, view_identity = keys.graded_rows, keys.identity_N[keys.view_rows]
    start = np.searchsorted(view_identity, keys.identity_N[rows], side="left")
    count = np.searchsorted(view_identity, keys.identity_N[rows], side="right") - start
    # Each distractor as often as its identity has views, beside the first of them, the second ...
    second = np.repeat(rows, count)
    step = np.arange(len(second)) - np.repeat(np.cumsum(count) - count, count)
    first = keys.view_rows[np.repeat(start, count) + step]
    other = keys.place_N[first] != keys.place_N[second]
    return first[other], second[other]


def _random_pairs(keys: _Keys, random_views: int, seed: int) -> tuple[IntArray, IntArray]:
    rows = keys.view_rows
    identity = keys.identity_N[rows]
    if random_views < 1 or len(np.unique(identity)) < 2:
        return rows[:0], rows[:0]
    generator = np.random.default_rng(seed_of("random pairs", seed))
    start = np.searchsorted(identity, identity, side="left")[:, None]
    own = np.searchsorted(identity, identity, side="right")[:, None] - start
    # Views are sorted by identity, so skipping the own block leaves the views of all others, each equally likely.
    drawn = generator.integers(0, len(rows) - own, size=(len(rows), random_views))
    drawn += np.where(drawn >= start, own, 0)
    pair = np.unique(np.repeat(np.arange(len(rows)), random_views) * len(rows) + drawn.reshape(-1))
    return rows[pair // len(rows)], rows[pair % len(rows)]


def _described(images: pa.Table, kinds: np.ndarray, first_P: IntArray, second_P: IntArray) -> pa.Table:
    first, second = images.take(pa.array(first_P)), images.take(pa.array(second_P))
    columns = {
        "kind": pa.array(kinds.astype(str), pa.string()),
        "identity_id": first["identity_id"],
        "category": first["category"],
        "split": first["split"],
        "view_index": pc.cast(first["view_index"], pa.int32()),
        "other_identity_id": second["identity_id"],
        "other_view_index": pc.cast(second["view_index"], pa.int32()),
        "engine": second["engine"],
        "oracle": pc.cast(second["oracle"], pa.float64()),
    }
    named = ("kind", "identity_id", "view_index", "other_identity_id", "other_view_index", "engine")
    values = zip(*(columns[name].to_pylist() for name in named), strict=True)
    pair_ids = pa.array([stable_hash(*value) for value in values], pa.string())
    return pa.table({"pair_id": pair_ids, **columns})
