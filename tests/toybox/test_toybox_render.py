"""Rendering: same numbers, same bytes; masks are exact; part masks and oracles are what they say."""

import hashlib
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from nearid_ray.toybox.identity import CATEGORIES, KINDS, PART_KINDS, sibling
from nearid_ray.toybox.render import (
    SIZE_PX,
    identity_from_seed,
    render,
    render_sibling,
    rng_from_seed,
    scene_from_seed,
    scene_seeds,
    scenes_for,
    sibling_from_seeds,
    views_of,
)
from nearid_ray.toybox.scene import BACKGROUNDS, PHOTO, on_photo, sample_scene

REFERENCE = Path(__file__).with_name("toybox_reference.png")


def _sheet() -> np.ndarray:
    """One object of every category, every other one as a sibling of some kind."""
    images = []
    for index, category in enumerate(CATEGORIES):
        identity = replace(identity_from_seed(index), category=category)
        if index % 2:
            identity = sibling(rng_from_seed(index), identity, KINDS[index // 2])
        images.append(render(identity, scene_from_seed(900 + index))[0])
    return np.concatenate([np.concatenate(images[start : start + 4], axis=1) for start in (0, 4, 8)])


def _digest() -> str:
    return hashlib.sha256(_sheet().tobytes()).hexdigest()


def test_images_are_those_of_the_stored_sheet():
    """Other processors may round a pixel differently, hence a level of tolerance; anything else changes the data."""
    stored = cv2.imread(str(REFERENCE))[..., ::-1]
    difference = np.abs(stored.astype(int) - _sheet())
    assert (difference > 2).mean() < 1e-3
    assert difference.mean() < 0.02


def test_the_same_numbers_give_the_same_bytes_in_another_process():
    code = "import sys; sys.path.insert(0, sys.argv[1]); import test_toybox_render as t; print(t._digest())"
    command = [sys.executable, "-c", code, str(Path(__file__).parent)]
    environment = {**os.environ, "PYTHONHASHSEED": "99", "PYTHONPATH": os.pathsep.join(sys.path)}
    other = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert other.stdout.strip() == _digest()


@pytest.mark.parametrize("kind", KINDS)
def test_outside_the_union_mask_no_pixel_differs(kind):
    for seed in range(80):
        original, original_mask = render(identity_from_seed(seed), scene_from_seed(seed + 500))
        made = sibling_from_seeds(seed, seed + 500, kind, sibling_seed=seed)
        outside = made.union_mask_HW == 0
        assert outside.any() and (made.union_mask_HW[original_mask > 0] == 255).all()
        np.testing.assert_array_equal(original[outside], made.image_HWC[outside])


@pytest.mark.parametrize("kind", KINDS)
def test_every_sibling_differs_visibly_from_its_original(kind):
    for seed in range(80):
        original, _ = render(identity_from_seed(seed), scene_from_seed(seed + 500))
        made = sibling_from_seeds(seed, seed + 500, kind, sibling_seed=seed)
        changed = np.abs(original.astype(int) - made.image_HWC).max(axis=2) > 12
        assert changed.sum() >= 12


@pytest.mark.parametrize("kind", PART_KINDS)
def test_part_mask_and_oracle_count_the_changed_object_pixels(kind):
    for seed in range(80):
        original, mask = render(identity_from_seed(seed), scene_from_seed(seed + 500))
        made = sibling_from_seeds(seed, seed + 500, kind, sibling_seed=seed)
        np.testing.assert_array_equal(made.union_mask_HW, mask)
        changed = 0
        for row in range(SIZE_PX):
            for column in range(SIZE_PX):
                differs = bool((original[row, column] != made.image_HWC[row, column]).any())
                assert (made.part_mask_HW[row, column] == 255) == differs
                assert not differs or mask[row, column] == 255
                changed += differs
        assert made.oracle == pytest.approx(1 - changed / (mask > 0).sum())
        assert 0 < made.oracle < 1


@pytest.mark.parametrize("kind", sorted(set(KINDS) - set(PART_KINDS)))
def test_object_level_kinds_have_no_part_mask_and_no_oracle(kind):
    made = sibling_from_seeds(1, 2, kind, 3)
    assert made.part_mask_HW is None and made.oracle is None


def test_the_mask_covers_exactly_where_the_object_may_differ_from_the_backdrop():
    for seed in range(60):
        scene = scene_from_seed(seed)
        image, mask = render(identity_from_seed(seed), scene)
        assert image.dtype == mask.dtype == np.uint8 and set(np.unique(mask)) == {0, 255}
        np.testing.assert_array_equal(image[mask == 0], scene.backdrop_u8_HWC[mask == 0])
        assert 0.04 < (mask > 0).mean() < 0.75


def test_decals_are_visible_in_every_category():
    for index, category in enumerate(CATEGORIES):
        for seed in range(12):
            identity = replace(identity_from_seed(seed), category=category)
            scene = scene_from_seed(40 + 20 * index + seed)
            made = render_sibling(identity, sibling(rng_from_seed(seed), identity, "decal"), "decal", scene)
            assert (made.part_mask_HW > 0).sum() >= 15


def test_an_identitys_scenes_have_different_backgrounds():
    for seed in range(200):
        scenes = scenes_for(seed)
        assert len(scenes) == views_of(seed) == len({scene.background for scene in scenes})
    assert len({scene.background for scene in scenes_for(3, len(BACKGROUNDS))}) == len(BACKGROUNDS)


def test_a_scene_seed_alone_gives_the_scene_of_the_identitys_view():
    for seed, scene in zip(scene_seeds(7), scenes_for(7), strict=True):
        np.testing.assert_array_equal(scene_from_seed(seed).backdrop_HWC, scene.backdrop_HWC)
        np.testing.assert_array_equal(scene_from_seed(seed).homography_33, scene.homography_33)


def test_fewer_views_are_the_first_of_more_views():
    assert scene_seeds(11, 2) == scene_seeds(11, 3)[:2]


def test_two_of_three_identities_have_two_views():
    counts = np.array([views_of(seed) for seed in range(5000)])
    assert set(counts) == {2, 3}
    assert 0.65 < (counts == 2).mean() < 0.69


def test_excluded_backgrounds_are_never_drawn():
    kept = BACKGROUNDS[4]
    others = [name for name in BACKGROUNDS if name != kept]
    assert {scene_from_seed(seed, SIZE_PX, others).background for seed in range(20)} == {kept}
    with pytest.raises(ValueError, match="all 12 backgrounds are excluded"):
        sample_scene(rng_from_seed(0), SIZE_PX, BACKGROUNDS)


def test_every_background_is_drawn_and_fills_the_image():
    for name in BACKGROUNDS:
        scene = scene_from_seed(1, SIZE_PX, [other for other in BACKGROUNDS if other != name])
        assert scene.backdrop_u8_HWC.shape == (SIZE_PX, SIZE_PX, 3)
        assert np.isfinite(scene.backdrop_HWC).all() and scene.backdrop_u8_HWC.std() > 1


def test_the_pose_is_the_same_at_every_size():
    identity, small, large = identity_from_seed(4), scene_from_seed(4, 64), scene_from_seed(4, 256)
    shrunk = cv2.resize(render(identity, large)[1], (64, 64), interpolation=cv2.INTER_AREA)
    assert ((shrunk > 0) == (render(identity, small)[1] > 0)).mean() > 0.97


def test_an_object_before_a_photo_leaves_the_photo_but_for_its_shadow():
    photo = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    scene = on_photo(scene_from_seed(8), photo)
    image, mask = render(identity_from_seed(8), scene)
    upper = np.zeros((64, 64), bool)
    upper[:20] = True
    clear = upper & (mask == 0)
    assert scene.background == PHOTO and clear.any()
    assert np.abs(image[clear].astype(int) - photo[clear]).max() <= 1
    assert (image.astype(int) <= photo.astype(int) + 1)[mask == 0].all()


@pytest.mark.parametrize("photo", [np.zeros((32, 32, 3), np.uint8), np.zeros((64, 64, 3), np.float32)])
def test_a_photo_of_another_size_or_type_is_refused(photo):
    with pytest.raises(ValueError, match=r"expected uint8 \(64, 64, 3\)"):
        on_photo(scene_from_seed(8), photo)


if __name__ == "__main__":
    cv2.imwrite(str(REFERENCE), _sheet()[..., ::-1])
