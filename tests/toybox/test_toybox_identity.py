"""What identities are and what each sibling kind changes and keeps."""

from dataclasses import fields

import numpy as np
import pytest

from nearid_ray.toybox.identity import (
    CATEGORIES,
    COLORS,
    DECALS,
    FORM_SIZE,
    KINDS,
    PART_KINDS,
    PATTERNS,
    TRAIN_KINDS,
    WITHHELD_KINDS,
    ToyIdentity,
    description,
    sibling,
)
from nearid_ray.toybox.render import identity_from_seed, rng_from_seed

SEEDS = range(150)

# Kind -> attributes that always change. Everything that is neither here nor in MAY_CHANGE stays exactly as it was.
CHANGES = {
    "redraw": {"second", "accent", "form", "pattern", "decal"},
    "recolor": {"second", "accent", "decal"},
    "retexture": {"pattern", "second", "decal"},
    "reshape": {"form", "second", "accent", "pattern"},
    "restyle": {"form", "pattern", "decal"},
    "redecorate": {"pattern", "accent", "decal"},
    "trim": {"second"},
    "decal": {"decal"},
    "accent": {"accent"},
}
MAY_CHANGE = {"redraw": {"main"}}


def _changed(old: ToyIdentity, new: ToyIdentity) -> set[str]:
    return {field.name for field in fields(old) if getattr(old, field.name) != getattr(new, field.name)}


def _pairs(kind: str):
    for seed in SEEDS:
        old = identity_from_seed(seed)
        yield old, sibling(rng_from_seed(10_000 + seed), old, kind)


def test_every_kind_is_in_exactly_one_group():
    assert sorted(TRAIN_KINDS + WITHHELD_KINDS + PART_KINDS) == sorted(set(KINDS)) == sorted(CHANGES)


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_changes_what_it_says_and_keeps_the_rest(kind):
    for old, new in _pairs(kind):
        changed = _changed(old, new)
        assert CHANGES[kind] <= changed <= CHANGES[kind] | MAY_CHANGE.get(kind, set())


@pytest.mark.parametrize("kind", KINDS)
def test_category_and_main_colour_name_always_stay(kind):
    for old, new in _pairs(kind):
        assert (new.category, new.main.name) == (old.category, old.main.name)


@pytest.mark.parametrize("kind", PART_KINDS)
def test_a_part_level_kind_changes_exactly_one_attribute(kind):
    assert len(CHANGES[kind]) == 1


@pytest.mark.parametrize("kind", sorted(k for k, names in CHANGES.items() if "second" in names))
def test_a_new_second_colour_has_another_name_than_before_and_than_the_main_colour(kind):
    for old, new in _pairs(kind):
        assert new.second.name not in (old.second.name, old.main.name)


@pytest.mark.parametrize("kind", ["retexture", "restyle", "redecorate"])
def test_a_new_pattern_is_of_another_kind(kind):
    assert all(new.pattern.kind != old.pattern.kind for old, new in _pairs(kind))


@pytest.mark.parametrize("kind", ["redraw", "reshape"])
def test_a_new_pattern_style_keeps_the_kind_of_pattern(kind):
    assert all(new.pattern.kind == old.pattern.kind for old, new in _pairs(kind))


@pytest.mark.parametrize("kind", ["redraw", "reshape", "restyle"])
def test_a_new_form_differs_clearly_in_two_proportions(kind):
    for old, new in _pairs(kind):
        assert np.sum(np.abs(np.subtract(old.form, new.form)) > 0.5) >= 2


def test_restyle_keeps_the_three_colours_of_the_object():
    for old, new in _pairs("restyle"):
        for name in ("main", "second", "accent"):
            assert getattr(new, name) == getattr(old, name)


def test_redecorate_recolours_a_decal_and_adds_one_where_there_was_none():
    for old, new in _pairs("redecorate"):
        assert new.decal.kind == old.decal.kind or old.decal.kind == "none" != new.decal.kind
        assert new.decal.color.name != old.decal.color.name


@pytest.mark.parametrize("kind", ["redraw", "recolor", "retexture", "restyle", "decal"])
def test_a_new_decal_is_of_another_kind(kind):
    assert all(new.decal.kind != old.decal.kind for old, new in _pairs(kind))


def test_identities_use_every_word_of_the_vocabulary():
    identities = [identity_from_seed(seed) for seed in range(600)]
    assert {z.category for z in identities} == set(CATEGORIES)
    assert {z.pattern.kind for z in identities} == set(PATTERNS)
    assert {z.decal.kind for z in identities} == set(DECALS)
    for colour in ("main", "second", "accent"):
        assert {getattr(z, colour).name for z in identities} == set(COLORS)


def test_form_and_colours_lie_in_the_unit_range():
    for seed in SEEDS:
        identity = identity_from_seed(seed)
        colors = (identity.main, identity.second, identity.accent, identity.decal.color)
        numbers = [*identity.form, *(value for color in colors for value in color.rgb)]
        assert len(identity.form) == FORM_SIZE
        assert min(numbers) >= 0.0 and max(numbers) <= 1.0


def test_main_colour_differs_from_second_and_accent():
    for seed in SEEDS:
        identity = identity_from_seed(seed)
        assert identity.main.name not in (identity.second.name, identity.accent.name)


def test_the_same_seed_gives_the_same_identity_and_sibling():
    assert identity_from_seed(5) == identity_from_seed(5) != identity_from_seed(6)
    old = identity_from_seed(5)
    assert sibling(rng_from_seed(1), old, "redraw") == sibling(rng_from_seed(1), old, "redraw")


def test_an_unknown_kind_is_refused_by_name():
    with pytest.raises(ValueError, match=r"unknown sibling kind 'repaint'; expected one of redraw, recolor"):
        sibling(rng_from_seed(0), identity_from_seed(0), "repaint")


def test_description_says_colour_pattern_category_and_decal():
    for seed in SEEDS:
        identity = identity_from_seed(seed)
        text = description(identity)
        assert text.startswith(("a ", "an "))
        assert identity.main.name in text and text.count(identity.category) == 1
        assert ("plain" not in text) and (identity.pattern.kind == "plain" or identity.pattern.kind in text)
        assert (" with " in text) == (identity.decal.kind != "none")
