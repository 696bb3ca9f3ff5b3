"""FLUX.1 Fill in ID-Sim's partial mode: about half of an object is painted anew, the rest stays as it is.

Axes: H height, W width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from nearid_ray.errors import UsageError
from nearid_ray.synthesis.engine import EngineRequest, EngineResult
from nearid_ray.synthesis.engines.diffusion import DiffusionSettings
from nearid_ray.synthesis.engines.flux_fill import WEIGHTS, FluxFillEngine
from nearid_ray.synthesis.fit import painting_mask

if TYPE_CHECKING:
    import torch

_SIDES: tuple[Literal["left", "right", "top", "bottom"], ...] = ("left", "right", "top", "bottom")

SETTINGS = (
    DiffusionSettings(
        name="flux-fill-partial",
        group="part",
        weights=WEIGHTS,
        resolution_px=720,
        steps=50,
        guidance=2.5,
        prompt_template="photo of a {category}",
        options={"strength_low": 0.5, "strength_high": 0.8, "removed_low": 0.4, "removed_high": 0.6},
    ),
)
"""ID-Sim's identity edits: 40-60 % of the mask removed along one axis, strength 0.5-0.8, 50 steps, guidance 2.5."""


@dataclass(frozen=True, kw_only=True)
class PartialDraw:
    """How a row of the partial mode is painted.

    `removed` is the share of the object that is taken out of the mask, beginning at `side`, and so stays as it is.
    """

    strength: float
    removed: float
    side: Literal["left", "right", "top", "bottom"]


def draw_partial(seed: int, strength_range: tuple[float, float], removed_range: tuple[float, float]) -> PartialDraw:
    """What a row's seed and the configuration's ranges say: the same for the same row in every run.

    >>> draw = draw_partial(7, (0.5, 0.8), (0.4, 0.6))
    >>> draw == draw_partial(7, (0.5, 0.8), (0.4, 0.6)), 0.5 <= draw.strength <= 0.8, 0.4 <= draw.removed <= 0.6
    (True, True, True)
    """
    rng = np.random.default_rng(seed)
    low, high = strength_range
    strength = low + (high - low) * rng.random()
    low, high = removed_range
    removed = low + (high - low) * rng.random()
    return PartialDraw(strength=strength, removed=removed, side=_SIDES[int(4 * rng.random())])


def cut_mask(mask_HW: np.ndarray, side: str, share: float) -> np.ndarray:
    """Where the view stays as it is: a half plane that begins at `side` and holds `share` of the mask as nearly as a
    straight cut between two rows or columns can; bool (H, W).

    Raises:
        ValueError: no such cut leaves some of the mask on either side.
    """
    turned = mask_HW > 0 if side in ("top", "bottom") else (mask_HW > 0).T
    lines = turned.sum(axis=1)
    if side in ("bottom", "right"):
        lines = lines[::-1]
    held = np.cumsum(lines) / max(lines.sum(), 1)
    usable = np.flatnonzero((held > 0) & (held < 1))
    if not len(usable):
        raise ValueError(f"the object is too small to be cut from the {side}")
    kept = int(usable[np.argmin(np.abs(held[usable] - share))]) + 1
    plane = np.zeros(turned.shape, bool)
    plane[: kept if side in ("top", "left") else None][-kept:] = True
    return plane if side in ("top", "bottom") else plane.T


class FluxFillPartialEngine(FluxFillEngine):
    """Repaints a part of the object from itself: another instance that shares the rest. Strength, share and side of
    each row follow from its seed (`draw_partial`); rows run one by one, each with its strength."""

    family = "flux-fill-partial"
    supports = FluxFillEngine.supports - {"strength"}  # drawn for each row
    option_names = frozenset({"strength_low", "strength_high", "removed_low", "removed_high"})

    def __init__(self, settings: DiffusionSettings) -> None:
        super().__init__(settings)
        for name in ("strength", "removed"):
            low, high = self._range(name)
            if not 0 < low <= high < 1:
                raise UsageError(f"{self.name}: {name} is {low} to {high}; expected 0 < low <= high < 1")
        if settings.steps * self._range("strength")[0] < 1:
            raise UsageError(f"{self.name}: steps {settings.steps} x the lowest strength leave no step")

    def control(self, strength: float) -> None:
        """None: half of the object stays as it is, which is no test of the whole."""

    def draw(self, request: EngineRequest) -> PartialDraw:
        """How this row is painted."""
        return draw_partial(request.seed, self._range("strength"), self._range("removed"))

    def region(self, request: EngineRequest) -> np.ndarray:
        """The grown mask without what is drawn to stay."""
        region_HW = painting_mask(request.mask_HW, self.config.dilation_px)
        draw = self.draw(request)
        region_HW[cut_mask(request.mask_HW, draw.side, draw.removed)] = 0
        return region_HW

    def result(
        self, request: EngineRequest, region_HW: np.ndarray, picture_HW3: np.ndarray, flagged: bool | None
    ) -> EngineResult:
        """With the part that was repainted and the share of the object that was not."""
        whole = super().result(request, region_HW, picture_HW3, flagged)
        part_HW = np.where((region_HW > 0) & (request.mask_HW > 0), np.uint8(255), np.uint8(0))
        kept = 1 - float((part_HW > 0).sum() / (request.mask_HW > 0).sum())
        return EngineResult(
            image_HW3=whole.image_HW3, mask_HW=region_HW, part_mask_HW=part_HW, oracle=kept, flagged=flagged
        )

    def call(
        self,
        images: list[np.ndarray],
        masks: list[np.ndarray],
        requests: Sequence[EngineRequest],
        generators: "list[torch.Generator]",
    ) -> Any:
        pictures: list[np.ndarray] = []
        for image, mask, request, generator in zip(images, masks, requests, generators, strict=True):
            pictures += list(self.fill([image], [mask], [request], [generator], self.draw(request).strength).images)
        return pictures

    def _range(self, name: str) -> tuple[float, float]:
        return float(self.config.options[f"{name}_low"]), float(self.config.options[f"{name}_high"])
