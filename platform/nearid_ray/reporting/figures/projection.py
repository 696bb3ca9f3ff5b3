"""Figure 5: embeddings of a few identities in two dimensions, frozen and trained.

Axes: N images, D embedding width.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nearid_ray.reporting.charts import Dots, scatter_chart
from nearid_ray.reporting.figures.figure import Figure, Panel, colour_keys
from nearid_ray.reporting.model import Projection
from nearid_ray.reporting.svg import series_colours

_SIDE = 460.0


def projection_figure(projections: Sequence[Projection]) -> Figure:
    """Kernel PCA of a few identities, one panel a scorer; a colour an identity, discs views, crosses distractors."""
    names = list(dict.fromkeys(name for p in projections for name in p.identities))
    colours = series_colours(names)
    panels = [
        Panel(
            svg=scatter_chart(_dots(p), colours, label=f"Kernel PCA of {len(names)} identities by {p.scorer}"),
            height=_SIDE,
            caption=f"{p.scorer}: {sum(p.is_view)} views (discs) and {len(p.is_view) - sum(p.is_view)} distractors "
            f"(crosses) of {len(set(p.identities))} identities.",
        )
        for p in projections
    ]
    caption = (
        "Each colour is one identity. Discs are its views, crosses are distractors: other objects in the background "
        "of one of its views. A good embedding gathers the discs of a colour and keeps its crosses apart. Kernel PCA "
        "with the cosine kernel; every panel is projected by itself, its axes have no unit."
    )
    title = "Embeddings before and after training" if len(projections) > 1 else "Embeddings"
    return Figure(name="figure5-projection", title=title, caption=caption, panels=panels, legend=colour_keys(colours))


def kernel_pca(embedding_ND: NDArray[np.floating]) -> NDArray[np.float64]:
    """The two leading components of kernel PCA with the cosine kernel: (N, 2); signs fixed, so that runs agree.

    Rows that are not finite become nan. Fewer than three usable rows give nan throughout.
    """
    from sklearn.decomposition import KernelPCA

    projected = np.full((len(embedding_ND), 2), np.nan)
    usable = np.isfinite(embedding_ND).all(axis=1)
    if usable.sum() < 3:
        return projected
    points = KernelPCA(n_components=2, kernel="cosine", eigen_solver="dense").fit_transform(embedding_ND[usable])
    points = np.pad(points, ((0, 0), (0, 2 - points.shape[1])))
    largest = np.abs(points).argmax(axis=0)
    projected[usable] = points * np.where(points[largest, [0, 1]] < 0, -1.0, 1.0)
    return projected


def _dots(projection: Projection) -> list[Dots]:
    dots = []
    points_N2 = kernel_pca(projection.embedding_ND)
    identity = np.asarray(projection.identities)
    view = np.asarray(projection.is_view, bool)
    for name in dict.fromkeys(projection.identities):
        for hollow in (False, True):
            rows = (identity == name) & (view != hollow) & np.isfinite(points_N2).all(axis=1)
            x, y = points_N2[rows].T.tolist()
            dots.append(Dots(name=name, x=x, y=y, hollow=hollow))
    return dots
