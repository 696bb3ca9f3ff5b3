import csv
import io
import json
import math

import numpy as np
import pyarrow as pa
import pytest

from nearid_ray.comparing.compare import compare_runs, differing_settings
from nearid_ray.comparing.runs import Run, find_runs, folder_run
from nearid_ray.comparing.show import markdown, page, text, verdict
from nearid_ray.data.store import locate, parquet_bytes
from nearid_ray.errors import UsageError
from nearid_ray.evaluation.counts import count_trials
from nearid_ray.evaluation.measures import Measure, write_measures
from nearid_ray.stages.compare import Compare, run_compare

IDENTITIES = [f"toy:{n}" for n in range(40)]


def measure(scorer, metric="ssr", value=0.5, low=math.nan, high=math.nan, name="object-level", **more):
    given = {"benchmark": "nearid", "condition": "full", "is_group": name == "object-level", "support": 40} | more
    given = {"coverage": 1.0, "baseline": ""} | given
    return Measure(scorer=scorer, metric=metric, value=value, low=low, high=high, name=name, **given)


def evaluation(folder, solved: dict[str, int], settings=None, identities=IDENTITIES):
    """An evaluation's folder in which each scorer solves so many of its identities, one trial each."""
    place = locate(folder)
    rows, measures = [], []
    for scorer, count in solved.items():
        margins = [1.0] * count + [-1.0] * (len(identities) - count)
        rows += [
            {"scorer": scorer, "condition": "full", "identity_id": i, "engine": "e", "margin": m}
            for i, m in zip(identities, margins, strict=True)
        ]
        share = count / len(identities)
        measures += [measure(scorer, m, share, share - 0.05, share + 0.05) for m in ("ssr", "pa")]
        measures.append(measure(scorer, "ssr", share, name="e"))
    place.child("margins", "data", "000-000000.parquet").write_bytes(parquet_bytes(pa.Table.from_pylist(rows)))
    place.child("metrics.json").write_bytes(
        json.dumps({"groups": {"object-level": ["e"]}, "settings": settings or {}}).encode()
    )
    place.child("summary.json").write_bytes(json.dumps({"job": "evaluate", "seconds": 2.5}).encode())
    write_measures(place, measures)
    return str(folder)


def test_settings_that_are_the_same_or_say_only_where_are_left_out():
    first = {"alpha": "0.5", "seed": "0", "output": "a", "workers": "2"}
    second = {"alpha": "1.0", "seed": "0", "output": "b", "workers": "4", "beta": "0.1"}
    assert differing_settings([first, second]) == {"alpha": ["0.5", "1.0"], "beta": [None, "0.1"]}


def test_a_paired_difference_is_found_where_the_intervals_alone_say_nothing(tmp_path):
    one = folder_run(evaluation(tmp_path / "one", {"frozen": 20}))
    two = folder_run(evaluation(tmp_path / "two", {"mine": 24}))
    found = compare_runs([one, two], resamples=500)
    cell = ("nearid", "full", "object-level", "ssr")
    difference = found.differences[cell, "mine"]
    # Four identities more, always the same ones: a mean of paired draws, by hand.
    draws = np.random.default_rng(3).integers(0, 40, (4000, 40))
    gains = np.isin(draws, np.arange(20, 24)).mean(axis=1)
    assert difference.value == pytest.approx(0.1)
    assert difference.low == pytest.approx(np.quantile(gains, 0.025), abs=0.02) and difference.low > 0
    assert difference.high == pytest.approx(np.quantile(gains, 0.975), abs=0.02)
    assert "60.0 (55.0 to 65.0) +" in text(found)


def test_equal_runs_are_called_equal_and_a_scorer_that_stands_in_both_stands_once(tmp_path):
    runs = [
        folder_run(evaluation(tmp_path / name / "evaluation", {"frozen": 20, name: count}))
        for name, count in (("a", 30), ("b", 30))
    ]
    found = compare_runs(runs, resamples=100)
    assert [column.label for column in found.columns] == ["frozen", "a", "b"]
    against_a = compare_runs(runs, baseline="a", resamples=100)
    cell = ("nearid", "full", "object-level", "ssr")
    assert [column.label for column in against_a.columns] == ["a", "frozen", "b"]
    assert against_a.differences[cell, "b"].value == 0
    assert verdict(against_a.cells[cell, "b"], against_a.cells[cell, "a"], against_a.differences[cell, "b"]) == "="
    assert verdict(found.cells[cell, "frozen"], found.cells[cell, "frozen"], None) == ""


def test_scorers_of_one_name_with_other_numbers_are_told_apart_by_their_runs(tmp_path):
    runs = [
        folder_run(evaluation(tmp_path / name / "evaluation", {"mine": count}))
        for name, count in (("a", 10), ("b", 30))
    ]
    labels = [column.label for column in compare_runs(runs, resamples=50).columns]
    assert labels == ["a/evaluation: mine", "b/evaluation: mine"]


def test_other_identities_give_intervals_side_by_side_and_a_note(tmp_path):
    one = folder_run(evaluation(tmp_path / "one", {"a": 10}))
    two = folder_run(evaluation(tmp_path / "two", {"b": 35}, identities=[f"x:{n}" for n in range(40)]))
    found = compare_runs([one, two], resamples=50)
    assert found.differences == {}
    assert "measured on other identities" in found.notes[0]
    assert "87.5 (82.5 to 92.5) >" in text(found)


def test_the_difference_counts_only_what_both_could_measure():
    from nearid_ray.evaluation.counts import units_of_both

    first, second = count_trials([1, -1, 1], list("abc")), count_trials([1, 1], list("ab"))
    assert [counts.ssr() for counts in units_of_both(first, second)] == [0.5, 1.0]


def test_what_is_measured_in_part_is_marked_and_missing_cells_are_dashes(tmp_path):
    one = Run(name="one", output=str(tmp_path), measures=[measure("a", coverage=0.8)])
    two = Run(name="two", output=str(tmp_path), measures=[measure("b", "m_o", 0.25, benchmark="mtg")])
    said = text(compare_runs([one, two]))
    assert "50.0*" in said and "0.250" in said
    assert "cannot be read" in said


def test_curves_and_last_values_of_trainings_are_shown():
    curves = {"val_ssr": [(0, 0.1), (50, 0.6)]}
    runs = [
        Run(name=f"train {n}", run_id=f"{n}" * 32, metrics={"val_ssr": 0.6 + n / 10}, curves=curves) for n in (1, 2)
    ]
    found = compare_runs(runs)
    assert found.metrics == {"val_ssr": [0.7, 0.8]}
    shown = page(found)
    assert shown.count("<polyline") == 2 and "Last values" in shown and "<script" not in shown
    assert "| val_ssr | 0.7 | 0.8 |" in markdown(found)


def test_names_of_runs_cannot_break_the_page():
    runs = [Run(name=f"<b>{n}|", metrics={"x": 1.0}) for n in (1, 2)]
    assert "<b>1" not in page(compare_runs(runs)) and "\\|" in markdown(compare_runs(runs))


def test_the_files_hold_every_number_that_is_shown(tmp_path, capsys):
    folders = [evaluation(tmp_path / name, {name: count}) for name, count in (("a", 10), ("b", 30))]
    run_compare(Compare(runs=tuple(folders), output=str(tmp_path / "out"), resamples=50))
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out" / "compare.csv").read_text())))
    assert {(row["column"], row["metric"], row["name"]): float(row["value"]) for row in rows}["b", "ssr", "e"] == 0.75
    assert {row["difference"] for row in rows if row["column"] == "b"} == {"0.5"}
    assert (tmp_path / "out" / "compare.html").read_text().startswith("<!doctype html>")
    assert "object-level ssr" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "two or more runs"),
        ({"runs": ("nowhere/at/all",)}, r"neither a run's id or name nor an output folder"),
        ({"search": "tags.job = 'x'"}, "needs an MLflow store"),
        ({"runs": ("a", "b"), "tracking_uri": "sqlite:////nowhere/mlflow.db"}, "no such database"),
    ],
)
def test_what_cannot_be_compared_is_refused_with_what_to_give(settings, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(UsageError, match=said):
        run_compare(Compare(**settings))


def test_a_baseline_that_is_no_column_is_refused_with_the_columns(tmp_path):
    runs = [folder_run(evaluation(tmp_path / name, {name: 10})) for name in ("a", "b")]
    with pytest.raises(UsageError, match="the columns are a, b"):
        compare_runs(runs, baseline="c")


def test_runs_are_found_in_mlflow_by_id_name_and_search_and_doubtful_names_are_refused(tmp_path):
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param

    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.create_experiment("nearid", artifact_location=(tmp_path / "artifacts").as_uri())
    ids = []
    for name, alpha in (("one", 0.5), ("two", 1.0), ("two", 2.0)):
        run = client.create_run(experiment, run_name=name, tags={"job": "train"}).info.run_id
        metrics = [Metric("val_ssr", value, 0, step) for step, value in ((0, 0.2), (50, alpha / 4))]
        client.log_batch(run, params=[Param("alpha", str(alpha))], metrics=metrics)
        ids.append(run)
    found = find_runs(client, [experiment], ["one", ids[2], ids[2]], "params.alpha = '1.0'")
    assert [run.run_id for run in found] == [ids[0], ids[2], ids[1]]
    assert found[0].curves == {"val_ssr": [(0, 0.2), (50, 0.125)]}
    assert compare_runs(found).settings == {"alpha": ["0.5", "2.0", "1.0"]}
    with pytest.raises(UsageError, match=f"2 runs have the name 'two'; give the id of one: .*{ids[1]}"):
        find_runs(client, [experiment], ["two"])
    with pytest.raises(UsageError, match=r"no run has the id or name 'three'.*'one', 'two'"):
        find_runs(client, [experiment], ["three"])
    with pytest.raises(UsageError, match="no run with the id"):
        find_runs(client, [experiment], ["0" * 32])
    with pytest.raises(UsageError, match="finds no run"):
        find_runs(client, [experiment], [], "params.alpha = '9'")
    with pytest.raises(UsageError, match="search 'nonsense': Invalid clause"):
        find_runs(client, [experiment], [], "nonsense")


def test_settings_of_folders_are_compared_whatever_job_wrote_them(tmp_path):
    for name, alpha in (("a", 0.5), ("b", 1.0)):
        (tmp_path / name).mkdir()
        content = {"runs": {"head": {"alpha": alpha, "seed": 0}}}
        (tmp_path / name / "settings.json").write_text(json.dumps({"table": "heads", "content": content}))
        (tmp_path / name / "summary.json").write_text(json.dumps({"job": "train"}))
    runs = [folder_run(str(tmp_path / name)) for name in ("a", "b")]
    assert compare_runs(runs).settings == {"runs.head.alpha": ["0.5", "1.0"]}
