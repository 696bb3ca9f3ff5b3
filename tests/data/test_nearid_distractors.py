"""NearID's distractors in the published layout: they meet their views by row and slot."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from nearid_ray.data.difference import background_max_difference, object_mean_difference
from nearid_ray.data.images import cut_rgb, decode_mask, decode_rgb, resize_rgb
from nearid_ray.data.importers.importer import Importer
from nearid_ray.data.importers.nearid import NearidImporter, NearidSettings
from nearid_ray.data.importers.nearid_distractors import (
    ENGINES,
    NearidDistractorsImporter,
    NearidDistractorsSettings,
    engine_and_place,
)
from nearid_ray.data.ingest import ingest_task, plan_ingest
from nearid_ray.data.masking import MaskSettings
from nearid_ray.data.pipeline import run_shard
from nearid_ray.data.plan import make_plan
from nearid_ray.data.rejects import rejected_counts
from nearid_ray.data.store import Dataset, parquet_bytes
from nearid_ray.errors import UsageError
from schemas import TUPLES, validate
from tests.data.published import encoded
from tests.data.published_nearid import GAPS, as_parquet, distractor_of, distractors, positives

pytest.importorskip("datasets")

VIEWS = [(row, slot) for row in range(6) for slot in (1, 2, 3) if (row, slot) not in GAPS]


def made(importer: Importer, output: Path) -> Dataset:
    """The importer's dataset, made without Ray."""
    place = Dataset(output)
    plan = plan_ingest(importer, place)
    task = pickle.loads(pickle.dumps(ingest_task(importer)))  # as it reaches the workers
    for shard in plan.pending:
        run_shard(task, place, shard, plan.members(shard))
    return place


def tuples_of(source: Path, output: Path, size_px: int = 32, **settings) -> Dataset:
    masking = MaskSettings(mask_method="none")
    return made(
        NearidImporter(NearidSettings(source=str(source), masking=masking, size_px=size_px, **settings)), output
    )


@pytest.fixture(scope="module")
def tuples(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("positives")
    return tuples_of(as_parquet(positives(), folder / "NearID"), folder / "tuples")


def importer(tuples: Dataset, *sources: object) -> NearidDistractorsImporter:
    settings = NearidDistractorsSettings(tuples=tuples.location.uri, sources=tuple(map(str, sources)))
    return NearidDistractorsImporter(settings)


def refusal(tuples: Dataset, *sources: object) -> str:
    with pytest.raises(UsageError) as caught:
        importer(tuples, *sources).list_records()
    return str(caught.value)


def curated(tuples: Dataset, output: Path, order: list[int]) -> Dataset:
    """Some identities of a tuples dataset, in another order."""
    rows = tuples.read().take(order)
    place = Dataset(output)
    plan = make_plan(place, rows.select([]).append_column("row_id", rows["identity_id"]), table="tuples",
                     content={"curated": order}, rows_per_shard=2)  # fmt: skip
    for shard in plan.pending:
        members = plan.members(shard)["row_id"].to_pylist()
        part = [row for name in members for row in rows.to_pylist() if row["identity_id"] == name]
        place.shard(shard).write_bytes(parquet_bytes(rows.from_pylist(part, schema=TUPLES.schema)))
    return place


def test_every_view_gets_its_own_rows_and_slots_distractor(tuples, tmp_path):
    table = as_parquet(distractors(), tmp_path / "NearID-Flux")
    output = made(importer(tuples, table), tmp_path / "out")
    assert validate(output.read(), references={"tuples": tuples.read()}) == []
    rows = output.read().to_pylist()
    views = {
        (identity["identity_id"], index): (identity, view)
        for identity in tuples.read().to_pylist()
        for index, view in enumerate(identity["views"])
    }
    assert {(row["identity_id"], row["view_index"]) for row in rows} == set(views) and len(rows) == len(VIEWS)
    for row in rows:
        identity, view = views[row["identity_id"], row["view_index"]]
        number, slot = json.loads(identity["provenance"])["row"], json.loads(view["provenance"])["slot"]
        crop = tuple(json.loads(view["provenance"])["crop_box"])
        expected = cut_rgb(distractor_of(number, slot), crop, 32)
        assert np.array_equal(decode_rgb(row["image"]["bytes"]), expected)
        assert row["mask"]["bytes"] == view["mask"]["bytes"]
        view_HW3, mask_HW = decode_rgb(view["image"]["bytes"]), decode_mask(view["mask"]["bytes"])
        assert row["background_max_difference"] == background_max_difference(view_HW3, expected, mask_HW)
        assert row["object_mean_difference"] == pytest.approx(object_mean_difference(view_HW3, expected, mask_HW))
        assert (row["engine"], row["engine_family"], row["engine_revision"]) == ("flux-fill-512", "flux-fill", "")
        assert json.loads(row["engine_settings"]) == {"published_as": "NearID-Flux"}
        assert (row["verdict"], row["error"], row["view_id"], row["size_px"]) == ("accepted", "", view["view_id"], 32)
        assert (row["category"], row["split"], row["source"]) == (identity["category"], "train", "nearid")
    assert rejected_counts(output) == {}


def test_larger_distractors_are_brought_to_their_views_size_and_say_so(tuples, tmp_path):
    table = as_parquet(distractors(scale=2), tmp_path / "NearID-Flux_1024")
    rows = made(importer(tuples, table), tmp_path / "out").read().to_pylist()
    views = {view["view_id"]: view for row in tuples.read().to_pylist() for view in row["views"]}
    for row in rows:
        number = (int(row["identity_id"].removeprefix("nearid:")) - 1000) // 7
        provenance = json.loads(views[row["view_id"]]["provenance"])
        small = resize_rgb(distractor_of(number, provenance["slot"], scale=2), 56, 48)
        expected = cut_rgb(small, tuple(provenance["crop_box"]), 32)
        assert np.array_equal(decode_rgb(row["image"]["bytes"]), expected)
        assert json.loads(row["engine_settings"])["resized"] == "112 x 96 to 56 x 48 px, Lanczos"


def test_a_curated_part_in_another_order_meets_the_same_distractors(tuples, tmp_path):
    part = curated(tuples, tmp_path / "part", [4, 1, 5])
    table = as_parquet(distractors(), tmp_path / "NearID-Flux")
    whole = {row["distractor_id"]: row for row in made(importer(tuples, table), tmp_path / "all").read().to_pylist()}
    some = made(importer(part, table), tmp_path / "some").read().to_pylist()
    assert len(some) == 7
    assert [row["identity_id"] for row in some][:3] == ["nearid:1007"] * 2 + ["nearid:1028"]  # the table's order
    assert all(whole[row["distractor_id"]] == row for row in some)


def test_several_tables_at_once_and_more_engines_later(tuples, tmp_path):
    flux, qwen = as_parquet(distractors(shade=90), tmp_path / "NearID-Flux"), tmp_path / "q"
    distractors(shade=10, id=None).save_to_disk(qwen)
    output = made(importer(tuples, flux, f"qwen-image-512={qwen}"), tmp_path / "out")
    assert output.read()["engine"].to_pylist() == ["flux-fill-512"] * len(VIEWS) + ["qwen-image-512"] * len(VIEWS)
    before = {name: output.shard(name).read_bytes() for name in output.shards()}
    mine = as_parquet(distractors(shade=160), tmp_path / "x")
    more = importer(tuples, flux, f"qwen-image-512={qwen}", f"my.engine-2={mine}")
    assert len(made(more, tmp_path / "out").read()) == 3 * len(VIEWS)
    assert {name: output.shard(name).read_bytes() for name in before} == before
    changed = as_parquet(distractors(shade=91), tmp_path / "changed" / "NearID-Flux")
    with pytest.raises(UsageError, match="read from other files or settings"):
        plan_ingest(importer(tuples, changed), output)


def test_gaps_on_either_side_are_counted_and_never_shift_the_others(tuples, tmp_path):
    table = distractors()
    columns = {f"nimg{slot}": table.with_format("arrow")[:][f"nimg{slot}"].to_pylist() for slot in (1, 2, 3)}
    columns["nimg1"][0] = None  # the view is there
    columns["nimg3"][1] = columns["nimg3"][0]  # the view is not
    output = made(importer(tuples, as_parquet(distractors(**columns), tmp_path / "NearID-SDXL")), tmp_path / "out")
    assert rejected_counts(output) == {"missing-distractor": 1, "missing-view": 1}
    kept = output.read().select(["identity_id", "view_index"]).to_pylist()
    assert len(kept) == len(VIEWS) - 1
    assert {"identity_id": "nearid:1000", "view_index": 0} not in kept


def test_row_counts_that_differ_are_refused_with_both_numbers(tuples, tmp_path):
    for rows in (5, 7):
        table = as_parquet(distractors(rows), tmp_path / str(rows) / "NearID-Flux")
        assert f"has {rows} rows, the positives had 6" in refusal(tuples, table)
        part = curated(tuples, tmp_path / f"part{rows}", [0, 1])
        assert f"has {rows} rows, the positives had 6" in refusal(part, table)


def test_ids_that_do_not_match_are_refused_with_examples(tuples, tmp_path):
    ids = [1000, 1007, 1021, 1014, 1028, 1035]
    table = as_parquet(distractors(id=ids), tmp_path / "NearID-Flux")
    said = refusal(tuples, table)
    assert "2 id(s) do not match" in said
    assert "row 2: 1014 there, 1021 here; row 3: 1021 there, 1014 here" in said
    assert len(importer(curated(tuples, tmp_path / "part", [0, 5]), table).list_records()[0]) == 6  # those two match


def test_what_is_wrong_with_one_distractor_is_its_rows_error(tuples, tmp_path):
    good = distractors().with_format("arrow")[:]["nimg1"].to_pylist()
    flat = np.full((48, 56, 3), 128, np.uint8)
    wrong = [
        {"bytes": good[0]["bytes"][:60], "path": None},
        {"bytes": encoded(flat[:24]), "path": None},
        {"bytes": None, "path": "gone.png"},
        {"bytes": encoded(flat), "path": None},
        positives().with_format("arrow")[:]["img1"].to_pylist()[4],
        good[5],
    ]
    table = as_parquet(distractors(nimg1=wrong, nimg2=[None] * 6, nimg3=[None] * 6), tmp_path / "NearID-Flux")
    output = made(importer(tuples, table), tmp_path / "out")
    rows = output.read().to_pylist()
    assert validate(output.read()) == []
    for row, words in zip(
        rows, ("cut off", "56 x 24 pixels, the view 56 x 48: another shape", "gone.png"), strict=False
    ):
        assert words in row["error"] and row["image"] is None and row["verdict"] == "none"
        assert row["background_max_difference"] == -1 and row["size_px"] == 0
    assert [row["verdict"] for row in rows[3:]] == ["blank", "unchanged", "accepted"]
    assert all(not row["error"] for row in rows[3:])


def test_views_without_a_mask_get_distractors_that_nothing_is_measured_of(tmp_path):
    bare = tuples_of(as_parquet(positives(2, masks=False), tmp_path / "NearID"), tmp_path / "tuples")
    table = as_parquet(distractors(2), tmp_path / "NearID-Flux")
    rows = made(importer(bare, table), tmp_path / "out").read().to_pylist()
    assert len(rows) == 5
    assert {(r["mask"], r["background_max_difference"], r["object_mean_difference"], r["verdict"]) for r in rows} == {
        (None, -1, None, "accepted")
    }


def test_views_with_an_error_and_identities_from_elsewhere_are_left_out(tmp_path, tuples):
    broken = {"bytes": b"?", "path": None}
    first = positives().with_format("arrow")[:]["img1"].to_pylist()
    table = as_parquet(positives(img1=[broken, *first[1:]]), tmp_path / "NearID")
    some = tuples_of(table, tmp_path / "tuples")
    output = made(importer(some, as_parquet(distractors(), tmp_path / "NearID-Flux")), tmp_path / "out")
    assert rejected_counts(output) == {"view-error": 1}
    rows = tuples.read().to_pylist()
    foreign = Dataset(tmp_path / "foreign")
    make_plan(foreign, tuples.read().select([]).append_column("row_id", tuples.read()["identity_id"]), table="tuples",
              content={}, rows_per_shard=9)  # fmt: skip
    for row in rows[1:]:
        row["provenance"] = "{}"
    foreign.shard("000-000000").write_bytes(parquet_bytes(tuples.read().from_pylist(rows, schema=TUPLES.schema)))
    records, rejected = importer(foreign, tmp_path / "NearID-Flux").list_records()
    assert len(records) == 3 and {entry["reason"] for entry in rejected} == {"other-source"} and len(rejected) == 5


def test_datasets_and_tables_that_do_not_fit_are_refused(tuples, tmp_path):
    table = as_parquet(distractors(), tmp_path / "NearID-Flux")
    assert "no dataset here" in refusal(Dataset(tmp_path / "none"), table)
    other = as_parquet(positives(), tmp_path / "p" / "NearID-Flux")
    assert "has no column nimg1; found the columns: id, category" in refusal(tuples, other)
    empty = as_parquet(
        distractors(nimg1=[None] * 6, nimg2=[None] * 6, nimg3=[None] * 6), tmp_path / "e" / "NearID-Flux"
    )
    assert "no view has a distractor in the given tables (missing-distractor)" in refusal(tuples, empty)
    rows = [row | {"provenance": "{}"} for row in tuples.read().to_pylist()]
    foreign = Dataset(tmp_path / "foreign")
    make_plan(foreign, tuples.read().select([]).append_column("row_id", tuples.read()["identity_id"]), table="tuples",
              content={}, rows_per_shard=9)  # fmt: skip
    foreign.shard("000-000000").write_bytes(parquet_bytes(tuples.read().from_pylist(rows, schema=TUPLES.schema)))
    assert "no identity says which row of NearID it was read from" in refusal(foreign, table)


def test_engines_follow_from_published_names_or_are_given(tmp_path):
    assert engine_and_place("Aleksandar/NearID-Flux") == ("flux-fill-512", "Aleksandar/NearID-Flux", "")
    assert engine_and_place("s3://b/NearID-PowerPaint/") == ("powerpaint-512", "s3://b/NearID-PowerPaint/", "")
    assert engine_and_place("x/NearID-SDXL_1024.parquet")[0] == "sdxl-1024"
    assert engine_and_place("new-1=Aleksandar/NearID-Flux@abc") == ("new-1", "Aleksandar/NearID-Flux", "abc")
    assert len(set(ENGINES.values())) == 9
    for wrong in ("tables/mine", "=x", "My Engine=x", "engine="):
        with pytest.raises(UsageError, match="does not say which engine painted it"):
            engine_and_place(wrong)
    for settings, words in (
        ({"tuples": ""}, "tuples is empty"),
        ({"sources": ()}, "sources is empty"),
        ({"sources": ("x/NearID-Flux", "flux-fill-512=y")}, "flux-fill-512 more than once"),
        ({"source_split": ""}, "source_split is empty"),
    ):
        with pytest.raises(ValueError, match=words):
            NearidDistractorsSettings(**{"tuples": "t", "sources": ("x/NearID-Flux",)} | settings)
