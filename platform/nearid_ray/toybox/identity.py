"""Toybox identities: what one procedural object is, and how a near-identical but different one is derived from it.

An identity is a handful of words (category, colours, pattern, decal) and numbers (form, shades, pattern style). A
sibling shares the category and the name of the main colour always; its kind says which other attributes change.
"""

import colorsys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

CATEGORIES = (
    "mug", "vase", "bottle", "lamp", "teapot", "hat", "umbrella", "boot", "car", "backpack", "chair", "robot",
)  # fmt: skip
PATTERNS = ("plain", "striped", "dotted", "checked", "zigzag", "wavy", "ringed", "speckled")
DECALS = ("none", "disc", "square", "triangle", "star", "heart", "ring", "cross", "bar")

#: Palette name -> (hue in degrees, saturation, value).
PALETTE: dict[str, tuple[float, float, float]] = {
    "red": (0, 0.82, 0.80),
    "orange": (28, 0.88, 0.92),
    "yellow": (52, 0.82, 0.93),
    "green": (122, 0.62, 0.58),
    "teal": (176, 0.66, 0.64),
    "blue": (222, 0.76, 0.76),
    "purple": (276, 0.56, 0.64),
    "pink": (332, 0.44, 0.93),
    "brown": (24, 0.62, 0.40),
    "white": (45, 0.05, 0.95),
    "grey": (210, 0.06, 0.55),
    "black": (240, 0.12, 0.15),
}
COLORS = tuple(PALETTE)

#: Number of form parameters of every category, each in [0, 1].
FORM_SIZE = 5

#: Object-level kinds (several attributes change) that play the engines of training.
TRAIN_KINDS = ("redraw", "recolor", "retexture", "reshape")
#: Object-level kinds that combine the attributes differently and never train: the unseen engines.
WITHHELD_KINDS = ("restyle", "redecorate")
#: Part-level kinds: exactly one attribute changes.
PART_KINDS = ("trim", "decal", "accent")
KINDS = TRAIN_KINDS + WITHHELD_KINDS + PART_KINDS

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class NamedColor:
    """A palette name and one concrete shade of it."""

    name: str
    rgb: tuple[float, float, float]
    """Each in [0, 1]."""


@dataclass(frozen=True, kw_only=True)
class Pattern:
    """The surface pattern that mixes the second colour into the main one."""

    kind: str
    frequency: float
    """Relative frequency, 1.6 (coarse) to 4.2 (fine)."""
    angle_rad: float
    phase: float
    """In [0, 1)."""
    duty: float
    """Share of the second colour, 0.3 to 0.7."""
    grain: int
    """Which speckle field, for kind "speckled"."""


@dataclass(frozen=True, kw_only=True)
class Decal:
    """A flat sign on the body."""

    kind: str
    shift_x: float
    """Place relative to the category's decal place, in decal sizes, -0.35 to 0.35."""
    shift_y: float
    size: float
    """Relative to the category's decal size, 0.75 to 1.1."""
    color: NamedColor


@dataclass(frozen=True, kw_only=True)
class ToyIdentity:
    """One object."""

    category: str
    main: NamedColor
    second: NamedColor
    """Colour of the pattern (of the lower band where the pattern is plain)."""
    accent: NamedColor
    """Colour of handles, caps, soles, legs and the like."""
    form: tuple[float, ...]
    """FORM_SIZE proportions, each in [0, 1]; what they mean depends on the category."""
    pattern: Pattern
    decal: Decal


def sample_identity(rng: np.random.Generator) -> ToyIdentity:
    """Draw an identity; category, colours, pattern and form are uniform, one in five has no decal."""
    category = pick(rng, CATEGORIES)
    main = pick(rng, COLORS)
    second = pick(rng, COLORS, but=(main,))
    accent = pick(rng, COLORS, but=(main,))
    return ToyIdentity(
        category=category,
        main=shade_of(rng, main),
        second=shade_of(rng, second),
        accent=shade_of(rng, accent),
        form=_form(rng),
        pattern=_pattern(rng, pick(rng, PATTERNS)),
        decal=_decal(rng, "none" if rng.random() < 0.2 else pick(rng, DECALS[1:]), avoid=(main, second)),
    )


def sibling(rng: np.random.Generator, identity: ToyIdentity, kind: str) -> ToyIdentity:
    """A different object that is easily taken for `identity`.

    Object-level, training: `redraw` keeps only the words for category, main colour and pattern; `recolor` changes
    second colour, accent and decal; `retexture` pattern, second colour and decal; `reshape` form, second colour,
    accent and the pattern's style. Object-level, withheld: `restyle` changes form, pattern and decal and keeps the
    object's three colours; `redecorate` changes pattern, accent and the decal's colour (or adds one).
    Part-level: `trim` changes the second colour, `decal` the decal, `accent` the accent, and nothing else.

    Raises ValueError for an unknown kind.
    """
    if kind not in KINDS:
        raise ValueError(f"unknown sibling kind {kind!r}; expected one of {', '.join(KINDS)}")
    return _SIBLINGS[kind](rng, identity)


def description(identity: ToyIdentity) -> str:
    """The text of a dataset row, such as "a red striped mug with a white star"."""
    surface = "" if identity.pattern.kind == "plain" else f" {identity.pattern.kind}"
    text = f"{_article(identity.main.name)} {identity.main.name}{surface} {identity.category}"
    if identity.decal.kind == "none":
        return text
    return f"{text} with {_article(identity.decal.color.name)} {identity.decal.color.name} {identity.decal.kind}"


def pick(rng: np.random.Generator, options: Sequence[T], but: Sequence[T] = ()) -> T:
    """One of `options`, uniformly, leaving out those in `but`."""
    if but:
        options = [option for option in options if option not in but]
    return options[int(rng.random() * len(options))]


def shade_of(rng: np.random.Generator, name: str, spread: float = 1.0) -> NamedColor:
    """One shade of a palette colour; `spread` scales how far it may lie from the palette's own."""
    hue_deg, saturation, value = PALETTE[name]
    d_hue, d_saturation, d_value = ((rng.random(3) * 2 - 1) * spread).tolist()
    if saturation > 0.15:
        saturation = min(max(saturation + 0.10 * d_saturation, 0.0), 1.0)
    value = min(max(value + 0.08 * d_value, 0.06), 1.0)
    return NamedColor(name=name, rgb=colorsys.hsv_to_rgb(((hue_deg + 9 * d_hue) % 360) / 360, saturation, value))


def _form(rng: np.random.Generator) -> tuple[float, ...]:
    return tuple(rng.random(FORM_SIZE).tolist())


def _far_form(rng: np.random.Generator, form: tuple[float, ...]) -> tuple[float, ...]:
    """A form of which at least two proportions differ by more than half of their range."""
    for _ in range(100):
        candidate = _form(rng)
        if sum(abs(new - old) > 0.5 for new, old in zip(candidate, form, strict=True)) >= 2:
            return candidate
    return tuple(1.0 - value for value in form)


def _pattern(rng: np.random.Generator, kind: str) -> Pattern:
    frequency, slant, phase, duty = rng.random(4).tolist()
    return Pattern(
        kind=kind,
        frequency=1.6 + 2.6 * frequency,
        angle_rad=float(rng.integers(4)) * np.pi / 4 + 0.24 * (slant - 0.5),
        phase=phase,
        duty=0.3 + 0.4 * duty,
        grain=int(rng.integers(8)),
    )


def _decal(rng: np.random.Generator, kind: str, avoid: Sequence[str]) -> Decal:
    shift_x, shift_y, size = rng.random(3).tolist()
    return Decal(
        kind=kind,
        shift_x=0.7 * (shift_x - 0.5),
        shift_y=0.7 * (shift_y - 0.5),
        size=0.75 + 0.35 * size,
        color=shade_of(rng, pick(rng, COLORS, but=avoid)),
    )


def _other_decal(rng: np.random.Generator, identity: ToyIdentity) -> Decal:
    old = identity.decal
    kinds = [kind for kind in DECALS if kind != old.kind]
    kind = "none" if old.kind != "none" and rng.random() < 0.12 else pick(rng, kinds, but=("none",))
    return _decal(rng, kind, avoid=(identity.main.name, identity.second.name, old.color.name))


def _other_color(rng: np.random.Generator, old: NamedColor, main: NamedColor) -> NamedColor:
    return shade_of(rng, pick(rng, COLORS, but=(old.name, main.name)))


def _redraw(rng: np.random.Generator, old: ToyIdentity) -> ToyIdentity:
    return replace(
        old,
        main=shade_of(rng, old.main.name),
        second=_other_color(rng, old.second, old.main),
        accent=_other_color(rng, old.accent, old.main),
        form=_far_form(rng, old.form),
        pattern=_pattern(rng, old.pattern.kind),
        decal=_other_decal(rng, old),
    )


def _recolor(rng: np.random.Generator, old: ToyIdentity) -> ToyIdentity:
    return replace(
        old,
        second=_other_color(rng, old.second, old.main),
        accent=_other_color(rng, old.accent, old.main),
        decal=_other_decal(rng, old),
    )


def _retexture(rng: np.random.Generator, old: ToyIdentity) -> ToyIdentity:
    return replace(
        old,
        pattern=_pattern(rng, pick(rng, PATTERNS, but=(old.pattern.kind,))),
        second=_other_color(rng, old.second, old.main),
        decal=_other_decal(rng, old),
    )


def _reshape(rng: np.random.Generator, old: ToyIdentity) -> ToyIdentity:
    return replace(
        old,
        form=_far_form(rng, old.form),
        second=_other_color(rng, old.second, old.main),
        accent=_other_color(rng, old.accent, old.main),
        pattern=_pattern(rng, old.pattern.kind),
    )


def _restyle(rng: np.random.Generator, old: ToyIdentity) -> ToyIdentity:
    return replace(
        old,
        form=_far_form(rng, old.form),
        pattern=_pattern(rng, pick(rng, PATTERNS, but=(old.pattern.kind,))),
        decal=_other_decal(rng, old),
    )


def _redecorate(rng: np.random.Generator, old: ToyIdentity) -> ToyIdentity:
    other = _other_decal(rng, old)
    return replace(
        old,
        pattern=_pattern(rng, pick(rng, PATTERNS, but=(old.pattern.kind,))),
        accent=_other_color(rng, old.accent, old.main),
        decal=other if old.decal.kind == "none" else replace(old.decal, color=other.color),
    )


def _trim(rng: np.random.Generator, old: ToyIdentity) -> ToyIdentity:
    return replace(old, second=_other_color(rng, old.second, old.main))


def _new_decal(rng: np.random.Generator, old: ToyIdentity) -> ToyIdentity:
    return replace(old, decal=_other_decal(rng, old))


def _accent(rng: np.random.Generator, old: ToyIdentity) -> ToyIdentity:
    return replace(old, accent=_other_color(rng, old.accent, old.main))


_SIBLINGS: dict[str, Callable[[np.random.Generator, ToyIdentity], ToyIdentity]] = {
    "redraw": _redraw,
    "recolor": _recolor,
    "retexture": _retexture,
    "reshape": _reshape,
    "restyle": _restyle,
    "redecorate": _redecorate,
    "trim": _trim,
    "decal": _new_decal,
    "accent": _accent,
}


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"
