"""Pairs, similarities and margin records against explicit loops over identities, views and engines."""

import math

import numpy as np
import pyarrow as pa
import pytest

import schemas
from nearid_ray.errors import UsageError
from nearid_ray.evaluation.margins import count_trials
from nearid_ray.evaluation.pairs import plan_pairs
from nearid_ray.evaluation.similarities import (
    margin_counts,
    margin_records,
    ordering_counts,
    pair_similarity,
    scored_records,
    similarity_records,
)


def image_table(seed: int, identities: int = 9, engines=("redraw", "decal")) -> pa.Table:
    """Identities with one to four views in random row order; some distractors are missing, decal has an oracle."""
    random = np.random.default_rng(seed)
    rows = []
    for n in range(identities):
        for view in range(int(random.integers(1, 5))):
            common = {"identity_id": f"toy:{n:03d}", "view_index": view, "category": "mug", "split": "test"}
            rows.append({**common, "image_id": f"v{n}-{view}", "role": "view", "engine": "", "oracle": None})
            for engine in engines:
                if random.random() < 0.8:
                    oracle = float(random.random()) if engine == "decal" else None
                    image_id = f"d{n}-{view}-{engine}"
                    rows.append(
                        {**common, "image_id": image_id, "role": "distractor", "engine": engine, "oracle": oracle}
                    )
    random.shuffle(rows)
    return pa.Table.from_pylist(rows)


def embeddings_for(images: pa.Table, seed: int) -> np.ndarray:
    embedding_ND = np.random.default_rng(seed).normal(size=(len(images), 8)).astype(np.float32)
    embedding_ND[3] = np.nan
    return embedding_ND


def looped_pairs(images: pa.Table):
    """{(kind, first image, second image)} by the definition."""
    rows = images.to_pylist()
    pairs = set()
    for a in rows:
        for b in rows:
            same = a["identity_id"] == b["identity_id"]
            if a["role"] == b["role"] == "view" and same and a["view_index"] < b["view_index"]:
                pairs.add(("positive", a["image_id"], b["image_id"]))
            if a["role"] == "view" and b["role"] == "distractor" and same and a["view_index"] == b["view_index"]:
                pairs.add(("distractor", a["image_id"], b["image_id"]))
            other = same and a["view_index"] != b["view_index"]
            if a["role"] == "view" and b["role"] == "distractor" and other and b["engine"] == "decal":
                pairs.add(("crossed", a["image_id"], b["image_id"]))
    return pairs


@pytest.mark.parametrize("seed", range(4))
def test_pairs_are_those_of_the_definition_and_each_once(seed):
    images = image_table(seed)
    plan = plan_pairs(images)
    ids = images["image_id"].to_pylist()
    found = [
        (kind, ids[first], ids[second])
        for kind, first, second in zip(plan.described["kind"].to_pylist(), plan.first_P, plan.second_P, strict=True)
    ]
    assert len(found) == len(set(found))
    assert set(found) == looped_pairs(images)


def test_crossed_pairs_are_planned_for_engines_with_an_oracle_alone_and_controls_have_none():
    images = image_table(1)
    crossed = plan_pairs(images).described.filter(pa.compute.field("kind") == "crossed")
    assert set(crossed["engine"].to_pylist()) == {"decal"} and crossed["oracle"].null_count == 0
    place = images.schema.get_field_index("oracle")
    without = images.set_column(place, "oracle", pa.nulls(len(images), pa.float64()))
    assert "crossed" not in plan_pairs(without).described["kind"].to_pylist()
    engine = pa.compute.replace_substring(images["engine"], "decal", "decal-control")
    controls = images.set_column(images.schema.get_field_index("engine"), "engine", engine)
    assert "crossed" not in plan_pairs(controls).described["kind"].to_pylist()


def test_records_meet_the_contract_and_do_not_depend_on_the_order_of_the_images():
    images = image_table(1)
    embedding_ND = embeddings_for(images, 1)
    shuffled = np.random.default_rng(0).permutation(len(images))
    tables = []
    for order in (np.arange(len(images)), shuffled):
        plan = plan_pairs(images.take(pa.array(order)), random_views=5, seed=2)
        tables.append(similarity_records(embedding_ND[order], plan, scorer="frozen"))
    assert schemas.validate(tables[0], schemas.SIMILARITIES) == []
    assert tables[0].equals(tables[1])
    assert tables[0]["similarity"].null_count > 0


@pytest.mark.parametrize("seed", range(4))
def test_margin_records_equal_explicit_loops(seed):
    images = image_table(seed, identities=6)
    embedding_ND = embeddings_for(images, seed)
    plan = plan_pairs(images)
    table = margin_records(similarity_records(embedding_ND, plan, scorer="frozen"))
    assert schemas.validate(table, schemas.MARGINS) == []

    rows = {
        (r["identity_id"], r["view_index"], r["engine"]): vector
        for r, vector in zip(images.to_pylist(), embedding_ND.astype(np.float64), strict=True)
    }

    def cosine(a, b):
        return float(a @ b / math.sqrt(a @ a) / math.sqrt(b @ b))

    expected = {}
    for identity, i, engine in rows:
        for other, j, other_engine in rows:
            if engine and other == identity and other_engine == "" and j != i:
                view, positive, distractor = rows[identity, i, ""], rows[identity, j, ""], rows[identity, i, engine]
                expected[identity, i, j, engine] = cosine(view, positive) - cosine(view, distractor)
    found = {
        (r["identity_id"], r["anchor_view_index"], r["positive_view_index"], r["engine"]): r for r in table.to_pylist()
    }
    assert found.keys() == expected.keys()
    for key, margin in expected.items():
        if math.isfinite(margin):
            assert found[key]["margin"] == pytest.approx(margin, abs=1e-12)
            assert found[key]["valid"] and found[key]["success"] == (margin > 0)
        else:
            assert found[key]["margin"] is None and not found[key]["valid"] and not found[key]["success"]


def test_several_scorers_and_conditions_stay_apart_in_one_table():
    images = image_table(2)
    plan = plan_pairs(images)
    parts = {
        (scorer, condition): similarity_records(embeddings_for(images, n), plan, scorer=scorer, condition=condition)
        for n, (scorer, condition) in enumerate([("a", "full"), ("b", "full"), ("a", "foreground")])
    }
    together = margin_records(pa.concat_tables(parts.values()))
    assert schemas.validate(together, schemas.MARGINS) == []
    for (scorer, condition), part in parts.items():
        alone = margin_counts(margin_records(part), scorer, condition)
        counts = margin_counts(together, scorer, condition)
        assert (counts.ssr(), counts.pa(), counts.support()) == (alone.ssr(), alone.pa(), alone.support())


def test_random_pairs_join_views_of_different_identities_and_are_nearly_uniform():
    images = image_table(0, identities=6)
    plan = plan_pairs(images, random_views=4000, seed=1)
    random = plan.described.filter(pa.compute.field("kind") == "random").to_pylist()
    assert all(r["identity_id"] != r["other_identity_id"] for r in random)
    views = [r for r in images.to_pylist() if r["role"] == "view"]
    expected = sum(a["identity_id"] != b["identity_id"] for a in views for b in views)
    assert len(random) == expected
    assert plan.described.equals(plan_pairs(images, random_views=4000, seed=1).described)
    few, other = (plan_pairs(images, random_views=2, seed=seed) for seed in (1, 2))
    assert not few.described.equals(other.described)


def test_ordering_counts_equal_explicit_loops():
    images = image_table(3)
    plan = plan_pairs(images, random_views=3, seed=0)
    records = similarity_records(embeddings_for(images, 3), plan, scorer="frozen")
    wins = total = 0
    rows = records.to_pylist()
    for d in (r for r in rows if r["kind"] == "distractor" and r["engine"] == "decal"):
        for r in (r for r in rows if r["kind"] == "random"):
            same_anchor = (r["identity_id"], r["view_index"]) == (d["identity_id"], d["view_index"])
            if same_anchor and None not in (d["similarity"], r["similarity"]):
                total += 1
                wins += d["similarity"] > r["similarity"]
    counts = ordering_counts(records, "frozen").of_engines(["decal"])
    assert counts.trial_count() == total
    assert counts.success_IE.sum() == wins


def test_a_view_compared_with_another_views_distractor_is_no_trial():
    images = image_table(3)
    records = similarity_records(embeddings_for(images, 3), plan_pairs(images, random_views=2), scorer="frozen")
    distractors = records.filter(pa.compute.field("kind") == "distractor")
    place = records.schema.get_field_index("view_index")
    other = pa.compute.subtract(pa.scalar(3, pa.int32()), distractors["view_index"])
    crossed = distractors.set_column(place, records.schema.field(place), other)
    crossed = crossed.filter(pa.compute.field("view_index") != pa.compute.field("other_view_index"))
    assert len(crossed) > 0
    both = pa.concat_tables([records, crossed])
    assert margin_records(both).equals(margin_records(records))
    counts, expected = ordering_counts(both, "frozen"), ordering_counts(records, "frozen")
    assert (counts.success_IE == expected.success_IE).all() and (counts.valid_IE == expected.valid_IE).all()


def test_blocks_do_not_change_similarities(monkeypatch):
    images = image_table(3)
    plan = plan_pairs(images, random_views=3)
    embedding_ND = embeddings_for(images, 3)
    whole = pair_similarity(embedding_ND, plan)
    monkeypatch.setattr("nearid_ray.evaluation.similarities._BLOCK_NUMBERS", 20)
    np.testing.assert_array_equal(pair_similarity(embedding_ND, plan), whole)


def test_no_images_and_views_without_distractors_give_empty_records():
    images = image_table(0).filter(pa.compute.field("role") == "view")
    assert len(margin_records(similarity_records(np.ones((len(images), 2)), plan_pairs(images), scorer="x"))) == 0
    empty = images.slice(0, 0)
    records = similarity_records(np.empty((0, 2)), plan_pairs(empty, random_views=2), scorer="x")
    assert len(records) == len(margin_records(records)) == 0
    assert math.isnan(margin_counts(margin_records(records), "x").ssr())
    assert math.isnan(ordering_counts(records, "x").pa())


def test_scores_from_elsewhere_take_the_same_road():
    images = image_table(2)
    plan = plan_pairs(images)
    score_P = np.linspace(0, 10, len(plan))
    score_P[0] = np.nan
    records = scored_records(plan, score_P, scorer="judge", condition="full")
    table = margin_records(records)
    counts = count_trials(
        [m if m is not None else np.nan for m in table["margin"].to_pylist()],
        table["identity_id"].to_pylist(),
        table["engine"].to_pylist(),
    )
    assert counts.ssr() == margin_counts(table, "judge").ssr()


def test_wrong_images_are_refused_by_name():
    images = image_table(0)
    with pytest.raises(UsageError, match="no column oracle"):
        plan_pairs(images.drop_columns(["oracle"]))
    with pytest.raises(UsageError, match=r"stand twice.*toy:"):
        plan_pairs(pa.concat_tables([images, images.slice(0, 1)]))
    with pytest.raises(ValueError, match="condition is 'masked'"):
        scored_records(plan_pairs(images), np.zeros(len(plan_pairs(images))), scorer="x", condition="masked")
