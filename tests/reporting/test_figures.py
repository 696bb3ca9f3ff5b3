"""Figures show their numbers at the places that their axes say; what they compute agrees with slow versions."""

import itertools
import math
import re

import numpy as np
import pytest
import scipy.stats

from nearid_ray.evaluation.calibration import Calibration, Reliability
from nearid_ray.evaluation.measures import Measure
from nearid_ray.reporting.figures.attention import AttentionPicture, attention_figure, overlay, share_on_object
from nearid_ray.reporting.figures.ecdf import ecdf, ecdf_figure, kolmogorov_smirnov, means_by_oracle
from nearid_ray.reporting.figures.figure import standalone
from nearid_ray.reporting.figures.properties import Property, answer, property_figure
from nearid_ray.reporting.figures.radar import gain_chart, radar_chart, radar_figure
from nearid_ray.reporting.figures.reliability import reliability_figure, wilson
from nearid_ray.reporting.figures.tradeoff import TradeoffPoint, pareto_front, tradeoff_figure
from nearid_ray.reporting.figures.weights import WeightPoint, weight_curves, weight_figure, weights_of
from tests.reporting.drawings import marks, points

NAN = math.nan


def measure(scorer: str, metric: str, value: float, low: float = NAN, high: float = NAN, **changes) -> Measure:
    values = {"benchmark": "nearid", "condition": "full", "name": "object-level", "is_group": True, "support": 9}
    rest = {"coverage": 1.0, "baseline": ""}
    given = {"scorer": scorer, "metric": metric, "value": value, "low": low, "high": high}
    return Measure(**{**values, **rest, **given, **changes})


def proportional(shown: list[float], values: list[float]) -> None:
    """Places are a linear function of the values."""
    slope, intercept = np.polyfit(values, shown, 1)
    np.testing.assert_allclose(slope * np.array(values) + intercept, shown, atol=0.02)


def test_the_unbeaten_trials_are_those_of_a_slow_search():
    random = np.random.default_rng(3)
    for count in (0, 1, 7, 40):
        cloud = [tuple(p) for p in random.integers(0, 8, (count, 2)).astype(float)]
        beaten = {
            n
            for n, m in itertools.permutations(range(count), 2)
            if all(a <= b for a, b in zip(cloud[n], cloud[m], strict=True)) and cloud[n] != cloud[m]
        }
        found = pareto_front(cloud)
        assert {cloud[n] for n in found} == {cloud[n] for n in range(count) if n not in beaten}
        assert [cloud[n][0] for n in found] == sorted(cloud[n][0] for n in found)


def test_trials_lie_where_their_measures_are_and_lost_ones_are_counted():
    trials = [TradeoffPoint(name=f"t{n}", x=x, y=y) for n, (x, y) in enumerate([(0.9, 0.1), (0.95, 0.4), (0.99, 0.2)])]
    drawn = standalone(tradeoff_figure([*trials, TradeoffPoint(name="lost", x=NAN, y=1)]))
    dots = [marks(drawn, "circle", f"{t.name}:")[0] for t in trials]
    proportional([float(d["cx"]) for d in dots], [t.x for t in trials])
    proportional([float(d["cy"]) for d in dots], [t.y for t in trials])
    assert float(dots[1]["cy"]) < float(dots[0]["cy"])
    assert "1 of 4 trials have no value" in tradeoff_figure([*trials, TradeoffPoint(name="l", x=NAN, y=1)]).caption
    assert not marks(drawn, "circle", "lost")
    (front,) = marks(drawn, "polyline", "not beaten")
    assert len(points(front)) == 2


def test_heads_that_differ_in_one_weight_alone_are_found():
    settings = {
        "a": {"alpha": 0.5, "beta": 0.0, "seed": 0},
        "b": {"alpha": 1.0, "beta": 0.0, "seed": 0},
        "c": {"alpha": 2.0, "beta": 0.0, "seed": 0},
        "d": {"alpha": 1.0, "beta": 0.1, "seed": 0},
        "e": {"alpha": 2.0, "beta": 0.0, "seed": 1},
        "f": {},
    }
    assert weights_of("alpha", settings) == {"a": 0.5, "b": 1.0, "c": 2.0}
    assert weights_of("beta", settings) == {"b": 0.0, "d": 0.1}
    assert weights_of("alpha", {"a": settings["a"]}) == {}


def test_curves_hold_the_measures_of_the_headline_and_the_published_ones():
    rows = [
        measure("x", "ssr", 0.9, 0.85, 0.95),
        measure("y", "ssr", 0.8, 0.75, 0.85),
        measure("y", "ssr", 0.1, name="all"),
        measure("frozen", "ssr", 0.4),
        measure("x", "m_o", 0.3, benchmark="mtg", name="part-level"),
    ]
    (curve,) = weight_curves("alpha", {"x": 0.0, "y": 0.5}, rows, baseline="frozen")
    assert curve.here == [
        WeightPoint(weight=0.0, value=0.9, low=0.85, high=0.95),
        WeightPoint(weight=0.5, value=0.8, low=0.75, high=0.85),
    ]
    assert (curve.measure, curve.baseline) == ("SSR", 0.4)
    assert {p.weight: p.value for p in curve.published}[0.5] == 0.9917
    chart = weight_figure("alpha", [curve]).panels[0].svg
    (line,), (band,), (theirs,) = (
        marks(chart, kind, name)
        for kind, name in (("polyline", "measured here"), ("polygon", "interval"), ("polyline", "published"))
    )
    assert "stroke-dasharray" in theirs and "stroke-dasharray" not in line
    places = points(line) + points(theirs)
    values = [0.9, 0.8] + [p.value for p in curve.published]
    proportional([y for _, y in places], values)
    proportional([x for x, _ in places], [0.0, 0.5] + [p.weight for p in curve.published])
    proportional([y for _, y in points(band)], [0.85, 0.75, 0.85, 0.95])


def test_a_radar_reaches_as_far_as_its_numbers_and_no_further_than_its_centre():
    values = {"a": {"x": 0.6, "y": 0.3, "z": -0.2}, "b": {"x": NAN, "y": 0.6, "z": 0.15}}
    chart = radar_chart(["x", "y", "z"], values, {"a": "red", "b": "blue"}, label="l")
    reach = {}
    for scorer in values:
        corners = points(marks(chart, "polygon", scorer)[0])
        reach[scorer] = [math.dist(corner, (230, 190)) for corner in corners]
    assert reach["a"] == pytest.approx([2 * reach["a"][1], reach["a"][1], 0], abs=0.02)
    assert reach["b"] == pytest.approx([reach["a"][0], reach["a"][0] / 4], abs=0.02)


def test_differences_are_to_the_baseline_and_as_long_as_they_are_large():
    values = {"base": {"x": 0.5, "y": 0.5}, "b": {"x": 0.6, "y": 0.45}}
    figure = radar_figure(values, baseline="base")
    right, left = (marks(figure.panels[1].svg, "rect", f"{c}, b")[0] for c in "xy")
    assert float(right["width"]) == pytest.approx(2 * float(left["width"]), abs=0.02)
    assert float(left["x"]) + float(left["width"]) == pytest.approx(float(right["x"]), abs=0.02)
    assert len(radar_figure(values, baseline="other").panels) == 1
    chart, _ = gain_chart({"animal": {"b": NAN}}, {"b": "red"}, {"animal": 0.105}, label="l")
    assert marks(chart, "polygon", "published: +0.105") and not marks(chart, "rect", "animal")


def test_distributions_agree_with_scipy():
    random = np.random.default_rng(0)
    for count in (1, 5, 200):
        first, second = random.random(count).round(1), random.random(count + 3).round(1)
        value, share = ecdf([*first, NAN])
        expected = scipy.stats.ecdf(first).cdf
        np.testing.assert_allclose(value, expected.quantiles)
        np.testing.assert_allclose(share, expected.probabilities)
        assert kolmogorov_smirnov(first, second) == pytest.approx(scipy.stats.ks_2samp(first, second).statistic)
    assert math.isnan(kolmogorov_smirnov([], [1.0]))


def test_means_by_oracle_are_those_of_explicit_bins():
    random = np.random.default_rng(1)
    oracle = random.permutation(np.linspace(0, 1, 60))
    similarity = random.random(60)
    at, mean = means_by_oracle([*similarity, NAN, 0.5], [*oracle, 0.3, NAN], bins=6)
    order = np.argsort(oracle)
    np.testing.assert_allclose(at, [oracle[order[n : n + 10]].mean() for n in range(0, 60, 10)])
    np.testing.assert_allclose(mean, [similarity[order[n : n + 10]].mean() for n in range(0, 60, 10)])
    at, mean = means_by_oracle([0.1, 0.3], [0.5, 0.5])
    assert (at.tolist(), mean.tolist()) == ([0.5], [0.2])


def test_the_distribution_figure_says_how_far_each_scorer_is_from_the_oracle():
    figure = ecdf_figure({"a": ([0.5, 0.6, NAN], [0.5, 0.6, 0.7]), "b": ([0.9, 0.95], [0.5, 0.6]), "c": ([NAN], [0.1])})
    assert "a 0.00, b 1.00." in figure.caption and "(2)" in figure.caption
    assert list(figure.legend) == ["oracle", "a", "b"]
    with pytest.raises(ValueError, match="2 similarities and 1 oracles"):
        ecdf_figure({"a": ([0.5, 0.6], [0.5])})


def test_attention_on_the_object_is_what_counting_pixels_gives():
    random = np.random.default_rng(0)
    weights = random.random((4, 4))
    weights /= weights.sum()
    mask = (random.random((8, 8)) > 0.5).astype(np.uint8) * 255
    total = 0.0
    for row, column in itertools.product(range(8), range(8)):
        total += weights[row // 2, column // 2] / 4 * (mask[row, column] > 0)
    assert share_on_object(weights, mask) == pytest.approx(total)
    # A token off the grid took a share of the weight; what is left counts as the whole.
    assert share_on_object(weights * 0.7, mask) == pytest.approx(total)


def test_a_map_is_bright_where_the_weight_is_and_dark_elsewhere():
    weights = np.zeros((4, 4))
    weights[1, 2] = 1.0
    shown = overlay(np.full((64, 64, 3), 128, np.uint8), weights, peak=4.0).sum(axis=2)
    assert np.unravel_index(shown.argmax(), shown.shape)[0] in range(16, 32)
    assert shown[24, 40] > 2 * shown[56, 8]
    flat = overlay(np.full((64, 64, 3), 128, np.uint8), np.full((4, 4), 1 / 16), peak=4.0)
    assert (flat == flat[0, 0]).all()


def test_the_attention_figure_says_the_mean_share_of_each_scorer():
    mask = np.zeros((8, 8), np.uint8)
    mask[:, 4:] = 255
    even, right = np.full((2, 2), 0.25), np.array([[0.0, 0.5], [0.0, 0.5]])
    image = np.zeros((8, 8, 3), np.uint8)
    one = AttentionPicture(label="view 0", image_HW3=image, maps={"frozen": even, "t": right}, mask_HW=mask)
    bare = AttentionPicture(label="view 1", image_HW3=image, maps={"frozen": even, "t": np.full((2, 2), NAN)})
    figure = attention_figure({"a:1": [one, bare]})
    assert "on average frozen 50 %, t 100 %, with 50 % of the area" in figure.caption
    assert "100 % on the object" in figure.panels[0].svg and "no map" in figure.panels[0].svg
    assert figure.panels[0].svg.count("<image") == 5


@pytest.mark.parametrize(
    "low, high, verdict", [(0.51, 0.6, "yes"), (0.5, 0.6, "open"), (0.4, 0.5, "no"), (NAN, NAN, "yes")]
)
def test_a_property_is_there_where_the_whole_interval_lies_above_the_threshold(low, high, verdict):
    asked = Property(said="can", benchmark="nearid", metric="ssr", threshold=0.5)
    rows = [measure("a", "ssr", 0.55, low, high), measure("a", "ssr", 0.1, name="toybox-recolor", is_group=False)]
    assert answer(asked, rows, "a").verdict == verdict
    assert answer(asked, rows, "b").verdict == ""


def test_without_groups_the_worst_engine_decides_and_unmeasured_properties_are_named():
    rows = [measure("a", "control_rate", v, name=f"e{v}", is_group=False) for v in (0.9, 0.4)]
    asked = Property(said="can", benchmark="nearid", metric="control_rate", threshold=0.5)
    assert answer(asked, rows, "a").value == 0.4
    figure = property_figure(rows, ["a"])
    assert "Not measured here: SSR, SSR, foreground, ordering rate, SSR, part-level, M-O, M-H." in figure.caption
    assert len(re.findall("<circle", figure.panels[0].svg)) == 1


def test_wilson_is_scipys():
    for same, count in ((0, 5), (3, 10), (10, 10), (400, 1000)):
        expected = scipy.stats.binomtest(same, count).proportion_ci(0.95, method="wilson")
        assert wilson(same / count, count) == pytest.approx((expected.low, expected.high), abs=1e-6)
    assert all(math.isnan(end) for end in wilson(0.5, 0))


def test_a_reliability_curve_joins_what_was_said_with_what_was_so():
    curve = Reliability(
        edges=(0.0, 0.5, 0.75, 1.0), counts=(40, 0, 10), predicted=(0.2, NAN, 0.9), observed=(0.3, NAN, 0.8),
        expected_error=0.1, brier=0.2, coverage=1.0,
    )  # fmt: skip
    logistic = Calibration(kind="logistic", slope=8.0, intercept=-4.0, same_share=0.5, num_pairs=50)
    figure = reliability_figure({"a": (logistic, curve)}, note="Fitted on val.")
    dots = [marks(figure.panels[0].svg, "circle", f"a: {count} pairs")[0] for count in (40, 10)]
    left, right = float(dots[0]["cx"]), float(dots[1]["cx"])
    top, floor = float(dots[1]["cy"]), float(dots[0]["cy"])
    # Both axes run from 0 to 1: the diagonal's ends say where.
    diagonal = re.search(
        r'x1="([\d.]+)" y1="([\d.]+)" x2="([\d.]+)" y2="([\d.]+)"[^>]*stroke-dasharray', figure.panels[0].svg
    )
    assert diagonal
    x1, y1, x2, y2 = map(float, diagonal.groups())
    assert [(left - x1) / (x2 - x1), (right - x1) / (x2 - x1)] == pytest.approx([0.2, 0.9], abs=1e-3)
    assert [(floor - y1) / (y2 - y1), (top - y1) / (y2 - y1)] == pytest.approx([0.3, 0.8], abs=1e-3)
    assert "expected error 0.100, Brier score 0.200, 50 pairs. Fitted on val." in figure.caption
