"""The mtg benchmark from eval records: Mind-the-Glitch's measures wherever distractors have an oracle.

A sample is two views i < j of an identity with one engine's distractors of both: five similarities, two oracles
(`oracle.summarize`). An identity of Mind-the-Glitch is one sample; one with three views, as the toybox has, gives three
that are drawn together. Samples with a gap stay, lower the coverage, and count nowhere else.

Axes: N samples, P pairs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from nearid_ray.evaluation.bootstrap import Interval, difference, intervals
from nearid_ray.evaluation.expected import expected_trials
from nearid_ray.evaluation.measures import MTG, Measure
from nearid_ray.evaluation.oracle import SIMILARITIES, statistics

METRICS = ("ssr", "pa", "m_o", "m_o_pair")

IntArray = NDArray[np.int64]


class Samples:
    """The samples of a benchmark, the same for every scorer.

    Args:
        similarities: the `similarities` table, of any number of scorers and conditions.
        engines: those with an oracle.
    """

    def __init__(self, similarities: pa.Table, engines: Sequence[str]) -> None:
        self._identities = np.unique(_strings(similarities, "identity_id"))
        self._engines = np.array(["", *sorted(engines)])
        views = [similarities[name] for name in ("view_index", "other_view_index")]
        self._stride = 1 + max([pc.max(column).as_py() or 0 for column in views], default=0) if len(views[0]) else 1
        positive = similarities.filter(pc.field("kind") == "positive")
        key_P = np.unique(self._key(positive))
        first, second = key_P // self._stride % self._stride, key_P % self._stride
        identity = key_P // (self._stride**2 * len(self._engines))
        expected = expected_trials(similarities)
        row_of = {name: row for row, name in enumerate(expected.identities)}
        rows = np.array([row_of[self._identities[i]] for i in identity], np.int64)
        given_PE = np.array(
            [expected.trials_IE[rows, expected.engines.index(engine)] > 0 for engine in self._engines[1:]], bool
        ).reshape(-1, len(rows))
        engine_N, pair_N = np.nonzero(given_PE)
        self._engine_N, self._identity_N = engine_N + 1, identity[pair_N]
        self._first_N, self._second_N = first[pair_N], second[pair_N]
        graded = similarities.filter((pc.field("kind") == "distractor") & pc.is_valid(pc.field("oracle")))
        self._oracle = self._lookup(graded, "oracle")

    def scores(self, similarities: pa.Table) -> pa.Table:
        """One row a sample, for `oracle.summarize`.

        Args:
            similarities: the records of one scorer and condition.
        """
        found = self._lookup(similarities.filter(pc.field("kind") != "random"), "similarity")
        one, two, none = self._first_N, self._second_N, np.zeros_like(self._engine_N)
        return pa.table(
            {
                "identity_id": self._identities[self._identity_N],
                "engine": self._engines[self._engine_N],
                "view_index": one,
                "other_view_index": two,
                "s_12": self._at(found, one, two, none),
                "s_11p": self._at(found, one, one, self._engine_N),
                "s_22p": self._at(found, two, two, self._engine_N),
                "s_12p": self._at(found, one, two, self._engine_N),
                "s_21p": self._at(found, two, one, self._engine_N),
                "oracle_1": self._at(self._oracle, one, one, self._engine_N),
                "oracle_2": self._at(self._oracle, two, two, self._engine_N),
            }
        )

    def _key(self, table: pa.Table) -> IntArray:
        identity = np.searchsorted(self._identities, _strings(table, "identity_id"))
        engine = np.searchsorted(self._engines, _strings(table, "engine"))
        views = [
            table[name].to_numpy(zero_copy_only=False).astype(np.int64) for name in ("view_index", "other_view_index")
        ]
        return self._join(identity, engine, *views)

    def _join(self, identity: IntArray, engine: IntArray, first: IntArray, second: IntArray) -> IntArray:
        return ((identity * len(self._engines) + engine) * self._stride + first) * self._stride + second

    def _lookup(self, table: pa.Table, value: str) -> tuple[IntArray, NDArray[np.float64]]:
        table = table.filter(pc.is_in(table["engine"], pa.array(self._engines.tolist(), pa.string())))
        key_P, first = np.unique(self._key(table), return_index=True)
        return key_P, np.asarray(table[value].to_numpy(zero_copy_only=False), np.float64)[first]

    def _at(
        self, found: tuple[IntArray, NDArray[np.float64]], first: IntArray, second: IntArray, engine: IntArray
    ) -> NDArray[np.float64]:
        key_P, value_P = found
        wanted_N = self._join(self._identity_N, engine, first, second)
        if not len(key_P):
            return np.full(len(wanted_N), np.nan)
        place_N = np.minimum(np.searchsorted(key_P, wanted_N), len(key_P) - 1)
        return np.where(key_P[place_N] == wanted_N, value_P[place_N], np.nan)


def glitch_measures(
    similarities: pa.Table, groups: Mapping[str, Sequence[str]], *, baseline: str, drawing: Mapping[str, Any]
) -> list[Measure]:
    """SSR, PA, M-O and M-O pair of every scorer and condition with intervals, and gains over the baseline.

    Args:
        similarities: the `similarities` table.
        groups: name -> engines with an oracle; each engine is measured, and each group pooled.
        baseline: the scorer that gains are measured against, in pairs.
        drawing: resamples, seed, confidence.
    """
    engines = sorted({engine for members in groups.values() for engine in members})
    if not engines:
        return []
    samples = Samples(similarities, engines)
    keys = similarities.group_by(["scorer", "condition"], use_threads=False).aggregate([])
    named = list(zip(keys["scorer"].to_pylist(), keys["condition"].to_pylist(), strict=True))
    parts = [*((engine, [engine], False) for engine in engines), *((n, list(m), True) for n, m in groups.items())]
    found = []
    for condition in dict.fromkeys(condition for _, condition in named):
        scorers = [scorer for scorer, other in named if other == condition]
        scored = {}
        for scorer in scorers:
            of_scorer = (pc.field("scorer") == scorer) & (pc.field("condition") == condition)
            scored[scorer] = samples.scores(similarities.filter(of_scorer))
        for name, members, is_group in parts:
            chosen = {scorer: _of_engines(scores, members) for scorer, scores in scored.items()}
            for scorer in scorers:
                place = {"scorer": scorer, "condition": condition, "name": name, "is_group": is_group}
                reference = chosen.get(baseline) if scorer != baseline else None
                found += _measures(chosen[scorer], reference, place, baseline, drawing)
    return found


def _measures(
    scores: pa.Table,
    reference: pa.Table | None,
    place: Mapping[str, Any],
    baseline: str,
    drawing: Mapping[str, Any],
) -> list[Measure]:
    support = _support(scores)
    measured = statistics(scores)
    values: dict[str, tuple[Interval, float, str]] = {}
    for name, one in intervals({name: measured[name] for name in METRICS}, **drawing).items():
        values[name] = one, one.coverage, ""
    if reference is not None:
        first, second = (statistics(one) for one in _in_both(reference, scores))
        for name in METRICS:
            gain = difference(first[name], second[name], **drawing)
            if not math.isnan(gain.value):
                values[f"{name}_gain"] = gain, second[name].coverage, baseline
    return [
        Measure(
            benchmark=MTG,
            **place,
            metric=metric,
            value=value.value,
            low=value.low,
            high=value.high,
            support=support[metric.removesuffix("_gain")],
            coverage=coverage,
            baseline=against,
        )
        for metric, (value, coverage, against) in values.items()
    ]


def _in_both(first: pa.Table, second: pa.Table) -> tuple[pa.Table, pa.Table]:
    """The scores of two scorers without the similarities that one of them lacks."""
    gaps = {name: np.isnan(first[name].to_numpy()) | np.isnan(second[name].to_numpy()) for name in SIMILARITIES}
    if not any(gap.any() for gap in gaps.values()):
        return first, second
    both = []
    for table in (first, second):
        for name, gap in gaps.items():
            values = np.where(gap, np.nan, table[name].to_numpy())
            table = table.set_column(table.schema.get_field_index(name), name, pa.array(values))
        both.append(table)
    return both[0], both[1]


def _support(scores: pa.Table) -> dict[str, int]:
    """Units of SSR, trials of PA, samples that at least one correlation rests on."""
    column = {name: scores[name].to_numpy() for name in scores.column_names if name.startswith(("s_", "oracle_"))}
    valid_N2 = np.isfinite(column["s_12"][:, None] - np.stack([column["s_11p"], column["s_22p"]], axis=1))
    unit = scores.filter(pa.array(valid_N2.any(axis=1))).group_by(["identity_id", "engine"]).aggregate([])
    own = np.isfinite(column["s_11p"] * column["oracle_1"]) | np.isfinite(column["s_22p"] * column["oracle_2"])
    crossed = np.isfinite(column["s_12p"] * column["oracle_2"]) | np.isfinite(column["s_21p"] * column["oracle_1"])
    return {
        "ssr": len(unit),
        "pa": int(valid_N2.sum()),
        "m_o": int((own | crossed).sum()),
        "m_o_pair": int(own.sum()),
    }


def _of_engines(scores: pa.Table, engines: Sequence[str]) -> pa.Table:
    return scores.filter(pc.is_in(scores["engine"], pa.array(list(engines), pa.string())))


def _strings(table: pa.Table, name: str) -> np.ndarray:
    return np.array(table[name].to_pylist(), dtype=str)
