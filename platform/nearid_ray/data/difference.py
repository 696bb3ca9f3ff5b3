"""How a distractor differs from its view: outside the mask, inside of it, and what that makes it worth.

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


def background_max_difference(view_HW3: np.ndarray, image_HW3: np.ndarray, mask_HW: np.ndarray) -> int:
    """The largest difference of any channel outside the mask, 0 to 255; 0 where the mask covers everything."""
    check_pictures(view_HW3, image_HW3, mask_HW)
    outside_HW = mask_HW == 0
    if not outside_HW.any():
        return 0
    return int(cv2.absdiff(view_HW3, image_HW3)[outside_HW].max())


def object_mean_difference(view_HW3: np.ndarray, image_HW3: np.ndarray, mask_HW: np.ndarray) -> float:
    """The mean absolute difference over channels and pixels inside the mask, 0 to 255. ValueError on an empty mask."""
    check_pictures(view_HW3, image_HW3, mask_HW)
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
    check_pictures(view_HW3, image_HW3, mask_HW)
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


def check_pictures(view_HW3: np.ndarray, image_HW3: np.ndarray, mask_HW: np.ndarray) -> None:
    """ValueError where the two pictures and the mask are not of one size, or not of uint8."""
    shapes_fit = view_HW3.ndim == 3 and view_HW3.shape == image_HW3.shape and view_HW3.shape[:2] == mask_HW.shape
    if not shapes_fit or view_HW3.dtype != np.uint8 or image_HW3.dtype != np.uint8:
        raise ValueError(
            f"view {view_HW3.dtype} {view_HW3.shape}, picture {image_HW3.dtype} {image_HW3.shape}, mask "
            f"{mask_HW.shape}; expected uint8 (H, W, 3) twice and (H, W) of the same size"
        )
