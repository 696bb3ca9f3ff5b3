"""Pictures of datasets and files through scorers: each once, resumable, failures as rows."""

import numpy as np
import pytest

from nearid_ray.data.images import decode_mask, decode_rgb, foreground_only
from nearid_ray.data.pipeline import RunSettings
from nearid_ray.data.store import Dataset
from nearid_ray.errors import UsageError
from nearid_ray.retrieving import embed
from nearid_ray.retrieving.embed import PictureTask, embed_pictures, known_scorers, named_scorers, plan_pictures
from nearid_ray.retrieving.places import places_of, places_of_files, read_places
from nearid_ray.retrieving.queries import find_queries
from schemas import validate


def specs(functions, *names: str) -> dict[str, str]:
    return {name: f"{functions}:{name}" for name in names}


def made(places, scorers, output, **settings):
    """The embeddings dataset, made in this process; and how many rows this run made."""
    dataset = Dataset(output)
    plan = plan_pictures(places, scorers, dataset, content={"pictures": "test"}, **settings)
    summary = embed_pictures(PictureTask(scorers=tuple(scorers)), dataset, plan, RunSettings(), title="test")
    assert validate(dataset.arrow()) == []
    return dataset, summary.rows_made


def test_every_picture_is_embedded_once_a_scorer_and_condition(tuples, functions, tmp_path):
    scorers = known_scorers(specs(functions, "colours", "mean"))
    dataset, rows = made(places_of(tuples), scorers, tmp_path / "e", conditions=("full", "foreground"))
    assert rows == 8 * 2 * 2
    stored = {row["identity_id"]: row["views"] for row in tuples.read().to_pylist()}
    for row in dataset.read().to_pylist():
        view = stored[row["identity_id"]][row["view_index"]]
        assert row["image_id"] == view["view_id"] and row["error"] == ""
        image, mask = decode_rgb(view["image"]["bytes"]), decode_mask(view["mask"]["bytes"])
        if row["scorer"] == "mean":
            shown = image if row["condition"] == "full" else foreground_only(image, mask)
            expected = shown.reshape(-1, 3).mean(axis=0) + 1
            assert row["embedding"] == pytest.approx(expected / np.linalg.norm(expected), abs=1e-6)


def test_a_second_run_makes_nothing_and_a_new_scorer_only_its_own(tuples, functions, tmp_path):
    one, both = (known_scorers(specs(functions, *names)) for names in (("mean",), ("mean", "colours")))
    dataset, rows = made(places_of(tuples), one, tmp_path / "e", pictures_per_shard=3)
    assert (rows, len(dataset.shards())) == (8, 3)
    bytes_before = {shard: dataset.shard(shard).read_bytes() for shard in dataset.shards()}
    assert made(places_of(tuples), one, tmp_path / "e", pictures_per_shard=3)[1] == 0
    assert made(places_of(tuples), both, tmp_path / "e", pictures_per_shard=3)[1] == 8
    dataset.shard("000-000001").delete()
    assert made(places_of(tuples), both, tmp_path / "e", pictures_per_shard=3)[1] == 3
    assert {shard: dataset.shard(shard).read_bytes() for shard in bytes_before} == bytes_before


def test_a_scorer_that_is_not_given_keeps_its_unfinished_shards(tuples, functions, tmp_path):
    one, other = (known_scorers(specs(functions, name)) for name in ("mean", "colours"))
    plan_pictures(places_of(tuples), one, Dataset(tmp_path / "e"), content={"pictures": "test"})
    dataset, rows = made(places_of(tuples), other, tmp_path / "e")
    assert rows == 8 and set(dataset.read(["scorer"])["scorer"].to_pylist()) == {"colours"}


def test_the_same_name_for_another_computation_is_refused(tuples, functions, tmp_path):
    made(places_of(tuples), known_scorers({"mine": f"{functions}:mean"}), tmp_path / "e")
    with pytest.raises(UsageError, match="a scorer 'mine' that computed other things"):
        made(places_of(tuples), known_scorers({"mine": f"{functions}:colours"}), tmp_path / "e")


def test_broken_files_and_vectors_without_length_are_rows_with_errors(photos, functions, tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "black.png").write_bytes(_black())
    files = [str(photos / "mug" / "0.png"), str(tmp_path / "text.png"), str(tmp_path / "black.png"), "/nowhere.png"]
    dataset, _ = made(places_of_files(files), known_scorers(specs(functions, "black_is_nothing")), tmp_path / "e")
    errors = sorted(row["error"] for row in dataset.read().to_pylist())
    assert errors[0] == ""
    assert any("no finite embedding" in error for error in errors)
    assert any("not a picture" in error for error in errors)
    assert "there is no such file" in errors


def test_pictures_without_masks_have_no_foreground_unless_masks_are_found(photos, functions, tmp_path):
    places = places_of_files([str(photos / "mug" / "0.png")])
    dataset, _ = made(places, known_scorers(specs(functions, "mean")), tmp_path / "e", conditions=("foreground",))
    assert dataset.read(["error"])["error"].to_pylist() == ["it has no mask, and none was looked for"]


def test_few_pictures_need_no_ray(tuples, functions, tmp_path, monkeypatch):
    plan = plan_pictures(places_of(tuples), known_scorers(specs(functions, "mean")), Dataset(tmp_path), content={})
    assert not embed.needs_ray(Dataset(tmp_path), plan, RunSettings())
    monkeypatch.setattr(embed, "FEW", 7)
    assert embed.needs_ray(Dataset(tmp_path), plan, RunSettings())


def test_places_are_read_wherever_they_lie_in_any_order(tuples, photos):
    rows = places_of(tuples).to_pylist()[::-1]
    rows.insert(3, places_of_files([str(photos / "car" / "2.png")]).to_pylist()[0])
    found = read_places(rows)
    assert found[3] == ((photos / "car" / "2.png").read_bytes(), None)
    for row, (image, mask) in zip(rows, found, strict=True):
        if row["input_kind"] == "tuples":
            stored = tuples.read().to_pylist()
            view = next(i for i in stored if i["identity_id"] == row["identity_id"])["views"][row["view_index"]]
            assert (image, mask) == (view["image"]["bytes"], view["mask"]["bytes"])


def test_queries_are_files_folders_tables_and_datasets(photos, tuples, tmp_path):
    known = {"mug": "photos:mug"}
    one = find_queries([str(photos / "mug" / "0.png")], ["view"], known)
    assert one.places["identity_id"].to_pylist() == [""]
    folder = find_queries([str(photos)], ["view"], known).places
    assert sorted(set(folder["identity_id"].to_pylist())) == ["car", "hat", "owl", "photos:mug"]
    assert folder.num_rows == 12  # masks are none
    (tmp_path / "q.csv").write_text(f"image,identity\n{photos}/mug/1.png,mug\n{photos}/hat/1.png,\n")
    table = find_queries([str(tmp_path / "q.csv")], ["view"], known).places
    assert table["identity_id"].to_pylist() == ["photos:mug", ""]
    assert find_queries([tuples.location.uri], ["view"]).places.num_rows == 8
    with pytest.raises(UsageError, match="no picture of the role generated"):
        find_queries([tuples.location.uri], ["generated"])
    with pytest.raises(UsageError, match=r"nothing\.jpg does not exist"):
        find_queries([str(tmp_path / "nothing.jpg")], ["view"])
    (tmp_path / "odd.csv").write_text("name\nx\n")
    with pytest.raises(UsageError, match="has the columns name; expected one called image"):
        find_queries([str(tmp_path / "odd.csv")], ["view"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="holds no picture"):
        find_queries([str(tmp_path / "empty")], ["view"])


def test_a_function_of_the_working_directory_is_known_to_workers_by_its_absolute_file(functions, monkeypatch):
    monkeypatch.chdir(functions.parent)
    (scorer,) = known_scorers({"mine": f"{functions.name}:mean"})
    assert scorer.spec == f"{functions.resolve()}:mean"


def test_scorers_are_named_once():
    with pytest.raises(UsageError, match="the name 'a' stands for x already"):
        named_scorers(["a=x", "a=y"])
    with pytest.raises(UsageError, match="stands for a metric of the ratings already"):
        named_scorers(["gpt=x"], {"gpt": "a metric of the ratings"})
    with pytest.raises(UsageError, match="expected NAME=SPEC"):
        named_scorers(["=x"])


def _black() -> bytes:
    from nearid_ray.data.images import encode_png

    return encode_png(np.zeros((8, 8, 3), np.uint8))
