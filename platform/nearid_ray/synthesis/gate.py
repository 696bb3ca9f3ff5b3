"""The quality gate: what is measured of a painted row, and whether it may be used.

Axes: H height, W width, 3 colour channels. Pictures are uint8 RGB, masks uint8 with 255 where an engine painted.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np

from nearid_ray.data.difference import MAX_BLANK_DEVIATION, MIN_DIFFERENCE, check_pictures, object_mean_difference
from nearid_ray.data.images import mask_box
from nearid_ray.errors import UsageError

Verdict = Literal["accepted", "flagged", "blank", "saturated", "unchanged", "too-far"]
Embed = Callable[[Sequence[np.ndarray]], np.ndarray]
"""Pictures (h, w, 3) of any size -> one embedding each, (N, D)."""


@dataclass(frozen=True, kw_only=True)
class GateSettings:
    """What a distractor must be like."""

    min_object_difference: float = MIN_DIFFERENCE
    """Less difference to the view inside the mask (mean of 0 to 255) gives the verdict `unchanged`."""
    max_blank_deviation: float = MAX_BLANK_DEVIATION
    """An object whose colour channels vary no more (standard deviation, 0 to 255) gives `blank`."""
    max_saturated_share: float = 0.8
    """A larger share of channel values at 0 or 255 inside the mask gives `saturated`; 0 to 1."""
    gate_backbone: str = ""
    """A backbone (as for embed) that compares the masked object with that of the view; empty = no comparison."""
    gate_revision: str | None = None
    """Branch, tag or commit of that backbone on the hub."""
    min_similarity: float | None = None
    """A smaller cosine of the two gives `too-far`; -1 to 1. Without it the cosine is recorded alone."""
    retries: int = 0
    """A row without the verdict `accepted` is painted again with another seed, up to so many times."""

    def __post_init__(self) -> None:
        for name, high in (("min_object_difference", 255), ("max_blank_deviation", 255), ("max_saturated_share", 1)):
            if not 0 <= getattr(self, name) <= high:
                raise ValueError(f"{name} is {getattr(self, name)}; expected 0 to {high}")
        if self.min_similarity is not None and not -1 <= self.min_similarity <= 1:
            raise ValueError(f"min_similarity is {self.min_similarity}; expected a cosine from -1 to 1")
        if self.min_similarity is not None and not self.gate_backbone:
            raise ValueError("min_similarity needs gate_backbone, the model that compares, e.g. toybox-siglip2")
        if self.gate_revision is not None and not self.gate_backbone:
            raise ValueError("gate_revision is given without gate_backbone")
        if not 0 <= self.retries <= 100:
            raise ValueError(f"retries is {self.retries}; expected 0 to 100")


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What the gate saw of a row."""

    object_mean_difference: float
    """Mean absolute difference to the view inside the mask, 0 to 255."""
    object_deviation: float
    """Standard deviation inside the mask of the channel that varies most, 0 to 255."""
    saturated_share: float
    """Share of channel values inside the mask that are 0 or 255."""
    object_similarity: float | None
    """Cosine of the embeddings of the object here and in the view; None without a backbone."""
    flagged: bool | None
    """What the engine's safety check said; None where it has none."""


def measure(
    view_HW3: np.ndarray,
    image_HW3: np.ndarray,
    mask_HW: np.ndarray,
    *,
    painted_HW3: np.ndarray | None = None,
    flagged: bool | None = None,
    embed: Embed | None = None,
) -> Measured:
    """Measure a distractor against its view. ValueError on an empty mask, or pictures of different sizes.

    `painted_HW3` is the engine's picture before its edge was blended with the view, which would hide that it is blank.
    """
    check_pictures(view_HW3, image_HW3, mask_HW)
    difference = object_mean_difference(view_HW3, image_HW3, mask_HW)
    painted_N3 = (image_HW3 if painted_HW3 is None else painted_HW3)[mask_HW > 0]
    similarity = None
    if embed is not None:
        # The two of a row alone: what shares a pass with them must not move the last bits.
        pair_2D = np.asarray(embed([object_alone(view_HW3, mask_HW), object_alone(image_HW3, mask_HW)]), np.float64)
        lengths = np.linalg.norm(pair_2D, axis=1)
        similarity = float(pair_2D[0] @ pair_2D[1] / lengths.prod()) if lengths.all() else 0.0
    return Measured(
        object_mean_difference=difference,
        object_deviation=float(painted_N3.std(axis=0, dtype=np.float64).max()),
        saturated_share=float(((painted_N3 == 0) | (painted_N3 == 255)).mean(dtype=np.float64)),
        object_similarity=similarity,
        flagged=flagged,
    )


def judge(seen: Measured, settings: GateSettings, *, control: bool = False) -> Verdict:
    """The first reason why a row is no good, or `accepted`.

    A control shows the same object: that it did not change, or how similar it is, is what it measures and no fault.

    >>> seen = Measured(object_mean_difference=0.5, object_deviation=30.0, saturated_share=0.0,
    ...                 object_similarity=None, flagged=None)
    >>> judge(seen, GateSettings()), judge(seen, GateSettings(), control=True)
    ('unchanged', 'accepted')
    """
    if seen.flagged:
        return "flagged"
    if seen.object_deviation <= settings.max_blank_deviation:
        return "blank"
    if seen.saturated_share > settings.max_saturated_share:
        return "saturated"
    if control:
        return "accepted"
    if seen.object_mean_difference < settings.min_object_difference:
        return "unchanged"
    floor = settings.min_similarity
    if floor is not None and seen.object_similarity is not None and seen.object_similarity < floor:
        return "too-far"
    return "accepted"


def object_alone(image_HW3: np.ndarray, mask_HW: np.ndarray) -> np.ndarray:
    """The object on black, in the middle of the smallest square that holds it."""
    left, top, right, bottom = mask_box(mask_HW)
    inside = (mask_HW > 0)[top:bottom, left:right, None]
    height, width = bottom - top, right - left
    more = max(height, width)
    y, x = (more - height) // 2, (more - width) // 2
    cut = np.where(inside, image_HW3[top:bottom, left:right], np.uint8(0))
    return cv2.copyMakeBorder(cut, y, more - height - y, x, more - width - x, cv2.BORDER_CONSTANT, value=0)


def check_gate(settings: GateSettings) -> GateSettings:
    """The settings with a folder's absolute path: workers have other working directories.

    Raises:
        UsageError: there is no such backbone, or it cannot be reached.
    """
    if not settings.gate_backbone:
        return settings
    from nearid_ray.models.files import EXPECTED_FILES, TOYBOX_BACKBONE, ModelFiles

    files = ModelFiles.find(settings.gate_backbone, settings.gate_revision, what="gate_backbone")
    if files.json("config.json") is None:
        raise UsageError(
            f"gate_backbone {settings.gate_backbone} holds no model: config.json is missing; expected {EXPECTED_FILES}"
        )
    if settings.gate_backbone == TOYBOX_BACKBONE or not files.local:
        return settings
    return replace(settings, gate_backbone=str(Path(settings.gate_backbone).expanduser().resolve()))


def load_embed(settings: GateSettings) -> Embed | None:
    """The gate's backbone with its own pooling, in float32 on the GPU where this worker has one; None without one."""
    if not settings.gate_backbone:
        return None
    import torch

    from nearid_ray.models.backbone import load_backbone

    device = "cuda" if torch.cuda.is_available() else "cpu"
    backbone: Any = load_backbone(
        settings.gate_backbone, revision=settings.gate_revision, dtype="float32", device=device
    )
    pooling = backbone.pooling().to(device).eval()

    def embed(pictures: Sequence[np.ndarray]) -> np.ndarray:
        with torch.inference_mode():
            return pooling(backbone.tokens_of(backbone.preprocess(pictures))).float().cpu().numpy()

    return embed
