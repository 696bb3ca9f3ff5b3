"""Pasting back and its checks, with planted leaks and explicit loops."""

import math

import numpy as np
import pytest

from nearid_ray.data.difference import background_max_difference, object_mean_difference, verdict
from nearid_ray.synthesis.compose import compose


def pictures(seed: int = 0, size: int = 24) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    view, painted = random.integers(0, 256, (2, size, size, 3), dtype=np.uint8)
    mask = np.zeros((size, size), np.uint8)
    mask[6:20, 4:18] = 1  # any value but zero is inside
    return view, painted, mask


@pytest.mark.parametrize("feather_px", [0, 1, 3.5, 100])
def test_outside_the_mask_every_pixel_is_the_views(feather_px):
    view, painted, mask = pictures()
    image = compose(view, painted, mask, feather_px)
    assert np.array_equal(image[mask == 0], view[mask == 0])
    assert background_max_difference(view, image, mask) == 0


def test_without_feather_every_pixel_inside_is_the_painted_one():
    view, painted, mask = pictures()
    assert np.array_equal(compose(view, painted, mask)[mask > 0], painted[mask > 0])


def test_the_feather_weighs_by_the_distance_to_the_nearest_pixel_outside():
    view, painted, mask = pictures(size=20)
    mask[0, 0] = 0
    image = compose(view, painted, mask, 3)
    outside = np.argwhere(mask == 0)
    for y, x in np.argwhere(mask > 0):
        distance = min(math.hypot(y - v, x - u) for v, u in outside)
        weight = min(1.0, distance / 4)
        for c in range(3):
            expected = float(view[y, x, c]) + weight * (float(painted[y, x, c]) - float(view[y, x, c]))
            assert abs(int(image[y, x, c]) - expected) <= 0.51


def test_the_pictures_own_border_is_not_feathered():
    view, painted, _ = pictures()
    mask = np.full((24, 24), 255, np.uint8)
    assert np.array_equal(compose(view, painted, mask, 5), painted)
    mask[:, 12:] = 0
    assert np.array_equal(compose(view, painted, mask, 5)[:, :6], painted[:, :6])


def test_inputs_stay_as_they_were():
    view, painted, mask = pictures()
    copies = view.copy(), painted.copy(), mask.copy()
    compose(view, painted, mask, 2)
    assert all(np.array_equal(a, b) for a, b in zip((view, painted, mask), copies, strict=True))


@pytest.mark.parametrize("channel", [0, 1, 2])
@pytest.mark.parametrize("place", [(0, 0), (23, 23), (5, 10), (20, 4)])
def test_a_leak_of_one_step_in_one_channel_of_one_pixel_is_found(channel, place):
    view, painted, mask = pictures()
    view[place] = 100
    image = compose(view, painted, mask)
    for step in (-1, 1, 60):
        leaking = image.copy()
        leaking[(*place, channel)] = 100 + step
        assert background_max_difference(view, leaking, mask) == abs(step)


def test_a_mask_over_everything_leaves_no_background_to_differ():
    view, painted, mask = pictures()
    assert background_max_difference(view, painted, np.full_like(mask, 255)) == 0


def test_the_objects_difference_is_the_mean_inside_the_mask():
    view, painted, mask = pictures()
    total = [abs(int(view[y, x, c]) - int(painted[y, x, c])) for y, x in np.argwhere(mask > 0) for c in range(3)]
    assert object_mean_difference(view, painted, mask) == pytest.approx(sum(total) / len(total))
    assert object_mean_difference(view, view, mask) == 0


def test_verdicts_follow_their_thresholds():
    view, painted, mask = pictures()
    assert verdict(view, painted, mask) == "accepted"
    assert verdict(view, view, mask) == "unchanged"
    nearly = np.where(view < 250, view + 3, view).astype(np.uint8)
    difference = object_mean_difference(view, nearly, mask)
    assert verdict(view, nearly, mask, min_difference=difference) == "accepted"
    assert verdict(view, nearly, mask, min_difference=difference + 0.01) == "unchanged"
    for grey in (0, 127, 255):
        flat = view.copy()
        flat[mask > 0] = grey
        assert verdict(view, flat, mask) == "blank"
        flat[10, 10] = 255 - grey // 2
        assert verdict(view, flat, mask) == "accepted"
        assert verdict(view, flat, mask, max_blank_deviation=50) == "blank"


def test_wrong_arguments_are_refused():
    view, painted, mask = pictures()
    with pytest.raises(ValueError, match="same size"):
        compose(view, painted[:-1], mask)
    with pytest.raises(ValueError, match="same size"):
        compose(view, painted.astype(np.float32), mask)
    with pytest.raises(ValueError, match="0 or more"):
        compose(view, painted, mask, -1)
    for check in (object_mean_difference, verdict):
        with pytest.raises(ValueError, match="mask is empty"):
            check(view, painted, np.zeros_like(mask))
