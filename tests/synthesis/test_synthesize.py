"""Synthesis on shards: exact backgrounds, failures as rows, batches that fit, the same picture in any batch."""

from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pytest

import schemas
from nearid_ray.data.images import decode_mask, decode_rgb
from nearid_ray.data.importers.toybox import ToyboxImporter, ToyboxSettings
from nearid_ray.data.ingest import ingest_task, plan_ingest
from nearid_ray.data.pipeline import run_shard
from nearid_ray.data.store import Dataset, parquet_bytes
from nearid_ray.synthesis.engine import EngineRequest, EngineResult
from nearid_ray.synthesis.paint import Batches
from nearid_ray.synthesis.settings import SynthesisSettings
from nearid_ray.synthesis.synthesize import make_task, plan_distractors


def _request(value: int) -> EngineRequest:
    return EngineRequest(
        view_HW3=np.full((4, 4, 3), value, np.uint8), mask_HW=np.full((4, 4), 255, np.uint8), seed=value
    )


class OutOfMemoryError(RuntimeError):
    """Named like the one of torch.cuda."""


@dataclass
class Planted:
    """Inverts pictures; runs out of memory above `room` rows, fails on a batch or on a row where it is told to."""

    name = "planted"
    group = "train"
    room: int = 100
    bad_seeds: tuple[int, ...] = ()
    batches: list[int] = field(default_factory=list)

    def load(self) -> None:
        pass

    def generate(self, requests):
        self.batches.append(len(requests))
        if len(requests) > self.room:
            raise OutOfMemoryError("CUDA out of memory")
        if any(request.seed in self.bad_seeds for request in requests):
            raise RuntimeError("planted")
        return [EngineResult(image_HW3=255 - r.view_HW3, mask_HW=r.mask_HW) for r in requests]


def _values(results) -> list:
    return [type(r).__name__ if isinstance(r, Exception) else int(r.image_HW3[0, 0, 0]) for r in results]


def _batches(engine: Planted, told: list[str] | None = None) -> Batches:
    return Batches(engine, tell=(told if told is not None else []).append)  # type: ignore[arg-type]


def test_a_batch_too_large_for_the_memory_is_halved_and_the_worker_remembers():
    engine, told = Planted(room=3), []
    batches = _batches(engine, told)
    assert _values(batches.run([_request(i) for i in range(8)])) == [255 - i for i in range(8)]
    assert engine.batches == [8, 4, 2, 2, 2, 2]
    assert [message.split("; ")[0] for message in told] == [
        "planted: 8 rows do not fit the GPU's memory",
        "planted: 4 rows do not fit the GPU's memory",
    ]
    assert _values(batches.run([_request(i) for i in range(3)])) == [255, 254, 253]
    assert engine.batches[6:] == [2, 1]


def test_a_row_that_does_not_fit_alone_is_a_failed_row():
    assert _values(_batches(Planted(room=0)).run([_request(1), _request(2)])) == ["OutOfMemoryError"] * 2


def test_an_engine_that_raises_costs_the_row_and_not_its_neighbours():
    results = _batches(Planted(bad_seeds=(2,))).run([_request(i) for i in range(4)])
    assert _values(results) == [255, 254, "RuntimeError", 252]


@pytest.fixture(scope="module")
def tuples(tmp_path_factory) -> Dataset:
    output = Dataset(tmp_path_factory.mktemp("tuples"))
    importer = ToyboxImporter(ToyboxSettings(train_identities=0, val_identities=0, test_identities=6))
    plan = plan_ingest(importer, output)
    for shard in plan.pending:
        run_shard(ingest_task(importer), output, shard, plan.members(shard))
    return output


def _made(tuples: Dataset, output: Dataset, **changes) -> pa.Table:
    settings = SynthesisSettings(**{"engines": ("toybox",), **changes})
    plan = plan_distractors(tuples, output, settings)
    task = make_task(tuples, plan, settings)
    task.setup()
    for shard in plan.pending:
        run_shard(task, output, shard, plan.members(shard))
    return output.read()


def test_rows_keep_the_contract_and_the_background(tuples, tmp_path):
    rows = _made(tuples, Dataset(tmp_path))
    assert schemas.validate(tmp_path, references={"tuples": tuples.location.path}) == []
    views = {
        (row["identity_id"], i): decode_rgb(view["image"]["bytes"])
        for row in tuples.read().to_pylist()
        for i, view in enumerate(row["views"])
    }
    assert len(rows) == 9 * len(views)
    for row in rows.to_pylist():
        view, image = views[row["identity_id"], row["view_index"]], decode_rgb(row["image"]["bytes"])
        outside = decode_mask(row["mask"]["bytes"]) == 0
        assert np.array_equal(view[outside], image[outside])
        assert row["background_max_difference"] == 0
        assert (row["oracle"] is None) == (row["part_mask"] is None) == (row["engine"].split("-")[1] in _OBJECT_KINDS)


_OBJECT_KINDS = {"redraw", "recolor", "retexture", "reshape", "restyle", "redecorate"}


def test_a_row_is_the_same_picture_in_any_shard_and_engine_batch(tuples, tmp_path):
    def pictures(name, **changes):
        rows = _made(tuples, Dataset(tmp_path / name), **changes)
        return dict(zip(rows["distractor_id"].to_pylist(), rows["image"].to_pylist(), strict=True))

    large = pictures("large")
    assert pictures("small", rows_per_shard=3, engine_batch=2) == large
    other = pictures("other", run_seed=1)
    assert other.keys().isdisjoint(large.keys())


def test_views_that_cannot_be_read_or_painted_become_rows_with_an_error(tuples, tmp_path):
    table = tuples.read()
    broken = table.to_pylist()
    broken[0]["views"][0]["image"]["bytes"] = b"no picture"
    broken[1]["views"][0]["view_id"] = "changed"
    broken[2]["views"][0]["provenance"] = "{}"
    copy = Dataset(tmp_path / "tuples")
    for name in ("settings.json", "plan/000.parquet"):
        copy.location.child(name).write_bytes(tuples.location.child(name).read_bytes())
    shard = tuples.shards()[0]
    copy.shard(shard).write_bytes(tuples.shard(shard).read_bytes())
    settings = SynthesisSettings(engines=("toybox-redraw",))
    output = Dataset(tmp_path / "out")
    plan = plan_distractors(copy, output, settings)
    copy.shard(shard).write_bytes(parquet_bytes(pa.Table.from_pylist(broken, schema=table.schema)))
    for name in plan.pending:
        run_shard(make_task(copy, plan, settings), output, name, plan.members(name))
    rows = {(row["identity_id"], row["view_index"]): row for row in output.read().to_pylist()}
    said = [rows[broken[i]["identity_id"], 0]["error"] for i in range(3)]
    assert "not a picture in a known format" in said[0]
    assert "not the one that was planned" in said[1]
    assert "paints toybox views alone" in said[2]
    assert sum(bool(row["error"]) for row in rows.values()) == 3
    assert schemas.validate(tmp_path / "out") == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"engines": ()},
        {"splits": ("holdout",)},
        {"feather_px": -1.0},
        {"engine_batch": 0},
        {"eval_only_groups": ("x",)},
    ],
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        SynthesisSettings(**wrong)
