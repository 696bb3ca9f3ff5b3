"""The work list of synthesis: which rows there are, what their ids and seeds follow from, what is left out and why."""

from dataclasses import replace

import numpy as np
import pytest

from nearid_ray.errors import UsageError
from nearid_ray.identifiers import seed_of
from nearid_ray.synthesis.catalog import choose
from nearid_ray.synthesis.plan import ViewPlace, cut_into_batches, plan_synthesis, plausible_donor_views


def _view(identity: str, index: int = 0, **changes) -> ViewPlace:
    values = {
        "identity_id": f"photos:{identity}", "view_index": index, "view_id": f"{identity}{index}", "category": "mug",
        "description": "", "split": "test", "source": "photos", "size_px": 64, "mask_area": 0.2,
        "mask_touches_border": False, "error": "", "shard": "000-000000", "row": 0,
    }  # fmt: skip
    return ViewPlace(**values | changes)


def _plan(views, engines=("exemplar",), **changes):
    values = {"run_seed": 0, "feather_px": 0.0, "eval_only_groups": ("unseen", "part"), "splits": ("train", "test")}
    return plan_synthesis(views, choose(engines).checked(), **values | changes)


def test_ids_follow_from_view_settings_and_run_seed_alone():
    views = [_view("a"), _view("b"), _view("c")]
    first, _ = _plan(views)
    moved, _ = _plan([replace(view, shard="007-000001", row=9) for view in reversed(views)])
    ids = {row["identity_id"]: row["row_id"] for row in first.to_pylist()}
    assert ids == {row["identity_id"]: row["row_id"] for row in moved.to_pylist()}
    for change in ({"run_seed": 1}, {"feather_px": 2.0}):
        assert set(ids.values()).isdisjoint(_plan(views, **change)[0]["row_id"].to_pylist())
    assert all(row["seed"] == seed_of(row["row_id"], 0) for row in first.to_pylist())


def test_what_cannot_be_made_is_left_out_with_its_reason():
    views = [
        _view("a"), _view("b"), _view("b", 1, mask_area=None), _view("c", category="car"), _view("d", error="broken"),
        _view("e", category=""), _view("a", 1, view_id="a0"),
    ]  # fmt: skip
    work, rejected = _plan(views)
    assert work["identity_id"].to_pylist() == ["photos:a", "photos:b"]
    reasons = {record["record_id"]: record["reason"] for record in rejected}
    assert reasons == {
        "photos:b/1": "no-mask",
        "photos:c/0/exemplar": "no-donor",
        "photos:d/0": "view-error",
        "photos:e/0/exemplar": "no-donor",
        "photos:a/1": "same-view-twice",
    }
    with pytest.raises(UsageError, match="none of the 1 views"):
        _plan([_view("a", mask_area=None)])


def test_donors_are_another_identity_of_category_and_split():
    views = [_view("a"), _view("b"), _view("c", split="train"), _view("d", split="train"), _view("x", category="car")]
    donors = {row["identity_id"]: row["donor_identity_id"] for row in _plan(views)[0].to_pylist()}
    assert donors == {
        "photos:a": "photos:b", "photos:b": "photos:a", "photos:c": "photos:d", "photos:d": "photos:c",
    }  # fmt: skip


def test_with_embeddings_donors_are_the_nearest():
    views = [_view(name) for name in "abcd"]
    angles = dict(zip("abcd", (0.0, 2.0, 0.1, 2.1), strict=True))
    embeddings = {f"photos:{name}": np.array([np.cos(angle), np.sin(angle)]) for name, angle in angles.items()}
    donors = {
        row["identity_id"][-1]: row["donor_identity_id"][-1]
        for row in _plan(views, embeddings=embeddings)[0].to_pylist()
    }
    assert donors == {"a": "c", "c": "a", "b": "d", "d": "b"}


def test_engines_held_out_of_training_are_not_made_for_it():
    work, _ = _plan([_view("a", split="train"), _view("b")], engines=("toybox",))
    engines = {split: set() for split in ("train", "test")}
    for row in work.to_pylist():
        engines[row["split"]].add(row["engine"])
    assert engines["train"] == {f"toybox-{kind}" for kind in ("redraw", "recolor", "retexture", "reshape")}
    assert len(engines["test"]) == 9


def test_donor_views_with_odd_masks_are_passed_over_while_there_are_others():
    areas = (0.2, 0.02, 0.3, 0.7, 0.25)
    views = [_view("a", i, mask_area=area, mask_touches_border=i == 2) for i, area in enumerate(areas)]
    assert [view.view_index for view in plausible_donor_views(views)] == [0, 4]
    assert [view.view_index for view in plausible_donor_views(views[2:3])] == [2]


def test_a_batch_holds_rows_of_one_engine_shard_and_size():
    views = [_view(f"i{n}", size_px=64 if n < 5 else 32) for n in range(9)]
    work, _ = _plan(views, engines=("toybox-redraw", "sleeping-1"))
    sizes = {"toybox-redraw": 4, "sleeping-1": 6}
    cut = cut_into_batches(work, rows_per_shard=sizes, batch={"toybox-redraw": 3, "sleeping-1": 2})
    rows = list(zip(*(cut[name].to_pylist() for name in ("engine", "piece", "batch", "view_px")), strict=True))
    assert rows[:9] == [
        ("toybox-redraw", piece, batch, size)
        for piece, batch, size in [(0, 0, 64), (0, 0, 64), (0, 0, 64), (0, 1, 64), (1, 0, 64), (1, 1, 32), (1, 1, 32),
                                   (1, 1, 32), (2, 0, 32)]
    ]  # fmt: skip
    assert [row[1:3] for row in rows[9:]] == [
        (3, 0), (3, 0), (3, 1), (3, 1), (3, 2), (3, 3), (4, 0), (4, 0), (4, 1),
    ]  # fmt: skip


def test_prompts_are_the_engines_and_stand_in_the_plan():
    work, _ = plan_synthesis(
        [_view("a", description="a red mug"), _view("b")],
        choose(("sdxl-512",), ("sdxl-512.prompt_template=one {category}: {description}",)).unchecked(),
        run_seed=0,
        feather_px=0,
        eval_only_groups=(),
        splits=("test",),
    )
    assert work["prompt"].to_pylist() == ["one mug: a red mug", "one mug: mug"]
    assert "watermark" in work["negative_prompt"][0].as_py()
