"""A sheet of what the engines made of some views: view, mask, and each engine's distractor with its verdict."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from nearid_ray.data.images import decode_mask, decode_rgb
from nearid_ray.data.light import iterate
from nearid_ray.data.sheet import contact_sheet
from nearid_ray.data.store import Dataset, read_rows
from nearid_ray.errors import UsageError
from nearid_ray.identifiers import stable_hash

MOST_ROWS = 60
_LIGHT = ("identity_id", "view_index", "view_id", "engine")
_SHOWN = ("engine", "image", "verdict", "attempt", "error")


def engine_sheet(
    tuples: Dataset, distractors: Dataset, identities: Sequence[str] = (), *, rows: int = 12, seed: int = 0
) -> np.ndarray:
    """One row an identity as one uint8 (H, W, 3) picture: a view, its mask, and what each engine made of it.

    Shown is the identity's first view that has most distractors. Without `identities`, `rows` of them are drawn by a
    hash, so that nobody has chosen them. Below each distractor stand its engine, and its verdict or error.

    Raises:
        UsageError: an identity has no distractors, or there are too many rows.
    """
    if not 1 <= (len(identities) or rows) <= MOST_ROWS:
        raise UsageError(f"{len(identities) or rows} rows are asked for; expected 1 to {MOST_ROWS} for a sheet")
    made = _by_view(distractors)
    known = sorted({identity for identity, _, _ in made})
    unknown = sorted(set(identities) - set(known))
    if unknown:
        raise UsageError(
            f"{distractors.location.uri} has no distractors of {', '.join(unknown)}; it has {len(known)} identities, "
            f"e.g. {', '.join(known[:3])}"
        )
    drawn = sorted(known, key=lambda name: stable_hash("sheet", seed, name))[:rows]
    chosen = [_fullest_view(made, name) for name in (identities or drawn)]
    engines = list(dict.fromkeys(engine for places in made.values() for engine in places))
    views = _views(tuples, {view_id for _, _, view_id in chosen})
    pictures, captions = [], []
    for identity, index, view_id in chosen:
        view = views.get(view_id)
        row_pictures: list[np.ndarray | None] = [None, None]
        row_captions = [f"{identity}\nview {index}", "its view is not in the tuples"]
        if view is not None:
            row_pictures = [_decoded(view["image"], decode_rgb), _decoded(view["mask"], decode_mask)]
            row_captions[1] = f"mask {view['mask_area'] or 0:.1%}\n{view['mask_source']}"
        places = made[identity, index, view_id]
        for engine in engines:
            picture, caption = _shown(distractors, engine, places.get(engine))
            row_pictures.append(picture)
            row_captions.append(caption)
        pictures.append(row_pictures)
        captions.append(row_captions)
    return contact_sheet(pictures, captions)


_View = tuple[str, int, str]


def _by_view(distractors: Dataset) -> dict[_View, dict[str, tuple[str, int]]]:
    """(identity, view index, view id) -> engine -> (shard, row), in the order of the shards."""
    made: dict[_View, dict[str, tuple[str, int]]] = {}
    for shard, table in iterate(distractors, list(_LIGHT)):
        for row, entry in enumerate(table.to_pylist()):
            key = (entry["identity_id"], entry["view_index"], entry["view_id"])
            made.setdefault(key, {})[entry["engine"]] = (shard, row)
    return made


def _fullest_view(made: dict[_View, dict[str, tuple[str, int]]], identity: str) -> _View:
    own = [key for key in made if key[0] == identity]
    return min(own, key=lambda key: (-len(made[key]), key[1]))


def _views(tuples: Dataset, wanted: set[str]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for shard, table in iterate(tuples, ["views.view_id"]):
        for row, views in enumerate(table["views"].to_pylist()):
            if wanted & {view["view_id"] for view in views or ()}:
                whole = read_rows(tuples.shard(shard), [row], ["views"])["views"].to_pylist()[0]
                found |= {view["view_id"]: view for view in whole if view["view_id"] in wanted}
    return found


def _shown(distractors: Dataset, engine: str, place: tuple[str, int] | None) -> tuple[np.ndarray | None, str]:
    if place is None:
        return None, f"{engine}\n(none)"
    row = read_rows(distractors.shard(place[0]), [place[1]], list(_SHOWN)).to_pylist()[0]
    tried = f", attempt {row['attempt']}" if row["attempt"] else ""
    return _decoded(row["image"], decode_rgb), f"{engine}\n{row['error'] or row['verdict']}{tried}"


def _decoded(image: dict | None, decode: Any) -> np.ndarray | None:
    try:
        return None if image is None or image["bytes"] is None else decode(image["bytes"])
    except ValueError:
        return None
