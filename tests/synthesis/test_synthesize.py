"""Synthesis on shards: exact backgrounds, failures as rows, batches that fit, the same picture in any batch."""

import os
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pytest

import schemas
from nearid_ray.data.images import decode_mask, decode_rgb, encode_png
from nearid_ray.data.importers.toybox import ToyboxImporter, ToyboxSettings
from nearid_ray.data.ingest import ingest_task, plan_ingest
from nearid_ray.data.pipeline import RunSettings, run_shard
from nearid_ray.data.store import Dataset, parquet_bytes
from nearid_ray.errors import UsageError
from nearid_ray.synthesis.engine import EngineRequest, EngineResult
from nearid_ray.synthesis.estimate import estimate
from nearid_ray.synthesis.gate import GateSettings
from nearid_ray.synthesis.paint import Batches
from nearid_ray.synthesis.settings import Selection, SynthesisSettings
from nearid_ray.synthesis.synthesize import asks_for_gpus, make_task, plan_distractors, selected, settled_dtype


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
    for number, value in ((3, 0), (4, 255)):
        broken[number]["views"][0]["mask"]["bytes"] = encode_png(np.full((64, 64), value, np.uint8))
    broken[5]["views"][0]["mask"]["bytes"] = encode_png(np.full((32, 32), 255, np.uint8))
    copy = Dataset(tmp_path / "tuples")
    for name in ("settings.json", "plan/000.parquet"):
        copy.location.child(name).write_bytes(tuples.location.child(name).read_bytes())
    shard = tuples.shards()[0]
    copy.shard(shard).write_bytes(tuples.shard(shard).read_bytes())
    settings = SynthesisSettings(engines=("toybox-redraw", "sleeping-1"))
    output = Dataset(tmp_path / "out")
    plan = plan_distractors(copy, output, settings)
    copy.shard(shard).write_bytes(parquet_bytes(pa.Table.from_pylist(broken, schema=table.schema)))
    for name in plan.pending:
        run_shard(make_task(copy, plan, settings), output, name, plan.members(name))
    rows = {(row["identity_id"], row["view_index"], row["engine"]): row for row in output.read().to_pylist()}
    said = [rows[entry["identity_id"], 0, "toybox-redraw"]["error"] for entry in broken]
    assert "not a picture in a known format" in said[0]
    assert "not the one that was planned" in said[1]
    assert "paints toybox views alone" in said[2]
    said = [rows[entry["identity_id"], 0, "sleeping-1"]["error"] for entry in broken]
    assert said[2] == ""
    assert "the mask is empty" in said[3]
    assert "covers 100.0% of the picture" in said[4]
    assert "the mask is (32, 32) px, the view (64, 64) px" in said[5]
    assert sum(bool(row["error"]) for row in rows.values()) == 4 + 5
    assert schemas.validate(tmp_path / "out") == []


def test_later_identities_add_rows_and_change_none(tmp_path):
    def grown(identities: int) -> Dataset:
        output = Dataset(tmp_path / "tuples")
        importer = ToyboxImporter(ToyboxSettings(train_identities=0, val_identities=0, test_identities=identities))
        plan = plan_ingest(importer, output)
        for shard in plan.pending:
            run_shard(ingest_task(importer), output, shard, plan.members(shard))
        return output

    few = {row["distractor_id"]: row for row in _made(grown(2), Dataset(tmp_path / "out")).to_pylist()}
    before = {name: (tmp_path / "out/data" / name).read_bytes() for name in os.listdir(tmp_path / "out/data")}
    more = {row["distractor_id"]: row for row in _made(grown(5), Dataset(tmp_path / "out")).to_pylist()}
    assert len({row["identity_id"] for row in more.values()}) == 5
    assert {name: more[name] for name in few} == few
    assert before.items() <= {name: (tmp_path / "out/data" / name).read_bytes() for name in
                              os.listdir(tmp_path / "out/data")}.items()  # fmt: skip


def test_an_engine_has_one_configuration_in_a_dataset(tuples, tmp_path):
    output = Dataset(tmp_path / "out")
    _made(tuples, output, engines=("exemplar", "sleeping-1"), engine_options=("exemplar.tint=0.5",))
    with pytest.raises(UsageError, match=r"tint: there 0.5, now 0.15.*exemplar.tint=0.5"):
        _made(tuples, output, engines=("exemplar",))
    # Pace and batch are no configuration.
    options = ("exemplar.tint=0.5", "sleeping-1.row_s=0.001", "exemplar.batch=1")
    before = output.read(["distractor_id"])
    assert _made(tuples, output, engines=("exemplar", "sleeping-1"), engine_options=options).num_rows == len(before)
    with pytest.raises(UsageError, match="retries: there 0, now 1"):
        _made(tuples, output, engines=("sleeping-1",), gate=GateSettings(retries=1))


def test_the_time_of_a_run_is_estimated_from_the_logs_of_earlier_ones(tuples, tmp_path):
    settings = SynthesisSettings(engines=("sleeping-1", "sleeping-2"), rows_per_shard=4)
    output = Dataset(tmp_path)
    plan = plan_distractors(tuples, output, settings)
    ones = [name for name in plan.shard_names if plan.members(name)["engine"][0].as_py() == "sleeping-1"]
    rows = {name: plan.members(name).num_rows for name in plan.shard_names}
    said = estimate(output, plan, plan.pending)
    assert said["worker_hours"] == "unknown" and said["rows"] == sum(rows.values())
    hash_ = plan.members(ones[0])["settings_hash"][0].as_py()
    records = [{"rows": 4, "settings_hash": hash_, "paint_s": seconds, "load_s": 99.0} for seconds in (3600.0, 7200.0)]
    output.location.child("log", "a.parquet").write_bytes(parquet_bytes(pa.Table.from_pylist(records)))
    said = estimate(output, plan, ones[:1])
    assert said["sleeping-1"] == f"4 of {sum(rows[one] for one in ones)} rows now; 1350.00 s a row, 1.50 worker-hours"
    assert said["worker_hours"] == "1.50" and "sleeping-2" not in said
    assert estimate(output, plan, plan.pending)["worker_hours"].endswith("and an unknown part")


def test_a_real_pipeline_class_gives_the_same_bytes_in_every_run_of_a_plan(tuples, tiny_weights, tmp_path):
    options = ("weights=" + str(tiny_weights("sdxl")), "resolution_px=64", "steps=2", "batch=3")
    changes = {
        "engines": ("sdxl-512",), "engine_options": tuple(f"sdxl-512.{option}" for option in options),
        "control": True, "control_strength": 0.5, "rows_per_shard": 5, "dtype": "float32",
    }  # fmt: skip
    rows = _made(tuples, Dataset(tmp_path / "a"), **changes)
    assert _made(tuples, Dataset(tmp_path / "b"), **changes).equals(rows)
    assert schemas.validate(tmp_path / "a", references={"tuples": tuples.location.path}) == []
    made = rows.to_pylist()
    assert {(row["engine"], row["control"]) for row in made} == {("sdxl-512", False), ("sdxl-512-control", True)}
    assert not any(row["error"] for row in made)
    assert all("watermark" in row["negative_prompt"] and row["prompt"] for row in made)
    differences = {flag: [row["object_mean_difference"] for row in made if row["control"] == flag] for flag in (0, 1)}
    assert not set(differences[0]) & set(differences[1]), "a control is painted at another strength"
    planned = pa.concat_tables(Dataset(tmp_path / "a").plans())
    assert set(planned["batch"].to_pylist()) == {0, 1}


@pytest.mark.parametrize(
    ("stored", "asked", "gpus", "expected"),
    [("", "auto", 0, "float32"), ("", "auto", 2, "bfloat16"), ("float32", "auto", 2, "float32"),
     ("bfloat16", "auto", 0, "bfloat16"), ("", "float16", 2, "float16")],
)  # fmt: skip
def test_auto_precision_is_the_plans_else_the_clusters(tuples, tiny_weights, tmp_path, stored, asked, gpus, expected):
    output = Dataset(tmp_path)
    folder = tiny_weights("sdxl")
    options = (f"sdxl-512.weights={folder}",)
    if stored:
        plan_distractors(tuples, output, SynthesisSettings(engines=("exemplar",)))
        plan_distractors(tuples, output, SynthesisSettings(engines=("sdxl-512",), engine_options=options, dtype=stored))
    settings = SynthesisSettings(engines=("sdxl-1024",), engine_options=(f"sdxl-1024.weights={folder}",), dtype=asked)
    assert asks_for_gpus(output, settings) == (not stored and asked == "auto")
    plan = plan_distractors(tuples, output, settings, gpus=gpus)
    engines = {engine.name: engine for engine in make_task(tuples, plan, settings).engines.values()}
    assert engines["sdxl-1024"].settings["dtype"] == expected
    assert settled_dtype(output, settings, gpus) == expected


@pytest.mark.parametrize("wrong", [{"max_rows": 0}, {"shard": "0/4"}, {"shard": "5/4"}, {"shard": "half"}])
def test_parts_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Selection(**wrong)


def test_an_engine_that_the_plan_lacks_cannot_be_chosen(tuples, tmp_path):
    plan = plan_distractors(tuples, Dataset(tmp_path), SynthesisSettings(engines=("exemplar",)))
    with pytest.raises(UsageError, match="only_engine names sdxl-512; the plan has exemplar"):
        selected(plan, Selection(only_engine=("sdxl-512",)))


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


def test_published_weights_are_not_loaded_on_a_cluster_without_gpus_unless_asked_for(ray_session, tiny_weights):
    from nearid_ray.synthesis.catalog import choose
    from nearid_ray.synthesis.gate import GateSettings
    from nearid_ray.synthesis.synthesize import check_gpus
    from nearid_ray.synthesis.task import SynthesisTask

    def task(engine):
        return SynthesisTask("t", SynthesisSettings(engines=("sdxl-512",), gate=GateSettings()), {"a": engine}, True)

    ((_, published),) = choose(("sdxl-512",)).unchecked()
    with pytest.raises(UsageError, match=r"sdxl-512 need a GPU.*--gpus-per-worker 0"):
        check_gpus(task(published), RunSettings())
    check_gpus(task(published), RunSettings(gpus_per_worker=0))
    ((_, own),) = choose(("sdxl-512",), (f"sdxl-512.weights={tiny_weights('sdxl')}",)).unchecked()
    check_gpus(task(own), RunSettings())
