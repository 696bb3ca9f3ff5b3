"""Check what datasets say of each other and what a dataset's rows say of each other, from small columns alone.

reference       an identity, view or picture that a row names is in none of the datasets given
split           an identity has another split elsewhere, or in another row
leak            the same picture (by its bytes) stands in two splits
shared-picture  the same picture stands in two identities of one split
near-duplicate  views of different splits look the same by their perceptual hash
not-compared    rows name a dataset that is not among those given
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from nearid_ray.data.duplicates import HashedViews, find_duplicates
from nearid_ray.data.findings import Findings
from nearid_ray.data.light import iterate
from nearid_ray.data.store import Dataset

Place = tuple[str, int]
"""(identity_id, view_index)"""


@dataclass
class Known:
    """What all datasets given say of identities and pictures."""

    split_of: dict[str, tuple[str, str]] = field(default_factory=dict)
    """identity -> (split, the dataset that says so)"""
    identities: set[str] = field(default_factory=set)
    views: dict[str, set[Place]] = field(default_factory=dict)
    """view_id -> its places"""
    distractors: dict[str, Place] = field(default_factory=dict)
    tables: set[str] = field(default_factory=set)


def check_between(datasets: Sequence[tuple[Dataset, str, Findings]], hash_distance: int) -> None:
    """Add what is wrong between the given (dataset, table, findings) to the findings; for `readable` ones alone.

    Tuples come first, then distractors, whatever the order given: what others refer to is then known. Curation draws
    splits anew: those of tuples given beside their curated part are not compared.
    """
    known = Known()
    contents = [(dataset.settings() or {}).get("content", {}) for dataset, table, _ in datasets if table == "tuples"]
    redrawn = {content["tuples"] for content in contents if {"tuples", "split_seed"} <= content.keys()}
    rank = {"tuples": 0, "distractors": 1}
    for dataset, table, found in sorted(datasets, key=lambda entry: rank.get(entry[1], 2)):
        if table == "tuples":
            _tuples(dataset, found, known, hash_distance, dataset.digest() in redrawn)
        elif table == "distractors":
            _distractors(dataset, found, known)
        elif table in _OTHERS:
            _others(dataset, table, found, known)
        known.tables.add(table)


def _tuples(dataset: Dataset, found: Findings, known: Known, hash_distance: int, redrawn: bool) -> None:
    hashed: list[tuple[str, str, int, str]] = []
    first: dict[str, tuple[str, str]] = {}
    for row in _rows(dataset, ["identity_id", "split", "views.view_id", "views.perceptual_hash"]):
        identity, split = row["identity_id"], row["split"]
        known.identities.add(identity)
        if not redrawn:
            _same_split(dataset, found, known, identity, split)
        for index, view in enumerate(row["views"] or ()):
            hashed.append((view["perceptual_hash"], identity, index, split))
            if not view["view_id"]:
                continue
            known.views.setdefault(view["view_id"], set()).add((identity, index))
            other, other_split = first.setdefault(view["view_id"], (identity, split))
            if other_split != split:
                found.add("leak", f"{identity}/{index} ({split}) is the same picture as one of {other} ({other_split})")
            elif other != identity:
                found.add("shared-picture", f"{identity}/{index} is the same picture as one of {other}")
    pairs, complete = find_duplicates(HashedViews.of(hashed), hash_distance)
    for pair in pairs.filter(pairs["across_splits"]).to_pylist():
        sides = [f"{pair[f'{s}_identity_id']}/{pair[f'{s}_view_index']} ({pair[f'{s}_split']})" for s in _SIDES]
        found.add("near-duplicate", f"{' and '.join(sides)} differ in {pair['distance']} of 64 bits")
    if not complete:
        found.add("near-duplicate", "and more: the search was ended")


_SIDES = ("first", "second")


def _distractors(dataset: Dataset, found: Findings, known: Known) -> None:
    names = ["distractor_id", "identity_id", "view_index", "view_id", "split"]
    compared = _is_known("tuples", found, known)
    for row in _rows(dataset, names):
        where, place = row["distractor_id"], (row["identity_id"], row["view_index"])
        known.distractors[where] = place
        if not compared:
            continue
        _same_split(dataset, found, known, row["identity_id"], row["split"])
        if row["identity_id"] not in known.identities:
            found.add("reference", f"{where}: there is no identity {row['identity_id']}")
        elif row["view_id"] not in known.views:
            found.add("reference", f"{where}: there is no view {row['view_id']}")
        elif place not in known.views[row["view_id"]]:
            found.add("reference", f"{where}: view {row['view_id']} is not at {place[0]}/{place[1]}")


_OTHERS = ("generated", "ratings", "tokens_index", "embeddings", "similarities", "margins")


def _others(dataset: Dataset, table: str, found: Findings, known: Known) -> None:
    pictures = table in ("tokens_index", "embeddings")
    names = ["identity_id"]
    names += ["split"] if table not in ("generated", "ratings") else []
    names += ["image_id", "role", "view_index"] if pictures else []
    names += ["other_identity_id"] if table == "similarities" else []
    if not _is_known("tuples", found, known):
        return
    seen: set[tuple[Any, ...]] = set()
    with_distractors: bool | None = None
    for row in _rows(dataset, names):
        key = tuple(row.values())
        if key in seen:
            continue
        seen.add(key)
        for name in {row["identity_id"], row.get("other_identity_id", row["identity_id"])} - known.identities:
            found.add("reference", f"there is no identity {name}")
        if "split" in row:
            _same_split(dataset, found, known, row["identity_id"], row["split"])
        if not pictures:
            continue
        place = (row["identity_id"], row["view_index"])
        if row["role"] == "view":
            if place not in known.views.get(row["image_id"], ()):
                found.add("reference", f"there is no view {row['image_id']} at {place[0]}/{place[1]}")
            continue
        if with_distractors is None:
            with_distractors = _is_known("distractors", found, known)
        if with_distractors and known.distractors.get(row["image_id"]) != place:
            found.add("reference", f"there is no distractor {row['image_id']} of {place[0]}/{place[1]}")


def _is_known(table: str, found: Findings, known: Known) -> bool:
    if table in known.tables:
        return True
    found.add("not-compared", f"no {table} were given to compare with")
    return False


def _same_split(dataset: Dataset, found: Findings, known: Known, identity: str, split: str) -> None:
    other, where = known.split_of.setdefault(identity, (split, dataset.location.uri))
    if other != split:
        there = "an earlier row" if where == dataset.location.uri else where
        found.add("split", f"{identity} is {split} here, {other} in {there}")


def _rows(dataset: Dataset, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    for _, table in iterate(dataset, names):
        yield from table.to_pylist()


def readable(found: Findings) -> bool:
    """Whether a dataset's small columns can be read: its shards are whole and have the contract's columns."""
    return not found.counts["unreadable"] and not found.counts["columns"]
