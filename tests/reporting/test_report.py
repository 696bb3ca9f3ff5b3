"""A report from folders as the jobs write them."""

import io
import math
import re
import shutil
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pytest
from PIL import Image

from nearid_ray.data.plan import make_plan
from nearid_ray.data.store import Dataset, locate, parquet_bytes
from nearid_ray.errors import UsageError
from nearid_ray.evaluation.calibration import Calibration, Reliability
from nearid_ray.evaluation.evaluate import EvaluateSettings, evaluate, read_evaluation
from nearid_ray.evaluation.measures import write_measures
from nearid_ray.reporting.benchmarks import benchmarks
from nearid_ray.reporting.figures.gather import qualitative_tuples
from nearid_ray.reporting.figures.make import make_figures
from nearid_ray.reporting.figures.pictures import drawn_identities, thumbnail
from nearid_ray.reporting.inputs import Opened, ReportInputs, read_curve
from nearid_ray.reporting.load import load_report
from nearid_ray.reporting.model import ReportSettings
from nearid_ray.reporting.page import page
from nearid_ray.reporting.report import report, write_report
from nearid_ray.scoring.calibrated import ConditionCalibration, StoredCalibration
from nearid_ray.settings import dump_json
from nearid_ray.stages.report import Report, run_report
from nearid_ray.tracking import TrackingSettings
from nearid_ray.training.outputs import HISTORY
from schemas import DISTRACTORS, EMBEDDINGS, TOKENS_INDEX, TUPLES

ENGINES = ("redraw", "decal")
OFF = TrackingSettings(tracking_uri="off")


def png(seed: int, size: int = 24) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (size, size, 3), np.uint8)).save(sink, "PNG")
    return sink.getvalue()


def filled(schema: pa.Schema, **values) -> dict:
    """A row with something of the right type in every column that is not given."""
    empty = {pa.string(): "", pa.int32(): 0, pa.int64(): 0, pa.bool_(): False}
    return {f.name: values.get(f.name, None if f.nullable else empty.get(f.type)) for f in schema}


def write(folder, table, rows, content=None) -> Dataset:
    output = Dataset(str(folder))
    plan = make_plan(output, pa.table({"row_id": ["all"]}), table=table.name, content=content or {}, rows_per_shard=1)
    output.shard(plan.pending[0]).write_bytes(parquet_bytes(pa.Table.from_pylist(rows, schema=table.schema)))
    return output


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    random = np.random.default_rng(0)
    views, painted, embeddings = [], [], []
    view_type = TUPLES.schema.field("views").type.value_type
    for n in range(9):
        identity = f"toybox:{n}"
        shared = {"identity_id": identity, "category": "mug", "split": "test"}
        structs = [
            filled(
                view_type, view_id=f"{n}-{v}", image={"bytes": png(10 * n + v), "path": "x.png"}, mask_source="exact"
            )
            for v in range(3)
        ]
        views.append(filled(TUPLES.schema, **shared, views=structs, source="toybox"))
        for v in range(3):
            for e, engine in enumerate(("", *ENGINES)):
                role = "distractor" if engine else "view"
                if engine:
                    image = {"bytes": png(1000 + 10 * n + v + 100 * e), "path": "x.png"}
                    row = {"distractor_id": f"{n}{v}{e}", "view_index": v, "engine": engine, "image": image}
                    row |= {"oracle": 0.5} if engine == "decal" else {}
                    painted.append(filled(DISTRACTORS.schema, **shared, **row, verdict="accepted"))
                for scorer in ("frozen", "trained"):
                    vector = random.normal(size=6)
                    place = {
                        "image_id": f"{n}{v}{e}" if engine else f"{n}-{v}",
                        "role": role,
                        "view_index": v,
                        "engine": engine,
                    }
                    embeddings.append(
                        filled(
                            EMBEDDINGS.schema,
                            **shared,
                            **place,
                            scorer=scorer,
                            condition="full",
                            embedding=(vector / np.linalg.norm(vector)).tolist(),
                            oracle=0.5 if engine == "decal" else None,
                        )
                    )
    write(root / "tuples", TUPLES, views, {"source": "toybox"})
    write(root / "distractors", DISTRACTORS, painted)
    made = write(root / "evaluation" / "embeddings", EMBEDDINGS, embeddings, {"tokens": "0123-4567"})
    evaluate([made], locate(str(root / "evaluation")), EvaluateSettings(resamples=10, train_engines=("redraw",)))
    history = {"step": [0, 1, 2], "loss": [None, 2.0, 1.5], "val_ssr": [0.3, None, 0.7]}
    sink = pa.BufferOutputStream()
    pyarrow.csv.write_csv(pa.table(history), sink)
    locate(str(root / "train")).child(HISTORY).write_bytes(sink.getvalue())
    card = {"metrics": {"step": 2}, "settings": {"alpha": 0.5}}
    locate(str(root / "train")).child("best", "head.json").write_bytes(dump_json(card))
    locate(str(root / "tuples")).child("summary.json").write_bytes(dump_json({"seconds": 3.2, "rows_made": 9}))
    return root


def inputs(root, **changes) -> ReportInputs:
    names = {name: str(root / name) for name in ("evaluation", "tuples", "distractors")}
    return ReportInputs(**{**names, "train": (f"trained={root / 'train'}",), **changes})


def test_the_report_is_filled_from_the_folders(folders):
    data = load_report(
        Opened(inputs(folders)), ReportSettings(sheet_tuples=3), facts={"Time": "1 s"}, commands=["make demo"]
    )
    assert "Toy data" in data.statement[0]
    assert data.statement[-1] == "Views: toybox. Distractors painted by: decal, redraw."
    assert {row.scorer for row in data.rows} == {"frozen", "trained"}
    assert data.curves[0].loss == [(1.0, 2.0), (2.0, 1.5)]
    assert data.curves[0].validation_ssr == [(0.0, 0.3), (2.0, 0.7)]
    assert data.curves[0].kept_step == 2 and data.settings["train trained"] == {"alpha": 0.5}
    assert data.facts["Last run, tuples"] == "3.2 s, 9 rows made"
    (projection,) = (figure for figure in data.figures if figure.name == "figure5-projection")
    assert [panel.caption for panel in projection.panels] == [
        f"{scorer}: 21 views (discs) and 42 distractors (crosses) of 7 identities." for scorer in ("frozen", "trained")
    ]
    assert data.facts["Time"] == "1 s" and data.facts["Identities"] == "9"
    assert data.settings["tuples"] == {"source": "toybox"} and data.settings["evaluation"]["resamples"] == 10


def test_the_sheet_shows_each_picture_with_the_similarities_of_the_records(folders):
    sheet = qualitative_tuples(Opened(inputs(folders)), ReportSettings(sheet_tuples=3))
    assert len(sheet) == 3
    records = Dataset(str(folders / "evaluation" / "similarities")).read().to_pylist()
    for item in sheet:
        assert [p.label for p in item.positives] == ["view 1", "view 2"]
        assert [p.label for p in item.distractors] == ["redraw", "decal"]
        n = int(item.identity_id.partition(":")[2])
        assert item.anchor.image == png(10 * n)
        assert item.distractors[1].image == png(1000 + 10 * n + 200)
        for picture, engine, other in ((item.positives[1], "", 2), (item.distractors[0], "redraw", 0)):
            assert set(picture.similarities) == {"frozen", "trained"}
            for scorer, value in picture.similarities.items():
                (expected,) = (
                    r["similarity"]
                    for r in records
                    if (r["identity_id"], r["scorer"], r["engine"]) == (item.identity_id, scorer, engine)
                    and (r["view_index"], r["other_view_index"]) == (0, other)
                    and r["kind"] != "random"
                )
                assert value == expected


def test_report_writes_the_page_and_its_numbers_and_the_same_bytes_twice(folders, tmp_path):
    first = report(inputs(folders), locate(str(tmp_path / "a"))).page
    second = report(inputs(folders), locate(str(tmp_path / "b"))).page
    assert first is not None and second is not None
    assert first.read_bytes() == second.read_bytes()
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == [
        "figures",
        "measures.csv",
        "metrics.csv",
        "report.html",
        "table.md",
    ]
    text = first.read_bytes().decode()
    assert str(folders) not in text
    assert text.count("<img") == 8 * (3 + 2) + 4 * (3 + 3) + 1  # tuples; parts; the sheet of the engines


def test_an_evaluation_alone_is_enough(folders, tmp_path):
    place = write_report(
        load_report(Opened(ReportInputs(evaluation=str(folders / "evaluation"))), ReportSettings()),
        locate(str(tmp_path)),
    )
    assert b"<img" not in place.read_bytes()


def test_identities_are_drawn_and_not_chosen():
    names = [f"toybox:{n}" for n in range(50)]
    first = drawn_identities(names, 7, purpose="sheet", seed=0)
    assert first == drawn_identities(names[::-1] * 2, 7, purpose="sheet", seed=0)
    assert len(set(first)) == 7
    assert first != drawn_identities(names, 7, purpose="sheet", seed=1)
    assert drawn_identities(names[:3], 7, purpose="sheet", seed=0).__len__() == 3


def test_large_pictures_become_small_ones_and_small_ones_stay():
    assert thumbnail(png(0, 24), 64) == png(0, 24)
    small = Image.open(io.BytesIO(thumbnail(png(0, 300), 64)))
    assert (small.format, small.size) == ("JPEG", (64, 64))


def test_folders_that_hold_something_else_are_refused_by_name(folders, tmp_path):
    with pytest.raises(UsageError, match=r"metrics\.json"):
        load_report(Opened(inputs(folders, evaluation=str(tmp_path))), ReportSettings())
    with pytest.raises(UsageError, match="expected a dataset of 'tuples'"):
        load_report(Opened(inputs(folders, tuples=str(folders / "distractors"))), ReportSettings())
    with pytest.raises(UsageError, match="NAME=FOLDER"):
        load_report(Opened(inputs(folders, train=("x",))), ReportSettings())
    with pytest.raises(UsageError, match=HISTORY):
        read_curve("a", locate(str(tmp_path)))
    with pytest.raises(ValueError, match="sheet_tuples"):
        ReportSettings(sheet_tuples=-1)


def test_figures_are_files_and_what_is_missing_is_said_in_words(folders, tmp_path):
    made = make_figures(inputs(folders), locate(str(tmp_path)))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(f"{name}.svg" for name in made.files)
    assert set(made.files) == {
        "figure3-properties",
        "figure5-projection",
        "figure7-tuples",
        "figure8-parts",
        "figure9-ecdf",
    }
    assert set(made.missing) == {"alpha", "beta", "figure3 (attention)", "figure4", "reliability"}
    for name, flag in (("figure4", "--measures"), ("alpha", "--train"), ("reliability", "--calibrations")):
        assert flag in made.missing[name]
    assert "--tokens" in made.missing["figure3 (attention)"]
    alone = make_figures(ReportInputs(evaluation=str(folders / "evaluation")), locate(str(tmp_path / "b")), ["figure7"])
    assert not alone.files and "--tuples" in alone.missing["figure7"]
    with pytest.raises(UsageError, match="figure6; expected some of alpha, beta, figure3"):
        make_figures(inputs(folders), locate(str(tmp_path)), ["figure6"])


def test_parts_that_changed_are_drawn_with_their_oracle(folders, tmp_path):
    made = make_figures(inputs(folders), locate(str(tmp_path)), ["figure8", "figure9"])
    parts = made.files["figure8-parts"].read_bytes().decode()
    # Each of four tuples: the distractor in the anchor's background, and those in the backgrounds of two other views.
    assert parts.count(">oracle 0.500<") == 4 * 3 and parts.count(">view 2: decal<") == 4
    assert "redraw" not in parts
    assert "(27)" in made.figures[1].caption


def test_figures_alone_leave_no_page(folders, tmp_path):
    settings = Report(
        inputs=inputs(folders), output=str(tmp_path / "out"), figures=("figure5",), figures_only=True, tracking=OFF
    )
    assert run_report(settings).summary["figures"] == ["figure5-projection"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["figures", "summary.json"]
    settings = Report(inputs=inputs(folders), output=str(tmp_path / "none"), figures=("figure4",), tracking=OFF)
    with pytest.raises(UsageError, match=r"no figure can be drawn\. figure4: .*--measures"):
        run_report(settings)


def test_data_of_another_evaluation_is_refused(folders, tmp_path):
    view_type = TUPLES.schema.field("views").type.value_type
    views = [filled(view_type, view_id="other", image={"bytes": png(1), "path": "x.png"})] * 2
    rows = [filled(TUPLES.schema, identity_id=f"toybox:{n}", views=views) for n in range(9)]
    write(tmp_path / "tuples", TUPLES, rows)
    with pytest.raises(UsageError, match=r"are not the tuples that .* measured: 27 of its 27 views"):
        load_report(Opened(inputs(folders, tuples=str(tmp_path / "tuples"))), ReportSettings())
    rows = Dataset(str(folders / "distractors")).read().to_pylist()[:-2]
    write(tmp_path / "distractors", DISTRACTORS, rows)
    with pytest.raises(UsageError, match=r"are not the distractors that .* measured: 2 of its 54 distractors"):
        load_report(Opened(inputs(folders, distractors=str(tmp_path / "distractors"))), ReportSettings())
    index = [filled(TOKENS_INDEX.schema, role="view", split="test", identity_id="toybox:0")]
    write(tmp_path / "tokens", TOKENS_INDEX, index, {"backbone": "another"})
    with pytest.raises(UsageError, match=r"are not the tokens that .* measured"):
        load_report(Opened(inputs(folders, tokens=str(tmp_path / "tokens"))), ReportSettings())


def test_measures_of_further_folders_stand_beside_and_may_not_contradict(folders, tmp_path):
    own = read_evaluation(locate(str(folders / "evaluation"))).measures
    aligned = replace(own[0], benchmark="dreambench-plus", metric="m_h", name="category:animal", value=0.5)
    write_measures(locate(str(tmp_path / "align")), [own[0], aligned])
    opened = Opened(inputs(folders, measures=(str(tmp_path / "align"),)))
    assert opened.measures == [*own, aligned]
    figures = {figure.name for figure in load_report(opened, ReportSettings()).figures}
    assert "figure4-radar" in figures
    write_measures(locate(str(tmp_path / "other")), [replace(own[0], value=0.123)])
    with pytest.raises(UsageError, match=r"is 0.123 there and .* in another folder"):
        _ = Opened(inputs(folders, measures=(str(tmp_path / "other"),))).measures


def test_an_evaluation_of_an_earlier_version_is_still_read(folders, tmp_path):
    shutil.copytree(folders / "evaluation", tmp_path / "evaluation")
    (tmp_path / "evaluation" / "measures.csv").unlink()
    data = load_report(Opened(inputs(folders, evaluation=str(tmp_path / "evaluation"))), ReportSettings())
    assert data.measures == read_evaluation(locate(str(folders / "evaluation"))).measures


def test_what_is_not_covered_is_red_and_named(folders, tmp_path):
    root = tmp_path / "evaluation"
    rows = Dataset(str(folders / "evaluation" / "embeddings")).read().to_pylist()
    lost = {"identity_id": "toybox:3", "scorer": "trained", "role": "distractor", "engine": "redraw"}
    for row in rows:
        if all(row[name] == value for name, value in lost.items()):
            row |= {"embedding": None, "error": "broken"}
    evaluate([write(root / "embeddings", EMBEDDINGS, rows)], locate(str(root)), EvaluateSettings(resamples=10))
    data = load_report(Opened(ReportInputs(evaluation=str(root))), ReportSettings())
    (gap,) = data.gaps
    assert "trained" in gap and "redraw" in gap and "toybox:3" in gap
    table = benchmarks(data)
    text = page(data)
    assert gap in text
    shares = [float(share) for share in re.findall(r'<td class="lose">([\d.]+) %', str(table))]
    assert len(shares) == 1 and shares[0] == math.floor(1000 * 8 / 9) / 10


def test_a_calibration_of_another_split_is_measured_on_this_one(folders, tmp_path):
    curve = Reliability(
        edges=(0.0, 1.0), counts=(5,), predicted=(0.5,), observed=(0.4,), expected_error=0.1, brier=0.2, coverage=1.0
    )
    fitted = Calibration(kind="logistic", slope=1.0, intercept=0.0, same_share=0.3, num_pairs=5)
    one = ConditionCalibration(calibration=fitted, points=(), reliability=curve)
    captions = {}
    for split in ("val", "test"):
        stored = StoredCalibration(
            scorer="trained", fingerprint="f", split=split, kinds=("distractor",), conditions={"full": one}
        )
        place = locate(str(tmp_path / split))
        place.child("calibration.json").write_bytes(stored.to_bytes())
        given = inputs(folders, calibrations=(f"trained={tmp_path / split}",))
        (figure,) = make_figures(given, place.child("out"), ["reliability"]).figures
        captions[split] = figure.caption
    assert f"{27 + 54} pairs. trained: fitted on val, measured on test." in captions["val"]
    assert "5 pairs. trained: measured on test by folds of identities." in captions["test"]
