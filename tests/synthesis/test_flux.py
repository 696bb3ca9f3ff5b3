"""FLUX.1 Fill, its partial mode and FLUX.1 Canny on tiny pipelines of the real classes."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from nearid_ray.errors import UsageError
from nearid_ray.synthesis.engines import flux_canny, flux_fill, flux_fill_partial
from nearid_ray.synthesis.engines.flux_fill_partial import cut_mask, draw_partial
from nearid_ray.synthesis.fit import to_engine
from tests.synthesis.tiny.engines import TEXT_TO_PICTURE, difference, engine, object_mask, row, settings, shared_engine

FAMILIES = ("flux-fill", "flux-fill-partial", "flux-canny")
PARTIAL_OPTIONS = flux_fill_partial.SETTINGS[0].options


def weights_of(family: str) -> str:
    return TEXT_TO_PICTURE[family][2]


def test_the_presets_are_the_papers():
    assert [(s.name, s.resolution_px) for s in flux_fill.SETTINGS] == [("flux-fill-512", 512), ("flux-fill-1024", 1024)]
    assert {(s.steps, s.guidance, s.strength, s.group) for s in flux_fill.SETTINGS} == {(50, 30.0, 1.0, "train")}
    assert [s.name for s in flux_canny.SETTINGS] == ["flux-canny-512", "flux-canny-1024"]
    assert {(s.steps, s.guidance, s.strength, s.group) for s in flux_canny.SETTINGS} == {(28, 7.0, 0.99, "extra")}
    (partial,) = flux_fill_partial.SETTINGS
    assert (partial.steps, partial.guidance, partial.resolution_px, partial.group) == (50, 2.5, 720, "part")


@pytest.mark.parametrize(
    ("family", "change"),
    [
        ("flux-fill", {"guidance": 1.0}),
        ("flux-fill", {"strength": 0.5}),
        ("flux-fill", {"steps": 3}),
        ("flux-fill", {"resolution_px": 80}),
        ("flux-fill-partial", {"guidance": 30.0}),
        ("flux-fill-partial", {"options": PARTIAL_OPTIONS | {"strength_low": 0.3, "strength_high": 0.3}}),
        ("flux-fill-partial", {"options": PARTIAL_OPTIONS | {"removed_low": 0.1, "removed_high": 0.1}}),
        ("flux-canny", {"guidance": 1.0}),
        ("flux-canny", {"strength": 0.5}),
        ("flux-canny", {"options": {"canny_low": 250, "canny_high": 2000}}),
    ],
)
def test_what_the_settings_say_reaches_the_pipeline(tiny_weights, family, change):
    folder = tiny_weights(weights_of(family))
    changed = engine(family, folder, **change)
    assert difference(changed.generate([row()])[0], shared_engine(family, folder).generate([row()])[0]) > 1


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("change", [{"prompt": "another blue teapot"}, {"seed": 1}])
def test_what_the_row_says_reaches_the_pipeline(tiny_weights, family, change):
    flux = shared_engine(family, tiny_weights(weights_of(family)))
    assert difference(flux.generate([row(**change)])[0], flux.generate([row()])[0]) > 1


def test_fill_does_not_see_what_lies_under_the_mask_but_what_lies_around_it(tiny_weights):
    fill = shared_engine("flux-fill", tiny_weights("flux-fill"))
    plain, hidden, seen = row(), row(), row()
    around_HW = fill.region(plain) == 0
    hidden.view_HW3[20:26, 20:30] = 0
    seen.view_HW3[around_HW] = 255 - seen.view_HW3[around_HW]
    first, under, around = fill.generate([plain, hidden, seen])
    assert difference(first, under) <= 1  # strength 1: noise alone
    assert difference(first, around) > 3


def test_canny_blends_the_view_in_outside_of_the_mask(tiny_weights):
    canny = shared_engine("flux-canny", tiny_weights("flux-canny"))
    request = row(size_px=96)
    region = canny.region(request)
    (made,) = canny.generate([request])
    picture, _ = to_engine(request.view_HW3, region, 64, 16)
    vae = canny.pipeline.vae
    with torch.no_grad():
        pixels = torch.from_numpy(picture).permute(2, 0, 1)[None] / 127.5 - 1
        through = vae.decode(vae.encode(pixels).latent_dist.mode()).sample[0].permute(1, 2, 0)
    through = cv2.resize(((through.numpy() + 1) * 127.5).clip(0, 255), (96, 96), interpolation=cv2.INTER_LANCZOS4)
    error = np.abs(made.image_HW3 - through).mean(axis=2)
    inner = cv2.erode(region, np.ones((13, 13), np.uint8)) > 0
    outer = cv2.dilate(region, np.ones((25, 25), np.uint8)) == 0
    assert error[outer].mean() < 0.5 * error[inner].mean()


def test_edges_are_those_of_the_steepest_channel_between_the_two_thresholds():
    picture = np.zeros((20, 30, 3), np.uint8)
    picture[:, 10:, 1] = 200  # steep, in green alone
    picture[:, 20:, 2] = 10  # faint
    found = flux_canny.edges(picture, 50, 200)
    assert found.shape == (20, 30, 3) and set(np.unique(found)) == {0, 255}
    columns = np.flatnonzero(found[..., 0].any(axis=0))
    assert len(columns) and all(8 <= column <= 11 for column in columns)


def test_a_partial_rows_draw_follows_from_its_seed_and_fills_the_ranges():
    draws = [draw_partial(seed, (0.5, 0.8), (0.4, 0.6)) for seed in range(400)]
    assert draws == [draw_partial(seed, (0.5, 0.8), (0.4, 0.6)) for seed in range(400)]
    for values, low, high in (([d.strength for d in draws], 0.5, 0.8), ([d.removed for d in draws], 0.4, 0.6)):
        assert low <= min(values) < low + 0.02 and high - 0.02 < max(values) <= high
    counts = [sum(draw.side == side for draw in draws) for side in ("left", "right", "top", "bottom")]
    assert min(counts) > 60


@pytest.mark.parametrize("side", ["left", "right", "top", "bottom"])
@pytest.mark.parametrize("share", [0.4, 0.5, 0.6])
def test_a_cut_leaves_the_share_nearest_to_the_one_asked_for(side, share):
    rng = np.random.default_rng(3)
    mask = np.where(rng.random((24, 31)) < 0.4, np.uint8(255), np.uint8(0))
    stays = cut_mask(mask, side, share)
    shares = {}
    for line in range(1, mask.shape[0 if side in ("top", "bottom") else 1]):
        plane = np.zeros(mask.shape, bool)
        if side == "top":
            plane[:line] = True
        elif side == "bottom":
            plane[-line:] = True
        elif side == "left":
            plane[:, :line] = True
        else:
            plane[:, -line:] = True
        shares[line] = (plane & (mask > 0)).sum() / (mask > 0).sum()
        if np.array_equal(plane, stays):
            found = line
    assert abs(shares[found] - share) == min(abs(value - share) for value in shares.values())


def test_an_object_of_one_line_cannot_be_cut_along_it():
    mask = np.zeros((16, 16), np.uint8)
    mask[5, 2:12] = 255
    with pytest.raises(ValueError, match="too small to be cut from the top"):
        cut_mask(mask, "top", 0.5)


def test_a_partial_row_repaints_the_part_it_names_and_leaves_the_rest(tiny_weights):
    partial = shared_engine("flux-fill-partial", tiny_weights("flux-fill"))
    for seed in range(4):
        (made,) = partial.generate([row(seed)])
        draw = draw_partial(seed, (0.5, 0.8), (0.4, 0.6))
        stays, whole = cut_mask(object_mask(), draw.side, draw.removed), object_mask() > 0
        assert not made.mask_HW[stays].any()
        assert np.array_equal(made.part_mask_HW > 0, whole & ~stays)
        assert made.oracle == pytest.approx((stays & whole).sum() / whole.sum())
        assert made.oracle == pytest.approx(draw.removed, abs=0.06)  # lines of an object of 18 x 24 pixels


def test_a_partial_engine_has_no_artefact_control(tiny_weights):
    assert shared_engine("flux-fill-partial", tiny_weights("flux-fill")).control(0.3) is None


@pytest.mark.parametrize(
    ("family", "change", "said"),
    [
        ("flux-fill", {"negative_prompt": "text"}, "negative_prompt is set, which flux-fill does not support"),
        ("flux-canny", {"negative_prompt": "text"}, "negative_prompt is set, which flux-canny does not support"),
        ("flux-fill-partial", {"strength": 0.6}, "strength is set, which flux-fill-partial does not support"),
        (
            "flux-fill-partial",
            {"options": {}},
            r"options \(none\); expected removed_high, removed_low, strength_high, strength_low",
        ),
        ("flux-canny", {"options": {"canny_low": 9}}, "expected canny_high, canny_low"),
        ("flux-canny", {"options": {"canny_low": 200, "canny_high": 50}}, "canny_low is 200, canny_high 50"),
        ("flux-fill", {"options": {"canny_low": 9}}, "options canny_low; expected none"),
        ("flux-fill", {"resolution_px": 72}, "a resolution of 72 px; the model needs a multiple of 16"),
    ],
)
def test_settings_that_the_class_cannot_follow_are_refused(tiny_weights, family, change, said):
    config = replace(settings(family, tiny_weights(weights_of(family))), **change)
    with pytest.raises(UsageError, match=said):
        TEXT_TO_PICTURE[family][0](config)


def test_a_partial_range_upside_down_is_refused(tiny_weights):
    config = settings("flux-fill-partial", tiny_weights("flux-fill"))
    with pytest.raises(UsageError, match=r"removed is 0\.9 to 0\.6; expected 0 < low <= high < 1"):
        flux_fill_partial.FluxFillPartialEngine(replace(config, options={**config.options, "removed_low": 0.9}))


def test_weights_of_another_flux_model_are_refused_when_they_are_loaded(tiny_weights):
    with pytest.raises(UsageError, match=r"takes 128 channels, that of FLUX\.1 Fill 384; give weights of that model"):
        engine("flux-fill", tiny_weights("flux-canny"))


def test_the_first_block_cache_skips_work_repeats_itself_and_leaves_nothing_behind(tiny_weights):
    folder = tiny_weights("flux-fill")
    # So high a threshold reuses the first step's residual in every later one.
    cached = engine("flux-fill", folder, cache_threshold=1e9)
    rows = [row(0), row(1)]
    first, again = cached.generate(rows), cached.generate(rows)
    assert [difference(a, b) for a, b in zip(first, again, strict=True)] == [0, 0]
    plain = shared_engine("flux-fill", folder).generate(rows)
    assert max(difference(a, b) for a, b in zip(first, plain, strict=True)) > 1
