"""Bring a view and its mask to an engine's resolution and the engine's picture back; aspect is kept.

Axes: H height, W width, 3 colour channels. Masks are uint8, 255 = paint here.
"""

import numpy as np

from nearid_ray.data.images import resize_mask, resize_rgb
from nearid_ray.data.masks import FULL_SHARE, dilate_mask, fill_holes

LATENT_PX = 8
"""One latent cell stands for so many pixels, in both directions, in all the models here."""


def painting_mask(mask_HW: np.ndarray, dilation_px: int) -> np.ndarray:
    """The region an engine may paint: the object's mask without holes, grown by `dilation_px` canonical pixels.

    Raises:
        ValueError: the mask covers nothing, or the region covers (nearly) the whole view, which leaves no context.
    """
    if not mask_HW.any():
        raise ValueError("the mask is empty: there is nothing to paint")
    region_HW = dilate_mask(fill_holes(mask_HW), dilation_px)
    share = float((region_HW > 0).mean())
    if share >= FULL_SHARE:
        raise ValueError(f"the mask, grown by {dilation_px} px, covers {share:.1%} of the view; no context is left")
    return region_HW


def fitted_size(width_px: int, height_px: int, short_px: int, multiple_px: int) -> tuple[int, int]:
    """(width, height) with `short_px` as the shorter side and the aspect kept, the longer one rounded to the multiple.

    >>> fitted_size(512, 512, 1024, 16)
    (1024, 1024)
    >>> fitted_size(600, 400, 640, 8)
    (960, 640)

    Raises:
        ValueError: `short_px` is no multiple, or the view is smaller than one latent cell (`multiple_px`).
    """
    if short_px < 1 or short_px % multiple_px:
        raise ValueError(f"a resolution of {short_px} px; the model needs a multiple of {multiple_px}")
    if min(width_px, height_px) < multiple_px:
        raise ValueError(f"a view of {width_px} x {height_px} px is smaller than one latent cell of {multiple_px} px")
    scale = short_px / min(width_px, height_px)
    sides = (round(side * scale / multiple_px) * multiple_px for side in (width_px, height_px))
    width, height = (max(side, short_px) for side in sides)
    return width, height


def to_engine(
    view_HW3: np.ndarray, region_HW: np.ndarray, short_px: int, multiple_px: int
) -> tuple[np.ndarray, np.ndarray]:
    """View and painting region at the engine's resolution (Lanczos; the mask by covered area).

    Raises:
        ValueError: as `fitted_size`, or the region is so small that no latent cell is to be painted.
    """
    height, width = view_HW3.shape[:2]
    size = fitted_size(width, height, short_px, multiple_px)
    mask_hw = resize_mask(region_HW, *size)
    # Masks are brought to the latents by their nearest pixel, which is the first of each cell.
    if not mask_hw[::LATENT_PX, ::LATENT_PX].any():
        raise ValueError(
            f"the region to paint, {int((region_HW > 0).sum())} pixels of the view, lies between the latent cells of "
            f"{LATENT_PX} px at {size[0]} x {size[1]}; nothing would be painted"
        )
    return resize_rgb(view_HW3, *size), mask_hw


def to_view(painted_HW3: np.ndarray, view_HW3: np.ndarray) -> np.ndarray:
    """The engine's picture at the view's size, by Lanczos."""
    height, width = view_HW3.shape[:2]
    return resize_rgb(painted_HW3, width, height)
