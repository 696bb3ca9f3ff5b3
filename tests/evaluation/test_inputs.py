"""Embeddings and judgements of several scorers in one evaluation; what is missing; what does not belong together."""

import csv
import dataclasses
import io
import json
import math

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from nearid_ray.data.plan import store_settings
from nearid_ray.data.store import Dataset, locate, parquet_bytes
from nearid_ray.errors import UsageError
from nearid_ray.evaluation.embed import embedding_column
from nearid_ray.evaluation.evaluate import EvaluateSettings, evaluate, measure_records, read_evaluation
from nearid_ray.evaluation.expected import missing, warnings_of
from nearid_ray.evaluation.inputs import Given, named_folders, open_given
from nearid_ray.evaluation.measures import MEASURES_FILE, find, from_csv, headline, read_measures, to_csv
from nearid_ray.evaluation.pairs import IMAGE_COLUMNS, plan_pairs
from nearid_ray.evaluation.similarities import scored_records
from schemas import EMBEDDINGS, JUDGEMENTS

SETTINGS = EvaluateSettings(resamples=20, random_views=2, conditions=("full",))
ENGINES = ("decal", "redraw", "reshape")


def images(identities: int = 8, *, source: str = "toy", engines: tuple[str, ...] = ENGINES, views: int = 3) -> pa.Table:
    rows = []
    for n in range(identities):
        for view in range(views):
            for engine in ("", *engines):
                rows.append(
                    {
                        "image_id": f"{n}-{view}-{engine}",
                        "role": "distractor" if engine else "view",
                        "identity_id": f"{source}:{n:02d}",
                        "view_index": view,
                        "engine": engine,
                        "category": "mug",
                        "split": "test",
                        "oracle": 0.1 * n + 0.05 * view if engine == "decal" else None,
                    }
                )
    return pa.Table.from_pylist(rows)


def embedded(folder, table: pa.Table, scorer: str = "frozen", seed: int = 0, lost: tuple[int, ...] = ()) -> str:
    """An embeddings dataset of random vectors; rows in `lost` have none."""
    vectors = np.random.default_rng(seed).normal(size=(len(table), 6)).astype(np.float32)
    usable = ~np.isin(np.arange(len(table)), lost)
    values = {name: table[name] for name in IMAGE_COLUMNS}
    values |= {"scorer": pa.array([scorer] * len(table)), "condition": pa.array(["full"] * len(table))}
    values |= {"embedding": embedding_column(vectors, usable)}
    values["error"] = pa.array(["" if fine else "no picture" for fine in usable])
    schema = EMBEDDINGS.schema
    return stored(
        folder,
        "embeddings",
        pa.table([values[name].cast(schema.field(name).type) for name in schema.names], schema=schema),
    )


def judged(folder, table: pa.Table, scorer: str = "judge", errors: tuple[int, ...] = (), value=None) -> str:
    """Judgements of every pair; rows in `errors` say a similarity that does not count."""
    plan = plan_pairs(table)
    similarity = (
        np.random.default_rng(9).integers(0, 11, len(plan)) / 10 if value is None else np.full(len(plan), value)
    )
    records = scored_records(plan, similarity, scorer=scorer, condition="full")
    said = ["not JSON" if row in errors else "" for row in range(len(plan))]
    records = records.append_column("answer", pa.array(["..."] * len(plan))).append_column("error", pa.array(said))
    return stored(
        folder, "judgements", pa.table([records[name] for name in JUDGEMENTS.schema.names], schema=JUDGEMENTS.schema)
    )


def stored(folder, table: str, rows: pa.Table) -> str:
    dataset = Dataset(str(folder))
    dataset.shard("000-000000").write_bytes(parquet_bytes(rows))
    store_settings(dataset, table, {"rows": len(rows)})
    return str(folder)


def measured(output, embeddings=(), judgements=(), **changes):
    given = open_given(embeddings, judgements)
    return evaluate([], locate(str(output)), dataclasses.replace(SETTINGS, **changes), others=given)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("inputs")
    embedded(root / "one", images())
    embedded(root / "two", images(), seed=1)
    judged(root / "judge", images())
    measured(root / "all", (str(root / "one"), f"clip={root / 'two'}"), (str(root / "judge"),))
    return root


def test_every_scorer_is_a_column_and_frozen_is_the_baseline(runs):
    evaluation = read_evaluation(locate(str(runs / "all")))
    assert list(dict.fromkeys(row.scorer for row in evaluation.rows)) == ["frozen", "clip", "judge"]
    assert evaluation.baseline == "frozen" and evaluation.warnings == []
    gains = find(evaluation.measures, metric="ssr_gain", name="object-level")
    assert [(one.scorer, one.baseline) for one in gains] == [("clip", "frozen"), ("judge", "frozen")]
    assert {one.benchmark for one in evaluation.measures} == {"nearid", "mtg"}
    assert all(one.coverage == 1 for one in evaluation.measures)
    assert headline(evaluation.measures) == "object-level"


def test_without_frozen_the_first_scorer_is_the_baseline(runs, tmp_path):
    found = measured(tmp_path, (f"clip={runs / 'two'}",), (str(runs / "judge"),))
    assert found.baseline == "clip"
    assert json.loads((tmp_path / "metrics.json").read_text())["settings"]["baseline"] == "clip"
    assert measured(tmp_path, (f"clip={runs / 'two'}",), (str(runs / "judge"),)).reused
    assert not measured(tmp_path, (f"other={runs / 'two'}",), (str(runs / "judge"),)).reused


def test_measures_survive_their_file_and_are_made_again_from_similarities_alone(runs, tmp_path):
    stored_measures = read_measures(locate(str(runs / "all")))
    assert to_csv(from_csv(to_csv(stored_measures))) == (runs / "all" / MEASURES_FILE).read_text()
    for name in ("similarities", "metrics.json"):
        (tmp_path / name).symlink_to(runs / "all" / name)
    assert to_csv(measure_records(locate(str(tmp_path))).measures) == to_csv(stored_measures)
    assert to_csv(read_measures(locate(str(tmp_path)))) == to_csv(stored_measures), "an evaluation without measures.csv"
    with pytest.raises(UsageError, match="no column baseline"):
        from_csv("benchmark,scorer,condition,name,is_group,metric,value,low,high,support,coverage\n")
    with pytest.raises(UsageError, match=r"line 2: .*'yes'"):
        from_csv(to_csv(stored_measures[:1]).replace("false", "yes"))
    with pytest.raises(UsageError, match=r"no metrics\.json"):
        read_measures(locate(str(tmp_path / "nothing")))
    with pytest.raises(TypeError, match="colour"):
        find(stored_measures, colour="red")


def test_gaps_are_named_and_lower_the_coverage_of_their_cells_alone(tmp_path):
    table = images()
    lost = tuple(row for row, name in enumerate(table["image_id"].to_pylist()) if name == "2-1-redraw")
    without = table.filter(pc.invert(pc.is_in(table["image_id"], pa.array(["5-0-reshape"]))))
    one = embedded(tmp_path / "one", without, lost=lost)
    first_error = 0  # a pair of views
    two = judged(tmp_path / "two", without, errors=(first_error,))
    found = measured(tmp_path / "out", (one,), (two,))
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out" / "missing.csv").read_text())))
    assert [(row["reason"], row["scorer"], row["engine"], row["identity_id"], row["pairs"]) for row in rows] == [
        ("no distractor", "", "reshape", "toy:05", "1"),
        ("no similarity", "frozen", "redraw", "toy:02", "1"),
        ("no similarity", "judge", "", "toy:00", "1"),
    ]
    coverage = {(row.scorer, row.name): round(row.coverage * 48) for row in found.rows if not row.is_group}
    assert coverage == {
        ("frozen", "decal"): 48, ("frozen", "redraw"): 46, ("frozen", "reshape"): 46,
        ("judge", "decal"): 46, ("judge", "redraw"): 46, ("judge", "reshape"): 44,
    }  # fmt: skip
    said = "\n".join(found.warnings)
    assert "engine reshape has no distractor of 1 view(s) of 1 identity (toy:05)" in said
    assert "frozen, full: no similarity for 1 pair(s) (1 distractor of redraw), of 1 identity (toy:02)" in said
    assert "judge, full: no similarity for 1 pair(s) (1 positive), of 1 identity (toy:00)" in said
    assert found.row("frozen", "redraw").ordering_coverage < 1 == found.row("frozen", "decal").ordering_coverage
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["warnings"] == found.warnings


def test_a_judgement_that_is_not_a_number_is_missing_and_in_no_number(tmp_path):
    table = images()
    folder = judged(tmp_path / "j", table, value=0.5)
    rows = Dataset(folder).read()
    value = np.linspace(0, 1, len(rows))
    value[np.array(rows["engine"].to_pylist()) == "decal"] = np.nan
    place = rows.schema.get_field_index("similarity")
    stored(folder, "judgements", rows.set_column(place, rows.schema.field(place), pa.array(value)))
    found = measured(tmp_path / "out", (), (folder,))
    row = found.row("judge", "decal")
    assert math.isnan(row.ssr) and math.isnan(row.oracle_r) and (row.coverage, row.oracle_pairs) == (0, 0)
    assert found.row("judge", "redraw").coverage == 1
    assert found.warnings[0].startswith("judge, full: no similarity for 72 pair(s) (48 crossed of decal; 24 distractor")


def test_a_scorer_that_was_asked_less_is_compared_on_what_it_was_asked(tmp_path):
    everything, few = images(), images(3)
    one = embedded(tmp_path / "one", everything)
    found = measured(tmp_path / "out", (one,), (judged(tmp_path / "few", few),))
    row, alone = found.row("judge", "object-level"), measured(tmp_path / "alone", (embedded(tmp_path / "x", few),))
    assert (row.identities, row.coverage) == (3, pytest.approx(3 / 8))
    records = Dataset(str(tmp_path / "out" / "similarities")).read()
    frozen = measure_of(records, ["toy:00", "toy:01", "toy:02"])
    assert row.ssr_gain == pytest.approx(row.ssr - frozen)
    assert alone.row("frozen", "object-level").coverage == 1
    assert any(said.startswith("judge, full: no similarity for") and "5 identities" in said for said in found.warnings)


def measure_of(records: pa.Table, identities: list[str]) -> float:
    """SSR of frozen on these identities by loops over records."""
    rows = [r for r in records.to_pylist() if r["scorer"] == "frozen" and r["identity_id"] in identities]
    value = {(r["identity_id"], r["view_index"], r["other_view_index"], r["engine"]): r["similarity"] for r in rows
             if r["kind"] != "random"}  # fmt: skip
    solved = [
        all(
            value[identity, min(i, j), max(i, j), ""] > value[identity, i, i, engine]
            for i in range(3)
            for j in range(3)
            if i != j
        )
        for identity in identities
        for engine in ("redraw", "reshape")
    ]
    return float(np.mean(solved))


def test_constant_scores_have_no_correlation_and_it_is_said(tmp_path):
    found = measured(tmp_path / "out", (), (judged(tmp_path / "j", images(), value=0.5),))
    values = {(one.name, one.metric): one for one in found.measures}
    assert values["decal", "m_o"].value == values["decal", "m_o"].low == values["decal", "oracle_r"].value == 0
    assert found.row("judge", "redraw").ssr == 0
    assert found.warnings == ["judge, full: the same similarity for every pair, so no trial succeeds and r is 0"]


def test_one_view_is_named_and_nothing_but_single_views_or_no_distractor_is_refused(tmp_path):
    table = images()
    single = table.filter(pc.invert((pc.field("identity_id") == "toy:03") & (pc.field("view_index") > 0)))
    found = measured(tmp_path / "out", (embedded(tmp_path / "single", single),))
    assert found.warnings == ["1 identity (toy:03): one view alone, so nothing to compare; left out"]
    assert found.row("frozen", "redraw").coverage == 1 and found.row("frozen", "redraw").identities == 7
    with pytest.raises(UsageError, match="no identity of split 'test' has two views"):
        measured(tmp_path / "no", (embedded(tmp_path / "one-view", images(views=1)),))
    with pytest.raises(UsageError, match="no distractors"):
        measured(tmp_path / "no", (embedded(tmp_path / "views", images(engines=())),))
    assert not (tmp_path / "no").exists()


def test_records_of_two_benchmarks_are_refused_naming_what_differs(runs, tmp_path):
    one = str(runs / "one")
    moved = images().set_column(0, "image_id", pa.array([f"x{n}" for n in range(len(images()))]))
    cases = [
        (images(source="mtg"), r"8 identities that .*one has not: mtg:00, mtg:01.* and 3 more.*two benchmarks"),
        (images(engines=("redraw", "sdxl-512")), "1 engines that .* has not: sdxl-512"),
        (images(views=4), r"32 picture\(s\) that .*, e\.g\. distractor 3 of toy:00 by decal"),
    ]
    for n, (table, said) in enumerate(cases):
        with pytest.raises(UsageError, match=said):
            measured(tmp_path / "out", (one, f"b={embedded(tmp_path / f'e{n}', table)}"))
        with pytest.raises(UsageError, match=said):
            measured(tmp_path / "out", (one,), (judged(tmp_path / f"j{n}", table),))
    with pytest.raises(UsageError, match=r"other pictures in 96 place\(s\), e\.g\. distractor 0 of toy:00 by decal"):
        measured(tmp_path / "out", (one, f"b={embedded(tmp_path / 'm', moved)}"))
    assert not (tmp_path / "out").exists()


def test_names_stand_once_and_folders_are_what_they_should_be(runs, tmp_path):
    one, two, judge = (str(runs / name) for name in ("one", "two", "judge"))
    with pytest.raises(UsageError, match=r"both have a scorer 'frozen'.*--embeddings NAME="):
        measured(tmp_path, (one, two))
    with pytest.raises(UsageError, match="baseline is 'clip'; expected one of frozen, judge"):
        measured(tmp_path, (one,), (judge,), baseline="clip")
    with pytest.raises(UsageError, match="holds 'judgements'; expected a dataset of 'embeddings'"):
        open_given((judge,))
    with pytest.raises(UsageError, match=r"no embeddings of split 'val', condition full; found splits \['test'\]"):
        measured(tmp_path, (one,), split="val")
    several = stored(
        tmp_path / "several", "embeddings", pa.concat_tables([Dataset(one).read(), rename(Dataset(two).read(), "b")])
    )
    with pytest.raises(UsageError, match="names one scorer, and the folder holds frozen, b"):
        measured(tmp_path, (f"a={several}",))
    assert Given(dataset=Dataset(several), scorers=("b",), name="c").scorer_names() == ["c"]
    for entries in (["a="], ["=b"], [""], ["a", "a"], ["n=a", "n=b"]):
        with pytest.raises(UsageError, match="embeddings"):
            named_folders(entries, "embeddings")


def rename(table: pa.Table, scorer: str) -> pa.Table:
    place = table.schema.get_field_index("scorer")
    return table.set_column(place, table.schema.field(place), pa.array([scorer] * len(table)))


def test_nothing_is_missing_from_complete_records_and_random_pairs_may_differ():
    plans = [plan_pairs(images(), random_views=2, seed=seed) for seed in (0, 1)]
    parts = [
        scored_records(plan, np.arange(len(plan)) / 900, scorer=str(n), condition="full")
        for n, plan in enumerate(plans)
    ]
    records = pa.concat_tables(parts)
    assert len(missing(records)) == 0 and warnings_of(records, missing(records)) == []
    gaps = pa.concat_tables([parts[0], parts[1].filter(pc.field("kind") != "random").slice(1)])
    assert missing(gaps)["scorer"].to_pylist() == ["1"] and math.isclose(sum(missing(gaps)["pairs"].to_pylist()), 1)
