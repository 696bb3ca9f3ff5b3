"""Captions of toybox images: nine slots of words, what an alt text would say about a picture.

A caption never names an identity: two identities can share all nine words, and siblings of a kind that only changes
shades, form or pattern style do.
"""

import numpy as np

from nearid_ray.toybox.identity import CATEGORIES, COLORS, DECALS, PATTERNS, ToyIdentity
from nearid_ray.toybox.scene import BACKGROUNDS, LIGHTS, Scene

#: Background word of images whose background was blacked out.
NOTHING = "nothing"

#: Slot -> its vocabulary, in the order of the columns of a caption.
SLOTS: dict[str, tuple[str, ...]] = {
    "category": CATEGORIES,
    "color": COLORS,
    "pattern": PATTERNS,
    "background": (*BACKGROUNDS, NOTHING),
    "light": LIGHTS,
    "second color": COLORS,
    "accent": COLORS,
    "decal": DECALS,
    "decal color": (*COLORS, "none"),
}
SLOT_SIZES = tuple(len(words) for words in SLOTS.values())


def caption_words(identity: ToyIdentity, background: str, light: str) -> tuple[str, ...]:
    """The nine words of a picture, in the order of SLOTS."""
    decal = identity.decal
    return (
        identity.category,
        identity.main.name,
        identity.pattern.kind,
        background,
        light,
        identity.second.name,
        identity.accent.name,
        decal.kind,
        "none" if decal.kind == "none" else decal.color.name,
    )


def word_indices(words: tuple[str, ...]) -> np.ndarray:
    """Words as their places in the vocabularies of SLOTS, int64 (9,)."""
    pairs = zip(SLOTS.values(), words, strict=True)
    return np.array([vocabulary.index(word) for vocabulary, word in pairs], np.int64)


def caption(identity: ToyIdentity, scene: Scene) -> str:
    """The same as a sentence."""
    category, color, pattern, background, light, second, accent, decal, decal_color = caption_words(
        identity, scene.background, scene.light
    )
    sign = "" if decal == "none" else f" and a {decal_color} {decal}"
    return (
        f"{color} {category}, {pattern} with {second}, {accent} trimmings{sign}, before {background}, in {light} light"
    )
