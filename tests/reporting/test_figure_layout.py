"""No figure has labels that cover each other or leave it, whatever the names and numbers; measured with a real font."""

import math

import numpy as np
import pytest

from nearid_ray.data.images import encode_png
from nearid_ray.evaluation.calibration import fit_calibration, reliability
from nearid_ray.evaluation.measures import Measure
from nearid_ray.reporting.figures.attention import AttentionPicture, attention_figure
from nearid_ray.reporting.figures.ecdf import ecdf_figure
from nearid_ray.reporting.figures.figure import Figure, Panel, section, standalone
from nearid_ray.reporting.figures.projection import projection_figure
from nearid_ray.reporting.figures.properties import property_figure
from nearid_ray.reporting.figures.radar import radar_figure
from nearid_ray.reporting.figures.reliability import reliability_figure
from nearid_ray.reporting.figures.sheets import part_figure, qualitative_figure
from nearid_ray.reporting.figures.tradeoff import TradeoffPoint, tradeoff_figure
from nearid_ray.reporting.figures.weights import weight_curves, weight_figure
from nearid_ray.reporting.markup import Markup
from nearid_ray.reporting.model import Projection, SheetPicture, SheetTuple
from nearid_ray.reporting.svg import free_labels, overlap, text_width
from tests.reporting.drawings import font, labels, outside, overlapping, size_of

LONG = "a-scorer-with-a-rather-long-name-and-a-number-17"


def measure(scorer: str, metric: str, value: float, **changes) -> Measure:
    values = {"benchmark": "nearid", "condition": "full", "name": "object-level", "is_group": True, "support": 9}
    interval = {"low": value - 0.0004, "high": value + 0.0004, "coverage": 1.0, "baseline": ""}
    return Measure(**{**values, **interval, "scorer": scorer, "metric": metric, "value": value, **changes})


def trade(count: int) -> Figure:
    random = np.random.default_rng(count)
    return tradeoff_figure(
        [
            TradeoffPoint(
                name=f"trial {n}, alpha {random.random():.4f}", x=0.97 + 0.03 * random.random(), y=random.random(),
                x_low=0.96, x_high=0.999, y_low=0.1, y_high=0.9, group=f"group {n % 3}", chosen=n == 0,
                published=n == 1,
            )
            for n in range(count)
        ]
    )  # fmt: skip


def weights() -> Figure:
    scorers = {f"alpha-{weight}": weight for weight in (0.0, 0.1, 0.5, 2.0)}
    # Numbers so close together that the axis needs many digits.
    rows = [measure(s, m, 0.9994 + 0.00005 * w) for s, w in scorers.items() for m in ("ssr", "pa", "ordering")]
    rows += [measure("frozen", "ssr", 0.99943)]
    return weight_figure("alpha", weight_curves("alpha", scorers, rows, baseline="frozen"))


def radar() -> Figure:
    categories = ("animal", "human", "object", "style", "vehicle")
    values = {s: {c: 0.2 * n - 0.15 * k for n, c in enumerate(categories)} for k, s in enumerate(("a", LONG, "c"))}
    return radar_figure(values, baseline="a", people=dict.fromkeys(categories, 0.7))


def matrix(count: int) -> Figure:
    scorers = [f"{LONG}-{n}" if n % 2 else f"s{n}" for n in range(count)]
    rows = [measure(s, m, 0.4 + 0.05 * n) for n, s in enumerate(scorers) for m in ("ssr", "ordering", "control_rate")]
    return property_figure(rows, scorers)


def attention() -> Figure:
    image = np.zeros((20, 20, 3), np.uint8)
    one = AttentionPicture(
        label=LONG, image_HW3=image, maps={s: np.full((4, 4), 1 / 16) for s in ("frozen", LONG)},
        mask_HW=np.full((20, 20), 255, np.uint8),
    )  # fmt: skip
    return attention_figure({f"toybox:{n}-{LONG}": [one, one] for n in range(3)})


def tuples(oracle: float | None) -> list[SheetTuple]:
    picture = encode_png(np.zeros((8, 8, 3), np.uint8))
    scores = dict.fromkeys(("frozen", LONG, "c"), 0.123)
    one = SheetPicture(image=picture, label=LONG, similarities=scores, oracle=oracle)
    anchor = SheetPicture(image=picture, label="view 0")
    return [
        SheetTuple(
            identity_id=f"toybox:{LONG}{n}", category=LONG, anchor=anchor, positives=[one], distractors=[one] * 5
        )
        for n in range(2)
    ]


def calibrated() -> Figure:
    random = np.random.default_rng(0)
    similarity, same = random.random(200), random.random(200) > 0.5
    found = fit_calibration(similarity, same)
    return reliability_figure({s: (found, reliability(found.probability(similarity), same)) for s in ("frozen", LONG)})


def spread() -> Figure:
    random = np.random.default_rng(0)
    return ecdf_figure({s: (random.uniform(-0.2, 0.999, 50), random.random(50)) for s in ("frozen", LONG)})


def projected() -> Figure:
    random = np.random.default_rng(0)
    names = [f"toybox:{LONG}-{n % 7}" for n in range(28)]
    embedding_ND = random.normal(size=(28, 5))
    one = Projection(scorer=LONG, embedding_ND=embedding_ND, identities=names, is_view=[n < 14 for n in range(28)])
    return projection_figure([one, one])


FIGURES = {
    "tradeoff-3": lambda: trade(3),
    "tradeoff-60": lambda: trade(60),
    "tradeoff-none": lambda: trade(0),
    "weights": weights,
    "radar": radar,
    "matrix-2": lambda: matrix(2),
    "matrix-9": lambda: matrix(9),
    "attention": attention,
    "tuples": lambda: qualitative_figure(tuples(None), note="Drawn."),
    "parts": lambda: part_figure(tuples(0.5), note="Drawn."),
    "reliability": calibrated,
    "ecdf": spread,
    "projection": projected,
}


@pytest.mark.parametrize("name", FIGURES)
def test_labels_neither_cover_each_other_nor_leave_the_drawing(name):
    drawn = standalone(FIGURES[name]())
    found = labels(drawn)
    assert found
    assert overlapping(found) == []
    assert outside(found, *size_of(drawn)) == []
    assert "nan" not in drawn.replace("nanny", "").lower()


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_the_same_every_time_and_fetches_nothing(name):
    first, second = FIGURES[name](), FIGURES[name]()
    assert standalone(first) == standalone(second)
    drawn = standalone(first).replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert "http" not in drawn and "url(" not in drawn and "<script" not in drawn
    page = "".join(section(first))
    assert page.count("<figure") >= len(first.panels) and first.title in page


def test_a_file_shows_title_legend_panels_and_caption():
    figure = weights()
    said = " ".join(label.text for label in labels(standalone(figure)))
    assert figure.title in said and all(name in said for name in figure.legend)
    assert figure.caption.split(". ")[0] in said
    assert standalone(figure).count("<svg") == 1 + 2 * len(figure.panels)


def test_widths_are_never_guessed_too_small_by_much():
    for text in ("toybox-redecorate", "nearid-alpha-0.5", "MMMM", "illicit", LONG, "0.9994", "95 % interval"):
        assert text_width(text, 13) >= 0.97 * font(13).getlength(text)


def test_labels_are_placed_by_rank_and_dropped_where_there_is_no_room():
    crowd = [(50.0, 50.0, f"name {n}") for n in range(40)]
    found = free_labels(crowd, within=(0, 0, 200, 100))
    assert found[0] is not None and found[-1] is None
    alone = free_labels([(10.0, 10.0, "a"), (150.0, 80.0, "b")], within=(0, 0, 200, 100))
    assert all(place is not None for place in alone)
    taken = free_labels([(50.0, 50.0, "a")], within=(0, 0, 200, 100), taken=[(0, 0, 200, 100)])
    assert taken == [None]
    assert overlap((0, 0, 2, 2), (1, 1, 3, 3)) and not overlap((0, 0, 2, 2), (2, 0, 3, 3))


def test_a_figure_without_panels_is_still_a_file():
    empty = Figure(name="a", title="t", caption="c", panels=[])
    assert math.isfinite(size_of(standalone(empty))[1])
    inner = Panel(svg=Markup("<svg></svg>"), height=10)
    assert "<b>x</b>" not in standalone(Figure(name="a", title="<b>x</b>", caption="c", panels=[inner]))
