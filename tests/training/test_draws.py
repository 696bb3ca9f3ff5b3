"""Draws are functions of their name, uniform and independent of each other."""

import numpy as np
import pytest

from nearid_ray.training.draws import uniforms, words


def test_words_follow_from_their_name_alone() -> None:
    together = words(7, np.arange(5)[:, None], np.arange(4))
    for i in range(5):
        for j in range(4):
            assert words(7, i, j) == together[i, j]
    assert len(np.unique(together)) == 20


def test_the_first_word_of_splitmix64_seeded_zero_is_the_published_one() -> None:
    assert words(0).item() == 0xE220A8397B1DCDAF


def test_every_part_and_its_place_matter() -> None:
    base = words(1, 2, 3).item()
    assert base not in {words(0, 2, 3).item(), words(1, 0, 3).item(), words(1, 2, 0).item(), words(2, 1, 3).item()}


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_uniforms_are_uniform_and_uncorrelated_along_every_part(axis: int) -> None:
    parts = [np.uint64(3), np.uint64(5), np.uint64(9)]
    parts[axis] = np.arange(40_000, dtype=np.uint64)
    drawn = uniforms(*parts)
    assert drawn.min() >= 0 and drawn.max() < 1
    count = np.histogram(drawn, bins=50, range=(0, 1))[0]
    assert ((count - 800) ** 2 / 800).sum() < 100
    assert abs(np.corrcoef(drawn[:-1], drawn[1:])[0, 1]) < 0.02


def test_names_must_be_integers() -> None:
    with pytest.raises(ValueError, match="named by integers"):
        words(0.5)
