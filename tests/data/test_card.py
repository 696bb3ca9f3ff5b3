"""Cards: `datasets` opens the folder with the header's features, hubs accept the header, licences travel."""

from pathlib import Path

import datasets
import pyarrow as pa
import pytest
from huggingface_hub import DatasetCard
from PIL import Image

import schemas
from nearid_ray.data.card import _feature, licence_of, read_header, write_card
from nearid_ray.data.importers.toybox import ToyboxImporter, ToyboxSettings
from nearid_ray.data.ingest import ingest_task, plan_ingest
from nearid_ray.data.pipeline import run_shard
from nearid_ray.data.plan import make_plan
from nearid_ray.data.store import Dataset, parquet_bytes
from nearid_ray.synthesis.settings import SynthesisSettings
from nearid_ray.synthesis.synthesize import make_task, plan_distractors


def toys(folder: Path, train: int = 2, test: int = 2, licence: str = "cc-by-4.0") -> Dataset:
    """A small toybox dataset with its card, made without Ray."""
    settings = ToyboxSettings(train_identities=train, val_identities=0, test_identities=test)
    importer, output = ToyboxImporter(settings), Dataset(folder)
    plan = plan_ingest(importer, output)
    for shard in plan.pending:
        run_shard(ingest_task(importer), output, shard, plan.members(shard))
    write_card(output, title="Toys: a test", about="Toy data.", licence=licence, facts={"rows": len(plan.rows)})
    return output


def painted(tuples: Dataset, folder: Path) -> Dataset:
    """Distractors of two engines for the toys."""
    settings, output = SynthesisSettings(engines=("toybox-redraw", "toybox-decal")), Dataset(folder)
    plan = plan_distractors(tuples, output, settings)
    task = make_task(tuples, plan, settings)
    for shard in plan.pending:
        run_shard(task, output, shard, plan.members(shard))
    write_card(output, title="Distractors", about="Toys.", licence=licence_of(tuples), facts={})
    return output


def load(dataset: Dataset, cache: Path) -> datasets.Dataset:
    return datasets.load_dataset(dataset.location.path, split="train", cache_dir=str(cache))


def test_datasets_opens_the_folder_with_pictures_also_after_rows_were_added(tmp_path):
    for train in (2, 5):
        loaded = load(toys(tmp_path / "toys", train), tmp_path / "cache")
        assert len(loaded) == train + 2
        view = loaded[0]["views"][0]
        assert isinstance(view["image"], Image.Image)
        assert (view["image"].size, view["mask"].size, view["part_mask"]) == ((64, 64), (64, 64), None)
    rows = load(painted(Dataset(tmp_path / "toys"), tmp_path / "d"), tmp_path / "cache")
    assert {row["image"].size for row in rows} == {(64, 64)}


def test_the_headers_features_are_in_force(tmp_path):
    # A column that the header leaves out is gone when the header decides.
    output = toys(tmp_path / "toys")
    card = tmp_path / "toys" / "README.md"
    card.write_text(card.read_text().replace("  - name: category\n    dtype: string\n", "", 1))
    with pytest.raises(datasets.exceptions.DatasetGenerationError) as refused:
        load(output, tmp_path / "cache")
    assert "column names don't match" in str(refused.value.__cause__)


@pytest.mark.parametrize("name", schemas.TABLES)
def test_the_headers_features_are_those_that_datasets_itself_would_write(name):
    schema = schemas.TABLES[name].schema
    ours = [_feature(field.name, field.type) for field in schema]
    assert ours == datasets.Features.from_arrow_schema(schema)._to_yaml_list()
    assert datasets.Features._from_yaml_list(ours) == datasets.Features.from_arrow_schema(schema)


def test_hubs_accept_the_header_and_its_counts_are_right(tmp_path):
    output = toys(tmp_path / "toys: with a colon")
    card = DatasetCard((tmp_path / "toys: with a colon" / "README.md").read_text())
    assert card.data.pretty_name == "Toys: a test"
    assert card.data.license == "cc-by-4.0"
    assert card.data.size_categories == ["n<1K"]
    info = datasets.info.DatasetInfosDict.from_dataset_card_data(card.data)[card.data.configs[0]["config_name"]]
    assert info.splits["train"].num_examples == 4
    assert info.download_size == sum(file.stat().st_size for file in Path(output.location.path, "data").iterdir())
    assert info.features == datasets.Features.from_arrow_schema(schemas.TUPLES.schema)


def test_a_licence_travels_with_what_is_made_of_the_data(tmp_path):
    one, two = toys(tmp_path / "one"), toys(tmp_path / "two", licence="apache-2.0")
    assert licence_of(painted(one, tmp_path / "d")) == "cc-by-4.0"
    assert licence_of(one, two, one) == "cc-by-4.0 and apache-2.0"
    write_card(one, title="Both", about="", licence=licence_of(one, two), facts={})
    assert read_header(one)["license"] == ["cc-by-4.0", "apache-2.0"]
    assert licence_of(one) == "cc-by-4.0 and apache-2.0"


@pytest.mark.parametrize("card", [None, "", "no header", "---\nlicense: [", "---\n- 1\n---\n", "---\ntags: []\n---\n"])
def test_without_a_readable_licence_it_is_unknown(tmp_path, card):
    if card is not None:
        (tmp_path / "README.md").write_text(card)
    assert licence_of(Dataset(tmp_path)) == "unknown"


def test_engine_settings_of_distractors_are_on_the_card(tmp_path):
    painted(toys(tmp_path / "toys"), tmp_path / "d")
    text = (tmp_path / "d" / "README.md").read_text()
    rows = Dataset(tmp_path / "d").read(["engine", "settings_hash", "engine_settings"]).to_pylist()
    assert {row["engine"] for row in rows} == {"toybox-redraw", "toybox-decal"}
    for row in rows:
        assert f"{row['engine']} ({row['settings_hash']}):" in text
    assert "| rows of split test |" in text


def test_an_unchanged_card_is_not_written_again(tmp_path):
    toys(tmp_path / "toys")
    before = (tmp_path / "toys" / "README.md").stat().st_mtime_ns
    toys(tmp_path / "toys")
    assert (tmp_path / "toys" / "README.md").stat().st_mtime_ns == before


def test_a_table_without_splits_or_pictures_has_a_card_too(tmp_path):
    output = Dataset(tmp_path)
    plan = make_plan(output, pa.table({"row_id": ["r"]}), table="ratings", content={}, rows_per_shard=1)
    row = {f.name: "" if pa.types.is_string(f.type) else 1 for f in schemas.RATINGS.fields}
    data = pa.Table.from_pylist([row | {"rater_kind": "human", "aspect": "concept"}], schema=schemas.RATINGS.schema)
    output.shard(plan.pending[0]).write_bytes(parquet_bytes(data))
    write_card(output, title="Ratings", about="", licence="other", facts={})
    assert load(output, tmp_path / "cache")[0]["score"] == 1.0
