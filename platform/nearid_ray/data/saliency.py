"""Where in a photo the one object probably is, from colours alone and without a trained model.

The map follows Zhu, Liang, Wei, Sun: "Saliency Optimization from Robust Background Detection" (CVPR 2014): a region is
background when, for its area, it is strongly connected to the photo's border by small steps of colour; a region is
object when its colour differs from nearby background; a quadratic cost then makes neighbours of like colour agree. A
wide Gaussian around the centre is multiplied in, because people put the object there.

Axes: H height, W width, N regions.
"""

from collections.abc import Sequence

import cv2
import numpy as np

_GRID = 14
"""Regions along the long side: enough to follow an object of a tenth of the photo, few enough for N x N matrices."""
_LAB_SCALE = 20.0
"""Lab distance that weighs as much as one grid cell in the regions' k-means."""
_KMEANS_ROUNDS = 6
_COLOUR_SIGMA = 10.0
"""Lab distance at which two regions stop being alike (the paper's sigma_clr)."""
_PLACE_SIGMA = 0.25
"""Share of the photo over which contrast counts (the paper's sigma_spa)."""
_FREE_STEP = 3.0
"""Lab steps below this cost nothing on the way to the border, so that gradients of light do not add up."""
_BOTTOM_WEIGHT = 0.6
"""The lower border counts less as background: objects stand on it."""
_CENTRE = (0.5, 0.52)
_BACKGROUND_COST = 5.0


def saliency_maps(image_HW3: np.ndarray, centre_sigmas: Sequence[float], *, brighten: bool = False) -> list[np.ndarray]:
    """How much each pixel looks like the object: float32 (H, W) in 0..1, one map for each centre prior.

    Meant for small pictures (160 pixels: about 0.1 s). `centre_sigmas` are widths of the centre prior as shares of the
    photo; `brighten` first stretches the light of a dark photo, whose Lab distances are else too small.
    """
    lab_HW3 = lab_of(image_HW3, brighten=brighten)
    label_HW = _regions(lab_HW3)
    height, width = label_HW.shape
    labels = label_HW.ravel()
    area_N = np.bincount(labels).astype(np.float64)
    count = len(area_N)
    colour_N3 = _means(labels, lab_HW3.reshape(-1, 3), area_N)
    y_HW, x_HW = np.mgrid[:height, :width]
    place = np.stack([(x_HW.ravel() + 0.5) / width, (y_HW.ravel() + 0.5) / height], axis=1)
    place_N2 = _means(labels, place, area_N)
    colour_NN = np.linalg.norm(colour_N3[:, None] - colour_N3[None], axis=-1)
    place_NN = np.linalg.norm(place_N2[:, None] - place_N2[None], axis=-1)
    neighbour_NN = _neighbours(label_HW, count)

    background_N = _background(label_HW, area_N, colour_NN, neighbour_NN)
    contrast_N = (colour_NN * np.exp(-(place_NN**2) / (2 * _PLACE_SIGMA**2))) @ (background_N * area_N)
    object_N = _to_one(contrast_N) * (1 - background_N)
    distance2_N = ((place_N2 - np.array(_CENTRE)) ** 2).sum(axis=1)
    maps = []
    for sigma in centre_sigmas:
        prior_N = _to_one(object_N * np.exp(-distance2_N / (2 * sigma**2)))
        maps.append(_smoothed(prior_N, background_N, colour_NN, neighbour_NN)[label_HW].astype(np.float32))
    return maps


def lab_of(image_HW3: np.ndarray, *, brighten: bool = False) -> np.ndarray:
    """The picture in CIE Lab, float32 (L in 0..100); `brighten` lifts dark pictures to a mean brightness near 0.4."""
    values = image_HW3.astype(np.float32) / 255
    if brighten:
        brightest = values.max(axis=2)
        values = np.clip(values / max(float(np.percentile(brightest, 99)), 0.2), 0, 1)
        mean = float(np.clip(values.max(axis=2).mean(), 0.01, 0.99))
        values = values ** np.float32(np.clip(np.log(0.4) / np.log(mean), 0.6, 1.0))
    return cv2.cvtColor(values, cv2.COLOR_RGB2LAB)


def _regions(lab_HW3: np.ndarray) -> np.ndarray:
    """Pixels grouped by colour and place: labels 0..N-1, by k-means from a regular grid."""
    height, width = lab_HW3.shape[:2]
    step = max(height, width) / _GRID
    y_HW, x_HW = np.mgrid[:height, :width].astype(np.float32)
    features = np.dstack([lab_HW3 / _LAB_SCALE, x_HW[..., None] * 1.1 / step, y_HW[..., None] * 1.1 / step])
    columns = int(np.ceil(width / step))
    start = (y_HW // step).astype(np.int32) * columns + (x_HW // step).astype(np.int32)
    start = np.unique(start, return_inverse=True)[1].reshape(-1, 1).astype(np.int32)
    cv2.setRNGSeed(0)
    criteria = (cv2.TERM_CRITERIA_COUNT, _KMEANS_ROUNDS, 0)
    samples = features.reshape(-1, 5).astype(np.float32)
    _, labels, _ = cv2.kmeans(samples, int(start.max()) + 1, start, criteria, 1, cv2.KMEANS_USE_INITIAL_LABELS)
    return np.unique(labels.ravel(), return_inverse=True)[1].reshape(height, width)


def _means(labels: np.ndarray, values: np.ndarray, area_N: np.ndarray) -> np.ndarray:
    sums = [np.bincount(labels, values[:, c], minlength=len(area_N)) for c in range(values.shape[1])]
    return np.stack(sums, axis=1) / area_N[:, None]


def _neighbours(label_HW: np.ndarray, count: int) -> np.ndarray:
    touching = np.zeros((count, count), bool)
    touching[label_HW[:, :-1], label_HW[:, 1:]] = True
    touching[label_HW[:-1], label_HW[1:]] = True
    return touching | touching.T


def _background(
    label_HW: np.ndarray, area_N: np.ndarray, colour_NN: np.ndarray, neighbour_NN: np.ndarray
) -> np.ndarray:
    """The paper's w_bg: 0 for a region apart from the border, near 1 for one that runs along it."""
    count = len(area_N)
    border_HW = np.zeros(label_HW.shape)
    border_HW[-1] = _BOTTOM_WEIGHT
    border_HW[0] = border_HW[:, 0] = border_HW[:, -1] = 1
    border_N = np.bincount(label_HW.ravel(), border_HW.ravel(), minlength=count)
    at_border = border_N > 0
    linked = neighbour_NN | (at_border[:, None] & at_border[None])
    path_NN = np.where(linked, np.maximum(colour_NN - _FREE_STEP, 0), np.inf)
    np.fill_diagonal(path_NN, 0)
    for k in range(count):  # Floyd-Warshall
        np.minimum(path_NN, path_NN[:, k : k + 1] + path_NN[k], out=path_NN)
    alike_NN = np.exp(-(path_NN**2) / (2 * _COLOUR_SIGMA**2))
    connectivity_N = (alike_NN @ border_N) / np.sqrt(alike_NN @ area_N)
    return 1 - np.exp(-(connectivity_N**2) / 2)


def _smoothed(
    object_N: np.ndarray, background_N: np.ndarray, colour_NN: np.ndarray, neighbour_NN: np.ndarray
) -> np.ndarray:
    """Minimum of the paper's quadratic cost (its Eq. 9), which is a linear system, scaled to 0..1."""
    links = neighbour_NN.astype(np.int64)
    near_NN = neighbour_NN | (links @ links > 0)
    np.fill_diagonal(near_NN, False)
    weight_NN = np.where(near_NN, np.exp(-(colour_NN**2) / (2 * _COLOUR_SIGMA**2)) + 0.1, 0)
    laplacian_NN = np.diag(weight_NN.sum(axis=1)) - weight_NN
    solved = np.linalg.solve(np.diag(_BACKGROUND_COST * background_N + object_N + 1e-3) + laplacian_NN, object_N)
    return _to_one(solved - solved.min())


def _to_one(values: np.ndarray) -> np.ndarray:
    largest = values.max()
    return values / largest if largest > 0 else np.zeros_like(values)
