"""Augmented draws: each operation does what it says, and a draw depends on its name alone."""

import colorsys

import numpy as np
import pytest

from nearid_ray.embedding.augment import AugmentSettings, augment, draw_seed, jittered, moved

NOTHING = AugmentSettings(flip_p=0, jitter_p=0, shift_p=0, scale_p=0)
SIDE = 48


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    y, x = np.mgrid[:SIDE, :SIDE]
    return np.stack([60 + 2 * x, 40 + 3 * y, 90 + x + y], axis=-1).astype(np.uint8)


@pytest.fixture(scope="module")
def mask() -> np.ndarray:
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[10:40, 5:30] = 255
    return mask


def draws(picture: np.ndarray, mask: np.ndarray, settings: AugmentSettings, *, masked: bool = False, count: int = 40):
    for number in range(count):
        seed = draw_seed(f"image {number}", masked=masked, draw=1, settings=settings)
        yield augment(picture, mask, settings, masked=masked, seed=seed)


def test_draw_0_is_the_clean_picture_and_a_copy(picture: np.ndarray, mask: np.ndarray) -> None:
    settings = AugmentSettings(flip_p=1, jitter_p=1, shift_p=1, scale_p=1)
    seed = draw_seed("image", masked=False, draw=0, settings=settings)
    drawn = augment(picture, mask, settings, masked=False, seed=seed)
    assert np.array_equal(drawn, picture)
    assert drawn is not picture


def test_draw_0_masked_has_a_black_background_and_nothing_else_changed(picture: np.ndarray, mask: np.ndarray) -> None:
    settings = AugmentSettings(flip_p=1, jitter_p=1, shift_p=1, scale_p=1)
    drawn = augment(picture, mask, settings, masked=True, seed=None)
    assert np.array_equal(drawn[mask > 0], picture[mask > 0])
    assert not drawn[mask == 0].any()


def test_the_same_name_gives_the_same_bytes_and_each_part_of_it_counts(picture: np.ndarray, mask: np.ndarray) -> None:
    settings = AugmentSettings()
    name = {"masked": False, "draw": 1, "settings": settings}
    seed = draw_seed("image", **name)
    assert draw_seed("image", **name) == seed
    others = [
        draw_seed("other", **name),
        draw_seed("image", **name | {"masked": True}),
        draw_seed("image", **name | {"draw": 2}),
        draw_seed("image", **name | {"settings": AugmentSettings(hue=0.06)}),
    ]
    assert len({seed, *others}) == 5
    first = augment(picture, mask, settings, masked=False, seed=seed)
    assert np.array_equal(augment(picture, mask, settings, masked=False, seed=seed), first)


def test_the_picture_given_is_never_changed(picture: np.ndarray, mask: np.ndarray) -> None:
    before = picture.copy()
    settings = AugmentSettings(flip_p=1, jitter_p=1, shift_p=1, scale_p=1)
    for masked in (False, True):
        list(draws(picture, mask, settings, masked=masked, count=5))
    assert np.array_equal(picture, before)


def test_with_all_probabilities_zero_every_draw_is_clean(picture: np.ndarray, mask: np.ndarray) -> None:
    assert all(np.array_equal(drawn, picture) for drawn in draws(picture, mask, NOTHING))


def test_a_flip_mirrors_left_and_right(picture: np.ndarray, mask: np.ndarray) -> None:
    settings = AugmentSettings(flip_p=1, jitter_p=0, shift_p=0, scale_p=0)
    assert all(np.array_equal(drawn, picture[:, ::-1]) for drawn in draws(picture, mask, settings, count=5))


def test_probabilities_are_met(picture: np.ndarray, mask: np.ndarray) -> None:
    settings = AugmentSettings(flip_p=0.5, jitter_p=0, shift_p=0, scale_p=0)
    flipped = sum(not np.array_equal(drawn, picture) for drawn in draws(picture, mask, settings, count=400))
    assert 150 < flipped < 250


@pytest.mark.parametrize("operation", range(3))
@pytest.mark.parametrize("amount", [-0.2, 0.13])
def test_brightness_contrast_and_saturation_blend_as_defined(
    picture: np.ndarray, operation: int, amount: float
) -> None:
    amounts = np.zeros(4)
    amounts[operation] = amount
    drawn = jittered(picture, amounts, np.arange(4)).astype(float)
    grey = picture @ np.array([0.299, 0.587, 0.114])
    toward = [np.zeros_like(grey), np.full_like(grey, grey.mean()), grey][operation][..., None]
    expected = np.clip(toward + (1 + amount) * (picture - toward), 0, 255)
    assert np.abs(drawn - expected).max() < 1.6


def test_hue_moves_along_the_colour_circle_and_keeps_the_value() -> None:
    colours = np.array([[[200, 40, 40], [40, 200, 60], [30, 60, 220], [250, 240, 10]]], np.uint8)
    drawn = jittered(colours, np.array([0, 0, 0, 0.05]), np.array([3, 0, 1, 2]))
    for before, after in zip(colours[0] / 255, drawn[0] / 255, strict=True):
        hue, _, value = colorsys.rgb_to_hsv(*before)
        moved_hue, _, moved_value = colorsys.rgb_to_hsv(*after)
        assert abs((moved_hue - hue - 0.05 + 0.5) % 1 - 0.5) < 0.01
        assert abs(moved_value - value) < 0.02


def test_the_order_of_the_jitter_matters(picture: np.ndarray) -> None:
    amounts = np.array([0.2, -0.2, 0.2, 0.05])
    one, other = (jittered(picture, amounts, np.array(order)) for order in ((0, 1, 2, 3), (1, 0, 3, 2)))
    assert not np.array_equal(one, other)


def test_jitter_stays_within_its_strengths() -> None:
    flat = np.full((8, 8, 3), 100, np.uint8)
    settings = AugmentSettings(flip_p=0, jitter_p=1, shift_p=0, scale_p=0, contrast=0, saturation=0, hue=0)
    levels = {int(drawn[0, 0, 0]) for drawn in draws(flat, flat[..., 0], settings, count=200)}
    assert min(levels) >= 80
    assert max(levels) <= 120
    assert len(levels) > 25


def test_translation_moves_by_whole_pixels_where_asked() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    drawn = moved(picture, x=0.1, y=-0.05, scale=1.0, black=True)
    assert np.array_equal(drawn[:38, 4:], picture[2:, :36])
    assert not drawn[38:].any()
    assert not drawn[:, :4].any()


def test_scale_keeps_the_centre_and_changes_the_size() -> None:
    picture = np.zeros((61, 61, 3), np.uint8)
    picture[20:41, 20:41] = 255
    for scale in (0.9, 1.1):
        lit = moved(picture, x=0, y=0, scale=scale, black=True)[..., 0] > 127
        rows, columns = np.nonzero(lit)
        assert rows.mean() == columns.mean() == 30
        assert abs(np.sqrt(lit.sum()) - 21 * scale) < 1.1


def test_the_border_is_reflected_or_black_and_always_black_where_masked(picture: np.ndarray, mask: np.ndarray) -> None:
    only_shift = {"flip_p": 0, "jitter_p": 0, "shift_p": 1, "scale_p": 0}
    bright = np.full_like(picture, 200)
    reflected = AugmentSettings(**only_shift)
    assert all((drawn == 200).all() for drawn in draws(bright, mask, reflected, count=10))
    black = AugmentSettings(**only_shift, border="black")
    assert any(not drawn.all() for drawn in draws(bright, mask, black, count=10))
    everywhere = np.full_like(mask, 255)
    assert any(not drawn.all() for drawn in draws(bright, everywhere, reflected, masked=True, count=10))


def test_shift_and_scale_stay_within_their_ranges() -> None:
    picture = np.zeros((101, 101, 3), np.uint8)
    picture[40:61, 40:61] = 255
    settings = AugmentSettings(flip_p=0, jitter_p=0, shift_p=1, scale_p=1)
    for drawn in draws(picture, picture[..., 0], settings, count=60):
        lit = drawn[..., 0] > 127
        rows, columns = np.nonzero(lit)
        assert abs(rows.mean() - 50) <= 10.7
        assert abs(columns.mean() - 50) <= 10.7
        assert 18 <= np.sqrt(lit.sum()) <= 24


def test_changing_one_probability_leaves_the_other_operations_as_they_are(
    picture: np.ndarray, mask: np.ndarray
) -> None:
    with_flip, without = (
        augment(picture, mask, AugmentSettings(flip_p=p, jitter_p=1, shift_p=0, scale_p=0), masked=False, seed=5)
        for p in (1, 0)
    )
    assert np.array_equal(with_flip[:, ::-1], without)


def test_a_masked_draw_without_a_mask_is_refused(picture: np.ndarray, mask: np.ndarray) -> None:
    with pytest.raises(ValueError, match="there is no mask"):
        augment(picture, None, AugmentSettings(), masked=True, seed=None)
    with pytest.raises(ValueError, match="expected the same size"):
        augment(picture, mask[:-1], AugmentSettings(), masked=True, seed=None)


@pytest.mark.parametrize(("name", "value"), [("flip_p", 1.5), ("jitter_p", -0.1), ("hue", 0.6), ("shift", 0.9)])
def test_settings_out_of_range_are_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} is {value}"):
        AugmentSettings(**{name: value})


def test_an_unknown_border_is_refused() -> None:
    with pytest.raises(ValueError, match="border is 'wrap'"):
        AugmentSettings(border="wrap")  # type: ignore[arg-type]
