"""The page: self-contained, captioned, escaped, without widths that break a phone. Checked with a real HTML parser."""

import csv
import dataclasses
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from nearid_ray.data.images import encode_png
from nearid_ray.evaluation.bootstrap import Interval
from nearid_ray.reporting.charts import Dots, Line, bar_chart, line_chart, scatter_chart
from nearid_ray.reporting.figures.projection import kernel_pca, projection_figure
from nearid_ray.reporting.figures.sheets import qualitative_figure
from nearid_ray.reporting.markup import VOID_TAGS, data_uri
from nearid_ray.reporting.model import Projection, ReportData, SheetPicture, SheetTuple
from nearid_ray.reporting.page import metrics_csv, metrics_markdown, page
from nearid_ray.reporting.style import STYLE
from nearid_ray.reporting.svg import nice_ticks


def picture(seed: int) -> bytes:
    """A PNG of one colour."""
    return encode_png(np.full((8, 8, 3), seed, np.uint8))


class Tree(HTMLParser):
    """Elements as (tag, attributes, names of ancestors), the text, and what stands inside each figure."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str], tuple[str, ...]]] = []
        self.open: list[str] = []
        self.figures: list[list[str]] = []
        self.open_figures: list[list[str]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, {k: v or "" for k, v in attrs}, tuple(self.open)))
        for figure in self.open_figures:
            figure.append(tag)
        if tag == "figure":
            self.open_figures.append([])
        if tag not in VOID_TAGS:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes another element"
        if tag == "figure":
            self.figures.append(self.open_figures.pop())

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture(scope="module")
def tree(report_data) -> Tree:
    return Tree(page(report_data))


def test_the_page_is_well_formed_and_the_same_every_time(report_data, tree):
    assert tree.open == []
    assert page(report_data) == page(report_data)


def test_nothing_is_fetched_from_anywhere(report_data, tree):
    for tag, attributes, _ in tree.elements:
        assert tag not in ("script", "iframe", "object", "embed", "base")
        for name in ("src", "href", "srcset", "data", "poster", "action", "xlink:href"):
            assert attributes.get(name, "data:").startswith("data:")
        assert "url(" not in attributes.get("style", "")
    assert "url(" not in STYLE and "@import" not in STYLE
    assert "http://" not in page(report_data) and "https://" not in page(report_data)


def test_every_figure_has_a_caption_and_every_picture_a_text(tree):
    assert len(tree.figures) > 20
    for figure in tree.figures:
        assert figure.count("figcaption") == 1
        assert {"img", "svg", "table"} & set(figure)
    for tag, attributes, above in tree.elements:
        if tag == "img":
            assert attributes["alt"].strip()
            assert "figure" in above
        if tag == "svg" and "svg" not in above:
            assert attributes["role"] == "img" and attributes["aria-label"].strip()
            assert "figure" in above
        if tag == "table":
            assert attributes["aria-label"].strip()
            assert "figure" in above


def test_tables_scroll_in_their_box_and_nothing_has_a_width_wider_than_a_phone(tree):
    boxes = [attributes for tag, attributes, _ in tree.elements if attributes.get("class") == "scroll"]
    tables = [tag for tag, *_ in tree.elements if tag == "table"]
    assert len(boxes) == len(tables) > 0
    assert ".scroll { overflow-x: auto;" in STYLE
    for rule in re.findall(r"[{;]\s*((?:min-)?width:[^;}]+)", STYLE):
        assert all(float(pixels) <= 20 for pixels in re.findall(r"([\d.]+)px", rule)), rule
    for columns in re.findall(r"minmax\(([^)]*\))", STYLE):
        assert columns.startswith(("min(", "0", "7em")), f"a grid column that cannot shrink: {columns}"
    for tag, attributes, above in tree.elements:
        if "svg" not in above:
            assert "width" not in attributes, f"<{tag} width>"
            assert "width" not in attributes.get("style", "")
    viewport = next(a for tag, a, _ in tree.elements if tag == "meta" and a.get("name") == "viewport")
    assert "width=device-width" in viewport["content"]


def test_every_text_is_escaped(report_data):
    evil = '<script>alert("x")</script>&\'"'
    row = dataclasses.replace(report_data.rows[0], scorer=evil, name=evil)
    measure = dataclasses.replace(report_data.measures[0], scorer=evil, name=evil, benchmark=evil, metric=evil)
    shown = SheetPicture(image=picture(0), label=evil, similarities={evil: 0.5})
    item = SheetTuple(identity_id=evil, category=evil, anchor=shown, positives=[shown], distractors=[shown])
    points = Projection(scorer=evil, embedding_ND=np.eye(3), identities=[evil] * 3, is_view=[True, True, False])
    data = dataclasses.replace(
        report_data,
        title=evil,
        statement=[evil],
        rows=[row],
        baseline=evil,
        group_engines={evil: [evil]},
        curves=[dataclasses.replace(report_data.curves[0], name=evil)],
        measures=[measure],
        gaps=[evil],
        figures=[projection_figure([points]), qualitative_figure([item], note=evil)],
        not_drawn={evil: evil},
        facts={evil: evil},
        commands=[evil],
        settings={evil: {evil: evil}},
    )
    text = page(data)
    tree = Tree(text)
    assert "<script" not in text
    assert not any(tag == "script" for tag, *_ in tree.elements)
    assert tree.open == []
    assert evil in " ".join(tree.words)


def test_the_tables_show_every_scorer_and_engine_with_its_rate(report_data, tree):
    words = " ".join(tree.words)
    for row in report_data.rows:
        assert row.scorer in words and row.name in words
    markdown = metrics_markdown(report_data)
    row = next(r for r in report_data.rows if r.name == "object-level" and r.scorer == "nearid-alpha-0.5")
    assert f"{100 * row.ssr:.1f} ({100 * row.ssr_low:.1f} to {100 * row.ssr_high:.1f}) / {100 * row.pa:.1f}" in markdown
    assert markdown.count("**object-level**") == 2


def test_csv_holds_every_row_and_every_number(report_data):
    lines = list(csv.DictReader(io.StringIO(metrics_csv(report_data.rows))))
    assert len(lines) == len(report_data.rows)
    assert float(lines[0]["ssr"]) == report_data.rows[0].ssr
    assert lines[0]["ssr_gain"] == ""


def test_distractors_are_marked_won_or_lost_by_the_definition(report_data):
    anchor = SheetPicture(image=picture(0), label="anchor")

    def shown(value):
        return SheetPicture(image=anchor.image, label="x", similarities={"frozen": value})

    def marks(positives, distractor):
        item = SheetTuple(
            identity_id="a",
            category="",
            anchor=anchor,
            positives=[*map(shown, positives)],
            distractors=[shown(distractor)],
        )
        text = page(dataclasses.replace(report_data, gaps=[], measures=[], figures=[qualitative_figure([item])]))
        return text.count('class="win"'), text.count('class="lose"')

    assert marks([0.9, 0.8], 0.7) == (1, 0)
    assert marks([0.9, 0.6], 0.7) == (0, 1)
    assert marks([0.7], 0.7) == (0, 1)
    assert marks([0.7], None) == marks([], 0.5) == (0, 0)


def test_a_report_with_metrics_alone_has_no_empty_sections(report_data):
    text = page(ReportData(title="t", statement=[], rows=report_data.rows))
    assert "Training" not in text and "Tuples" not in text and "The run" not in text
    assert "<h1>t</h1>" in page(ReportData(title="t", statement=[], rows=[]))


def test_bars_reach_as_far_as_their_rate():
    interval = {"a": Interval(value=0.25, low=0.2, high=0.3), "b": Interval(value=0.5, low=float("nan"), high=1)}
    groups = {"e": interval, "f": {"a": Interval(value=float("nan"), low=0, high=1)}}
    chart = bar_chart(groups, {"a": "red", "b": "blue"}, label="l", axis="x")
    widths = [float(w) for w in re.findall(r'<rect [^>]*? width="([\d.]+)"', chart)]
    assert len(widths) == 2
    assert widths[1] == pytest.approx(2 * widths[0])


def test_charts_of_nothing_or_of_nan_still_draw():
    nan = float("nan")
    for chart in (
        line_chart([], {}, label="l", x_axis="x", y_axis="y"),
        line_chart([Line(name="a", x=[0, 1], y=[nan, nan])], {"a": "red"}, label="l", x_axis="x", y_axis="y"),
        line_chart([Line(name="a", x=[1], y=[2])], {"a": "red"}, label="l", x_axis="x", y_axis="y", dots=True),
        scatter_chart([], {}, label="l"),
        scatter_chart([Dots(name="a", x=[1], y=[1])], {"a": "red"}, label="l"),
    ):
        assert chart.startswith("<svg") and "nan" not in chart.lower()


@pytest.mark.parametrize("low, high", [(0, 1), (-3.2, 7), (5, 5), (0, 1e-6), (1e6, 3e6), (-2, -1)])
def test_ticks_cover_the_range_with_few_steps(low, high):
    ticks = nice_ticks(low, high)
    assert ticks[0] <= low and ticks[-1] >= high
    assert 2 <= len(ticks) <= 8


def test_kernel_pca_keeps_the_distances_of_points_on_a_plane():
    angle = np.linspace(0, 1.5, 12)
    circle = np.stack([np.cos(angle), np.sin(angle), np.zeros(12)], axis=1)
    points = kernel_pca(np.vstack([circle * 3.0, np.full((1, 3), np.nan)]))
    assert np.isnan(points[-1]).all()
    distance = np.linalg.norm(points[:12, None] - points[None, :12], axis=-1)
    expected = np.linalg.norm(circle[:, None] - circle[None], axis=-1)
    np.testing.assert_allclose(distance, expected, atol=1e-9)


def test_only_known_pictures_become_data_uris():
    assert data_uri(picture(0)).startswith("data:image/png;base64,")
    with pytest.raises(ValueError, match="expected PNG, JPEG or WebP"):
        data_uri(b"<svg onload=alert(1)>")
