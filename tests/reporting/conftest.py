"""A report's data made of random vectors and drawn squares: it says nothing about any method."""

import io
import math

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from nearid_ray.evaluation.pairs import plan_pairs
from nearid_ray.evaluation.similarities import CONDITIONS, margin_records, similarity_records
from nearid_ray.evaluation.summary import engine_groups, metrics_rows, row_measures
from nearid_ray.reporting.figures.projection import projection_figure
from nearid_ray.reporting.figures.sheets import qualitative_figure
from nearid_ray.reporting.model import Projection, ReportData, SheetPicture, SheetTuple, TrainingCurve

ENGINES = {
    "toybox-redraw": 0.2,
    "toybox-recolor": 0.3,
    "toybox-retexture": 0.5,
    "toybox-reshape": 0.6,
    "toybox-decal": 1,
}
SCORERS = {
    "frozen": 0.55,
    "nearid-alpha-0": 1.6,
    "nearid-alpha-0.1": 1.4,
    "nearid-alpha-0.5": 1.2,
    "nearid-alpha-2": 1.0,
}


def picture(seed: int, size: int = 64) -> bytes:
    """A PNG of a square on a plain ground."""
    random = np.random.default_rng(seed)
    image = np.empty((size, size, 3), np.uint8)
    image[:] = random.integers(150, 255, 3)
    image[size // 4 : -size // 4, size // 4 : -size // 4] = random.integers(0, 255, 3)
    sink = io.BytesIO()
    Image.fromarray(image).save(sink, "PNG")
    return sink.getvalue()


def images_and_vectors(identities: int) -> tuple[pa.Table, np.ndarray]:
    random = np.random.default_rng(5)
    rows, vectors = [], []
    for n in range(identities):
        own = random.normal(size=24)
        for view in range(3):
            background = random.normal(size=24)
            for engine, closeness in {"": 1.0, **ENGINES}.items():
                rows.append(
                    {
                        "image_id": f"{n}-{view}-{engine}",
                        "role": "distractor" if engine else "view",
                        "identity_id": f"toybox:{n:04d}",
                        "view_index": view,
                        "engine": engine,
                        "category": "mug",
                        "split": "test",
                        "oracle": float(random.random()) if engine == "toybox-decal" else None,
                    }
                )
                other = closeness * 0.5 * own + random.normal(size=24) if engine else own
                vectors.append([weight * other + background for weight in SCORERS.values()])
    return pa.Table.from_pylist(rows), np.array(vectors, np.float32)


@pytest.fixture(scope="session")
def report_data() -> ReportData:
    images, embedding_NSD = images_and_vectors(40)
    plan = plan_pairs(images, random_views=3)
    table = pa.concat_tables(
        similarity_records(embedding_NSD[:, n], plan, scorer=scorer, condition=condition)
        for condition in CONDITIONS
        for n, scorer in enumerate(SCORERS)
    )
    groups = engine_groups(table, ["toybox-redraw", "toybox-recolor"])
    rows = metrics_rows(table, margin_records(table), groups, resamples=30)
    curves = [
        TrainingCurve(
            name=scorer,
            loss=[
                (step, 3 * math.exp(-step / 60) + 0.5 + 0.1 * n + 0.05 * math.sin(step)) for step in range(0, 200, 2)
            ],
            validation_ssr=[(step, 0.9 - 0.4 * math.exp(-step / 50) - 0.03 * n) for step in range(0, 201, 25)],
        )
        for n, scorer in enumerate(list(SCORERS)[1:])
    ]
    return ReportData(
        title="Random vectors in the shape of a NearID report",
        statement=["This page is made of random vectors and drawn squares. Its numbers mean nothing."],
        rows=rows,
        group_engines=groups,
        curves=curves,
        measures=row_measures(rows, groups, "frozen"),
        gaps=["engine toybox-decal has no distractor of 1 view(s) of 1 identity (toybox:0001)"],
        figures=[projection_figure(projections(images, embedding_NSD)), qualitative_figure(sheet())],
        facts={"Identities": "40 (test)", "Time": "no time at all", "Code": "0.1.0"},
        commands=[
            "python jobs/evaluate.py --tokens runs/demo/tokens --heads runs/demo/train-alpha-0.5 --output runs/x"
        ],
        settings={"evaluate": {"split": "test", "resamples": 1000}, "train": {"alpha": 0.5}},
    )


def projections(images: pa.Table, embedding_NSD: np.ndarray) -> list[Projection]:
    """Seven identities as the first two scorers embed them."""
    seven = np.flatnonzero([n in {f"toybox:{k:04d}" for k in range(7)} for n in images["identity_id"].to_pylist()])
    few = images.take(pa.array(seven))
    return [
        Projection(
            scorer=scorer,
            embedding_ND=embedding_NSD[seven, n],
            identities=few["identity_id"].to_pylist(),
            is_view=[role == "view" for role in few["role"].to_pylist()],
        )
        for n, scorer in enumerate(list(SCORERS)[:2])
    ]


def sheet() -> list[SheetTuple]:
    """Three tuples."""
    return [_tuple(n) for n in range(3)]


def _tuple(n: int) -> SheetTuple:
    random = np.random.default_rng(n)

    def shown(label: str, seed: int, low: float) -> SheetPicture:
        similarities = {scorer: low + 0.2 * float(random.random()) for scorer in SCORERS}
        return SheetPicture(image=picture(seed), label=label, similarities=similarities)

    return SheetTuple(
        identity_id=f"toybox:{n:04d}",
        category="mug",
        anchor=SheetPicture(image=picture(n), label="anchor"),
        positives=[shown(f"view {view}", 10 * n + view, 0.6) for view in (1, 2)],
        distractors=[shown(engine, 100 * n + k, 0.5) for k, engine in enumerate(ENGINES)],
    )
