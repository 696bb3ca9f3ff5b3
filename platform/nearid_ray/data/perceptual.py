"""A perceptual hash: 64 bits that hardly change when a picture is scaled or saved again, to find near-duplicates."""

import cv2
import numpy as np

BITS = 64

_SIDE_PX = 32
_KEPT = 8


def perceptual_hash(image_HW3: np.ndarray) -> str:
    """The hash of a uint8 RGB picture as 16 hex digits.

    The grey picture at 32 x 32 pixels is taken apart into cosines; of the 8 x 8 slowest ones each gives a bit, whether
    it is above their median. The constant term, which is the brightness, is left out of the median. Two unrelated
    photos differ in about 32 bits, a photo and its JPEG copy in a few.
    """
    grey_HW = cv2.cvtColor(image_HW3, cv2.COLOR_RGB2GRAY)
    small = cv2.resize(grey_HW, (_SIDE_PX, _SIDE_PX), interpolation=cv2.INTER_AREA).astype(np.float32)
    slow = cv2.dct(small)[:_KEPT, :_KEPT].ravel()
    return np.packbits(slow > np.median(slow[1:])).tobytes().hex()


def hash_bits(hashes: list[str]) -> np.ndarray:
    """Hashes (hex) as uint64 (N,), ready for `hash_distance`."""
    return np.array([int(value, 16) for value in hashes], np.uint64)


def hash_distance(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Number of bits, 0 to 64, in which hashes (uint64, broadcast) differ."""
    return np.bitwise_count(np.bitwise_xor(first, second))
