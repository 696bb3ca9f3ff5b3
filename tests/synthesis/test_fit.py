"""What engines paint, at which size, and what cannot be painted."""

import numpy as np
import pytest

from nearid_ray.synthesis.fit import fitted_size, painting_mask, to_engine, to_view
from tests.synthesis.tiny.engines import object_mask, view


@pytest.mark.parametrize(
    ("view_px", "short_px", "multiple_px", "expected"),
    [
        ((512, 512), 512, 8, (512, 512)),
        ((512, 512), 1328, 16, (1328, 1328)),
        ((600, 400), 640, 8, (960, 640)),
        ((400, 600), 640, 8, (640, 960)),
        ((500, 333), 512, 16, (768, 512)),  # 768.8 is rounded to a multiple
        ((64, 64), 512, 16, (512, 512)),
    ],
)
def test_the_shorter_side_is_as_asked_and_the_aspect_is_kept_to_a_multiple(view_px, short_px, multiple_px, expected):
    assert fitted_size(*view_px, short_px, multiple_px) == expected


def test_a_resolution_that_is_no_multiple_is_refused():
    with pytest.raises(ValueError, match="a resolution of 500 px; the model needs a multiple of 16"):
        fitted_size(512, 512, 500, 16)


def test_a_view_smaller_than_a_latent_cell_is_refused():
    with pytest.raises(ValueError, match="7 x 40 px is smaller than one latent cell of 8 px"):
        fitted_size(7, 40, 512, 8)


def test_the_painted_region_is_the_object_without_holes_grown_on_all_sides():
    mask = np.zeros((40, 40), np.uint8)
    mask[15:25, 15:25] = 255
    mask[19:21, 19:21] = 0
    region = painting_mask(mask, 4)
    y, x = np.mgrid[15:25, 15:25]
    for row, column in np.ndindex(40, 40):
        distance = np.sqrt(((y - row) ** 2 + (x - column) ** 2).min())
        if distance <= 3 or distance >= 5:  # a disk of pixels is ragged in between
            assert region[row, column] == (255 if distance <= 3 else 0), (row, column)


def test_without_dilation_the_region_is_the_filled_object():
    mask = object_mask()
    assert np.array_equal(painting_mask(mask, 0), mask)


def test_a_mask_that_covers_nothing_is_refused():
    with pytest.raises(ValueError, match="the mask is empty"):
        painting_mask(np.zeros((32, 32), np.uint8), 12)


@pytest.mark.parametrize("margin_px", [0, 4])
def test_a_region_that_covers_everything_is_refused_also_where_only_the_dilation_makes_it_so(margin_px):
    mask = np.zeros((64, 64), np.uint8)
    mask[margin_px : 64 - margin_px, margin_px : 64 - margin_px] = 255
    with pytest.raises(ValueError, match=r"covers .*% of the view; no context is left"):
        painting_mask(mask, 8)


def test_a_region_between_the_latent_cells_is_refused():
    mask = np.zeros((512, 512), np.uint8)
    mask[101:103, 101:103] = 255
    with pytest.raises(ValueError, match="4 pixels of the view, lies between the latent cells of 8 px at 512 x 512"):
        to_engine(np.zeros((512, 512, 3), np.uint8), mask, 512, 8)


def test_view_and_region_arrive_at_one_size_and_the_region_keeps_its_share():
    picture, mask = to_engine(view(48), object_mask(48), 96, 16)
    assert picture.shape == (96, 96, 3) and mask.shape == (96, 96)
    assert set(np.unique(mask)) == {0, 255}
    assert (mask > 0).mean() == pytest.approx((object_mask(48) > 0).mean(), abs=0.02)


def test_a_picture_comes_back_at_the_views_size():
    small = np.zeros((30, 20, 3), np.uint8)
    assert to_view(np.full((96, 64, 3), 7, np.uint8), small).shape == small.shape
    same = view(48)
    assert np.array_equal(to_view(same, same), same)
