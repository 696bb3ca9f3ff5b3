"""Agreement with people against scipy and the published averages."""

import math

import numpy as np
import pytest
from scipy import stats

from nearid_ray.errors import UsageError
from nearid_ray.evaluation import human
from nearid_ray.evaluation.bootstrap import difference, interval, resample_weights, resampled


def rated(seed: int, collections: int = 12):
    """(metric with image suffixes in another order, group 1, group 2)."""
    random = np.random.default_rng(seed)
    keys = [f"{c}-{p}" for c in range(collections) for p in range(3)]
    truth = random.normal(size=len(keys))
    groups = [dict(zip(keys, np.round(truth + random.normal(size=len(keys))), strict=True)) for _ in range(2)]
    metric = {f"{key}_0": float(value + random.normal()) for key, value in zip(keys, truth, strict=True)}
    return dict(reversed(metric.items())), groups[0], groups[1]


def slow_r(metric, group, keys):
    return stats.pearsonr([group[key] for key in keys], [metric[f"{key}_0"] for key in keys]).statistic


# Published, per method: NearID, SigLIP2, and the people among themselves (NearID paper, table 2).
PUBLISHED = {
    "nearid": ([0.675, 0.655, 0.546, 0.382, 0.768, 0.306, 0.316], 0.545, 0.071),
    "siglip2": ([0.660, 0.652, 0.480, 0.363, 0.766, 0.253, 0.248], 0.516, 0.079),
    "human": ([0.684, 0.731, 0.651, 0.630, 0.763, 0.530, 0.485], 0.648, None),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_fisher_mean_and_its_spread_are_the_published_ones(name):
    rs, mean, spread = PUBLISHED[name]
    assert human.fisher_mean(rs) == pytest.approx(mean, abs=6e-4)
    if spread is not None:
        assert round(human.standard_error(rs), 3) == spread


def test_alignment_is_the_mean_over_the_two_groups_joined_by_key():
    metric, one, two = rated(0)
    r1, r2 = slow_r(metric, one, list(one)), slow_r(metric, two, list(one))
    found = human.alignment(metric, one, two)
    assert (found.r, found.half_difference) == pytest.approx(((r1 + r2) / 2, abs(r1 - r2) / 2), abs=1e-12)
    assert tuple(found) == (found.r, found.half_difference) == (found[0], found[1])
    assert (found.num_keys, found.coverage, found.only_metric, found.only_ratings) == (36, 1.0, (), ())
    plain = {key.removesuffix("_0"): value for key, value in metric.items()}
    assert human.alignment(plain, one, two) == found


def test_keys_that_do_not_match_and_gaps_are_listed_and_lower_coverage():
    metric, one, two = rated(1)
    del metric["3-1_0"]
    metric["0-0_0"], metric["zebra-0_0"] = math.nan, 0.5
    two = {key: value for key, value in two.items() if key != "5-2"}
    found = human.alignment(metric, one, two)
    assert found.only_metric == ("zebra-0_0",) and found.only_ratings == ("3-1",) and found.not_finite == ("0-0",)
    keys = [key for key in one if key not in ("3-1", "0-0")]
    assert found.r_group1 == pytest.approx(slow_r(metric, one, keys))
    assert found.r_group2 == pytest.approx(slow_r(metric, two, [key for key in keys if key != "5-2"]))
    assert found.num_keys == 34 and found.coverage == pytest.approx((34 + 33) / 71)


def test_keys_without_a_match_at_all_and_two_images_of_a_rating_are_refused():
    metric, one, two = rated(2)
    with pytest.raises(UsageError, match=r"none of the metric's 1 keys is rated.*dog.*0-0"):
        human.alignment({"dog": 1.0}, one, two)
    with pytest.raises(UsageError, match="1 ratings have two scores: 0-0_0 and 0-0_1"):
        human.alignment({**metric, "0-0_1": 0.5}, one, two)
    nothing = human.alignment({}, one, two)
    assert math.isnan(nothing.r) and nothing.coverage == 0.0
    assert math.isnan(human.alignment(metric, {}, {}).coverage)


def test_a_constant_metric_agrees_with_nobody():
    metric, one, two = rated(3)
    assert tuple(human.alignment(dict.fromkeys(metric, 0.3), one, two)) == (0.0, 0.0)


def test_resamples_draw_whole_collections_for_both_groups():
    metric, one, two = rated(4)
    statistic = human.alignment_statistic(metric, one, two)
    slow = []
    for weights in np.concatenate(list(resample_weights(12, 20, seed=1))):
        keys = [
            f"{collection}-{prompt}"
            for collection, weight in zip(statistic.identities, weights, strict=True)
            for _ in range(int(weight))
            for prompt in range(3)
        ]
        slow.append((slow_r(metric, one, keys) + slow_r(metric, two, keys)) / 2)
    np.testing.assert_allclose(resampled(statistic, resamples=20, seed=1), slow, atol=1e-12)


def test_rows_by_method_and_category_end_in_their_fisher_means():
    tables = {name: rated(seed) for seed, name in enumerate(["dreambooth", "emu2"])}
    metric, one, two = ({name: table[part] for name, table in tables.items()} for part in range(3))
    categories = {str(c): "animal" if c < 6 else "style" for c in range(12)} | {"99": "nobody"}
    rows = human.by_method(metric, one, two, categories=categories, resamples=20)
    assert [(row["category"], row["method"]) for row in rows] == [
        (category, method)
        for category in ("all", "animal", "style")
        for method in ("dreambooth", "emu2", "fisher_mean")
    ]
    animals = [f"{c}-{p}" for c in range(6) for p in range(3)]
    r = (slow_r(metric["emu2"], one["emu2"], animals) + slow_r(metric["emu2"], two["emu2"], animals)) / 2
    assert rows[4]["r"] == pytest.approx(r, abs=1e-12) and rows[4]["num_keys"] == 18
    assert rows[2]["r"] == pytest.approx(human.fisher_mean([rows[0]["r"], rows[1]["r"]]))
    mean = interval(human.methods_statistic(metric, one, two), resamples=20)
    assert (rows[2]["low"], rows[2]["high"]) == (mean.low, mean.high) and mean.value == pytest.approx(rows[2]["r"])
    with pytest.raises(UsageError, match="emu2 are in one of them only"):
        human.by_method(metric, {"dreambooth": one["dreambooth"]}, two)
    with pytest.raises(UsageError, match="11 collections have no category: 1, 10, 11, 2, 3 and 6 more"):
        human.by_method(metric, one, two, categories={"0": "animal"})


def test_people_among_themselves_and_a_better_metric():
    metric, one, two = rated(5)
    both = human.between_groups(one, {**two, "77-0": 3})
    assert both.value() == pytest.approx(stats.pearsonr(list(one.values()), list(two.values())).statistic)
    assert both.coverage == pytest.approx(36 / 37)
    with pytest.raises(UsageError, match="no key is rated by both"):
        human.between_groups({"1-0": 1}, {"2-0": 1})
    perfect = {key: one[key] + two[key] for key in one}
    found = difference(
        human.alignment_statistic(metric, one, two), human.alignment_statistic(perfect, one, two), resamples=50
    )
    assert found.share_above_zero == 1.0
