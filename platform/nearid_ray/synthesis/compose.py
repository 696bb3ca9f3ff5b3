"""Paste the painted region back into the view, and check what came out.

Outside the mask a distractor equals its view in every pixel; this file makes sure of it and measures it.
All pictures are uint8 RGB (H, W, 3) of one size, masks uint8 (H, W), not zero = may be painted.
"""

from typing import Literal

import cv2
import numpy as np

Verdict = Literal["accepted", "unchanged", "blank"]

MIN_DIFFERENCE = 2.0
"""Mean difference (0 to 255) below which a distractor shows the same object: re-encoding noise is about 1."""
MAX_BLANK_DEVIATION = 0.5
"""Standard deviation (0 to 255) up to which a painted region counts as one flat colour."""


def compose(view_HW3: np.ndarray, painted_HW3: np.ndarray, mask_HW: np.ndarray, feather_px: float = 0.0) -> np.ndarray:
    """The painted picture inside the mask, the view outside of it, bit for bit.

    With `feather_px` the painted part fades in over that distance from the mask's edge inwards; nothing is blended
    outside, and the picture's own border is no edge.
    """
    _check(view_HW3, painted_HW3, mask_HW)
    if not feather_px >= 0:
        raise ValueError(f"feather_px is {feather_px}; expected 0 or more")
    inside_HW = mask_HW > 0
    if feather_px == 0 or inside_HW.all():
        return np.where(inside_HW[..., None], painted_HW3, view_HW3)
    depth_HW = cv2.distanceTransform(inside_HW.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    weight_HW1 = np.clip(depth_HW / (feather_px + 1), 0, 1)[..., None]
    mixed_HW3 = np.rint(view_HW3 + weight_HW1 * (painted_HW3.astype(np.float32) - view_HW3)).astype(np.uint8)
    return np.where(inside_HW[..., None], mixed_HW3, view_HW3)


def background_max_difference(view_HW3: np.ndarray, image_HW3: np.ndarray, mask_HW: np.ndarray) -> int:
    """The largest difference of any channel outside the mask, 0 to 255; 0 where the mask covers everything."""
    _check(view_HW3, image_HW3, mask_HW)
    outside_HW = mask_HW == 0
    if not outside_HW.any():
        return 0
    return int(cv2.absdiff(view_HW3, image_HW3)[outside_HW].max())


def object_mean_difference(view_HW3: np.ndarray, image_HW3: np.ndarray, mask_HW: np.ndarray) -> float:
    """The mean absolute difference over channels and pixels inside the mask, 0 to 255. ValueError on an empty mask."""
    _check(view_HW3, image_HW3, mask_HW)
    inside_HW = _inside(mask_HW)
    return float(cv2.absdiff(view_HW3, image_HW3)[inside_HW].mean(dtype=np.float64))


def verdict(
    view_HW3: np.ndarray,
    image_HW3: np.ndarray,
    mask_HW: np.ndarray,
    *,
    min_difference: float = MIN_DIFFERENCE,
    max_blank_deviation: float = MAX_BLANK_DEVIATION,
) -> Verdict:
    """What a distractor is worth: `blank`, `unchanged` or `accepted`, tested in this order.

    blank: inside the mask no channel's standard deviation exceeds `max_blank_deviation` (an engine's black or grey
    failure). unchanged: `object_mean_difference` is below `min_difference`. ValueError on an empty mask.
    """
    _check(view_HW3, image_HW3, mask_HW)
    painted = image_HW3[_inside(mask_HW)]
    if painted.std(axis=0, dtype=np.float64).max() <= max_blank_deviation:
        return "blank"
    if object_mean_difference(view_HW3, image_HW3, mask_HW) < min_difference:
        return "unchanged"
    return "accepted"


def _inside(mask_HW: np.ndarray) -> np.ndarray:
    inside_HW = mask_HW > 0
    if not inside_HW.any():
        raise ValueError("the mask is empty; expected at least one painted pixel")
    return inside_HW


def _check(view_HW3: np.ndarray, image_HW3: np.ndarray, mask_HW: np.ndarray) -> None:
    shapes_fit = view_HW3.ndim == 3 and view_HW3.shape == image_HW3.shape and view_HW3.shape[:2] == mask_HW.shape
    if not shapes_fit or view_HW3.dtype != np.uint8 or image_HW3.dtype != np.uint8:
        raise ValueError(
            f"view {view_HW3.dtype} {view_HW3.shape}, picture {image_HW3.dtype} {image_HW3.shape}, mask "
            f"{mask_HW.shape}; expected uint8 (H, W, 3) twice and (H, W) of the same size"
        )
