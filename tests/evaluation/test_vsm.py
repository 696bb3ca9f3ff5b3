"""VSM against loops over locations."""

import math

import numpy as np
import pytest

from nearid_ray.evaluation.vsm import object_locations, vsm_score


def cosine(a, b):
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


@pytest.mark.parametrize("seed", [0, 1])
def test_score_equals_loops_over_locations(seed):
    random = np.random.default_rng(seed)
    semantic, visual = random.normal(size=(20, 4)), random.normal(size=(20, 3))
    other_semantic, other_visual = random.normal(size=(6, 4)), random.normal(size=(6, 3))
    kept = alike = 0
    for s, v in zip(semantic, visual, strict=True):
        if max(cosine(s, other) for other in other_semantic) > 0.6:
            kept += 1
            alike += max(cosine(v, other) for other in other_visual) > 0.6
    assert 0 < alike < kept < 20
    assert vsm_score(semantic, visual, other_semantic, other_visual) == pytest.approx(alike / kept)


def test_nothing_kept_nothing_there_or_nothing_finite_is_not_valid():
    one = np.eye(2)
    assert vsm_score(one, one, one, one) == 1.0
    assert math.isnan(vsm_score(one, one, one, one, semantic_above=1.0))
    assert math.isnan(vsm_score(one[:0], one[:0], one, one)) and math.isnan(vsm_score(one, one, one[:0], one[:0]))
    assert math.isnan(vsm_score(one, one * np.nan, one, one)) and math.isnan(vsm_score(one * 0, one, one, one))
    with pytest.raises(ValueError, match="2 semantic and 1 visual"):
        vsm_score(one, one[:1], one, one)
    with pytest.raises(ValueError, match="visual features are 2 and 1 wide"):
        vsm_score(one, one, one, one[:, :1])


def test_object_locations_are_those_the_mask_covers_by_half():
    random = np.random.default_rng(0)
    mask = random.random((24, 36)) < 0.5
    share = mask.reshape(4, 6, 6, 6).mean(axis=(1, 3)).reshape(-1)
    assert object_locations(mask, 4, 6).tolist() == np.flatnonzero(share >= 0.5).tolist()
    small = np.zeros((10, 10))
    small[9, 0] = 255
    assert object_locations(small, 3, 3).tolist() == [6]
    assert object_locations(np.ones((7, 5)), 3, 2).tolist() == list(range(6))
