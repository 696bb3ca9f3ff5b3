"""Tiny pipelines of every diffusers class, each built once, and toys painted without Ray."""

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from nearid_ray.data.importers.toybox import ToyboxImporter, ToyboxSettings
from nearid_ray.data.ingest import ingest_task, plan_ingest
from nearid_ray.data.pipeline import run_shard
from nearid_ray.data.store import Dataset
from nearid_ray.synthesis.settings import SynthesisSettings
from nearid_ray.synthesis.synthesize import make_task, plan_distractors


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`tiny_weights("sdxl")`: the folder of the tiny pipeline of a kind. Tests must not change it; copy it first."""
    folders: dict[str, Path] = {}

    def folder(kind: str) -> Path:
        from tests.synthesis.tiny import pipelines

        if kind not in folders:
            folders[kind] = pipelines.save(kind, tmp_path_factory.mktemp(kind))
        return folders[kind]

    return folder


@pytest.fixture(scope="session")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """A small toybox dataset of all splits, made without Ray."""
    counts = {"train_identities": 2, "val_identities": 0, "test_identities": 4}
    importer, output = ToyboxImporter(ToyboxSettings(**counts)), Dataset(tmp_path_factory.mktemp("toys"))
    plan = plan_ingest(importer, output)
    for shard in plan.pending:
        run_shard(ingest_task(importer), output, shard, plan.members(shard))
    return output


@pytest.fixture(scope="session")
def painted_rows() -> Callable[[Dataset, Dataset, SynthesisSettings], pa.Table]:
    """Plan distractors and make them without Ray; all rows of the output."""

    def make(tuples: Dataset, output: Dataset, settings: SynthesisSettings) -> pa.Table:
        plan = plan_distractors(tuples, output, settings)
        task = make_task(tuples, plan, settings)
        task.setup()
        for shard in plan.pending:
            run_shard(task, output, shard, plan.members(shard))
        return output.read()

    return make
