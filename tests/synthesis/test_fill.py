"""Filling holes from the surroundings."""

import numpy as np
import pytest

from nearid_ray.synthesis.fill import fill_patches, fill_smooth


def striped(size: int = 128) -> np.ndarray:
    y, x = np.mgrid[:size, :size]
    stripes = ((x // 8) % 2 * 160 + 40)[..., None] + np.array([0, 20, 50])
    return np.clip(stripes + (y[..., None] % 2), 0, 255).astype(np.uint8)


def hole(size: int = 128) -> np.ndarray:
    mask = np.zeros((size, size), np.uint8)
    mask[40:90, 45:80] = 255
    return mask


@pytest.mark.parametrize("fill", [fill_patches, fill_smooth])
def test_outside_the_hole_nothing_changes_and_inside_nothing_of_the_object_stays(fill):
    view, mask = striped(), hole()
    with_object = view.copy()
    with_object[mask > 0] = (255, 0, 0)
    filled = fill(with_object, mask)
    assert np.array_equal(filled[mask == 0], view[mask == 0])
    red = filled.astype(int)[..., 0] - filled.astype(int)[..., 1]
    assert red.max() < 40  # the object is 255, the stripes at most 0
    other = view.copy()
    other[mask > 0] = np.random.default_rng(0).integers(0, 256, (int((mask > 0).sum()), 3))
    assert np.abs(fill(other, mask).astype(int) - filled).max() == 0  # what was in the hole plays no part


def test_texture_goes_on_into_the_hole():
    view, mask = striped(), hole()
    filled = fill_patches(np.where(mask[..., None] > 0, np.uint8(0), view), mask)
    error = np.abs(filled.astype(int) - view)[mask > 0].mean()
    smooth = np.abs(fill_smooth(np.where(mask[..., None] > 0, np.uint8(0), view), mask).astype(int) - view)
    assert error < 20 and error < smooth[mask > 0].mean() / 2


@pytest.mark.parametrize("shape", [(40, 40), (300, 150), (9, 9)])
def test_pictures_of_other_sizes_are_filled(shape):
    random = np.random.default_rng(1)
    view = random.integers(90, 110, (*shape, 3), dtype=np.uint8)
    mask = np.zeros(shape, np.uint8)
    mask[shape[0] // 3 : shape[0] // 2, shape[1] // 3 : shape[1] // 2] = 255
    filled = fill_patches(np.where(mask[..., None] > 0, np.uint8(255), view), mask)
    assert filled.shape == view.shape and filled.max() < 130


def test_nearly_everything_may_be_hole_but_not_everything():
    view, mask = striped(64), np.full((64, 64), 255, np.uint8)
    mask[0, :] = 0
    assert fill_patches(view, mask).shape == view.shape
    for fill in (fill_patches, fill_smooth):
        with pytest.raises(ValueError, match="whole picture"):
            fill(view, np.full((64, 64), 255, np.uint8))


def test_no_hole_gives_the_picture_back():
    view = striped()
    assert np.array_equal(fill_patches(view, np.zeros((128, 128), np.uint8)), view)


def test_the_same_picture_is_filled_the_same_way():
    view, mask = striped(), hole()
    assert np.array_equal(fill_patches(view, mask), fill_patches(view, mask))
