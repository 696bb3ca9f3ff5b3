"""Artefact controls: the same object through the same engine, kept apart from distractors."""

from dataclasses import replace

import numpy as np
import pytest

from nearid_ray.data.difference import object_mean_difference
from nearid_ray.data.rejects import rejected_counts
from nearid_ray.data.store import Dataset
from nearid_ray.errors import UsageError
from nearid_ray.synthesis.catalog import Recipe, choose
from nearid_ray.synthesis.engine import EngineRequest
from nearid_ray.synthesis.plan import engine_hash
from nearid_ray.synthesis.settings import SynthesisSettings


def request(seed: int = 3) -> EngineRequest:
    """A striped box on a gradient."""
    y, x = np.mgrid[:96, :96]
    view = np.stack([x * 2, y * 2, np.full_like(x, 90)], axis=2).astype(np.uint8)
    mask = np.zeros((96, 96), np.uint8)
    mask[30:70, 25:75] = 255
    view[mask > 0] = np.stack([200 * (x // 5 % 2), 60 + 0 * x, 250 - 2 * y], axis=2)[mask > 0]
    other = np.zeros((96, 96, 3), np.uint8)
    other[20:80, 20:80] = (10, 200, 40)
    return EngineRequest(
        view_HW3=view,
        mask_HW=mask,
        seed=seed,
        donor_HW3=other,
        donor_mask_HW=(other[..., 1] > 0).astype(np.uint8) * 255,
    )


@pytest.mark.parametrize("name", ["exemplar", "sleeping-1"])
def test_a_control_shows_the_view_s_object_where_the_engine_shows_another(name):
    (_, engine), (_, control) = choose([name], control=True).unchecked()
    asked = request()
    differences = []
    for painter in (engine, control):
        result = painter.generate([asked])[0]
        differences.append(object_mean_difference(asked.view_HW3, result.image_HW3, asked.mask_HW))
    assert differences[1] < differences[0] / 2
    assert differences[1] > 0  # it went through the engine
    assert (control.name, control.group, control.needs_donor) == (f"{name}-control", "control", False)
    assert control.family == engine.family
    assert control.control(0.5) is None


def test_a_model_s_control_starts_from_its_object_with_the_strength_asked_for():
    (_, engine), (_, control) = choose(["sdxl-512"], control=True, control_strength=0.25).unchecked()
    assert {k for k in engine.settings if engine.settings[k] != control.settings[k]} == {"strength"}
    assert control.settings["strength"] == 0.25
    assert control.prompt("mug", "a red mug") == engine.prompt("mug", "a red mug")


def test_the_rows_of_a_control_are_never_those_of_its_engine():
    own = 0.5
    (_, engine), (_, control) = choose(
        ["sdxl-512"], [f"sdxl-512.strength={own}"], control=True, control_strength=own
    ).unchecked()
    assert engine.settings == control.settings
    assert engine_hash(engine, 0.0) != engine_hash(control, 0.0)


def test_engines_that_would_paint_another_object_have_no_control():
    names = ["toybox-redraw", "qwen-image-512", "qwen-edit", "flux-fill-partial", "exemplar"]
    assert [recipe.name for recipe in choose(names, control=True).recipes] == [*names, "exemplar-control"]
    with pytest.raises(UsageError, match="toybox-redraw has no artefact control"):
        Recipe(name="toybox-redraw-control").make()


def test_a_strength_without_a_step_is_refused():
    with pytest.raises(UsageError, match=r"control_strength 0.01: .*leave no step"):
        choose(["sdxl-512"], control=True, control_strength=0.01)


def test_controls_are_planned_for_val_and_test_and_marked_in_their_rows(toys, painted_rows, tmp_path):
    settings = SynthesisSettings(engines=("sleeping-1", "toybox-redraw"), control=True)
    output = Dataset(tmp_path)
    rows = painted_rows(toys, output, settings).to_pylist()
    found = {(row["engine"], row["control"], row["split"] == "train") for row in rows}
    assert found == {
        ("sleeping-1", False, False), ("sleeping-1", False, True), ("sleeping-1-control", True, False),
        ("toybox-redraw", False, False), ("toybox-redraw", False, True),
    }  # fmt: skip
    assert all(row["background_max_difference"] == 0 for row in rows)
    assert rejected_counts(output) == {"no-control": 1}
    later = painted_rows(toys, output, replace(settings, engines=("sleeping-1", "toybox-redraw", "sleeping-2")))
    assert later.num_rows > len(rows)
    kept = {row["distractor_id"]: row for row in later.to_pylist()}
    assert all(kept[row["distractor_id"]] == row for row in rows)
