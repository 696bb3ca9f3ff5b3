"""Export in NearID's layout: what `datasets` reads of it, the way round back, reruns, and what does not fit."""

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nearid_ray.data.export import ExportSettings, ExportSummary, export, plan_export
from nearid_ray.data.images import decode_mask
from nearid_ray.data.importers.importer import Importer
from nearid_ray.data.importers.nearid import NearidImporter, NearidSettings
from nearid_ray.data.importers.nearid_distractors import NearidDistractorsImporter, NearidDistractorsSettings
from nearid_ray.data.importers.toybox import ToyboxImporter, ToyboxSettings
from nearid_ray.data.ingest import ingest_task, plan_ingest
from nearid_ray.data.masking import MaskSettings
from nearid_ray.data.pipeline import run_shard
from nearid_ray.data.plan import make_plan
from nearid_ray.data.store import Dataset, parquet_bytes
from nearid_ray.errors import UsageError
from schemas import DISTRACTORS, TUPLES
from tests.data.published_nearid import GAPS, as_parquet, distractors, index_file, positives

datasets = pytest.importorskip("datasets")

ENGINES = ("flux-fill-512", "sdxl-512")


def made(importer: Importer, output: Path) -> Dataset:
    place = Dataset(output)
    plan = plan_ingest(importer, place)
    task = pickle.loads(pickle.dumps(ingest_task(importer)))
    for shard in plan.pending:
        run_shard(task, place, shard, plan.members(shard))
    return place


def tuples_of(source: Path, output: Path, splits: Path) -> Dataset:
    files = {f"{split}_index": str(splits / f"{split}.json") for split in ("train", "val", "test")}
    masking = MaskSettings(mask_method="none")
    return made(NearidImporter(NearidSettings(source=str(source), masking=masking, size_px=32, **files)), output)


def distractors_of(tuples: Dataset, sources: list[str], output: Path) -> Dataset:
    return made(
        NearidDistractorsImporter(NearidDistractorsSettings(tuples=tuples.location.uri, sources=tuple(sources))), output
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Published tables, and tuples and distractors of two engines made from them; row 3 is in no split."""
    folder = tmp_path_factory.mktemp("store")
    for split, rows in (("train", [0, 2, 5]), ("val", [1]), ("test", [4])):
        (folder / "in").mkdir(exist_ok=True)
        index_file(folder / "in" / f"{split}.json", rows)
    tuples = tuples_of(as_parquet(positives(), folder / "NearID"), folder / "tuples", folder / "in")
    flux = as_parquet(distractors(shade=90), folder / "NearID-Flux")
    sdxl = as_parquet(distractors(shade=10), folder / "NearID-SDXL")
    distractors_of(tuples, [str(flux), str(sdxl)], folder / "distractors")
    return folder


def exported(store: Path, output: Path, *names: str, **settings) -> ExportSummary:
    tuples, places = Dataset(store / "tuples"), [Dataset(store / name) for name in names]
    place = Dataset(output).location
    plan = plan_export(tuples, places, place, ExportSettings(**{"rows_per_file": 2} | settings))
    return export(tuples, places, place, plan)


def refusal(store: Path, output: Path, *names: str, **settings) -> str:
    with pytest.raises(UsageError) as caught:
        exported(store, output, *names, **settings)
    return str(caught.value)


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def write(output: Path, table, rows: list[dict], name: str) -> Dataset:
    """A dataset of given rows, as a stage would leave it."""
    place = Dataset(output)
    ids = [row[table.key[0]] for row in rows]
    plan = make_plan(place, plan_rows_of(ids), table=table.name, content={"made": name}, rows_per_shard=100)
    place.shard(plan.pending[0]).write_bytes(parquet_bytes(pa.Table.from_pylist(rows, schema=table.schema)))
    return place


def plan_rows_of(ids: list[str]):
    return pa.table({"row_id": pa.array(ids, pa.string())})


def test_datasets_reads_the_published_columns_and_pictures(store, tmp_path):
    summary = exported(store, tmp_path / "hub", "distractors")
    assert summary == ExportSummary(
        identities=5, without_picture=0, distractors={"flux-fill-512": 12, "sdxl-512": 12}, left_out={}, files_made=9,
        files_before=0,
    )  # fmt: skip
    table = datasets.load_dataset(str(tmp_path / "hub" / "positives"), split="train", cache_dir=str(tmp_path / "cache"))
    assert table.column_names == [
        "id", "identity_id", "category", "category_description", "objaverse_id", "img1", "img2", "img3",
        "masks1", "masks2", "masks3", "n_images", "prompts1", "prompts2", "prompts3", "quality",
    ]  # fmt: skip
    assert [table.features[name] for name in ("img1", "masks3")] == [datasets.Image()] * 2
    assert [int(value) for value in table["id"]] == [1000, 1007, 1014, 1028, 1035]
    rows = Dataset(store / "tuples").read().to_pylist()
    for row, identity, number in zip(table, rows, (0, 1, 2, 4, 5), strict=True):
        slots = [slot for slot in (1, 2, 3) if (number, slot) not in GAPS]
        assert [slot for slot in (1, 2, 3) if row[f"img{slot}"] is not None] == slots and row["n_images"] == len(slots)
        for slot, view in zip(slots, identity["views"], strict=True):
            assert row[f"img{slot}"].size == (32, 32) and row[f"prompts{slot}"] == f"prompt {number} {slot}"
            assert np.array_equal(np.asarray(row[f"masks{slot}"]), decode_mask(view["mask"]["bytes"]))
        assert (row["quality"], row["objaverse_id"]) == (0.5 + number, f"asset-{number}")
        assert row["category_description"] == f"thing number {number}"
    for engine in ENGINES:
        table = datasets.load_dataset(
            str(tmp_path / "hub" / "distractors" / engine), split="train", cache_dir=str(tmp_path / "cache")
        )
        assert table.column_names == ["id", "identity_id", "nimg1", "nimg2", "nimg3"] and len(table) == 5
        assert [row["nimg3"] is None for row in table] == [False, True, False, True, False]
    assert {split: json.loads((tmp_path / "hub" / "splits" / f"{split}.json").read_text())["indices"] for split in
            ("train", "val", "test")} == {"train": [0, 2, 4], "val": [1], "test": [3]}  # fmt: skip


def test_another_export_in_the_same_place_is_not_taken_from_the_cache_of_datasets(store, tmp_path):
    place, cache = tmp_path / "hub", str(tmp_path / "cache")
    for rows in (Dataset(store / "tuples").read().to_pylist(), Dataset(store / "tuples").read().to_pylist()[1:]):
        write(tmp_path / "tuples", TUPLES, rows, "x")
        exported(tmp_path, place)
        table = datasets.load_dataset(str(place / "positives"), split="train", cache_dir=cache)
        assert table["identity_id"][:] == [row["identity_id"] for row in rows]
        shutil.rmtree(place)
        shutil.rmtree(tmp_path / "tuples")


def test_what_is_exported_and_ingested_again_is_the_same(store, tmp_path):
    exported(store, tmp_path / "hub", "distractors")
    hub = tmp_path / "hub"
    again = tuples_of(hub / "positives", tmp_path / "tuples", hub / "splits")
    sources = [f"{engine}={hub / 'distractors' / engine}" for engine in ENGINES]
    distractors_of(again, sources, tmp_path / "distractors")

    def identities(dataset: Dataset) -> dict:
        kept = ("category", "description", "object_kind", "objaverse_id", "split", "error")
        shown = ("view_id", "image", "mask", "mask_area", "prompt", "perceptual_hash")
        return {
            row["identity_id"]: [{k: row[k] for k in kept}, [_pictures(view, shown) for view in row["views"]]]
            for row in dataset.read().to_pylist()
        }

    def painted(dataset: Dataset) -> dict:
        kept = ("view_id", "image", "mask", "background_max_difference", "object_mean_difference", "verdict", "split")
        return {
            (row["identity_id"], row["view_index"], row["engine"]): _pictures(row, kept)
            for row in dataset.read().to_pylist()
        }

    assert identities(again) == identities(Dataset(store / "tuples"))
    assert painted(Dataset(tmp_path / "distractors")) == painted(Dataset(store / "distractors"))


def test_a_rerun_changes_nothing_and_a_broken_off_one_is_completed(store, tmp_path):
    exported(store, tmp_path / "hub", "distractors")
    before = files_of(tmp_path / "hub")
    summary = exported(store, tmp_path / "hub", "distractors")
    assert (summary.files_made, summary.files_before) == (0, 9) and files_of(tmp_path / "hub") == before
    for name in ("positives/data/train-00001-of-00003.parquet", "splits/val.json", "distractors/sdxl-512/README.md"):
        (tmp_path / "hub" / name).unlink()
    assert exported(store, tmp_path / "hub", "distractors").files_made == 1
    assert files_of(tmp_path / "hub") == before
    exported(store, tmp_path / "other", "distractors")
    assert files_of(tmp_path / "other") == before


def test_engines_may_come_later_and_anything_else_in_the_output_is_refused(store, tmp_path):
    exported(store, tmp_path / "hub")
    assert not (tmp_path / "hub" / "distractors").exists()
    exported(store, tmp_path / "hub", "distractors")
    whole = files_of(tmp_path / "hub")
    exported(store, tmp_path / "hub")  # engines that are not named this time stay
    assert files_of(tmp_path / "hub") == whole
    said = refusal(store, tmp_path / "hub", "distractors", rows_per_file=3)
    assert "holds another export:\n  rows_per_file: there 2, now 3" in said
    rows = Dataset(store / "distractors").read().to_pylist()
    write(store / "fewer", DISTRACTORS, rows[1:], "fewer")
    assert "flux-fill-512: there" in refusal(store, tmp_path / "hub", "fewer")
    assert "is not empty and holds no export" in refusal(store, store / "in")
    assert "is not empty and holds no export" in refusal(store, store / "tuples")


def test_distractors_that_are_no_good_are_left_out_and_counted(store, tmp_path):
    rows = Dataset(store / "distractors").read().to_pylist()[:12]
    rows[0] |= {"verdict": "unchanged"}
    rows[1] |= {"verdict": "none", "error": "it failed", "image": None}
    rows[2] |= {"view_id": "another"}
    rows[3] |= {"identity_id": "nearid:99"}
    rows[4] |= {"control": True}
    write(tmp_path / "mixed", DISTRACTORS, rows, "mixed")
    summary = exported(store, tmp_path / "a", str(tmp_path / "mixed"))
    assert summary.left_out == {
        "its view is not exported": 2, "verdict unchanged": 1, "error": 1, "it shows the same object": 1,
    }  # fmt: skip
    assert summary.distractors == {"flux-fill-512": 7}
    assert exported(store, tmp_path / "b", str(tmp_path / "mixed"), all_verdicts=True).distractors == {
        "flux-fill-512": 8
    }


def test_distractors_that_do_not_fit_the_layout_are_refused(store, tmp_path):
    rows = Dataset(store / "distractors").read().to_pylist()[:3]
    write(tmp_path / "double", DISTRACTORS, [*rows, rows[0] | {"distractor_id": "again", "run_seed": 1}], "double")
    said = refusal(store, tmp_path / "out", str(tmp_path / "double"))
    assert "1 view(s) have two distractors of one engine: nearid:1000 view 0 by flux-fill-512" in said
    write(tmp_path / "named", DISTRACTORS, [rows[0] | {"engine": "../x"}], "named")
    assert "engine(s) ../x cannot name a folder" in refusal(store, tmp_path / "out", str(tmp_path / "named"))
    write(tmp_path / "foreign", DISTRACTORS, [rows[0] | {"identity_id": "else:1"}], "foreign")
    said = refusal(store, tmp_path / "out", str(tmp_path / "foreign"))
    assert "no distractor belongs to the exported views (its view is not exported: 1)" in said
    assert not (tmp_path / "out").exists()


def test_more_than_three_views_are_refused_or_cut(store, tmp_path):
    rows = Dataset(store / "tuples").read().to_pylist()
    extra = rows[0]["views"][0] | {"provenance": json.dumps({"slot": 4})}
    write(tmp_path / "tuples", TUPLES, [rows[0] | {"views": [*rows[0]["views"], extra]}, *rows[1:]], "more")
    said = refusal(tmp_path, tmp_path / "out")
    assert "1 identity(ies) have more than 3 views: nearid:1000" in said and "--cut-views" in said
    assert exported(tmp_path, tmp_path / "out", cut_views=True).identities == 5
    exported(store, tmp_path / "plain")
    name = "data/train-00000-of-00003.parquet"
    assert pq.read_table(tmp_path / "out" / "positives" / name) == pq.read_table(
        tmp_path / "plain" / "positives" / name
    )


def test_views_with_an_error_become_gaps_and_identities_without_a_picture_are_left_out(store, tmp_path):
    rows = Dataset(store / "tuples").read().to_pylist()
    failed = {"image": None, "mask": None, "error": "broken", "mask_area": None, "size_px": 0, "view_id": ""}
    rows[0]["views"][1] |= failed
    for view in rows[1]["views"]:
        view |= failed
    write(tmp_path / "tuples", TUPLES, rows, "failed")
    summary = exported(tmp_path, tmp_path / "out")
    assert (summary.identities, summary.without_picture) == (4, 1)
    first = pq.read_table(tmp_path / "out" / "positives" / "data" / "train-00000-of-00002.parquet").to_pylist()[0]
    assert first["img1"] and first["img2"] is None and first["img3"] and first["n_images"] == 2


def test_toybox_identities_are_numbered_and_keep_their_names(tmp_path):
    made(ToyboxImporter(ToyboxSettings(train_identities=3, val_identities=1, test_identities=1)), tmp_path / "tuples")
    exported(tmp_path, tmp_path / "hub", rows_per_file=0)
    table = pq.read_table(tmp_path / "hub" / "positives" / "data" / "train-00000-of-00001.parquet")
    assert table["id"].to_pylist() == [0, 1, 2, 3, 4]
    assert table["identity_id"].to_pylist()[0] == "toybox:0-train-000000"
    assert "quality" not in table.column_names
    again = tuples_of(tmp_path / "hub" / "positives", tmp_path / "again", tmp_path / "hub" / "splits").read()
    assert again["identity_id"].to_pylist() == [f"nearid:{n}" for n in range(5)]
    assert again["split"].to_pylist() == ["train"] * 3 + ["val", "test"]


def test_an_incomplete_dataset_is_refused(store, tmp_path):
    place = Dataset(tmp_path / "tuples")
    rows = Dataset(store / "tuples").read().to_pylist()
    plan = make_plan(place, plan_rows_of(["a", "b"]), table="tuples", content={}, rows_per_shard=1)
    place.shard(plan.pending[0]).write_bytes(parquet_bytes(pa.Table.from_pylist(rows[:1], schema=TUPLES.schema)))
    assert "is not complete: 1 of its shards are missing" in refusal(tmp_path, tmp_path / "out")
    with pytest.raises(ValueError, match="rows_per_file is -1"):
        ExportSettings(rows_per_file=-1)


def _pictures(row: dict, names: tuple[str, ...]) -> dict:
    """Columns of a row; of pictures their bytes."""
    values = {name: row[name] for name in names}
    return {name: value["bytes"] if isinstance(value, dict) else value for name, value in values.items()}
