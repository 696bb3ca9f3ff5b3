"""Ways to find the object's mask of a picture that came without one."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from nearid_ray.data.masks import grabcut_mask


@dataclass(frozen=True, kw_only=True)
class MaskSettings:
    """How masks are found for pictures that come without one."""

    mask_method: Literal["grabcut", "none"] = "grabcut"
    """For pictures without a mask: `grabcut` finds the object by its colours, `none` leaves them without one."""

    def __post_init__(self) -> None:
        if self.mask_method not in ("grabcut", "none"):
            raise ValueError(f"mask_method is {self.mask_method!r}; expected grabcut or none")


class Masker(Protocol):
    """Finds masks. `load` is called once a worker before the first `masks`."""

    name: str
    """What `mask_source` says of its masks."""
    uses_model: bool
    """Whether it wants a GPU where there is one."""

    def load(self) -> None: ...

    def masks(self, images: Sequence[np.ndarray]) -> "list[np.ndarray | ValueError | None]":
        """For each uint8 picture (H, W, 3) its mask (H, W) of 0 and 255, or why there is none; None where none is
        wanted. Equal pictures give equal masks, whatever the batch."""


class NoMasker:
    """Leaves pictures without a mask."""

    name = "none"
    uses_model = False

    def load(self) -> None:
        pass

    def masks(self, images: Sequence[np.ndarray]) -> "list[np.ndarray | ValueError | None]":
        return [None] * len(images)


class GrabCutMasker:
    """OpenCV's GrabCut around a guess; see `masks.grabcut_mask`."""

    name = "grabcut"
    uses_model = False

    def load(self) -> None:
        pass

    def masks(self, images: Sequence[np.ndarray]) -> "list[np.ndarray | ValueError | None]":
        return [self._mask(image_HW3) for image_HW3 in images]

    def _mask(self, image_HW3: np.ndarray) -> "np.ndarray | ValueError":
        try:
            return grabcut_mask(image_HW3)
        except ValueError as error:
            return error


def make_masker(settings: MaskSettings) -> Masker:
    """The masker that the settings name."""
    return GrabCutMasker() if settings.mask_method == "grabcut" else NoMasker()
