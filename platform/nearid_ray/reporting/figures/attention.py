"""Figure 3: where the pooling head looks, before and after training.

Axes: H, W pixels of a picture; R, C rows and columns of the backbone's grid of tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nearid_ray.data.images import resize_rgb
from nearid_ray.reporting.figures.figure import Figure, Panel
from nearid_ray.reporting.figures.pictures import jpeg
from nearid_ray.reporting.markup import Markup, tag
from nearid_ray.reporting.svg import (
    BOLD,
    INK,
    SMALL,
    SOFT,
    WIDTH,
    coordinate,
    picture,
    shortened,
    svg,
    text,
    text_width,
)

_SHOWN_PX = 192
_GAP, _TOP, _LINE = 10.0, 22.0, 16.0
_TALLEST_SHARE = 0.99


@dataclass(frozen=True, kw_only=True)
class AttentionPicture:
    """A picture and how much its tokens count for each scorer's head."""

    label: str
    """What it is: a view, or the engine of a distractor."""
    image_HW3: NDArray[np.uint8]
    maps: Mapping[str, NDArray[np.floating]]
    """Scorer -> weights (R, C) of the grid's tokens, averaged over attention heads; with those of tokens off the grid
    they sum to one."""
    mask_HW: NDArray[np.uint8] | None = None
    """Where the object is, non-zero inside."""


def attention_figure(pictures: Mapping[str, Sequence[AttentionPicture]]) -> Figure:
    """Attention maps over pictures: {identity: its pictures}, one panel an identity, one column a scorer.

    All maps share one scale, from 0 to what 99 % of the tokens stay below, in multiples of an even share (1 / tokens):
    a map that looks flat is flat. Below each stands the share of the weight on the object.
    """
    shown = [one for some in pictures.values() for one in some]
    scorers = list(dict.fromkeys(scorer for one in shown for scorer in one.maps))
    ratios = [(m * m.size).ravel() for one in shown for m in one.maps.values() if np.isfinite(m).all()]
    peak = max(1.5, float(np.quantile(np.concatenate(ratios), _TALLEST_SHARE))) if ratios else 1.5
    panels = [_panel(identity, some, scorers, peak) for identity, some in pictures.items()]
    shares = _mean_shares(shown, scorers)
    said = ", ".join(f"{scorer} {100 * share:.0f} %" for scorer, share in shares.items())
    caption = (
        "Weight of every token in the attention pooling, averaged over the attention heads, over views and distractors "
        f"of identities drawn by a hash. One scale for all maps: from dark (no weight) to bright ({peak:.1f} times an "
        "even share, and more). Below each map: share of the weight on the object, by its mask"
        + (f"; on average {said}, with {100 * _mean_area(shown):.0f} % of the area." if said else ".")
    )
    title = "Where the heads look"
    return Figure(name="figure3-attention", title=title, caption=caption, panels=panels)


def overlay(image_HW3: NDArray[np.uint8], map_RC: NDArray[np.floating], peak: float) -> NDArray[np.uint8]:
    """The picture in grey under its map in colour; `peak` is the multiple of an even share that is brightest.

    The map is resized with a bicubic filter, as the tokens' edges are no edges of the picture.
    """
    import cv2

    height, width = image_HW3.shape[:2]
    ratio = np.clip(np.nan_to_num(map_RC * map_RC.size) / peak, 0.0, 1.0).astype(np.float32)
    smooth = np.clip(cv2.resize(ratio, (width, height), interpolation=cv2.INTER_CUBIC), 0.0, 1.0)
    colour = cv2.applyColorMap((255 * smooth).round().astype(np.uint8), cv2.COLORMAP_INFERNO)[..., ::-1]
    grey = image_HW3.mean(axis=2, keepdims=True)
    return np.clip(0.35 * grey + 0.65 * colour, 0, 255).astype(np.uint8)


def share_on_object(map_RC: NDArray[np.floating], mask_HW: NDArray[np.uint8]) -> float:
    """Share of the grid's weight on the object: each token's weight times the part of its cell inside the mask.

    >>> share_on_object(np.array([[0.1, 0.1], [0.2, 0.6]]), np.array([[0, 0], [0, 255]], np.uint8)).__round__(6)
    0.6
    """
    inside_RC = _inside(mask_HW, map_RC.shape)
    total = float(map_RC.sum())
    return float((map_RC * inside_RC).sum()) / total if total > 0 else float("nan")


def _inside(mask_HW: NDArray[np.uint8], grid: tuple[int, ...]) -> NDArray[np.float64]:
    """Part of each cell of the grid inside the mask."""
    import cv2

    share = cv2.resize((mask_HW > 0).astype(np.float32), grid[::-1], interpolation=cv2.INTER_AREA)
    return share.reshape(grid).astype(np.float64)


def _panel(identity: str, pictures: Sequence[AttentionPicture], scorers: Sequence[str], peak: float) -> Panel:
    columns = 1 + len(scorers)
    side = min(170.0, (WIDTH - _GAP * (columns - 1)) / columns)
    row = side + 2 * _LINE + 8
    parts: list[Markup] = [text(0, 15, "picture", anchor="start", weight="600")]
    for n, scorer in enumerate(scorers, start=1):
        parts.append(text(n * (side + _GAP), 15, shortened(scorer, side / BOLD), anchor="start", weight="600"))
    for r, one in enumerate(pictures):
        y = _TOP + r * row
        small = _small(one.image_HW3)
        parts.append(picture(0, y, side, jpeg(small), name=f"{identity}, {one.label}"))
        parts.append(text(0, y + side + _LINE, shortened(one.label, side, SMALL), anchor="start", size=SMALL))
        for n, scorer in enumerate(scorers, start=1):
            x, found = n * (side + _GAP), one.maps.get(scorer)
            if found is None or not np.isfinite(found).all():
                parts.append(text(x + side / 2, y + side / 2, "no map", size=SMALL, colour=SOFT))
                continue
            data = jpeg(overlay(small, found, peak))
            parts.append(picture(x, y, side, data, name=f"{identity}, {one.label}, attention of {scorer}"))
            if one.mask_HW is not None:
                said = f"{100 * share_on_object(found, one.mask_HW):.0f} % on the object"
                parts.append(text(x, y + side + _LINE, said, anchor="start", size=SMALL))
    width, end = max(WIDTH, columns * side + _GAP * (columns - 1)), _TOP + row * len(pictures)
    parts += _scale(peak, end + 2)
    height = end + 34
    label = f"Attention maps of {', '.join(scorers)} on {identity}"
    return Panel(svg=svg(parts, height, label, width=width), height=height, width=width, caption=identity)


def _scale(peak: float, y: float) -> list[Markup]:
    """The colours' meaning, as a bar."""
    import cv2

    steps, left, width = 40, 0.0, 200.0
    colours = cv2.applyColorMap(np.linspace(0, 255, steps).astype(np.uint8)[:, None], cv2.COLORMAP_INFERNO)[:, 0, ::-1]
    # As `overlay` shows them over a middle grey.
    shown = ["#" + "".join(f"{int(0.35 * 128 + 0.65 * v):02x}" for v in colour) for colour in colours]
    parts = [
        tag("rect", x=coordinate(left + width * n / steps), y=coordinate(y), width=coordinate(width / steps + 0.3),
            height=8, shape_rendering="crispEdges", fill=colour)
        for n, colour in enumerate(shown)
    ]  # fmt: skip
    for value, said in ((0.0, "0"), (1.0, "even"), (peak, f"{peak:.1f}×")):
        x = left + width * value / peak
        anchor = "start" if value == 0 else None
        if value == 1 and (x < 30 or x > width - 50):
            continue
        parts.append(tag("rect", x=coordinate(x - 0.5), y=coordinate(y + 8), width=1, height=3, fill=INK))
        parts.append(text(x, y + 23, said, anchor=anchor, size=SMALL))
    parts.append(
        text(left + width + text_width("00.0×", SMALL), y + 9, "weight of a token", anchor="start", size=SMALL)
    )
    return parts


def _small(image_HW3: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """At the size it is shown in; small ones are enlarged, so that a map over them is smooth."""
    return resize_rgb(image_HW3, _SHOWN_PX, _SHOWN_PX)


def _mean_shares(pictures: Sequence[AttentionPicture], scorers: Sequence[str]) -> dict[str, float]:
    found = {}
    for scorer in scorers:
        shares = [share_on_object(p.maps[scorer], p.mask_HW) for p in pictures
                  if scorer in p.maps and p.mask_HW is not None]  # fmt: skip
        if shares and np.isfinite(shares).any():
            found[scorer] = float(np.nanmean(shares))
    return found


def _mean_area(pictures: Sequence[AttentionPicture]) -> float:
    areas = [float((p.mask_HW > 0).mean()) for p in pictures if p.mask_HW is not None]
    return float(np.mean(areas)) if areas else float("nan")
