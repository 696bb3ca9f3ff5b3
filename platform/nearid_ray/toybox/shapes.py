"""The geometry of toybox objects: outlines in object coordinates and their rasterisation.

Object coordinates: x to the right, y down, the object fits into [-1, 1] x [-1, 1]. Every outline is a list of filled
polygons on one of four layers. Form parameters are five numbers in [0, 1].

Axes: S image side in pixels, N points of a polygon.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import cv2
import numpy as np

from nearid_ray.toybox.identity import CATEGORIES

#: Layers, drawn from back to front: accent-coloured parts behind the body, the body, accent-coloured parts before it,
#: dark details (openings, windows, eyes).
BEHIND, BODY, FRONT, DARK = range(4)

_SUBPIXEL_BITS = 4

Point = tuple[float, float]
Points = Sequence[Point]


@dataclass
class Outline:
    """Polygons of an object and where its decal sits."""

    decal_x: float = 0.0
    decal_y: float = 0.0
    decal_size: float = 0.28
    """Half the side of the decal's square, in object units."""
    round: bool = False
    """Whether the surface is that of a body of revolution (it wraps the pattern and shades like one)."""
    layers: list[int] = field(default_factory=list)
    shapes: list[tuple[Points, ...]] = field(default_factory=list)

    def polygon(self, layer: int, *contours: Points) -> None:
        """A filled polygon; further contours cut holes."""
        self.layers.append(layer)
        self.shapes.append(contours)

    def rectangle(self, layer: int, left: float, top: float, right: float, bottom: float) -> None:
        self.polygon(layer, [(left, top), (right, top), (right, bottom), (left, bottom)])

    def ellipse(self, layer: int, x: float, y: float, radius_x: float, radius_y: float) -> None:
        self.polygon(layer, ring_points(x, y, radius_x, radius_y))

    def hoop(self, layer: int, x: float, y: float, radius_x: float, radius_y: float, width: float) -> None:
        """An ellipse with an elliptic hole, `width` being the thickness of the rim."""
        hole = ring_points(x, y, max(radius_x - width, 0.02), max(radius_y - width, 0.02))
        self.polygon(layer, ring_points(x, y, radius_x, radius_y), hole)

    def turned(self, layer: int, profile: Points) -> None:
        """A body symmetric about x = 0 from (y, half width) pairs."""
        right = [(half, y) for y, half in profile]
        self.polygon(layer, [(-x, y) for x, y in right] + right[::-1])

    def stroke(self, layer: int, points: Points, width: float) -> None:
        """A line of the given width, one quadrilateral a segment."""
        for (x0, y0), (x1, y1) in pairwise(points):
            length = max(((x1 - x0) ** 2 + (y1 - y0) ** 2) ** 0.5, 1e-6)
            along_x, along_y = (x1 - x0) / length * width / 2, (y1 - y0) / length * width / 2
            # Segments overlap by a quarter of the width so that bends have no notch.
            x0, y0, x1, y1 = x0 - along_x / 2, y0 - along_y / 2, x1 + along_x / 2, y1 + along_y / 2
            self.polygon(
                layer,
                [
                    (x0 - along_y, y0 + along_x),
                    (x1 - along_y, y1 + along_x),
                    (x1 + along_y, y1 - along_x),
                    (x0 + along_y, y0 - along_x),
                ],
            )


def ring_points(x: float, y: float, radius_x: float, radius_y: float) -> Points:
    return [(x + radius_x * c, y + radius_y * s) for c, s in _CIRCLE]


_CIRCLE = [(float(np.cos(t)), float(np.sin(t))) for t in np.arange(20) * (2 * np.pi / 20)]


def outline_of(category: str, form: Sequence[float], yaw_rad: float) -> Outline:
    """Outline of a category's object with the given five proportions, turned by `yaw_rad` about its upright axis."""
    outline = Outline()
    _OUTLINES[category](outline, form, float(np.cos(yaw_rad)))
    return outline


def rasterize(outline: Outline, homography_33: np.ndarray, size_px: int) -> np.ndarray:
    """Coverage of the four layers, uint8 (4, S, S), after projecting object coordinates to pixels."""
    layers_4SS = np.zeros((4, size_px, size_px), np.uint8)
    contours = [np.asarray(points, np.float64) for shape in outline.shapes for points in shape]
    points_N2 = np.concatenate(contours)
    projected_N3 = points_N2 @ homography_33[:, :2].T + homography_33[:, 2]
    pixels_N2 = projected_N3[:, :2] / projected_N3[:, 2:]
    fixed_N2 = np.rint((pixels_N2 - 0.5) * (1 << _SUBPIXEL_BITS)).astype(np.int32)
    start = 0
    for layer, shape in zip(outline.layers, outline.shapes, strict=True):
        polygons = []
        for points in shape:
            polygons.append(fixed_N2[start : start + len(points)])
            start += len(points)
        cv2.fillPoly(layers_4SS[layer], polygons, 255, cv2.LINE_AA, _SUBPIXEL_BITS)
    return layers_4SS


def _mug(o: Outline, form: Sequence[float], cos_yaw: float) -> None:
    a, b, c, d, e = form
    half, height, taper = 0.36 + 0.22 * a, 0.46 + 0.34 * b, 0.34 * (c - 0.5)
    reach, loop = (0.26 + 0.20 * d) * cos_yaw, height * (0.42 + 0.34 * e)
    o.hoop(BEHIND, half * 0.94, 0.0, reach, loop, 0.13)
    o.turned(BODY, [(-height, half * (1 + taper)), (height, half * (1 - taper))])
    o.ellipse(DARK, 0.0, -height, half * (1 + taper), 0.09)
    o.round, o.decal_y, o.decal_size = True, 0.05, 0.30


def _vase(o: Outline, form: Sequence[float], cos_yaw: float) -> None:
    a, b, c, d, e = form
    neck, belly, middle, foot = 0.12 + 0.22 * a, 0.20 + 0.32 * b, 0.36 + 0.36 * c, 0.16 + 0.26 * d
    lip = neck + 0.06 + 0.20 * e
    profile = [(-0.76, neck)]
    for t in np.linspace(0.0, 1.0, 13)[1:].tolist():
        bulge = belly * float(np.exp(-(((t - middle) / 0.26) ** 2)))
        profile.append((-0.76 + 1.64 * t, max(0.08, neck * (1 - t) + foot * t + bulge)))
    o.turned(BODY, profile)
    o.turned(FRONT, [(-0.88, lip), (-0.74, neck + 0.03)])
    o.ellipse(DARK, 0.0, -0.88, lip * 0.85, 0.05)
    o.round, o.decal_y, o.decal_size = True, -0.76 + 1.64 * middle, 0.26


def _bottle(o: Outline, form: Sequence[float], cos_yaw: float) -> None:
    a, b, c, d, e = form
    half, shoulder, neck, cap = 0.24 + 0.20 * a, -0.36 + 0.40 * b, 0.08 + 0.10 * c, 0.10 + 0.14 * d
    o.turned(BODY, [(-0.80 + cap, neck), (shoulder - 0.05 - 0.24 * e, neck), (shoulder, half), (0.90, half)])
    o.turned(FRONT, [(-0.92, neck * 1.35), (-0.80 + cap, neck * 1.35)])
    o.turned(FRONT, [(0.80, half), (0.92, half)])
    o.round, o.decal_y, o.decal_size = True, (shoulder + 0.80) / 2, 0.25


def _lamp(o: Outline, form: Sequence[float], cos_yaw: float) -> None:
    a, b, c, d, e = form
    top, bottom, height = 0.16 + 0.30 * a, 0.46 + 0.34 * b, 0.60 + 0.36 * c
    foot, pole = 0.22 + 0.30 * d, 0.05 + 0.09 * e
    o.turned(BEHIND, [(-0.25, pole), (0.88, pole)])
    o.turned(BEHIND, [(0.72, foot * 0.65), (0.92, foot)])
    o.turned(BODY, [(-0.90, top), (-0.90 + height, bottom)])
    o.round, o.decal_y, o.decal_size = True, -0.90 + 0.58 * height, 0.27


def _teapot(o: Outline, form: Sequence[float], cos_yaw: float) -> None:
    a, b, c, d, e = form
    half, height, spout, lid, loop = 0.40 + 0.18 * a, 0.36 + 0.22 * b, 0.16 + 0.36 * c, 0.15 + 0.16 * d, 0.20 + 0.15 * e
    o.polygon(
        BEHIND,
        [(half * 0.6, 0.28), (half + 0.24 * cos_yaw, -spout), (half + 0.40 * cos_yaw, -spout), (half * 0.9, 0.36)],
    )
    o.hoop(BEHIND, -half * 0.94, 0.02, loop * cos_yaw, height * 0.7, 0.10)
    o.ellipse(BODY, 0.0, 0.08, half, height)
    o.ellipse(FRONT, 0.0, 0.10 - height, lid, 0.11)
    o.ellipse(FRONT, 0.0, -0.05 - height, 0.07, 0.08)
    o.round, o.decal_y, o.decal_size = True, 0.14, 0.26


def _hat(o: Outline, form: Sequence[float], cos_yaw: float) -> None:
    a, b, c, d, e = form
    brim, crown, top, bottom, band = 0.55 + 0.37 * a, 0.60 + 0.45 * b, 0.24 + 0.24 * c, 0.38 + 0.10 * d, 0.10 + 0.18 * e
    o.ellipse(BODY, 0.0, 0.45, brim, 0.15)
    o.turned(BODY, [(0.45 - crown, top), (0.45, bottom)])
    o.ellipse(BODY, 0.0, 0.45 - crown, top, 0.07)
    at_band = bottom + (top - bottom) * band / crown
    o.turned(FRONT, [(0.46 - band, at_band), (0.46, bottom)])
    o.round, o.decal_y, o.decal_size = True, 0.45 - (band + crown) / 2, 0.22


def _umbrella(o: Outline, form: Sequence[float], cos_yaw: float) -> None:
    a, b, c, d, e = form
    half, height, rim, pole, hook = 0.60 + 0.32 * a, 0.48 + 0.38 * b, 0.05 + 0.16 * c, 0.08 + 0.09 * d, 0.12 + 0.18 * e
    o.stroke(BEHIND, [(0.0, -0.2), (0.0, 0.80), (hook * 0.5, 0.91), (hook, 0.80), (hook, 0.68)], pole)
    dome = [(half * float(np.cos(t)), rim - height * float(np.sin(t))) for t in np.linspace(0.0, np.pi, 15)]
    scallops = [(-half + 2 * half * i / 6, rim - (0.09 if i % 2 else 0.0)) for i in range(1, 6)]
    o.polygon(BODY, dome + scallops)
    o.stroke(FRONT, [(0.0, rim - height + 0.05), (0.0, rim - height - 0.12)], 0.14)
    o.round, o.decal_y, o.decal_size = True, rim - 0.46 * height, 0.26


def _boot(o: Outline, form: Sequence[float], cos_yaw: float) -> None:
    a, b, c, d, e = form
    reach, shaft, toe, sole, heel = 0.78 * cos_yaw, 0.35 + 0.45 * a, 0.12 + 0.22 * b, 0.12 + 0.13 * c, 0.22 * e
    ankle = (-0.02 + 0.24 * d) * cos_yaw
    back = -0.62 * cos_yaw
    o.polygon(
        BODY,
        [
            (back, 0.55), (back, -shaft), (ankle, -shaft), (ankle + 0.02, 0.55 - toe - 0.22),
            (reach * 0.72, 0.55 - toe), (reach, 0.45), (reach, 0.55),
        ],
    )  # fmt: skip
    o.polygon(
        FRONT,
        [(back, 0.53), (reach + 0.03, 0.53), (reach, 0.53 + sole), (ankle, 0.53 + sole), (back, 0.53 + sole + heel)],
    )
    o.rectangle(FRONT, back - 0.03, -shaft - 0.05, ankle + 0.03, -shaft + 0.12)
    o.decal_x, o.decal_y, o.decal_size = (back + ankle) / 2, 0.28 - shaft * 0.45, 0.23


def _car(o: Outline, form: Sequence[float], cos_yaw: float) -> None:
    a, b, c, d, e = form
    reach, roof, front, back = 0.92 * cos_yaw, 0.38 + 0.30 * a, -0.62 + 0.32 * b, 0.10 + 0.45 * c
    wheel, hood = 0.17 + 0.11 * d, -0.04 + 0.20 * e
    o.polygon(
        BODY,
        [
            (-reach, 0.38), (-reach, -0.04), (front * reach, -0.10), ((front + 0.2) * reach, -roof),
            (back * reach, -roof), ((back + 0.26) * reach, -0.08), (reach, hood), (reach, 0.38),
        ],
    )  # fmt: skip
    o.polygon(
        DARK,
        [
            ((front + 0.09) * reach, -0.13), ((front + 0.24) * reach, -roof + 0.07),
            ((back - 0.03) * reach, -roof + 0.07), ((back + 0.14) * reach, -0.13),
        ],
    )  # fmt: skip
    for x in (-0.56 * reach, 0.56 * reach):
        o.ellipse(FRONT, x, 0.40, wheel, wheel)
        o.ellipse(DARK, x, 0.40, wheel * 0.45, wheel * 0.45)
    o.decal_y, o.decal_size = 0.13, 0.22


def _backpack(o: Outline, form: Sequence[float], cos_yaw: float) -> None:
    a, b, c, d, e = form
    half, height, corner = (0.42 + 0.22 * a) * cos_yaw, 0.54 + 0.26 * b, 0.10 + 0.30 * c
    pocket_half, pocket = half * (0.5 + 0.36 * d), 0.20 + 0.26 * e
    foot_y, top_y = -height + 0.03, -height - 0.14
    o.stroke(BEHIND, [(-0.17, foot_y), (-0.13, top_y), (0.13, top_y), (0.17, foot_y)], 0.09)
    shoulder = corner * 0.6 * cos_yaw
    o.polygon(
        BODY,
        [
            (-half, height), (-half, -height + corner), (-half + shoulder, -height),
            (half - shoulder, -height), (half, -height + corner), (half, height),
        ],
    )  # fmt: skip
    o.rectangle(FRONT, -pocket_half, height - 0.06 - pocket, pocket_half, height - 0.06)
    o.rectangle(DARK, -pocket_half, height - 0.08 - pocket, pocket_half, height - 0.03 - pocket)
    o.decal_y, o.decal_size = -0.06 - pocket / 2, 0.26


def _chair(o: Outline, form: Sequence[float], cos_yaw: float) -> None:
    a, b, c, d, e = form
    half, back, seat = (0.36 + 0.20 * a) * cos_yaw, 0.62 + 0.36 * b, 0.10 + 0.20 * c
    leg, splay = 0.10 + 0.14 * d, 0.16 * e
    for side in (-1.0, 1.0):
        o.stroke(BEHIND, [(side * half, seat + 0.05), (side * (half + splay), 0.92)], leg)
    o.polygon(BODY, [(-half, seat), (-half - splay / 2, seat - back), (half + splay / 2, seat - back), (half, seat)])
    o.polygon(
        BODY,
        [(-half - 0.08, seat), (half + 0.08, seat), (half + 0.15, seat + 0.17), (-half - 0.15, seat + 0.17)],
    )
    o.decal_y, o.decal_size = seat - 0.52 * back, 0.27


def _robot(o: Outline, form: Sequence[float], cos_yaw: float) -> None:
    a, b, c, d, e = form
    half, height, head = (0.32 + 0.18 * a) * cos_yaw, 0.32 + 0.14 * b, (0.20 + 0.16 * c) * cos_yaw
    arm, leg = 0.12 + 0.15 * d, 0.10 + 0.12 * e
    top = 0.50 - 2 * height
    for side in (-1.0, 1.0):
        o.stroke(BEHIND, [(side * half, top + 0.16), (side * (half + 0.20), 0.30)], arm)
        x = side * half * 0.5
        o.polygon(BEHIND, [(x - leg * 0.6, 0.48), (x + leg * 0.6, 0.48), (x + leg, 0.90), (x - leg, 0.90)])
    o.rectangle(BODY, -half, top, half, 0.50)
    o.rectangle(FRONT, -head, top - 0.40, head, top + 0.02)
    for side in (-1.0, 1.0):
        o.ellipse(DARK, side * head * 0.45, top - 0.22, 0.065, 0.065)
    o.decal_y, o.decal_size = 0.50 - height, 0.25


_OUTLINES: dict[str, Callable[[Outline, Sequence[float], float], None]] = dict(
    zip(
        CATEGORIES,
        (_mug, _vase, _bottle, _lamp, _teapot, _hat, _umbrella, _boot, _car, _backpack, _chair, _robot),
        strict=True,
    )
)
