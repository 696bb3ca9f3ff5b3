"""Mask quality, cleaning and GrabCut on drawn scenes whose true mask is known."""

import cv2
import numpy as np
import pytest

from nearid_ray.data.masks import check_mask, clean_mask, dilate_mask, fill_holes, grabcut_mask, mask_quality


def empty(size: int = 100) -> np.ndarray:
    return np.zeros((size, size), np.uint8)


def scene(seed: int, size: int = 200, noise: float = 6.0) -> tuple[np.ndarray, np.ndarray]:
    """A two-coloured blob off the centre on a shaded, noisy ground, and its mask."""
    random = np.random.default_rng(seed)
    ground, dark, light = random.permutation([[70, 110, 60], [170, 60, 50], [225, 190, 90]])
    y, x = np.mgrid[:size, :size]
    image = np.empty((size, size, 3))
    image[:] = ground
    image += ((x + y)[..., None] / size - 1) * 25
    mask = empty(size)
    centre = tuple(int(v) for v in size * random.uniform(0.42, 0.58, 2))
    axes = tuple(int(v) for v in size * random.uniform(0.15, 0.28, 2))
    cv2.ellipse(mask, centre, axes, float(random.uniform(0, 180)), 0, 360, 255, cv2.FILLED)
    image[mask > 0] = dark
    image[(mask > 0) & (y < centre[1])] = light
    image += random.normal(0, noise, image.shape)
    return np.clip(image, 0, 255).astype(np.uint8), mask


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    return float(((a > 0) & (b > 0)).sum() / ((a > 0) | (b > 0)).sum())


def test_quality_counts_area_pieces_and_border():
    mask = empty(10)
    assert mask_quality(mask) == (0.0, 0, False)
    mask[2:4, 2:4] = 255
    mask[4, 4] = 255  # joined by a corner
    mask[7, 5] = 255
    assert mask_quality(mask) == (pytest.approx(0.06), 2, False)
    for y, x in ((0, 5), (9, 5), (5, 0), (5, 9)):
        touching = mask.copy()
        touching[y, x] = 1
        assert mask_quality(touching).touches_border


def test_empty_and_full_masks_are_refused():
    with pytest.raises(ValueError, match="empty"):
        check_mask(empty())
    full = np.full((100, 100), 255, np.uint8)
    with pytest.raises(ValueError, match=r"covers 100\.0%"):
        check_mask(full)
    full[:3] = 0
    check_mask(full)


def test_dilation_adds_every_pixel_within_the_radius():
    mask = empty(41)
    mask[20, 20] = 7
    y, x = np.mgrid[:41, :41]
    distance = np.hypot(y - 20, x - 20)
    grown = dilate_mask(mask, 6) > 0
    assert grown[distance <= 5].all() and not grown[distance > 6.8].any()
    assert np.array_equal(dilate_mask(mask, 0), (mask > 0) * np.uint8(255))
    with pytest.raises(ValueError, match="0 or more"):
        dilate_mask(mask, -1)


def test_holes_are_filled_and_bays_are_not():
    ring = empty()
    cv2.circle(ring, (50, 50), 30, 255, 8)
    assert fill_holes(ring)[50, 50] == 255
    ring[50:, 47:53] = 0
    assert fill_holes(ring)[50, 50] == 0


def test_cleaning_drops_specks_and_far_pieces_and_closes_gaps():
    mask = empty()
    mask[30:70, 30:49] = 255
    mask[30:70, 51:70] = 255  # a gap of two pixels
    mask[40:50, 35:45] = 0  # a hole
    mask[2:8, 2:8] = 255  # a small piece in the corner
    mask[80, 80] = 255  # a speck
    cleaned = clean_mask(mask)
    expected = empty()
    expected[30:70, 30:70] = 255
    assert overlap(cleaned, expected) > 0.97
    assert mask_quality(cleaned).pieces == 1
    assert not clean_mask(empty()).any()


def test_cleaning_keeps_an_object_at_the_border():
    mask = empty()
    mask[60:, 20:80] = 255
    assert overlap(clean_mask(mask), mask) > 0.97


@pytest.mark.parametrize("seed", range(4))
def test_grabcut_finds_a_coloured_object(seed):
    image, true = scene(seed)
    assert overlap(grabcut_mask(image), true) > 0.9


def test_grabcut_gives_the_same_mask_every_time_and_leaves_the_photo_alone():
    image, _ = scene(5)
    before = image.copy()
    first = grabcut_mask(image)
    cv2.setRNGSeed(99)
    assert np.array_equal(first, grabcut_mask(image))
    assert np.array_equal(image, before)
    assert set(np.unique(first)) == {0, 255}


def test_grabcut_works_on_photos_of_any_shape():
    image, true = scene(1, size=120)
    wide = cv2.copyMakeBorder(image, 0, 0, 60, 60, cv2.BORDER_REPLICATE)
    mask = grabcut_mask(wide)
    assert mask.shape == (120, 240)
    assert overlap(mask[:, 60:180], true) > 0.85


def test_a_photo_without_an_object_or_too_small_is_refused():
    with pytest.raises(ValueError, match=r"no object|covers|empty"):
        grabcut_mask(np.full((80, 80, 3), 128, np.uint8))
    with pytest.raises(ValueError, match="at least 16"):
        grabcut_mask(np.zeros((40, 9, 3), np.uint8))


def test_masks_of_another_type_are_refused():
    for wrong in (np.zeros((4, 4)), np.zeros((4, 4, 1), np.uint8)):
        with pytest.raises(ValueError, match="expected uint8 of shape"):
            mask_quality(wrong)
