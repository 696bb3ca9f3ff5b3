"""Captions of toybox images."""

import pytest

from nearid_ray.toybox.captions import NOTHING, SLOT_SIZES, SLOTS, caption, caption_words, word_indices
from nearid_ray.toybox.identity import sibling
from nearid_ray.toybox.render import identity_from_seed, rng_from_seed, scene_from_seed


def test_every_word_is_in_its_slots_vocabulary_and_comes_back_from_its_index():
    for seed in range(100):
        identity, scene = identity_from_seed(seed), scene_from_seed(seed)
        words = caption_words(identity, scene.background, scene.light)
        indices = word_indices(words)
        assert (indices >= 0).all() and (indices < SLOT_SIZES).all()
        assert tuple(list(SLOTS.values())[slot][index] for slot, index in enumerate(indices)) == words


def test_words_are_those_of_identity_and_scene():
    identity = identity_from_seed(3)
    words = dict(zip(SLOTS, caption_words(identity, NOTHING, "dim"), strict=True))
    assert words["category"] == identity.category and words["color"] == identity.main.name
    assert words["background"] == NOTHING and words["light"] == "dim"


def test_an_identity_without_decal_has_no_decal_colour():
    bare = next(z for z in map(identity_from_seed, range(100)) if z.decal.kind == "none")
    words = dict(zip(SLOTS, caption_words(bare, "grass", "dim"), strict=True))
    assert words["decal"] == words["decal color"] == "none"


def test_captions_do_not_name_identities():
    """A reshaped object can carry the very caption of its original."""
    words = set()
    for seed in range(400):
        old = identity_from_seed(9)
        new = sibling(rng_from_seed(seed), old, "reshape")
        assert new.form != old.form
        words.add(caption_words(new, "grass", "dim"))
    assert len(words) < 400


def test_the_sentence_says_all_words():
    identity, scene = identity_from_seed(6), scene_from_seed(6)
    text = caption(identity, scene)
    for slot, word in zip(SLOTS, caption_words(identity, scene.background, scene.light), strict=True):
        assert word == "none" or word in text, slot


def test_an_unknown_word_is_refused():
    with pytest.raises(ValueError):
        word_indices(("mug", "red", "plain", "moon", "dim", "blue", "blue", "none", "none"))
