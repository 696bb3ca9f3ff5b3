"""Which items the plan holds: splits, draws, masks and engines; what is left out carries its reason."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from nearid_ray.data.store import Dataset
from nearid_ray.embedding.plan import EmbedSettings, item_id, plan_embed, pooled_settings
from nearid_ray.errors import UsageError

Rows = list[dict[str, Any]]


@pytest.fixture(scope="module")
def inputs(
    tmp_path_factory: pytest.TempPathFactory,
    rows_of: Callable[..., Rows],
    distractors_of: Callable[..., Rows],
    write: Callable[..., Dataset],
) -> tuple[Dataset, Dataset]:
    folder = tmp_path_factory.mktemp("inputs")
    rows = rows_of(["train", "train", "val", "test", "train"])
    return write(folder / "tuples", "tuples", rows), write(folder / "distractors", "distractors", distractors_of(rows))


def keys(work: pa.Table, *names: str) -> set[tuple]:
    return set(zip(*(work[name].to_pylist() for name in names), strict=True))


def test_train_gets_augmented_draws_and_the_others_the_clean_image(inputs: tuple[Dataset, Dataset]) -> None:
    work, rejected = plan_embed(*inputs, EmbedSettings(draws=2))
    found = keys(work, "split", "masked", "draw")
    assert found == {(s, m, 0) for s in ("val", "test") for m in (False, True)} | {
        ("train", m, d) for m in (False, True) for d in (1, 2)
    }
    pictures = {"train": 3 * 2 * 3, "val": 2 * 3, "test": 2 * 3}  # identities x views x (view + two engines)
    assert work.num_rows == 4 * pictures["train"] + 2 * pictures["val"] + 2 * pictures["test"]
    assert rejected == []


def test_without_draws_train_gets_the_clean_image(inputs: tuple[Dataset, Dataset]) -> None:
    work, _ = plan_embed(*inputs, EmbedSettings(draws=0, masked=False))
    assert keys(work, "split", "masked", "draw") == {(split, False, 0) for split in ("train", "val", "test")}


def test_splits_can_be_left_out(inputs: tuple[Dataset, Dataset]) -> None:
    work, _ = plan_embed(*inputs, EmbedSettings(augmented_splits=(), clean_splits=("test",)))
    assert keys(work, "split") == {("test",)}


def test_train_engines_restrict_the_training_split_alone(inputs: tuple[Dataset, Dataset]) -> None:
    work, _ = plan_embed(*inputs, EmbedSettings(train_engines=("redraw",)))
    found = keys(work, "split", "engine")
    assert ("train", "recolor") not in found
    assert {("train", "redraw"), ("train", ""), ("test", "recolor"), ("test", "redraw")} <= found
    work, _ = plan_embed(*inputs, EmbedSettings(engines=("redraw",)))
    assert keys(work, "engine") == {("",), ("redraw",)}


def test_items_are_named_by_what_they_are(inputs: tuple[Dataset, Dataset]) -> None:
    work, _ = plan_embed(*inputs, EmbedSettings(draws=2))
    assert len(set(work["row_id"].to_pylist())) == work.num_rows
    for row in work.slice(0, 50).to_pylist():
        assert row["row_id"] == item_id(
            row["image_id"],
            row["role"],
            row["engine"],
            row["identity_id"],
            row["view_index"],
            masked=row["masked"],
            draw=row["draw"],
        )


def test_items_of_a_picture_stand_together_and_pictures_follow_their_shards(inputs: tuple[Dataset, Dataset]) -> None:
    work, _ = plan_embed(*inputs, EmbedSettings(draws=2))
    order = [
        (row["input_kind"] == "distractors", row["input_shard"], row["input_row"], row["view_index"])
        for row in work.to_pylist()
    ]
    assert order == sorted(order)


def test_a_row_says_where_its_picture_lies(inputs: tuple[Dataset, Dataset]) -> None:
    tuples, distractors = inputs
    work, _ = plan_embed(tuples, distractors, EmbedSettings(masked=False))
    for row in work.to_pylist():
        table = (tuples if row["input_kind"] == "tuples" else distractors).arrow()
        fragment = next(f for f in table.get_fragments() if row["input_shard"] in f.path)
        there = fragment.to_table().slice(row["input_row"], 1).to_pylist()[0]
        image_id = there["views"][row["view_index"]]["view_id"] if "views" in there else there["distractor_id"]
        assert (there["identity_id"], image_id) == (row["identity_id"], row["image_id"])


def test_oracle_and_category_travel_along(inputs: tuple[Dataset, Dataset]) -> None:
    work, _ = plan_embed(*inputs, EmbedSettings())
    assert keys(work, "engine", "oracle", "category") == {
        ("", None, "mug"),
        ("redraw", None, "mug"),
        ("recolor", 0.25, "mug"),
    }


def test_what_cannot_be_embedded_is_left_out_with_its_reason(
    tmp_path: Path, rows_of: Callable[..., Rows], distractors_of: Callable[..., Rows], write: Callable[..., Dataset]
) -> None:
    rows = rows_of(["train", "test"])
    others = distractors_of(rows)
    others[0] |= {"error": "engine failed", "image": None, "verdict": "none"}
    others[1] |= {"verdict": "unchanged"}
    others[2] |= {"view_id": "of other tuples"}
    others[3] |= {"mask": None}
    rows[1]["views"][1] |= {"error": "broken file", "view_id": "", "image": None, "mask": None}
    rows[0]["views"][0] |= {"mask": None, "mask_source": "none"}
    tuples, distractors = write(tmp_path / "t", "tuples", rows), write(tmp_path / "d", "distractors", others)
    work, rejected = plan_embed(tuples, distractors, EmbedSettings(distractor_mask="painted"))
    reasons = sorted((entry["reason"], entry["identity_id"]) for entry in rejected)
    assert reasons == [
        ("distractor-error", "test:000"),
        ("distractor-not-accepted", "test:000"),
        ("no-mask", "test:000"),
        ("no-mask", "test:000"),
        ("no-view", "test:000"),
        ("no-view", "test:001"),
        ("no-view", "test:001"),
        ("view-error", "test:001"),
    ]
    assert len({entry["record_id"] for entry in rejected}) == len(rejected)
    said = {entry["reason"]: entry["detail"] for entry in rejected}
    assert said["view-error"] == "broken file"
    assert said["distractor-error"] == "engine failed"
    first = ("test:000", 0, "view")
    of_first = [row for row in work.to_pylist() if (row["identity_id"], row["view_index"], row["role"]) == first]
    assert [row["masked"] for row in of_first] == [False]
    assert not any(row["image_id"] in ("", others[0]["distractor_id"]) for row in work.to_pylist())


def test_a_distractor_is_masked_by_its_view_unless_the_painted_region_is_asked_for(
    inputs: tuple[Dataset, Dataset], tmp_path: Path, rows_of: Callable[..., Rows], write: Callable[..., Dataset]
) -> None:
    work, _ = plan_embed(*inputs, EmbedSettings())
    view_at = {
        (row["identity_id"], row["view_index"]): (row["input_kind"], row["input_shard"], row["input_row"])
        for row in work.to_pylist()
        if row["role"] == "view"
    }
    for row in work.to_pylist():
        mask_at = (row["mask_kind"], row["mask_shard"], row["mask_row"])
        assert mask_at == view_at[row["identity_id"], row["view_index"]]
    work, _ = plan_embed(*inputs, EmbedSettings(distractor_mask="painted"))
    for row in work.to_pylist():
        assert (row["mask_kind"], row["mask_shard"]) == (row["input_kind"], row["input_shard"])
    rows = rows_of(["train", "train", "val", "test", "train"])
    for view in rows[0]["views"]:
        view["mask"] = None
    unmasked = write(tmp_path / "t", "tuples", rows)
    work, rejected = plan_embed(unmasked, inputs[1], EmbedSettings())
    assert {entry["reason"] for entry in rejected} == {"no-mask"}
    assert not any(row["masked"] for row in work.to_pylist() if row["identity_id"] == "test:000")


def test_pooled_embeddings_take_every_wanted_split_once_and_clean(inputs: tuple[Dataset, Dataset]) -> None:
    settings = pooled_settings(EmbedSettings(draws=3, clean_splits=("test",), engines=("redraw",)))
    work, _ = plan_embed(*inputs, settings)
    assert keys(work, "split", "draw") == {("train", 0), ("test", 0)}
    assert settings.engines == ("redraw",)


def test_engines_that_are_not_there_are_refused(inputs: tuple[Dataset, Dataset]) -> None:
    with pytest.raises(UsageError, match=r"train_engines names sdxl; .* has distractors of recolor, redraw"):
        plan_embed(*inputs, EmbedSettings(train_engines=("sdxl",)))
    with pytest.raises(UsageError, match="no distractors dataset is given"):
        plan_embed(inputs[0], None, EmbedSettings(engines=("redraw",)))


def test_distractors_of_other_tuples_are_refused(
    inputs: tuple[Dataset, Dataset],
    tmp_path: Path,
    rows_of: Callable[..., Rows],
    distractors_of: Callable[..., Rows],
    write: Callable[..., Dataset],
) -> None:
    rows = rows_of(["train"])
    for view in rows[0]["views"]:
        view["view_id"] += "x"
    foreign = write(tmp_path / "d", "distractors", distractors_of(rows))
    with pytest.raises(UsageError, match="were made from other tuples"):
        plan_embed(inputs[0], foreign, EmbedSettings())


def test_distractors_of_which_none_can_be_embedded_are_refused_with_the_reason(
    inputs: tuple[Dataset, Dataset],
    tmp_path: Path,
    rows_of: Callable[..., Rows],
    distractors_of: Callable[..., Rows],
    write: Callable[..., Dataset],
) -> None:
    others = [entry | {"verdict": "blank"} for entry in distractors_of(rows_of(["train"]))]
    blank = write(tmp_path / "d", "distractors", others)
    with pytest.raises(UsageError, match=f"none of the {len(others)} .* its verdict is blank"):
        plan_embed(inputs[0], blank, EmbedSettings())


def test_an_empty_plan_is_refused(inputs: tuple[Dataset, Dataset]) -> None:
    with pytest.raises(UsageError, match="nothing to embed"):
        plan_embed(inputs[0], None, EmbedSettings(augmented_splits=(), clean_splits=()))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"draws": -1}, "draws is -1"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"clean_splits": ("dev",)}, "clean_splits names dev; expected some of train, val, test"),
    ],
)
def test_settings_out_of_range_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EmbedSettings(**values)


def test_controls_are_embedded_when_asked_for_and_never_for_training(tmp_path, rows_of, distractors_of, write):
    rows = rows_of(["train", "test"])
    others = distractors_of(rows, ("recolor", "recolor-control", "elsewhere"))
    for row in others:
        row["control"] = row["engine"] != "recolor"
    tuples = write(tmp_path / "t", "tuples", rows)
    distractors = write(tmp_path / "d", "distractors", others)

    def planned(**settings):
        work, rejected = plan_embed(tuples, distractors, EmbedSettings(masked=False, **settings))
        pairs = zip(work["split"].to_pylist(), work["engine"].to_pylist(), strict=True)
        return set(pairs) - {("train", ""), ("test", "")}, {entry["reason"] for entry in rejected}

    assert planned() == ({("train", "recolor"), ("test", "recolor")}, set())
    wanted = {("train", "recolor"), ("test", "recolor"), ("test", "recolor-control")}
    assert planned(controls=True) == (wanted, {"control-in-train"})
