"""The work list of synthesis: one row a (view, engine), with everything that decides its pixels."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from nearid_ray.data.store import Dataset, read_parquet
from nearid_ray.errors import UsageError
from nearid_ray.identifiers import seed_of, settings_digest, stable_hash
from nearid_ray.synthesis.catalog import Recipe
from nearid_ray.synthesis.donors import choose_donor
from nearid_ray.synthesis.engine import Engine

_VIEW = "views.list.element."
_PLAN_COLUMNS = [
    "identity_id", "category", "description", "split", "source",
    f"{_VIEW}view_id", f"{_VIEW}error", f"{_VIEW}mask_area", f"{_VIEW}mask_touches_border",
    f"{_VIEW}size_px",
]  # fmt: skip

WORK_SCHEMA = pa.schema(
    [
        *(pa.field(name, pa.string()) for name in ("row_id", "identity_id")),
        pa.field("view_index", pa.int32()),
        *(pa.field(name, pa.string()) for name in ("view_id", "engine", "settings_hash", "recipe", "input_shard")),
        pa.field("input_row", pa.int32()),
        pa.field("view_px", pa.int32()),
        pa.field("seed", pa.int64()),
        *(pa.field(name, pa.string()) for name in ("prompt", "negative_prompt", "donor_identity_id")),
        pa.field("donor_view_index", pa.int32()),
        *(pa.field(name, pa.string()) for name in ("donor_view_id", "donor_shard")),
        pa.field("donor_row", pa.int32()),
        *(pa.field(name, pa.string()) for name in ("category", "split", "source")),
    ]
)


@dataclass(frozen=True, kw_only=True)
class ViewPlace:
    """A usable view and where it lies."""

    identity_id: str
    view_index: int
    view_id: str
    category: str
    description: str
    split: str
    source: str
    size_px: int
    mask_area: float | None
    """Share of the view that its mask covers; None where there is no mask."""
    mask_touches_border: bool
    error: str
    shard: str
    row: int


def list_views(tuples: Dataset) -> Iterator[ViewPlace]:
    """Every view of a tuples dataset, without reading a picture."""
    for shard in tuples.shards():
        identities = read_parquet(tuples.shard(shard), _PLAN_COLUMNS).to_pylist()
        for row, identity in enumerate(identities):
            for index, view in enumerate(identity["views"]):
                yield ViewPlace(
                    identity_id=identity["identity_id"],
                    view_index=index,
                    view_id=view["view_id"],
                    category=identity["category"],
                    description=identity["description"],
                    split=identity["split"],
                    source=identity["source"],
                    size_px=view["size_px"],
                    mask_area=view["mask_area"],
                    mask_touches_border=bool(view["mask_touches_border"]),
                    error=view["error"],
                    shard=shard,
                    row=row,
                )


def engine_hash(engine: Engine, feather_px: float) -> str:
    """Name of all settings of an engine that change pixels."""
    values = {"family": engine.family, "revision": engine.revision, "feather_px": feather_px}
    if engine.group == "control":  # else one of its base's strength would be the same rows
        values["control"] = True
    return settings_digest(values | {"settings": engine.settings})


def plan_synthesis(
    views: Sequence[ViewPlace],
    engines: Sequence[tuple[Recipe, Engine]],
    *,
    run_seed: int,
    feather_px: float,
    eval_only_groups: Sequence[str],
    splits: Sequence[str],
    embeddings: dict[str, np.ndarray] | None = None,
) -> tuple[pa.Table, list[dict[str, str]]]:
    """(work list, what is left out). Ordered by engine, then by where the views lie.

    Left out, with reason: views with an error, views without a mask, and for engines that need a donor, identities
    for which there is none. `embeddings` maps identity_id to a vector and lets donors be the nearest ones. Controls are
    for val and test alone.
    """
    usable, rejected = _usable(views)
    held_out = {*eval_only_groups, "control"}
    donors = _Donors(usable, embeddings) if any(engine.needs_donor for _, engine in engines) else None
    rows: list[dict[str, Any]] = []
    for recipe, engine in engines:
        hash_ = engine_hash(engine, feather_px)
        for view in usable:
            if view.split not in splits or (engine.group in held_out and view.split == "train"):
                continue
            donor = None
            if engine.needs_donor and donors is not None:
                donor = donors.for_view(view)
                if donor is None:
                    rejected.append(_no_donor(view, engine))
                    continue
            row_id = stable_hash(view.identity_id, view.view_id, hash_, run_seed)
            rows.append(_row(view, engine, recipe, hash_, row_id, donor))
    return pa.Table.from_pylist(rows, schema=WORK_SCHEMA), rejected


def cut_into_batches(work: pa.Table, *, rows_per_shard: Mapping[str, int], batch: Mapping[str, int]) -> pa.Table:
    """`work` with the columns `piece`, which numbers the shards, and `batch`, which numbers the rows of a shard that
    share a pass of the engine: rows of one engine and, in a batch, of one size.

    `rows_per_shard` and `batch` are by engine. Batches belong to the plan: the last bits of a row depend on them.
    """
    pieces, batches = [], []
    piece, number, filled, row_in_shard = -1, 0, 0, 0
    before: tuple[str, str, int] | None = None
    columns = (work[name].to_pylist() for name in ("engine", "settings_hash", "view_px"))
    for engine, hash_, size_px in zip(*columns, strict=True):
        if before is None or before[:2] != (engine, hash_) or row_in_shard == rows_per_shard[engine]:
            piece, number, filled, row_in_shard = piece + 1, 0, 0, 0
        elif before[2] != size_px or filled == batch[engine]:
            number, filled = number + 1, 0
        pieces.append(piece)
        batches.append(number)
        filled, row_in_shard, before = filled + 1, row_in_shard + 1, (engine, hash_, size_px)
    numbered = work.append_column("piece", pa.array(pieces, pa.int32()))
    return numbered.append_column("batch", pa.array(batches, pa.int32()))


def _row(
    view: ViewPlace, engine: Engine, recipe: Recipe, hash_: str, row_id: str, donor: ViewPlace | None
) -> dict[str, Any]:
    return {
        "row_id": row_id,
        "identity_id": view.identity_id,
        "view_index": view.view_index,
        "view_id": view.view_id,
        "engine": engine.name,
        "settings_hash": hash_,
        "recipe": recipe.to_text(),
        "input_shard": view.shard,
        "input_row": view.row,
        "view_px": view.size_px,
        "seed": seed_of(row_id, 0),
        "prompt": engine.prompt(view.category, view.description),
        "negative_prompt": engine.negative_prompt,
        "donor_identity_id": donor.identity_id if donor else "",
        "donor_view_index": donor.view_index if donor else -1,
        "donor_view_id": donor.view_id if donor else "",
        "donor_shard": donor.shard if donor else "",
        "donor_row": donor.row if donor else -1,
        "category": view.category,
        "split": view.split,
        "source": view.source,
    }


def _usable(views: Sequence[ViewPlace]) -> tuple[list[ViewPlace], list[dict[str, str]]]:
    usable: list[ViewPlace] = []
    rejected: list[dict[str, str]] = []
    seen: set[tuple[str, str]] = set()
    for view in views:
        record = {"record_id": f"{view.identity_id}/{view.view_index}", "identity_id": view.identity_id}
        if view.error:
            rejected.append(record | {"reason": "view-error", "detail": view.error})
        elif view.mask_area is None:
            rejected.append(record | {"reason": "no-mask", "detail": "the view has no mask to paint into"})
        elif (view.identity_id, view.view_id) in seen:
            rejected.append(record | {"reason": "same-view-twice", "detail": "an earlier view has the same pixels"})
        else:
            seen.add((view.identity_id, view.view_id))
            usable.append(view)
    if not usable and views:
        reasons = sorted({record["reason"] for record in rejected})
        raise UsageError(f"none of the {len(views)} views can be painted ({', '.join(reasons)})")
    return usable, rejected


def _no_donor(view: ViewPlace, engine: Engine) -> dict[str, str]:
    category = view.category or "(none)"
    return {
        "record_id": f"{view.identity_id}/{view.view_index}/{engine.name}",
        "identity_id": view.identity_id,
        "reason": "no-donor",
        "detail": f"no other identity of category {category} in split {view.split}",
    }


class _Donors:
    """Chooses a donor identity of the same category and split, and one of its views."""

    def __init__(self, views: Sequence[ViewPlace], embeddings: dict[str, np.ndarray] | None) -> None:
        self._embeddings = embeddings
        self._views: dict[str, list[ViewPlace]] = {}
        self._members: dict[tuple[str, str], list[str]] = {}
        for view in views:
            if view.identity_id not in self._views:
                self._members.setdefault((view.category, view.split), []).append(view.identity_id)
            self._views.setdefault(view.identity_id, []).append(view)
        self._chosen: dict[str, str | None] = {}

    def for_view(self, view: ViewPlace) -> ViewPlace | None:
        """The donor's view: its views in turn, so that an identity's views get different ones where possible."""
        if view.identity_id not in self._chosen:
            candidates = self._members[view.category, view.split]
            self._chosen[view.identity_id] = choose_donor(view.identity_id, view.category, candidates, self._embeddings)
        donor = self._chosen[view.identity_id]
        if donor is None:
            return None
        views = plausible_donor_views(self._views[donor])
        return views[view.view_index % len(views)]


def plausible_donor_views(views: Sequence[ViewPlace]) -> list[ViewPlace]:
    """The views of one identity whose masks hold its whole object, as far as can be told without looking.

    Masks found automatically are sometimes a part of the object, or more than it. Kept are those within a factor of two
    of the identity's median area, of these the ones that do not reach the border; all, where that leaves none.
    """
    median = float(np.median([view.mask_area or 0.0 for view in views]))
    usual = [view for view in views if median / 2 <= (view.mask_area or 0.0) <= 2 * median]
    whole = [view for view in usual if not view.mask_touches_border]
    return whole or usual or list(views)
