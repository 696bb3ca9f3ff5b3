"""The masks stage: what it adds, what it leaves alone, what it refuses, and the sheet of its masks."""

import io
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from nearid_ray.data.images import decode_mask, decode_rgb, encode_png
from nearid_ray.data.mask_report import choose_views, list_masks, mask_facts, sheet_of
from nearid_ray.data.masking import MaskSettings
from nearid_ray.data.masks import clean_mask, grabcut_mask
from nearid_ray.data.pipeline import run_shard
from nearid_ray.data.plan import make_plan
from nearid_ray.data.remask import RemaskSettings, plan_remask, remask_facts
from nearid_ray.data.store import Dataset
from nearid_ray.data.views import RawIdentity, RawView, decode_view, identity_row, view_row
from nearid_ray.errors import UsageError
from nearid_ray.identifiers import stable_hash
from nearid_ray.stages.masks import Masks, run_masks
from nearid_ray.tracking import TrackingSettings
from schemas import TUPLES, validate

SIZE = 64


def scene(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A red or blue disc on a shaded green ground, and its mask."""
    y, x = np.mgrid[:SIZE, :SIZE]
    image = np.stack([60 + x // 4, 130 + y // 4, 50 + 0 * x], axis=2).astype(np.uint8)
    mask = np.zeros((SIZE, SIZE), np.uint8)
    cv2.circle(mask, (30 + seed % 5, 34), 16, 255, cv2.FILLED)
    image[mask > 0] = (200, 40, 40) if seed % 2 else (50, 50, 210)
    return image, mask


def raw(seed: int, *, mask: np.ndarray | None = None, part: bool = False, grey: bool = False) -> RawView:
    image = np.full((SIZE, SIZE, 3), 90, np.uint8) if grey else scene(seed)[0]
    half = np.zeros((SIZE, SIZE), np.uint8)
    half[:, : SIZE // 2] = 255
    return RawView(
        name=f"{seed}.jpg",
        image=encode_png(image),
        mask=None if mask is None else encode_png(mask),
        mask_source="column",
        part_mask=encode_png(half) if part else None,
        provenance={"seed": seed},
    )


def write(place: Path, identities: dict[str, list[RawView]]) -> Dataset:
    """A tuples dataset of these views, two identities a shard."""
    dataset = Dataset(place)
    work = pa.table({"row_id": list(identities)})
    plan = make_plan(dataset, work, table="tuples", content={"made": "here"}, rows_per_shard=2)
    for shard in plan.pending:
        names = plan.members(shard)["row_id"].to_pylist()
        rows = [
            identity_row(
                RawIdentity(identity_id=name, split="test", views=identities[name], category="disc"),
                "test",
                [view_row(decode_view(view), SIZE) for view in identities[name]],
            )
            for name in names
        ]
        sink = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows, schema=TUPLES.schema), sink)
        dataset.shard(shard).write_bytes(sink.getvalue())
    return dataset


def holed(seed: int) -> np.ndarray:
    mask = scene(seed)[1]
    mask[30:36, 28:34] = 0
    mask[2:4, 2:4] = 255
    return mask


@pytest.fixture
def tuples(tmp_path: Path) -> Dataset:
    """Views with and without masks, one that cannot be told from its ground, and one without a picture."""
    return write(
        tmp_path / "tuples",
        {
            "t:a": [raw(1), raw(2, mask=holed(2))],
            "t:b": [raw(3, part=True), raw(4, grey=True)],
            "t:c": [RawView(name="lost.jpg", error="gone"), raw(5, mask=scene(5)[1])],
        },
    )


def run(tuples: Dataset, output: Path, **settings: Any) -> tuple[Dataset, RemaskSettings]:
    """The stage without Ray."""
    masking = MaskSettings(mask_method=settings.pop("mask_method", "grabcut"))
    chosen, made = RemaskSettings(masking=masking, **settings), Dataset(output)
    plan, task = plan_remask(tuples, made, chosen)
    task.setup()
    for shard in plan.pending:
        run_shard(task, made, shard, plan.members(shard))
    return made, chosen


def views_of(dataset: Dataset) -> dict[tuple[str, int], dict[str, Any]]:
    return {(row["identity_id"], i): view for row in dataset.read().to_pylist() for i, view in enumerate(row["views"])}


CHANGED = ("mask", "mask_source", "mask_area", "mask_pieces", "mask_touches_border", "provenance")


def test_views_without_a_mask_get_one_and_nothing_else_changes(tuples, tmp_path):
    output, settings = run(tuples, tmp_path / "out")
    before, after = views_of(tuples), views_of(output)
    assert validate(output.arrow()) == []
    for place in (("t:a", 0), ("t:b", 0)):
        view = after[place]
        expected = grabcut_mask(decode_rgb(before[place]["image"]["bytes"]))
        found = decode_mask(view["mask"]["bytes"])
        assert np.array_equal(found, expected)
        assert view["mask_source"] == "grabcut" and view["mask_pieces"] == 1
        assert view["mask_area"] == pytest.approx((expected > 0).mean())
        seed = json.loads(before[place]["provenance"])["seed"]
        assert ((found > 0) != (scene(seed)[1] > 0)).mean() < 0.03
        assert json.loads(view["provenance"]) == {
            **json.loads(before[place]["provenance"]),
            "mask": {"mask_method": "grabcut"},
        }
        for name in set(view) - set(CHANGED):
            assert view[name] == before[place][name]
    for place in (("t:a", 1), ("t:c", 0), ("t:c", 1)):
        assert after[place] == before[place]
    rest = [name for name in TUPLES.schema.names if name != "views"]
    assert output.read(columns=rest).equals(tuples.read(columns=rest))
    facts = remask_facts(tuples, output, settings)
    expected_facts = {"masks_looked_for": 3, "masks_found": 2, "views": 6, "views_without_picture": 1,
                      "views_without_mask": 1, "mask_source": {"column": 2, "grabcut": 2}}  # fmt: skip
    assert {name: facts[name] for name in expected_facts} == expected_facts


def test_a_view_in_which_no_object_is_found_stays_as_it_was_and_says_why(tuples, tmp_path):
    output, _ = run(tuples, tmp_path / "out")
    before, after = views_of(tuples)["t:b", 1], views_of(output)["t:b", 1]
    assert "mask_error" in json.loads(after["provenance"])
    assert after | {"provenance": ""} == before | {"provenance": ""}
    assert after["error"] == "" and after["mask_source"] == "none"
    again, settings = run(output, tmp_path / "again")
    assert views_of(again) == views_of(output)
    assert remask_facts(output, again, settings)["masks_looked_for"] == 1


def test_all_replaces_masks_but_keeps_the_one_that_has_no_better(tmp_path):
    rough = np.zeros((SIZE, SIZE), np.uint8)
    rough[10:50, 10:50] = 255
    tuples = write(tmp_path / "tuples", {"t:a": [raw(1, mask=rough), raw(2, mask=rough, grey=True)]})
    output, settings = run(tuples, tmp_path / "out", which="all")
    replaced, kept = views_of(output).values()
    assert replaced["mask_source"] == "grabcut"
    assert ((decode_mask(replaced["mask"]["bytes"]) > 0) != (scene(1)[1] > 0)).mean() < 0.03
    assert kept["mask_source"] == "column" and np.array_equal(decode_mask(kept["mask"]["bytes"]), rough)
    assert remask_facts(tuples, output, settings)["masks_found"] == 1


def test_cleaning_mends_masks_that_are_there(tuples, tmp_path):
    output, settings = run(tuples, tmp_path / "out", mask_method="none", clean=True)
    before, after = views_of(tuples), views_of(output)
    mended = decode_mask(after["t:a", 1]["mask"]["bytes"])
    assert np.array_equal(mended, clean_mask(holed(2)))
    assert (before["t:a", 1]["mask_pieces"], after["t:a", 1]["mask_pieces"]) == (2, 1)
    assert after["t:a", 1]["mask_source"] == "column"
    assert json.loads(after["t:a", 1]["provenance"])["mask_cleaned"] is True
    assert after["t:a", 0] == before["t:a", 0]
    facts = remask_facts(tuples, output, settings)
    assert (facts["masks_looked_for"], facts["masks_cleaned"]) == (0, 2)


def test_cleaning_that_would_leave_nothing_leaves_the_mask(tmp_path):
    thread = np.zeros((SIZE, SIZE), np.uint8)
    thread[30, 5:60] = 255
    tuples = write(tmp_path / "tuples", {"t:a": [raw(1, mask=thread)]})
    assert not clean_mask(thread).any()
    output, _ = run(tuples, tmp_path / "out", mask_method="none", clean=True)
    assert views_of(output) == views_of(tuples)


def test_more_identities_are_added_and_changed_ones_refused(tmp_path):
    views = {"t:a": [raw(1)], "t:b": [raw(2)]}
    first = write(tmp_path / "tuples", views)
    output, _ = run(first, tmp_path / "out")
    more = write(tmp_path / "tuples", views | {"t:c": [raw(3)]})
    plan, _ = plan_remask(more, output, RemaskSettings())
    assert [plan.members(shard)["row_id"].to_pylist() for shard in plan.pending] == [["t:c"]]
    other = write(tmp_path / "other", {"t:a": [raw(1)], "t:b": [raw(4)]})
    with pytest.raises(UsageError, match=r"1 identity\(ies\) have changed.*t:b.*Give another output"):
        plan_remask(other, output, RemaskSettings())


def test_what_cannot_work_is_refused_before_anything_is_written(tuples, tmp_path):
    lost = write(tmp_path / "lost", {"t:a": [RawView(name="1.jpg", error="gone")]})
    with pytest.raises(UsageError, match=r"none of the 1 view\(s\) has a picture"):
        plan_remask(lost, Dataset(tmp_path / "out"), RemaskSettings())
    with pytest.raises(UsageError, match="is input and output"):
        plan_remask(tuples, tuples, RemaskSettings())
    with pytest.raises(UsageError, match="there is no such folder"):
        masking = MaskSettings(mask_method="sam2", mask_model=str(tmp_path / "no model"))
        plan_remask(tuples, Dataset(tmp_path / "out"), RemaskSettings(masking=masking))
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="nothing would be done"):
        RemaskSettings(masking=MaskSettings(mask_method="none"))
    with pytest.raises(ValueError, match="which is 'some'"):
        RemaskSettings(which="some")
    for wrong in ({"sheet": "sheet.jpg"}, {"sheet_order": "best"}, {"sheet_views": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Masks(tuples="t", output="o", **wrong)


def test_a_broken_picture_costs_its_mask_alone(tuples, tmp_path):
    rows = tuples.read().to_pylist()
    rows[0]["views"][0]["image"]["bytes"] = b"no picture"
    pq.write_table(pa.Table.from_pylist(rows[:2], schema=TUPLES.schema), tuples.shard("000-000000").path)
    output, _ = run(tuples, tmp_path / "out")
    after = views_of(output)
    assert "the picture cannot be read" in json.loads(after["t:a", 0]["provenance"])["mask_error"]
    assert after["t:b", 0]["mask_source"] == "grabcut"


def test_the_most_suspicious_masks_come_first(tmp_path):
    whole, torn, huge = scene(1)[1], holed(1), np.full((SIZE, SIZE), 255, np.uint8)
    huge[:6] = 0
    views = [raw(i, mask=mask) for i, mask in enumerate((whole, torn, whole, huge))]
    tuples = write(tmp_path / "tuples", {"t:a": [*views, raw(9), RawView(name="x", error="gone")]})
    places = list(list_masks(tuples))
    assert [view.view_index for view in choose_views(places, "suspicious", 9)] == [4, 3, 1, 0, 2]
    drawn = [view.view_index for view in choose_views(places, "random", 3)]
    assert drawn == sorted(range(5), key=lambda i: stable_hash("sheet", "t:a", i))[:3]
    facts = mask_facts(places)
    assert facts["mask_pieces"] == {"1": 3, "2": 1} and facts["masks_touching_border"] == 1
    assert facts["mask_area"]["median"] == pytest.approx((whole > 0).mean(), abs=2e-3)
    assert sheet_of(tuples, "suspicious", 3).shape == sheet_of(tuples, "random", 3).shape


def test_the_job_writes_the_dataset_its_summary_and_the_sheet(ray_session, tuples, tmp_path, capsys):
    settings = {"tuples": str(tmp_path / "tuples"), "output": str(tmp_path / "out"),
                "tracking": TrackingSettings(tracking_uri="off")}  # fmt: skip
    ended = run_masks(Masks(**settings))
    assert ended.failed  # in one of three views nothing was found
    assert "no object was found in 1 of 3 views" in capsys.readouterr().err
    plain, _ = run(tuples, tmp_path / "plain")
    assert views_of(Dataset(tmp_path / "out")) == views_of(plain)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (summary["rows_with_error"], summary["masks_found"]) == (1, 2)
    sheet = np.asarray(Image.open(tmp_path / "out" / "masks.png"))
    assert sheet.shape[2] == 3 and (sheet == (255, 40, 40)).all(axis=2).any()
    assert "license: " in (tmp_path / "out" / "README.md").read_text()
    elsewhere = tmp_path / "a sheet.png"
    masked = {**settings, "tuples": str(tmp_path / "out"), "output": str(tmp_path / "again"), "sheet": str(elsewhere)}
    again = run_masks(Masks(**masked, remask=RemaskSettings(masking=MaskSettings(mask_method="none"), clean=True)))
    assert not again.failed and elsewhere.exists() and not (tmp_path / "again" / "masks.png").exists()
    assert "no mask was looked for" in capsys.readouterr().err
