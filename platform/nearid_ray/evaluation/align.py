"""Measures of alignment with people (M-H, DreamBench++) from alignment records alone.

M-H of a method is the mean of a score's Pearson correlations with the two groups of people; over methods, and within a
category, it is their Fisher-z mean. References are resampled, each with all its methods, prompts and ratings.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from nearid_ray.errors import UsageError
from nearid_ray.evaluation.agreement import krippendorff_statistic
from nearid_ray.evaluation.bootstrap import Statistic, difference, interval
from nearid_ray.evaluation.correlations import fisher_statistic
from nearid_ray.evaluation.human import alignment, alignment_statistic, between_groups, standard_error
from nearid_ray.evaluation.measures import Measure

BENCHMARK = "dreambench-plus"
PEOPLE = "people"
"""Scorer of what people say among themselves: h_h and krippendorff_alpha."""
ALL = "all"
"""The mean over all methods."""

Scores = dict[str, float | None]
"""By "<identity_id>-<prompt_index>"."""


@dataclass(frozen=True, kw_only=True)
class AlignSettings:
    """What is compared with people, and how its intervals are drawn."""

    conditions: tuple[str, ...] = ("full",)
    """full: whole pictures; foreground: backgrounds blacked out, by the references' masks and, for generated pictures,
    by masks that --mask-method finds."""
    methods: tuple[str, ...] = ()
    """Generators that are compared; all that have pictures (or scores) and ratings when empty."""
    groups: tuple[str, ...] = ()
    """The two groups of people, where the ratings have more."""
    aspect: str = "concept"
    """What people rated: concept (is the identity kept) or prompt (is the text followed)."""
    baseline: str = ""
    """Scorer or metric that gains are measured against; the first scorer when empty."""
    resamples: int = 1000
    """Resamples of references for the intervals; 1 or more."""
    confidence: float = 0.95
    """Share of the resamples inside an interval; above 0, below 1."""
    align_seed: int = 0
    """Seed of the resamples."""

    def __post_init__(self) -> None:
        if not self.conditions or set(self.conditions) - {"full", "foreground"}:
            raise ValueError(f"conditions is {self.conditions}; expected full, foreground or both")
        if self.aspect not in ("concept", "prompt"):
            raise ValueError(f"aspect is {self.aspect!r}; expected concept or prompt")
        if len(self.groups) not in (0, 1, 2):
            raise ValueError(f"groups names {len(self.groups)}; expected the two groups that M-H is the mean over")
        if self.resamples < 1:
            raise ValueError(f"resamples is {self.resamples}; expected 1 or more")
        if not 0 < self.confidence < 1:
            raise ValueError(f"confidence is {self.confidence}; expected a number between 0 and 1")


@dataclass(frozen=True, kw_only=True)
class Unmatched:
    """Keys of a method that cannot be joined."""

    method: str
    scorers: tuple[str, ...]
    what: str
    """unrated (scored, and rated by nobody) | unscored (rated, and no picture or score has that key) | failed (there
    are pictures, none of which could be scored)."""
    keys: tuple[str, ...]
    of: int
    """Keys of the method that were scored (unrated) or rated (the others)."""


@dataclass(frozen=True, kw_only=True)
class Aligned:
    """What was measured."""

    measures: list[Measure]
    notes: list[str] = field(default_factory=list)
    """What a reader must know of the numbers, in words."""
    unmatched: list[Unmatched] = field(default_factory=list)


def measure_alignment(records: pa.Table, settings: AlignSettings, groups: Sequence[str]) -> Aligned:
    """All measures of alignment records. Plain function, no Ray.

    Args:
        records: of `schemas.ALIGNMENT`.
        groups: names of the groups of people behind rating_1 and rating_2; one name where there is one group alone.

    Raises:
        UsageError: there are no records, or none of the baseline.
    """
    tables = _tables(records)
    if not tables:
        raise UsageError("there is nothing to compare with people: no picture, judgement or metric of a rated method")
    methods = sorted(set(records["method"].to_pylist()))
    people = _People(next(iter(tables.values())), _categories(records), methods, groups)
    baseline = settings.baseline or next(iter(tables))[0]
    if baseline not in {scorer for scorer, _ in tables}:
        known = ", ".join(dict.fromkeys(scorer for scorer, _ in tables))
        raise UsageError(f"baseline is {baseline!r}; expected one of {known}")
    notes, unmatched = people.notes(), _unmatched(tables)
    draws: dict[str, Any] = {
        "resamples": settings.resamples,
        "seed": settings.align_seed,
        "confidence": settings.confidence,
    }
    measures = people.measures(draws)
    statistics: dict[tuple[str, str], dict[str, Statistic]] = {}
    for (scorer, condition), table in tables.items():
        made, statistics[scorer, condition] = people.of_scorer(scorer, condition, table, draws)
        measures += made
        notes += _notes_on(scorer, condition, table, methods)
    for (scorer, condition), mine in statistics.items():
        if scorer == baseline or (baseline, condition) not in statistics:
            continue
        for name, statistic in mine.items():
            found = difference(statistics[baseline, condition][name], statistic, **draws)
            same = next(m for m in measures if m.key == (BENCHMARK, scorer, condition, name, "m_h"))
            measures.append(
                _measure(scorer, condition, name, "m_h_gain", found.value, found.low, found.high, same.support,
                         same.coverage, methods, baseline)
            )  # fmt: skip
    return Aligned(measures=measures, notes=notes, unmatched=unmatched)


@dataclass
class _Table:
    """Scores of one scorer and condition, and the ratings beside them, by method."""

    scores: dict[str, Scores] = field(default_factory=lambda: defaultdict(dict))
    rating_1: dict[str, Scores] = field(default_factory=lambda: defaultdict(dict))
    rating_2: dict[str, Scores] = field(default_factory=lambda: defaultdict(dict))
    pictures: dict[str, dict[str, int]] = field(default_factory=lambda: defaultdict(dict))


class _People:
    """The two groups' ratings, and the correlations with them."""

    def __init__(
        self, table: _Table, categories: Mapping[str, str], methods: Sequence[str], groups: Sequence[str]
    ) -> None:
        self._methods, self._groups, self._categories = list(methods), list(groups), categories
        self._first = {method: table.rating_1[method] for method in methods}
        self._second = {method: table.rating_2[method] for method in methods} if len(groups) > 1 else self._first
        self._names = sorted({category for category in categories.values() if category})

    def notes(self) -> list[str]:
        if len(self._groups) == 1:
            return [
                f"The ratings hold one group of people ({self._groups[0]}); M-H is the mean over two: the numbers here "
                "are correlations with that group alone, and nothing is said of people among themselves."
            ]
        found = []
        for method in self._methods:
            rated = {self._groups[0]: self._first[method], self._groups[1]: self._second[method]}
            for group in (name for name, keys in rated.items() if not keys):
                found.append(f"{group} rated nothing of {method}: no M-H of that method, and so no mean over methods.")
            counts = {name: len(keys) for name, keys in rated.items()}
            if min(counts.values()) == 1:
                found.append(f"{method} has one rated prompt; a correlation takes two: no M-H of that method.")
        return found

    def of_scorer(
        self, scorer: str, condition: str, table: _Table, draws: Mapping
    ) -> tuple[list[Measure], dict[str, Statistic]]:
        """(measures, M-H as a statistic by name) of one scorer and condition."""
        measures: list[Measure] = []
        statistics: dict[str, Statistic] = {}
        for name, keys in self._parts():
            parts = [
                [{key: of[method][key] for key in of[method] if keys is None or _identity(key) in keys}
                 for of in (table.scores, self._first, self._second)]
                for method in self._methods
            ]  # fmt: skip
            found = [alignment(*three) for three in parts]
            made = [alignment_statistic(*three) for three in parts]
            entries = list(zip(self._methods, made, found, strict=True)) if name == ALL else []
            for method, statistic, one in entries:
                half = one.half_difference if len(self._groups) > 1 else math.nan
                measures += self._both(scorer, condition, method, statistic, half, one.num_keys, one.coverage, draws)
                statistics[method] = statistic
            statistics[name] = fisher_statistic(made)
            spread = standard_error([one.r for one in found])
            support, coverage = sum(one.num_keys for one in found), float(np.mean([one.coverage for one in found]))
            measures += self._both(scorer, condition, name, statistics[name], spread, support, coverage, draws)
        return measures, statistics

    def measures(self, draws: Mapping) -> list[Measure]:
        """People among themselves: Pearson's r of the groups, and Krippendorff's alpha."""
        if len(self._groups) < 2:
            return []
        measures = []
        for name, keys in self._parts():
            pairs = {}
            for method in self._methods:
                one, two = (
                    {key: value for key, value in of[method].items() if keys is None or _identity(key) in keys}
                    for of in (self._first, self._second)
                )
                pairs[method] = (one, two)
            made = {m: between_groups(*pair) for m, pair in pairs.items() if set(pair[0]) & set(pair[1])}
            counts = {m: len(set(one) & set(two)) for m, (one, two) in pairs.items()}
            for method in self._methods if name == ALL else []:
                measures += [
                    self._of_people(method, "h_h", made.get(method), counts[method], draws),
                    self._of_people(method, "krippendorff_alpha", _alpha([pairs[method]]), counts[method], draws),
                ]
            whole = fisher_statistic(list(made.values())) if len(made) == len(self._methods) else None
            total = sum(counts.values())
            measures += [
                self._of_people(name, "h_h", whole, total, draws),
                self._of_people(name, "krippendorff_alpha", _alpha(list(pairs.values())), total, draws),
            ]
        return measures

    def _parts(self) -> list[tuple[str, set[str] | None]]:
        """(name, identities) of the whole and of each category."""
        of_category: dict[str, set[str]] = {name: set() for name in self._names}
        for identity, category in self._categories.items():
            of_category.setdefault(category, set()).add(identity)
        return [(ALL, None), *((f"category:{name}", of_category[name]) for name in self._names)]

    def _both(
        self, scorer: str, condition: str, name: str, statistic: Statistic, spread: float, support: int,
        coverage: float, draws: Mapping,
    ) -> list[Measure]:  # fmt: skip
        ends = interval(statistic, **draws)
        rest = (support, coverage, self._methods)
        return [
            _measure(scorer, condition, name, "m_h", ends.value, ends.low, ends.high, *rest),
            _measure(scorer, condition, name, "m_h_spread", spread, math.nan, math.nan, *rest),
        ]

    def _of_people(self, name: str, metric: str, statistic: Statistic | None, count: int, draws: Mapping) -> Measure:
        if statistic is None:
            return _measure(PEOPLE, "full", name, metric, math.nan, math.nan, math.nan, count, 0.0, self._methods)
        ends = interval(statistic, **draws)
        return _measure(
            PEOPLE, "full", name, metric, ends.value, ends.low, ends.high, count, ends.coverage, self._methods
        )


def _measure(
    scorer: str, condition: str, name: str, metric: str, value: float, low: float, high: float, support: int,
    coverage: float, methods: Sequence[str], baseline: str = "",
) -> Measure:  # fmt: skip
    return Measure(
        benchmark=BENCHMARK, scorer=scorer, condition=condition, name=name, is_group=name not in methods,
        metric=metric, value=value, low=low, high=high, support=support, coverage=coverage, baseline=baseline,
    )  # fmt: skip


def _tables(records: pa.Table) -> dict[tuple[str, str], _Table]:
    """The records by (scorer, condition), in their order."""
    columns = ("scorer", "condition", "method", "identity_id", "prompt_index", "score", "num_pictures",
               "rating_1", "rating_2")  # fmt: skip
    found: dict[tuple[str, str], _Table] = {}
    for scorer, condition, method, identity, prompt, score, pictures, one, two in zip(
        *(records[name].to_pylist() for name in columns), strict=True
    ):
        table = found.setdefault((scorer, condition), _Table())
        key = f"{identity}-{prompt}"
        table.scores[method][key] = score
        table.pictures[method][key] = pictures
        if one is not None:
            table.rating_1[method][key] = one
        if two is not None:
            table.rating_2[method][key] = two
    return found


def _categories(records: pa.Table) -> dict[str, str]:
    return dict(zip(records["identity_id"].to_pylist(), records["category"].to_pylist(), strict=True))


def _identity(key: str) -> str:
    return key.rsplit("-", 1)[0]


def _alpha(pairs: Sequence[tuple[Scores, Scores]]) -> Statistic | None:
    """Krippendorff's alpha of two raters, over the keys of all pairs of ratings."""
    units, identities = [], []
    for one, two in pairs:
        for key in sorted(set(one) | set(two)):
            units.append([math.nan if (value := of.get(key)) is None else value for of in (one, two)])
            identities.append(_identity(key))
    return krippendorff_statistic(units, identities) if units else None


def _unmatched(tables: Mapping[tuple[str, str], _Table]) -> list[Unmatched]:
    """Keys that do not match, one entry for all scorers that have the same ones."""
    found: dict[tuple[str, str, tuple[str, ...], int], list[str]] = defaultdict(list)
    for (scorer, condition), table in tables.items():
        said = scorer if condition == "full" else f"{scorer} ({condition})"
        for method, scores in table.scores.items():
            rated = set(table.rating_1[method]) | set(table.rating_2[method])
            scored = {key for key, count in table.pictures[method].items() if count}
            failed = {key for key in scored & rated if scores[key] is None}
            for what, keys, of in (
                ("unrated", scored - rated, len(scored)),
                ("unscored", rated - scored, len(rated)),
                ("failed", failed, len(rated)),
            ):
                if keys:
                    found[method, what, tuple(sorted(keys)), of].append(said)
    return [
        Unmatched(method=method, scorers=tuple(scorers), what=what, keys=keys, of=of)
        for (method, what, keys, of), scorers in found.items()
    ]


def _notes_on(scorer: str, condition: str, table: _Table, methods: Sequence[str]) -> list[str]:
    said = scorer if condition == "full" else f"{scorer}, {condition}"
    notes = []
    for method in methods:
        finite = [value for value in table.scores[method].values() if value is not None]
        if not finite:
            notes.append(f"{said} has no score of {method}: no M-H of that method, and so no mean over methods.")
        elif len(finite) > 1 and len(set(finite)) == 1:
            notes.append(f"{said} gives {method} {len(finite)} times the score {finite[0]:g}: r counts as 0.")
    return notes
