"""Qwen-Image-Edit on tiny weights: whole views and graded regions, a text encoder that sees where the picture lies."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit, pipeline_qwenimage_edit_inpaint
from PIL import Image

from nearid_ray.errors import UsageError
from nearid_ray.synthesis.engines import qwen_editing
from nearid_ray.synthesis.engines.qwen_edit import SETTINGS, QwenEditEngine
from nearid_ray.synthesis.engines.qwen_edit_inpaint import SETTINGS as GRADED
from nearid_ray.synthesis.engines.qwen_edit_inpaint import QwenEditInpaintEngine
from tests.synthesis.tiny import pipelines
from tests.synthesis.tiny.engines import difference, object_mask, row, view

ENGINES = {"qwen-edit": (QwenEditEngine, SETTINGS[0]), "qwen-edit-inpaint": (QwenEditInpaintEngine, GRADED[0])}
PROMPTS = ("put the red mug on snow", "another teapot, similar but not the same, in soft light beside a green plant")


def settings(family, folder, **changes):
    preset = ENGINES[family][1]
    small = {"steps": 2, "strength": 1.0, "guidance": 1.0, "dtype": "float32", "dilation_px": 2}
    options = preset.options | {"lora": ""} | changes.pop("options", {})
    return replace(preset, weights=str(folder), options=options, **(small | changes))


def loaded(family, folder, **changes):
    made = ENGINES[family][0](settings(family, folder, **changes))
    made.check()
    made.load()
    return made


@pytest.fixture(scope="module")
def shared(tiny_weights):
    """`shared("qwen-edit")`: loaded once; tests must leave it as it is."""
    made = {}
    return lambda family: made.setdefault(family, made.get(family) or loaded(family, tiny_weights(family)))


@pytest.fixture
def small_world(monkeypatch):
    """The pipelines' one megapixel, which they cannot be talked out of, cut to 128 x 128 pixels."""
    whole = pipeline_qwenimage_edit.calculate_dimensions
    for module in (pipeline_qwenimage_edit, pipeline_qwenimage_edit_inpaint):
        monkeypatch.setattr(module, "calculate_dimensions", lambda area, ratio: whole(area // 64, ratio))


# What is asked of the model.


def test_the_presets_are_id_sims():
    (preset,) = SETTINGS
    assert (preset.name, preset.group, preset.steps, preset.guidance) == ("qwen-edit", "context", 8, 1.0)
    assert preset.options["lora_file"] == "Qwen-Image-Edit-Lightning-8steps-V1.0.safetensors"
    assert preset.options["lora"] == "lightx2v/Qwen-Image-Lightning" and preset.options["on_white"] is True
    assert [graded.strength for graded in GRADED] == [0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
    assert [graded.name for graded in GRADED[::6]] == ["qwen-edit-inpaint-40", "qwen-edit-inpaint-100"]
    for graded in GRADED:
        assert "mug" in QwenEditInpaintEngine(graded).prompt("mug", "a red mug")
    assert "the same mug" in QwenEditEngine(preset).prompt("mug", "a red mug")


@pytest.mark.parametrize("family", sorted(ENGINES))
def test_another_resolution_than_one_megapixel_is_refused(family):
    with pytest.raises(UsageError, match="works at about one megapixel whatever it is given: leave it at 1024"):
        ENGINES[family][0](replace(ENGINES[family][1], resolution_px=512))


@pytest.mark.parametrize(
    ("strength", "steps", "said"),
    [
        (0.4, 8, r"strength 0.4 of 8 steps is 3.2 steps, .*; give strength 0.375 or 0.5, or other steps"),
        (0.9, 8, "give strength 0.875 or 1, or other steps"),
    ],
)
def test_a_grade_that_the_steps_cannot_tell_from_another_is_refused(tiny_weights, strength, steps, said):
    with pytest.raises(UsageError, match=said):
        loaded("qwen-edit-inpaint", tiny_weights("qwen-edit-inpaint"), strength=strength, steps=steps)


@pytest.mark.parametrize(("size", "expected"), [((64, 64), (1024, 1024)), ((90, 60), (1248, 832))])
def test_pictures_and_masks_are_brought_to_one_megapixel(size, expected):
    width, height = size
    picture = qwen_editing.at_one_megapixel(np.zeros((height, width, 3), np.uint8))
    mask = qwen_editing.at_one_megapixel(np.full((height, width), 255, np.uint8))
    assert (picture.size, picture.mode, mask.size, mask.mode) == (expected, "RGB", expected, "L")


# The vision-language model.


def test_the_processor_loads_without_torchvision_and_makes_room_for_the_picture(tiny_weights):
    processor = qwen_editing.picture_processor(tiny_weights("qwen-edit") / "processor", "weights")
    picture = Image.fromarray(view(96))
    made = processor(text=["<|image_pad|> a red mug"] * 2, images=[picture, picture], return_tensors="pt")
    tokens = (made["input_ids"] == processor.image_token_id).sum(dim=1)
    assert tokens.tolist() == (made["image_grid_thw"].prod(dim=1) // 4).tolist() and tokens[0] > 1


def test_the_text_encoder_is_told_where_the_picture_lies(shared):
    """diffusers does not tell it, and transformers 5 then counts the picture's tokens along one line."""
    pipeline = shared("qwen-edit").pipeline
    picture = Image.fromarray(view(96))
    with torch.inference_mode():
        embeds, _ = pipeline.encode_prompt([PROMPTS[0]], [picture])
        text = pipeline.prompt_template_encode.format(PROMPTS[0])
        inputs = pipeline.processor(text=[text], images=[picture], padding=True, return_tensors="pt")
        model = pipeline.text_encoder
        told = model(**inputs, output_hidden_states=True).hidden_states[-1][:, 64:]
        nothing = torch.zeros_like(inputs["mm_token_type_ids"])
        places = torch.arange(inputs["input_ids"].shape[1]).expand(3, 1, -1)
        inputs["mm_token_type_ids"] = nothing
        untold = model(**inputs, position_ids=places, output_hidden_states=True).hidden_states[-1][:, 64:]
    torch.testing.assert_close(embeds, told)
    assert (embeds - untold).abs().max() > 3e-4


# Rows.


@pytest.mark.parametrize("family", sorted(ENGINES))
def test_a_row_is_the_same_in_any_batch_and_draws_from_no_global_generator(shared, small_world, family):
    rows = [row(seed, view_HW3=view(seed=seed), prompt=prompt) for seed, prompt in zip((3, 4), PROMPTS, strict=True)]
    torch.manual_seed(1)
    together = shared(family).generate(rows)
    torch.manual_seed(2)
    assert [difference(a, b) for a, b in zip(together, shared(family).generate(rows), strict=True)] == [0, 0]
    drawn = torch.rand(1)
    torch.manual_seed(2)
    assert torch.equal(drawn, torch.rand(1))
    assert max(difference(a, shared(family).generate([b])[0]) for a, b in zip(together, rows, strict=True)) <= 1
    turned = shared(family).generate(rows[::-1])[::-1]
    assert max(difference(a, b) for a, b in zip(together, turned, strict=True)) <= 1


@pytest.mark.parametrize("family", sorted(ENGINES))
@pytest.mark.parametrize("change", [{"prompt": PROMPTS[1]}, {"seed": 1}, {"view_HW3": view(seed=1)}])
def test_what_the_row_says_reaches_the_pipeline(shared, small_world, family, change):
    plain = row(prompt=PROMPTS[0])
    assert difference(shared(family).generate([replace(plain, **change)])[0], shared(family).generate([plain])[0]) > 1


def test_one_megapixel_comes_back_at_the_views_size(shared):
    seen = []
    inpaint = shared("qwen-edit-inpaint")
    hook = inpaint.pipeline.vae.decoder.register_forward_hook(lambda *call: seen.append(call[2].shape[-2:]))
    try:
        (made,) = inpaint.generate([row()])
    finally:
        hook.remove()
    assert seen == [(1024, 1024)]
    assert made.image_HW3.shape == (48, 48, 3) and made.image_HW3.dtype == np.uint8


@pytest.mark.parametrize("family", sorted(ENGINES))
def test_a_view_that_is_no_square_keeps_its_size(shared, small_world, family):
    request = row(view_HW3=view(96)[:48], mask_HW=np.pad(object_mask(24), ((12, 12), (36, 36))))
    (made,) = shared(family).generate([request])
    assert made.image_HW3.shape == (48, 96, 3)
    assert np.array_equal(made.mask_HW, shared(family).region(request))


@pytest.mark.parametrize("family", sorted(ENGINES))
def test_the_lora_is_fused_and_brings_its_scheduler(tiny_weights, shared, small_world, family, tmp_path):
    lora = pipelines.save_lora(family, tmp_path)
    fused = loaded(family, tiny_weights(family), options={"lora": str(lora)})
    assert fused.pipeline.scheduler.config.shift_terminal is None
    assert difference(fused.generate([row()])[0], shared(family).generate([row()])[0]) > 1


@pytest.mark.parametrize("family", sorted(ENGINES))
def test_a_folder_without_its_processor_is_refused(tiny_weights, tmp_path, family):
    folder = shutil.copytree(tiny_weights(family), tmp_path / "weights")
    (folder / "processor" / "preprocessor_config.json").unlink()
    with pytest.raises(
        UsageError, match=r"processor/preprocessor_config.json is missing; get it with `hf download Qwen"
    ):
        ENGINES[family][0](settings(family, folder)).check()


# Context edits: the whole view.


def test_the_whole_view_is_new_and_the_background_it_had_is_not_seen(shared, small_world):
    around_HW = object_mask() == 0
    plain, moved = row(), row()
    moved.view_HW3[around_HW] = 255 - moved.view_HW3[around_HW]
    first, second = shared("qwen-edit").generate([plain])[0], shared("qwen-edit").generate([moved])[0]
    assert difference(first, second) == 0
    assert (first.mask_HW == 255).all() and first.mask_HW.shape == (48, 48)


def test_the_view_as_it_is_can_be_edited_instead(tiny_weights, small_world):
    engine = loaded("qwen-edit", tiny_weights("qwen-edit"), options={"on_white": False})
    around_HW = object_mask() == 0
    plain, moved = row(), row(mask_HW=np.zeros((48, 48), np.uint8))
    moved.view_HW3[around_HW] = 255 - moved.view_HW3[around_HW]
    first, second = engine.generate([plain, moved])
    assert difference(first, second) > 1


def test_a_row_without_an_object_fails_alone(shared, small_world):
    rows = [row(1), row(mask_HW=np.zeros((48, 48), np.uint8)), row(2)]
    first, empty, last = shared("qwen-edit").generate(rows)
    assert isinstance(empty, ValueError) and "there is no object to place" in str(empty)
    assert difference(last, shared("qwen-edit").generate([row(2)])[0]) <= 1 and difference(first, last) > 1


def test_context_edits_are_no_distractors_and_have_no_control(shared):
    assert shared("qwen-edit").group == "context" and shared("qwen-edit").control(0.3) is None


# Identity edits: graded regions.


@pytest.mark.parametrize(
    ("strength", "steps", "painted"), [(0.4, 10, 4), (0.7, 10, 7), (1.0, 10, 10), (14 / 25, 25, 14), (0.5, 2, 1)]
)
def test_strength_is_the_share_of_steps_that_are_painted(tiny_weights, small_world, strength, steps, painted):
    """14 of 25: the class's own arithmetic gives 15."""
    engine = loaded("qwen-edit-inpaint", tiny_weights("qwen-edit-inpaint"), strength=strength, steps=steps)
    calls = []
    engine.pipeline.transformer.register_forward_hook(lambda *_: calls.append(1))
    engine.generate([row()])
    assert len(calls) == painted


def test_the_region_alone_is_painted_and_the_rest_blended_from_the_view(shared, small_world):
    inpaint = shared("qwen-edit-inpaint")
    request = row(prompt=PROMPTS[0])
    made, again = (inpaint.generate([replace(request, prompt=prompt)])[0] for prompt in PROMPTS)
    assert np.array_equal(made.mask_HW, inpaint.region(request)) and 0 < (made.mask_HW > 0).mean() < 0.5
    changed = np.abs(made.image_HW3.astype(int) - again.image_HW3).max(axis=2)
    # The decoder looks around itself, so that only what is far from the region stays.
    assert changed[made.mask_HW > 0].max() > 4 * max(1, changed[40:, 40:].max())


def test_it_is_a_distractor_engine_with_an_artefact_control(shared):
    control = shared("qwen-edit-inpaint").control(0.5)
    assert (control.name, control.group) == ("qwen-edit-inpaint-40-control", "control")
    assert control.config.strength == 0.5 and shared("qwen-edit-inpaint").group == "extra"


def test_guidance_takes_a_second_pass_a_step(tiny_weights, shared, small_world):
    guided = loaded("qwen-edit-inpaint", tiny_weights("qwen-edit-inpaint"), guidance=4.0)
    calls = []
    guided.pipeline.transformer.register_forward_hook(lambda *_: calls.append(1))
    made = guided.generate([row()])[0]
    assert len(calls) == 2 * guided.config.steps
    assert difference(made, shared("qwen-edit-inpaint").generate([row()])[0]) > 1
