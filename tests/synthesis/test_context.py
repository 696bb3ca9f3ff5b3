"""Context edits: the prompts are told apart, and the object stands whole on white as the row's seed says."""

import doctest

import numpy as np
import pytest

from nearid_ray.synthesis import context
from nearid_ray.synthesis.context import BACKGROUNDS, LIGHTINGS, context_prompt, draw_context, place_on_white
from tests.synthesis.tiny.engines import object_mask, view


def test_examples_of_the_prompts_hold():
    assert doctest.testmod(context).failed == 0


def test_there_are_id_sims_eleven_backgrounds_and_eight_lightings_and_every_pair_asks_for_something_else():
    assert (len(BACKGROUNDS), len(LIGHTINGS)) == (11, 8)
    pairs = {context_prompt("mug", place, light) for place in ("", *BACKGROUNDS) for light in LIGHTINGS}
    assert len(pairs) == 12 * 8 and all("the same mug" in prompt for prompt in pairs)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(("moon", ""), "'moon' is not known; expected one of wood"), (("", "x"), "'x' is not"), (("", ""), "neither")],
)
def test_an_unknown_or_empty_wish_is_refused(arguments, said):
    with pytest.raises(ValueError, match=said):
        context_prompt("mug", *arguments)


def test_pairs_are_drawn_by_the_seed_and_all_of_them_come():
    drawn = [draw_context(seed) for seed in range(2000)]
    assert drawn[:50] == [draw_context(seed) for seed in range(50)]
    assert len(set(drawn)) == 11 * 8
    assert {place for place, _ in drawn} == set(BACKGROUNDS) and {light for _, light in drawn} == set(LIGHTINGS)


def test_the_object_is_whole_on_white_between_a_tenth_and_its_own_share():
    large = np.zeros((48, 48), np.uint8)
    large[4:44, 6:40] = 255
    shares, places = [], set()
    for seed in range(200):
        picture, mask = place_on_white(view(), large, seed)
        assert picture.shape == (48, 48, 3) and mask.shape == (48, 48)
        assert (picture[mask == 0] == 255).all()
        rows, columns = np.nonzero(mask)
        # A box stays a box: nothing of it was cut off.
        assert len(rows) == (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
        assert (np.ptp(columns) + 1) / (np.ptp(rows) + 1) == pytest.approx(34 / 40, rel=0.08)
        shares.append((mask > 0).mean())
        places.add((rows[0], columns[0]))
    assert 0.085 < min(shares) < 0.13 and 0.5 < max(shares) <= (large > 0).mean()
    assert len(places) > 100


def test_a_small_object_keeps_its_size_and_its_pixels_and_moves():
    small = np.zeros((48, 48), np.uint8)
    small[10:18, 10:20] = 255
    for seed in range(5):
        picture, mask = place_on_white(view(), small, seed)
        assert np.array_equal(picture[mask > 0], view()[small > 0])
    assert len({place_on_white(view(), small, seed)[1].tobytes() for seed in range(20)}) > 10


def test_the_background_is_gone_and_a_seed_gives_the_same_picture():
    around = object_mask() == 0
    other = view()
    other[around] = 255 - other[around]
    first, second = place_on_white(view(), object_mask(), 3), place_on_white(other, object_mask(), 3)
    assert np.array_equal(first[0], second[0]) and np.array_equal(first[1], second[1])
    assert not np.array_equal(first[0], place_on_white(view(), object_mask(), 4)[0])


def test_an_empty_mask_is_refused():
    with pytest.raises(ValueError, match="the mask is empty: there is no object to place"):
        place_on_white(view(), np.zeros((48, 48), np.uint8), 0)
