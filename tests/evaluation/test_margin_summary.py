"""The table of success rates against loops over trials; what it refuses."""

import math
from collections import defaultdict

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from nearid_ray.errors import UsageError
from nearid_ray.evaluation.bootstrap import bootstrap_difference, bootstrap_rates, difference, rate_statistics
from nearid_ray.evaluation.counts import count_trials
from nearid_ray.evaluation.groups import paper_groups
from nearid_ray.evaluation.margins import directed_pairs, summarize

ENGINES = ("flux-canny-512", "flux-fill-512", "sdxl-512")


def trials(seed: int = 0, identities: int = 30, scorers=("frozen",), engines=ENGINES) -> pd.DataFrame:
    """Two or three views an identity; ties, gaps, and identities that an engine misses altogether."""
    random = np.random.default_rng(seed)
    rows = []
    for scorer in scorers:
        for engine in engines:
            for identity in range(identities):
                lost = random.random() < 0.1
                for anchor, positive in directed_pairs(2 if identity % 3 else 3):
                    margin = float(random.integers(-2, 8)) / 4
                    rows.append(
                        {
                            "scorer": scorer,
                            "engine": engine,
                            "identity_id": f"toy:{identity}",
                            "category": "mug" if identity % 2 else "shoe",
                            "anchor_view_index": anchor,
                            "positive_view_index": positive,
                            "margin": math.nan if lost or random.random() < 0.05 else margin,
                        }
                    )
    return pd.DataFrame(rows)


def looped(rows):
    """(identities, units, trials, coverage, ssr, pa) by loops; rates weighted by each engine's number of identities."""
    units = defaultdict(list)
    for row in rows.to_dict("records"):
        if math.isfinite(row["margin"]):
            units[row["engine"], row["identity_id"]].append(row["margin"])
    ssr = pa_ = total = 0.0
    for engine in {engine for engine, _ in units}:
        mine = [margins for (other, _), margins in units.items() if other == engine]
        flat = [margin for margins in mine for margin in margins]
        ssr += sum(all(margin > 0 for margin in margins) for margins in mine)
        pa_ += len(mine) * sum(margin > 0 for margin in flat) / len(flat)
        total += len(mine)
    number = sum(map(len, units.values()))
    return len({i for _, i in units}), len(units), number, number / len(rows), ssr / total, pa_ / total


def found(row):
    return tuple(row[name] for name in ("num_identities", "num_units", "num_trials", "coverage", "ssr", "pa"))


@pytest.mark.parametrize("by", [("engine",), ("category",), ("engine", "category"), ()])
def test_each_row_and_the_pooled_one_equal_loops(by):
    table = trials()
    rows = summarize(table, by=by)
    for row in rows.to_dict("records"):
        mine = table
        for name in by:
            mine = mine if row[name] == "all" else mine[mine[name] == row[name]]
        assert found(row) == pytest.approx(looped(mine), abs=1e-12)
    assert [rows[name].iloc[-1] for name in by] == ["all"] * len(by)
    assert len(rows) == 1 + {(): 0, ("engine",): 3, ("category",): 2, ("engine", "category"): 6}[by]


def test_arrow_in_arrow_out_with_the_same_numbers_and_nulls_as_gaps():
    table = trials()
    arrow = summarize(pa.Table.from_pandas(table))
    assert isinstance(arrow, pa.Table)
    pd.testing.assert_frame_equal(arrow.to_pandas(), summarize(table))
    assert pa.Table.from_pandas(table)["margin"].null_count > 0


def test_the_headline_leaves_extra_engines_out_and_groups_say_how_many_engines_they_hold():
    table = trials()
    groups = paper_groups(ENGINES)
    rows = summarize(table, groups=groups).set_index("engine")
    assert list(rows.index) == [*ENGINES, "train", "unseen", "extra", "headline", "all"]
    fill = table[table["engine"] != "flux-canny-512"]
    assert found(rows.loc["headline"]) == pytest.approx(looped(fill), abs=1e-12)
    assert found(rows.loc["train"]) == found(rows.loc["flux-fill-512"])
    assert rows.loc["headline", "num_engines"] == 2 and rows.loc["all", "num_engines"] == 3


# SSR in % of 500 identities each, by engine (NearID paper, table 5), and the published headline.
TABLE_5 = {
    "flux-fill-512": (35.8, 99.4),
    "flux-fill-1024": (27.4, 99.4),
    "qwen-image-512": (33.8, 99.2),
    "qwen-image-1328": (16.2, 98.2),
    "powerpaint-512": (34.0, 99.2),
    "sdxl-512": (42.0, 99.8),
    "sdxl-1024": (26.0, 99.0),
    "flux-canny-512": (27.4, 97.8),
    "flux-canny-1024": (25.8, 98.8),
}


@pytest.mark.parametrize("column, headline", [(0, 30.74), (1, 99.17)])
def test_the_headline_of_the_published_engines_is_the_published_one(column, headline):
    solved = {engine: round(rates[column] * 5) for engine, rates in TABLE_5.items()}
    columns = {
        "engine": np.repeat(list(solved), 500),
        "identity_id": np.tile([f"{n:03d}" for n in range(500)], len(solved)),
        "margin": np.concatenate([np.where(np.arange(500) < number, 1.0, -1.0) for number in solved.values()]),
    }
    rows = summarize(pa.table(columns), groups=paper_groups(list(solved))).to_pylist()
    rates = {row["engine"]: 100 * row["ssr"] for row in rows}
    assert rates["headline"] == pytest.approx(headline, abs=5e-3)
    assert {engine: rates[engine] for engine in TABLE_5} == pytest.approx({e: r[column] for e, r in TABLE_5.items()})


def test_scorers_are_never_pooled():
    table = trials(scorers=("frozen", "trained"))
    with pytest.raises(UsageError, match="2 values of scorer"):
        summarize(table)
    rows = summarize(table, by=("scorer", "engine"))
    pooled = rows[rows["engine"] == "all"]
    assert pooled["scorer"].tolist() == ["frozen", "trained"]
    assert found(pooled.iloc[1]) == pytest.approx(looped(table[table["scorer"] == "trained"]), abs=1e-12)


def test_records_of_two_benchmarks_mixed_are_refused():
    table = trials()
    with pytest.raises(UsageError, match=r"stand twice, e.g. identity_id toy:0, engine flux-canny-512"):
        summarize(pd.concat([table, table.assign(margin=0.5)]))
    bare = table[["engine", "identity_id", "margin"]]
    assert summarize(bare)["ssr"].tolist() == summarize(table)["ssr"].tolist()
    with pytest.raises(UsageError, match="2 values of split"):
        summarize(pd.concat([table.assign(split="val"), table.assign(split="test")]))


def test_missing_columns_are_named_and_empty_records_give_nan():
    with pytest.raises(UsageError, match="no column identity_id; found engine, margin"):
        summarize(pd.DataFrame({"engine": ["x"], "margin": [0.1]}))
    with pytest.raises(UsageError, match="type int"):
        summarize(3)
    empty = summarize(pa.table({"engine": pa.array([], pa.string()), "identity_id": [], "margin": []})).to_pylist()
    assert len(empty) == 1 and empty[0]["num_trials"] == 0
    assert all(math.isnan(empty[0][name]) for name in ("ssr", "pa", "coverage"))


def test_intervals_are_those_of_the_bootstrap_over_identities():
    table = trials()
    row = summarize(table, resamples=50, seed=3).to_dict("records")[-1]
    ssr, pa_ = bootstrap_rates(
        count_trials(table["margin"], table["identity_id"], table["engine"]), resamples=50, seed=3
    )
    assert (row["ssr_low"], row["ssr_high"], row["pa_low"], row["pa_high"]) == (ssr.low, ssr.high, pa_.low, pa_.high)


def test_the_general_paired_bootstrap_agrees_with_that_of_rates():
    first, second = (
        count_trials(t["margin"], t["identity_id"], t["engine"]) for t in (trials(1), trials(2, identities=33))
    )
    for name, special in zip(("ssr", "pa"), bootstrap_difference(first, second, resamples=80, seed=5), strict=True):
        general = difference(rate_statistics(first)[name], rate_statistics(second)[name], resamples=80, seed=5)
        assert general == special
        assert 0 <= general.share_above_zero <= 1
    itself = bootstrap_difference(first, first, resamples=20)[0]
    assert itself.share_above_zero == 0.0
