"""The mtg benchmark of eval records against explicit loops over identities, view pairs and engines."""

import itertools
import math

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from scipy import stats

from nearid_ray.evaluation import oracle
from nearid_ray.evaluation.glitch import Samples, glitch_measures
from nearid_ray.evaluation.pairs import plan_pairs
from nearid_ray.evaluation.similarities import margin_records, scored_records
from nearid_ray.evaluation.summary import engine_groups, metrics_rows

DRAWING = {"resamples": 20, "seed": 0, "confidence": 0.95}
GROUPS = {"part-level": ["accent", "decal"]}


def records(scorers=("frozen", "trained"), identities: int = 14, gaps: bool = True) -> pa.Table:
    """Two or three views, two engines with an oracle and one without; some distractors and similarities missing."""
    random = np.random.default_rng(0)
    images = []
    for n in range(identities):
        for view in range(2 + n % 2):
            for engine in ("", "accent", "decal", "redraw"):
                if gaps and (n, view, engine) == (3, 1, "decal"):
                    continue
                graded = engine in ("accent", "decal") and not (gaps and (n, view, engine) == (4, 0, "accent"))
                images.append(
                    {
                        "image_id": f"{n}-{view}-{engine}",
                        "role": "distractor" if engine else "view",
                        "identity_id": f"toy:{n:02d}",
                        "view_index": view,
                        "engine": engine,
                        "category": "mug",
                        "split": "test",
                        "oracle": float(random.random()) if graded else None,
                    }
                )
    plan = plan_pairs(pa.Table.from_pylist(images), random_views=2)
    parts = []
    for scorer in scorers:
        similarity = random.random(len(plan)).round(1)
        if gaps and scorer == "trained":
            kinds = plan.described["kind"].to_pylist()
            similarity[[kinds.index(kind) + 5 for kind in ("positive", "distractor", "crossed")]] = np.nan
        parts.append(scored_records(plan, similarity, scorer=scorer, condition="full"))
    return pa.concat_tables(parts)


def looped(table: pa.Table, scorer: str, engines: list[str]) -> dict[str, float]:
    """The measures by their definitions."""
    rows = [row for row in table.to_pylist() if row["scorer"] == scorer]
    value, oracles, views = {}, {}, {}
    for row in rows:
        if row["kind"] == "random":
            continue
        value[row["identity_id"], row["view_index"], row["other_view_index"], row["engine"]] = row["similarity"]
        if row["oracle"] is not None:
            oracles[row["identity_id"], row["other_view_index"], row["engine"]] = row["oracle"]
        if row["kind"] == "positive":
            views.setdefault(row["identity_id"], set()).update((row["view_index"], row["other_view_index"]))
    columns = {name: ([], []) for name in ("11", "22", "12", "21")}
    solved = units = won = trials = 0
    for identity, engine in itertools.product(views, engines):
        margins = []
        for i, j in itertools.combinations(sorted(views[identity]), 2):
            for name, view, painted in (("11", i, i), ("22", j, j), ("12", i, j), ("21", j, i)):
                similarity = value.get((identity, view, painted, engine))
                graded = oracles.get((identity, painted, engine))
                if similarity is not None and graded is not None:
                    columns[name][0].append(similarity)
                    columns[name][1].append(graded)
                positive = value.get((identity, i, j, ""))
                if view == painted and None not in (positive, similarity):
                    margins.append(positive - similarity)
        units += bool(margins)
        solved += bool(margins) and all(margin > 0 for margin in margins)
        won += sum(margin > 0 for margin in margins)
        trials += len(margins)
    r = [stats.pearsonr(*columns[name]).statistic for name in ("11", "22", "12", "21")]
    m_o, m_o_pair = (math.tanh(np.mean(np.arctanh(some))) for some in (r, r[:2]))
    return {"ssr": solved / units, "pa": won / trials, "m_o": m_o, "m_o_pair": m_o_pair, "units": units, "n": trials}


@pytest.fixture(scope="module")
def table() -> pa.Table:
    return records()


@pytest.fixture(scope="module")
def measured(table):
    measures = glitch_measures(table, GROUPS, baseline="frozen", drawing=DRAWING)
    return {(one.scorer, one.name, one.metric): one for one in measures}


@pytest.mark.parametrize("scorer", ["frozen", "trained"])
@pytest.mark.parametrize("name", ["accent", "decal", "part-level"])
def test_measures_of_each_engine_and_of_both_equal_loops(table, measured, scorer, name):
    expected = looped(table, scorer, GROUPS.get(name, [name]))
    for metric in ("m_o", "m_o_pair", "ssr"):
        assert measured[scorer, name, metric].value == pytest.approx(expected[metric], abs=1e-12)
    assert measured[scorer, name, "ssr"].support == expected["units"]
    assert measured[scorer, name, "pa"].support == expected["n"]
    if name != "part-level":  # pooled, engines are weighted by support
        assert measured[scorer, name, "pa"].value == pytest.approx(expected["pa"], abs=1e-12)
    one = measured[scorer, name, "m_o"]
    assert one.low <= one.value <= one.high and one.benchmark == "mtg" and one.is_group == (name == "part-level")


def test_rates_are_those_of_the_metrics_table(table, measured):
    groups = engine_groups(table)
    assert groups["part-level"] == GROUPS["part-level"]
    for row in metrics_rows(table, margin_records(table), groups, resamples=20):
        for metric in ("ssr", "pa"):
            one = measured.get((row.scorer, row.name, metric))
            if one is not None:
                assert (one.value, one.low, one.high, one.coverage) == pytest.approx(
                    (getattr(row, metric), getattr(row, f"{metric}_low"), getattr(row, f"{metric}_high"), row.coverage)
                )


def test_gains_are_paired_differences_on_what_both_measured(table, measured):
    lost = table.filter(pc.field("similarity").is_null())["pair_id"]
    shared = table.filter(pc.invert(pc.is_in(table["pair_id"], lost)))
    assert 0 < len(lost) < 5
    for name, metric in itertools.product(("accent", "decal"), ("ssr", "pa", "m_o", "m_o_pair")):
        gain = measured["trained", name, f"{metric}_gain"]
        worse, better = (looped(shared, scorer, [name]) for scorer in ("frozen", "trained"))
        assert gain.value == pytest.approx(better[metric] - worse[metric], abs=1e-12) and gain.baseline == "frozen"
        assert ("frozen", name, f"{metric}_gain") not in measured


def test_gaps_lower_the_coverage_of_the_cells_they_are_in(measured):
    samples = 7 * 1 + 7 * 3
    # toy:03 has three views: the one missing distractor is part of two of its samples.
    assert measured["frozen", "decal", "pa"].coverage == pytest.approx(1 - 2 / (2 * samples))
    assert measured["frozen", "accent", "pa"].coverage == 1
    assert measured["frozen", "accent", "m_o"].coverage < 1
    assert measured["trained", "part-level", "m_o"].coverage < measured["frozen", "part-level", "m_o"].coverage


def test_samples_are_every_pair_of_views_and_every_engine_given_to_the_source(table):
    frozen = table.filter(pc.field("scorer") == "frozen")
    scores = Samples(table, ["decal"]).scores(frozen)
    assert len(scores) == 7 + 7 * 3
    found = oracle.summarize(scores)
    assert found["num_samples"] == 28 and found["coverage"] < 1
    alone = oracle.summarize(scores.drop_columns(["view_index", "other_view_index", "engine"]).slice(0, 1))
    assert alone["num_samples"] == 1


def test_records_without_crossed_pairs_have_no_m_o_and_say_so(table):
    older = table.filter(pc.field("kind") != "crossed")
    found = {(m.scorer, m.name, m.metric): m for m in glitch_measures(older, GROUPS, baseline="", drawing=DRAWING)}
    m_o, pair = found["frozen", "accent", "m_o"], found["frozen", "accent", "m_o_pair"]
    assert math.isnan(m_o.value) and m_o.coverage < 0.51
    assert math.isfinite(pair.value) and math.isfinite(found["frozen", "accent", "ssr"].value)


def test_without_an_engine_with_an_oracle_there_is_no_mtg(table):
    assert glitch_measures(table, {}, baseline="frozen", drawing=DRAWING) == []
