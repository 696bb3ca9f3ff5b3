"""Contact sheets: every picture in its cell, captions below."""

import numpy as np
import pytest

from nearid_ray.data.sheet import MaskedView, contact_sheet, mask_sheet, outlined


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


def test_captions_of_several_lines_stand_below_each_other():
    one = contact_sheet([[flat(0), flat(0)]], [["a", "b"]], cell_px=60)
    two = contact_sheet([[flat(0), flat(0)]], [["a", "b\nc"]], cell_px=60)
    assert two.shape[0] == one.shape[0] + 16
    inked = (two != 255).any(axis=2)
    assert not inked[-16:, :66].any() and inked[-16:, 66:].any()


def test_a_sheet_of_masks_outlines_each_in_its_cell_and_shows_pictures_without_one():
    mask = np.zeros((200, 200), np.uint8)
    mask[50:150, 50:150] = 255
    views = [MaskedView("a", flat(9, 200, 200), mask), MaskedView("b", flat(9, 200, 200), None)]
    sheet = mask_sheet([*views, views[0]], columns=2, cell_px=100)
    assert sheet.shape == (6 + 2 * (100 + 6 + 32), 6 + 2 * 106, 3)
    red = (sheet == (255, 40, 40)).all(axis=2)
    for y, x in np.ndindex(100, 100):
        on_edge = 25 <= y < 75 and 25 <= x < 75 and (y in (25, 74) or x in (25, 74))
        assert red[6 + y, 6 + x] == on_edge
    assert not red[:112, 112:].any()
    with pytest.raises(ValueError, match="no pictures"):
        mask_sheet([])
    with pytest.raises(ValueError, match="columns is 0"):
        mask_sheet(views, columns=0)


def test_the_caption_says_what_is_odd_about_a_mask():
    whole, torn = np.zeros((50, 50), np.uint8), np.zeros((50, 50), np.uint8)
    whole[10:20, 10:20] = 255
    torn[0:5, 10:20] = torn[30:35, 10:20] = 255
    plain, odd = (mask_sheet([MaskedView("", flat(9, 50, 50), mask)], cell_px=160) for mask in (whole, torn))
    line = slice(-16, None)  # 4.0% against 4.0%, 2 pieces, border
    assert (odd[line] != 255).any(axis=2).sum() > 3 * (plain[line] != 255).any(axis=2).sum()


def test_letters_that_the_font_lacks_are_written_without_accents():
    picture = np.zeros((20, 20, 3), np.uint8)
    accented, plain = (contact_sheet([[picture]], [[said]]) for said in ("Dose für Öl, 猫", "Dose fur Ol, ?"))
    assert (accented == plain).all() and not (accented == contact_sheet([[picture]], [["Dose f"]])).all()
