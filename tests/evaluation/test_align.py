"""Alignment with people from records: against scipy and explicit loops; gaps, constants and missing groups in words."""

import math

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats

from nearid_ray.errors import UsageError
from nearid_ray.evaluation.align import ALL, PEOPLE, AlignSettings, measure_alignment
from nearid_ray.evaluation.align_records import alignment_records, read_people, similarities_of
from schemas import ALIGNMENT, EMBEDDINGS, GENERATED_SIMILARITIES, RATINGS, validate

METHODS = ("emu", "lora", "sd")
CATEGORIES = ("animal", "object")
QUICK = AlignSettings(resamples=40)


def identities(count: int = 8) -> dict[str, str]:
    return {f"dreambench:object_{i}-x": CATEGORIES[i % 2] for i in range(count)}


def ratings_table(
    seed: int = 0, *, skip=(), metrics=("gpt",), groups=("group1", "group2"), prompts: int = 4
) -> pa.Table:
    """Ratings of every method, identity and prompt by groups of people, and metrics; `skip` holds (rater, method)."""
    random = np.random.default_rng(seed)
    rows = []
    for method in METHODS:
        for identity, category in identities().items():
            for prompt in range(prompts):
                for rater in (*groups, *metrics):
                    if (rater, method) in skip:
                        continue
                    rows.append(
                        {
                            "rating_id": f"{len(rows)}", "identity_id": identity, "method": method,
                            "prompt_index": prompt, "image_index": -1, "rater": rater,
                            "rater_kind": "metric" if rater in metrics else "human", "aspect": "concept",
                            "category": category, "score": float(random.integers(0, 5)), "source": "test", "error": "",
                        }
                    )  # fmt: skip
    return pa.Table.from_pylist(rows, schema=RATINGS.schema)


def pictures(*, prompts: int = 4, images: int = 2, methods=METHODS) -> pa.Table:
    return pa.Table.from_pylist([
        {"generated_id": f"{m}/{i}/{p}/{n}", "identity_id": i, "method": m, "prompt_index": p, "image_index": n,
         "category": c, "error": ""}
        for m in methods for i, c in identities().items() for p in range(prompts) for n in range(images)
    ])  # fmt: skip


def embedded(generated: pa.Table, *, seed: int = 0, views: int = 1, broken=(), order: int = 1) -> pa.Table:
    """Random unit vectors of views and generated pictures."""
    random = np.random.default_rng(seed)

    def row(image: str, role: str, identity: str, view: int) -> dict:
        vector = random.normal(size=6)
        known = {"image_id": image, "role": role, "identity_id": identity, "view_index": view, "engine": "",
                 "category": "", "split": "test", "oracle": None, "scorer": "s", "condition": "full"}  # fmt: skip
        gone = image in broken
        return known | {
            "embedding": None if gone else (vector / np.linalg.norm(vector)).astype(np.float32),
            "error": "it is broken" if gone else "",
        }

    rows = [row(f"{name}#{v}", "view", name, v) for name in identities() for v in range(views)]
    rows += [row(one["generated_id"], "generated", one["identity_id"], -1) for one in generated.to_pylist()]
    return pa.Table.from_pylist(rows[::order], schema=EMBEDDINGS.schema)


def measured(similarities: pa.Table, ratings: pa.Table, settings: AlignSettings = QUICK, methods=METHODS):
    people = read_people(ratings, aspect=settings.aspect, groups=settings.groups)
    records = alignment_records(similarities, people, methods)
    assert validate(records) == []
    return measure_alignment(records, settings, list(people.groups))


def value(aligned, scorer: str, name: str, metric: str = "m_h"):
    (found,) = [m for m in aligned.measures if (m.scorer, m.name, m.metric) == (scorer, name, metric)]
    return found


def slow_scores(similarities: pa.Table) -> dict[tuple[str, str, int], float]:
    """Mean over pictures of the mean over views, by (method, identity, prompt), with explicit loops."""
    by_picture: dict[tuple, dict[str, list[float]]] = {}
    for row in similarities.to_pylist():
        key = (row["method"], row["identity_id"], row["prompt_index"])
        by_picture.setdefault(key, {}).setdefault(row["generated_id"], []).append(row["similarity"])
    return {key: np.mean([np.mean(values) for values in of.values()]) for key, of in by_picture.items()}


@pytest.fixture(scope="module")
def similarities() -> pa.Table:
    generated = pictures()
    return similarities_of(generated, embedded(generated, views=2), scorer="s", condition="full")


def test_every_picture_is_compared_with_every_view_of_its_reference(similarities):
    assert validate(similarities) == []
    generated = pictures()
    vectors = {row["image_id"]: np.array(row["embedding"]) for row in embedded(generated, views=2).to_pylist()}
    assert similarities.num_rows == 2 * generated.num_rows
    for row in similarities.to_pylist():
        expected = vectors[row["generated_id"]] @ vectors[f"{row['identity_id']}#{row['view_index']}"]
        assert row["similarity"] == pytest.approx(expected, abs=1e-12)


def test_the_order_of_embeddings_and_ratings_plays_no_part(similarities):
    generated = pictures()
    turned = similarities_of(generated, embedded(generated, views=2, order=-1), scorer="s", condition="full")
    assert turned.equals(similarities)
    ratings = ratings_table()
    backwards = ratings.take(pa.array(np.arange(ratings.num_rows)[::-1]))
    assert measured(similarities, ratings).measures == measured(turned, backwards).measures


def test_m_h_is_the_mean_of_pearsons_r_with_both_groups_and_the_mean_row_fishers(similarities):
    ratings = ratings_table()
    aligned, scores = measured(similarities, ratings), slow_scores(similarities)
    for wanted, names in ((ALL, set(identities())), *((c, {i for i, k in identities().items() if k == c})
                                                      for c in CATEGORIES)):  # fmt: skip
        means, h_h = [], []
        for method in METHODS:
            by_group = {}
            for group in ("group1", "group2"):
                rated = [r for r in ratings.to_pylist()
                         if (r["rater"], r["method"]) == (group, method) and r["identity_id"] in names]  # fmt: skip
                mine = [scores[method, r["identity_id"], r["prompt_index"]] for r in rated]
                by_group[group] = stats.pearsonr([r["score"] for r in rated], mine).statistic
            means.append(np.mean(list(by_group.values())))
            one, two = ([r["score"] for r in ratings.to_pylist()
                         if (r["rater"], r["method"]) == (group, method) and r["identity_id"] in names]
                        for group in ("group1", "group2"))  # fmt: skip
            h_h.append(stats.pearsonr(one, two).statistic)
            if wanted == ALL:
                assert value(aligned, "s", method).value == pytest.approx(means[-1], abs=1e-12)
                half = abs(by_group["group1"] - by_group["group2"]) / 2
                assert value(aligned, "s", method, "m_h_spread").value == pytest.approx(half, abs=1e-12)
        name = ALL if wanted == ALL else f"category:{wanted}"
        assert value(aligned, "s", name).value == pytest.approx(np.tanh(np.mean(np.arctanh(means))), abs=1e-12)
        assert value(aligned, PEOPLE, name, "h_h").value == pytest.approx(np.tanh(np.mean(np.arctanh(h_h))), abs=1e-12)
        assert value(aligned, "s", name).is_group and value(aligned, "s", name).coverage == 1
    assert not value(aligned, "s", "emu").is_group
    assert value(aligned, "s", "emu").support == 32


def test_metrics_of_the_ratings_are_columns_and_gains_are_over_the_baseline(similarities):
    aligned = measured(similarities, ratings_table())
    assert {m.scorer for m in aligned.measures} == {PEOPLE, "s", "gpt"}
    for name in (*METHODS, ALL, "category:animal"):
        gain = value(aligned, "gpt", name, "m_h_gain")
        difference = value(aligned, "gpt", name).value - value(aligned, "s", name).value
        assert gain.value == pytest.approx(difference, abs=1e-12)
        assert gain.low <= gain.value <= gain.high and gain.baseline == "s"
    other = measured(similarities, ratings_table(), AlignSettings(resamples=40, baseline="gpt"))
    assert value(other, "s", ALL, "m_h_gain").value == pytest.approx(-value(aligned, "gpt", ALL, "m_h_gain").value)
    with pytest.raises(UsageError, match="baseline is 'nobody'; expected one of s, gpt"):
        measured(similarities, ratings_table(), AlignSettings(baseline="nobody"))


def test_keys_that_do_not_match_are_listed_and_lower_coverage(similarities):
    ratings = ratings_table(prompts=5)  # the fifth prompt has no picture
    rows = [r for r in ratings.to_pylist() if not (r["method"] == "sd" and r["prompt_index"] == 0)]
    aligned = measured(similarities, pa.Table.from_pylist(rows, schema=RATINGS.schema))
    found = {(u.method, u.what, u.scorers): u for u in aligned.unmatched}
    assert set(found) == {*((method, "unscored", ("s",)) for method in METHODS), ("sd", "unrated", ("s",))}
    assert found["emu", "unscored", ("s",)].keys == tuple(f"{name}-4" for name in sorted(identities()))
    assert found["sd", "unrated", ("s",)].keys == tuple(f"{name}-0" for name in sorted(identities()))
    assert (found["emu", "unscored", ("s",)].of, found["sd", "unrated", ("s",)].of) == (40, 32)
    assert value(aligned, "s", "emu").coverage == pytest.approx(32 / 40)


def test_broken_pictures_and_lost_references_are_no_scores(similarities):
    generated = pictures(images=1)
    broken = ("emu/dreambench:object_0-x/0/0", "dreambench:object_1-x#0")
    records = similarities_of(generated, embedded(generated, broken=broken), scorer="s", condition="full")
    said = {row["error"] for row in records.to_pylist()}
    assert said == {"", "it is broken", "its reference: it is broken"}
    assert sum(row["similarity"] is None for row in records.to_pylist()) == 1 + 3 * 4
    aligned = measured(records, ratings_table())
    failed = next(u for u in aligned.unmatched if (u.method, u.what) == ("emu", "failed"))
    assert len(failed.keys) == 5 and "dreambench:object_0-x-0" in failed.keys
    embeddings = embedded(generated).to_pylist()
    without = pa.Table.from_pylist([r for r in embeddings if r["role"] != "view"], schema=EMBEDDINGS.schema)
    lost = similarities_of(generated, without, scorer="s", condition="full")
    assert set(lost["error"].to_pylist()) == {"there is no embedding of its reference"}
    assert set(lost["view_index"].to_pylist()) == {-1} and validate(lost) == []


def test_constant_scores_count_as_zero_and_are_said(similarities):
    place = GENERATED_SIMILARITIES.schema.get_field_index("similarity")
    field = GENERATED_SIMILARITIES.schema.field(place)
    constant = similarities.set_column(place, field, pa.array([0.5] * similarities.num_rows))
    aligned = measured(constant, ratings_table())
    assert value(aligned, "s", ALL).value == value(aligned, "s", "emu").value == 0
    assert "s gives emu 32 times the score 0.5: r counts as 0." in aligned.notes


def test_one_group_alone_is_measured_and_said(similarities):
    ratings = ratings_table(groups=("group2",))
    aligned, scores = measured(similarities, ratings), slow_scores(similarities)
    mine = [r for r in ratings.to_pylist() if (r["method"], r["rater"]) == ("sd", "group2")]
    expected = stats.pearsonr(
        [r["score"] for r in mine], [scores["sd", r["identity_id"], r["prompt_index"]] for r in mine]
    )
    assert value(aligned, "s", "sd").value == pytest.approx(expected.statistic, abs=1e-12)
    assert math.isnan(value(aligned, "s", "sd", "m_h_spread").value)
    assert PEOPLE not in {m.scorer for m in aligned.measures}
    assert "one group of people (group2)" in aligned.notes[0]


def test_a_method_that_a_group_did_not_rate_has_no_m_h_and_no_mean_is_made_up(similarities):
    aligned = measured(similarities, ratings_table(skip={("group2", "sd")}))
    assert math.isnan(value(aligned, "s", "sd").value) and math.isnan(value(aligned, "s", ALL).value)
    assert math.isnan(value(aligned, PEOPLE, ALL, "h_h").value)
    assert not math.isnan(value(aligned, "s", "emu").value)
    assert "group2 rated nothing of sd: no M-H of that method, and so no mean over methods." in aligned.notes
    without = measured(similarities, ratings_table(skip={("gpt", "sd")}))
    assert math.isnan(value(without, "gpt", ALL).value) and not math.isnan(value(without, "s", ALL).value)
    assert "gpt has no score of sd: no M-H of that method, and so no mean over methods." in without.notes
    assert not math.isnan(value(measured(similarities, ratings_table(), methods=("emu",)), "s", ALL).value)


def test_one_rated_prompt_is_no_correlation():
    keys = [{"identity_id": "a", "method": "m", "prompt_index": 0, "category": "animal", "scorer": "s",
             "condition": "full", "score": 0.5, "num_pictures": 1, "rating_1": 1.0, "rating_2": 2.0}]  # fmt: skip
    records = pa.Table.from_pylist(keys, schema=ALIGNMENT.schema)
    aligned = measure_alignment(records, QUICK, ["group1", "group2"])
    assert math.isnan(value(aligned, "s", "m").value)
    assert "m has one rated prompt; a correlation takes two: no M-H of that method." in aligned.notes


def test_wrong_ratings_and_names_are_refused(similarities):
    ratings = ratings_table(groups=("a", "b", "c"))
    with pytest.raises(UsageError, match="by the groups a, b, c; M-H is the mean over two"):
        read_people(ratings)
    assert list(read_people(ratings, groups=("c", "a")).groups) == ["c", "a"]
    with pytest.raises(UsageError, match="no group d; they have a, b, c"):
        read_people(ratings, groups=("a", "d"))
    with pytest.raises(UsageError, match="none by people of the aspect 'prompt'"):
        read_people(ratings_table(), aspect="prompt")
    with pytest.raises(UsageError, match="s is a scorer and a metric of the ratings"):
        measured(similarities, ratings_table(metrics=("s",)))
    with pytest.raises(UsageError, match="nothing to compare"):
        measured(similarities, ratings_table(), methods=())
