"""Masks that sources keep at another size than the picture they belong to."""

import io

import numpy as np
from PIL import Image

from nearid_ray.data.images import resize_mask

_ORIENTATION = 0x0112
_TURNED = (5, 6, 7, 8)
"""EXIF orientations that swap width and height."""


def picture_size(picture: bytes) -> tuple[int, int] | None:
    """(width, height) of an encoded picture, upright, without decoding it; None where the bytes are no picture."""
    try:
        with Image.open(io.BytesIO(picture)) as image:
            width, height = image.size
            return (height, width) if image.getexif().get(_ORIENTATION) in _TURNED else (width, height)
    except Exception:  # decoders raise almost anything on hostile bytes
        return None


def fitted_mask(mask_HW: np.ndarray, picture: bytes) -> np.ndarray:
    """The mask at the encoded picture's size where both have the same shape; else as it is, which decoding refuses."""
    width, height = picture_size(picture) or (0, 0)
    if (height, width) != mask_HW.shape and width * mask_HW.shape[0] == height * mask_HW.shape[1] > 0:
        return resize_mask(mask_HW, width, height)
    return mask_HW
