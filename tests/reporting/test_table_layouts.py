"""Layouts of the paper's tables against measures made by hand."""

import csv
import io
import math
import re

import pytest

from nearid_ray.errors import UsageError
from nearid_ray.evaluation.measures import Measure
from nearid_ray.reporting.tables.build import lay_out
from nearid_ray.reporting.tables.generalisation import control_table, left_out_sentences, left_out_table
from nearid_ray.reporting.tables.measured import Measured, given_rows
from nearid_ray.reporting.tables.model import Column, Row, Table
from nearid_ray.reporting.tables.published import published
from nearid_ray.reporting.tables.render import latex_escape, to_csv, to_latex, to_markdown
from nearid_ray.reporting.tables.rows import TITLES


def measure(scorer, metric, value, *, benchmark="nearid", name="headline", half=0.01, condition="full", coverage=1.0):
    """One measure with an interval of `half` to both sides."""
    return Measure(
        benchmark=benchmark,
        scorer=scorer,
        condition=condition,
        name=name,
        is_group=name in ("headline", "part-level", "all", "train", "category:style"),
        metric=metric,
        value=value,
        low=value - half,
        high=value + half,
        support=100,
        coverage=coverage,
        baseline="",
    )


def test_published_numbers_are_the_papers():
    assert published("table1")["nearid"] == {
        "nearid_ssr": 0.9917, "nearid_pa": 0.9971, "mtg_mo": 0.465, "mtg_mo_pair": 0.486,
        "mtg_ssr": 0.35, "mtg_pa": 0.465, "dbpp_mh": 0.545,
    }  # fmt: skip
    assert math.isnan(published("table1")["qwen3-vl-30b"]["dbpp_mh"])
    assert published("table3")["circle-rank"]["mtg_ssr"] == 0.67
    assert published("table5")["sdxl-1024"]["vsm_pa"] == 0.415
    assert published("table7")["qwen3-vl-4b"]["fg_mo"] == -0.046
    assert published("table8")["2"]["dbpp_mh"] == 0.573
    assert published("table9")["0.3"]["mtg_pa"] == 0.365
    assert published("table10")["infonce-oracle"]["delta_mh"] == -0.388


def test_rows_that_stand_in_two_tables_hold_the_same_numbers():
    assert published("table3")["nearid"] == published("table8")["0.5"] == published("table1")["nearid"]
    assert published("table8")["1"] == published("table9")["0"]
    for row in ("frozen", "infonce", "infonce-distractors", "nearid"):
        shared = {name: value for name, value in published("table10")[row].items() if name != "delta_mh"}
        assert shared == {name: published("table3")[row][name] for name in shared}


def test_the_published_mean_of_table_2_is_the_fisher_mean_of_its_rows():
    rows = {name: row for name, row in published("table2").items() if name != "fisher_z_mean"}
    for column, mean in (("nearid_h", 0.545), ("siglip2_h", 0.516)):
        values = [math.atanh(row[column]) for row in rows.values()]
        assert math.tanh(sum(values) / len(values)) == pytest.approx(mean, abs=5e-4)


@pytest.mark.parametrize("name", TITLES)
def test_a_table_without_any_measure_has_the_papers_numbers_and_says_not_run(name):
    table = lay_out(name, Measured([]))
    rows = {row.key: row for row in table.rows}
    if name != "table5":
        assert list(rows) == list(published(name))
    for key, printed in published(name).items():
        for column, value in printed.items():
            if column.endswith("_pm"):
                continue
            cell = table.cell((key, column))
            assert cell.published == value or (math.isnan(cell.published) and math.isnan(value))
            assert not cell.known
            assert cell.missing == "not run"
    for row, column, cell in table.cells():
        if cell.against:
            assert cell.against[0] in rows, (row.key, column.key)
    for claim in table.claims:
        assert table.cell(claim.first).has_published
        assert table.cell(claim.second).has_published


def test_scorers_stand_in_their_rows_and_others_below():
    measured = Measured(
        [
            measure("frozen", "ssr", 0.3),
            measure("nearid-alpha-0.5", "ssr", 0.95),
            measure("openai/clip-vit-large-patch14", "ssr", 0.1),
            measure("mine", "ssr", 0.5),
            measure("frozen", "m_o", 0.2, benchmark="mtg", name="part-level"),
        ]
    )
    table = lay_out("table1", measured, rows={"mine": "mine"})
    assert table.cell(("siglip2-so400m", "nearid_ssr")).value == 0.3
    assert table.cell(("siglip2-so400m", "mtg_mo")).value == 0.2
    assert table.cell(("nearid", "nearid_ssr")).value == 0.95
    assert table.cell(("clip-vit-l-14", "nearid_ssr")).value == 0.1
    assert not table.cell(("vsm", "nearid_ssr")).known
    assert table.rows[-1].key == "mine"
    assert table.rows[-1].ours_only
    moved = lay_out("table1", measured, rows=given_rows(["mine=vsm"]))
    assert moved.cell(("vsm", "nearid_ssr")).value == 0.5


def test_heads_find_their_alpha_and_beta_and_other_weights_get_rows_of_their_own():
    heads = {"frozen": 0.1, "nearid": 0.2, "nearid-alpha-1": 0.3, "nearid-alpha-1-beta-0.2": 0.4, "nearid-alpha-4": 0.5}
    measured = Measured([measure(name, "ssr", value) for name, value in heads.items()])
    table8 = lay_out("table8", measured)
    assert [row.key for row in table8.rows] == ["0", "0.1", "0.25", "0.5", "1", "2", "4"]
    values = {row.key: row.cells[0].value for row in table8.rows if row.cells[0].known}
    assert values == {"0.5": 0.2, "1": 0.3, "4": 0.5}
    table9 = lay_out("table9", measured)
    values = {row.key: row.cells[0].value for row in table9.rows if row.cells[0].known}
    assert values == {"0": 0.3, "0.2": 0.4}


def test_the_headline_group_is_shown_not_an_engine_or_another_group():
    measured = Measured(
        [
            measure("frozen", "ssr", 0.9, name="sdxl-512"),
            measure("frozen", "ssr", 0.8, name="train"),
            measure("frozen", "ssr", 0.3),
        ]
    )
    assert lay_out("table3", measured).cell(("frozen", "nearid_ssr")).value == 0.3
    by_source = lay_out("table5", measured)
    assert by_source.cell(("sdxl-512", "siglip2_ssr")).value == 0.9
    assert by_source.cell(("train", "siglip2_ssr")).value == 0.8
    assert by_source.cell(("train", "siglip2_ssr")).published == pytest.approx((0.358 + 0.274 + 0.338 + 0.162) / 4)


def test_table_7_compares_the_foreground_with_the_whole_of_the_same_scorer():
    measured = Measured([measure("frozen", "ssr", 0.3), measure("frozen", "ssr", 0.6, condition="foreground")])
    cell = lay_out("table7", measured).cell(("siglip2-so400m", "fg_ssr"))
    assert (cell.value, cell.published, cell.against) == (0.6, 0.647, ("siglip2-so400m", "full_ssr"))


def test_table_10_subtracts_the_m_h_of_infonce():
    people = {"benchmark": "dreambench-plus"}
    measured = Measured([measure("infonce", "m_h", 0.5, **people), measure("nearid", "m_h", 0.53, **people)])
    table = lay_out("table10", measured)
    assert table.cell(("nearid", "delta_mh")).value == pytest.approx(0.03)
    assert "| +0.030 (-0.010)" in to_markdown(table)


def test_table_2_has_methods_down_scorers_across_and_people_among_themselves():
    people = {"benchmark": "dreambench-plus"}
    found = [
        measure("people", "h_h", 0.7, name="emu2", **people),
        measure("frozen", "m_h", 0.5, name="emu2", **people),
        measure("frozen", "m_h", 0.4, name="all", **people),
        measure("frozen", "m_h_spread", 0.0123, name="emu2", **people),
        measure("frozen", "m_h", 0.3, name="category:style", **people),
        measure("gpt", "m_h", 0.6, name="emu2", **people),
        measure("mine", "m_h", 0.2, name="emu2", **people),
    ]
    table = lay_out("table2", Measured(found))
    values = {address: table.cell(address).value for address in (("emu2", "h_h"), ("emu2", "gpt_h"), ("emu2", "mine"))}
    assert list(values.values()) == [0.7, 0.6, 0.2]
    assert (table.cell(("emu2", "siglip2_h")).value, table.cell(("emu2", "siglip2_h")).published) == (0.5, 0.766)
    assert table.cell(("fisher_z_mean", "siglip2_h")).value == 0.4
    assert "**0.500 ±0.012** [0.490, 0.510] (**0.766 ±0.021**)" in to_markdown(table)
    assert r"\textbf{0.500 $\pm$0.012} {\tiny [0.490, 0.510]} (\textbf{0.766 $\pm$0.021})" in to_latex(table)
    header, *lines = list(csv.reader(io.StringIO(to_csv(table))))
    emu2 = dict(zip(header, next(line for line in lines if line[0] == "emu2"), strict=True))
    assert (emu2["siglip2_h_spread"], emu2["siglip2_h_published_spread"]) == ("0.0123", "0.021")
    assert lay_out("table1", Measured(found)).cell(("siglip2-so400m", "dbpp_mh")).value == 0.4


def test_evaluations_that_contradict_each_other_are_refused_and_repeats_are_not():
    Measured([measure("frozen", "ssr", 0.3), measure("frozen", "ssr", 0.3)])
    with pytest.raises(UsageError, match=r"frozen on headline .* ssr is 0\.3 in one evaluation and 0\.4"):
        Measured([measure("frozen", "ssr", 0.3), measure("frozen", "ssr", 0.4)])
    with pytest.raises(UsageError, match="SCORER=ROW"):
        given_rows(["vsm"])
    with pytest.raises(UsageError, match="no table"):
        lay_out("table99", Measured([]))


def small_table() -> Table:
    """Two scorers, one of them not run, and a score that some pictures lack."""
    measured = Measured(
        [
            measure("frozen", "ssr", 0.3074, half=0.02, coverage=0.9),
            measure("frozen", "ssr", 0.31, condition="foreground"),
            measure("nearid", "ssr", 0.99174, half=0.002),
        ]
    )
    return lay_out("table1", measured, notes=["50 % of a_b & c."])


def test_markdown_has_ours_its_interval_the_published_value_and_bold_best():
    lines = to_markdown(small_table()).splitlines()
    assert lines[0].startswith("**Table 1: scorers on NearID")
    nearid = next(line for line in lines if line.startswith("| NearID |"))
    assert "**99.2** [99.0, 99.4] (**99.17**)" in nearid
    frozen = next(line for line in lines if line.startswith("| SigLIP2"))
    assert "30.7 [28.7, 32.7] 90 % measured (30.74)" in frozen
    assert "not run (0.493)" in next(line for line in lines if line.startswith("| CLIP"))
    cells = [len(re.split(r"(?<!\\)\|", line)) for line in lines if line.startswith("|")]
    assert len(set(cells)) == 1


def test_latex_is_escaped_and_every_row_has_as_many_cells():
    text = to_latex(small_table())
    assert r"50 \% of a\_b \& c." in text
    rows = [line for line in text.splitlines() if line.endswith(r"\\") and "multicolumn" not in line]
    assert {len(re.findall(r"(?<!\\)&", line)) for line in rows} == {7}
    assert text.count("{") - text.count(r"\{") == text.count("}") - text.count(r"\}")
    assert r"\textbf{99.2} {\tiny [99.0, 99.4]} (\textbf{99.17})" in text
    assert r"90 \% measured" in text
    assert latex_escape("α_1 ~ 50%") == r"$\alpha$\_1 \textasciitilde{} 50\%"


def test_what_a_whole_column_lacks_is_said_once():
    heads = [measure(name, "ssr", 0.5, coverage=0.985) for name in ("frozen", "nearid")]
    text = to_markdown(lay_out("table1", Measured(heads)))
    assert "98% measured: NearID SSR." in text
    assert text.count("measured") == 1


def test_csv_has_fractions_with_intervals_and_blanks_where_nothing_was_run():
    rows = {row["row"]: row for row in csv.DictReader(io.StringIO(to_csv(small_table())))}
    nearid = rows["nearid"]
    assert float(nearid["nearid_ssr"]) == pytest.approx(0.99174)
    assert float(nearid["nearid_ssr_low"]) == pytest.approx(0.98974)
    assert float(nearid["nearid_ssr_published"]) == 0.9917
    assert rows["vsm"]["nearid_ssr"] == ""


def test_a_collapsed_row_of_the_paper_is_never_its_best():
    table = lay_out("table3", Measured([]))
    assert ("circle-rank", "nearid_ssr") not in table.best(published=True)
    assert ("infonce-distractors-oracle", "nearid_ssr") in table.best(published=True)


def test_a_row_of_another_length_is_refused():
    with pytest.raises(ValueError, match="0 cells, 1 columns"):
        Table(
            name="t",
            title="",
            corner="",
            columns=(Column(key="a", header="a"),),
            rows=(Row(key="r", label="", cells=()),),
        )


def test_the_engine_that_a_head_never_saw_is_marked_and_judged():
    values = {
        "frozen": {"a": 0.1, "b": 0.1, "new": 0.1},
        "all": {"a": 0.9, "b": 0.9, "new": 0.8},
        "no-a": {"a": 0.5, "b": 0.9, "new": 0.8},
        "no-b": {"a": 0.9, "b": 0.89, "new": 0.8},
    }
    measured = Measured(
        [measure(scorer, "ssr", value, name=name) for scorer, row in values.items() for name, value in row.items()]
    )
    table = left_out_table(measured, {"all": ("a", "b"), "no-a": ("b",), "no-b": ("a",)}, ["a", "b", "new"])
    marked = {(row.key, column.key) for row, column, cell in table.cells() if cell.marked}
    assert marked == {("no-a", "a"), ("no-b", "b"), ("all", "new"), ("no-a", "new"), ("no-b", "new")}
    assert [row.label for row in table.rows] == ["frozen", "all training engines", "without a", "without b"]
    assert "50.0° [49.0, 51.0]" in to_markdown(table)
    said = left_out_sentences(table)
    assert len(said) == 3
    assert said[-1].startswith("Of 2 engines left out of training, 2 are told apart clearly better")
    assert "and 1 clearly worse" in said[-1]


def test_the_control_has_a_row_a_scorer_and_a_column_an_engine():
    measured = Measured([measure("frozen", "control_rate", 0.7, name="exemplar"), measure("frozen", "ssr", 0.1)])
    table = control_table(measured)
    assert [column.key for column in table.columns] == ["exemplar"]
    assert table.cell(("frozen", "exemplar")).value == 0.7
