"""What finds masks is a Masker; here are those without a trained model."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from nearid_ray.data.masking.settings import MaskSettings
from nearid_ray.data.masks import grabcut_mask

Found = np.ndarray | ValueError | None
"""A mask (H, W) of 0 and 255, or why there is none; None where none is wanted."""


class Masker(Protocol):
    """Finds masks. Objects are pickled to the workers; there `load` is called once, before the first `masks`."""

    name: str
    """What `mask_source` says of its masks."""
    uses_model: bool
    """Whether it wants a GPU where there is one."""

    def describe(self) -> dict[str, Any]:
        """All that decides its masks, JSON-like: the method, and which model at which revision."""

    def load(self) -> None:
        """Read the model. Raises UsageError where it cannot be read or is of the wrong kind."""

    def masks(self, images: Sequence[np.ndarray]) -> list[Found]:
        """One answer for each uint8 picture (H, W, 3). Equal pictures give equal masks, whatever the batch."""


class NoMasker:
    """Leaves pictures without a mask."""

    name = "none"
    uses_model = False

    def describe(self) -> dict[str, Any]:
        return {"mask_method": self.name}

    def load(self) -> None:
        pass

    def masks(self, images: Sequence[np.ndarray]) -> list[Found]:
        return [None] * len(images)


class GrabCutMasker:
    """OpenCV's GrabCut around a guess; see `masks.grabcut_mask`."""

    name = "grabcut"
    uses_model = False

    def describe(self) -> dict[str, Any]:
        return {"mask_method": self.name}

    def load(self) -> None:
        pass

    def masks(self, images: Sequence[np.ndarray]) -> list[Found]:
        return [self._mask(image_HW3) for image_HW3 in images]

    def _mask(self, image_HW3: np.ndarray) -> Found:
        try:
            return grabcut_mask(image_HW3)
        except ValueError as error:
            return error


def make_masker(settings: MaskSettings) -> Masker:
    """The masker that the settings name, not loaded yet.

    A model is looked for here, so that what is wrong is said before any work starts: UsageError where there is no such
    folder or hub id, it cannot be reached, it holds another kind of model, or it needs code that is not trusted.
    """
    if settings.mask_method == "sam2":
        from nearid_ray.data.masking.sam2 import Sam2Masker

        return Sam2Masker(settings)
    if settings.mask_method == "birefnet":
        from nearid_ray.data.masking.birefnet import ForegroundMasker

        return ForegroundMasker(settings)
    return GrabCutMasker() if settings.mask_method == "grabcut" else NoMasker()
