"""The exemplar engine: another identity's object, cut out by its mask and set in the old object's place. No model.

It makes distractors for real photos on any machine: the object is another real one of the same category, the
background stays. It is no generator: pose and light are those of the donor's photo.

Axes: H height, W width.
"""

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np

from nearid_ray.data.images import mask_box
from nearid_ray.data.masks import check_mask, dilate_mask
from nearid_ray.synthesis.engine import CONTROL, Engine, EngineRequest, EngineResult, PlainEngine
from nearid_ray.synthesis.fill import fill_patches, fill_smooth

_REFERENCE_PX = 512
"""Lengths in the settings are given for pictures of this size and grow and shrink with the picture."""
_SEARCH_PX = 64
"""Size at which the place of the donor is searched."""


@dataclass(frozen=True, kw_only=True)
class ExemplarSettings:
    """How a donor's object is set into a view. Lengths are in pixels of a picture of 512 and scale with the picture."""

    dilation_px: float = 10.0
    """How far the painted region reaches beyond the view's mask, so that no rim of the old object stays; 0 or more."""
    edge_px: float = 2.0
    """Softness of the donor's outline; 0 or more."""
    spill_cost: float = 1.0
    """What a donor pixel costs that would lie outside the painted region and is cut off, against the gain of one that
    lies inside; large values keep the donor small and whole. More than 0."""
    max_stretch: float = 1.15
    """Largest change of the donor's aspect to fit the region; 1 keeps it exactly. 1 to 2."""
    flip: Literal["fit", "seed", "never"] = "fit"
    """Whether the donor is mirrored left to right: where that fits the region better, by the row's seed, or never."""
    light: float = 0.5
    """How far the donor's brightness moves to the old object's; 0 (stays) to 1 (same mean and spread)."""
    tint: float = 0.15
    """How far the donor's mean colour moves to the old object's; 0 to 1."""
    fill: Literal["patches", "telea"] = "patches"
    """What covers the old object where the donor does not: patches copied from the background, or OpenCV's Telea
    inpainting (smooth)."""

    def __post_init__(self) -> None:
        for name in ("dilation_px", "edge_px"):
            if not 0 <= getattr(self, name) < _REFERENCE_PX:
                raise ValueError(f"{name} is {getattr(self, name)}; expected 0 or more and less than {_REFERENCE_PX}")
        for name in ("light", "tint"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected 0 to 1")
        if not self.spill_cost > 0:
            raise ValueError(f"spill_cost is {self.spill_cost}; expected more than 0")
        if not 1 <= self.max_stretch <= 2:
            raise ValueError(f"max_stretch is {self.max_stretch}; expected 1 to 2")
        if self.flip not in ("fit", "seed", "never"):
            raise ValueError(f"flip is {self.flip!r}; expected fit, seed or never")
        if self.fill not in ("patches", "telea"):
            raise ValueError(f"fill is {self.fill!r}; expected patches or telea")


class Placement(NamedTuple):
    """Where the donor's box goes: left and top edge, width and height, as shares of the picture's size; and how well
    it covers the region: 1 is perfect."""

    left: float
    top: float
    width: float
    height: float
    score: float


class ExemplarEngine(PlainEngine):
    """Cuts the donor's object out, fits it to the view's mask on a filled background, and blends."""

    name = "exemplar"
    family = "exemplar"
    needs_donor = True

    def __init__(self, settings: ExemplarSettings | None = None) -> None:
        self._settings = settings or ExemplarSettings()
        self.settings: dict[str, Any] = asdict(self._settings)

    def control(self, strength: float) -> Engine:
        """The view's own object cut out and set back; it has no strength to choose."""
        return _OwnObject(replace(self._settings, flip="never"))

    def generate(self, requests: list[EngineRequest]) -> list[EngineResult | Exception]:
        """One result a request; a missing donor or an unusable mask gives a ValueError in its place."""
        return [self._one(request) for request in requests]

    def _one(self, request: EngineRequest) -> EngineResult | Exception:
        try:
            return _replace_object(request, self._settings)
        except (ValueError, cv2.error) as error:
            return error


class _OwnObject(ExemplarEngine):
    """The artefact control: the donor is the view itself."""

    name = ExemplarEngine.name + CONTROL
    group = "control"
    needs_donor = False

    def control(self, strength: float) -> None:  # type: ignore[override]
        """None: it is one."""

    def _one(self, request: EngineRequest) -> EngineResult | Exception:
        return super()._one(replace(request, donor_HW3=request.view_HW3, donor_mask_HW=request.mask_HW))


def place_donor(region_HW: np.ndarray, shape_HW: np.ndarray, *, spill_cost: float, max_stretch: float) -> Placement:
    """The size and place of the donor's silhouette that cover the region best with the least cut off.

    `shape_HW` is the donor's mask cut to its box, of any size. Maximises (covered - spill_cost * cut off) / region, all
    counted in pixels at a size of 64, over sizes, aspects up to `max_stretch` and all places.
    """
    height, width = region_HW.shape
    scale = _SEARCH_PX / max(height, width)
    small_w, small_h = max(8, round(width * scale)), max(8, round(height * scale))
    region = cv2.resize((region_HW > 0).astype(np.float32), (small_w, small_h), interpolation=cv2.INTER_AREA)
    margin = _SEARCH_PX
    gain = cv2.copyMakeBorder(
        region - spill_cost * (1 - region), margin, margin, margin, margin, cv2.BORDER_CONSTANT, value=-spill_cost
    )
    shape = (shape_HW > 0).astype(np.float32)
    equal = float(np.sqrt(region.sum() / max(shape.sum(), 1.0)))  # the donor would have the region's area
    best: Placement | None = None
    for size in np.geomspace(0.5, 1.5, 21):
        for stretch in (1.0,) if max_stretch == 1 else (max_stretch**-0.5, 1.0, max_stretch**0.5):
            w = max(1, round(shape.shape[1] * equal * size * stretch))
            h = max(1, round(shape.shape[0] * equal * size / stretch))
            if w > gain.shape[1] or h > gain.shape[0]:
                continue
            score = cv2.matchTemplate(gain, _averaged(shape, w, h), cv2.TM_CCORR)
            _, value, _, (x, y) = cv2.minMaxLoc(score)
            share = value / float(region.sum())
            if best is None or share > best.score + 1e-6:
                best = Placement((x - margin) / small_w, (y - margin) / small_h, w / small_w, h / small_h, share)
    if best is None:
        raise ValueError("the donor's mask fits nowhere into the view")
    return best


def _best_placement(
    region_HW: np.ndarray, shape_hw: np.ndarray, mirrored: tuple[bool, ...], settings: ExemplarSettings
) -> tuple[Placement, bool]:
    places = [
        place_donor(
            region_HW,
            np.ascontiguousarray(shape_hw[:, ::-1] if mirror else shape_hw),
            spill_cost=settings.spill_cost,
            max_stretch=settings.max_stretch,
        )
        for mirror in mirrored
    ]
    best = max(range(len(places)), key=lambda i: places[i].score)
    return places[best], mirrored[best]


def _replace_object(request: EngineRequest, settings: ExemplarSettings) -> EngineResult:
    view_HW3, mask_HW = request.view_HW3, request.mask_HW
    if request.donor_HW3 is None or request.donor_mask_HW is None:
        raise ValueError("the exemplar engine needs a donor picture and its mask; none was given")
    check_mask(mask_HW)
    check_mask(request.donor_mask_HW)
    unit = max(view_HW3.shape[:2]) / _REFERENCE_PX
    region_HW = dilate_mask(mask_HW, round(settings.dilation_px * unit))
    left, top, right, bottom = mask_box(request.donor_mask_HW)
    donor_hw3 = request.donor_HW3[top:bottom, left:right]
    shape_hw = request.donor_mask_HW[top:bottom, left:right]
    mirrored = {"fit": (False, True), "seed": (request.seed % 2 == 1,), "never": (False,)}[settings.flip]
    place, mirror = _best_placement(region_HW, shape_hw, mirrored, settings)
    if mirror:
        donor_hw3, shape_hw = np.ascontiguousarray(donor_hw3[:, ::-1]), np.ascontiguousarray(shape_hw[:, ::-1])
    donor_HW3, alpha_HW = _warp(donor_hw3, shape_hw, place, view_HW3.shape[:2], settings.edge_px * unit)
    donor_HW3 = _harmonised(donor_HW3, alpha_HW > 0.5, view_HW3, mask_HW > 0, settings)
    fill = fill_patches if settings.fill == "patches" else fill_smooth
    background_HW3 = fill(view_HW3, region_HW)
    # Towards the region's edge the donor gives way to the fill, so that a cut-off part does not end in a hard line.
    alpha_HW = alpha_HW * _fade_in(region_HW, settings.edge_px * unit)
    mixed = background_HW3 + alpha_HW[..., None] * (donor_HW3 - background_HW3.astype(np.float32))
    return EngineResult(image_HW3=np.clip(np.rint(mixed), 0, 255).astype(np.uint8), mask_HW=region_HW)


def _averaged(shape_hw: np.ndarray, width: int, height: int) -> np.ndarray:
    shrinks = width <= shape_hw.shape[1] and height <= shape_hw.shape[0]
    return cv2.resize(shape_hw, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def _warp(
    donor_hw3: np.ndarray, shape_hw: np.ndarray, place: Placement, size: tuple[int, int], edge_px: float
) -> tuple[np.ndarray, np.ndarray]:
    """The donor's object on a canvas of the view's size: (colours (H, W, 3), opacity 0..1 (H, W)), float32."""
    height, width = size
    w, h = max(1, round(place.width * width)), max(1, round(place.height * height))
    left, top = round(place.left * width), round(place.top * height)
    # Colours of the donor's own background would shine through the soft edge: the object's are spread outwards first.
    colours = cv2.resize(_spread(donor_hw3, shape_hw), (w, h), interpolation=_interpolation(w, shape_hw.shape[1]))
    opacity = _averaged((shape_hw > 0).astype(np.float32), w, h)
    canvas_HW3, alpha_HW = np.zeros((height, width, 3), np.float32), np.zeros((height, width), np.float32)
    y0, y1, x0, x1 = max(top, 0), min(top + h, height), max(left, 0), min(left + w, width)
    if y0 >= y1 or x0 >= x1:
        raise ValueError("the donor was placed outside the view")
    canvas_HW3[y0:y1, x0:x1] = colours[y0 - top : y1 - top, x0 - left : x1 - left]
    alpha_HW[y0:y1, x0:x1] = opacity[y0 - top : y1 - top, x0 - left : x1 - left]
    if edge_px > 0:
        # Blurred and cut so that the edge runs inwards only, where the colours are the object's own.
        alpha_HW = np.clip(2 * cv2.GaussianBlur(alpha_HW, (0, 0), edge_px) - 1, 0, 1)
    return canvas_HW3, alpha_HW


def _spread(picture_hw3: np.ndarray, shape_hw: np.ndarray) -> np.ndarray:
    """The picture with every pixel outside the shape set to the colour of the nearest one inside."""
    outside = (shape_hw == 0).astype(np.uint8)
    _, labels = cv2.distanceTransformWithLabels(outside, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    colours = np.zeros((labels.max() + 1, 3), np.uint8)
    inside = outside == 0
    colours[labels[inside]] = picture_hw3[inside]
    return colours[labels]


def _harmonised(
    donor_HW3: np.ndarray, donor_HW: np.ndarray, view_HW3: np.ndarray, object_HW: np.ndarray, settings: ExemplarSettings
) -> np.ndarray:
    """The donor's colours moved part of the way to the light of the old object, in Lab; float32 RGB 0..255."""
    if not donor_HW.any() or settings.light == settings.tint == 0:
        return donor_HW3
    donor_lab = cv2.cvtColor(donor_HW3 / np.float32(255), cv2.COLOR_RGB2LAB)
    view_lab = cv2.cvtColor(view_HW3.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    mean, deviation = donor_lab[donor_HW].mean(axis=0), donor_lab[donor_HW].std(axis=0)
    wanted_mean, wanted_deviation = view_lab[object_HW].mean(axis=0), view_lab[object_HW].std(axis=0)
    contrast = float(np.clip(wanted_deviation[0] / max(deviation[0], 1.0), 0.7, 1.4)) ** settings.light
    scale = np.array([contrast, 1, 1], np.float32)
    share = np.array([settings.light, settings.tint, settings.tint], np.float32)
    moved = (donor_lab - mean) * scale + mean + share * (wanted_mean - mean)
    return np.clip(cv2.cvtColor(moved.astype(np.float32), cv2.COLOR_LAB2RGB), 0, 1) * 255


def _fade_in(region_HW: np.ndarray, width_px: float) -> np.ndarray:
    """0 at the region's edge, 1 from `width_px` inwards; the picture's own border is no edge."""
    if width_px <= 0 or (region_HW > 0).all():
        return (region_HW > 0).astype(np.float32)
    depth = cv2.distanceTransform((region_HW > 0).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return np.clip(depth / (width_px + 1), 0, 1)


def _interpolation(new_px: int, old_px: int) -> int:
    return cv2.INTER_AREA if new_px < old_px else cv2.INTER_CUBIC
