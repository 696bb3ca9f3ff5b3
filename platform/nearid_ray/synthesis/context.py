"""New surroundings and new light for the same object: prompts, and how its picture is prepared (ID-Sim, supplement).

The number of prompts is ID-Sim's, the sentences are ours. Axes: H height, W width, 3 colour channels; masks are uint8
with 255 on the object.
"""

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from nearid_ray.data.images import mask_box, resize_mask, resize_rgb

SMALLEST_SHARE = 0.10
"""Objects are made smaller down to this share of the picture."""

BACKGROUNDS: Mapping[str, str] = MappingProxyType(
    {
        "wood": "on a worn wooden table",
        "marble": "on a white marble counter",
        "grass": "on short grass in a park",
        "sand": "on a sandy beach close to the water",
        "street": "on the pavement of a busy street",
        "forest": "on a forest path covered with leaves",
        "snow": "on fresh snow",
        "room": "on the floor of a lived-in room",
        "shelf": "on a shelf between other things",
        "workshop": "on the bench of a workshop",
        "studio": "before a plain grey studio backdrop",
    }
)
"""Where the object is put."""

LIGHTINGS: Mapping[str, str] = MappingProxyType(
    {
        "noon": "in hard sunlight at noon",
        "overcast": "under an overcast sky",
        "sunset": "in low, golden light at sunset",
        "dusk": "in blue light after dusk",
        "lamp": "in the warm light of one lamp at night",
        "tube": "under cold fluorescent tubes",
        "window": "in soft light from a window at one side",
        "neon": "lit by coloured neon signs",
    }
)
"""How it is lit."""

TEMPLATE = (
    "Show the same {category} in another everyday place and light. Keep its shape, colours, material, pattern and "
    "writing exactly as they are."
)
"""What is asked for where no surroundings are named."""


def context_prompt(category: str, background: str = "", lighting: str = "") -> str:
    """The instruction that puts the same object somewhere else, or into another light, or both.

    >>> context_prompt("mug", "snow", "dusk")
    'Put the same mug on fresh snow, in blue light after dusk. Keep its shape, colours, material, pattern and writing \
exactly as they are.'
    >>> context_prompt("mug", lighting="lamp")
    'Show the same mug where it is, in the warm light of one lamp at night. Keep its shape, colours, material, pattern \
and writing exactly as they are.'

    Args:
        category: what the object is; "object" where it is empty.
        background: a key of BACKGROUNDS, or empty to keep it where it is.
        lighting: a key of LIGHTINGS, or empty to leave it open.

    Raises:
        ValueError: an unknown key, or neither is given.
    """
    for key, known in ((background, BACKGROUNDS), (lighting, LIGHTINGS)):
        if key and key not in known:
            raise ValueError(f"{key!r} is not known; expected one of {', '.join(known)}")
    if not background and not lighting:
        raise ValueError("neither background nor lighting is given; expected at least one of them")
    what = category or "object"
    place = f"Put the same {what} {BACKGROUNDS[background]}" if background else f"Show the same {what} where it is"
    light = f", {LIGHTINGS[lighting]}" if lighting else ""
    return f"{place}{light}. Keep its shape, colours, material, pattern and writing exactly as they are."


def draw_context(seed: int) -> tuple[str, str]:
    """(background, lighting) by a row's seed: every pair is as likely."""
    draw = np.random.default_rng(seed)
    return str(draw.choice(list(BACKGROUNDS))), str(draw.choice(list(LIGHTINGS)))


def place_on_white(view_HW3: np.ndarray, mask_HW: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The object alone on white, at a size and a place drawn by the seed, whole; and its mask there.

    Its share of the picture is drawn between SMALLEST_SHARE and what it is in the view; smaller ones keep their size.

    Returns:
        (picture (H, W, 3), mask (H, W)), uint8, as large as the view.

    Raises:
        ValueError: the mask is empty.
    """
    if not mask_HW.any():
        raise ValueError("the mask is empty: there is no object to place")
    height, width = mask_HW.shape
    left, top, right, bottom = mask_box(mask_HW)
    object_hw = np.where(mask_HW[top:bottom, left:right] > 0, np.uint8(255), np.uint8(0))
    object_hw3 = np.where(object_hw[..., None] > 0, view_HW3[top:bottom, left:right], np.uint8(255))
    draw = np.random.default_rng(seed)
    share = float((mask_HW > 0).mean())
    wanted = draw.uniform(min(SMALLEST_SHARE, share), share)
    scale = float(np.sqrt(wanted / share))
    size = (max(1, round(object_hw.shape[1] * scale)), max(1, round(object_hw.shape[0] * scale)))
    x, y = int(draw.integers(width - size[0] + 1)), int(draw.integers(height - size[1] + 1))
    placed_HW3, placed_HW = np.full_like(view_HW3, 255), np.zeros_like(mask_HW)
    place = np.s_[y : y + size[1], x : x + size[0]]
    placed_HW3[place], placed_HW[place] = resize_rgb(object_hw3, *size), resize_mask(object_hw, *size)
    return placed_HW3, placed_HW
