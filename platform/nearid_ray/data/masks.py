"""Masks: how good one is, cleaning and growing it, and making one for a photo that came without.

A mask is uint8 (H, W) with 255 on the object and 0 elsewhere.
"""

import math
from typing import NamedTuple

import cv2
import numpy as np

from nearid_ray.data.images import resize_mask
from nearid_ray.data.saliency import lab_of, saliency_maps

FULL_SHARE = 0.98
"""A mask that covers at least this share of the picture leaves no background and counts as full."""

_FINE_PX = 320
_COARSE_PX = 160
_SMALLEST_PX = 16
_ROUNDS = 5
_FINE_ROUNDS = 3


class MaskQuality(NamedTuple):
    """`area` as a share of the picture, number of connected `pieces` (8-neighbours), whether it reaches the border."""

    area: float
    pieces: int
    touches_border: bool


def mask_quality(mask_HW: np.ndarray) -> MaskQuality:
    """What can be said of a mask without seeing the picture; an empty one has area 0 and no pieces."""
    _check(mask_HW)
    object_HW = mask_HW > 0
    pieces = cv2.connectedComponents(object_HW.astype(np.uint8), connectivity=8)[0] - 1
    touches = object_HW[0].any() or object_HW[-1].any() or object_HW[:, 0].any() or object_HW[:, -1].any()
    return MaskQuality(area=float(object_HW.mean()), pieces=int(pieces), touches_border=bool(touches))


def mask_suspicion(quality: MaskQuality, usual_area: float) -> float:
    """How much a mask looks wrong from its figures alone, 0 for one that looks right.

    The sum of: how many times its area doubles or halves `usual_area` (the median of the object's other masks, say), a
    half for each piece beyond the first, up to two, and one where it reaches the border. Infinite for an empty mask.

    >>> mask_suspicion(MaskQuality(area=0.1, pieces=2, touches_border=True), usual_area=0.4)
    3.5
    """
    if quality.area <= 0 or usual_area <= 0:
        return float("inf")
    return abs(math.log2(quality.area / usual_area)) + 0.5 * min(quality.pieces - 1, 4) + quality.touches_border


def check_mask(mask_HW: np.ndarray) -> None:
    """ValueError when the mask is empty or covers (nearly) the whole picture: there is then no object or no context."""
    area = mask_quality(mask_HW).area
    if area == 0:
        raise ValueError("the mask is empty: no pixel belongs to the object")
    if area >= FULL_SHARE:
        raise ValueError(f"the mask covers {area:.1%} of the picture; expected less than {FULL_SHARE:.0%}")


def dilate_mask(mask_HW: np.ndarray, radius_px: int) -> np.ndarray:
    """The mask grown by a disk of `radius_px`; 0 returns a copy."""
    _check(mask_HW)
    if radius_px < 0:
        raise ValueError(f"a dilation by {radius_px} pixels; expected 0 or more")
    return cv2.dilate(_binary(mask_HW), _disk(radius_px))


def fill_holes(mask_HW: np.ndarray) -> np.ndarray:
    """The mask with everything that it encloses."""
    _check(mask_HW)
    outlines, _ = cv2.findContours(_binary(mask_HW), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    filled = np.zeros_like(mask_HW)
    cv2.drawContours(filled, outlines, -1, 255, cv2.FILLED)
    return filled


def rendered_mask(image: np.ndarray) -> np.ndarray:
    """The mask of an object that was rendered on black and saved as JPEG, as SynCD's rigid masks are.

    `image` is uint8, (H, W, 3) or grey (H, W). Its grey values are blurred by a 5 x 5 Gaussian; all above 10
    is closed and opened with a 5 x 5 square; the outline of the largest piece is filled. Dark parts inside the outline
    count as object, other pieces do not. Empty where nothing is bright enough.
    """
    grey_HW = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) if image.ndim == 3 else image
    _check(grey_HW)
    bright_HW = np.where(cv2.GaussianBlur(grey_HW, (5, 5), 0) > 10, np.uint8(255), np.uint8(0))
    square = np.ones((5, 5), np.uint8)
    smooth_HW = cv2.morphologyEx(cv2.morphologyEx(bright_HW, cv2.MORPH_CLOSE, square), cv2.MORPH_OPEN, square)
    outlines, _ = cv2.findContours(smooth_HW, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    mask_HW = np.zeros_like(grey_HW)
    if outlines:
        cv2.drawContours(mask_HW, [max(outlines, key=cv2.contourArea)], -1, 255, cv2.FILLED)
    return mask_HW


def clean_mask(
    mask_HW: np.ndarray, *, open_share: float = 0.008, close_share: float = 0.02, keep_share: float = 0.3
) -> np.ndarray:
    """The mask without specks, gaps and holes; empty when nothing is left.

    Threads thinner than `open_share` of the long side go, gaps narrower than `close_share` are closed, holes filled. Of
    the pieces those stay whose area, weighted by closeness to the centre, is at least `keep_share` of the best one's.
    """
    _check(mask_HW)
    height, width = mask_HW.shape
    long_px = max(height, width)
    opened = cv2.morphologyEx(_binary(mask_HW), cv2.MORPH_OPEN, _disk(max(1, round(open_share * long_px))))
    radius = max(1, round(close_share * long_px))
    padded = cv2.copyMakeBorder(opened, radius, radius, radius, radius, cv2.BORDER_CONSTANT, value=0)
    closed = fill_holes(cv2.morphologyEx(padded, cv2.MORPH_CLOSE, _disk(radius)))[radius:-radius, radius:-radius]
    count, labels, stats, centres = cv2.connectedComponentsWithStats(closed)
    if count < 2:
        return np.zeros_like(mask_HW)
    distance2 = ((centres[1:] / (width, height) - 0.5) ** 2).sum(axis=1)
    weight = stats[1:, cv2.CC_STAT_AREA] * np.exp(-distance2 / (2 * 0.25**2))
    kept = 1 + np.flatnonzero(weight >= keep_share * weight.max())
    return np.where(np.isin(labels, kept), np.uint8(255), np.uint8(0))


def grabcut_mask(image_HW3: np.ndarray) -> np.ndarray:
    """A mask of the photo's one main object, by OpenCV's GrabCut, at the photo's size.

    Four first guesses (saliency maps with a wide and a narrow centre prior and one on the brightened photo, and a plain
    ellipse in the centre) are each cut at 160 pixels and cleaned. The one with the sharpest, most central and most
    compact outline that also agrees with the others is cut again at 320 pixels and brought to the photo's size. The
    same photo gives the same mask. It takes about half a second on one CPU core, whatever the size.

    Judged by eye on the 107 photos of 20 DreamBooth subjects, on which it was also tuned: some 68 masks (64 %) follow
    the object; the others miss a good part of it or take in something else. It fails where object and ground have the
    same colour (all six photos of a white bowl on white cloth), where something as colourful stands beside or touches
    the object (flowers, a wearer's clothes), and in clutter. Where masks matter, give mask files.

    Raises ValueError when the photo is smaller than 16 pixels or no object can be told from the background.
    """
    height, width = image_HW3.shape[:2]
    if min(height, width) < _SMALLEST_PX:
        raise ValueError(f"a photo of {width} x {height} pixels; expected at least {_SMALLEST_PX} on both sides")
    coarse = _shrunk(image_HW3, _COARSE_PX)
    lab = lab_of(coarse)
    candidates = [clean_mask(_cut(coarse, seeds, _ROUNDS)) for seeds in _first_seeds(coarse)]
    scores = [
        _outline_score(lab, mask) * (0.4 + 0.6 * agreement)
        for mask, agreement in zip(candidates, _agreements(candidates), strict=True)
    ]
    best = int(np.argmax(scores))
    if scores[best] <= 0:
        raise ValueError("no object could be told from the background by its colours; give a mask file")
    fine = _shrunk(image_HW3, _FINE_PX)
    guess = resize_mask(candidates[best], fine.shape[1], fine.shape[0])
    mask = clean_mask(_cut(fine, _seeds_around(guess), _FINE_ROUNDS))
    mask = resize_mask(mask if mask.any() else guess, width, height)
    check_mask(mask)
    return mask


def _first_seeds(image_HW3: np.ndarray) -> list[np.ndarray]:
    maps = [*saliency_maps(image_HW3, (0.33, 0.24)), *saliency_maps(image_HW3, (0.27,), brighten=True)]
    return [*(_seeds_from_map(map_HW) for map_HW in maps), _centre_seeds(*image_HW3.shape[:2])]


def _seeds_from_map(map_HW: np.ndarray) -> np.ndarray:
    """GrabCut's four labels by Otsu's threshold on the map; only the cleaned core can be object."""
    map_HW = cv2.GaussianBlur(map_HW, (0, 0), max(map_HW.shape) / _COARSE_PX)
    threshold = cv2.threshold((map_HW * 255).astype(np.uint8), 0, 255, cv2.THRESH_OTSU)[0] / 255
    seeds = np.full(map_HW.shape, cv2.GC_PR_BGD, np.uint8)
    seeds[map_HW < 0.2 * threshold] = cv2.GC_BGD
    core = clean_mask(np.where(map_HW > threshold, np.uint8(255), np.uint8(0))) > 0
    seeds[core] = cv2.GC_PR_FGD
    seeds[core & (map_HW > threshold + 0.6 * (1 - threshold))] = cv2.GC_FGD
    return seeds


def _centre_seeds(height: int, width: int) -> np.ndarray:
    """Probably object within 0.3 of the photo's size from its centre; surely background beyond 0.54 (the corners)."""
    distance2 = _distance2_from_centre(height, width)
    seeds = np.full((height, width), cv2.GC_PR_BGD, np.uint8)
    seeds[distance2 < 0.3**2] = cv2.GC_PR_FGD
    seeds[distance2 > 0.54**2] = cv2.GC_BGD
    return seeds


def _seeds_around(guess_HW: np.ndarray) -> np.ndarray:
    """Free to move within a band around the guess: a twentieth of the size inwards, a tenth outwards."""
    long_px = max(guess_HW.shape)
    seeds = np.where(guess_HW > 0, np.uint8(cv2.GC_PR_FGD), np.uint8(cv2.GC_PR_BGD))
    seeds[cv2.erode(guess_HW, _disk(round(0.05 * long_px))) > 0] = cv2.GC_FGD
    seeds[cv2.dilate(guess_HW, _disk(round(0.1 * long_px))) == 0] = cv2.GC_BGD
    return seeds


def _cut(image_HW3: np.ndarray, seeds_HW: np.ndarray, rounds: int) -> np.ndarray:
    foreground = (seeds_HW == cv2.GC_FGD) | (seeds_HW == cv2.GC_PR_FGD)
    # GrabCut fits five Gaussians a side and fails on fewer pixels.
    if min(foreground.sum(), (~foreground).sum()) >= 10:
        seeds_HW = seeds_HW.copy()
        cv2.setRNGSeed(0)
        background_model, object_model = np.zeros((1, 65)), np.zeros((1, 65))
        unused_box = (0, 0, 1, 1)
        cv2.grabCut(image_HW3, seeds_HW, unused_box, background_model, object_model, rounds, cv2.GC_INIT_WITH_MASK)
        foreground = (seeds_HW == cv2.GC_FGD) | (seeds_HW == cv2.GC_PR_FGD)
    return np.where(foreground, np.uint8(255), np.uint8(0))


def _agreements(masks: list[np.ndarray]) -> list[float]:
    """Each mask's mean overlap (intersection over union) with the others: a guess that stands alone is rarely right."""
    inside = np.stack([mask.ravel() > 0 for mask in masks]).astype(np.float64)
    both = inside @ inside.T
    area = np.diag(both)
    overlap = both / np.maximum(area[:, None] + area[None] - both, 1)
    return [float(row.sum() - row[i]) / (len(masks) - 1) for i, row in enumerate(overlap)]


def _outline_score(lab_HW3: np.ndarray, mask_HW: np.ndarray) -> float:
    """How much a mask looks like one object, 0 to 1: a product, so that one bad property is enough to lose."""
    object_HW = mask_HW > 0
    height, width = mask_HW.shape
    area = object_HW.mean()
    if not 0.01 <= area <= 0.8:
        return 0.0
    outlines, _ = cv2.findContours(mask_HW, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    hull = np.zeros_like(mask_HW)
    for outline in outlines:
        cv2.fillPoly(hull, [cv2.convexHull(outline)], 255)
    compact = object_HW.sum() / (hull > 0).sum()
    near_centre_HW = np.exp(-_distance2_from_centre(height, width) / (2 * 0.13**2))
    covers_centre = near_centre_HW[object_HW].sum() / near_centre_HW.sum()
    y, x = (coordinates.mean() for coordinates in np.nonzero(object_HW))
    central = np.exp(-((x / width - 0.5) ** 2 + (y / height - 0.52) ** 2) / (2 * 0.22**2))
    sides = object_HW[0].mean() + object_HW[:, 0].mean() + object_HW[:, -1].mean() + 0.4 * object_HW[-1].mean()
    large_enough = min(1.0, area / 0.06) ** 0.5
    contrast = _outline_contrast(lab_HW3, object_HW)
    return float(contrast * compact * central * (0.4 + 0.6 * covers_centre) * (1 - sides / 3.4) * large_enough)


def _outline_contrast(lab_HW3: np.ndarray, object_HW: np.ndarray) -> float:
    """Mean Lab distance across the outline between what lies just inside and just outside; 25 and more count as 1."""
    radius = max(2, round(0.04 * max(object_HW.shape)))
    inside = object_HW.astype(np.float32)
    means = [_local_mean(lab_HW3, weight, radius) for weight in (inside, 1 - inside)]
    edge = object_HW & (cv2.erode(object_HW.astype(np.uint8), _disk(1)) == 0)
    if not edge.any():
        return 0.0
    return float(np.clip(np.linalg.norm(means[0] - means[1], axis=-1)[edge] / 25, 0, 1).mean())


def _local_mean(values_HWC: np.ndarray, weight_HW: np.ndarray, radius: int) -> np.ndarray:
    size = (2 * radius + 1, 2 * radius + 1)
    return cv2.blur(values_HWC * weight_HW[..., None], size) / (cv2.blur(weight_HW, size)[..., None] + 1e-3)


def _distance2_from_centre(height: int, width: int) -> np.ndarray:
    y_HW, x_HW = np.mgrid[:height, :width]
    return ((x_HW + 0.5) / width - 0.5) ** 2 + ((y_HW + 0.5) / height - 0.52) ** 2


def _shrunk(image_HW3: np.ndarray, long_px: int) -> np.ndarray:
    height, width = image_HW3.shape[:2]
    scale = min(1.0, long_px / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return cv2.resize(image_HW3, size, interpolation=cv2.INTER_AREA)


def _disk(radius_px: int) -> np.ndarray:
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius_px + 1, 2 * radius_px + 1))


def _binary(mask_HW: np.ndarray) -> np.ndarray:
    return np.where(mask_HW > 0, np.uint8(255), np.uint8(0))


def _check(mask_HW: np.ndarray) -> None:
    if mask_HW.dtype != np.uint8 or mask_HW.ndim != 2 or mask_HW.size == 0:
        raise ValueError(f"a mask of type {mask_HW.dtype} and shape {mask_HW.shape}; expected uint8 of shape (H, W)")
