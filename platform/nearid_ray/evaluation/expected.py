"""What a benchmark should have measured, and what is missing from it.

An engine is expected to have a distractor of every view of the identities of its source, and a scorer a similarity for
every pair. Whatever is missing lowers the coverage of the cells it belongs to; it is named, and never averaged away.

Axes: I identities, E engines, P pairs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from nearid_ray.evaluation.counts import TrialCounts
from nearid_ray.evaluation.frames import listed

NO_DISTRACTOR, NO_SIMILARITY, ONE_VIEW = "no distractor", "no similarity", "one view"
"""Why something is missing: an engine made none of a view; a scorer gave none; there is no second view to compare."""

MISSING_COLUMNS = ("reason", "scorer", "condition", "kind", "engine", "identity_id", "pairs")
"""Columns of `missing`; scorer and condition are empty for what no scorer can help."""

_SHARED_KINDS = ("positive", "distractor", "crossed")
"""Kinds of which every scorer should have the same pairs. Random pairs may be drawn anew."""


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What each engine should have."""

    identities: tuple[str, ...]
    """Those with two views or more."""
    engines: tuple[str, ...]
    trials_IE: NDArray[np.int64]
    """Directed trials."""
    views_E: NDArray[np.int64]
    """Views to paint: of all identities of the engine's sources, those with one view too."""
    sources: dict[str, frozenset[str]]
    """The sources of each engine."""

    def trials(self, engines: Sequence[str]) -> int:
        """Directed trials of these engines together; engines it does not know have none."""
        return int(self.trials_IE[:, self._columns(engines)].sum())

    def views(self, engines: Sequence[str]) -> int:
        """Pairs of a view and its distractor of these engines together."""
        return int(self.views_E[self._columns(engines)].sum())

    def comparisons(self, random_identities: pa.ChunkedArray, engines: Sequence[str]) -> int:
        """Comparisons of distractors with random pairs, given the first identity of each random pair of a scorer."""
        source_P = _source(_strings(random_identities))
        return sum(int(np.isin(source_P, list(self.sources.get(engine, ()))).sum()) for engine in engines)

    def coverage(self, counts: TrialCounts, engines: Sequence[str]) -> float:
        """Valid trials of these engines as a share of the expected ones; nan where none is expected."""
        found = counts.of_engines([engine for engine in engines if engine in counts.engines]).trial_count()
        return share_of(found, self.trials(engines))

    def _columns(self, engines: Sequence[str]) -> list[int]:
        return [self.engines.index(engine) for engine in engines if engine in self.engines]


def share_of(found: int, wanted: int) -> float:
    """found / wanted; nan where nothing was wanted.

    >>> share_of(1, 4), share_of(0, 0)
    (0.25, nan)
    """
    return found / wanted if wanted else float("nan")


def expected_trials(similarities: pa.Table) -> Expected:
    """What the records say there is to measure: two trials for every pair of views that any scorer looked at, at every
    engine that painted any identity of the same source.

    The source is the part of an identity's name before the colon, so that engines which were only given Mind-the-Glitch
    do not lack the identities of NearID.

    >>> rows = [("positive", "a:1", 0, 1, ""), ("positive", "a:2", 0, 1, ""), ("distractor", "a:1", 0, 0, "sdxl-512")]
    >>> names = ("kind", "identity_id", "view_index", "other_view_index", "engine")
    >>> found = expected_trials(pa.table({name: list(column) for name, column in zip(names, zip(*rows))}))
    >>> found.identities, found.engines, found.trials_IE.tolist(), found.views(["sdxl-512"])
    (('a:1', 'a:2'), ('sdxl-512',), [[2], [2]], 4)
    """
    pairs = _distinct(similarities, "positive", ["identity_id", "view_index", "other_view_index"])
    identities, pairs_I = np.unique(_strings(pairs["identity_id"]), return_counts=True)
    painted = _distinct(similarities, "distractor", ["identity_id", "engine"])
    engine_P, source_P = _strings(painted["engine"]), _source(_strings(painted["identity_id"]))
    engines = np.unique(engine_P).tolist()
    sources = {engine: frozenset(source_P[engine_P == engine].tolist()) for engine in engines}
    given_IE = _given(identities, engines, sources)
    view_source = _source(np.array([identity for identity, _ in sorted(_views(similarities))], dtype=str))
    return Expected(
        identities=tuple(identities.tolist()),
        engines=tuple(engines),
        trials_IE=2 * pairs_I[:, None] * given_IE,
        views_E=np.array([int(np.isin(view_source, list(sources[engine])).sum()) for engine in engines], np.int64),
        sources=sources,
    )


def missing(similarities: pa.Table) -> pa.Table:
    """Everything that is missing, one row a reason, scorer, condition, kind, engine and identity; empty at best.

    no distractor: an engine has none of so many views of an identity, which it has of others of the same source.
    no similarity: a scorer gave none (not a number, an error, not asked) of so many pairs, which are in the benchmark.
    one view: an identity that nothing can be compared with.
    """
    views = _views(similarities)
    seen = {identity for identity, _ in views}
    several = set(_strings(_distinct(similarities, "positive", ["identity_id"])["identity_id"]).tolist())
    rows = [(ONE_VIEW, "", "", "", "", identity, 0) for identity in sorted(seen - several)]
    expected = expected_trials(similarities)
    painted = _distinct(similarities, "distractor", ["engine", "identity_id", "other_view_index"])
    there = set(zip(*(painted[name].to_pylist() for name in painted.column_names), strict=True))
    for engine in expected.engines:
        lost: dict[str, int] = {}
        for identity, view in sorted(views):
            if identity.partition(":")[0] in expected.sources[engine] and (engine, identity, view) not in there:
                lost[identity] = lost.get(identity, 0) + 1
        rows += [(NO_DISTRACTOR, "", "", "distractor", engine, identity, count) for identity, count in lost.items()]
    parts = (
        [pa.table(dict(zip(MISSING_COLUMNS, zip(*rows, strict=True), strict=True)), schema=_MISSING)] if rows else []
    )
    return pa.concat_tables([_MISSING.empty_table(), *parts, *_without_similarity(similarities)])


def constant_scorers(similarities: pa.Table) -> list[tuple[str, str]]:
    """(scorer, condition) of those that say the same of all of several pairs: no success, and correlations of 0."""
    keys = ["scorer", "condition"]
    spread = similarities.group_by(keys, use_threads=False).aggregate(
        [("similarity", "min"), ("similarity", "max"), ("similarity", "count")]
    )
    same = spread.filter(pc.equal(spread["similarity_min"], spread["similarity_max"])).to_pylist()
    return [(row["scorer"], row["condition"]) for row in same if row["similarity_count"] > 1]


def warnings_of(similarities: pa.Table, lost: pa.Table) -> list[str]:
    """What a person must know before reading the numbers, a sentence each; see `missing` for the whole list."""
    found = []
    for reason in (ONE_VIEW, NO_DISTRACTOR):
        part = lost.filter(pc.field("reason") == reason)
        for (engine,), rows in _grouped(part, ["engine"]):
            if reason == ONE_VIEW:
                found.append(f"{_named(rows)}: one view alone, so nothing to compare; left out")
            else:
                found.append(f"engine {engine} has no distractor of {_count(rows)} view(s) of {_named(rows)}")
    alike: dict[str, list[str]] = {}
    for who, rows in _grouped(lost.filter(pc.field("reason") == NO_SIMILARITY), ["scorer", "condition"]):
        parts = []
        for (kind,), mine in _grouped(rows, ["kind"]):
            engines = sorted(filter(None, mine["engine"].unique().to_pylist()))
            parts.append(f"{_count(mine)} {kind}" + (f" of {listed(engines)}" if engines else ""))
        said = f"no similarity for {_count(rows)} pair(s) ({'; '.join(parts)}), of {_named(rows)}"
        alike.setdefault(said, []).append(", ".join(who))
    found += [f"{'; '.join(who)}: {said}" for said, who in alike.items()]
    for scorer, condition in constant_scorers(similarities):
        found.append(f"{scorer}, {condition}: the same similarity for every pair, so no trial succeeds and r is 0")
    return found


_MISSING = pa.schema([(name, pa.int64() if name == "pairs" else pa.string()) for name in MISSING_COLUMNS])


def _without_similarity(similarities: pa.Table) -> Iterable[pa.Table]:
    place = ["kind", "engine", "identity_id"]
    for (condition,), records in _grouped(similarities, ["condition"]):
        everything = None
        for (scorer,), mine in _grouped(records, ["scorer"]):
            usable = pc.and_(pc.is_valid(mine["similarity"]), pc.is_finite(mine["similarity"]))
            lost = mine.filter(pc.invert(pc.fill_null(usable, False)))
            if everything is None:
                shared = records.filter(pc.is_in(records["kind"], pa.array(_SHARED_KINDS)))
                everything = shared.group_by(["pair_id", *place], use_threads=False).aggregate([])
            absent = everything.filter(pc.invert(pc.is_in(everything["pair_id"], mine["pair_id"].unique())))
            both = pa.concat_tables([lost.select(place), absent.select(place)])
            counted = both.group_by(place, use_threads=False).aggregate([([], "count_all")])
            if len(counted):
                counted = counted.sort_by([(name, "ascending") for name in place])
                fixed = {"reason": NO_SIMILARITY, "scorer": scorer, "condition": condition}
                columns = {name: pa.repeat(pa.scalar(text), len(counted)) for name, text in fixed.items()}
                columns |= {**{name: counted[name] for name in place}, "pairs": counted["count_all"]}
                yield pa.table([columns[name] for name in MISSING_COLUMNS], schema=_MISSING)


def _grouped(table: pa.Table, keys: list[str]) -> Iterable[tuple[tuple[str, ...], pa.Table]]:
    """The parts of a table by the values of some columns, in the order of their first row."""
    distinct = table.group_by(keys, use_threads=False).aggregate([])
    for values in zip(*(distinct[name].to_pylist() for name in keys), strict=True):
        wanted = [pc.equal(table[name], value) for name, value in zip(keys, values, strict=True)]
        mask = wanted[0]
        for other in wanted[1:]:
            mask = pc.and_(mask, other)
        yield values, table.filter(mask)


def _count(rows: pa.Table) -> int:
    return int(pc.sum(rows["pairs"]).as_py() or 0)


def _named(rows: pa.Table) -> str:
    names = sorted(rows["identity_id"].unique().to_pylist())
    return f"{len(names)} identit{'y' if len(names) == 1 else 'ies'} ({listed(names)})"


def _views(similarities: pa.Table) -> set[tuple[str, int]]:
    """(identity, view index) of every view that some pair starts from, or that is the second of an identity's two."""
    found: set[tuple[str, int]] = set()
    positive = similarities.filter(pc.field("kind") == "positive")
    for rows, which in ((similarities, "view_index"), (positive, "other_view_index")):
        distinct = rows.group_by(["identity_id", which], use_threads=False).aggregate([])
        found |= set(zip(distinct["identity_id"].to_pylist(), distinct[which].to_pylist(), strict=True))
    return found


def _distinct(similarities: pa.Table, kind: str, columns: list[str]) -> pa.Table:
    return similarities.filter(pc.field("kind") == kind).group_by(columns, use_threads=False).aggregate([])


def _given(identities: np.ndarray, engines: Sequence[str], sources: dict[str, frozenset[str]]) -> NDArray[np.int64]:
    source_I = _source(identities)
    columns = [np.isin(source_I, list(sources[engine])) for engine in engines]
    return np.array(columns, np.int64).reshape(len(engines), len(identities)).T


def _source(identity: np.ndarray) -> np.ndarray:
    return np.char.partition(identity, ":")[:, 0] if len(identity) else identity


def _strings(column: pa.ChunkedArray) -> np.ndarray:
    return np.array(column.to_pylist(), dtype=str)
