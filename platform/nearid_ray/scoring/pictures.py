"""Pictures as people have them (paths, Pillow images, arrays, encoded bytes) as uint8 arrays.

Axes: H height, W width, 3 colour channels.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nearid_ray.data import s3
from nearid_ray.data.images import MAX_PIXELS, decode_mask, decode_rgb, foreground_only, mask_of, rgb_of
from nearid_ray.data.store import Location, locate
from nearid_ray.errors import StoreError, UsageError

Picture: TypeAlias = "str | Path | Image.Image | NDArray[np.uint8] | bytes"
"""A path or s3:// place, a Pillow image of any mode, a uint8 array (H, W, 3), or an encoded picture."""

_MOST_ASPECT = 200
"""Where a model keeps the aspect, a strip of 1 x 1,000,000 pixels would grow a thousandfold."""


def as_list(images: Picture | Sequence[Picture]) -> list[Any]:
    """One picture or several as a list; an array of shape (N, H, W, 3) holds several."""
    if isinstance(images, str | os.PathLike | Image.Image | bytes):
        return [images]
    if isinstance(images, np.ndarray) and images.ndim == 3:
        return [images]
    return list(images)


def masks_list(masks: Any) -> list[Any]:
    """One mask or several as a list; an array of shape (H, W) is one."""
    return [masks] if isinstance(masks, np.ndarray) and masks.ndim == 2 else as_list(masks)


def described(image: Any, place: int = 0) -> str:
    """What a message calls a picture."""
    if isinstance(image, str | os.PathLike):
        return str(image)
    kind = "array" if isinstance(image, np.ndarray) else type(image).__name__
    file = getattr(image, "filename", "")
    return str(file) if file else f"picture {place} ({kind})"


def read_picture(image: Any, place: int = 0) -> NDArray[np.uint8]:
    """A picture's pixels as uint8 (H, W, 3), upright, colours as `data.images.decode_rgb` describes.

    Raises:
        UsageError: it is missing, cannot be decoded, or is no picture; the message names it.
    """
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise UsageError(
                f"{described(image, place)} has type {image.dtype} and shape {image.shape}; expected uint8 "
                "(H, W, 3), red, green, blue"
            )
        array = image
    else:
        array = _decoded(image, place, decode_rgb, rgb_of)
    try:
        check_aspect(array)
    except ValueError as error:
        raise UsageError(f"{described(image, place)}: {error}") from error
    return array


def check_aspect(image_HW3: NDArray[np.uint8]) -> None:
    """Raises ValueError where a side is so much longer than the other that resizing would take gigabytes."""
    height, width = image_HW3.shape[:2]
    if max(height, width) > _MOST_ASPECT * min(height, width):
        raise ValueError(
            f"the picture has {width} x {height} pixels; expected no side more than {_MOST_ASPECT} times the other"
        )


def read_foreground(image: Any, mask: Any, place: int = 0) -> NDArray[np.uint8]:
    """A picture whose background is black, (H, W, 3).

    Args:
        mask: of the picture's size, in any of the forms a picture has, or a uint8 or bool array (H, W); not zero is
            object.

    Raises:
        UsageError: one of them cannot be read, they differ in size, or the mask is empty; the message names it.
    """
    pixels_HW3 = read_picture(image, place)
    if isinstance(mask, np.ndarray):
        mask_HW: np.ndarray = mask if mask.ndim == 2 else np.any(mask.reshape(*mask.shape[:2], -1), axis=2)
    else:
        mask_HW = _decoded(mask, place, decode_mask, mask_of)
    if mask_HW.shape != pixels_HW3.shape[:2]:
        shapes = ["{1} x {0}".format(*array.shape[:2]) for array in (mask_HW, pixels_HW3)]
        raise UsageError(f"the mask of {described(image, place)} has {shapes[0]} pixels; expected {shapes[1]}")
    if not mask_HW.any():
        raise UsageError(f"the mask of {described(image, place)} is empty: no pixel belongs to the object")
    return foreground_only(pixels_HW3, mask_HW)


def read_encoded(uri: str) -> bytes:
    """A picture's file; ValueError, with the reason alone, where it cannot be read."""
    try:
        if "://" not in uri:
            return Path(uri).expanduser().read_bytes()
        return _place(uri).read_bytes()
    except StoreError:
        raise
    except FileNotFoundError as error:
        raise ValueError("there is no such file") from error
    except IsADirectoryError as error:
        raise ValueError("it is a folder; expected a picture") from error
    except UsageError as error:
        raise ValueError(str(error).removeprefix(f"{uri}: ")) from error
    except OSError as error:
        raise ValueError(f"it cannot be read ({error.strerror or error})") from error


def _place(uri: str) -> Location:
    """As `locate` finds it; the connection to a bucket is kept, as making one asks the server."""
    bucket, slash, key = uri.partition("://")[2].partition("/")
    if not s3.is_s3(uri) or not slash:
        return locate(uri)
    s3.check_uri(uri)
    return _bucket(bucket).child(key)


@lru_cache(maxsize=64)
def _bucket(name: str) -> Location:
    return locate(f"s3://{name}")


def _decoded(
    image: Any,
    place: int,
    of_bytes: Callable[..., NDArray[np.uint8]],
    of_pillow: Callable[[Image.Image], NDArray[np.uint8]],
) -> NDArray[np.uint8]:
    try:
        if isinstance(image, Image.Image):
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"it has {image.width} x {image.height} pixels; expected at most {MAX_PIXELS:,}")
            return of_pillow(image)
        if isinstance(image, bytes | bytearray | memoryview):
            return of_bytes(bytes(image))
        if isinstance(image, str | os.PathLike):
            return of_bytes(read_encoded(str(image)))
    except ValueError as error:
        raise UsageError(f"{described(image, place)}: {error}") from error
    raise UsageError(
        f"picture {place} is a {type(image).__name__}; expected a path, a Pillow image, or a uint8 array (H, W, 3)"
    )
