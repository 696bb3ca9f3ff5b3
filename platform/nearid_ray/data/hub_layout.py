"""NearID's hub layout as plans: which identity becomes which row, and which distractor which cell of an engine's table.

Planned from the small columns alone; no picture is read here.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow.compute as pc

from nearid_ray.data.light import iterate
from nearid_ray.data.store import Dataset
from nearid_ray.errors import UsageError
from nearid_ray.identifiers import stable_hash

SLOTS = (1, 2, 3)
"""The layout has three views an identity."""

_TUPLES = ("identity_id", "category", "description", "objaverse_id", "split", "provenance", "views.view_id",
           "views.provenance", "views.prompt", "views.error", "views.mask_area", "views.size_px")  # fmt: skip
_DISTRACTORS = ("distractor_id", "identity_id", "view_index", "view_id", "engine", "control", "verdict", "error")
_ENGINE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class HubRow:
    """One identity: a row of the positives' table and of every engine's."""

    identity_id: str
    id: int
    split: str
    texts: dict[str, str]
    quality: Any
    slots: dict[int, int]
    """Slot -> view_index, of the views that have a picture."""
    view_ids: dict[int, str]
    """Slot -> view_id."""
    prompts: dict[int, str]
    has_mask: bool
    size_px: int
    shard: str
    row: int


@dataclass(frozen=True, kw_only=True)
class EngineTable:
    """One engine's distractors: for each of the `HubRow`s, slot -> (dataset, shard, row) of the picture."""

    engine: str
    places: list[dict[int, tuple[int, str, int]]]
    fingerprint: str

    @property
    def distractors(self) -> int:
        """How many there are."""
        return sum(map(len, self.places))


def plan_rows(tuples: Dataset, *, cut_views: bool) -> tuple[list[HubRow], int]:
    """(the rows in the order of the dataset, how many identities have no picture and are left out).

    A view's slot is the one it was imported from, else its place. Raises UsageError where an identity has a fourth
    view and `cut_views` is not set, and where no identity is left.
    """
    found: list[dict[str, Any]] = []
    larger: list[str] = []
    for shard, table in iterate(tuples, _TUPLES):
        for row, identity in enumerate(table.to_pylist()):
            views = dict(zip(_slots(identity["views"]), enumerate(identity["views"]), strict=True))
            larger += [identity["identity_id"]] if any(slot not in SLOTS for slot in views) else []
            usable = {s: view for s, view in sorted(views.items()) if s in SLOTS and not view[1]["error"]}
            found.append({"identity": identity, "views": usable, "shard": shard, "row": row})
    if larger and not cut_views:
        raise UsageError(
            f"{len(larger)} identity(ies) have more than {len(SLOTS)} views: {_shown(larger)}; the layout has "
            f"{len(SLOTS)}. --cut-views exports the first {len(SLOTS)}"
        )
    kept = [entry for entry in found if entry["views"]]
    if not kept:
        raise UsageError(f"{tuples.location.uri}: no identity has a view without an error; nothing to export")
    ids = _ids([entry["identity"]["identity_id"] for entry in kept])
    return [_hub_row(entry, number) for entry, number in zip(kept, ids, strict=True)], len(found) - len(kept)


def plan_engines(
    datasets: Sequence[Dataset], rows: Sequence[HubRow], *, all_verdicts: bool
) -> tuple[list[EngineTable], Counter[str]]:
    """(a table an engine by name, how many distractors are left out by reason).

    Left out are distractors with an error, with a verdict other than `accepted` (unless `all_verdicts`), of views that
    are not exported, and rows that show the same object. Raises UsageError where an engine has two distractors of one
    view, for engines whose name cannot be a folder's, and where no distractor belongs to the rows.
    """
    where = {
        (row.identity_id, view_index): (number, slot)
        for number, row in enumerate(rows)
        for slot, view_index in row.slots.items()
    }
    found: dict[str, list[dict[int, tuple[int, str, int]]]] = {}
    names: dict[str, dict[tuple[int, int], str]] = {}
    left_out: Counter[str] = Counter()
    double: list[str] = []
    for number, dataset in enumerate(datasets):
        for shard, row, entry in _distractors(dataset):
            reason = "" if not entry["error"] else "error"
            if not reason and entry["verdict"] != "accepted" and not all_verdicts:
                reason = f"verdict {entry['verdict']}"
            if not reason and entry["control"]:
                reason = "it shows the same object"
            place = where.get((entry["identity_id"], entry["view_index"]))
            if not reason and (place is None or rows[place[0]].view_ids[place[1]] != entry["view_id"]):
                reason = "its view is not exported"
            if reason or place is None:
                left_out[reason] += 1
                continue
            engine = entry["engine"]
            places = found.setdefault(engine, [{} for _ in rows])
            if place[1] in places[place[0]]:
                double.append(f"{entry['identity_id']} view {entry['view_index']} by {engine}")
            places[place[0]][place[1]] = (number, shard, row)
            names.setdefault(engine, {})[place] = entry["distractor_id"]
    if double:
        raise UsageError(
            f"{len(double)} view(s) have two distractors of one engine: {_shown(double)}; the layout has one. Give "
            "datasets of one run each"
        )
    if datasets and not found:
        reasons = ", ".join(f"{reason}: {count}" for reason, count in left_out.items()) or "there are none"
        raise UsageError(f"no distractor belongs to the exported views ({reasons}); give those of the same tuples")
    wrong = [engine for engine in found if not _ENGINE.fullmatch(engine)]
    if wrong:
        raise UsageError(f"engine(s) {_shown(wrong)} cannot name a folder; expected letters, digits, - _ and .")
    tables = [
        EngineTable(engine=engine, places=found[engine], fingerprint=_fingerprint(names[engine]))
        for engine in sorted(found)
    ]
    return tables, left_out


def rows_fingerprint(rows: Sequence[HubRow], *parts: str) -> str:
    """Changes with what the rows are, and with `parts`."""
    said = (f"{r.identity_id} {r.id} {r.split} {sorted(r.view_ids.items())} {sorted(r.texts.items())}" for r in rows)
    return stable_hash(*parts, *said)


def _slots(views: Sequence[dict[str, Any]]) -> list[int]:
    """The slots that the views were imported from, or their places where not all say one."""
    said = [json.loads(view["provenance"]).get("slot") for view in views]
    if all(type(slot) is int and slot >= 1 for slot in said) and len(set(said)) == len(said):
        return said
    return list(range(1, len(views) + 1))


def _ids(identity_ids: Sequence[str]) -> list[int]:
    """The hub's whole-numbered ids: the identities' own names where these are such, else the row numbers."""
    names = [identity_id.partition(":")[2] for identity_id in identity_ids]
    own = all(re.fullmatch(r"0|[1-9][0-9]{0,17}", name) for name in names) and len(set(names)) == len(names)
    return [int(name) for name in names] if own else list(range(len(names)))


def _hub_row(entry: dict[str, Any], number: int) -> HubRow:
    identity, views = entry["identity"], entry["views"]
    return HubRow(
        identity_id=identity["identity_id"],
        id=number,
        split=identity["split"],
        texts={
            "category": identity["category"],
            "category_description": identity["description"],
            "objaverse_id": identity["objaverse_id"],
        },
        quality=json.loads(identity["provenance"]).get("quality"),
        slots={slot: index for slot, (index, _) in views.items()},
        view_ids={slot: view["view_id"] for slot, (_, view) in views.items()},
        prompts={slot: view["prompt"] for slot, (_, view) in views.items()},
        has_mask=any(view["mask_area"] is not None for _, view in views.values()),
        size_px=max(view["size_px"] for _, view in views.values()),
        shard=entry["shard"],
        row=entry["row"],
    )


def _distractors(dataset: Dataset) -> Iterator[tuple[str, int, dict[str, Any]]]:
    for shard, table in iterate(dataset, _DISTRACTORS):
        # One text for all rows of an engine: there are 316,505 rows in NearID.
        engines = {text: text for text in pc.unique(table["engine"]).to_pylist()}
        for row, entry in enumerate(table.to_pylist()):
            yield shard, row, entry | {"engine": engines[entry["engine"]]}


def _fingerprint(names: dict[tuple[int, int], str]) -> str:
    return stable_hash(*(f"{row} {slot} {name}" for (row, slot), name in sorted(names.items())))


def _shown(values: Sequence[str]) -> str:
    more = f" and {len(values) - _SHOWN} more" if len(values) > _SHOWN else ""
    return ", ".join(values[:_SHOWN]) + more
