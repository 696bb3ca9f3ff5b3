"""Paste the painted region back into the view: outside the mask a distractor equals its view in every pixel.

All pictures are uint8 RGB (H, W, 3) of one size, masks uint8 (H, W), not zero = may be painted.
"""

import cv2
import numpy as np

from nearid_ray.data.difference import check_pictures


def compose(view_HW3: np.ndarray, painted_HW3: np.ndarray, mask_HW: np.ndarray, feather_px: float = 0.0) -> np.ndarray:
    """The painted picture inside the mask, the view outside of it, bit for bit.

    With `feather_px` the painted part fades in over that distance from the mask's edge inwards; nothing is blended
    outside, and the picture's own border is no edge.
    """
    check_pictures(view_HW3, painted_HW3, mask_HW)
    if not feather_px >= 0:
        raise ValueError(f"feather_px is {feather_px}; expected 0 or more")
    inside_HW = mask_HW > 0
    if feather_px == 0 or inside_HW.all():
        return np.where(inside_HW[..., None], painted_HW3, view_HW3)
    depth_HW = cv2.distanceTransform(inside_HW.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    weight_HW1 = np.clip(depth_HW / (feather_px + 1), 0, 1)[..., None]
    mixed_HW3 = np.rint(view_HW3 + weight_HW1 * (painted_HW3.astype(np.float32) - view_HW3)).astype(np.uint8)
    return np.where(inside_HW[..., None], mixed_HW3, view_HW3)
