"""Every number of an evaluation in one flat table, whatever benchmark it comes from: OUTPUT/measures.csv.

Tables, figures, comparisons and tuning read these and nothing else, so they treat success rates, correlations with an
oracle or with people, and retrieval alike.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from nearid_ray.data.store import Location
from nearid_ray.errors import UsageError
from nearid_ray.evaluation.groups import HEADLINES

MEASURES_FILE = "measures.csv"

NEARID, MTG = "nearid", "mtg"
"""Benchmarks of an evaluation: whole objects replaced; a part changed, with an oracle (Mind-the-Glitch)."""


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One number with its interval. Rates are fractions of 1; nan = not measurable; higher is better."""

    benchmark: str
    """nearid | mtg | dreambench-plus | retrieval | ..."""
    scorer: str
    condition: str
    """full | foreground."""
    name: str
    """What it was measured on: an engine, a group of engines, a method, a category."""
    is_group: bool
    """Whether `name` pools others."""
    metric: str
    """ssr, pa, ordering, ssr_gain, pa_gain, m_o, m_o_pair, m_h, oracle_r, control_rate, ..."""
    value: float
    low: float
    """Lower end of the interval; nan where there is none."""
    high: float
    support: int
    """Units, trials, samples or keys that it rests on."""
    coverage: float
    """Share of what should have been measured that was; 1 = all."""
    baseline: str
    """For gains, the scorer it is measured against; empty otherwise."""

    @property
    def significant(self) -> bool:
        """Whether the interval lies on one side of 0: for gains and correlations, a difference that chance alone
        would seldom give."""
        return self.low > 0 or self.high < 0

    @property
    def key(self) -> tuple[str, str, str, str, str]:
        """What a table holds once: benchmark, scorer, condition, name, metric."""
        return self.benchmark, self.scorer, self.condition, self.name, self.metric


def headline(measures: Iterable[Measure]) -> str:
    """The group that stands for the whole: of the nearid benchmark where there is one, else of the first other.

    >>> headline([])
    ''
    """
    groups: dict[str, list[str]] = {}
    for one in measures:
        if one.is_group:
            groups.setdefault(one.benchmark, []).append(one.name)
    names = groups.get(NEARID) or next(iter(groups.values()), [])
    return next((name for name in HEADLINES if name in names), names[-1] if names else "")


def find(measures: Iterable[Measure], **wanted: Any) -> list[Measure]:
    """The measures whose fields have these values, in order.

    Raises:
        TypeError: a name that is no field.
    """
    unknown = set(wanted) - {field.name for field in fields(Measure)}
    if unknown:
        raise TypeError(f"{', '.join(sorted(unknown))}: not a field of a measure")
    return [one for one in measures if all(getattr(one, name) == value for name, value in wanted.items())]


def write_measures(folder: Location, measures: Sequence[Measure]) -> None:
    """Write `measures.csv` into the folder: one row a measure, numbers with all their digits, empty for nan."""
    folder.child(MEASURES_FILE).write_bytes(to_csv(measures).encode())


def read_measures(folder: Location) -> list[Measure]:
    """What `write_measures` wrote. An evaluation of an earlier version has none: it is measured anew from its records.

    Raises:
        UsageError: the folder holds neither, or the file is of another kind.
    """
    place = folder.child(MEASURES_FILE)
    if place.exists():
        return from_csv(place.read_bytes().decode(), place.uri)
    from nearid_ray.evaluation.evaluate import measure_records

    return measure_records(folder).measures


def to_csv(measures: Sequence[Measure]) -> str:
    """The measures as CSV; the same measures give the same bytes."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow([field.name for field in fields(Measure)])
    for one in measures:
        table.writerow([_written(value) for value in asdict(one).values()])
    return text.getvalue()


def from_csv(text: str, origin: str = MEASURES_FILE) -> list[Measure]:
    """The measures of a CSV with the columns of `Measure`; further columns are left aside.

    Raises:
        UsageError: a column is missing or a value is not of its type.

    >>> one = Measure(benchmark="mtg", scorer="frozen", condition="full", name="decal", is_group=False, metric="m_o",
    ...               value=0.1, low=math.nan, high=math.nan, support=12, coverage=1.0, baseline="")
    >>> again = from_csv(to_csv([one]))[0]
    >>> again.value, again.support, again.is_group, math.isnan(again.low)
    (0.1, 12, False, True)
    """
    rows = csv.DictReader(io.StringIO(text))
    expected = [field.name for field in fields(Measure)]
    missing = [name for name in expected if name not in (rows.fieldnames or ())]
    if missing:
        raise UsageError(f"{origin} has no column {', '.join(missing)}; expected a file that an evaluation wrote")
    kinds = {field.name: str(field.type) for field in fields(Measure)}
    found = []
    for number, row in enumerate(rows, start=2):
        try:
            values = {name: _read(kinds[name], row[name] or "") for name in expected}
        except ValueError as error:
            raise UsageError(f"{origin}, line {number}: {error}") from None
        found.append(Measure(**values))
    return found


def _written(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return "" if math.isnan(value) else repr(float(value))
    return str(value)


def _read(kind: str, text: str) -> Any:
    if kind == "bool":
        if text not in ("true", "false"):
            raise ValueError(f"is_group is {text!r}; expected true or false")
        return text == "true"
    if kind == "float":
        return float(text) if text else math.nan
    return int(text) if kind == "int" else text
