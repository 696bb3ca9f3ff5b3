"""SDXL inpainting on a tiny pipeline of the real class: every argument reaches it, and the mask means what it says."""

from dataclasses import replace

import numpy as np
import pytest

from nearid_ray.errors import UsageError
from nearid_ray.synthesis.engines.sdxl import SETTINGS, SdxlEngine
from tests.synthesis.tiny.engines import difference, engine, row, settings, shared_engine


def test_the_presets_are_the_papers():
    assert [(s.name, s.resolution_px) for s in SETTINGS] == [("sdxl-512", 512), ("sdxl-1024", 1024)]
    for preset in SETTINGS:
        assert (preset.steps, preset.guidance, preset.strength, preset.group) == (30, 8.0, 0.99, "unseen")
        assert "watermark" in preset.negative_prompt and "text" in preset.negative_prompt


@pytest.mark.parametrize("change", [{"strength": 0.5}, {"guidance": 2.0}, {"steps": 3}, {"resolution_px": 72}])
def test_what_the_settings_say_reaches_the_pipeline(tiny_weights, change):
    folder = tiny_weights("sdxl")
    changed = engine("sdxl", folder, **change)
    assert difference(changed.generate([row()])[0], shared_engine("sdxl", folder).generate([row()])[0]) > 2


@pytest.mark.parametrize("change", [{"prompt": "another blue teapot"}, {"negative_prompt": "blurry"}, {"seed": 1}])
def test_what_the_row_says_reaches_the_pipeline(tiny_weights, change):
    sdxl = shared_engine("sdxl", tiny_weights("sdxl"))
    assert difference(sdxl.generate([row(**change)])[0], sdxl.generate([row()])[0]) > 2


def test_white_is_painted_what_lies_under_it_is_not_seen_and_what_lies_around_it_is(tiny_weights):
    sdxl = engine("sdxl", tiny_weights("sdxl"), strength=1.0)
    plain, hidden, seen = row(), row(), row()
    around_HW = sdxl.region(plain) == 0
    hidden.view_HW3[20:26, 20:30] = 0
    seen.view_HW3[around_HW] = 255 - seen.view_HW3[around_HW]
    first, under, around = sdxl.generate([plain, hidden, seen])
    assert np.array_equal(first.mask_HW > 0, ~around_HW)
    # Strength 1 starts from noise alone, so the hole's pixels can reach the model by the mask alone.
    assert difference(first, under) <= 1
    assert difference(first, around) > 3


def test_no_watermark_is_drawn_whatever_is_installed(tiny_weights):
    assert shared_engine("sdxl", tiny_weights("sdxl")).pipeline.watermark is None


@pytest.mark.parametrize("change", [{"attention": "native"}, {"cache_threshold": 0.1}])
def test_what_its_unet_cannot_do_is_refused(tiny_weights, change):
    with pytest.raises(UsageError, match="which sdxl does not support; it supports compile, negative_prompt, strength"):
        SdxlEngine(replace(settings("sdxl", tiny_weights("sdxl")), **change))
