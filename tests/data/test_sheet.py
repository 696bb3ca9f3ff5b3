"""Contact sheets: every picture in its cell, captions below."""

import numpy as np
import pytest

from nearid_ray.data.sheet import contact_sheet, outlined


def flat(colour, height=10, width=10):
    return np.full((height, width, 3), colour, np.uint8)


def test_pictures_stand_in_rows_and_columns_and_keep_their_aspect():
    rows = [[flat((255, 0, 0)), flat((0, 255, 0), 10, 20)], [np.full((10, 10), 255, np.uint8), None]]
    sheet = contact_sheet(rows, cell_px=40)
    assert sheet.shape == (98, 98, 3)  # two cells of 40 and three gaps of 6
    assert sheet[26, 26].tolist() == [255, 0, 0] and sheet[7, 7].tolist() == [255, 0, 0]
    assert sheet[26, 72].tolist() == [0, 255, 0]
    assert sheet[10, 72].tolist() == [255, 255, 255]  # above the wide picture: paper
    assert sheet[72, 26].tolist() == [255, 255, 255]
    assert sheet[72, 72].tolist() == [225, 225, 225]


def test_captions_take_a_line_below_and_never_leave_their_column():
    short = contact_sheet([[flat(0), flat(0)]], [["", ""]], cell_px=60)
    long = contact_sheet([[flat(0), flat(0)]], [["a very long caption that cannot fit into a cell", ""]], cell_px=60)
    assert short.shape == long.shape == (6 + 60 + 6 + 16, 6 + 2 * 66, 3)
    changed = np.argwhere((short != long).any(axis=2))
    assert len(changed) and changed[:, 0].min() >= 66 and changed[:, 1].max() < 72


def test_a_sheet_of_nothing_or_with_captions_of_another_shape_is_refused():
    for rows in ([], [[], []]):
        with pytest.raises(ValueError, match="no pictures"):
            contact_sheet(rows)
    with pytest.raises(ValueError, match="one caption a picture"):
        contact_sheet([[flat(0)]], [["a", "b"]])


def test_the_outline_lies_on_the_masks_inner_edge():
    mask = np.zeros((10, 10), np.uint8)
    mask[2:8, 3:9] = 255
    image = outlined(flat((9, 9, 9)), mask, colour=(1, 2, 3))
    for y in range(10):
        for x in range(10):
            on_edge = mask[y, x] > 0 and (y in (2, 7) or x in (3, 8))
            assert image[y, x].tolist() == ([1, 2, 3] if on_edge else [9, 9, 9])
