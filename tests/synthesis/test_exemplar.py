"""The exemplar engine on drawn scenes: the object is another one, the background is not."""

import cv2
import numpy as np
import pytest

from nearid_ray.data.difference import background_max_difference, object_mean_difference, verdict
from nearid_ray.data.masks import dilate_mask
from nearid_ray.synthesis.compose import compose
from nearid_ray.synthesis.engine import EngineRequest, EngineResult
from nearid_ray.synthesis.engines.exemplar import ExemplarEngine, ExemplarSettings, place_donor

SIZE = 128
RED, BLUE = (200, 30, 30), (30, 60, 210)


def scene(colour: tuple[int, int, int], axes: tuple[int, int], centre: tuple[int, int], ground: int):
    random = np.random.default_rng(ground)
    image = random.integers(ground - 8, ground + 8, (SIZE, SIZE, 3), dtype=np.uint8)
    mask = np.zeros((SIZE, SIZE), np.uint8)
    cv2.ellipse(mask, centre, axes, 0, 0, 360, 255, cv2.FILLED)
    image[mask > 0] = colour
    return image, mask


def request(seed: int = 0, **changes) -> EngineRequest:
    view, mask = scene(RED, (30, 22), (60, 70), 120)
    donor, donor_mask = scene(BLUE, (20, 15), (80, 40), 210)
    fields = {"view_HW3": view, "mask_HW": mask, "donor_HW3": donor, "donor_mask_HW": donor_mask, "seed": seed}
    return EngineRequest(**fields | changes)


def result(asked: EngineRequest, **settings) -> EngineResult:
    made = ExemplarEngine(ExemplarSettings(**settings)).generate([asked])[0]
    assert isinstance(made, EngineResult), made
    return made


def is_like(image: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    return np.abs(image.astype(int) - colour).max(axis=2) < 60


def test_the_old_object_is_gone_and_the_donors_stands_in_its_place():
    asked = request()
    made = result(asked, light=0, tint=0)
    image = compose(asked.view_HW3, made.image_HW3, made.mask_HW)
    assert not is_like(image, RED).any()
    inside = asked.mask_HW > 0
    assert is_like(image, BLUE)[inside].mean() > 0.9
    assert verdict(asked.view_HW3, image, made.mask_HW) == "accepted"
    assert object_mean_difference(asked.view_HW3, image, made.mask_HW) > 40


def test_the_painted_region_is_the_dilated_mask_and_the_rest_is_the_view():
    asked = request()
    made = result(asked, dilation_px=16)
    assert np.array_equal(made.mask_HW, dilate_mask(asked.mask_HW, 4))  # 16 px of 512 are 4 of 128
    assert background_max_difference(asked.view_HW3, made.image_HW3, made.mask_HW) == 0


def test_the_donors_background_does_not_come_along():
    asked = request()
    made = result(asked, light=0, tint=0)
    assert not is_like(made.image_HW3, (235, 235, 235)).any()
    assert (made.image_HW3.min(axis=2) > 190).mean() == 0  # the donor's ground is 210, the view's 120


def test_the_same_request_gives_the_same_picture():
    assert np.array_equal(result(request(3)).image_HW3, result(request(3)).image_HW3)


def test_requests_are_answered_in_order_and_a_bad_one_alone_fails():
    empty = np.zeros((SIZE, SIZE), np.uint8)
    asked = [request(), request(donor_HW3=None), request(mask_HW=empty), request(donor_mask_HW=empty), request()]
    made = ExemplarEngine().generate(asked)
    assert [isinstance(m, EngineResult) for m in made] == [True, False, False, False, True]
    assert "needs a donor" in str(made[1]) and "empty" in str(made[2]) and "empty" in str(made[3])


def half_disk() -> tuple[np.ndarray, np.ndarray]:
    """A donor whose left half is blue and whose right half is green."""
    donor, mask = scene(BLUE, (24, 16), (64, 64), 210)
    donor[:, 64:][mask[:, 64:] > 0] = (30, 200, 60)
    return donor, mask


def test_the_seed_mirrors_the_donor_only_where_it_is_asked_to():
    donor, mask = half_disk()
    pictures = {
        (flip, seed): result(request(seed, donor_HW3=donor, donor_mask_HW=mask), flip=flip).image_HW3
        for flip in ("seed", "never")
        for seed in (0, 1)
    }
    assert np.array_equal(pictures["never", 0], pictures["never", 1])
    assert np.array_equal(pictures["never", 0], pictures["seed", 0])
    left_is_blue = [int(pictures["seed", s][70, 45, 2]) > int(pictures["seed", s][70, 45, 1]) for s in (0, 1)]
    assert left_is_blue == [True, False]


def test_the_donor_is_mirrored_where_that_fits_better():
    wedge = np.zeros((SIZE, SIZE), np.uint8)
    cv2.fillPoly(wedge, [np.array([[20, 100], [110, 100], [110, 30]])], 255)
    view, _ = scene(RED, (1, 1), (5, 5), 120)
    view[wedge > 0] = RED
    donor = np.full((SIZE, SIZE, 3), 210, np.uint8)
    donor[wedge[:, ::-1] > 0] = BLUE
    asked = request(view_HW3=view, mask_HW=wedge, donor_HW3=donor, donor_mask_HW=np.ascontiguousarray(wedge[:, ::-1]))
    covered = {
        f: is_like(result(asked, flip=f, light=0, tint=0).image_HW3, BLUE)[wedge > 0].mean() for f in ("fit", "never")
    }
    assert covered["fit"] > 0.9 > covered["never"] + 0.1


def test_a_donor_of_the_same_shape_is_placed_exactly():
    region = np.zeros((SIZE, SIZE), np.uint8)
    region[30:90, 20:70] = 255
    place = place_donor(region, np.full((120, 100), 255, np.uint8), spill_cost=1.0, max_stretch=1.0)
    assert np.allclose(place[:4], (20 / 128, 30 / 128, 50 / 128, 60 / 128), atol=0.02)
    assert place.score > 0.9


def test_a_higher_spill_cost_cuts_less_of_the_donor_off():
    region = np.zeros((SIZE, SIZE), np.uint8)
    cv2.ellipse(region, (64, 64), (50, 12), 0, 0, 360, 255, cv2.FILLED)
    shape = np.full((60, 60), 255, np.uint8)
    sizes = [place_donor(region, shape, spill_cost=c, max_stretch=1.0).width for c in (0.3, 1.0, 5.0)]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] > sizes[2]


def test_the_aspect_is_kept_unless_stretching_is_allowed():
    region = np.zeros((SIZE, SIZE), np.uint8)
    region[50:80, 10:110] = 255
    shape = np.full((50, 100), 255, np.uint8)
    exact = place_donor(region, shape, spill_cost=1.0, max_stretch=1.0)
    assert exact.width / exact.height == pytest.approx(2, rel=0.06)
    stretched = place_donor(region, shape, spill_cost=1.0, max_stretch=2.0)
    assert stretched.width / stretched.height == pytest.approx(4, rel=0.1)
    assert stretched.score > exact.score


def test_light_moves_the_donors_brightness_towards_the_old_objects():
    donor, mask = scene((60, 60, 60), (20, 15), (80, 40), 210)
    view, view_mask = scene((230, 230, 230), (30, 22), (60, 70), 120)
    brightness = []
    for light in (0.0, 0.5, 1.0):
        asked = request(view_HW3=view, mask_HW=view_mask, donor_HW3=donor, donor_mask_HW=mask)
        made = result(asked, light=light, tint=0)
        brightness.append(float(made.image_HW3[70, 60].mean()))
    assert brightness[0] == pytest.approx(60, abs=2) and brightness[2] == pytest.approx(230, abs=4)
    assert brightness[0] + 50 < brightness[1] < brightness[2] - 50


def test_objects_at_the_border_and_small_pictures_work():
    view, mask = scene(RED, (40, 40), (0, 64), 120)
    donor, donor_mask = scene(BLUE, (50, 30), (127, 127), 210)
    made = result(request(view_HW3=view, mask_HW=mask, donor_HW3=donor, donor_mask_HW=donor_mask))
    assert made.image_HW3.shape == view.shape
    small = [np.ascontiguousarray(a[::4, ::4]) for a in (view, mask, donor, donor_mask)]
    made = result(request(view_HW3=small[0], mask_HW=small[1], donor_HW3=small[2], donor_mask_HW=small[3]))
    assert made.image_HW3.shape == (32, 32, 3)


def test_every_setting_is_recorded_and_checked():
    assert ExemplarEngine(ExemplarSettings(tint=0.9)).settings["tint"] == 0.9
    assert ExemplarEngine().settings.keys() == ExemplarSettings.__dataclass_fields__.keys()
    for wrong in ({"dilation_px": -1}, {"edge_px": 999}, {"light": 2}, {"tint": -1}, {"spill_cost": 0},
                  {"max_stretch": 0.5}, {"flip": "yes"}, {"fill": "sdxl"}):  # fmt: skip
        with pytest.raises(ValueError, match=next(iter(wrong))):
            ExemplarSettings(**wrong)
