"""What can be said of the masks of a tuples dataset, and a sheet of them to look at."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from nearid_ray.data.images import decode_mask, decode_rgb
from nearid_ray.data.light import iterate
from nearid_ray.data.masks import MaskQuality, mask_suspicion
from nearid_ray.data.sheet import MaskedView, mask_sheet
from nearid_ray.data.store import Dataset, read_rows
from nearid_ray.errors import UsageError
from nearid_ray.identifiers import stable_hash

Order = Literal["suspicious", "random"]

_DOUBTFUL = 2.0
"""A mask as suspicious as one of a quarter or four times the usual area is counted as doubtful."""

_VIEW_COLUMNS = ("view_id", "mask_source", "mask_area", "mask_pieces", "mask_touches_border", "provenance")
_COLUMNS = ["identity_id", *(f"views.{name}" for name in _VIEW_COLUMNS)]


@dataclass(frozen=True, kw_only=True)
class MaskPlace:
    """A view, what its columns say of its mask, and where it lies. `area` is None where there is no mask."""

    identity_id: str
    view_index: int
    view_id: str
    source: str
    area: float | None
    pieces: int
    touches_border: bool
    provenance: str
    shard: str
    row: int

    @property
    def has_picture(self) -> bool:
        return bool(self.view_id)


def list_masks(tuples: Dataset) -> Iterator[MaskPlace]:
    """Every view of a tuples dataset, without reading a picture."""
    for shard, table in iterate(tuples, _COLUMNS):
        for row, identity in enumerate(table.to_pylist()):
            for index, view in enumerate(identity["views"]):
                yield MaskPlace(
                    identity_id=identity["identity_id"],
                    view_index=index,
                    view_id=view["view_id"],
                    source=view["mask_source"],
                    area=view["mask_area"],
                    pieces=view["mask_pieces"] or 0,
                    touches_border=bool(view["mask_touches_border"]),
                    provenance=view["provenance"],
                    shard=shard,
                    row=row,
                )


def mask_facts(views: Iterable[MaskPlace]) -> dict[str, Any]:
    """Counts for a summary: how many views have a mask and where from, how large and how whole the masks are."""
    views = list(views)
    masked = [view for view in views if view.area is not None]
    facts: dict[str, Any] = {
        "views": len(views),
        "views_without_picture": sum(not view.has_picture for view in views),
        "views_without_mask": sum(view.has_picture and view.area is None for view in views),
        "masks_cleaned": sum("mask_cleaned" in json.loads(view.provenance) for view in views),
        "mask_source": dict(sorted(Counter(view.source for view in masked).items())),
    }
    doubtful = sum(score >= _DOUBTFUL for _, score in _suspicions(masked))
    if doubtful:
        facts["masks_doubtful"] = doubtful
    if masked:
        low, middle, high = np.quantile([view.area or 0.0 for view in masked], (0.05, 0.5, 0.95))
        facts["mask_area"] = {"p05": round(low, 3), "median": round(middle, 3), "p95": round(high, 3)}
        pieces = Counter("3 or more" if view.pieces > 2 else str(view.pieces) for view in masked)
        facts["mask_pieces"] = dict(sorted(pieces.items()))
        facts["masks_touching_border"] = sum(view.touches_border for view in masked)
    return facts


def choose_views(views: Sequence[MaskPlace], order: Order, most: int) -> list[MaskPlace]:
    """At most `most` views with a picture: the most suspicious ones first (`masks.mask_suspicion`; views without a mask
    before all), or some drawn by their names, the same ones every time."""
    shown = [view for view in views if view.has_picture]
    if order == "random":
        return sorted(shown, key=lambda view: stable_hash("sheet", view.identity_id, view.view_index))[:most]
    bare = [(view, float("inf")) for view in shown if view.area is None]
    scored = bare + _suspicions([view for view in shown if view.area is not None])
    ordered = sorted(scored, key=lambda pair: (-pair[1], pair[0].identity_id, pair[0].view_index))
    return [view for view, _ in ordered][:most]


def _suspicions(masked: Sequence[MaskPlace]) -> list[tuple[MaskPlace, float]]:
    """How much each mask looks wrong beside those of the same identity, or beside all where it has only two."""
    areas: dict[str, list[float]] = {}
    for view in masked:
        areas.setdefault(view.identity_id, []).append(view.area or 0.0)
    everywhere = float(np.median([area for of_one in areas.values() for area in of_one])) if areas else 0.0
    # Two views do not say which of them is the odd one.
    usual = {name: float(np.median(of_one)) if len(of_one) > 2 else everywhere for name, of_one in areas.items()}
    return [
        (view, mask_suspicion(MaskQuality(view.area or 0.0, view.pieces, view.touches_border), usual[view.identity_id]))
        for view in masked
    ]


def sheet_of(tuples: Dataset, order: Order = "suspicious", most: int = 48) -> np.ndarray:
    """A sheet of views of a dataset with their masks outlined. UsageError where no view has a picture."""
    chosen = choose_views(list(list_masks(tuples)), order, most)
    if not chosen:
        raise UsageError(f"{tuples.location.uri}: no view has a picture")
    rows: dict[tuple[str, int], dict[str, Any]] = {}
    for shard in sorted({view.shard for view in chosen}):
        places = sorted({view.row for view in chosen if view.shard == shard})
        for place, row in zip(places, read_rows(tuples.shard(shard), places, ["views"]).to_pylist(), strict=True):
            rows[shard, place] = row
    return mask_sheet([_shown(view, rows[view.shard, view.row]["views"][view.view_index]) for view in chosen])


def _shown(view: MaskPlace, stored: dict[str, Any]) -> MaskedView:
    mask_HW = decode_mask(stored["mask"]["bytes"]) if stored["mask"] else None
    name = f"{view.identity_id.partition(':')[2]} {view.view_index}"
    return MaskedView(name, decode_rgb(stored["image"]["bytes"]), mask_HW)
