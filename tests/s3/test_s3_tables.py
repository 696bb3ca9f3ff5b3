"""Tables of pictures on a real S3 server: read, exported back, and read again."""

import pickle
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs
import pytest

from nearid_ray.data.export import ExportSettings, export, plan_export
from nearid_ray.data.importers.importer import Importer
from nearid_ray.data.importers.nearid import NearidImporter, NearidSettings
from nearid_ray.data.importers.nearid_distractors import NearidDistractorsImporter, NearidDistractorsSettings
from nearid_ray.data.ingest import ingest_task, plan_ingest
from nearid_ray.data.masking import MaskSettings
from nearid_ray.data.pipeline import run_shard
from nearid_ray.data.sources import open_rows
from nearid_ray.data.store import Dataset, locate
from nearid_ray.errors import UsageError
from tests.data.published_nearid import as_parquet, distractors, index_file, positives

pytest.importorskip("datasets")


def made(importer: Importer, uri: str) -> pa.Table:
    output = Dataset(uri)
    plan = plan_ingest(importer, output)
    task = pickle.loads(pickle.dumps(ingest_task(importer)))  # as it reaches the workers
    for shard in plan.pending:
        run_shard(task, output, shard, plan.members(shard))
    return output.read()


def chain(place: str, source: str, split: str, tables: dict[str, str]) -> tuple[pa.Table, pa.Table]:
    """Tuples and distractors in `place`, made of published tables."""
    masking = MaskSettings(mask_method="none")
    positives = NearidSettings(source=source, size_px=32, masking=masking, train_index=split)
    tuples = made(NearidImporter(positives), f"{place}/tuples")
    sources = tuple(f"{engine}={table}" for engine, table in tables.items())
    settings = NearidDistractorsSettings(tuples=f"{place}/tuples", sources=sources)
    return tuples, made(NearidDistractorsImporter(settings), f"{place}/distractors")


def test_nearid_is_read_from_s3_and_exported_to_it_as_on_disk(bucket, tmp_path):
    as_parquet(positives(), tmp_path / "in" / "NearID")
    as_parquet(distractors(), tmp_path / "in" / "flux fill ü")
    index_file(tmp_path / "in" / "rows.json", [0, 1, 4])
    remote = f"{bucket}/tables/in"
    upload(tmp_path / "in", remote)
    remote_made = chain(f"{bucket}/tables/a", f"{remote}/NearID", f"{remote}/rows.json", {"f": f"{remote}/flux fill ü"})
    local_made = chain(
        str(tmp_path / "a"),
        str(tmp_path / "in" / "NearID"),
        str(tmp_path / "in" / "rows.json"),
        {"f": str(tmp_path / "in" / "flux fill ü")},
    )
    assert remote_made[0].drop_columns("provenance") == local_made[0].drop_columns("provenance")
    assert remote_made[1] == local_made[1] and remote_made[1].num_rows == 7

    hubs = [locate(f"{bucket}/tables/hub"), locate(tmp_path / "hub")]
    for hub, place in zip(hubs, (f"{bucket}/tables/a", str(tmp_path / "a")), strict=True):
        datasets = Dataset(f"{place}/tuples"), [Dataset(f"{place}/distractors")]
        assert export(*datasets, hub, plan_export(*datasets, hub, ExportSettings())).files_made == 2
    for name in ("positives/data/train-00000-of-00001.parquet", "distractors/f/data/train-00000-of-00001.parquet",
                 "splits/train.json"):  # fmt: skip
        there, here = (hub.child(name).read_bytes() for hub in hubs)
        assert there == here
    datasets = Dataset(f"{bucket}/tables/a/tuples"), [Dataset(f"{bucket}/tables/a/distractors")]
    assert export(*datasets, hubs[0], plan_export(*datasets, hubs[0], ExportSettings())).files_made == 0


def test_tables_that_are_not_on_s3_are_refused_in_words(bucket, tmp_path):
    positives(2).save_to_disk(tmp_path / "saved")
    upload(tmp_path / "saved", f"{bucket}/tables/saved")
    for source, words in (
        (f"{bucket}/tables/nowhere", "does not exist; expected a hub id"),
        (f"{bucket}/tables/saved", "can be read from a local disk alone"),
        (f"{bucket}/tables/saved/*.parquet", "no file in"),
        ("s3://no-such-bucket/x.parquet", "the bucket 'no-such-bucket' does not exist"),
    ):
        with pytest.raises(UsageError) as caught:
            open_rows(source)
        assert words in str(caught.value)


def test_pictures_kept_as_paths_are_read_beside_a_table_on_s3(bucket, tmp_path):
    (tmp_path / "t.csv").write_text("id,file\n1,a b/ü.png\n2,../secret.png\n3,none.png\n")
    (tmp_path / "a b").mkdir()
    (tmp_path / "a b" / "ü.png").write_bytes(b"picture")
    upload(tmp_path, f"{bucket}/tables/csv")
    source = open_rows(f"{bucket}/tables/csv/t.csv")
    cells = [source.picture(path) for path in source.light(["file"])["file"].to_pylist()]
    assert cells[0].data == b"picture"
    assert "lies outside" in cells[1].error and "none.png" in cells[2].error


def upload(folder: Path, uri: str) -> None:
    place = locate(uri)
    pafs.copy_files(str(folder), place.path, pafs.LocalFileSystem(), place.filesystem)
