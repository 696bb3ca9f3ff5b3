"""Looking up measures by what a table asks for, and which row of the paper a scorer is."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence

from nearid_ray.errors import UsageError
from nearid_ray.evaluation.measures import MTG, NEARID, Measure, headline
from nearid_ray.reporting.tables.model import NOT_MEASURABLE, NOT_RUN, Address, Cell

SCORER_ROWS: tuple[tuple[str, str], ...] = (
    (r"frozen|.*siglip2-so400m.*", "siglip2-so400m"),
    (r"(.*/)?nearid|(nearid-)?alpha-0\.5|nearid\+mtg|.*nearid-siglip2", "nearid"),
    (r".*clip-vit-(l|large)-(patch)?14.*", "clip-vit-l-14"),
    (r".*dinov2-(vit-)?(l|large).*", "dinov2-vit-l-14"),
    (r".*qwen3-vl-4b.*", "qwen3-vl-4b"),
    (r".*qwen3-vl-8b.*", "qwen3-vl-8b"),
    (r".*qwen3-vl-30b.*", "qwen3-vl-30b"),
    (r"vsm.*", "vsm"),
)
"""What a scorer is in the paper's tables of scorers, by a pattern that its name (in small letters) has as a whole. The
first that holds counts."""


ALL = "all"
"""Group that stands for the whole where a benchmark's other groups are categories."""


def scorer_row(scorer: str, given: Mapping[str, str] | None = None) -> str:
    """The published row of a scorer: as given, else by `SCORER_ROWS`, else its own name.

    >>> scorer_row("frozen"), scorer_row("openai/clip-vit-large-patch14"), scorer_row("mine")
    ('siglip2-so400m', 'clip-vit-l-14', 'mine')
    """
    if given and scorer in given:
        return given[scorer]
    return next((row for pattern, row in SCORER_ROWS if re.fullmatch(pattern, scorer.lower())), scorer)


def given_rows(entries: Sequence[str]) -> dict[str, str]:
    """{scorer: row} from SCORER=ROW entries.

    >>> given_rows(["dinov3=dinov2-vit-l-14"])
    {'dinov3': 'dinov2-vit-l-14'}

    Raises:
        UsageError: an entry is not of that form.
    """
    pairs = [entry.rpartition("=") for entry in entries]
    for entry, (scorer, _, row) in zip(entries, pairs, strict=True):
        if not scorer or not row:
            raise UsageError(f"rows has the entry {entry!r}; expected SCORER=ROW, e.g. my-dino=dinov2-vit-l-14")
    return {scorer: row for scorer, _, row in pairs}


class Measured:
    """The measures of one or more evaluations of the same data."""

    def __init__(self, measures: Iterable[Measure]) -> None:
        """Raises UsageError where two evaluations hold different numbers for the same thing."""
        self._found: dict[tuple[str, str, str, str, str], Measure] = {}
        for one in measures:
            there = self._found.setdefault(one.key, one)
            if not _same(there.value, one.value):
                raise UsageError(
                    f"{one.scorer} on {one.name} ({one.benchmark}, {one.condition}): {one.metric} is {there.value:.4g} "
                    f"in one evaluation and {one.value:.4g} in another; give evaluations of one data set"
                )

    @property
    def scorers(self) -> list[str]:
        """Names of the scorers in the order of their first appearance."""
        return list(dict.fromkeys(one.scorer for one in self._found.values()))

    def scorers_on(self, benchmark: str) -> list[str]:
        """Names of the scorers that a benchmark has."""
        return list(dict.fromkeys(one.scorer for one in self._found.values() if one.benchmark == benchmark))

    def measures(self) -> list[Measure]:
        """All of them."""
        return list(self._found.values())

    def headline(self, benchmark: str) -> str:
        """The group that stands for a whole benchmark; empty where it was not measured."""
        mine = [one for one in self._found.values() if one.benchmark == benchmark]
        if any(one.name == ALL and one.is_group for one in mine) and benchmark not in (NEARID, MTG):
            return ALL
        return headline(mine)

    def names(self, benchmark: str, metric: str) -> list[str]:
        """What a metric was measured on that is no group: engines, methods."""
        mine = (one for one in self._found.values() if one.benchmark == benchmark and one.metric == metric)
        return list(dict.fromkeys(one.name for one in mine if not one.is_group))

    def cell_known(self, scorers: Iterable[str], benchmark: str, metric: str, name: str) -> bool:
        """Whether any of the scorers was measured on `name`."""
        return any((benchmark, scorer, "full", name, metric) in self._found for scorer in scorers)

    def cell(
        self,
        scorer: str,
        benchmark: str,
        metric: str,
        *,
        name: str | None = None,
        condition: str = "full",
        published: float = math.nan,
        published_spread: float = math.nan,
        against: Address | None = None,
    ) -> Cell:
        """The cell of a measure; without `name`, of the benchmark's headline group. Its spread is METRIC_spread."""
        where = self.headline(benchmark) if name is None else name
        one = self._found.get((benchmark, scorer, condition, where, metric))
        if one is None:
            return Cell(published=published, published_spread=published_spread, against=against, missing=NOT_RUN)
        spread = self._found.get((benchmark, scorer, condition, where, f"{metric}_spread"))
        return Cell(
            value=one.value,
            low=one.low,
            high=one.high,
            published=published,
            spread=spread.value if spread is not None else math.nan,
            published_spread=published_spread,
            missing=NOT_MEASURABLE,
            coverage=1.0 if math.isnan(one.coverage) else one.coverage,
            against=against,
        )


def _same(first: float, second: float) -> bool:
    return first == second or (math.isnan(first) and math.isnan(second)) or math.isclose(first, second, rel_tol=1e-9)
