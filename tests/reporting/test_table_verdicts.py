"""Verdicts on planted numbers: they follow the stated rules, and never ask for equal numbers."""

import math

from nearid_ray.evaluation.measures import Measure
from nearid_ray.reporting.tables.build import lay_out
from nearid_ray.reporting.tables.measured import Measured
from nearid_ray.reporting.tables.model import Cell, Column, Row, Table
from nearid_ray.reporting.tables.verdicts import (
    closing_sentence,
    compare,
    direction,
    judge_cells,
    judge_claims,
    judge_order,
    verdict_rows,
)


def cell(value: float, half: float = 0.01, published: float = math.nan) -> Cell:
    """A cell with an interval of `half` to both sides."""
    return Cell(value=value, low=value - half, high=value + half, published=published)


def test_two_numbers_differ_where_the_interval_of_their_difference_leaves_0_out():
    assert direction(cell(0.5), cell(0.6)) == 1
    assert direction(cell(0.6), cell(0.5)) == -1
    # The half widths 0.03 and 0.04 add to 0.05 in quadrature.
    assert direction(cell(0.5, 0.03), cell(0.551, 0.04)) == 1
    assert direction(cell(0.5, 0.03), cell(0.549, 0.04)) == 0
    # Only the ends that face each other count.
    lopsided = Cell(value=0.5, low=0.0, high=0.51)
    assert direction(lopsided, cell(0.53)) == 1
    assert direction(cell(0.5), cell(math.nan)) == 0
    assert direction(cell(0.5), Cell(value=0.9)) == 0


def test_a_comparison_agrees_by_direction_alone():
    low, high = cell(0.1, published=0.30), cell(0.2, published=0.99)
    assert compare(low, high, 0.005) == "agrees"
    assert compare(cell(0.2, published=0.30), cell(0.1, published=0.99), 0.005) == "disagrees"
    assert compare(cell(0.1, 0.2, 0.30), cell(0.2, 0.2, 0.99), 0.005) == "unclear"
    assert compare(cell(0.1, published=0.300), cell(0.2, published=0.304), 0.005) == "flat in the paper"
    assert compare(cell(0.1, published=0.3), Cell(published=0.9), 0.005) == "not run"
    assert compare(cell(0.1), high, 0.005) == "not published"


def table(ours: list[float], theirs: list[float]) -> Table:
    """One column, a row a number."""
    rows = tuple(
        Row(key=str(place), label=f"row {place}", cells=(cell(mine, published=paper),))
        for place, (mine, paper) in enumerate(zip(ours, theirs, strict=True))
    )
    return Table(name="t", title="t", corner="", columns=(Column(key="x", header="X", resolution=0.005),), rows=rows)


def test_the_order_of_rows_agrees_disagrees_or_is_mixed_by_its_pairs():
    theirs = [0.1, 0.2, 0.3, 0.4]
    words = {}
    for ours in ([0.5, 0.6, 0.7, 0.8], [0.8, 0.7, 0.6, 0.5], [0.5, 0.8, 0.6, 0.7], [0.8, 0.5, 0.6, 0.7]):
        finding = judge_order(table(ours, theirs))[0]
        words[tuple(ours)] = finding.word, finding.numbers
    assert [word for word, _ in words.values()] == ["agrees", "disagrees", "mixed", "mixed"]
    assert "6 of 6 pairs" in words[0.5, 0.6, 0.7, 0.8][1]
    assert "4 of 6 pairs" in words[0.5, 0.8, 0.6, 0.7][1]
    assert judge_order(table([0.5, 0.501], [0.1, 0.2])) == []


def alphas(ssr: dict[str, float], m_o: dict[str, float]) -> list[Measure]:
    """Heads of table 8 with a success rate and a correlation with the oracle."""
    found = []
    for benchmark, metric, group, values in (("nearid", "ssr", "object-level", ssr), ("mtg", "m_o", "part-level", m_o)):
        for scorer, value in values.items():
            found.append(
                Measure(
                    benchmark=benchmark,
                    scorer=scorer,
                    condition="full",
                    name=group,
                    is_group=True,
                    metric=metric,
                    value=value,
                    low=value - 0.01,
                    high=value + 0.01,
                    support=9,
                    coverage=1.0,
                    baseline="",
                )
            )
    return found


def test_a_sweep_that_moves_as_in_the_paper_agrees_and_one_that_does_not_disagrees():
    rising, falling = ({"nearid-alpha-0": a, "nearid-alpha-2": b} for a, b in ((0.1, 0.5), (0.5, 0.1)))
    agreeing = lay_out("table8", Measured(alphas(ssr=falling, m_o=rising)))
    words = {finding.says: finding.word for finding in judge_claims(agreeing)}
    assert words["α = 0 → α = 2: NearID SSR falls"] == "agrees"
    assert words["α = 0 → α = 2: MTG M-O rises"] == "agrees"
    assert words["α = 0 → α = 2: DreamBench++ M-H rises"] == "not run"
    opposite = lay_out("table8", Measured(alphas(ssr=rising, m_o=falling)))
    words = {finding.says: finding.word for finding in judge_claims(opposite)}
    assert words["α = 0 → α = 2: NearID SSR falls"] == "disagrees"
    assert words["α = 0 → α = 2: MTG M-O rises"] == "disagrees"


def test_the_closing_sentence_names_both_sides():
    rising = {"nearid-alpha-0": 0.1, "nearid-alpha-2": 0.5}
    found = lay_out("table8", Measured(alphas(ssr=rising, m_o=rising)))
    said = closing_sentence(judge_claims(found))
    agrees, disagrees = said.splitlines()[:2]
    assert agrees == "Agrees with the paper's trend: α = 0 → α = 2: MTG M-O rises."
    assert disagrees == "Disagrees with it: α = 0 → α = 2: NearID SSR falls."
    falls = next(one for one in judge_claims(found) if one.word == "disagrees")
    assert falls.numbers == "99.57 to 97.09 in the paper, 10.0 to 50.0 here"
    assert closing_sentence([]) == "Nothing here can be compared with the paper."


def test_the_printed_verdicts_have_ours_published_interval_and_word():
    found = lay_out("table8", Measured(alphas(ssr={"nearid-alpha-0": 0.9, "nearid-alpha-2": 0.8}, m_o={})))
    lines = verdict_rows(judge_cells(found))
    assert lines == [
        ["row", "measure", "ours", "published", "interval", "verdict"],
        ["α = 0", "NearID SSR", "90.0", "99.57", "[89.0, 91.0]", "reference"],
        ["α = 2", "NearID SSR", "80.0", "97.09", "[79.0, 81.0]", "agrees"],
    ]
