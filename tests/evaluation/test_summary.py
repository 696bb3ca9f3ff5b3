"""The metrics table and correlations against numpy, scipy and explicit loops."""

import math

import numpy as np
import pyarrow as pa
import pytest

from nearid_ray.evaluation.bootstrap import resample_weights
from nearid_ray.evaluation.correlations import bootstrap_pearson, fisher_mean, oracle_agreement, pearson
from nearid_ray.evaluation.margins import sample_success_rate
from nearid_ray.evaluation.measures import headline
from nearid_ray.evaluation.pairs import plan_pairs
from nearid_ray.evaluation.similarities import margin_records, similarity_records
from nearid_ray.evaluation.summary import (
    engine_groups,
    metrics_rows,
    row_from_dict,
    row_measures,
    row_to_dict,
    rows_to_table,
)


def records(scorers=("frozen", "trained"), engines=("decal", "redraw", "reshape"), identities: int = 12) -> pa.Table:
    """Three views an identity; `trained` sees identities more and distractors less than `frozen`."""
    random = np.random.default_rng(0)
    rows, vectors = [], []
    for n in range(identities):
        own = random.normal(size=16)
        for view in range(3):
            background = random.normal(size=16)
            for engine in ("", *engines):
                oracle = float(random.random()) if engine == "decal" else None
                role = "distractor" if engine else "view"
                rows.append(
                    {
                        "image_id": f"{n}-{view}-{engine}",
                        "role": role,
                        "identity_id": f"toy:{n:02d}",
                        "view_index": view,
                        "engine": engine,
                        "category": "mug",
                        "split": "test",
                        "oracle": oracle,
                    }
                )
                other = random.normal(size=16) if engine else own
                vectors.append(np.stack([1.0 * other + background, 1.6 * other + background]))
    images, embedding_NSD = pa.Table.from_pylist(rows), np.array(vectors)
    plan = plan_pairs(images, random_views=4)
    return pa.concat_tables(
        [similarity_records(embedding_NSD[:, n], plan, scorer=scorer) for n, scorer in enumerate(scorers)]
    )


def test_groups_are_train_unseen_object_level_part_level_and_all():
    table = records()
    assert engine_groups(table, ["redraw"]) == {
        "train": ["redraw"],
        "unseen": ["reshape"],
        "object-level": ["redraw", "reshape"],
        "part-level": ["decal"],
        "all": ["decal", "redraw", "reshape"],
    }
    assert list(engine_groups(table)) == ["object-level", "part-level", "all"]
    assert engine_groups(records(engines=("exemplar",))) == {"object-level": ["exemplar"]}


def test_the_papers_engines_are_grouped_as_in_the_paper_and_its_headline_leaves_canny_out():
    engines = ("flux-fill-512", "sdxl-512", "flux-canny-512", "decal")
    table = records(engines=engines)
    groups = engine_groups(table)
    assert groups == {
        "train": ["flux-fill-512"],
        "unseen": ["sdxl-512"],
        "extra": ["flux-canny-512"],
        "headline": ["flux-fill-512", "sdxl-512"],
        "part-level": ["decal"],
        "all": sorted(engines),
    }
    measures = row_measures(metrics_rows(table, margin_records(table), groups, resamples=5), groups, "frozen")
    assert headline(measures) == "headline"
    assert {one.name for one in measures if one.is_group} == {"train", "unseen", "extra", "headline", "part-level"}
    assert {one.benchmark for one in measures if one.name in ("decal", "part-level")} == {"mtg"}
    assert engine_groups(table, ["sdxl-512"])["train"] == ["sdxl-512"]
    only = engine_groups(records(engines=("flux-fill-512",)))
    assert only == {"headline": ["flux-fill-512"]}, "a group that equals the headline is not shown twice"


def test_gains_say_in_how_many_resamples_the_second_is_better():
    table = records()
    rows = {
        (r.scorer, r.name): r for r in metrics_rows(table, margin_records(table), engine_groups(table), resamples=50)
    }
    row = rows["trained", "object-level"]
    assert row.ssr_gain_share == 1 and row.ssr_gain_low > 0
    assert math.isnan(rows["frozen", "object-level"].ssr_gain_share)
    measures = row_measures(list(rows.values()), engine_groups(table), "frozen")
    gain = next(one for one in measures if (one.metric, one.name) == ("ssr_gain", "object-level"))
    assert gain.significant and gain.support == row.units and gain.baseline == "frozen"


def test_rows_hold_what_the_records_say():
    table = records()
    margins = margin_records(table)
    rows = metrics_rows(table, margins, engine_groups(table, ["redraw"]), resamples=50)
    assert [(r.scorer, r.name) for r in rows[:4]] == [
        ("frozen", "decal"),
        ("frozen", "redraw"),
        ("frozen", "reshape"),
        ("frozen", "train"),
    ]
    found = {(r.scorer, r.name): r for r in rows}
    trials = [t for t in margins.to_pylist() if t["scorer"] == "trained" and t["engine"] in ("redraw", "reshape")]
    row = found["trained", "object-level"]
    units = [t["identity_id"] + t["engine"] for t in trials]
    assert row.ssr == pytest.approx(sample_success_rate([t["margin"] for t in trials], units))
    assert row.pa == pytest.approx(np.mean([t["success"] for t in trials]))
    assert (row.identities, row.units, row.trials) == (12, 24, 12 * 2 * 6)
    assert row.ssr_low <= row.ssr <= row.ssr_high
    assert row.ssr_gain == pytest.approx(row.ssr - found["frozen", "object-level"].ssr)
    assert math.isnan(found["frozen", "object-level"].ssr_gain)
    assert 0.5 < row.ordering <= 1.0
    assert math.isnan(row.oracle_r) and row.oracle_pairs == 0
    assert -1 <= found["trained", "decal"].oracle_r <= 1 and found["trained", "decal"].oracle_pairs == 36


def test_a_scorer_without_baseline_has_no_gain_and_rows_survive_json():
    table = records(scorers=("a", "b"))
    rows = metrics_rows(table, margin_records(table), engine_groups(table), resamples=10)
    assert all(math.isnan(row.ssr_gain) for row in rows)
    assert [row_to_dict(row_from_dict(row_to_dict(row))) for row in rows] == [row_to_dict(row) for row in rows]
    assert rows_to_table(rows)["ssr_gain"].null_count == len(rows)


def test_pearson_equals_numpy_and_leaves_gaps_out():
    random = np.random.default_rng(0)
    x, y = 1e3 + random.normal(size=50), random.normal(size=50)
    assert pearson(x, y) == pytest.approx(np.corrcoef(x, y)[0, 1], abs=1e-12)
    assert pearson([*x, np.nan, 5], [*y, 3, np.inf]) == pytest.approx(np.corrcoef(x, y)[0, 1], abs=1e-12)
    assert pearson(np.full(5, 0.1), np.arange(5)) == 0.0
    assert fisher_mean([0.3, 0.3]) == pytest.approx(0.3)


def test_correlation_interval_equals_explicit_resampling():
    random = np.random.default_rng(1)
    identity = random.integers(0, 10, 60)
    x = random.normal(size=60)
    y = x + random.normal(size=60)
    names = np.unique(identity)
    slow = []
    for block in resample_weights(len(names), 40, seed=5):
        for weights in block:
            rows = [
                r
                for name, w in zip(names, weights, strict=True)
                for r in np.flatnonzero(identity == name).repeat(int(w))
            ]
            slow.append(np.corrcoef(x[rows], y[rows])[0, 1])
    interval = bootstrap_pearson(x, y, identity, resamples=40, seed=5)
    assert interval.low == pytest.approx(np.quantile(slow, 0.025), abs=1e-12)
    assert interval.high == pytest.approx(np.quantile(slow, 0.975), abs=1e-12)


def test_oracle_agreement_pairs_each_similarity_with_the_oracle_of_its_distractor():
    random = np.random.default_rng(2)
    similarity_NAB, oracle_N2 = random.normal(size=(40, 2, 2)), random.random((40, 2))
    similarity_NAB[:, :, 0] += 2 * oracle_N2[:, None, 0]
    correlation = {
        (view, distractor): np.corrcoef(similarity_NAB[:, view, distractor], oracle_N2[:, distractor])[0, 1]
        for view in (0, 1)
        for distractor in (0, 1)
    }
    own = similarity_NAB[:, [0, 1], [0, 1]]
    crossed = similarity_NAB[:, [0, 1], [1, 0]]
    both, pair = oracle_agreement(own, crossed, oracle_N2)
    assert both == pytest.approx(np.tanh(np.mean([np.arctanh(r) for r in correlation.values()])))
    assert pair == pytest.approx(np.tanh((np.arctanh(correlation[0, 0]) + np.arctanh(correlation[1, 1])) / 2))
    with pytest.raises(ValueError, match=r"\(samples, 2\)"):
        oracle_agreement(own, crossed, oracle_N2[:, :1])
