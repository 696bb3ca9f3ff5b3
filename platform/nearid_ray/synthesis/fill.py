"""Fill a hole in a picture from its surroundings, without a model.

Axes: H height, W width, N patches to fill, S patches to copy from, D numbers a patch.
"""

from typing import Any

import cv2
import numpy as np

_LEVELS_PX = (32, 64, 128)
"""Long sides at which patches are matched, coarse to fine; the last one's matches are copied at full size."""
_ROUNDS = (4, 3, 2)
_RADIUS = 2
"""Patches of 5 x 5 pixels: 75 numbers of 0 to 255 and two of up to 512, so that float32 sums of products stay whole
numbers below 2**24 and the nearest patch does not depend on the order of summation (threads, BLAS)."""
_MOST_SOURCES = 3000
_PLACE_RANGE = 512
"""A patch's place, from 0 to this along the long side, counts like colours do: near pieces are preferred to far ones
that fit slightly better, because smooth ones fit everywhere."""


def fill_smooth(view_HW3: np.ndarray, hole_HW: np.ndarray) -> np.ndarray:
    """The picture with its hole closed smoothly: OpenCV's Telea inpainting at 128 pixels, brought to full size.

    Outside the hole nothing changes. ValueError when the hole is the whole picture.
    """
    _check(view_HW3, hole_HW)
    small, hole = _shrunk(view_HW3, hole_HW, _LEVELS_PX[-1])
    if hole.all():
        hole = hole_HW > 0
        small = view_HW3
    filled = cv2.inpaint(small, hole.astype(np.uint8), 3, cv2.INPAINT_TELEA)
    large = cv2.resize(filled, view_HW3.shape[1::-1], interpolation=cv2.INTER_CUBIC)
    return np.where(hole_HW[..., None] > 0, large, view_HW3)


def fill_patches(view_HW3: np.ndarray, hole_HW: np.ndarray) -> np.ndarray:
    """The picture with its hole filled by pieces of its own background, so that texture goes on.

    Patch by patch the most similar piece of background is found and the overlapping pieces are averaged, over three
    sizes (the scheme of Wexler, Shechtman, Irani: "Space-Time Completion of Video", PAMI 2007); at full size each small
    cell is copied from the piece that fitted it best, and corrected to the averaged colours. Where the background is
    too small to copy from, it is filled smoothly. Outside the hole nothing changes. About 0.5 s at 512 pixels.
    """
    _check(view_HW3, hole_HW)
    if not (hole_HW > 0).any():
        return view_HW3.copy()
    filled: Any = None
    for long_px, rounds in zip(_LEVELS_PX, _ROUNDS, strict=True):
        small, hole = _shrunk(view_HW3, hole_HW, long_px)
        sources = _sources(hole)
        if not len(sources):
            continue
        if filled is None:
            start = cv2.inpaint(small, hole.astype(np.uint8), 3, cv2.INPAINT_TELEA)
        else:
            start = cv2.resize(filled, small.shape[1::-1], interpolation=cv2.INTER_LINEAR)
        filled = np.where(hole[..., None], start, small)
        for _ in range(rounds):
            targets, matches, distance = _match(filled, hole, sources)
            filled = np.where(hole[..., None], _voted(filled, targets, matches, distance), small)
    if filled is None:
        return fill_smooth(view_HW3, hole_HW)
    copied = _copied(view_HW3, hole, targets, matches, distance)
    return np.where(hole_HW[..., None] > 0, _recoloured(copied, filled), view_HW3)


def _sources(hole_HW: np.ndarray) -> np.ndarray:
    """Centres (S, 2) of patches that lie wholly in the background and in the picture, thinned evenly."""
    free = (~hole_HW).astype(np.uint8)
    kernel = np.ones((2 * _RADIUS + 1, 2 * _RADIUS + 1), np.uint8)
    whole = cv2.erode(free, kernel, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    centres = np.argwhere(whole)
    return centres[:: -(-len(centres) // _MOST_SOURCES)] if len(centres) else centres


def _match(
    image_HW3: np.ndarray, hole_HW: np.ndarray, sources_S2: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(targets (N, 2), their sources (N, 2), squared distances (N,)) for all patches that reach into the hole."""
    kernel = np.ones((2 * _RADIUS + 1, 2 * _RADIUS + 1), np.uint8)
    targets_N2 = np.argwhere(cv2.dilate(hole_HW.astype(np.uint8), kernel))
    padded = cv2.copyMakeBorder(image_HW3, _RADIUS, _RADIUS, _RADIUS, _RADIUS, cv2.BORDER_REFLECT_101)
    source_SD = _patches(padded, sources_S2)
    square_S = (source_SD * source_SD).sum(axis=1)
    nearest_N = np.empty(len(targets_N2), np.int64)
    distance_N = np.empty(len(targets_N2), np.float32)
    for start in range(0, len(targets_N2), 1024):  # bounds the matrix of distances to 12 MB
        target_nD = _patches(padded, targets_N2[start : start + 1024])
        distance_nS = square_S - 2 * (target_nD @ source_SD.T)
        nearest = distance_nS.argmin(axis=1)
        nearest_N[start : start + 1024] = nearest
        square_n = (target_nD * target_nD).sum(axis=1)
        distance_N[start : start + 1024] = distance_nS[np.arange(len(nearest)), nearest] + square_n
    return targets_N2, sources_S2[nearest_N], distance_N


def _patches(padded_HW3: np.ndarray, centres_N2: np.ndarray) -> np.ndarray:
    size = 2 * _RADIUS + 1
    windows = np.lib.stride_tricks.sliding_window_view(padded_HW3, (size, size), axis=(0, 1))
    colours = windows[centres_N2[:, 0], centres_N2[:, 1]].reshape(len(centres_N2), -1)
    places = centres_N2 * _PLACE_RANGE // max(windows.shape[:2])
    return np.concatenate([colours, places], axis=1).astype(np.float32)


def _voted(image_HW3: np.ndarray, targets_N2: np.ndarray, matches_N2: np.ndarray, distance_N: np.ndarray) -> np.ndarray:
    """Each pixel as the mean of what all patches over it say, good matches weighing more."""
    height, width = image_HW3.shape[:2]
    scale = float(np.percentile(distance_N, 75)) + 1.0
    weight_N = np.exp(-distance_N.astype(np.float64) / (2 * scale))
    total = np.zeros((height, width, 3))
    weights = np.zeros((height, width))
    for dy, dx, inside in _cells(targets_N2, height, width):
        y, x = targets_N2[inside, 0] + dy, targets_N2[inside, 1] + dx
        values = image_HW3[matches_N2[inside, 0] + dy, matches_N2[inside, 1] + dx]
        total[y, x] += weight_N[inside, None] * values  # one (dy, dx) names every pixel at most once
        weights[y, x] += weight_N[inside]
    return np.rint(total / np.maximum(weights, 1e-12)[..., None]).astype(np.uint8)


def _copied(
    view_HW3: np.ndarray, hole_hw: np.ndarray, targets_N2: np.ndarray, matches_N2: np.ndarray, distance_N: np.ndarray
) -> np.ndarray:
    """The view at full size, each hole cell copied from where the best patch over it came from."""
    rows, columns = hole_hw.shape
    height, width = view_HW3.shape[:2]
    best = np.full((rows, columns), np.inf)
    shift = np.zeros((rows, columns, 2), np.float32)
    for dy, dx, inside in _cells(targets_N2, rows, columns):
        y, x = targets_N2[inside, 0] + dy, targets_N2[inside, 1] + dx
        better = distance_N[inside] < best[y, x]
        y, x, chosen = y[better], x[better], inside[better]
        best[y, x] = distance_N[chosen]
        shift[y, x] = matches_N2[chosen] - targets_N2[chosen]
    shift[~hole_hw] = 0
    full = cv2.resize(shift, (width, height), interpolation=cv2.INTER_NEAREST)
    y_HW, x_HW = np.mgrid[:height, :width]
    y_HW = np.clip(y_HW + np.rint(full[..., 0] * (height / rows)).astype(np.int64), 0, height - 1)
    x_HW = np.clip(x_HW + np.rint(full[..., 1] * (width / columns)).astype(np.int64), 0, width - 1)
    return view_HW3[y_HW, x_HW]


def _recoloured(copied_HW3: np.ndarray, filled_hw3: np.ndarray) -> np.ndarray:
    """The copy with its coarse colours replaced by those of the averaged filling, which hides seams."""
    coarse = cv2.resize(copied_HW3, filled_hw3.shape[1::-1], interpolation=cv2.INTER_AREA)
    missing = cv2.GaussianBlur(filled_hw3.astype(np.float32) - coarse, (0, 0), 1.0)
    correction = cv2.resize(missing, copied_HW3.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    return np.clip(np.rint(copied_HW3 + correction), 0, 255).astype(np.uint8)


def _cells(centres_N2: np.ndarray, height: int, width: int) -> list[tuple[int, int, np.ndarray]]:
    """For each place in a patch, the patches whose cell there lies in the picture, as indices."""
    cells = []
    for dy in range(-_RADIUS, _RADIUS + 1):
        for dx in range(-_RADIUS, _RADIUS + 1):
            y, x = centres_N2[:, 0] + dy, centres_N2[:, 1] + dx
            cells.append((dy, dx, np.flatnonzero((y >= 0) & (y < height) & (x >= 0) & (x < width))))
    return cells


def _shrunk(view_HW3: np.ndarray, hole_HW: np.ndarray, long_px: int) -> tuple[np.ndarray, np.ndarray]:
    """Picture and hole at `long_px` (never larger); a cell with any hole pixel near it is hole."""
    height, width = hole_HW.shape
    scale = min(1.0, long_px / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    share = cv2.resize((hole_HW > 0).astype(np.float32), size, interpolation=cv2.INTER_AREA)
    hole: Any = (share > 0).astype(np.uint8)
    if scale < 1:  # one cell more: cells are averages, and copies may be a pixel off
        hole = cv2.dilate(hole, np.ones((3, 3), np.uint8))
    return cv2.resize(view_HW3, size, interpolation=cv2.INTER_AREA), hole > 0


def _check(view_HW3: np.ndarray, hole_HW: np.ndarray) -> None:
    if view_HW3.dtype != np.uint8 or view_HW3.shape[:2] != hole_HW.shape or view_HW3.ndim != 3:
        raise ValueError(
            f"a picture {view_HW3.dtype} {view_HW3.shape} with a hole {hole_HW.shape}; expected uint8 (H, W, 3) and "
            "(H, W) of the same size"
        )
    if (hole_HW > 0).all():
        raise ValueError("the hole is the whole picture; there is nothing to fill it from")
