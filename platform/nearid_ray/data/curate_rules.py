"""The rules of curation: which identities and views stay, and which split each identity gets. No file is read here."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from nearid_ray.data.duplicates import HashedViews, find_duplicates, to_drop
from nearid_ray.errors import UsageError
from nearid_ray.identifiers import seed_of, stable_hash
from schemas import SPLITS

Size = int | Literal["rest"] | None
KINDS = ("rigid", "deformable", "unknown")

_DRAW_ORDER = ("test", "val", "train")
"""The small splits first, so that the size of train does not move them."""


@dataclass(frozen=True, kw_only=True)
class CurateSettings:
    """Which identities and views stay, and how they are split."""

    kinds: tuple[str, ...] = ("rigid",)
    """Kinds of object that stay: rigid, deformable, unknown."""
    min_views: int = 2
    """Identities with fewer good views are left out; 1 or more."""
    min_aesthetics: float | None = None
    """Views scored lower are left out, as SynCD's loader does; none keeps all."""
    min_dino: float | None = None
    """Views stay that are in a pair whose DINO similarity is between this and max_dino, as SynCD's loader does; none
    keeps all."""
    max_dino: float = 0.98
    """Pairs more similar than this show nothing new; 0 to 1."""
    train: Size = None
    """Identities of the train split: a number, or `rest` (or -1) for all that the others leave. Without any of train,
    val and test the splits of the input stay; with some of them train is the rest, unless given."""
    val: Size = None
    """Identities of the val split: a number or `rest`; 0 where another split's size is given and this one is not."""
    test: Size = None
    """Identities of the test split: a number or `rest`; 0 where another split's size is given and this one is not."""
    split_seed: int = 0
    """Seed of the draw; an identity's place in it follows from this and its id alone."""
    near_duplicates: Literal["report", "drop", "off"] = "report"
    """Views of two identities that look the same: report them, drop all but one of the identities, or do not look."""
    hash_distance: int = 6
    """Perceptual hashes that differ in this many of 64 bits, or fewer, are near-duplicates; 0 to 16."""

    def __post_init__(self) -> None:
        if not self.kinds or set(self.kinds) - set(KINDS):
            raise ValueError(f"kinds is {self.kinds}; expected some of {', '.join(KINDS)}")
        if self.min_views < 1:
            raise ValueError(f"min_views is {self.min_views}; expected 1 or more")
        if not 0 <= self.max_dino <= 1:
            raise ValueError(f"max_dino is {self.max_dino}; expected 0 to 1")
        if self.min_dino is not None and not self.min_dino <= self.max_dino:
            raise ValueError(f"min_dino is {self.min_dino}, above max_dino {self.max_dino}; no pair can be between")
        for split in SPLITS:
            size = getattr(self, split)
            if size is not None and size != "rest" and size < -1:
                raise ValueError(f"{split} is {size}; expected 0 or more identities, or rest")
        resting = [split for split in SPLITS if getattr(self, split) in ("rest", -1)]
        if len(resting) > 1:
            raise ValueError(f"{' and '.join(resting)} are both the rest; expected one split at most")
        if self.near_duplicates not in ("report", "drop", "off"):
            raise ValueError(f"near_duplicates is {self.near_duplicates!r}; expected report, drop or off")
        if not 0 <= self.hash_distance <= 16:
            raise ValueError(f"hash_distance is {self.hash_distance}; expected 0 to 16 bits")

    def sizes(self) -> dict[str, int | None] | None:
        """Identities a split, None for the rest; None where the input's splits stay."""
        given: dict[str, Size] = {split: getattr(self, split) for split in SPLITS}
        if all(size is None for size in given.values()):
            return None
        if given["train"] is None:
            given["train"] = 0 if "rest" in given.values() or -1 in given.values() else "rest"
        return {split: None if size in ("rest", -1) else int(size or 0) for split, size in given.items()}

    def content(self) -> dict[str, Any]:
        """What decides which rows there are and what they hold."""
        return {
            "kinds": sorted(self.kinds),
            "min_views": self.min_views,
            "min_aesthetics": self.min_aesthetics,
            "dino": None if self.min_dino is None else [self.min_dino, self.max_dino],
            "sizes": self.sizes(),
            "split_seed": self.split_seed,
            "dropped_hash_distance": self.hash_distance if self.near_duplicates == "drop" else None,
        }


@dataclass(frozen=True)
class LightView:
    """What curation needs of a view."""

    view_id: str
    perceptual_hash: str
    provenance: str
    error: str


@dataclass(frozen=True)
class LightIdentity:
    """What curation needs of an identity, and where it lies."""

    identity_id: str
    description: str
    object_kind: str
    objaverse_id: str
    split: str
    provenance: str
    error: str
    views: tuple[LightView, ...]
    shard: str
    row: int

    def fingerprint(self) -> str:
        """Changes with the pictures and with what is wrong with them."""
        return stable_hash(*(f"{view.view_id}/{bool(view.error)}" for view in self.views))


@dataclass(frozen=True)
class Curated:
    """An identity that stays: with which of its views, in which split."""

    identity: LightIdentity
    view_indices: tuple[int, ...]
    split: str


Rejected = dict[str, str]


def choose(
    identities: Iterable[LightIdentity], settings: CurateSettings, before: Mapping[str, str]
) -> tuple[list[Curated], list[Rejected]]:
    """(what stays, by identity_id; every identity and view that does not, with its reason).

    `before` maps identities that were written earlier to their splits: they keep them, and go before others where one
    of several has to be chosen. Otherwise nothing depends on the order in which the identities come.
    """
    rejected: list[Rejected] = []
    good: list[tuple[LightIdentity, tuple[int, ...]]] = []
    order = sorted(identities, key=lambda identity: (identity.identity_id not in before, identity.identity_id))
    for identity in order:
        kept, records = _views_that_stay(identity, settings)
        rejected += records
        if kept:
            good.append((identity, kept))
    good, doubled = _one_an_object(good)
    rejected += doubled
    if settings.near_duplicates == "drop":
        good, doubled = _without_near_duplicates(good, settings.hash_distance)
        rejected += doubled
    splits = _splits(good, settings, before, rejected)
    rejected += [
        _rejected(identity, "not-drawn", "the splits have the sizes asked for without it")
        for identity, _ in good
        if identity.identity_id not in splits
    ]
    curated = [Curated(i, views, splits[i.identity_id]) for i, views in good if i.identity_id in splits]
    return sorted(curated, key=lambda one: one.identity.identity_id), sorted(rejected, key=lambda r: r["record_id"])


def draw_splits(
    identity_ids: Iterable[str], sizes: Mapping[str, int | None], seed: int, before: Mapping[str, str]
) -> dict[str, str]:
    """identity -> split; who is not drawn is not there.

    Identities stand in the order of hash(seed, identity_id); test takes the first ones, then val, then train; the split
    whose size is None takes what is left. So the order in which identities come is of no matter, and n more of them
    move at most n from each split to the next. Those in `before` keep their split and count for its size.

    Raises UsageError, with the arithmetic, where there are too few.
    """
    ranked = sorted(set(identity_ids) - set(before), key=lambda name: (seed_of("split", seed, name), name))
    have = Counter(before.values())
    missing = {split: max(0, size - have[split]) for split, size in sizes.items() if size is not None}
    if sum(missing.values()) > len(ranked):
        asked = " + ".join(f"{split} {size}" for split, size in sizes.items() if size is not None)
        total = sum(size for size in sizes.values() if size is not None)
        raise UsageError(f"{asked} = {total} identities are asked for; {len(ranked) + len(before)} are there")
    splits, start = {}, 0
    for split in _DRAW_ORDER:
        for name in ranked[start : start + missing.get(split, 0)]:
            splits[name] = split
        start += missing.get(split, 0)
    rest = next((split for split, size in sizes.items() if size is None), None)
    if rest is not None:
        splits |= dict.fromkeys(ranked[start:], rest)
    return splits | dict(before)


def _views_that_stay(identity: LightIdentity, settings: CurateSettings) -> tuple[tuple[int, ...], list[Rejected]]:
    kind = identity.object_kind or "unknown"
    if kind not in settings.kinds:
        return (), [_rejected(identity, "kind", f"{kind}; asked for: {', '.join(settings.kinds)}")]
    broken = sum(bool(view.error) for view in identity.views)
    # The row's error repeats those of its views; what else it says is about the identity as a whole.
    if identity.error and not (broken and identity.error.startswith(f"{broken} of {len(identity.views)} views: ")):
        return (), [_rejected(identity, "identity-error", identity.error)]
    records, kept, seen = [], [], set()
    for index, view in enumerate(identity.views):
        if view.error:
            records.append(_rejected(identity, "view-error", view.error, index))
        elif view.view_id in seen:
            records.append(_rejected(identity, "view-twice", "an earlier view has the same pixels", index))
        else:
            seen.add(view.view_id)
            kept.append(index)
    kept, low = _by_aesthetics(identity, kept, settings)
    kept, apart = _by_dino(identity, kept, settings)
    records += low + apart
    if len(kept) < settings.min_views:
        said = f"{len(kept)} of {len(identity.views)} views are good; at least {settings.min_views} are asked for"
        return (), [*records, _rejected(identity, "too-few-views", said)]
    return tuple(kept), records


def _by_aesthetics(
    identity: LightIdentity, indices: list[int], settings: CurateSettings
) -> tuple[list[int], list[Rejected]]:
    if settings.min_aesthetics is None:
        return indices, []
    kept, records = [], []
    for index in indices:
        score = _parsed(identity.views[index].provenance).get("aesthetics")
        if isinstance(score, int | float) and score >= settings.min_aesthetics:
            kept.append(index)
        else:
            said = f"aesthetics {score}; asked for: at least {settings.min_aesthetics}"
            records.append(_rejected(identity, "view-aesthetics", said, index))
    return kept, records


def _by_dino(identity: LightIdentity, indices: list[int], settings: CurateSettings) -> tuple[list[int], list[Rejected]]:
    """The scores are the upper triangle of a matrix over the identity's views; both views of a pair must be good."""
    if settings.min_dino is None:
        return indices, []
    scores = _parsed(identity.provenance).get("dino_scores")
    paired: set[int] = set()
    for place, first in enumerate(indices):
        for second in indices[place + 1 :]:
            try:
                score = float(scores[first][second])  # type: ignore[index]
            except (TypeError, ValueError, IndexError, KeyError):
                continue
            if settings.min_dino <= score <= settings.max_dino:
                paired |= {first, second}
    said = f"no other good view has a DINO similarity from {settings.min_dino} to {settings.max_dino}"
    lost = [_rejected(identity, "view-dino", said, index) for index in indices if index not in paired]
    return [index for index in indices if index in paired], lost


def _one_an_object(
    good: Sequence[tuple[LightIdentity, tuple[int, ...]]],
) -> tuple[list[tuple[LightIdentity, tuple[int, ...]]], list[Rejected]]:
    """One identity a (description, objaverse_id). Without an objaverse_id a text alone does not make an object."""
    first: dict[tuple[str, str], str] = {}
    kept, records = [], []
    for identity, views in good:
        key = (identity.description, identity.objaverse_id)
        if identity.objaverse_id and key in first:
            said = f"{first[key]} has the same description and objaverse_id {identity.objaverse_id}"
            records.append(_rejected(identity, "same-object", said))
        else:
            first.setdefault(key, identity.identity_id)
            kept.append((identity, views))
    return kept, records


def _without_near_duplicates(
    good: Sequence[tuple[LightIdentity, tuple[int, ...]]], radius: int
) -> tuple[list[tuple[LightIdentity, tuple[int, ...]]], list[Rejected]]:
    pairs, complete = find_duplicates(hashed_views((i, views, "") for i, views in good), radius)
    if not complete:
        raise UsageError(
            f"more than {pairs.num_rows:,} pairs of views are near-duplicates at hash_distance {radius}: their hashes "
            "do not tell these pictures apart. Lower --hash-distance, or use --near-duplicates report"
        )
    dropped = to_drop(pairs, [identity.identity_id for identity, _ in good])
    records = [
        _rejected(i, "near-duplicate", f"a view looks like one of {dropped[i.identity_id]}")
        for i, _ in good
        if i.identity_id in dropped
    ]
    return [(i, views) for i, views in good if i.identity_id not in dropped], records


def hashed_views(identities: Iterable[tuple[LightIdentity, Sequence[int], str]]) -> HashedViews:
    """The hashes of the given views, with the split that stands beside each identity."""
    return HashedViews.of(
        [
            (identity.views[index].perceptual_hash, identity.identity_id, index, split)
            for identity, indices, split in identities
            for index in indices
        ]
    )


def _splits(
    good: Sequence[tuple[LightIdentity, tuple[int, ...]]],
    settings: CurateSettings,
    before: Mapping[str, str],
    rejected: Sequence[Rejected],
) -> dict[str, str]:
    sizes = settings.sizes()
    if sizes is None:
        return {identity.identity_id: before.get(identity.identity_id, identity.split) for identity, _ in good}
    try:
        return draw_splits((identity.identity_id for identity, _ in good), sizes, settings.split_seed, before)
    except UsageError as error:
        reasons = Counter(r["reason"] for r in rejected if r["record_id"] == r["identity_id"])
        lost = ", ".join(f"{reason} {count}" for reason, count in reasons.most_common()) or "none"
        total = len(good) + sum(reasons.values())
        raise UsageError(
            f"{error}: {len(good)} of the input's {total} identities stay (left out: {lost}). Ask for fewer, or for "
            "the rest in one split"
        ) from error


def _rejected(identity: LightIdentity, reason: str, detail: str, view_index: int | None = None) -> Rejected:
    name = identity.identity_id
    record = name if view_index is None else f"{name}/{view_index}"
    return {"record_id": record, "identity_id": name, "reason": reason, "detail": detail}


def _parsed(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text or "{}")
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
