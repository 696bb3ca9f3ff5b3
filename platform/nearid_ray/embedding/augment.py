"""Augmented draws of a picture: background blacked out, flip, colour jitter, translation and scale, in this order.

A draw depends on the picture's name, on whether its background is blacked out, on the draw's number and on the
settings, and on nothing else. Draw 0 is the clean picture.

Axes: H height, W width, 3 colour channels.
"""

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np

from nearid_ray.data.images import foreground_only
from nearid_ray.identifiers import seed_of
from nearid_ray.settings import digest

_HUES = 256
"""OpenCV's full-range hue in eight bits."""


@dataclass(frozen=True, kw_only=True)
class AugmentSettings:
    """How the draws 1..V of a picture are made. The strengths are the paper's, the probabilities are not published."""

    flip_p: float = 0.5
    """Chance of a horizontal flip, 0 to 1."""
    jitter_p: float = 0.5
    """Chance of colour jitter, 0 to 1."""
    brightness: float = 0.2
    """Brightness factor drawn from 1 - x to 1 + x; 0 to 1."""
    contrast: float = 0.2
    """Contrast factor, the same way; 0 to 1."""
    saturation: float = 0.2
    """Saturation factor, the same way; 0 to 1."""
    hue: float = 0.05
    """Hue moved by up to this share of the colour circle to either side; 0 to 0.5."""
    shift_p: float = 0.5
    """Chance of a translation, 0 to 1."""
    shift: float = 0.1
    """Translation by up to this share of the side, in x and in y; 0 to 0.5."""
    scale_p: float = 0.5
    """Chance of scaling about the centre, 0 to 1."""
    scale: float = 0.1
    """Scale factor drawn from 1 - x to 1 + x; 0 to 0.5."""
    border: Literal["reflect", "black"] = "reflect"
    """What translation and scale bring in from outside; always black where the background is blacked out."""

    def __post_init__(self) -> None:
        for name in ("flip_p", "jitter_p", "shift_p", "scale_p", "brightness", "contrast", "saturation"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected 0 to 1")
        for name in ("hue", "shift", "scale"):
            if not 0 <= getattr(self, name) <= 0.5:
                raise ValueError(f"{name} is {getattr(self, name)}; expected 0 to 0.5")
        if self.border not in ("reflect", "black"):
            raise ValueError(f"border is {self.border!r}; expected 'reflect' or 'black'")


def draw_seed(image_id: str, *, masked: bool, draw: int, settings: AugmentSettings) -> int | None:
    """Seed of a draw; None for draw 0, the clean picture."""
    return seed_of(image_id, int(masked), draw, digest(settings)) if draw else None


def augment(
    image_HW3: np.ndarray,
    mask_HW: np.ndarray | None,
    settings: AugmentSettings,
    *,
    masked: bool,
    seed: int | None,
) -> np.ndarray:
    """One draw of a uint8 picture, as a new array of the same shape.

    Args:
        image_HW3: the picture; not changed.
        mask_HW: 255 on the object; needed where `masked`.
        settings: what may happen to it.
        masked: black out everything outside the mask first.
        seed: from `draw_seed`; None leaves the picture clean but for `masked`.

    Raises:
        ValueError: `masked` without a mask of the picture's size.
    """
    if masked and mask_HW is None:
        raise ValueError("the background cannot be blacked out: there is no mask")
    image = foreground_only(image_HW3, mask_HW) if masked and mask_HW is not None else image_HW3
    if seed is None:
        return image.copy() if image is image_HW3 else image
    # All numbers are drawn, used or not, so that changing one probability leaves the other operations as they are.
    generator = np.random.default_rng(seed)
    flips, jitters, shifts, scales = generator.random(4) < (
        settings.flip_p,
        settings.jitter_p,
        settings.shift_p,
        settings.scale_p,
    )
    colour_4, order_4, place_3 = generator.uniform(-1, 1, 4), generator.permutation(4), generator.uniform(-1, 1, 3)
    if flips:
        image = cv2.flip(image, 1)
    if jitters:
        image = jittered(image, colour_4 * _strengths(settings), order_4)
    if shifts or scales:
        black = masked or settings.border == "black"
        x, y = place_3[:2] * settings.shift if shifts else (0.0, 0.0)
        image = moved(image, x=x, y=y, scale=1 + settings.scale * place_3[2] if scales else 1.0, black=black)
    return image.copy() if image is image_HW3 else image


def jittered(image_HW3: np.ndarray, amount_4: np.ndarray, order_4: np.ndarray) -> np.ndarray:
    """Brightness, contrast, saturation and hue changed one after the other, rounded to eight bits after each.

    `amount_4` holds what is added to the first three factors of 1, and the move along the colour circle (in circles);
    `order_4` the order: 0 brightness, 1 contrast, 2 saturation, 3 hue.
    """
    for operation in order_4:
        amount = float(amount_4[operation])
        if operation == 0:
            image_HW3 = _toward(image_HW3, 0.0, 1 + amount)
        elif operation == 1:
            mean = cv2.mean(cv2.cvtColor(image_HW3, cv2.COLOR_RGB2GRAY))[0]
            image_HW3 = _toward(image_HW3, mean, 1 + amount)
        elif operation == 2:
            grey_HW3 = cv2.cvtColor(cv2.cvtColor(image_HW3, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
            image_HW3 = cv2.addWeighted(image_HW3, 1 + amount, grey_HW3, -amount, 0)
        elif round(amount * _HUES):
            image_HW3 = _hue_moved(image_HW3, round(amount * _HUES))
    return image_HW3


def moved(image_HW3: np.ndarray, *, x: float, y: float, scale: float, black: bool) -> np.ndarray:
    """The picture scaled about its centre, then moved right by `x` and down by `y` shares of its sides."""
    height, width = image_HW3.shape[:2]
    # Of pixel centres, which lie at whole numbers: the centre stays where it is.
    offset_x = (1 - scale) * (width - 1) / 2 + x * width
    offset_y = (1 - scale) * (height - 1) / 2 + y * height
    matrix = np.array([[scale, 0, offset_x], [0, scale, offset_y]], np.float64)
    border = cv2.BORDER_CONSTANT if black else cv2.BORDER_REFLECT_101
    return cv2.warpAffine(image_HW3, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=border)


def _strengths(settings: AugmentSettings) -> np.ndarray:
    return np.array([settings.brightness, settings.contrast, settings.saturation, settings.hue])


def _toward(image_HW3: np.ndarray, level: float, factor: float) -> np.ndarray:
    """level + factor * (image - level), clipped."""
    table_V = np.clip(np.rint(level + factor * (np.arange(256) - level)), 0, 255).astype(np.uint8)
    return cv2.LUT(image_HW3, table_V)


def _hue_moved(image_HW3: np.ndarray, steps: int) -> np.ndarray:
    hsv_HW3 = cv2.cvtColor(image_HW3, cv2.COLOR_RGB2HSV_FULL)
    hsv_HW3[..., 0] += np.uint8(steps % _HUES)  # eight bits wrap around like the circle
    return cv2.cvtColor(hsv_HW3, cv2.COLOR_HSV2RGB_FULL)
