"""A report from folders as the jobs write them."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pytest
from PIL import Image

from nearid_ray.data.plan import make_plan
from nearid_ray.data.store import Dataset, locate, parquet_bytes
from nearid_ray.errors import UsageError
from nearid_ray.evaluation.evaluate import EvaluateSettings, evaluate
from nearid_ray.reporting.figures.gather import qualitative_tuples
from nearid_ray.reporting.figures.pictures import drawn_identities, thumbnail
from nearid_ray.reporting.inputs import Opened, ReportInputs, read_curve
from nearid_ray.reporting.load import load_report
from nearid_ray.reporting.model import ReportSettings
from nearid_ray.reporting.report import report, write_report
from nearid_ray.settings import dump_json
from nearid_ray.training.outputs import HISTORY
from schemas import DISTRACTORS, EMBEDDINGS, TUPLES

ENGINES = ("redraw", "decal")


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
    made = write(root / "evaluation" / "embeddings", EMBEDDINGS, embeddings)
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
    assert text.count("<img") == 8 * (3 + 2) + 4 * (3 + 1) + 1  # tuples; parts; the sheet of the engines


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
